"""What the model behind a test server says: always the same to the same words.

"count to N" is answered with the numbers from 1 to N, `call NAME {...}` with a tool call where the
request offers tools, and anything else with its own words. A token is a word with the white space
before it. A text that was interrupted is gone on with exactly where it stopped.
"""

import json
import re
from dataclasses import dataclass, field
from typing import Any

_COUNT = re.compile(r"count to (\d+)[.:]?", re.IGNORECASE)
_CALL = re.compile(r"call (\w+) (\{.*\})", re.DOTALL)
_QUOTED = re.compile(r"['\"]([^'\"]+)['\"]")
_TOKEN = re.compile(r"\s*\S+|\s+$")


@dataclass(frozen=True, kw_only=True)
class Answer:
    """`tokens` are what is generated now; `calls` are names and arguments as they were written."""

    prompt_tokens: int
    tokens: list[str] = field(default_factory=list)
    is_cut: bool = False
    calls: list[tuple[str, str]] = field(default_factory=list)


def tokens_of(text: str) -> list[str]:
    return _TOKEN.findall(text)


def to_messages(
    messages: list[dict[str, Any]], *, has_tools: bool, max_tokens: int | None, stop: list[str]
) -> Answer:
    prompt_tokens = sum(len(tokens_of(message.get("content") or "")) for message in messages)
    said, begun = _split(messages)
    last = said[-1]
    content = last.get("content") or ""
    wish = _CALL.search(content)
    if has_tools and wish and last["role"] == "user":
        return Answer(prompt_tokens=prompt_tokens, calls=[(wish.group(1), wish.group(2))])
    whole = f"The tool says {content}" if last["role"] == "tool" else _reply(content)
    return _cut(prompt_tokens, _rest(whole, begun), max_tokens, stop)


def obliging(messages: list[dict[str, Any]], *, tools: list[dict[str, Any]]) -> Answer | None:
    """A call of the first tool, or the JSON that the system's message wants, filled with what
    stands in the last message; None where neither is wanted."""
    last = messages[-1]
    text = last.get("content") or ""
    prompt_tokens = sum(len(tokens_of(message.get("content") or "")) for message in messages)
    if tools and last["role"] == "user":
        function = tools[0]["function"]
        arguments = json.dumps(_filled(function["parameters"], text), ensure_ascii=False)
        return Answer(prompt_tokens=prompt_tokens, calls=[(function["name"], arguments)])
    wish = messages[0].get("content") or ""
    if messages[0]["role"] == "system" and "JSON" in wish:
        _, marker, schema = wish.partition("JSON Schema:\n")
        shape = json.JSONDecoder().raw_decode(schema)[0] if marker else _named(text)
        written = json.dumps(_filled(shape, text), ensure_ascii=False)
        return Answer(prompt_tokens=prompt_tokens, tokens=tokens_of(written))
    return None


def _named(text: str) -> dict[str, Any]:
    """A schema with a text for each name in quotes."""
    names = {name: {"type": "string"} for name in _QUOTED.findall(text)}
    return {"type": "object", "properties": names}


def _filled(schema: dict[str, Any], text: str) -> Any:
    """A value of a schema: the first number of the text, or what it has in quotes."""
    if "anyOf" in schema:
        return _filled(schema["anyOf"][0], text)
    type_ = schema.get("type", "object")
    if type_ == "object":
        return {name: _filled(of, text) for name, of in schema.get("properties", {}).items()}
    if type_ in ("integer", "number"):
        number = re.search(r"\d+", text)
        return int(number[0]) if number else 1
    if type_ == "array":
        return [_filled(schema.get("items", {"type": "string"}), text)]
    if type_ == "boolean":
        return True
    quoted = _QUOTED.search(text)
    return quoted[1] if quoted else " ".join(text.split()[-3:])


def to_prompt(prompt: str, *, max_tokens: int | None, stop: list[str]) -> Answer:
    """A bare prompt is gone on with: behind "count to N" come the numbers that are not there."""
    counts = list(_COUNT.finditer(prompt))
    if counts:
        numbers = "".join(f" {number}" for number in range(1, int(counts[-1].group(1)) + 1))
        rest = _rest(numbers, prompt[counts[-1].end() :])
    else:
        rest = " " + prompt.strip()
    return _cut(len(tokens_of(prompt)), rest, max_tokens, stop)


def _split(messages: list[dict[str, Any]]) -> tuple[list[dict[str, Any]], str]:
    """The conversation, and the beginning of the answer where one is given."""
    if messages[-1]["role"] == "assistant":
        return messages[:-1], messages[-1]["content"]
    asks_to_go_on = "interrupted" in (messages[-1].get("content") or "")
    if len(messages) > 2 and messages[-2]["role"] == "assistant" and asks_to_go_on:
        return messages[:-2], messages[-2]["content"]
    return messages, ""


UNSTORABLE = "say what no database keeps"
"""Is answered with a character that PostgreSQL refuses."""


def _reply(content: str) -> str:
    if content == UNSTORABLE:
        return "a\0b c"
    count = _COUNT.search(content)
    if count:
        return " ".join(str(number) for number in range(1, int(count.group(1)) + 1))
    return " ".join(content.split())


def _rest(whole: str, begun: str) -> str:
    return whole[len(begun) :] if whole.startswith(begun) else whole


def _cut(prompt_tokens: int, text: str, max_tokens: int | None, stop: list[str]) -> Answer:
    ends = [at for string in stop if (at := text.find(string)) >= 0]
    tokens = tokens_of(text[: min(ends)] if ends else text)
    limit = len(tokens) if max_tokens is None or max_tokens < 0 else max_tokens
    return Answer(prompt_tokens=prompt_tokens, tokens=tokens[:limit], is_cut=len(tokens) > limit)
