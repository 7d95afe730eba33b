"""Conversations of OpenAI's API: those of Sluice, with ids of this API.

An item is a message of a conversation, or a part of one (`shared/openai/items.py`). A response that
names a conversation is a turn of it: a job with its `conversation_id`.
"""

from collections.abc import Iterator, Mapping, Sequence
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Query, Response
from pydantic import Field
from sqlalchemy.orm import Session

from api.compat.openai.dialect import OPENAI, answer_json, uuid_of
from api.compat.openai.lists import Included, ListOrder, page_of
from api.deps import FairKey, PartsDep
from api.http.body import StrictRoute
from shared import conversations
from shared.bounds import shown
from shared.errors import InvalidInput, NotFound
from shared.openai.items import InputItem, ItemWriter, WireMetadata, chat_messages, no_item
from shared.openai.responses import CONVERSATION_PREFIX
from shared.openai.wire import id_of
from shared.tables import Conversation, ConversationMessage
from shared.vocabulary import WireShape

NEW_ITEMS_LIMIT = 20
"""How many items one request may add."""

NewItemList = Annotated[list[InputItem], Field(fail_fast=True, max_length=NEW_ITEMS_LIMIT)]


class ConversationRequest(WireShape):
    """A conversation to be started."""

    items: NewItemList = []
    metadata: WireMetadata = {}


class ConversationChange(WireShape):
    metadata: WireMetadata


class NewItems(WireShape):
    items: Annotated[NewItemList, Field(min_length=1)]


def conversation_of(session: Session, id_: str, fair_key: str) -> Conversation:
    """The conversation with this id. Raises NotFound, also if it belongs to another key."""
    uuid = uuid_of(CONVERSATION_PREFIX, id_, "conversation")
    try:
        return conversations.get(session, uuid, fair_key)
    except NotFound:
        raise NotFound(
            f"There is no conversation {shown(id_)}; start one with POST /openai/v1/conversations."
        ) from None


def _view(conversation: Conversation) -> dict[str, Any]:
    return {
        "id": id_of(CONVERSATION_PREFIX, conversation.id),
        "object": "conversation",
        "created_at": int(conversation.created_at.timestamp()),
        "metadata": conversation.meta,
    }


def _messages(items: Sequence[InputItem]) -> list[dict[str, Any]]:
    def resolve(id_: str) -> InputItem:
        raise InvalidInput(f"items: {no_item(id_)}")

    return chat_messages(items, resolve)


def _items(
    conversation_id: UUID, rows: Sequence[ConversationMessage]
) -> Iterator[tuple[ConversationMessage, dict[str, Any]]]:
    """Each item, with its message."""
    writer, searches = ItemWriter(owner=conversation_id), set[str]()
    for row in rows:
        for item in writer.message_items(f"o{row.ordinal}", row.message, searches):
            yield row, item


router = APIRouter(route_class=StrictRoute)

DOCUMENTED: dict[int | str, dict[str, Any]] = OPENAI.documented(400, 401, 404)


@router.post("/conversations", responses=DOCUMENTED)
def create_openai_conversation(
    parts: PartsDep, fair_key: FairKey, request: ConversationRequest | None = None
) -> Response:
    """Start a conversation, with or without items."""
    request = request or ConversationRequest()
    with parts.ledger.begin() as session:
        id_ = conversations.make(
            session, fair_key, metadata=dict(request.metadata), summarize=False
        )
        conversations.add(session, id_, _messages(request.items))
        view = _view(conversations.get(session, id_))
    return answer_json(view, {})


@router.get("/conversations/{conversation_id}", responses=DOCUMENTED)
def get_openai_conversation(parts: PartsDep, fair_key: FairKey, conversation_id: str) -> Response:
    """A conversation."""
    with parts.ledger.read() as session:
        view = _view(conversation_of(session, conversation_id, fair_key))
    return answer_json(view, {})


@router.post("/conversations/{conversation_id}", responses=DOCUMENTED)
def change_openai_conversation(
    parts: PartsDep, fair_key: FairKey, conversation_id: str, request: ConversationChange
) -> Response:
    """Replace the metadata of a conversation."""
    with parts.ledger.begin() as session:
        conversation = conversation_of(session, conversation_id, fair_key)
        conversation.meta = dict(request.metadata)
        session.flush()
        view = _view(conversation)
    return answer_json(view, {})


