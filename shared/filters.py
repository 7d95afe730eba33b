"""Filters on metadata: which chunks of a collection a search may find.

A filter is an object. Each key is a key of the metadata, with a condition on its value; all
conditions have to hold:

    {"team": "office", "year": {"$gte": 2020, "$lt": 2025}}
    {"$or": [{"team": {"$in": ["office", "desk"]}}, {"$not": {"tags": {"$contains": "old"}}}]}

A value alone means `$eq`. The comparisons are `$eq $ne $in $nin $gt $gte $lt $lte $contains`, and
`$not` with comparisons in it. `$and` and `$or` join filters, `$not` negates one. Any other name is
a key of the metadata, also `$price`; `$$` at its beginning stands for one `$`, so `$$and` is the
key `$and`. Dots have no meaning.

A filter means the same in Python (`MetadataFilter.matches`) and in PostgreSQL
(`shared/documents/filtering.py`); a vector store may return more chunks
(`workers/retrieval/store.py`):

- Values of different types are never equal, and neither is larger. The types are text, number,
  boolean and list: 2024 equals 2024.0 but not "2024", and true does not equal 1.
- Numbers compare exactly, by their decimal notation. Texts compare by code points, so dates in one
  ISO form compare by time.
- `$contains` is for lists: one of the items is equal. It never holds for a text. All other
  comparisons are for single values, and never hold for a list.
- `$ne`, `$nin` and `$not` are negations: they also hold if the key is missing or its value has
  another type, as in MongoDB and Chroma.
- Keys and texts are in Unicode's normal form C.
- `source`, `document_id` and `start_index` are the chunk's own, unless its metadata has such a key.

Nothing here reads a database.
"""

import operator
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from decimal import Decimal
from enum import StrEnum
from typing import Annotated, Any, Final

from pydantic import PlainSerializer, PlainValidator, WithJsonSchema

from shared.bounds import (
    DEPTH_LIMIT,
    FILTER_LIMIT_BYTES,
    FILTER_LIMIT_CONDITIONS,
    FILTER_LIMIT_DEPTH,
    FILTER_LIMIT_VALUES,
    Scalar,
    check_json,
    is_storable_text,
    nfc,
    shown,
)

OWN_KEYS: Final = frozenset({"source", "document_id", "start_index"})
"""Keys that mean the chunk's own value if its metadata has no such key."""


class Operator(StrEnum):
    """The comparisons of a parsed filter; `$eq`, `$ne` and `$nin` are expressed by `$in`."""

    IN = "$in"
    GT = "$gt"
    GTE = "$gte"
    LT = "$lt"
    LTE = "$lte"
    CONTAINS = "$contains"


ORDER: Final[Mapping[Operator, Callable[[Any, Any], Any]]] = {
    Operator.GT: operator.gt,
    Operator.GTE: operator.ge,
    Operator.LT: operator.lt,
    Operator.LTE: operator.le,
}
_JOINING: Final = ("$and", "$or", "$not")
_COMPARING: Final = (
    "$eq", "$ne", "$in", "$nin", "$gt", "$gte", "$lt", "$lte", "$contains", "$not",
)  # fmt: skip
_NEGATED: Final = {"$ne": "$eq", "$nin": "$in"}


@dataclass(frozen=True, kw_only=True)
class Comparison:
    """A comparison of one key. `values` are in NFC; only `$in` may have other than one of them."""

    key: str
    operator: Operator
    values: tuple[Scalar, ...]

    @property
    def value(self) -> Scalar:
        return self.values[0]

    @property
    def types(self) -> set[str]:
        """The types of values for which it can hold, as `jsonb_typeof` names them."""
        if self.operator is Operator.CONTAINS:
            return {"array"}
        return {typed[0] for typed in map(_typed, self.values) if typed is not None}


@dataclass(frozen=True)
class AllOf:
    """Holds if all conditions hold; without conditions always."""

    conditions: tuple["Condition", ...]


@dataclass(frozen=True)
class AnyOf:
    conditions: tuple["Condition", ...]


@dataclass(frozen=True)
class Not:
    condition: "Condition"


Condition = Comparison | AllOf | AnyOf | Not


