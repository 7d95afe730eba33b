"""Values from outside: their bounds, their normal forms, and what can be stored at all.

Three edges use this module, so that no value poisons a row:

- requests: the annotated types here bound each field of the shapes that clients send;
- the database: `to_json`, `from_json` and `storable_text` stand between Python and PostgreSQL
  (`shared/database/engine.py`), so that whatever a model or another server gave is stored, or
  refused with a reason, and whatever a row holds can be read;
- messages: `shown` and `cut` keep what a client sent from filling an error or a log.

Sizes named `*_bytes` count UTF-8, `*_chars` code points. PostgreSQL's B-tree entries end at 2,704
bytes, so whatever is indexed is bounded in bytes.
"""

import base64
import binascii
import json
import math
import re
import sys
import unicodedata
from collections.abc import Callable, Mapping
from datetime import UTC, datetime, timedelta
from functools import cache
from typing import Annotated, Any, Final, Literal
from urllib.parse import unquote_to_bytes

from pydantic import AfterValidator, AwareDatetime, Field, PlainValidator, UrlConstraints
from pydantic.networks import AnyHttpUrl

from shared.errors import InvalidInput, Permanent

# Base64 as programs write it: in lines, with spaces, unpadded, with the URL-safe alphabet, or
# as a `data:` URL. What it stands for does not depend on which.

HEAD_CHARS: Final = 512
"""How long what stands before the data of a `data:` URL may be (its type and parameters)."""
LINE_CHARS: Final = 32
"""Shorter lines are rather words, one a line, than base64."""

_DATA_URL: Final = re.compile(r"\s*data:([^,]*),", re.IGNORECASE)
_URL_SAFE: Final = bytes.maketrans(b"-_", b"+/")
_SPACE: Final = b" \t\r\n\v\f"
_LINES: Final = re.compile(r"[A-Za-z0-9+/_-]+(?:\r?\n[A-Za-z0-9+/_-]+)*={0,2}\s*", re.ASCII)


def decode(text: str) -> bytes:
    """The bytes that a text stands for. Raises InvalidInput where it is no base64."""
    try:
        data = _data(text).translate(_URL_SAFE, _SPACE).rstrip(b"=")
        padded = data + b"=" * (-len(data) % 4)
        decoded = base64.b64decode(padded, validate=True)
    except (binascii.Error, ValueError):
        decoded = b""
    if not decoded:
        raise InvalidInput(
            'this is no base64; send the file in base64, or as {"file_id": "..."} of an upload.'
        )
    return decoded


def is_surely(text: str) -> bool:
    """Whether a text is base64 that nobody would write as words: a `data:` URL, or lines of one
    length without spaces."""
    if data_url := _DATA_URL.match(text[:HEAD_CHARS]):
        return _is_base64_url(data_url[1])
    if not _LINES.fullmatch(text):
        return False
    *lines, last = text.split()
    size = len(lines[0]) if lines else len(last)
    return size >= LINE_CHARS and len(last) <= size and all(len(line) == size for line in lines)


def _data(text: str) -> bytes:
    data_url = _DATA_URL.match(text[:HEAD_CHARS])
    if data_url is None:
        return text.encode("ascii")
    if not _is_base64_url(data_url[1]):
        raise ValueError("the data of this URL is written in another way")
    data = text[data_url.end() :].encode("ascii")
    return unquote_to_bytes(data) if b"%" in data else data


def _is_base64_url(head: str) -> bool:
    return head.rpartition(";")[2].strip().lower() == "base64"


# Normal forms of text: what is stored is NFC, what is compared is NFKC without case.
#
# The same letters can be written in several ways: macOS takes Hangul and accents apart (NFD),
# East Asian input methods write Latin letters and digits in full width. Texts, names, and the
# keys and values of metadata are kept in NFC, so that two that are canonically the same are
# equal; offsets count its characters. Comparing folds more (NFKC, case), and is never stored.
#
# Python reorders combining marks by insertion, in quadratic time: a run of them is put in
# order here first.

