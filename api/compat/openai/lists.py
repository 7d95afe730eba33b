"""Lists of items: what they may include, and their pages."""

from collections.abc import Mapping, Sequence
from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from shared.bounds import shown
from shared.errors import InvalidInput
from shared.openai.items import Include


async def _included(
    include: Annotated[list[Include] | None, Query(max_length=32)] = None,
    bracketed: Annotated[list[Include] | None, Query(alias="include[]", max_length=32)] = None,
) -> list[Include]:
    return [*(include or ()), *(bracketed or ())]


Included = Annotated[list[Include], Depends(_included)]


# Pages of lists that are whole.

ListOrder = Literal["asc", "desc"]


def page_of(
    items: Sequence[Mapping[str, Any]], *, limit: int, order: ListOrder, after: str | None
) -> dict[str, Any]:
    """`items` are in the order `asc`. Raises InvalidInput for an `after` that is none of them."""
    rows = list(items) if order == "asc" else list(reversed(items))
    if after is not None:
        at = next((n for n, item in enumerate(rows) if item["id"] == after), None)
        if at is None:
            raise InvalidInput(f"after: there is no item {shown(after)} in this list.")
        rows = rows[at + 1 :]
    page = rows[:limit]
    return {
        "object": "list",
        "data": page,
        "first_id": page[0]["id"] if page else "",
        "last_id": page[-1]["id"] if page else "",
        "has_more": len(rows) > limit,
    }
