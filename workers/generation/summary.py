"""Messages that fit a model's window, with a summary in place of what does not, where wanted."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from uuid import UUID

from shared import conversations
from shared.errors import InvalidInput
from workers.generation.dialogue import Dialogue
from workers.generation.engine import Generator, Message, Request, Sampling
from workers.generation.prompts import history
from workers.generation.writing import write_quietly
from workers.step import Context

Count = Callable[[Sequence[Message]], int]

SUMMARY_SHARE = 8
"""A summary may take an eighth of the prompt."""


@dataclass(frozen=True, kw_only=True)
class Fitted:
    """`dropped` counts the messages that the model is not shown, in a summary or not at all."""

    messages: Sequence[Message]
    dropped: int


def fit(
    context: Context,
    generator: Generator,
    before: Dialogue,
    messages: Sequence[Message],
    *,
    conversation_id: UUID | None,
    budget_tokens: int,
    count: Count,
) -> Fitted:
    """Raises InvalidInput where not even the last message fits, and what `write` raises."""
    if not before.summarize and before.summary is None:
        trimmed = history.trim(messages, budget_tokens=budget_tokens, count=count)
        return Fitted(messages=trimmed.messages, dropped=len(trimmed.dropped))
    room = budget_tokens // SUMMARY_SHARE
    trimmed = history.trim(messages, budget_tokens=budget_tokens - room, count=count)
    summary = before.summary
    if trimmed.dropped and before.summarize and conversation_id is not None:
        summary = _sum_up(context, generator, summary, trimmed.dropped, budget_tokens, room)
        with context.process.ledger.begin() as session:
            upto = _covered(before, trimmed.dropped)
            conversations.sum_up(session, conversation_id, summary, upto)
    shown = trimmed.messages if summary is None else history.with_summary(trimmed.messages, summary)
    return Fitted(messages=shown, dropped=len(trimmed.dropped))


def _sum_up(
    context: Context,
    generator: Generator,
    old: str | None,
    dropped: Sequence[Message],
    budget_tokens: int,
    room_tokens: int,
) -> str:
    prompt = history.summary_prompt(
        old, dropped, budget_tokens=budget_tokens, count=generator.count_tokens
    )
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
