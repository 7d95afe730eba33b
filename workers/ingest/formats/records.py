"""JSON and JSON Lines -> one passage of text for each element, with its number and metadata.

An object with a string under `text` (or else `content`) is that text, and its other fields are
its metadata: scalars as they are; lists of texts, of numbers or of booleans as lists, in which
scalars of several types become texts; anything deeper as JSON. Any other value is written out as
"path: value" lines, such as "address.city: Seoul". The elements of an array at the top, and the
lines of JSON Lines, are passages of their own; `item` or `line` counts them from 1. Null and empty
values are left out. A key that comes again in its object is kept as `key (2)`. Costs are linear in
the text and in what becomes of it, which `max_chars` bounds.
"""

import json
import math
from collections.abc import Iterator
from typing import Any, Final

from shared.bounds import Metadata, is_of_one_type
from shared.errors import DocumentError
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument, too_long
from workers.ingest.formats.text import text_of

_TEXT_FIELDS: Final = ("text", "content")
_DEPTH: Final = 200
_LARGEST_INTEGER: Final = 2**63 - 1  # what Chroma's metadata can hold


def elements(text: str, *, name: str, max_chars: int) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON document. Raises `DocumentError`."""
    value = _parse(text, name=name, line=None)
    if isinstance(value, list):
        for number, element in enumerate(value, start=1):
            yield _passage(element, {"item": number}, name=name, max_chars=max_chars)
    else:
        yield _passage(value, {}, name=name, max_chars=max_chars)


def lines(text: str, *, name: str, max_chars: int) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON Lines document. Raises `DocumentError`."""
    # Not splitlines(): a JSON string may hold other line ends, such as U+2028, unescaped.
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            try:
                value = _parse(line, name=name, line=number)
            except DocumentError:
                _refuse_plain_json(text, name=name)
                raise
            is_alone = isinstance(value, list) and len(line.strip()) == len(text.strip())
            if is_alone and any(isinstance(item, dict) for item in value):
                raise DocumentError(
                    f"{name}: is one JSON array, not one value a line. Name it .json, so that "
                    "each of its elements is read on its own."
                )
            yield _passage(value, {"line": number}, name=name, max_chars=max_chars)


