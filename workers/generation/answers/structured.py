"""Answers that have to be JSON: how models are asked for it, and how it is read.

A truncated answer is never completed by guessing, which is why LangChain's JsonOutputParser is not
used: it closes open brackets, and half a list would pass for a whole one. `schemas.py` checks
what is read here by the caller's JSON Schema.
"""

import json
import math
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any, Final

from shared.bounds import is_deep
from shared.kinds.generation import ResponseFormat
from workers.attempts.context import Context
from workers.generation.answers.schemas import NotJson
from workers.generation.backends.interface import (
    Completion,
    FinishReason,
    Generator,
    Message,
    Request,
    Role,
)
from workers.generation.writing import write_quietly

# JSON as models write it: line ends within strings are let pass, what cannot be stored is
# not.


def value_at(text: str, start: int) -> tuple[Any, int]:
    """The JSON value that begins at `start`, and where it ends. Raises ValueError."""
    try:
        value, end = _DECODER.raw_decode(text, start)
        if is_deep(value):
            raise ValueError("it is nested too deep")
        # PostgreSQL keeps neither NUL nor half a surrogate pair.
        if _UNSTORABLE.search(json.dumps(value, ensure_ascii=False)):
            raise ValueError("a string has a NUL or half of a surrogate pair in it")
    except RecursionError:
        raise ValueError("it is nested too deep") from None
    return value, end


def _no_constant(name: str) -> Any:
    raise ValueError(f"{name} is no JSON number")


def _finite(digits: str) -> float:
    number = float(digits)
    if not math.isfinite(number):
        raise ValueError(f"{digits} is too large a number")
    return number


_DECODER: Final = json.JSONDecoder(strict=False, parse_constant=_no_constant, parse_float=_finite)
# As json.dumps writes them: a NUL escaped, unless the backslash is itself the second of a pair.
_UNSTORABLE: Final = re.compile(r"(?<!\\)(?:\\\\)*\\u0000|[\ud800-\udfff]")


_FENCED: Final = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_THOUGHT: Final = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_BRACKET: Final = re.compile(r"[{\[]")
_BEGINS_JSON: Final = re.compile(r"\{\s*[\"}]|\[\s*[\[{\"\]]")
_TRIED_BRACKETS: Final = 200


def instructions(schema: dict[str, Any] | None) -> str:
    """What goes into the system prompt."""
    if schema is None:
        return "Answer with one JSON object and nothing else: no explanation, no code fence."
    return (
        "Answer with one JSON value and nothing else: no explanation, no code fence. It must be "
        f"valid by this JSON Schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


def parse(text: str) -> Any:
    """The JSON value of an answer, which may stand in a code fence or between words.

    Raises NotJson with a message that tells a model, or a person, what is wrong.
    """
    return _value(_THOUGHT.sub("", text))


def repair_messages(messages: Sequence[Message], answer: str, problem: str) -> list[Message]:
    """The conversation, the wrong answer, and the request to put it right."""
    prompt = (
        f"That was not the JSON that I asked for. {problem}\n"
        "Send the whole answer again, corrected, as JSON and nothing else."
    )
    return [
        *messages,
        Message(role=Role.ASSISTANT, content=answer or "(no answer)"),
        Message(role=Role.USER, content=prompt),
    ]


def _value(text: str) -> Any:
    if not text.strip():
        raise NotJson("The answer is empty.")
    fenced = _FENCED.findall(text)
    for candidate in (text, *(fenced if len(fenced) == 1 else ())):
        start = len(candidate) - len(candidate.lstrip())
        try:
            value, end = value_at(candidate, start)
        except ValueError:
            continue
        if not candidate[end:].strip():
            return value
    values = _between_words(text)
    # A list may be a citation such as [1]; an object is what was meant.
    objects = [value for value in values if isinstance(value, dict)]
    if len(values) > 1 and len(objects) != 1:
        raise NotJson(f"The answer holds {len(values)} JSON values; send exactly one.")
    if not values:
        raise NotJson("The answer holds no JSON object or array.")
    return objects[0] if objects else values[0]


def _between_words(text: str) -> list[Any]:
    """All objects and arrays in the text that are in no other one.

    What begins like JSON and is none, because it was cut off or is wrong, is an error: a part of
    it is not the answer.
    """
    values = []
    at = 0
    for _ in range(_TRIED_BRACKETS):
        bracket = _BRACKET.search(text, at)
        if bracket is None:
            break
        try:
            value, at = value_at(text, bracket.start())
            values.append(value)
        except ValueError as error:
            if _BEGINS_JSON.match(text, bracket.start()):
                raise NotJson(f"The answer is not valid JSON: {error}.") from error
            at = bracket.end()
    return values


# Answers as JSON: asked for, read, and repaired once.
#
# No client sees an answer before it is valid, so there is nothing to take back.


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
    system = instructions(format_.json_schema)
    if messages[0].role == Role.SYSTEM:
        system = f"{messages[0].content}\n\n{system}"
        messages = messages[1:]
    return (Message(role=Role.SYSTEM, content=system), *messages)


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
        value = _checked_value(context, completion, format_)
    except NotJson as error:
        if completion.finish_reason is FinishReason.LENGTH:
            raise
        again = repair_messages(request.messages, completion.text, error.message)
        repaired = write_quietly(context, generator, replace(request, messages=tuple(again)))
        value = _checked_value(context, repaired, format_)
        completion = replace(
            repaired,
            prompt_tokens=completion.prompt_tokens + repaired.prompt_tokens,
            completion_tokens=completion.completion_tokens + repaired.completion_tokens,
        )
    return JsonAnswer(text=completion.text, value=value, completion=completion)


def _checked_value(context: Context, completion: Completion, format_: ResponseFormat) -> Any:
    try:
        value = parse(completion.text)
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
