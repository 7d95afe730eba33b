"""A conversation -> what of it fits the model's window, and a summary of what does not.

System prompts stay, and so do the last message of the user and the newest step behind it. What is
dropped goes oldest first: whole turns (a message of the user with everything up to the next one),
then, within the last turn, whole steps (a message of the assistant with the results of the tools
that it called). So a tool's result never stands without its call.
"""

import json
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from shared.errors import InvalidInput
from workers.generation.engine import Message, Role
from workers.generation.prompts.fence import block, code_for
from workers.generation.prompts.fitting import most
from workers.generation.prompts.wording import wording_for

Count = Callable[[Sequence[Message]], int]


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
    asked = [index for index, message in enumerate(messages) if message.role == Role.USER]
    last_asked = asked[-1] if asked else -1
    turns: list[list[int]] = []
    steps: list[list[int]] = []
    for index, message in enumerate(messages):
        if message.role == Role.SYSTEM or index == last_asked:
            continue
        units = turns if index < last_asked else steps
        begins = Role.USER if index < last_asked else Role.ASSISTANT
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
    told = wording_for(said).summary.format(summary=summary.strip())
    if messages and messages[0].role == Role.SYSTEM:
        told = f"{messages[0].content}\n\n{told}"
        messages = messages[1:]
    return [Message(role=Role.SYSTEM, content=told), *messages]


def _line(message: Message) -> str:
    calls = "".join(
        f" [{call.name} {json.dumps(call.arguments, ensure_ascii=False)}]"
        for call in message.tool_calls
    )
    return f"{message.role.value}: {message.content}{calls}"
