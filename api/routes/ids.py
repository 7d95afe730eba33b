"""Ids by their first digits, so that people need not type all of them."""

from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel

from api.deps import FairKey, PartsDep
from api.http.answers import answer, documented
from api.schemas import Items
from shared.prefixes import ID_PREFIX, IdType, ids_with_prefix

router = APIRouter(prefix="/v1/ids", tags=["ids"])

LIMIT = 10


class IdView(BaseModel):
    id: UUID


@router.get("", responses=documented({200: Items[IdView]}, 422))
def find_ids(
    parts: PartsDep,
    fair_key: FairKey,
    type: Annotated[IdType, Query(description="What it is the id of.")],
    prefix: Annotated[
        str,
        Query(
            pattern=ID_PREFIX,
            description="The first 4 or more hexadecimal digits, with or without hyphens.",
        ),
    ],
) -> Response:
    """The ids that begin so, oldest first, at most 10: one where the prefix is long enough."""
    with parts.ledger.read() as session:
        ids = ids_with_prefix(session, type, prefix, fair_key=fair_key, limit=LIMIT)
    return answer(Items[IdView](items=[IdView(id=each) for each in ids]))
