"""Answers that have to be JSON: how models are asked for it, and how it is read.

A truncated answer is never completed by guessing, which is why LangChain's JsonOutputParser is not
used: it closes open brackets, and half a list would pass for a whole one. `schemas.py` checks
what is read here by the caller's JSON Schema.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from workers.generation.engine import Message, Role
from workers.generation.parsing.modeljson import value_at
from workers.generation.parsing.schemas import NotJson

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
    asked = (
        f"That was not the JSON that I asked for. {problem}\n"
        "Send the whole answer again, corrected, as JSON and nothing else."
    )
    return [
        *messages,
        Message(role=Role.ASSISTANT, content=answer or "(no answer)"),
        Message(role=Role.USER, content=asked),
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
    found = _between_words(text)
    # A list may be a citation such as [1]; an object is what was meant.
    objects = [value for value in found if isinstance(value, dict)]
    if len(found) > 1 and len(objects) != 1:
        raise NotJson(f"The answer holds {len(found)} JSON values; send exactly one.")
    if not found:
        raise NotJson("The answer holds no JSON object or array.")
    return objects[0] if objects else found[0]


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
