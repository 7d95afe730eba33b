"""Lists: which part of them is to be shown, and what its items may include."""

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


# Parts of lists that the database cuts.


@dataclass(frozen=True, kw_only=True)
class ListPart:
    """As many items as `limit` says, behind the item `after` or else before the item `before`."""

    limit: int
    newest_first: bool
    after: str | None
    before: str | None

    def cut(self, rows: Sequence[RowT]) -> Sequence[RowT]:
        """Without the row that only says that there are more: one more than `limit` was read."""
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


# Pages of lists that are whole.


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
