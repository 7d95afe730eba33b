"""Stored conversations as models read them, and turns as they are stored."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from sqlalchemy.orm import Session

from shared import conversations
from shared.generation import ChatMessage
from workers.generation.engine import Message, Role, ToolCall
from workers.generation.prompts.fitting import most

Count = Callable[[Sequence[Message]], int]


@dataclass(frozen=True, kw_only=True)
class Line:
    """A stored message; those of one conversation are numbered from 0."""

    ordinal: int
    message: Message


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What was said before this turn, less what the summary covers. Empty for a lone turn."""

    lines: tuple[Line, ...] = ()
    summary: str | None = None
    summarize: bool = False

    @property
    def system(self) -> list[Message]:
        return [line.message for line in self.lines if line.message.role == Role.SYSTEM]

    @property
    def spoken(self) -> list[Message]:
        return [line.message for line in self.lines if line.message.role != Role.SYSTEM]


def load(session: Session, conversation_id: UUID | None) -> Dialogue:
    """Raises NotFound where the conversation was erased."""
    if conversation_id is None:
        return Dialogue()
    conversation = conversations.get(session, conversation_id)
    lines = (
        Line(ordinal=row.ordinal, message=to_message(ChatMessage.model_validate(row.message)))
        for row in conversations.messages(session, conversation_id)
    )
    return Dialogue(
        lines=tuple(
            line
            for line in lines
            if line.ordinal >= conversation.summary_upto or line.message.role == Role.SYSTEM
        ),
        summary=conversation.summary,
        summarize=conversation.summarize,
    )


def newest(messages: Sequence[Message], *, budget_tokens: int, count: Count) -> tuple[Message, ...]:
    """As many of the last turns as fit, whole ones."""
    starts = [n for n, message in enumerate(messages) if message.role == Role.USER]
    turns = most(len(starts), lambda n: count(messages[starts[-n] :]) <= budget_tokens)
    return tuple(messages[starts[-turns] :]) if turns else ()


def to_message(message: ChatMessage) -> Message:
    calls = (
        ToolCall(id=call.id, name=call.function.name, arguments=call.function.arguments)
        for call in message.tool_calls
    )
    return Message(
        role=Role(message.role),
        content=message.content,
        tool_calls=tuple(calls),
        tool_call_id=message.tool_call_id,
    )


def to_stored(message: Message) -> dict[str, Any]:
    """In the shape of `ChatMessage`, without what it does not have."""
    stored: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        stored["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {"name": call.name, "arguments": call.arguments},
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        stored["tool_call_id"] = message.tool_call_id
    return stored