@dataclass(frozen=True, kw_only=True)
class MetadataFilter:
    """A parsed filter; `json` is its source."""

    json: Mapping[str, Any]
    root: Condition

    @classmethod
    def read(cls, value: Any) -> "MetadataFilter":
        """Parse a filter. Raises ValueError, which names the place in the filter and the remedy."""
        if not isinstance(value, dict):
            raise ValueError(
                f'is {_kind(value)}; write an object such as {{"year": {{"$gte": 2020}}}}'
            )
        reader = _Reader()
        root = reader.filter(value, (), depth=1)
        check_json(value, limit_bytes=FILTER_LIMIT_BYTES, limit_depth=DEPTH_LIMIT)
        return cls(json=value, root=root)

    def matches(self, metadata: Mapping[str, Any], own: Mapping[str, Scalar]) -> bool:
        """Whether a chunk with this metadata matches. `own` has its values for OWN_KEYS, which are
        used if `metadata` has no such key."""
        return _holds(self.root, {**own, **metadata})

    def required(self, key: str) -> tuple[Scalar, ...] | None:
        """The values of which every matching chunk has one for this key; None if the filter does
        not demand that."""
        parts = self.root.conditions if isinstance(self.root, AllOf) else (self.root,)
        for part in parts:
            if isinstance(part, Comparison) and part.key == key and part.operator is Operator.IN:
                return part.values
        return None

    def comparisons(self) -> Iterator[Comparison]:
        """The comparisons that are not negated."""
        left: list[Condition] = [self.root]
        while left:
            condition = left.pop()
            if isinstance(condition, Comparison):
                yield condition
            elif not isinstance(condition, Not):
                left += reversed(condition.conditions)


def escaped(key: str) -> str:
    """A key of the metadata as a filter has to write it."""
    is_taken = key.startswith("$$") or key in (*_JOINING, *_COMPARING)
    return f"${key}" if is_taken else key


# Reading

_Place = tuple[str | int, ...]


