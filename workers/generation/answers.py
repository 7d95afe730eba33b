"""Answers as JSON: asked for, read, and repaired once.

No client sees an answer before it is valid, so there is nothing to take back.
"""

from dataclasses import dataclass, replace
from typing import Any

from shared.generation import ResponseFormat
from workers.generation.engine import (
    Completion,
    FinishReason,
    Generator,
    Message,
    Request,
    Role,
)
from workers.generation.parsing import structured
from workers.generation.parsing.schemas import NotJson
from workers.generation.writing import write_quietly
from workers.step import Context


@dataclass(frozen=True, kw_only=True)
class JsonAnswer:
    """`text` is the answer as the model wrote it, `value` what it says; the completion's usage
    includes the repair."""

    text: str
    value: Any
    completion: Completion


def instructed(
    context: Context, messages: tuple[Message, ...], format_: ResponseFormat
) -> tuple[Message, ...]:
    """The messages with the request for JSON in the system prompt. Raises InvalidInput for a schema
    that is none."""
    if format_.json_schema is not None:
        context.process.schemas.check(format_.json_schema)
    told = structured.instructions(format_.json_schema)
    if messages[0].role == Role.SYSTEM:
        told = f"{messages[0].content}\n\n{told}"
        messages = messages[1:]
    return (Message(role=Role.SYSTEM, content=told), *messages)


def read_json(
    context: Context,
    generator: Generator,
    request: Request,
    completion: Completion,
    format_: ResponseFormat,
) -> JsonAnswer:
    """The completion's JSON; asks once more where it is not right. Raises NotJson after that, and
    at once for an answer that `max_tokens` cut off: the next one would be as long."""
    try:
        value = _value(context, completion, format_)
    except NotJson as error:
        if completion.finish_reason is FinishReason.LENGTH:
            raise
        again = structured.repair_messages(request.messages, completion.text, error.message)
        repaired = write_quietly(context, generator, replace(request, messages=tuple(again)))
        value = _value(context, repaired, format_)
        completion = replace(
            repaired,
            prompt_tokens=completion.prompt_tokens + repaired.prompt_tokens,
            completion_tokens=completion.completion_tokens + repaired.completion_tokens,
        )
    return JsonAnswer(text=completion.text, value=value, completion=completion)


def _value(context: Context, completion: Completion, format_: ResponseFormat) -> Any:
    try:
        value = structured.parse(completion.text)
    except NotJson as error:
        if completion.finish_reason is not FinishReason.LENGTH:
            raise
        raise NotJson(
            f"The answer was cut off after {completion.completion_tokens} tokens, before its JSON "
            "was complete. Raise parameters.max_tokens, or ask for less."
        ) from error
    if format_.json_schema is not None:
        context.process.schemas.validate(value, format_.json_schema)
    return value
