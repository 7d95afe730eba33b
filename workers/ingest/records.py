"""JSON and JSON Lines -> one passage of text for each element, with its number and metadata.

An object with a string under `text` (or else `content`) is that text, and its other fields are
its metadata: scalars as they are, lists of scalars joined by commas, anything deeper as JSON. Any
other value is written out as "path: value" lines, such as "address.city: Seoul". The elements of
an array at the top, and the lines of JSON Lines, are passages of their own; `item` or `line`
counts them from 1. Null and empty values are left out.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from shared.errors import DocumentError
from shared.payloads import Metadata

_TEXT_FIELDS: Final = ("text", "content")
_LARGEST_INTEGER: Final = 2**63 - 1  # what Chroma's metadata can hold


def elements(text: str, *, name: str) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON document. Raises `DocumentError`."""
    value = _parse(text, name=name, line=None)
    if isinstance(value, list):
        for number, element in enumerate(value, start=1):
            yield _passage(element, {"item": number}, name=name)
    else:
        yield _passage(value, {}, name=name)


def lines(text: str, *, name: str) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON Lines document. Raises `DocumentError`."""
    # Not splitlines(): a JSON string may hold other line ends, such as U+2028, unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield _passage(_parse(line, name=name, line=number), {"line": number}, name=name)


def _parse(text: str, *, name: str, line: int | None) -> Any:
    try:
        return json.loads(text, parse_constant=str, parse_float=_finite, strict=False)
    except json.JSONDecodeError as wrong:
        hint = "Correct the file."
        if line is None and wrong.msg == "Extra data":
            hint = "If it is one JSON value a line, name it .jsonl."
        raise DocumentError(
            f"{name}: is not valid JSON at line {line or wrong.lineno:,} column {wrong.colno:,}: "
            f"{wrong.msg}. {hint}"
        ) from wrong
    except RecursionError as deep:
        raise _too_deep(name, line) from deep
    except ValueError as wrong:  # an integer of thousands of digits
        where = f" at line {line:,}" if line else ""
        raise DocumentError(f"{name}: cannot be read as JSON{where}: {wrong}.") from wrong


def _too_deep(name: str, line: int | None = None) -> DocumentError:
    where = f" at line {line:,}" if line else ""
    return DocumentError(f"{name}: the JSON is nested too deeply{where}. Flatten it.")


def _finite(number: str) -> float | str:
    """1e999 would become infinity, which neither store accepts; it stays as it is written."""
    value = float(number)
    return value if math.isfinite(value) else number


def _passage(value: Any, metadata: Metadata, *, name: str) -> tuple[str, Metadata]:
    if isinstance(value, dict):
        for key in _TEXT_FIELDS:
            text = value.get(key)
            if isinstance(text, str) and text.strip():
                rest = {other: field for other, field in value.items() if other != key}
                return text, metadata | _as_metadata(rest)
    try:
        return "\n".join(_render(value, "")), metadata
    except RecursionError as deep:
        raise _too_deep(name) from deep


def _as_metadata(fields: dict[str, Any]) -> Metadata:
    metadata: Metadata = {}
    for key, value in fields.items():
        if value is None or value == "" or value == [] or value == {}:
            continue
        if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
            metadata[key] = ", ".join(_scalar(item) for item in value if item is not None)
        elif isinstance(value, list | dict):
            metadata[key] = json.dumps(value, ensure_ascii=False)
        elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            metadata[key] = str(value)
        else:
            metadata[key] = value
    return metadata


def _render(value: Any, path: str) -> Iterator[str]:
    if isinstance(value, dict):
        for key, field in value.items():
            yield from _render(field, f"{path}.{key}" if path else key)
    elif isinstance(value, list):
        if not any(isinstance(item, list | dict) for item in value):
            items = [_scalar(item) for item in value if item is not None and item != ""]
            if items:
                yield _labelled(", ".join(items), path)
            return
        for number, item in enumerate(value, start=1):
            yield from _render(item, f"{path}[{number}]")
    elif value is not None and value != "":
        yield _labelled(_scalar(value), path)


def _labelled(text: str, path: str) -> str:
    return f"{path}: {text}" if path else text


def _scalar(value: Any) -> str:
    # As JSON writes it: true, not Python's True.
    return value if isinstance(value, str) else json.dumps(value)