class _Reader:
    """Parses a filter, and counts the conditions and values of all its parts."""

    def __init__(self) -> None:
        self._conditions = 0
        self._values = 0

    def filter(self, value: Any, place: _Place, *, depth: int) -> Condition:
        if not isinstance(value, dict):
            raise _wrong(
                place, f'is {_kind(value)}; write a filter such as {{"year": {{"$gte": 2020}}}}'
            )
        if depth > FILTER_LIMIT_DEPTH:
            raise ValueError(
                f"is nested deeper than {FILTER_LIMIT_DEPTH} levels of $and, $or and $not; flatten "
                "it"
            )
        if not value:
            self._count(conditions=1)
        conditions: list[Condition] = []
        keys: set[str] = set()
        for name, inner in value.items():
            here = (*place, str(name))
            if name in ("$and", "$or"):
                conditions.append(self._joined(name, inner, here, depth=depth))
            elif name == "$not":
                if not isinstance(inner, dict):
                    raise _wrong(
                        here,
                        f'is {_kind(inner)}; write one filter, or {{"$or": [...]}} for what none '
                        f"of several may be{_or_key(name)}",
                    )
                conditions.append(Not(self.filter(inner, here, depth=depth + 1)))
            elif name in _COMPARING:
                raise _wrong(
                    here,
                    f'has no key to compare; write {{"KEY": {{"{name}": ...}}}}{_or_key(name)}',
                )
            else:
                key = self._key(name, inner, here)
                if key in keys:
                    raise _wrong(
                        here, "is there twice, in two Unicode normal forms or spellings; join both"
                    )
                keys.add(key)
                conditions.append(self._comparisons(key, inner, here, depth=depth))
        return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))

    def _joined(self, name: str, inner: Any, place: _Place, *, depth: int) -> Condition:
        if not isinstance(inner, list) or not inner:
            what = "an empty list" if isinstance(inner, list) else _kind(inner)
            raise _wrong(
                place, f"is {what}; write a list of filters, with one at least{_or_key(name)}"
            )
        conditions = tuple(
            self.filter(part, (*place, at), depth=depth + 1) for at, part in enumerate(inner)
        )
        return AllOf(conditions) if name == "$and" else AnyOf(conditions)

    def _key(self, name: Any, inner: Any, place: _Place) -> str:
        """The key of the metadata that a name in a filter stands for."""
        if not isinstance(name, str):
            raise _wrong(place, "is no text, as keys are")
        is_typing_mistake = name.startswith("$") and (
            isinstance(inner, list) or (isinstance(inner, dict) and not _is_comparing(inner))
        )
        if is_typing_mistake and not name.startswith("$$"):
            raise _wrong(
                place,
                f"is none of {', '.join(_JOINING)}, which alone stand before filters; a key of "
                "that name takes a value, or comparisons",
            )
        return nfc(name.removeprefix("$") if name.startswith("$$") else name)

    def _comparisons(self, key: str, inner: Any, place: _Place, *, depth: int) -> Condition:
        if not isinstance(inner, dict):
            return self._comparison(key, "$eq", inner, place)
        if not inner:
            raise _wrong(place, 'is empty; write a value, or comparisons such as {"$gte": 2020}')
        conditions: list[Condition] = []
        for name, value in inner.items():
            here = (*place, str(name))
            if name == "$not":
                if not isinstance(value, dict):
                    raise _wrong(
                        here, f'takes comparisons such as {{"$gt": 5}}, not {_kind(value)}'
                    )
                if depth >= FILTER_LIMIT_DEPTH:
                    raise ValueError(
                        f"is nested deeper than {FILTER_LIMIT_DEPTH} levels; flatten it"
                    )
                conditions.append(Not(self._comparisons(key, value, here, depth=depth + 1)))
            elif name in _COMPARING:
                conditions.append(self._comparison(key, name, value, here))
            else:
                hint = (
                    "it stands before filters, not behind a key"
                    if name in ("$and", "$or")
                    else "the metadata has no objects; a filter names its keys at the top"
                )
                raise _wrong(
                    here, f"is no comparison ({hint}); comparisons are {', '.join(_COMPARING)}"
                )
        return conditions[0] if len(conditions) == 1 else AllOf(tuple(conditions))

    def _comparison(self, key: str, name: str, value: Any, place: _Place) -> Condition:
        is_negated = name in _NEGATED
        name = _NEGATED.get(name, name)
        if name == "$in":
            if not isinstance(value, list):
                raise _wrong(place, f"takes a list of values, not {_kind(value)}")
            self._count(conditions=1, values=len(value))
            values = [_scalar(item, (*place, at)) for at, item in enumerate(value)]
        else:
            self._count(conditions=1, values=1)
            values = [_scalar(value, place)]
        if name in ("$gt", "$gte", "$lt", "$lte") and isinstance(value, bool):
            raise _wrong(place, f"compares numbers or texts, not {_kind(value)}")
        condition = Comparison(
            key=key,
            operator=Operator.IN if name == "$eq" else Operator(name),
            values=tuple(values),
        )
        return Not(condition) if is_negated else condition

    def _count(self, *, conditions: int, values: int = 0) -> None:
        self._conditions += conditions
        self._values += values
        if self._conditions > FILTER_LIMIT_CONDITIONS:
            raise ValueError(
                f"has more than {FILTER_LIMIT_CONDITIONS:,} conditions; write many values of one "
                "key as $in"
            )
        if self._values > FILTER_LIMIT_VALUES:
            raise ValueError(
                f"has more than {FILTER_LIMIT_VALUES:,} values; search several times, or note what "
                "they have in common in the metadata"
            )


def _scalar(value: Any, place: _Place) -> Scalar:
    if isinstance(value, str):
        if not is_storable_text(value):
            raise _wrong(place, "holds a NUL character or half of a surrogate pair; remove it")
        return nfc(value)
    if isinstance(value, bool | int | float):
        try:
            check_json(value, limit_bytes=FILTER_LIMIT_BYTES)
        except ValueError as error:
            raise _wrong(place, str(error)) from error
        return value
    hint = ""
    if isinstance(value, list):
        hint = '; write {"$in": [...]} for one of several, {"$contains": ...} for an item of a list'
    elif value is None:
        hint = "; metadata has none, and $ne and $not hold where a key is missing"
    raise _wrong(place, f"takes a text, a number, true or false, not {_kind(value)}{hint}")


def _is_comparing(value: dict[Any, Any]) -> bool:
    return bool(value) and all(name in _COMPARING for name in value)


def _or_key(name: str) -> str:
    return f" (the key {name!r} of the metadata is written {escaped(name)!r})"