_LONG_RUN: Final = 30
"""No language writes more marks on one letter (UAX 15, stream-safe text)."""
_ODD_LETTERS: Final = re.compile(
    "[\uff10-\uff19\uff21-\uff3a\uff41-\uff5a"  # full width
    "\uff66-\uff9f\uffa0-\uffdc"  # half width: kana with their marks, Hangul
    "\ufb00-\ufb06\u2460-\u24ff\u3200-\u33ff]+"  # ligatures, circles and squares
)
_NONSTARTERS: Final = range(0x300, 0x1F000)


def nfc(text: str) -> str:
    """Canonically the same text, composed."""
    return _normalized(text, "NFC")


def comparable(text: str) -> str:
    """The same for texts that differ in width, case, ligatures and the like."""
    return _normalized(text, "NFKC").casefold()


def nfkc(text: str) -> str:
    """Full width, ligatures and the like become plain; case stays."""
    return _normalized(text, "NFKC")


def nfc_value(value: Any) -> Any:
    """A value of metadata; texts, also those of a list, in NFC."""
    if isinstance(value, list):
        return [nfc_value(item) for item in value]
    return nfc(value) if isinstance(value, str) else value


def plain_letters(text: str) -> str:
    """Letters and digits in full or half width, in circles and squares, and ligatures as the plain
    ones that they stand for. Signs stay, such as the comma of Chinese."""
    if text.isascii():
        return text
    return _ODD_LETTERS.sub(lambda run: nfkc(run[0]), text)


def nfc_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and texts in NFC. Raises ValueError where two keys become one."""
    normal: dict[str, Any] = {}
    for written, value in metadata.items():
        key = nfc(written)
        if key in normal:
            raise ValueError(
                f"{key[:100]!r} is there twice, in two Unicode normal forms; send it once"
            )
        normal[key] = nfc_value(value)
    return normal


def _normalized(text: str, form: Literal["NFC", "NFKC"]) -> str:
    if text.isascii():
        return text
    apart: Literal["NFD", "NFKD"] = "NFD" if form == "NFC" else "NFKD"

    def in_order(run: re.Match[str]) -> str:
        marks = "".join(unicodedata.normalize(apart, mark) for mark in run[0])
        return "".join(sorted(marks, key=unicodedata.combining))

    return unicodedata.normalize(form, _long_runs(apart).sub(in_order, text))


@cache
def _long_runs(apart: Literal["NFD", "NFKD"]) -> re.Pattern[str]:
    """Long runs of what is, or begins with, a combining mark once it is taken apart."""
    marks: list[list[int]] = []
    for code in _NONSTARTERS:
        if not unicodedata.combining(unicodedata.normalize(apart, chr(code))[0]):
            continue
        if marks and marks[-1][1] == code - 1:
            marks[-1][1] = code
        else:
            marks.append([code, code])
    spans = "".join(f"{chr(first)}-{chr(last)}" for first, last in marks)
    return re.compile(f"[{spans}]{{{_LONG_RUN},}}")


DEPTH_LIMIT = 64
"""How many objects and lists may lie in each other in free JSON."""
BODY_DEPTH_LIMIT = 512
"""The same for a whole body, before it is parsed."""
BODY_LIMIT_VALUES = 500_000
"""How many values a body may hold, unless SLUICE_MAX_BODY_VALUES says otherwise."""
KEY_LIMIT_BYTES = 1024
METADATA_LIMIT_BYTES = 64 * 1024
METADATA_LIMIT_KEYS = 1000
FILTER_LIMIT_BYTES = 512 * 1024
FILTER_LIMIT_CONDITIONS = 100
FILTER_LIMIT_VALUES = 5000
"""Of all conditions together: `$in` and `$nin` have lists of them."""
FILTER_LIMIT_DEPTH = 16
SCHEMA_LIMIT_BYTES = 256 * 1024
"""Of a tool's parameters or arguments, and of the schema of an answer."""
PARAMETERS_LIMIT_BYTES = 256 * 1024
TASK_INPUTS_LIMIT_BYTES = 128 * 2**20
"""Of the inputs of an `hf` job; SLUICE_MAX_BODY_BYTES is lower unless it was raised."""
NAME_LIMIT_BYTES = 2048
"""Of a document's source, which stands in an index beside the id of its collection."""
MODEL_LIMIT_BYTES = 1024
"""Of a model, which stands in the index that steps are claimed by."""
FAIR_KEY_LIMIT_BYTES = 255
TEXT_LIMIT_CHARS = 1_000_000
DOCUMENT_LIMIT_CHARS = 100_000_000
LINE_LIMIT_CHARS = 1024
INT32_MAX = 2**31 - 1
INT64_MAX = 2**63 - 1
YEAR_S = 366 * 86_400
BATCH_LIMIT_JOBS = 10_000
SOURCES_LIMIT = 100_000
FIELDS_LIMIT = 64
"""How many fields an object of a fixed shape may have, known or not."""
RUN_AFTER_PAST = timedelta(days=1)
RUN_AFTER_AHEAD = timedelta(days=366)
SHOWN_CHARS = 80
SHOWN_DEPTH = 200
MESSAGE_LIMIT_CHARS = 2000

