"""JSON and JSON Lines -> one passage of text for each element, with its number and metadata.

If an object has a string under `text` (or else `content`), that is the text, and the other fields
are metadata: scalars as they are; lists of texts, numbers or booleans as lists (scalars of several
types as texts); deeper values as JSON. Any other value becomes "path: value" lines, such as
"address.city: Seoul". The elements of an array at the top level, and the lines of JSON Lines, are
passages of their own; `item` or `line` counts them from 1. Null and empty values are left out. A
key that occurs twice in an object is kept as `key (2)`.

A job may select other fields, by paths such as `author.name`, `tags[1]` (counted from 1), `tags[]`
or `/author/name`; a name after a list refers to that field of each object in it. A field that is
nowhere in the document is an error; a warning names elements without text in the selected fields.
Costs are linear in the text and in the result, which `max_chars` limits.
"""

import itertools
import json
import math
import re
from collections.abc import Callable, Iterator, Sequence
from decimal import Decimal
from functools import lru_cache
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
_EXACT_CHARS: Final = 15  # the precision of a double; zero and its exponent are short
_PATH_STEPS: Final = 64
_WARNED_ELEMENTS: Final = 3
_PARAGRAPH_CHARS: Final = 80
_LARGEST_INTEGER: Final = 2**63 - 1  # the range of integers in Chroma's metadata


