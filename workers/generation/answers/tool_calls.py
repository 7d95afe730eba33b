"""Tool calls in models' text, as Hermes and Qwen, Llama 3 and Mistral write them.

Hermes: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`. Llama: `{"name": ..,
"parameters": {..}}` and nothing else, or behind `<|python_tag|>`. Mistral: `[TOOL_CALLS]` with a
list of calls, or with `name{..}` or `name[ARGS]{..}`. Broken JSON stays text. This module also
describes tools to models, and keeps calls out of streams.
"""

import json
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from typing import Any, Final

from workers.fences import disarm
from workers.generation.answers.structured import value_at
from workers.generation.backends.interface import Message, Role, Tool, ToolCall

HERMES: Final = "<tool_call>"
HERMES_END: Final = "</tool_call>"
MISTRAL: Final = "[TOOL_CALLS]"
LLAMA: Final = "<|python_tag|>"
OPENINGS: Final = (HERMES, MISTRAL, LLAMA)

_SPACE: Final = re.compile(r"\s*")
_BETWEEN_BARE: Final = re.compile(r"[\s;]*")
_HERMES_END: Final = re.compile(rf"\s*(?:{re.escape(HERMES_END)}|(?={re.escape(HERMES)})|$)")
_MISTRAL_NAME: Final = re.compile(
    r"\s*([a-zA-Z0-9_.-]{1,64})\s*(?:\[CALL_ID\][a-zA-Z0-9_-]*\s*)?(?:\[ARGS\])?\s*(?={)"
)
# The beginning of a text that may be a bare call; it may end after any part of the pattern.
_BARE_BEGIN: Final = re.compile(r'\s*(?:\[\s*)?(?:\{\s*(?:"(\w*)(?:("[\s\S]*))?)?)?')
_BARE_KEYS: Final = ("name", "parameters", "arguments", "type", "function", "id")


@dataclass(frozen=True)
class _Span:
    """The calls in `text[start:end]`, as (name, arguments)."""

    start: int
    end: int
    calls: list[tuple[str, dict[str, Any]]]