# Letters of any script, digits, marks; of signs in ASCII only spaces, `.`, `_` and `-` within. What
# is not seen, and what ends a line, is none of them.
_NO_PART_OF_NAMES: Final = (
    r"\x00-\x1f!-,/:-@\[-\^`{-\xa0\u1680\u2000-\u200f\u2028-\u202f\u205f-\u206f\u3000\ufeff"
    r"\ufff0-\uffff"
)
_EDGE: Final = rf"[^{_NO_PART_OF_NAMES} ._-]"
COLLECTION_NAME = rf"^{_EDGE}(?:[^{_NO_PART_OF_NAMES}]{{0,126}}{_EDGE})?$"
"""Those of 3 to 63 characters in ASCII are the same in Chroma, so that any LangChain program can
open the collection under its name (`workers/retrieval/stores/chroma.py`)."""


# What errors show of values


def cut(text: str, limit_chars: int = MESSAGE_LIMIT_CHARS) -> str:
    """The text, or its beginning and how long it is."""
    if len(text) <= limit_chars:
        return text
    return f"{text[:limit_chars]} ... ({len(text):,} characters)"


def shown(value: object, limit_chars: int = SHOWN_CHARS) -> str:
    """A value for a message, as `repr` has it, however long or deep the value is."""
    if isinstance(value, str):
        return cut(repr(value[: limit_chars + 1]), limit_chars)
    if isinstance(value, dict):
        names = ", ".join(shown(name, 40) for name in sorted(map(str, value))[:8])
        return f"an object with [{names}{', ...' if len(value) > 8 else ''}]"
    if isinstance(value, list):
        return f"a list of {len(value):,}"
    if isinstance(value, int) and not isinstance(value, bool) and abs(value) > INT64_MAX:
        return "a number of more than 64 bits"
    return cut(repr(value), limit_chars)


# Text


_SURROGATES: Final = re.compile("[\ud800-\udfff]")
UNSTORABLE: Final = re.compile("[\x00\ud800-\udfff]")
REPLACEMENT = "\ufffd"


def is_storable_text(text: str) -> bool:
    """Whether PostgreSQL can hold it: no NUL, no half of a surrogate pair."""
    if "\x00" in text:
        return False
    return text.isascii() or _SURROGATES.search(text) is None


def storable_text(text: str) -> str:
    """The text with U+FFFD for what PostgreSQL cannot hold."""
    return text if is_storable_text(text) else UNSTORABLE.sub(REPLACEMENT, text)


def _plain(text: str) -> str:
    if not is_storable_text(text):
        raise ValueError("holds a NUL character or half of a surrogate pair; remove it")
    return text


