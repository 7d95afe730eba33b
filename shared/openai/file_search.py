"""Searches in OpenAI's API: rankers, filters, attributes and scores."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field, PlainValidator, WithJsonSchema

from shared.bounds import shown
from shared.filters import MetadataFilter, escaped
from shared.kinds.search import Hit, SearchType
from shared.vocabulary import WireShape

LIMIT_PAIRS = 16
LIMIT_KEY_CHARS = 64
LIMIT_VALUE_CHARS = 512

RANKERS: Mapping[str, SearchType] = {
    "auto": SearchType.HYBRID,
    "default-2024-11-15": SearchType.HYBRID,
    "default_2024_08_21": SearchType.HYBRID,
    "none": SearchType.SIMILARITY,
}
"""Ranker -> our type of search."""


class SearchRanking(WireShape):
    ranker: Literal["auto", "default-2024-11-15", "default_2024_08_21", "none"] = "auto"
    score_threshold: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0


# Filters: comparisons, and compound filters of the types `and` and `or`

COMPARISONS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
JOINTS = ("and", "or")
LIMIT_DEPTH = 16
_SCHEMA: dict[str, Any] = {
    "type": "object",
    "required": ["type"],
    "properties": {
        "type": {"enum": [*COMPARISONS, *JOINTS]},
        "key": {"type": "string", "minLength": 1},
        "value": {
            "anyOf": [
                {"type": ["string", "number", "boolean"]},
                {"type": "array", "items": {"type": ["string", "number"]}},
            ]
        },
        "filters": {"type": "array", "items": {"type": "object"}, "minItems": 1},
    },
    "additionalProperties": False,
    "examples": [{"type": "eq", "key": "team", "value": "office"}],
}


def translate_filter(value: Any, depth: int = 1) -> dict[str, Any]:
    """A comparison or compound filter as a filter on metadata (`shared/filters.py`). Raises
    ValueError."""
    if not isinstance(value, Mapping):
        raise ValueError(
            'must be an object such as {"type": "eq", "key": "team", "value": "office"}'
        )
    if depth > LIMIT_DEPTH:
        raise ValueError(f"is nested deeper than {LIMIT_DEPTH} levels; flatten it")
    type_ = value.get("type")
    allowed = {"type", "filters"} if type_ in JOINTS else {"type", "key", "value"}
    if type_ not in (*COMPARISONS, *JOINTS):
        raise ValueError(
            f"type is {shown(type_)}; it must be one of {', '.join((*COMPARISONS, *JOINTS))}"
        )
    if missing := sorted(allowed - value.keys()):
        raise ValueError(f"{missing[0]} is missing in a filter of type {type_}")
    if unknown := sorted(map(str, value.keys() - allowed)):
        raise ValueError(f"{shown(unknown[0])} is no field of a filter of type {type_}")
    if type_ in JOINTS:
        parts = value["filters"]
        if not isinstance(parts, list) or not parts:
            raise ValueError("filters must be a list of filters, with one at least")
        return {f"${type_}": [translate_filter(part, depth + 1) for part in parts]}
    key = value["key"]
    if not isinstance(key, str) or not key:
        raise ValueError("key must be the name of an attribute")
    return {escaped(key): {f"${type_}": value["value"]}}


def _checked(value: Any) -> Any:
    MetadataFilter.read(translate_filter(value))
    return value


WireFilter = Annotated[dict[str, Any], PlainValidator(_checked), WithJsonSchema(_SCHEMA)]
"""A filter as it was sent, which `translate_filter` takes."""


def shown_attributes(metadata: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """The part of a document's metadata that OpenAI's limits of attributes allow."""
    allowed = {
        key: value
        for key, value in metadata.items()
        if len(key) <= LIMIT_KEY_CHARS
        and isinstance(value, str | int | float | bool)
        and not (isinstance(value, str) and len(value) > LIMIT_VALUE_CHARS)
    }
    return dict(list(allowed.items())[:LIMIT_PAIRS])


def score_of(hit: Hit) -> float:
    """The score of a hit, limited to the range of this API, 0 to 1."""
    return min(1.0, max(0.0, hit.score))