def _wrong(place: _Place, message: str) -> ValueError:
    written = "".join(f"[{part}]" if isinstance(part, int) else f".{part}" for part in place)
    return ValueError(f"{shown(written.removeprefix('.'))} {message}")


def _kind(value: Any) -> str:
    kinds = {bool: "true or false", str: "a text", list: "a list", dict: "an object"}
    if value is None:
        return "null"
    return kinds.get(type(value), "a number")


# Python


def _holds(condition: Condition, values: Mapping[str, Any]) -> bool:
    match condition:
        case AllOf():
            return all(_holds(part, values) for part in condition.conditions)
        case AnyOf():
            return any(_holds(part, values) for part in condition.conditions)
        case Not():
            return not _holds(condition.condition, values)
        case Comparison():
            return condition.key in values and _compares(condition, values[condition.key])


def _compares(comparison: Comparison, stored: Any) -> bool:
    operands = [_typed(value) for value in comparison.values]
    if comparison.operator is Operator.CONTAINS:
        return isinstance(stored, list) and operands[0] in map(_typed, stored)
    typed = _typed(stored)
    if comparison.operator is Operator.IN:
        return typed is not None and typed in operands
    (operand,) = operands
    return (
        typed is not None
        and operand is not None
        and typed[0] == operand[0] != "boolean"
        and bool(ORDER[comparison.operator](typed[1], operand[1]))
    )


def _typed(value: Any) -> tuple[str, Any] | None:
    """A value with its type; None for types that cannot be compared."""
    if isinstance(value, bool):
        return "boolean", value
    if isinstance(value, int | float):
        return "number", decimal(value)
    return ("string", value) if isinstance(value, str) else None


def decimal(value: float) -> Decimal:
    """The number as JSON writes it, and so as JSONB stores it: 0.1 is exactly one tenth."""
    return Decimal(repr(value))


# The field of a request

_VALUE: Final = {"anyOf": [{"type": name} for name in ("string", "number", "boolean")]}
_ORDERED: Final = {"anyOf": [{"type": "string"}, {"type": "number"}]}
_VALUES: Final = {"type": "array", "items": _VALUE, "maxItems": FILTER_LIMIT_VALUES}
_FILTERS: Final = {"type": "array", "items": {"type": "object"}, "minItems": 1}
_SCHEMA: Final[dict[str, Any]] = {
    "title": "MetadataFilter",
    "description": (
        "What a chunk's metadata has to be: all that is named. A value alone means `$eq`; "
        'comparisons are in an object, such as `{"$gte": 2020}`. `$and` and `$or` join filters, '
        "`$not` turns one round. `$$` at the beginning of a key stands for one `$`. Numbers are "
        "equal by value, and values of different types never. `$ne`, `$nin` and `$not` hold where "
        "the key is missing."
    ),
    "type": "object",
    "properties": {"$and": _FILTERS, "$or": _FILTERS, "$not": {"type": "object"}},
    "additionalProperties": {
        "anyOf": [
            *_VALUE["anyOf"],
            {
                "type": "object",
                "properties": {
                    "$eq": _VALUE,
                    "$ne": _VALUE,
                    "$in": _VALUES,
                    "$nin": _VALUES,
                    "$gt": _ORDERED,
                    "$gte": _ORDERED,
                    "$lt": _ORDERED,
                    "$lte": _ORDERED,
                    "$contains": _VALUE,
                    "$not": {"type": "object"},
                },
                "additionalProperties": False,
                "minProperties": 1,
            },
        ]
    },
    "examples": [
        {"team": "office", "year": {"$gte": 2020, "$lt": 2025}},
        {"$or": [{"team": {"$in": ["office", "desk"]}}, {"tags": {"$contains": "hours"}}]},
    ],
}


def _validated(value: Any) -> MetadataFilter:
    return value if isinstance(value, MetadataFilter) else MetadataFilter.read(value)


FilterField = Annotated[
    MetadataFilter,
    PlainValidator(_validated),
    PlainSerializer(lambda filter_: dict(filter_.json), return_type=dict[str, Any]),
    WithJsonSchema(_SCHEMA),
]
"""A filter as a field of a shape: parsed from JSON, and dumped as JSON."""
