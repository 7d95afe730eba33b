"""Ids of jobs, documents, files and conversations by their first digits, as people type them.

UUIDs sort by their digits, so a prefix is a range of the primary key.
"""

import re
from enum import StrEnum
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import BaseModel
from sqlalchemy import select
from sqlalchemy.orm import InstrumentedAttribute, Session

from api.deps import FairKey, PartsDep
from api.http.answers import answer
from api.openapi import documented
from api.schemas import ID_PREFIX, Items
from shared.errors import InvalidInput
from shared.tables import Collection, Conversation, Document, File, Job

DIGITS = 32


class IdType(StrEnum):
    JOB = "job"
    DOCUMENT = "document"
    FILE = "file"
    CONVERSATION = "conversation"


def ids_with_prefix(
    session: Session, type_: IdType, prefix: str, *, fair_key: str, limit: int
) -> list[UUID]:
    """The ids with this prefix, oldest first; of conversations only those of this key. Raises
    InvalidInput for a text that is no prefix of an id.

    Documents that readers do not see (not live yet, or being erased) are left out.
    """
    low, high = _range(prefix)
    column = _COLUMNS[type_]
    query = select(column).where(column.between(low, high)).order_by(column).limit(limit)
    if type_ is IdType.CONVERSATION:
        query = query.where(Conversation.fair_key == fair_key)
    elif type_ is IdType.DOCUMENT:
        query = query.join(Collection, Collection.id == Document.collection_id).where(
            Document.live_version_id.is_not(None), Collection.is_visible()
        )
    return list(session.scalars(query))


def _range(prefix: str) -> tuple[UUID, UUID]:
    digits = prefix.replace("-", "")
    if not re.fullmatch(ID_PREFIX, prefix):
        raise InvalidInput(f"prefix: {prefix[:DIGITS]!r} is no beginning of an id.")
    return UUID(digits.ljust(DIGITS, "0")), UUID(digits.ljust(DIGITS, "f"))


_COLUMNS: dict[IdType, InstrumentedAttribute[UUID]] = {
    IdType.JOB: Job.id,
    IdType.DOCUMENT: Document.id,
    IdType.FILE: File.id,
    IdType.CONVERSATION: Conversation.id,
}


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
    """The ids with this prefix, oldest first, at most 10; only one if the prefix is long enough."""
    with parts.ledger.read() as session:
        ids = ids_with_prefix(session, type, prefix, fair_key=fair_key, limit=LIMIT)
    return answer(Items[IdView](items=[IdView(id=id_) for id_ in ids]))
