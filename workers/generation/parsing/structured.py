"""Answers that have to be JSON: how models are asked for it, and how it is read.

A truncated answer is never completed by guessing, which is why LangChain's JsonOutputParser is not
used: it closes open brackets, and half a list would pass for a whole one. Schemas are JSON Schema
(2020-12 unless `$schema` says otherwise) and stand alone: references to other places are refused,
and nothing is fetched.
"""

import json
import re
from collections.abc import Sequence
from typing import Any, Final

from jsonschema import SchemaError  # type: ignore[import-untyped]  # it ships no types
from jsonschema.validators import (  # type: ignore[import-untyped]  # it ships no types
    Draft202012Validator,
    validator_for,
)
from referencing import Registry, Resource
from referencing.exceptions import Unresolvable
from referencing.jsonschema import DRAFT202012

from shared.errors import InvalidInput, Permanent
from workers.generation.engine import Message, Role
from workers.generation.parsing.modeljson import value_at

_FENCED: Final = re.compile(r"```[a-zA-Z]*[ \t]*\n(.*?)```", re.DOTALL)
_THOUGHT: Final = re.compile(r"^\s*<think>.*?</think>", re.DOTALL)
_BRACKET: Final = re.compile(r"[{\[]")
_BEGINS_JSON: Final = re.compile(r"\{\s*[\"}]|\[\s*[\[{\"\]]")
_TRIED_BRACKETS: Final = 200
_PROBLEMS: Final = 5
_PROBLEM_CHARS: Final = 300


class NotJson(Permanent):
    """The model's answer is not the JSON that was asked for."""


def check_schema(schema: dict[str, Any]) -> None:
    """Raises InvalidInput where it is no JSON Schema, or refers to something outside of it."""
    _validator(schema)


def instructions(schema: dict[str, Any] | None) -> str:
    """What goes into the system prompt. Raises InvalidInput for a wrong schema."""
    if schema is None:
        return "Answer with one JSON object and nothing else: no explanation, no code fence."
    check_schema(schema)
    return (
        "Answer with one JSON value and nothing else: no explanation, no code fence. It must be "
        f"valid by this JSON Schema:\n{json.dumps(schema, ensure_ascii=False)}"
    )


def parse(text: str, schema: dict[str, Any] | None) -> Any:
    """The JSON value of an answer, which may stand in a code fence or between words.

    Raises NotJson with a message that tells a model, or a person, what is wrong.
    """
    value = _value(_THOUGHT.sub("", text))
    if schema is not None:
        _validate(value, schema)
    return value


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


def _validate(value: Any, schema: dict[str, Any]) -> None:
    try:
        errors = sorted(_validator(schema).iter_errors(value), key=lambda error: error.json_path)
    except RecursionError:
        raise InvalidInput("The schema of response_format refers to itself without end.") from None
    if errors:
        told = [f"at {error.json_path}: {_short(error.message)}" for error in errors[:_PROBLEMS]]
        more = f"; and {len(errors) - _PROBLEMS} more" if len(errors) > _PROBLEMS else ""
        raise NotJson(f"The JSON does not fit the schema: {'; '.join(told)}{more}.")


def _validator(schema: dict[str, Any]) -> Any:
    dialect = schema.get("$schema")
    known = dialect is None or isinstance(dialect, str)
    kind = (
        validator_for(schema, default=None if dialect else Draft202012Validator) if known else None
    )
    if kind is None:
        raise InvalidInput(
            f"The schema of response_format has the unknown $schema {dialect!r}. Leave it out for "
            "draft 2020-12."
        )
    try:
        kind.check_schema(schema)
        resource = Resource.from_contents(schema, default_specification=DRAFT202012)
        # A registry of its own: the default one would fetch references over the network.
        registry: Registry[Any] = Registry()
        _check_references(resource, registry.resolver_with_root(resource))
    except SchemaError as error:
        raise InvalidInput(
            f"The schema of response_format is no JSON Schema: at {error.json_path}: "
            f"{_short(error.message)}."
        ) from error
    except RecursionError:
        raise InvalidInput("The schema of response_format is nested too deep.") from None
    return kind(schema, registry=registry)


def _check_references(resource: Resource[Any], resolver: Any) -> None:
    contents = resource.contents
    if isinstance(contents, dict):
        for key in ("$ref", "$dynamicRef"):
            if isinstance(contents.get(key), str):
                _look_up(contents[key], resolver)
    for inner in resource.subresources():
        _check_references(inner, resolver.in_subresource(inner))


def _look_up(reference: str, resolver: Any) -> None:
    try:
        resolver.lookup(reference)
    except Unresolvable as error:
        raise InvalidInput(
            f"The schema of response_format refers to {_short(reference)!r}, which is not in it."
        ) from error


def _short(message: str) -> str:
    return message if len(message) <= _PROBLEM_CHARS else message[: _PROBLEM_CHARS - 1] + "…"
