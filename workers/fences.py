"""Fences around text of others in a prompt: passages, pages, results of tools.

A fence is a pair of tags whose name ends in a code: `<passage-3f9a2c41 id="1">`. The code is made
of the fenced texts, so it is the same at every attempt, and none of the texts contains it: what
stands inside cannot close its fence. `disarm` breaks what a model's template or a small model
would take for structure: control tokens, tags of calls, tags that look like a fence.

It keeps text apart; whether a model obeys what it reads there is up to the model.
"""

import hashlib
import re
from collections.abc import Iterable
from itertools import count
from typing import Final

CODE_CHARS: Final = 8
_ATTRIBUTE_CHARS: Final = 200
_CUT_NOTE: Final = "\n(cut: the rest is too long)"

_FENCE_NAMES: Final = "passages?|page|result|transcript|summary|tools?|tool_calls?|tool_response"
_CONTROL_NAMES: Final = (
    "s|bos|eos|pad|unk|think|start_of_turn|end_of_turn|start_of_image|image_soft_token"
)
# What tokenizers read as control tokens, and tags that have a meaning in prompts. The first
# character is what gets parted from the rest.
_ARMED: Final = re.compile(
    r"[<＜](?=[|｜])"
    rf"|[<＜](?=/?\s*(?:{_FENCE_NAMES})(?:[-\s>＞/]|$))"
    rf"|[<＜](?=/?(?:{_CONTROL_NAMES})[>＞])"
    r"|<(?=</?SYS>>)"
    r"|\[(?=/?(?:INST|SYSTEM_PROMPT|AVAILABLE_TOOLS|TOOL_CALLS|TOOL_RESULTS|TOOL_CONTENT|CALL_ID"
    r"|ARGS|THINK|IMG|BEGIN_OF_TEXT)\])",
    re.IGNORECASE,
)


def code_for(texts: Iterable[str]) -> str:
    """Hexadecimal digits that none of the texts contains."""
    held = list(texts)
    digest = hashlib.sha256()
    for text in held:
        data = text.encode("utf-8", "surrogatepass")
        digest.update(len(data).to_bytes(8, "big") + data)
    for number in count():
        attempt = digest.copy()
        attempt.update(str(number).encode())
        code = attempt.hexdigest()[:CODE_CHARS]
        if not any(code in text.lower() for text in held):
            return code
    raise AssertionError("count() has no end")


def disarm(text: str) -> str:
    """The text with a space behind the first character of everything that could be structure.

    Doing it twice changes nothing more.
    """
    return _ARMED.sub(lambda match: f"{match[0]} ", text)


def block(name: str, code: str, text: str, **attributes: object) -> str:
    """The text between its tags, disarmed; attribute values are quoted and kept to one line."""
    rendered = "".join(f' {key}="{_attribute(str(value))}"' for key, value in attributes.items())
    return f"<{name}-{code}{rendered}>\n{disarm(text)}\n</{name}-{code}>"


def cut_block(name: str, code: str, text: str, limit_chars: int, **attributes: object) -> str:
    """The same of at most `limit_chars`, as far as the tags themselves leave room."""
    whole = block(name, code, text, **attributes)
    if len(whole) <= limit_chars:
        return whole
    room = limit_chars - len(block(name, code, _CUT_NOTE, **attributes)) - 1
    return block(name, code, disarm(text)[: max(room, 0)] + _CUT_NOTE, **attributes)


def _attribute(value: str) -> str:
    line = disarm(" ".join(value.split()))
    line = line.replace("&", "&amp;").replace('"', "&quot;")
    line = line.replace("<", "&lt;").replace(">", "&gt;")
    return line if len(line) <= _ATTRIBUTE_CHARS else line[: _ATTRIBUTE_CHARS - 1] + "…"
