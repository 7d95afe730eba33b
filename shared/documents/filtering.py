"""Filters on metadata as SQL. What a filter means: `shared/filters.py`."""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

from sqlalchemy import (
    ColumnElement,
    Numeric,
    SQLColumnExpression,
    String,
    and_,
    cast,
    false,
    func,
    literal,
    not_,
    or_,
    true,
)
from sqlalchemy.dialects.postgresql import ARRAY, JSONB

from shared.filters import (
    ORDER,
    OWN_KEYS,
    AllOf,
    AnyOf,
    Comparison,
    Condition,
    MetadataFilter,
    Not,
    Operator,
    decimal,
)
from shared.tables import Chunk, Document


def condition(where: MetadataFilter) -> ColumnElement[bool]:
    """The filter in SQL, never NULL, for statements that select from Chunk and Document."""
    return _condition(where.root, _of_chunk)


def condition_on(where: MetadataFilter, metadata: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    """The filter in SQL, never NULL, on a JSONB column that is not NULL and has the chunk's own
    values beside its metadata: `{**own, **metadata}`, with keys and texts in NFC."""
    return _condition(where.root, lambda comparison: _of_metadata(comparison, metadata))


def _condition(
    condition: Condition, compare: Callable[[Comparison], ColumnElement[bool]]
) -> ColumnElement[bool]:
    match condition:
        case AllOf():
            return and_(true(), *(_condition(part, compare) for part in condition.conditions))
        case AnyOf():
            return or_(false(), *(_condition(part, compare) for part in condition.conditions))
        case Not():
            return not_(_condition(condition.condition, compare))
        case Comparison():
            return compare(condition)


def _of_chunk(comparison: Comparison) -> ColumnElement[bool]:
    stored = _of_metadata(comparison, Chunk.meta)
    if comparison.key not in OWN_KEYS:
        return stored
    return or_(stored, and_(not_(Chunk.meta.has_key(comparison.key)), _of_own(comparison)))


def _of_metadata(comparison: Comparison, metadata: SQLColumnExpression[Any]) -> ColumnElement[bool]:
    key, values = comparison.key, comparison.values
    if comparison.operator is Operator.CONTAINS:
        return metadata.contains(_json({key: [comparison.value]}))
    stored = metadata.op("->", return_type=JSONB())(literal(key, String))
    if comparison.operator is Operator.IN:
        if len(values) == 1:
            return metadata.contains(_json({key: comparison.value}))
        # One array for any number of values, which PostgreSQL hashes.
        return func.coalesce(stored == func.any(literal(list(values), ARRAY(JSONB))), false())
    type_ = "string" if isinstance(comparison.value, str) else "number"
    compare = ORDER[comparison.operator]
    if type_ == "string":
        text = metadata.op("->>", return_type=String())(literal(key, String))
        holds = compare(text.collate("C"), literal(comparison.value, String))
    else:
        holds = compare(stored, _json(comparison.value))
    return func.coalesce(and_(func.jsonb_typeof(stored) == type_, holds), false())


def _json(value: Any) -> ColumnElement[Any]:
    return literal(value, JSONB())


def _of_own(comparison: Comparison) -> ColumnElement[bool]:
    """The comparison with the chunk's own value, which is never NULL."""
    if comparison.operator is Operator.CONTAINS:
        return false()
    if comparison.key == "start_index":
        numbers = [
            decimal(value) for value in comparison.values
            if isinstance(value, int | float) and not isinstance(value, bool)
        ]  # fmt: skip
        return _of_column(comparison.operator, cast(Chunk.start, Numeric), numbers)
    texts = [value for value in comparison.values if isinstance(value, str)]
    if comparison.key == "source":
        return _of_column(comparison.operator, Document.source, texts)
    if comparison.operator is Operator.IN:
        return _of_column(comparison.operator, Document.id, [*filter(None, map(_uuid, texts))])
    return _of_column(comparison.operator, cast(Document.id, String), texts)


def _of_column(
    comparator: Operator, column: SQLColumnExpression[Any], values: Sequence[Any]
) -> ColumnElement[bool]:
    if not values:
        return false()
    if comparator is Operator.IN:
        return column.in_(values) if len(values) > 1 else column == values[0]
    (value,) = values
    if isinstance(value, str):
        column = column.collate("C")
    holds: ColumnElement[bool] = ORDER[comparator](column, value)
    return holds


def _uuid(text: str) -> UUID | None:
    """The id in a text; None unless it is written in its usual form."""
    try:
        id_ = UUID(text)
    except ValueError:
        return None
    return id_ if str(id_) == text else None
