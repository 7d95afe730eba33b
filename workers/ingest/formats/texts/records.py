"""JSON and JSON Lines -> one passage of text for each element, with its number and metadata.

An object with a string under `text` (or else `content`) is that text, and its other fields are
its metadata: scalars as they are; lists of texts, of numbers or of booleans as lists, in which
scalars of several types become texts; anything deeper as JSON. Any other value is written out as
"path: value" lines, such as "address.city: Seoul". The elements of an array at the top, and the
lines of JSON Lines, are passages of their own; `item` or `line` counts them from 1. Null and empty
values are left out. A key that comes again in its object is kept as `key (2)`.

A job may choose other fields, by paths such as `author.name`, `tags[1]` or `/author/name`; those
that nothing in the document has are an error. Costs are linear in the text and in what becomes of
it, which `max_chars` bounds.
"""

import itertools
import json
import math
import re
from collections.abc import Iterator
from typing import Any, Final

from shared.bounds import Metadata, is_of_one_type
from shared.errors import DocumentError
from shared.kinds.ingest import JsonOptions
from workers.ingest.formats.loader import (
    DocumentParts,
    Loader,
    PassageKey,
    RawDocument,
    too_long,
)
from workers.ingest.formats.texts.text import text_of

_TEXT_FIELDS: Final = ("text", "content")
_DEPTH: Final = 200
_NO_OPTIONS: Final = JsonOptions()
_KEYS_NAMED: Final = 30
_INDEX_DIGITS: Final = 10
_LARGEST_INTEGER: Final = 2**63 - 1  # what Chroma's metadata can hold


def elements(
    text: str, *, name: str, max_chars: int, options: JsonOptions = _NO_OPTIONS
) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON document. Raises `DocumentError`."""
    value = _parse(text, name=name, line=None)
    fields = _Fields(options, name=name)
    if isinstance(value, list):
        for number, element in enumerate(value, start=1):
            own: Metadata = {PassageKey.ITEM: number}
            yield _passage(element, own, name=name, max_chars=max_chars, fields=fields)
    else:
        yield _passage(value, {}, name=name, max_chars=max_chars, fields=fields)
    fields.check()


def lines(
    text: str, *, name: str, max_chars: int, options: JsonOptions = _NO_OPTIONS
) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON Lines document. Raises `DocumentError`."""
    fields = _Fields(options, name=name)
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
            own: Metadata = {PassageKey.LINE: number}
            yield _passage(value, own, name=name, max_chars=max_chars, fields=fields)
    fields.check()


def load_json(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    options = document.options.json_
    passages = elements(text, name=document.name, max_chars=document.max_chars, options=options)
    return DocumentParts(passages=passages, metadata=metadata)


def load_lines(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    options = document.options.json_
    passages = lines(text, name=document.name, max_chars=document.max_chars, options=options)
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


class _Fields:
    """The fields that a job chooses, and which of them a document has."""

    def __init__(self, options: JsonOptions, *, name: str) -> None:
        self.content = options.content_fields
        self.metadata = options.metadata_fields
        self._name = name
        self._missing = dict.fromkeys([*(self.content or []), *(self.metadata or [])])
        self._keys: dict[str, None] = {}

    @property
    def are_chosen(self) -> bool:
        return self.content is not None or self.metadata is not None

    def of(self, value: Any, path: str) -> Any:
        """What lies at a path (`author.name`, `tags[1]`, or `/author/name` as in RFC 6901); None if
        nothing does. A key that is written like the path wins."""
        if len(self._keys) < _KEYS_NAMED and isinstance(value, dict):
            self._keys.update(dict.fromkeys(itertools.islice(value, _KEYS_NAMED)))
        found = _at(value, path)
        if found is not None:
            self._missing.pop(path, None)
        return found

    def check(self) -> None:
        """Raises `DocumentError` for a field that is nowhere in the document."""
        if self._missing:
            named = ", ".join(map(repr, self._missing))
            has = ", ".join(map(repr, list(self._keys)[:_KEYS_NAMED])) or "none"
            raise DocumentError(
                f"{self._name}: json.content_fields and json.metadata_fields name {named}, which "
                f"nothing in the document has. Its fields are {has}."
            )


def _at(value: Any, path: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    if path.startswith("/"):
        parts = [part.replace("~1", "/").replace("~0", "~") for part in path[1:].split("/")]
        first = 0
    else:
        parts = [part for part in re.split(r"\.|\[([0-9]+)\]", path) if part]
        first = 1
    for part in parts:
        if isinstance(value, dict):
            value = value.get(part)
        elif isinstance(value, list) and part.isdecimal() and len(part) < _INDEX_DIGITS:
            at = int(part) - first
            value = value[at] if 0 <= at < len(value) else None
        else:
            return None
    return value


def _chosen(
    value: Any, metadata: Metadata, fields: _Fields, *, name: str, max_chars: int
) -> tuple[str, Metadata]:
    own = {path: fields.of(value, path) for path in fields.metadata or []}
    if fields.content is None:
        chosen = frozenset(fields.metadata or [])
        rest = value
        if isinstance(value, dict):
            rest = {key: field for key, field in value.items() if key not in chosen}
        text, others = _passage(rest, {}, name=name, max_chars=max_chars)
        return text, metadata | others | as_metadata(own, name=name)
    parts: list[str] = []
    for path in fields.content:
        part = fields.of(value, path)
        if isinstance(part, str):
            parts.append(part)
        elif part is not None:
            parts.append("\n".join(_rendered(part, name=name, max_chars=max_chars)))
    return "\n\n".join(filter(str.strip, parts)), metadata | as_metadata(own, name=name)


def _passage(
    value: Any, metadata: Metadata, *, name: str, max_chars: int, fields: _Fields | None = None
) -> tuple[str, Metadata]:
    if fields is not None and fields.are_chosen:
        return _chosen(value, metadata, fields, name=name, max_chars=max_chars)
    if isinstance(value, dict):
        for key in _TEXT_FIELDS:
            text = value.get(key)
            if isinstance(text, str) and text.strip():
                rest = {other: field for other, field in value.items() if other != key}
                return text, metadata | as_metadata(rest, name=name)
    return "\n".join(_rendered(value, name=name, max_chars=max_chars)), metadata


def _rendered(value: Any, *, name: str, max_chars: int) -> Iterator[str]:
    room = max_chars
    for line in _render(value, name=name):
        yield line
        room -= len(line) + 1
        if room < -1:  # each line repeats its path, so that they may be far longer than the file
            raise too_long(name, max_chars)


def as_metadata(fields: dict[str, Any], *, name: str) -> Metadata:
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
