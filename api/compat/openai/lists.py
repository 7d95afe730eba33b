"""Lists of OpenAI's API: parameters for a part of a list, and pages."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, TypeVar

from fastapi import Depends, Query

from shared.bounds import shown
from shared.errors import InvalidInput
from shared.openai.items import Include

ListOrder = Literal["asc", "desc"]
RowT = TypeVar("RowT")


async def _included(
    include: Annotated[list[Include] | None, Query(max_length=32)] = None,
    bracketed: Annotated[list[Include] | None, Query(alias="include[]", max_length=32)] = None,
) -> list[Include]:
    return [*(include or ()), *(bracketed or ())]


Included = Annotated[list[Include], Depends(_included)]


# Lists that are read from the database in parts


@dataclass(frozen=True, kw_only=True)
class ListPart:
    """At most `limit` items, after the item `after`, or else before the item `before`."""

    limit: int
    newest_first: bool
    after: str | None
    before: str | None

    def cut(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Drop the extra row: `limit + 1` rows are read to know whether there are more."""
        is_backwards = self.before is not None and self.after is None
        return rows[-self.limit :] if is_backwards else rows[: self.limit]


async def _list_part(
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: ListOrder = "desc",
    after: Annotated[str | None, Query(max_length=64)] = None,
    before: Annotated[str | None, Query(max_length=64)] = None,
) -> ListPart:
    return ListPart(limit=limit, newest_first=order == "desc", after=after, before=before)


ListPartDep = Annotated[ListPart, Depends(_list_part)]


# Lists that are in memory


def page_of(
    items: Sequence[Mapping[str, Any]], *, limit: int, order: ListOrder, after: str | None
) -> dict[str, Any]:
    """A page of `items`, which are in the order `asc`. Raises InvalidInput if `after` is not the id
    of one of them."""
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
