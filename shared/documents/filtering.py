"""Filters on metadata as SQL. What a filter means: `shared/filters.py`."""

from collections.abc import Sequence
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
    return _condition(where.root)


def _condition(condition: Condition) -> ColumnElement[bool]:
    match condition:
        case AllOf():
            return and_(true(), *map(_condition, condition.conditions))
        case AnyOf():
            return or_(false(), *map(_condition, condition.conditions))
        case Not():
            return not_(_condition(condition.condition))
        case Comparison():
            stored = _of_metadata(condition)
            if condition.key not in OWN_KEYS:
                return stored
            return or_(stored, and_(not_(Chunk.meta.has_key(condition.key)), _of_own(condition)))


def _of_metadata(comparison: Comparison) -> ColumnElement[bool]:
    key, values = comparison.key, comparison.values
    if comparison.operator is Operator.CONTAINS:
        return Chunk.meta.contains(_json({key: [comparison.value]}))
    stored = Chunk.meta.op("->", return_type=JSONB())(literal(key, String))
    if comparison.operator is Operator.IN:
        if len(values) == 1:
            return Chunk.meta.contains(_json({key: comparison.value}))
        # One array for any number of values, which PostgreSQL hashes.
        return func.coalesce(stored == func.any(literal(list(values), ARRAY(JSONB))), false())
    type_ = "string" if isinstance(comparison.value, str) else "number"
    compare = ORDER[comparison.operator]
    if type_ == "string":
        text = Chunk.meta.op("->>", return_type=String())(literal(key, String))
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
