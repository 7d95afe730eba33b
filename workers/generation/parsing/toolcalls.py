"""Tool calls in models' text, as Hermes and Qwen, Llama 3 and Mistral write them.

Hermes: `<tool_call>{"name": .., "arguments": {..}}</tool_call>`. Llama: `{"name": ..,
"parameters": {..}}` and nothing else, or behind `<|python_tag|>`. Mistral: `[TOOL_CALLS]` with a
list of calls, or with `name{..}` or `name[ARGS]{..}`. Broken JSON stays text. `toolgate.py` keeps
calls out of streams, `toolprompt.py` tells models of tools.
"""

import re
from collections.abc import Collection
from dataclasses import dataclass
from typing import Any, Final

from workers.generation.engine import ToolCall
from workers.generation.parsing.modeljson import value_at

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
# A text that begins so may be a bare call: every part of it may still be missing at its end.
_BARE_BEGIN: Final = re.compile(r'\s*(?:\[\s*)?(?:\{\s*(?:"(\w*)(?:("[\s\S]*))?)?)?')
_BARE_KEYS: Final = ("name", "parameters", "arguments", "type", "function", "id")


@dataclass(frozen=True)
class _Found:
    """Calls that stand at `start` to `end` of the text, as (name, arguments)."""

    start: int
    end: int
    calls: list[tuple[str, dict[str, Any]]]


def parse(
    text: str, *, names: Collection[str] | None = None, first: int = 0
) -> tuple[str, tuple[ToolCall, ...]]:
    """The text without its calls, and the calls. Without calls, the text as it is.

    A text that is bare JSON counts as a call only if its name is among `names`, where given.
    `first` is the number of the first id (`call_0`), so that ids differ within a conversation.
    """
    bare = _bare(text, names)
    found = [bare] if bare else _marked(text)
    if not found:
        return text, ()
    pieces, at = [], 0
    for each in found:
        pieces.append(text[at : each.start])
        at = each.end
    pieces.append(text[at:])
    shown = [pieces[0].rstrip(), *(piece.strip() for piece in pieces[1:])]
    calls = [call for each in found for call in each.calls]
    return "\n".join(piece for piece in shown if piece), tuple(
        ToolCall(id=f"call_{first + number}", name=name, arguments=arguments)
        for number, (name, arguments) in enumerate(calls)
    )


def may_be_bare(text: str) -> bool:
    """Whether a text that begins so may turn out to be nothing but calls."""
    begin = _BARE_BEGIN.fullmatch(text)
    if begin is None:
        return False
    key, rest = begin[1], begin[2]
    if key is None:
        return True
    return key in _BARE_KEYS if rest is not None else any(k.startswith(key) for k in _BARE_KEYS)


def _marked(text: str) -> list[_Found]:
    """All calls behind one of the openings."""
    found: list[_Found] = []
    at = 0
    while True:
        start, opening = min(
            ((at_, each) for each in OPENINGS if (at_ := text.find(each, at)) >= 0),
            default=(-1, ""),
        )
        if start < 0:
            return found
        body = start + len(opening)
        read = {HERMES: _hermes, MISTRAL: _mistral, LLAMA: _llama}[opening](text, body)
        if read is None:
            at = body
            continue
        at, calls = read
        found.append(_Found(start, at, calls))


_Read = tuple[int, list[tuple[str, dict[str, Any]]]]


def _hermes(text: str, at: int) -> _Read | None:
    """One call, or a list of them, up to the closing tag, the next opening one, or the end."""
    value, at = _json_at(text, at)
    calls = _calls(value)
    end = _HERMES_END.match(text, at)
    return (end.end(), calls) if calls and end else None


def _mistral(text: str, at: int) -> _Read | None:
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


def _llama(text: str, at: int) -> _Read | None:
    calls: list[tuple[str, dict[str, Any]]] = []
    while at < len(text):
        value, end = _json_at(text, at)
        if not (more := _calls(value)):
            break
        calls += more
        separator = _BETWEEN_BARE.match(text, end)
        at = separator.end() if separator else end
    return (at, calls) if calls else None


def _bare(text: str, names: Collection[str] | None) -> _Found | None:
    """Calls that are the whole text."""
    if not may_be_bare(text):
        return None
    read = _llama(text, 0)
    if read is None or read[0] != len(text):
        return None
    if names is not None and not all(name in names for name, _ in read[1]):
        return None
    return _Found(0, len(text), read[1])


def _json_at(text: str, at: int) -> tuple[Any, int]:
    """The object or array behind the spaces, and where it ends; None where there is none."""
    space = _SPACE.match(text, at)
    start = space.end() if space else at
    if text[start : start + 1] not in ("{", "["):
        return None, at
    try:
        return value_at(text, start)
    except ValueError:
        return None, at


def _calls(value: Any) -> list[tuple[str, dict[str, Any]]]:
    """What the JSON of one call, or of a list of them, says; empty where it is no call."""
    calls = []
    for each in value if isinstance(value, list) else [value]:
        if not isinstance(each, dict):
            return []
        inner = each.get("function")
        each = inner if isinstance(inner, dict) else each
        name = each.get("name") or each.get("function")
        arguments = each.get("arguments", each.get("parameters"))
        if isinstance(arguments, str):
            arguments, _ = _json_at(arguments, 0)  # some models encode them twice
        if not (isinstance(name, str) and name and isinstance(arguments, dict)):
            return []
        calls.append((name, arguments))
    return calls
