"""Answers as JSON: asked for, read, and repaired once.

No client sees an answer before it is valid, so there is nothing to take back.
"""

from dataclasses import dataclass, replace
from typing import Any

from shared.generation import ResponseFormat
from workers.generation.engine import Completion, Generator, Message, Request, Role
from workers.generation.parsing import structured
from workers.generation.writing import write_quietly
from workers.step import Context


@dataclass(frozen=True, kw_only=True)
class JsonAnswer:
    """`text` is the answer as the model wrote it, `value` what it says; the completion's usage
    includes the repair."""

    text: str
    value: Any
    completion: Completion


def instructed(messages: tuple[Message, ...], wanted: ResponseFormat) -> tuple[Message, ...]:
    """The messages with the request for JSON in the system prompt."""
    told = structured.instructions(wanted.json_schema)
    if messages[0].role == Role.SYSTEM:
        told = f"{messages[0].content}\n\n{told}"
        messages = messages[1:]
    return (Message(role=Role.SYSTEM, content=told), *messages)


def read_json(
    context: Context,
    generator: Generator,
    request: Request,
    completion: Completion,
    wanted: ResponseFormat,
) -> JsonAnswer:
    """The completion's JSON; asks once more where it is not right. Raises NotJson after that."""
    try:
        value = structured.parse(completion.text, wanted.json_schema)
    except structured.NotJson as error:
        again = structured.repair_messages(request.messages, completion.text, error.message)
        repaired = write_quietly(context, generator, replace(request, messages=tuple(again)))
        value = structured.parse(repaired.text, wanted.json_schema)
        completion = replace(
            repaired,
            prompt_tokens=completion.prompt_tokens + repaired.prompt_tokens,
            completion_tokens=completion.completion_tokens + repaired.completion_tokens,
        )
    return JsonAnswer(text=completion.text, value=value, completion=completion)
