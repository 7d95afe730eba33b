"""JSON as models write it: line ends within strings are let pass, what cannot be stored is not."""

import json
import math
import re
from typing import Any, Final

from shared.bounds import is_deep


def value_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises ValueError."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        if is_deep(value):
            raise ValueError("it is nested too deep")
        # PostgreSQL keeps neither NUL nor half a surrogate pair.
        if _UNSTORABLE.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("a string has a NUL or half of a surrogate pair in it")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value, end


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


_DECODER: Final = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)
# As json.dumps writes them: a NUL escaped, unless the backslash is itself the second of a pair.
_UNSTORABLE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]")