def _within_bytes(limit_bytes: int) -> Callable[[str], str]:
    def check(text: str) -> str:
        # Four bytes a character at most: short ones need not be encoded.
        if len(text) * 4 > limit_bytes and len(text.encode(errors="replace")) > limit_bytes:
            raise ValueError(f"is longer than {limit_bytes:,} bytes in UTF-8; shorten it")
        return _plain(text)

    return check


# JSON of any shape


def check_json(
    value: Any,
    *,
    limit_bytes: int,
    limit_depth: int = DEPTH_LIMIT,
    limit_keys: int | None = None,
) -> Any:
    """The value, if it can be stored, listed and read again. Raises ValueError.

    Depth, the number and length of keys, 64 bits of integers, finite numbers and what no text can
    hold are looked at without recursion; then the size of its JSON in bytes.
    """
    keys, left = 0, [(value, 1)]
    while left:
        at, depth = left.pop()
        if isinstance(at, str):
            if not is_storable_text(at):
                raise ValueError(
                    f"{shown(at)} holds a NUL character or half of a surrogate pair; remove it"
                )
        elif isinstance(at, dict | list | tuple):
            if depth > limit_depth:
                raise ValueError(
                    f"is nested deeper than {limit_depth} levels; flatten it, or send a string"
                )
            if isinstance(at, dict):
                keys += len(at)
                if limit_keys is not None and keys > limit_keys:
                    raise ValueError(f"has more than {limit_keys:,} keys; send fewer")
                for key in at:
                    _check_key(key)
            left += [(item, depth + 1) for item in (at.values() if isinstance(at, dict) else at)]
        elif isinstance(at, float):
            if not math.isfinite(at):
                raise ValueError("holds a number that is none (NaN or infinity)")
        elif isinstance(at, int) and not -INT64_MAX - 1 <= at <= INT64_MAX:
            raise ValueError("holds an integer of more than 64 bits; send it as a string")
        elif at is not None and not isinstance(at, int):
            raise ValueError(f"holds {shown(at)}, which is no JSON")
    if value and len(json.dumps(value, ensure_ascii=False).encode()) > limit_bytes:
        raise ValueError(f"is larger than {limit_bytes:,} bytes as JSON; send less")
    return value


def _check_key(key: object) -> None:
    if not isinstance(key, str):
        raise ValueError(f"has the key {shown(key)}; keys are strings")
    if len(key) * 4 > KEY_LIMIT_BYTES and len(key.encode(errors="replace")) > KEY_LIMIT_BYTES:
        raise ValueError(
            f"has the key {shown(key)}; keys are at most {KEY_LIMIT_BYTES:,} bytes in UTF-8"
        )
    if not is_storable_text(key):
        raise ValueError(
            f"has the key {shown(key)}, with a NUL character or half of a surrogate pair; remove it"
        )


def _free_json(limit_bytes: int, limit_keys: int | None = None) -> AfterValidator:
    return AfterValidator(
        lambda value: check_json(value, limit_bytes=limit_bytes, limit_keys=limit_keys)
    )


def _values(value: Any, *, list_types: tuple[type, ...]) -> dict[str, Any]:
    """Metadata: names with single values, or with lists of one of the types."""
    if not isinstance(value, dict):
        raise ValueError("must be an object")
    if len(value) > METADATA_LIMIT_KEYS:
        raise ValueError(f"has more than {METADATA_LIMIT_KEYS:,} keys; send fewer")
    for key, item in value.items():
        if isinstance(item, list):
            if is_of_one_type(item, list_types):
                continue
        elif isinstance(item, str | int | float):
            if isinstance(item, int) and not -INT64_MAX - 1 <= item <= INT64_MAX:
                raise ValueError(
                    f"{shown(key)} is an integer of more than 64 bits; send it as a string"
                )
            continue
        of = "texts" if list_types == (str,) else "texts, of numbers, or of booleans"
        raise ValueError(f"{shown(key)} must be a text, a number, true or false, or a list of {of}")
    checked: dict[str, Any] = check_json(value, limit_bytes=METADATA_LIMIT_BYTES, limit_depth=2)
    return checked