def load_json(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    passages = elements(text, name=document.name, max_chars=document.max_chars)
    return DocumentParts(passages=passages, metadata=metadata)


def load_lines(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    passages = lines(text, name=document.name, max_chars=document.max_chars)
    return DocumentParts(passages=passages, metadata=metadata)


JSON = Loader(
    load=load_json,
    example=b'[{"text": "We open at nine.", "page": 1}, {"city": "Seoul"}]',
    example_text="We open at nine.\n\ncity: Seoul",
)
JSON_LINES = Loader(
    load=load_lines,
    example=b'{"text": "We open at nine."}\n{"city": "Seoul"}\n',
    example_text="We open at nine.\n\ncity: Seoul",
)


def _refuse_plain_json(text: str, *, name: str) -> None:
    """Say so where the lines of a file are no values, but all of it is one."""
    try:
        _parse(text, name=name, line=None)
    except DocumentError:
        return
    raise DocumentError(
        f"{name}: is one JSON value over several lines, not one a line. Name it .json."
    )


def _parse(text: str, *, name: str, line: int | None) -> Any:
    try:
        return json.loads(
            text,
            parse_constant=str,
            parse_float=_finite,
            object_pairs_hook=_object,
            strict=False,
        )
    except json.JSONDecodeError as wrong:
        hint = "Correct the file."
        if line is None and wrong.msg == "Extra data":
            hint = "If it is one JSON value a line, name it .jsonl."
        elif line is not None:
            hint = "Each line has to be one whole JSON value, without a comma behind it."
        raise DocumentError(
            f"{name}: is not valid JSON at line {line or wrong.lineno:,} column {wrong.colno:,}: "
            f"{wrong.msg}. {hint}"
        ) from wrong
    except RecursionError as deep:
        raise _too_deep(name, line) from deep
    except ValueError as wrong:  # an integer of thousands of digits
        where = f" at line {line:,}" if line else ""
        raise DocumentError(f"{name}: cannot be read as JSON{where}: {wrong}.") from wrong


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) == len(pairs):
        return value
    taken = set(value)
    copies: dict[str, int] = {}
    value = {}
    for key, field in pairs:
        unique = key
        if key in value:
            copy = copies.get(key, 2)
            while (unique := f"{key} ({copy})") in taken:
                copy += 1
            copies[key] = copy + 1
            taken.add(unique)
        value[unique] = field
    return value


def _too_deep(name: str, line: int | None = None) -> DocumentError:
    where = f" at line {line:,}" if line else ""
    return DocumentError(
        f"{name}: the JSON is nested too deeply{where}, more than {_DEPTH} levels. Flatten it."
    )


def _finite(number: str) -> float | str:
    """1e999 would become infinity, which neither store accepts; it stays as it is written."""
    value = float(number)
    return value if math.isfinite(value) else number


def _passage(value: Any, metadata: Metadata, *, name: str, max_chars: int) -> tuple[str, Metadata]:
    if isinstance(value, dict):
        for key in _TEXT_FIELDS:
            text = value.get(key)
            if isinstance(text, str) and text.strip():
                rest = {other: field for other, field in value.items() if other != key}
                return text, metadata | _as_metadata(rest, name=name)
    rendered: list[str] = []
    room = max_chars
    for line in _render(value, name=name):
        rendered.append(line)
        room -= len(line) + 1
        if room < -1:  # each line repeats its path, so that they may be far longer than the file
            raise too_long(name, max_chars)
    return "\n".join(rendered), metadata


def _as_metadata(fields: dict[str, Any], *, name: str) -> Metadata:
    metadata: Metadata = {}
    for key, value in fields.items():
        if value is None or value == "" or value == [] or value == {}:
            continue
        if isinstance(value, list) and not any(isinstance(item, list | dict) for item in value):
            if items := [item for item in value if item is not None]:
                metadata[key] = _as_list(items)
        elif isinstance(value, list | dict):
            try:
                metadata[key] = json.dumps(value, ensure_ascii=False)
            except RecursionError as deep:
                raise _too_deep(name) from deep
        elif isinstance(value, int) and abs(value) > _LARGEST_INTEGER:
            metadata[key] = str(value)
        else:
            metadata[key] = value
    return metadata


def _as_list(items: list[Any]) -> list[Any]:
    is_large = any(isinstance(item, int) and abs(item) > _LARGEST_INTEGER for item in items)
    return [_scalar(item) for item in items] if is_large or not is_of_one_type(items) else items


def _render(value: Any, *, name: str) -> Iterator[str]:
    """A line for each value that is none of others: its path, and what it is."""
    path: list[str] = []
    rest: list[Iterator[tuple[str, Any]]] = [iter([("", value)])]
    while rest:
        step = next(rest[-1], None)
        if step is None:
            rest.pop()
            if path:
                path.pop()
            continue
        part, inner = step
        if isinstance(inner, dict):
            children = ((f".{key}", field) for key, field in inner.items())
        elif isinstance(inner, list) and any(isinstance(item, list | dict) for item in inner):
            children = ((f"[{number}]", item) for number, item in enumerate(inner, start=1))
        else:
            items = inner if isinstance(inner, list) else [inner]
            written = [_scalar(item) for item in items if item is not None and item != ""]
            if written:
                yield _labelled(", ".join(written), ("".join(path) + part).removeprefix("."))
            continue
        if len(rest) > _DEPTH:
            raise _too_deep(name)
        path.append(part)
        rest.append(children)


def _labelled(text: str, path: str) -> str:
    return f"{path}: {text}" if path else text


def _scalar(value: Any) -> str:
    # As JSON writes it: true, not Python's True.
    return value if isinstance(value, str) else json.dumps(value)