def parse(
    text: str, *, names: Collection[str] | None = None, first: int = 0
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls. A text without calls is not changed.

    A text that is bare JSON is a call only if its name is among `names` (None: any name).
    `first` is the number in the first id (`call_0`), so that ids differ within a conversation.
    """
    bare = _bare(text, names)
    spans = [bare] if bare else _marked(text)
    if not spans:
        return text, ()
    pieces, at = [], 0
    for span in spans:
        pieces.append(text[at : span.start])
        at = span.end
    pieces.append(text[at:])
    shown = [pieces[0].rstrip(), *(piece.strip() for piece in pieces[1:])]
    calls = [call for span in spans for call in span.calls]
    return "\n".join(piece for piece in shown if piece), tuple(
        ToolCall(id=f"call_{first + number}", name=name, arguments=arguments)
        for number, (name, arguments) in enumerate(calls)
    )


def may_be_bare(text: str) -> bool:
    """Whether a text that begins like this may consist of calls only."""
    begin = _BARE_BEGIN.fullmatch(text)
    if begin is None:
        return False
    key, rest = begin[1], begin[2]
    if key is None:
        return True
    return key in _BARE_KEYS if rest is not None else any(k.startswith(key) for k in _BARE_KEYS)


def _marked(text: str) -> list[_Span]:
    """All calls that follow one of the openings."""
    spans: list[_Span] = []
    at = 0
    while True:
        start, opening = min(
            ((at_, opening_) for opening_ in OPENINGS if (at_ := text.find(opening_, at)) >= 0),
            default=(-1, ""),
        )
        if start < 0:
            return spans
        body = start + len(opening)
        read = {HERMES: _hermes, MISTRAL: _mistral, LLAMA: _llama}[opening](text, body)
        if read is None:
            at = body
            continue
        at, calls = read
        spans.append(_Span(start, at, calls))


_ParsedCalls = tuple[int, list[tuple[str, dict[str, Any]]]]


def _hermes(text: str, at: int) -> _ParsedCalls | None:
    """One call, or a list of them, up to the closing tag, the next opening one, or the end."""
    value, at = _json_at(text, at)
    calls = _calls(value)
    end = _HERMES_END.match(text, at)
    return (end.end(), calls) if calls and end else None


def _mistral(text: str, at: int) -> _ParsedCalls | None:
    value, end = _json_at(text, at)
    if calls := _calls(value):
        return end, calls
    calls = []
    while name := _MISTRAL_NAME.match(text, at):
        arguments, end = _json_at(text, name.end())
        if not isinstance(arguments, dict):
            break
        calls.append((name[1], arguments))
        at = end
    return (at, calls) if calls else None


def _llama(text: str, at: int) -> _ParsedCalls | None:
    calls: list[tuple[str, dict[str, Any]]] = []
    while at < len(text):
        value, end = _json_at(text, at)
        if not (more := _calls(value)):
            break
        calls += more
        separator = _BETWEEN_BARE.match(text, end)
        at = separator.end() if separator else end
    return (at, calls) if calls else None


def _bare(text: str, names: Collection[str] | None) -> _Span | None:
    """Calls that are the whole text."""
    if not may_be_bare(text):
        return None
    read = _llama(text, 0)
    if read is None or read[0] != len(text):
        return None
    if names is not None and not all(name in names for name, _ in read[1]):
        return None
    return _Span(0, len(text), read[1])


def _json_at(text: str, at: int) -> tuple[Any, int]:
    """The object or array after any white space, and where it ends; None if there is none."""
    space = _SPACE.match(text, at)
    start = space.end() if space else at
    if text[start : start + 1] not in ("{", "["):
        return None, at
    try:
        return value_at(text, start)
    except ValueError:
        return None, at


def _calls(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """The calls in the JSON of one call or of a list of them; empty if it is no call."""
    calls = []
    for call in value if isinstance(value, list) else [value]:
        if not isinstance(call, dict):
            return []
        inner = call.get("function")
        call = inner if isinstance(inner, dict) else call
        name = call.get("name") or call.get("function")
        arguments = call.get("arguments", call.get("parameters"))
        if isinstance(arguments, str):
            arguments, _ = _json_at(arguments, 0)  # some models encode them twice
        if not (isinstance(name, str) and name and isinstance(arguments, dict)):
            return []
        calls.append((name, arguments))
    return calls


# Tools, calls and results as text (in Hermes' format), for models whose chat template has no tools.


def describe(tools: Sequence[Tool]) -> str:
    """The text for the system prompt of a model whose template has no tools."""
    signatures = "\n".join(json.dumps(tool.as_dict(), ensure_ascii=False) for tool in tools)
    return (
        "# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{signatures}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{HERMES}{HERMES_END} XML tags:\n"
        f'{HERMES}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{HERMES_END}'
    )


def spell_out(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The messages for a model whose template has no tools, with everything as text.

    The tools are described in the system prompt; calls become text of the assistant, and
    successive results become one message of the user.
    """
    spelled: list[Message] = []
    answered: list[str] = []
    if tools and (not messages or messages[0].role != Role.SYSTEM):
        spelled.append(Message(role=Role.SYSTEM, content=describe(tools)))
    for number, message in enumerate(messages):
        if message.role == Role.TOOL:
            answered.append(f"<tool_response>\n{disarm(message.content)}\n</tool_response>")
            continue
        _add_answers(spelled, answered)
        content = message.content
        if tools and number == 0 and message.role == Role.SYSTEM:
            content = f"{content}\n\n{describe(tools)}"
        calls = [
            f"{HERMES}\n"
            f"{json.dumps({'name': call.name, 'arguments': call.arguments}, ensure_ascii=False)}\n"
            f"{HERMES_END}"
            for call in message.tool_calls
        ]
        spelled.append(
            Message(role=message.role, content="\n".join([content, *calls] if content else calls))
        )
    _add_answers(spelled, answered)
    return spelled


def _add_answers(spelled: list[Message], answered: list[str]) -> None:
    if answered:
        spelled.append(Message(role=Role.USER, content="\n".join(answered)))
        answered.clear()


# A stream of a model's text without its tool calls.
#
# The result is the same as that of `parse` for the whole text, whatever the pieces are.


class ToolCallFilter:
    """`feed` it the text piece by piece, then `close` it; both return text to show.

    From the place where a call may begin, everything is held back until the end. White space is
    held back until something follows it.
    """

    def __init__(self, *, names: Collection[str] | None = None) -> None:
        """`names` as for `parse`."""
        self._names = names
        self._pieces: list[str] = []
        self._waiting = ""  # not shown yet
        self._shown = 0
        self._is_held = False

    def feed(self, text: str) -> str:
        self._pieces.append(text)
        if self._is_held:
            return ""
        self._waiting += text
        if not self._shown and may_be_bare(self._waiting):
            return ""
        end = _end_of_text(self._waiting)
        shown, self._waiting = self._waiting[:end], self._waiting[end:]
        self._shown += len(shown)
        self._is_held = self._waiting.lstrip().startswith(OPENINGS)
        return shown

    def close(self) -> str:
        remaining, _ = parse("".join(self._pieces), names=self._names)
        return remaining[self._shown :]


def _end_of_text(text: str) -> int:
    """The end of the part that can belong to no call and is no space before one."""
    starts = [at for opening in OPENINGS if (at := text.find(opening)) >= 0]
    if starts:
        return len(text[: min(starts)].rstrip())
    longest = max(map(len, OPENINGS)) - 1
    for at in range(max(0, len(text) - longest), len(text)):
        if any(opening.startswith(text[at:]) for opening in OPENINGS):
            return len(text[:at].rstrip())
    return len(text.rstrip())
