"""Requests -> token ids, and token ids -> text: the tokenizer and the chat template of a model.

Models without a template (base models) are addressed as `User: ...` and `Assistant:`, and stop
where they would speak for the user. What messages say cannot become a control token: the strings
of special tokens are broken up in them.
"""

import re
import threading
from collections.abc import Iterable, Sequence
from typing import Any, Final

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidInput
from workers.generation.engine import Message, Request, Role, Tool

PLAIN_STOP: Final = ("\nUser:",)
# Tokens that open a call of a tool where a model has special ones for it (Mistral, Llama 3).
CALL_MARKS: Final = ("[TOOL_CALLS]", "[ARGS]", "[CALL_ID]", "<|python_tag|>")
_PLAIN_NAMES: Final = {
    Role.SYSTEM: "System",
    Role.USER: "User",
    Role.ASSISTANT: "Assistant",
    Role.TOOL: "Tool",
}


class Prompts:
    """Thread-safe."""

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._backend = getattr(tokenizer, "backend_tokenizer", None)
        self._has_template = bool(tokenizer.chat_template)
        # Tokenizers keep their truncation and padding in themselves, and refuse to be borrowed.
        self._lock = threading.Lock()
        special = _special_tokens(tokenizer)
        self._special = _any_of(special)
        self._special_ids = frozenset(special.values())
        self._call_ids = frozenset(special[each] for each in CALL_MARKS if each in special)
        self.has_tools = "tools" in str(tokenizer.chat_template or "")
        """Whether the template tells the model of tools."""

    def encode(self, request: Request) -> list[int]:
        """Raises InvalidInput where the template refuses the messages."""
        if request.prompt is not None:
            return self._ids(request.prompt, with_special=True)
        return self.encode_messages(request.messages, request.tools)

    def encode_messages(self, messages: Sequence[Message], tools: Sequence[Tool] = ()) -> list[int]:
        if not self._has_template:
            return self._ids(self._plain(messages), with_special=True)
        # A template writes the special tokens itself.
        return self._ids(self._templated(messages, tools), with_special=False)

    def encode_more(self, text: str) -> list[int]:
        """Text that goes on behind a prompt."""
        return self._ids(text, with_special=False)

    def decode(self, ids: Sequence[int]) -> str:
        """The text, without special tokens."""
        return self._text([each for each in ids if each not in self._special_ids])

    def decode_with_calls(self, ids: Sequence[int]) -> str:
        """The same, with the special tokens that mark calls of tools."""
        hidden = self._special_ids - self._call_ids
        return self._text([each for each in ids if each not in hidden])

    def stop_strings(self, request: Request) -> tuple[str, ...]:
        is_plain = request.prompt is None and not self._has_template
        return request.sampling.stop + (PLAIN_STOP if is_plain else ())

    def _text(self, ids: list[int]) -> str:
        # Straight to the tokenizer's own library where there is one: this runs for every token.
        decode = self._backend.decode if self._backend is not None else self._tokenizer.decode
        text = decode(ids, skip_special_tokens=False)
        assert isinstance(text, str)
        return text

    def _ids(self, text: str, *, with_special: bool) -> list[int]:
        with self._lock:
            ids: list[int] = self._tokenizer(
                text, add_special_tokens=with_special, verbose=False
            ).input_ids
        return ids

    def _templated(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        try:
            return self._rendered(messages, tools)
        except TemplateError as error:
            merged = _without_system(messages)
            if merged is None:
                raise InvalidInput(f"The model's chat template refuses this: {error}.") from error
        # Some models know no system role; what it says then opens the first message.
        return self._templated(merged, tools)

    def _rendered(self, messages: Sequence[Message], tools: Sequence[Tool]) -> str:
        text = self._tokenizer.apply_chat_template(
            [self._as_dict(message) for message in messages],
            tools=[_tool_as_dict(tool) for tool in tools] if self.has_tools and tools else None,
            add_generation_prompt=True,
            tokenize=False,
        )
        assert isinstance(text, str)
        return text

    def _as_dict(self, message: Message) -> dict[str, Any]:
        shown: dict[str, Any] = {
            "role": message.role.value,
            "content": self._broken(message.content),
        }
        if message.tool_calls:
            shown["tool_calls"] = [
                {
                    "id": call.id,
                    "type": "function",
                    "function": {"name": call.name, "arguments": self._broken(call.arguments)},
                }
                for call in message.tool_calls
            ]
        if message.tool_call_id is not None:
            shown["tool_call_id"] = message.tool_call_id
        return shown

    def _plain(self, messages: Sequence[Message]) -> str:
        turns = [f"{_PLAIN_NAMES[each.role]}: {self._broken(each.content)}" for each in messages]
        return "\n".join([*turns, f"{_PLAIN_NAMES[Role.ASSISTANT]}:"])

    def _broken(self, value: Any) -> Any:
        """The same, with a space after the first character of each special token's string."""
        if isinstance(value, str):
            return self._special.sub(lambda found: f"{found[0][0]} {found[0][1:]}", value)
        if isinstance(value, dict):
            return {key: self._broken(each) for key, each in value.items()}
        if isinstance(value, list):
            return [self._broken(each) for each in value]
        return value


def _without_system(messages: Sequence[Message]) -> list[Message] | None:
    """None where there is no system message before one of the user."""
    if len(messages) < 2 or messages[0].role != Role.SYSTEM or messages[1].role != Role.USER:
        return None
    content = f"{messages[0].content}\n\n{messages[1].content}"
    return [Message(role=Role.USER, content=content), *messages[2:]]


def _tool_as_dict(tool: Tool) -> dict[str, Any]:
    return {
        "type": "function",
        "function": {
            "name": tool.name,
            "description": tool.description,
            "parameters": tool.parameters,
        },
    }


def _special_tokens(tokenizer: PreTrainedTokenizerBase) -> dict[str, int]:
    added = tokenizer.added_tokens_decoder.items()
    named = zip(tokenizer.all_special_tokens, tokenizer.all_special_ids, strict=True)
    return dict(named) | {token.content: number for number, token in added if token.special}


def _any_of(strings: Iterable[str]) -> re.Pattern[str]:
    longest_first = sorted((each for each in strings if len(each) > 1), key=len, reverse=True)
    return re.compile("|".join(map(re.escape, longest_first)) or r"(?!)")