def is_of_one_type(items: list[Any], types: tuple[type, ...] = (str, float, bool)) -> bool:
    """Whether all items are texts, all are numbers (float; also integers), or all are booleans."""
    first = {_type_of(item) for item in items}
    return not first or (len(first) == 1 and first <= {*types})


def _type_of(item: Any) -> type | None:
    if isinstance(item, bool):
        return bool
    if isinstance(item, int | float):
        return float
    return str if isinstance(item, str) else None


Scalar = str | int | float | bool

Metadata = Annotated[
    dict[str, Any],
    PlainValidator(
        lambda value: _values(value, list_types=(str, float, bool)),
        json_schema_input_type=dict[str, Scalar | list[str] | list[float] | list[bool]],
    ),
]
"""Of documents: names with single values, or with lists of one type."""

ServerParameters = Annotated[
    dict[str, Any],
    PlainValidator(
        lambda value: _values(value, list_types=(str,)),
        json_schema_input_type=dict[str, Scalar | list[str]],
    ),
]

FreeMetadata = Annotated[dict[str, Any], _free_json(METADATA_LIMIT_BYTES, METADATA_LIMIT_KEYS)]
"""Whatever a client likes to keep with a job or a conversation."""

JsonSchema = Annotated[dict[str, Any], _free_json(SCHEMA_LIMIT_BYTES)]
ToolArguments = Annotated[dict[str, Any], _free_json(SCHEMA_LIMIT_BYTES)]
TaskInputs = Annotated[Any, _free_json(TASK_INPUTS_LIMIT_BYTES)]
TaskParameterValues = Annotated[dict[str, Any], _free_json(PARAMETERS_LIMIT_BYTES, 10_000)]


# Single values


CollectionName = Annotated[str, Field(pattern=COLLECTION_NAME), AfterValidator(nfc)]
Text = Annotated[str, Field(min_length=1, max_length=TEXT_LIMIT_CHARS)]
DocumentText = Annotated[str, Field(max_length=DOCUMENT_LIMIT_CHARS)]
SourceName = Annotated[
    str, Field(min_length=1, max_length=1024), AfterValidator(_within_bytes(NAME_LIMIT_BYTES))
]
ModelName = Annotated[
    str,
    Field(min_length=1, max_length=MODEL_LIMIT_BYTES),
    AfterValidator(_within_bytes(MODEL_LIMIT_BYTES)),
]
McpServerName = Annotated[str, Field(pattern=r"^[a-zA-Z0-9_-]{1,32}$", max_length=32)]
Line = Annotated[str, Field(max_length=LINE_LIMIT_CHARS), AfterValidator(_plain)]
"""A short text: a label, an id, the name of a column."""
FullLine = Annotated[str, Field(min_length=1, max_length=LINE_LIMIT_CHARS), AfterValidator(_plain)]
Paragraph = Annotated[str, Field(max_length=100_000), AfterValidator(_plain)]
WebUrl = Annotated[AnyHttpUrl, UrlConstraints(max_length=2048)]
Count = Annotated[int, Field(ge=0, le=INT32_MAX)]
Natural = Annotated[int, Field(ge=1, le=INT32_MAX)]


def _in_range(moment: datetime) -> datetime:
    now = datetime.now(UTC)
    if not now - RUN_AFTER_PAST <= moment <= now + RUN_AFTER_AHEAD:
        raise ValueError(
            f"lies more than {RUN_AFTER_PAST.days} day back or more than {RUN_AFTER_AHEAD.days} "
            "days ahead; give a moment between"
        )
    return moment.astimezone(UTC)


RunAfter = Annotated[AwareDatetime, AfterValidator(_in_range)]


# Between Python and PostgreSQL