def elements(
    text: str,
    *,
    name: str,
    max_chars: int,
    warnings: list[str],
    options: JsonOptions = _NO_OPTIONS,
) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON document. Raises DocumentError."""
    value = _parse(text, name=name, line=None)
    fields = _Fields(options, name=name)
    if isinstance(value, list):
        for number, element in enumerate(value, start=1):
            own: Metadata = {PassageKey.ITEM: number}
            passage = _passage(element, own, name=name, max_chars=max_chars, fields=fields)
            if element and not passage[0].strip():
                fields.note_empty(number)
            yield passage
    else:
        yield _passage(value, {}, name=name, max_chars=max_chars, fields=fields)
    fields.check(warnings, what="item")


def lines(
    text: str,
    *,
    name: str,
    max_chars: int,
    warnings: list[str],
    options: JsonOptions = _NO_OPTIONS,
) -> Iterator[tuple[str, Metadata]]:
    """The passages of a JSON Lines document. Raises DocumentError."""
    fields = _Fields(options, name=name)
    # Not splitlines(): a JSON string may contain other line ends, such as U+2028, unescaped.
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
            passage = _passage(value, own, name=name, max_chars=max_chars, fields=fields)
            if value and not passage[0].strip():
                fields.note_empty(number)
            yield passage
    fields.check(warnings, what="line")


def load_json(document: RawDocument) -> DocumentParts:
    return _load(document, elements)


def load_lines(document: RawDocument) -> DocumentParts:
    return _load(document, lines)


def _load(
    document: RawDocument, read: Callable[..., Iterator[tuple[str, Metadata]]]
) -> DocumentParts:
    text, metadata = text_of(document)
    warnings: list[str] = []
    passages = read(
        text,
        name=document.name,
        max_chars=document.max_chars,
        warnings=warnings,
        options=document.options.json_,
    )
    return DocumentParts(passages=passages, metadata=metadata, warnings=warnings)


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
    """Raise a clear error if the lines are no JSON values, but the whole file is one."""
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
            parse_float=_exact,
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


def _exact(number: str) -> float | str:
    """A number; as text if a double cannot represent it: 1e999, 0.12345678901234567890."""
    value = float(number)
    if not math.isfinite(value):
        return number
    if (len(number) > _EXACT_CHARS or not value) and Decimal(number) != Decimal(repr(value)):
        return number
    return value


class _Fields:
    """The fields that a job selects, and which of them a document has."""

    def __init__(self, options: JsonOptions, *, name: str) -> None:
        self.content = options.content_fields
        self.metadata = options.metadata_fields
        self._name = name
        self._missing = dict.fromkeys([*(self.content or []), *(self.metadata or [])])
        self._keys: dict[str, None] = {}
        self._empty: list[int] = []
        self._empty_count = 0

    @property
    def are_chosen(self) -> bool:
        return self.content is not None or self.metadata is not None

    def of(self, value: Any, path: str) -> Any:
        """The value at a path (`author.name`, `tags[1]`, or `/author/name` as in RFC 6901); None if
        there is none. A key that is spelled like the path takes precedence."""
        if len(self._keys) < _KEYS_NAMED and isinstance(value, dict):
            self._keys.update(dict.fromkeys(itertools.islice(value, _KEYS_NAMED)))
        field_value = _at(value, path)
        if field_value is not None:
            self._missing.pop(path, None)
        return field_value

    def note_empty(self, number: int) -> None:
        """Note an element or line that has content, but no text in the selected fields."""
        self._empty_count += 1
        if len(self._empty) < _WARNED_ELEMENTS:
            self._empty.append(number)

    def check(self, warnings: list[str], *, what: str) -> None:
        """Raises DocumentError for a field that is nowhere in the document."""
        if self._missing:
            named = ", ".join(map(repr, self._missing))
            has = ", ".join(map(repr, list(self._keys)[:_KEYS_NAMED])) or "none"
            raise DocumentError(
                f"{self._name}: json.content_fields and json.metadata_fields name {named}, which "
                f"nothing in the document has. Its fields are {has}."
            )
        if self._empty and self.content is not None:
            first = ", ".join(f"{number:,}" for number in self._empty)
            more = self._empty_count - len(self._empty)
            warnings.append(
                f"{self._name}: {what} {first}"
                + (f" and {more:,} more" if more else "")
                + " left out: no text under json.content_fields."
            )


def _at(value: Any, path: str) -> Any:
    if isinstance(value, dict) and path in value:
        return value[path]
    if path.startswith("/"):
        for part in path[1:].split("/"):
            part = part.replace("~1", "/").replace("~0", "~")
            value = value.get(part) if isinstance(value, dict) else _item(value, part, first=0)
        return value
    return _follow(value, _steps(path))


@lru_cache(maxsize=1024)
def _steps(path: str) -> tuple[str, ...]:
    """Names, dots, and the content of brackets. Any of these may be part of a name."""
    if path.startswith(("$.", "$[")):  # the beginning of a JSONPath
        path = path[1:]
    return tuple(re.findall(r"[^.\[\]]+|\[(?:[0-9]*|\*)\]|[.\[\]]", path)[:_PATH_STEPS])


def _follow(value: Any, steps: tuple[str, ...]) -> Any:
    """The value at the end of the steps; None if there is none.

    Names may contain dots: the longest name that leads to a value counts. After a list: the list of
    the values in each of its items.
    """
    if len(steps) > 1 and steps[0] == ".":
        steps = steps[1:]
    if not steps:
        return value
    if isinstance(value, dict):
        for count in range(len(steps), 0, -1):
            name = "".join(steps[:count])
            if name in value:
                inner = _follow(value[name], steps[count:])
                if inner is not None:
                    return inner
        return None
    if not isinstance(value, list):
        return None
    is_bracket = steps[0].startswith("[") and len(steps[0]) > 1
    index = steps[0][1:-1] if is_bracket else steps[0]
    if index.isdecimal():
        return _follow(_item(value, index, first=1), steps[1:])
    rest = steps[1:] if is_bracket else steps
    followed = (_follow(item, rest) for item in value if is_bracket or isinstance(item, dict))
    items = [item for item in followed if item is not None]
    return list(_flat(items)) if items else None


def _flat(items: Sequence[Any]) -> Iterator[Any]:
    for item in items:
        if isinstance(item, list):
            yield from item
        else:
            yield item


def _item(value: Any, index: str, *, first: int) -> Any:
    if not isinstance(value, list) or not index.isdecimal() or len(index) >= _INDEX_DIGITS:
        return None
    at = int(index) - first
    return value[at] if 0 <= at < len(value) else None


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
        elif _are_paragraphs(part):
            parts.append("\n\n".join(part))
        elif part is not None:
            parts.append("\n".join(_rendered(part, name=name, max_chars=max_chars)))
    return "\n\n".join(filter(str.strip, parts)), metadata | as_metadata(own, name=name)


def _are_paragraphs(value: Any) -> bool:
    """Whether a list contains texts that are more than single words."""
    return (
        isinstance(value, list)
        and all(isinstance(item, str) for item in value)
        and any("\n" in item or len(item) > _PARAGRAPH_CHARS for item in value)
    )


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
        if room < -1:  # each line repeats its path, so the lines may be far longer than the file
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
    """A line with path and value for each value that contains no others."""
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
    # As in JSON: true, not Python's True.
    return value if isinstance(value, str) else json.dumps(value)
