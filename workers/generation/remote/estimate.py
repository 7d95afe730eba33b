"""How many tokens a text has by estimate, for models whose tokenizer is on another server.

Estimates lean towards too many: a prompt that is trimmed to fit by them does fit. Four characters
of English make about one token; a syllable of Hangul and a Chinese or Japanese character make up
to one each, by tokenizer.
"""

import json
import re
from collections.abc import Sequence
from typing import Final

from workers.generation.engine import Message, Tool

_DENSE: Final = re.compile("[\u1100-\u11ff\u3040-\u30ff\u3130-\u318f\u3400-\u9fff\uac00-\ud7af]")
_CHARS_A_TOKEN: Final = 4
_TOKENS_AROUND_A_MESSAGE: Final = 4
_TOKENS_AROUND_AN_ANSWER: Final = 3


def tokens_of(text: str) -> int:
    """At least 1 for any text; 0 for none."""
    dense = len(_DENSE.findall(text))
    return dense + -(-(len(text) - dense) // _CHARS_A_TOKEN)


def tokens_of_prompt(messages: Sequence[Message], tools: Sequence[Tool] = ()) -> int:
    """Of a conversation with what a chat template puts around it, and of the tools' schemas."""
    said = sum(tokens_of(_told(message)) + _TOKENS_AROUND_A_MESSAGE for message in messages)
    offered = sum(
        tokens_of(f"{tool.name} {tool.description} {json.dumps(tool.parameters)}")
        + _TOKENS_AROUND_A_MESSAGE
        for tool in tools
    )
    return said + offered + _TOKENS_AROUND_AN_ANSWER


def _told(message: Message) -> str:
    calls = (f"{call.name} {json.dumps(call.arguments)}" for call in message.tool_calls)
    return " ".join([message.content, *calls])
