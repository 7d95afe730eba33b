"""How OpenAI's API says what is searched for, and what was found: rankers, filters, attributes."""

from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from shared.bounds import shown
from shared.filters import escaped
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
"""What a ranker is here: words and meaning together, or meaning alone."""


class SearchRanking(WireShape):
    ranker: Literal["auto", "default-2024-11-15", "default_2024_08_21", "none"] = "auto"
    score_threshold: Annotated[float, Field(strict=True, ge=0, le=1, allow_inf_nan=False)] = 0


# Filters: comparisons by type, joined by and and or.

COMPARISONS = ("eq", "ne", "gt", "gte", "lt", "lte", "in", "nin")
JOINTS = ("and", "or")
LIMIT_DEPTH = 16


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


def shown_attributes(metadata: Mapping[str, Any]) -> dict[str, str | int | float | bool]:
    """As much of any metadata as attributes may be."""
    fitting = {
        key: value
        for key, value in metadata.items()
        if len(key) <= LIMIT_KEY_CHARS
        and isinstance(value, str | int | float | bool)
        and not (isinstance(value, str) and len(value) > LIMIT_VALUE_CHARS)
    }
    return dict(list(fitting.items())[:LIMIT_PAIRS])


def score_of(hit: Hit) -> float:
    """From 0 to 1, as this API has scores."""
    return min(1.0, max(0.0, hit.score))