class Unreadable:
    """Stands for JSON of a row that cannot be read, such as JSON that is nested too deeply."""

    def __init__(self, reason: str) -> None:
        self.reason = reason

    def __repr__(self) -> str:
        return f"<unreadable: {self.reason}>"


def as_object(value: Any) -> dict[str, Any]:
    """What a row holds where an object belongs; empty where it holds something else."""
    return value if isinstance(value, dict) else {}


def is_deep(value: Any, limit_depth: int = SHOWN_DEPTH) -> bool:
    """Whether objects and lists lie deeper in each other than an answer can be written."""
    left = [(value, 1)]
    while left:
        at, depth = left.pop()
        if isinstance(at, dict | list):
            if depth > limit_depth:
                return True
            left += [(item, depth + 1) for item in (at.values() if isinstance(at, dict) else at)]
    return False


class EncodedJson:
    """A value with its JSON, so that it is encoded once however often it is written."""

    def __init__(self, value: Any, text: str) -> None:
        self.value = value
        self.text = text


EARLIEST = datetime(1, 1, 1, tzinfo=UTC)
LATEST = datetime(9999, 12, 31, 23, 59, 59, 999999, tzinfo=UTC)
"""What dates are read as that Python cannot hold: before Christ, behind 9999, or infinity."""

_LONG_NUMBER: Final = re.compile(rb"\d{19}")


_LINE_ENDS: Final = {0x85: "\\u0085", 0x2028: "\\u2028", 0x2029: "\\u2029"}


def json_line(value: Any) -> str:
    """A value as JSON on one line."""
    return one_line(json.dumps(value, ensure_ascii=False, separators=(",", ":")))


def one_line(text: str) -> str:
    """JSON of one line, also for readers that take other characters for the end of one, as Python's
    `splitlines` and the `iter_lines` of httpx do."""
    return text if text.isascii() else text.translate(_LINE_ENDS)


def to_json(value: Any) -> str:
    """A value as JSON that JSONB takes. Raises Permanent for what is no JSON.

    NUL characters and half surrogate pairs, which a model or another server may give, become
    U+FFFD. What clients send was refused before if it held any.
    """
    if isinstance(value, EncodedJson):
        return value.text
    try:
        text = json.dumps(value, ensure_ascii=False, allow_nan=False)
        # An escaped backslash before `u0000` looks the same, and costs a copy.
        if "\\u0000" in text or not is_storable_text(text):
            text = json.dumps(storable_json(value), ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise Permanent(
            "A value to be stored holds a number that is none (NaN or infinity) or has thousands "
            "of digits. If a model gave it, use another one, or another precision of it."
        ) from error
    except RecursionError as error:
        raise Permanent("A value to be stored is nested too deeply.") from error
    return text


def storable_json(value: Any) -> Any:
    """The value with U+FFFD for what PostgreSQL's text cannot hold, in keys as well."""
    if isinstance(value, str):
        return storable_text(value)
    if isinstance(value, dict):
        return {
            storable_text(key) if isinstance(key, str) else key: storable_json(item)
            for key, item in value.items()
        }
    if isinstance(value, list | tuple):
        return [storable_json(item) for item in value]
    return value


def from_json(data: bytes | str) -> Any:
    """The value of stored JSON; `Unreadable` where Python cannot hold it.

    JSONB writes 1e30 with all its digits: integers of more than 64 bits are read as the floats that
    they were.
    """
    raw = data.encode() if isinstance(data, str) else data
    try:
        if _LONG_NUMBER.search(raw):
            return json.loads(raw, parse_int=_integer)
        return json.loads(raw)
    except RecursionError:
        return Unreadable("it is nested too deeply")
    except ValueError as error:
        return Unreadable(str(error)[:200])


def _integer(digits: str) -> int | float:
    if len(digits) < 19:
        return int(digits)
    value = float(digits)
    if abs(value) <= 2.0**63 and -INT64_MAX - 1 <= int(digits) <= INT64_MAX:
        return int(digits)
    return math.copysign(min(abs(value), sys.float_info.max), value)
