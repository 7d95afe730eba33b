"""Answers that have to be JSON: the instructions for models, reading, and the check by a schema.

A truncated answer is never completed by guessing. This is why neither LangChain's JsonOutputParser
nor json-repair is used (`docs/decisions/0017-own-parsing-of-answers.md`): they close open brackets,
and half a list would pass for a whole one. `schema_child.py` is the program that checks values by
the caller's JSON Schema.
"""

import json
import math
import os
import queue
import re
import subprocess
import sys
import threading
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Final

from shared.bounds import is_deep
from shared.errors import InvalidInput, NotJson
from shared.kinds.chat import ResponseFormat
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.generation.answers import schema_child
from workers.generation.backends.interface import (
    Completion,
    FinishReason,
    Message,
    Request,
    Role,
    TextGenerator,
)
from workers.generation.transcripts import write_quietly

# Users write the schemas, so each check has a limit of CPU time and of memory, and runs in a child
# process that can be ended. Children are kept for the next check. A child that exceeds a limit is
# gone, and the error of that check asks for a simpler schema.

MEMORY_BYTES: Final = 1 << 30
_WALL_FACTOR: Final = 30
"""How many times its CPU time a check may take in real time, if the machine is busy."""


class SchemaChecker:
    """Thread-safe. At most `children` checks run at a time, by default one per core; each has
    `limit_s` of CPU time, in a process of `memory_bytes`."""

    def __init__(
        self, *, limit_s: float, memory_bytes: int = MEMORY_BYTES, children: int | None = None
    ) -> None:
        self._limit_s = limit_s
        self._memory_bytes = memory_bytes
        self._free = threading.BoundedSemaphore(children or os.cpu_count() or 1)
        self._idle: list[_SchemaChild] = []
        self._lock = threading.Lock()

    def check(self, schema: dict[str, Any]) -> None:
        """Raises InvalidInput if it is no JSON Schema, or refers to something outside of itself."""
        self._request({"schema": schema})

    def validate(self, value: Any, schema: dict[str, Any]) -> None:
        """Raises NotJson, which names what does not fit and where."""
        answer = self._request({"schema": schema, "value": value})
        if answer["problems"]:
            more = f"; and {answer['more']} more" if answer["more"] else ""
            raise NotJson(
                f"The JSON does not fit the schema: {'; '.join(answer['problems'])}{more}."
            )

    def close(self) -> None:
        """End the children. A later check starts new ones."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()

    def _request(self, request: dict[str, Any]) -> dict[str, Any]:
        with self._free:
            with self._lock:
                child = self._idle.pop() if self._idle else None
            child = child or _SchemaChild(self._memory_bytes)
            answer = child.request(
                request | {"limit_s": self._limit_s}, self._limit_s * _WALL_FACTOR
            )
            if answer is None:
                raise InvalidInput(
                    "response_format has a schema that takes more than "
                    f"{self._limit_s:g} s to check "
                    "(SLUICE_SCHEMA_CHECK_S), or too much memory. Simplify its patterns and its "
                    "references."
                )
            with self._lock:
                self._idle.append(child)
        if "invalid" in answer:
            raise InvalidInput(f"response_format has a schema that {answer['invalid']}.")
        return answer


class _SchemaChild:
    """One running program; for one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        # By its path and isolated (-I): it sees no settings, and imports nothing of the current
        # folder.
        self._process = subprocess.Popen(
            [sys.executable, "-I", str(Path(schema_child.__file__)), str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            encoding="utf-8",
        )
        self._lines: queue.SimpleQueue[str] = queue.SimpleQueue()
        self._reader = threading.Thread(target=self._read, name="schema-check", daemon=True)
        self._reader.start()
        # The time that it takes to start does not count as time of the check.
        if not self._lines.get():
            self.end()
            raise RuntimeError(f"{schema_child.__file__} does not start")

    def _read(self) -> None:
        assert self._process.stdout is not None
        for line in self._process.stdout:
            self._lines.put(line)
        self._lines.put("")

    def request(self, request: dict[str, Any], within_s: float) -> dict[str, Any] | None:
        """None if the child has ended instead of answering; it cannot be used again."""
        assert self._process.stdin is not None
        try:
            self._process.stdin.write(json.dumps(request) + "\n")
            self._process.stdin.flush()
            line = self._lines.get(timeout=within_s)
        except (OSError, queue.Empty):
            line = ""
        if not line:
            self.end()
            return None
        answer: dict[str, Any] = json.loads(line)
        return answer

    def end(self) -> None:
        self._process.kill()
        self._process.wait()
        self._reader.join()
        for pipe in (self._process.stdin, self._process.stdout):
            # Closing flushes what was not sent, and there is no reader any more.
            with suppress(OSError, ValueError):
                assert pipe is not None
                pipe.close()


# JSON as models write it: line breaks within strings are accepted, but nothing that cannot be
# stored.


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
    """The JSON value of an answer, which may be in a code fence or between words.

    Raises NotJson with a message that tells a model or a person what is wrong.
    """
    return _value(_THOUGHT.sub("", text))


def repair_messages(messages: Sequence[Message], answer: str, problem: str) -> list[Message]:
    """The conversation, the wrong answer, and the request to correct it."""
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
    # A list may be a citation such as [1], so one object among lists is the answer.
    objects = [value for value in values if isinstance(value, dict)]
    if len(values) > 1 and len(objects) != 1:
        raise NotJson(f"The answer holds {len(values)} JSON values; send exactly one.")
    if not values:
        raise NotJson("The answer holds no JSON object or array.")
    return objects[0] if objects else values[0]


def _between_words(text: str) -> list[Any]:
    """All objects and arrays in the text that are not within others.

    Text that begins like JSON but is cut off or wrong is an error: a part of it is no answer.
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


# Answers as JSON: instructions, reading, and one repair.
#
# No client sees an answer before it is valid, so there is nothing to take back.


@dataclass(frozen=True, kw_only=True)
class JsonAnswer:
    """`text` is the answer as the model wrote it, `value` is its JSON value; the usage in
    `completion` includes the repair."""

    text: str
    value: Any
    completion: Completion


def with_instructions(
    context: Context, messages: tuple[Message, ...], format_: ResponseFormat
) -> tuple[Message, ...]:
    """The messages with the request for JSON in the system prompt. Raises InvalidInput for a wrong
    schema."""
    if format_.json_schema is not None:
        schemas_of(context.process).check(format_.json_schema)
    system = instructions(format_.json_schema)
    if messages[0].role == Role.SYSTEM:
        system = f"{messages[0].content}\n\n{system}"
        messages = messages[1:]
    return (Message(role=Role.SYSTEM, content=system), *messages)


def read_json(
    context: Context,
    generator: TextGenerator,
    request: Request,
    completion: Completion,
    format_: ResponseFormat,
) -> JsonAnswer:
    """The completion's JSON; if it is wrong, the model is asked once more. Raises NotJson if that
    fails, and at once for an answer that `max_tokens` cut off: the next one would be as long."""
    try:
        value = _parse_and_check(context, completion, format_)
    except NotJson as error:
        if completion.finish_reason is FinishReason.LENGTH:
            raise
        again = repair_messages(request.messages, completion.text, error.message)
        repaired = write_quietly(context, generator, replace(request, messages=tuple(again)))
        value = _parse_and_check(context, repaired, format_)
        completion = replace(
            repaired,
            prompt_tokens=completion.prompt_tokens + repaired.prompt_tokens,
            completion_tokens=completion.completion_tokens + repaired.completion_tokens,
        )
    return JsonAnswer(text=completion.text, value=value, completion=completion)


def _parse_and_check(context: Context, completion: Completion, format_: ResponseFormat) -> Any:
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
        schemas_of(context.process).validate(value, format_.json_schema)
    return value


def schemas_of(process: Process) -> SchemaChecker:
    return process.held(_schemas, SchemaChecker.close)


def _schemas(process: Process) -> SchemaChecker:
    return SchemaChecker(limit_s=process.settings.schema_check_s)
