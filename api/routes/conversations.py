"""Conversations: stored turns with a model. Their turns are jobs with a `conversation_id`."""

import re
from typing import Annotated
from uuid import UUID

from fastapi import APIRouter, Body, Depends, Response

from api.deps import Cursor, FairKey, PageLimit, PartsDep, as_id
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.http.errors import BadCursor
from api.openapi import documented
from api.schemas import ConversationView, MessageView, NewConversation, Page
from shared import conversations
from shared.conversations import ListedConversation

router = APIRouter(prefix="/v1/conversations", tags=["conversations"], route_class=StrictRoute)


async def _conversation_id(conversation_id: str) -> UUID:
    return as_id(conversation_id, "conversation")


ConversationId = Annotated[UUID, Depends(_conversation_id)]


@router.post("", status_code=201, responses=documented({201: ConversationView}, 400, 413, 422))
def start_conversation(
    parts: PartsDep,
    fair_key: FairKey,
    new: Annotated[NewConversation | None, Body()] = None,
) -> Response:
    """Start a conversation; name its id as `conversation_id` in `chat` and `rag` jobs."""
    new = new or NewConversation()
    with parts.ledger.begin() as session:
        id_ = conversations.make(session, fair_key, metadata=new.metadata, summarize=new.summarize)
        made = conversations.get(session, id_)
        view = ConversationView.of(ListedConversation(conversation=made, messages=0))
    return answer(view, 201, {"Location": f"/v1/conversations/{id_}"})


@router.get("", responses=documented({200: Page[ConversationView]}, 400, 422))
def list_conversations(
    parts: PartsDep, fair_key: FairKey, limit: PageLimit = 50, cursor: Cursor = None
) -> Response:
    """The caller's conversations, newest first."""
    before = answers.decode_id("conversations", cursor)
    with parts.ledger.read() as session:
        rows = conversations.page(session, fair_key, limit=limit + 1, before=before)
    shown = rows[:limit]
    last = str(shown[-1].conversation.id) if len(rows) > limit else None
    return answer(
        Page[ConversationView](
            items=[ConversationView.of(listed) for listed in shown],
            next_cursor=answers.encode("conversations", last) if last else None,
        )
    )


@router.get("/{conversation_id}", responses=documented({200: ConversationView}, 404))
def get_conversation(
    parts: PartsDep, fair_key: FairKey, conversation_id: ConversationId
) -> Response:
    """A conversation, with the number of its messages."""
    with parts.ledger.read() as session:
        listed = conversations.listed(session, conversation_id, fair_key)
    return answer(ConversationView.of(listed))


@router.get(
    "/{conversation_id}/messages", responses=documented({200: Page[MessageView]}, 400, 404, 422)
)
def list_conversation_messages(
    parts: PartsDep,
    fair_key: FairKey,
    conversation_id: ConversationId,
    limit: PageLimit = 200,
    cursor: Cursor = None,
) -> Response:
    """The messages, oldest first. The messages of a turn are stored together at the end of its
    job."""
    position = answers.decode("messages", cursor)
    if position is not None and not re.fullmatch(r"[0-9]{1,9}", position, re.ASCII):
        raise BadCursor
    after = -1 if position is None else int(position)
    with parts.ledger.read() as session:
        conversations.get(session, conversation_id, fair_key)
        rows = conversations.messages(session, conversation_id, after=after, limit=limit + 1)
    shown = rows[:limit]
    more = answers.encode("messages", str(shown[-1].ordinal)) if len(rows) > limit else None
    return answer(Page[MessageView](items=[MessageView.of(row) for row in shown], next_cursor=more))


@router.delete("/{conversation_id}", status_code=204, responses=documented({}, 404))
def delete_conversation(
    parts: PartsDep, fair_key: FairKey, conversation_id: ConversationId
) -> Response:
    """Erase a conversation with its messages. Open turns end without being stored.

    The jobs of its turns keep their inputs and results until retention removes them.
    """
    with parts.ledger.begin() as session:
        conversations.erase(session, conversation_id, fair_key)
    return Response(status_code=204)