@router.delete("/conversations/{conversation_id}", responses=DOCUMENTED)
def delete_openai_conversation(
    parts: PartsDep, fair_key: FairKey, conversation_id: str
) -> Response:
    """Erase a conversation with its items."""
    with parts.ledger.begin() as session:
        uuid = conversation_of(session, conversation_id, fair_key).id
        conversations.erase(session, uuid, fair_key)
    deleted = {"id": conversation_id, "object": "conversation.deleted", "deleted": True}
    return answer_json(deleted, {})


@router.post("/conversations/{conversation_id}/items", responses=DOCUMENTED)
def create_openai_conversation_items(
    parts: PartsDep,
    fair_key: FairKey,
    conversation_id: str,
    request: NewItems,
    include: Included,  # noqa: ARG001  (there is nothing more to show)
) -> Response:
    """Add items at the end of a conversation."""
    with parts.ledger.begin() as session:
        uuid = conversation_of(session, conversation_id, fair_key).id
        rows = conversations.add(session, uuid, _messages(request.items))
        items = [item for _, item in _items(uuid, rows)]
    return answer_json(page_of(items, limit=len(items), order="asc", after=None), {})


@router.get("/conversations/{conversation_id}/items", responses=DOCUMENTED)
def list_openai_conversation_items(
    parts: PartsDep,
    fair_key: FairKey,
    conversation_id: str,
    include: Included,  # noqa: ARG001  (there is nothing more to show)
    limit: Annotated[int, Query(ge=1, le=100)] = 20,
    order: ListOrder = "desc",
    after: Annotated[str | None, Query(max_length=200)] = None,
) -> Response:
    """The items of a conversation. Those of a response are added at its end."""
    with parts.ledger.read() as session:
        uuid = conversation_of(session, conversation_id, fair_key).id
        rows = conversations.messages(session, uuid)
    items = [item for _, item in _items(uuid, rows)]
    return answer_json(page_of(items, limit=limit, order=order, after=after), {})


def _find(
    session: Session, conversation_id: UUID, item_id: str
) -> tuple[ConversationMessage, Mapping[str, Any]]:
    """An item by its id, with its message. Raises NotFound."""
    for row, item in _items(conversation_id, conversations.messages(session, conversation_id)):
        if item["id"] == item_id:
            return row, item
    raise NotFound(f"There is no item {item_id!r} in this conversation.")


@router.get("/conversations/{conversation_id}/items/{item_id}", responses=DOCUMENTED)
def get_openai_conversation_item(
    parts: PartsDep,
    fair_key: FairKey,
    conversation_id: str,
    item_id: str,
    include: Included,  # noqa: ARG001  (there is nothing more to show)
) -> Response:
    """An item of a conversation."""
    with parts.ledger.read() as session:
        uuid = conversation_of(session, conversation_id, fair_key).id
        _, item = _find(session, uuid, item_id)
    return answer_json(item, {})


@router.delete("/conversations/{conversation_id}/items/{item_id}", responses=DOCUMENTED)
def delete_openai_conversation_item(
    parts: PartsDep, fair_key: FairKey, conversation_id: str, item_id: str
) -> Response:
    """Remove an item from a conversation; a search is removed together with its results."""
    with parts.ledger.begin() as session:
        conversation = conversation_of(session, conversation_id, fair_key)
        row, item = _find(session, conversation.id, item_id)
        conversations.change(session, conversation.id, row.ordinal, _without(row.message, item))
        if item["type"] == "file_search_call":
            _remove_result(session, conversation.id, _call_of(row.message, item)["id"])
        view = _view(conversation)
    return answer_json(view, {})


def _without(message: Mapping[str, Any], item: Mapping[str, Any]) -> dict[str, Any] | None:
    """The message without the item; None if nothing is left of it."""
    left = dict(message)
    if item["type"] in ("function_call", "file_search_call"):
        left["tool_calls"] = [
            call for call in message["tool_calls"] if call is not _call_of(message, item)
        ]
    elif item["type"] == "message" and message.get("tool_calls"):
        left["content"] = ""
    else:
        return None
    return left if left.get("content") or left["tool_calls"] else None


def _call_of(message: Mapping[str, Any], item: Mapping[str, Any]) -> Mapping[str, Any]:
    number = int(str(item["id"]).rpartition("x")[2])
    call: Mapping[str, Any] = message["tool_calls"][number]
    return call


def _remove_result(session: Session, conversation_id: UUID, call_id: str) -> None:
    for row in conversations.messages(session, conversation_id):
        if row.message.get("tool_call_id") == call_id:
            conversations.change(session, conversation_id, row.ordinal, None)
