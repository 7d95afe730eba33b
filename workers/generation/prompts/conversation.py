"""A conversation -> what of it fits the model's window, and a summary of what does not.

System prompts stay, and so do the last message of the user and the newest step behind it. What is
dropped goes oldest first: whole turns (a message of the user with everything up to the next one),
then, within the last turn, whole steps (a message of the assistant with the results of the tools
that it called). So a tool's result never stands without its call.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from uuid import UUID

from sqlalchemy.orm import Session

from shared import conversations
from shared.errors import InvalidInput
from shared.kinds.chat import ChatMessage
from workers.attempts.context import Context
from workers.fences import block, code_for
from workers.generation.backends.interface import (
    Message,
    Request,
    Role,
    Sampling,
    TextGenerator,
    ToolCall,
)
from workers.generation.prompts.prompt import Count, most, wording_for
from workers.generation.transcripts import write_quietly


@dataclass(frozen=True, kw_only=True)
class Trimmed:
    messages: tuple[Message, ...]
    dropped: tuple[Message, ...]


def check(messages: Sequence[Message]) -> None:
    """Raises InvalidInput where a result has no call before it, or a call has no result."""
    open_calls: set[str] = set()
    for number, message in enumerate(messages):
        if message.role == Role.TOOL:
            if message.tool_call_id not in open_calls:
                raise InvalidInput(
                    f"messages[{number}] has the tool_call_id {message.tool_call_id!r}, but the "
                    "assistant made no such call just before it. Send the message with the call "
                    "too, and one result for each call."
                )
            open_calls.remove(message.tool_call_id)
            continue
        if open_calls:
            raise InvalidInput(
                f"messages[{number}] comes before the results of the tool calls "
                f"{', '.join(sorted(open_calls))}. Send these first, with the role tool."
            )
        open_calls = {call.id for call in message.tool_calls}
        if len(open_calls) < len(message.tool_calls):
            raise InvalidInput(f"messages[{number}] has tool calls with equal ids.")


def trim(messages: Sequence[Message], *, budget_tokens: int, count: Count) -> Trimmed:
    """Raises InvalidInput where not even what has to stay fits. `count` is called few times."""
    units, kept_from = _units(messages)

    def without(number: int) -> list[Message]:
        gone = {index for unit in units[:number] for index in unit}
        return [message for index, message in enumerate(messages) if index not in gone]

    kept_units = most(kept_from, lambda n: count(without(kept_from - n)) <= budget_tokens)
    dropped = kept_from - kept_units
    remaining = without(dropped)
    if not kept_units and (needed := count(remaining)) > budget_tokens:
        raise InvalidInput(
            f"The system prompt and the newest messages need {needed:,} tokens, but the model's "
            f"window leaves {max(budget_tokens, 0):,} for the prompt. Shorten them, ask for fewer "
            "max_tokens, or take a model with a larger window."
        )
    gone = [index for unit in units[:dropped] for index in unit]
    return Trimmed(messages=tuple(remaining), dropped=tuple(messages[index] for index in gone))


def _units(messages: Sequence[Message]) -> tuple[list[list[int]], int]:
    """What is dropped together, as indices, oldest first; and how many of these may go."""
    questions = [index for index, message in enumerate(messages) if message.role == Role.USER]
    last_question = questions[-1] if questions else -1
    turns: list[list[int]] = []
    steps: list[list[int]] = []
    for index, message in enumerate(messages):
        if message.role == Role.SYSTEM or index == last_question:
            continue
        units = turns if index < last_question else steps
        begins = Role.USER if index < last_question else Role.ASSISTANT
        if message.role == begins or not units:
            units.append([])
        units[-1].append(index)
    return turns + steps, len(turns) + max(len(steps) - 1, 0)


def summary_prompt(
    old_summary: str | None, dropped: Sequence[Message], *, budget_tokens: int, count: Count
) -> list[Message]:
    """Asks a model for a summary that takes in the dropped messages.

    Of messages that find no room in the budget, the oldest are left out: they are lost. Raises
    InvalidInput where there is room for none.
    """
    wording = wording_for(" ".join(each.content for each in dropped if each.role == Role.USER))
    lines = [_line(message) for message in dropped if message.role != Role.SYSTEM]
    code = code_for([old_summary or "", *lines])

    def prompt(newest: int) -> list[Message]:
        parts = []
        if old_summary:
            parts.append(f"{wording.summary_so_far}\n{block('summary', code, old_summary)}")
        shown = "\n".join(lines[len(lines) - newest :])
        parts.append(f"{wording.new_messages}\n{block('transcript', code, shown)}")
        return [
            Message(role=Role.SYSTEM, content=wording.summarize),
            Message(role=Role.USER, content="\n\n".join(parts)),
        ]

    newest = most(len(lines), lambda n: count(prompt(n)) <= budget_tokens)
    if not newest:
        raise InvalidInput(
            f"A summary of the conversation's last dropped message needs a prompt of "
            f"{count(prompt(1)):,} tokens, but the model's window leaves {budget_tokens:,}."
        )
    return prompt(newest)


def with_summary(messages: Sequence[Message], summary: str) -> list[Message]:
    """The messages with the summary in the system prompt.

    It goes behind the text of the first one: many models take a single system message, in front.
    """
    said = " ".join(message.content for message in messages if message.role == Role.USER)
    system = wording_for(said).summary.format(summary=summary.strip())
    if messages and messages[0].role == Role.SYSTEM:
        system = f"{messages[0].content}\n\n{system}"
        messages = messages[1:]
    return [Message(role=Role.SYSTEM, content=system), *messages]


def _line(message: Message) -> str:
    calls = "".join(
        f" [{call.name} {json.dumps(call.arguments, ensure_ascii=False)}]"
        for call in message.tool_calls
    )
    return f"{message.role.value}: {message.content}{calls}"


# Stored conversations as models read them, and turns as they are stored.


@dataclass(frozen=True, kw_only=True)
class StoredMessage:
    """A stored message; those of one conversation are numbered from 0."""

    ordinal: int
    message: Message


@dataclass(frozen=True, kw_only=True)
class Dialogue:
    """What was said before this turn, less what the summary covers. Empty for a lone turn."""

    lines: tuple[StoredMessage, ...] = ()
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
        StoredMessage(
            ordinal=row.ordinal, message=to_message(ChatMessage.model_validate(row.message))
        )
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


# Messages that fit a model's window, with a summary of the others where the conversation has one.

SUMMARY_SHARE = 8
"""A summary may take an eighth of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`dropped` counts the messages that the model is not shown, in a summary or not at all."""

    messages: Sequence[Message]
    dropped: int


def fit(
    context: Context,
    generator: TextGenerator,
    before: Dialogue,
    messages: Sequence[Message],
    *,
    conversation_id: UUID | None,
    budget_tokens: int,
    count: Count,
) -> Fitted:
    """Raises InvalidInput where not even the last message fits, and what `write` raises."""
    if not before.summarize and before.summary is None:
        trimmed = trim(messages, budget_tokens=budget_tokens, count=count)
        return Fitted(messages=trimmed.messages, dropped=len(trimmed.dropped))
    room = budget_tokens // SUMMARY_SHARE
    trimmed = trim(messages, budget_tokens=budget_tokens - room, count=count)
    summary = before.summary
    if trimmed.dropped and before.summarize and conversation_id is not None:
        summary = _sum_up(context, generator, summary, trimmed.dropped, budget_tokens, room)
        with context.process.ledger.begin() as session:
            upto = _covered(before, trimmed.dropped)
            conversations.sum_up(session, conversation_id, summary, upto)
    shown = trimmed.messages if summary is None else with_summary(trimmed.messages, summary)
    return Fitted(messages=shown, dropped=len(trimmed.dropped))


def _sum_up(
    context: Context,
    generator: TextGenerator,
    old: str | None,
    dropped: Sequence[Message],
    budget_tokens: int,
    room_tokens: int,
) -> str:
    prompt = summary_prompt(old, dropped, budget_tokens=budget_tokens, count=generator.count_tokens)
    request = Request(
        messages=tuple(prompt),
        # Somewhat less than the room: it stands there with words around it.
        sampling=Sampling(max_tokens=max(16, room_tokens * 3 // 4)),
        lane=context.claim.lane,
        fair_key=context.claim.fair_key,
    )
    text = write_quietly(context, generator, request).text.strip()
    if not text:
        raise InvalidInput(
            "The model wrote no summary of the conversation; ask another model, or start a "
            "conversation without `summarize`."
        )
    return text


def _covered(before: Dialogue, dropped: Sequence[Message]) -> int:
    """How many stored messages the summary covers then."""
    gone = {id(message) for message in dropped}
    return max((line.ordinal + 1 for line in before.lines if id(line.message) in gone), default=0)
