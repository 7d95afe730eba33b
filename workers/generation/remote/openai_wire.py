"""The shapes of OpenAI's protocol: requests -> what is sent, chunks -> what they tell."""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final
from uuid import uuid4

import openai
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletionChunk
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall

from shared.errors import Retryable
from workers.generation.engine import FinishReason, Message, Request, Role, Tool, ToolCall
from workers.generation.remote.generator import Reply, tokens_left

GO_ON: Final = (
    "Your answer was interrupted. Continue it exactly where it stopped, in the middle of the word "
    "if need be. Do not repeat any of it, and say nothing about the interruption."
)

_STOP_LIMIT: Final = 4  # OpenAI takes no more; the others are applied here.


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class Calls:
    """Tool calls, which come in pieces."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, piece: ChoiceDeltaToolCall) -> None:
        call = self._calls.setdefault(piece.index, _Call())
        call.id = call.id or piece.id or ""
        if piece.function is not None:
            call.name += piece.function.name or ""
            call.arguments += piece.function.arguments or ""

    def assembled(self) -> list[ToolCall]:
        return [
            ToolCall(
                id=call.id or f"call_{uuid4().hex[:12]}",
                name=call.name,
                arguments=_arguments(call),
            )
            for _, call in sorted(self._calls.items())
        ]


def _arguments(call: _Call) -> dict[str, Any]:
    try:
        value = json.loads(call.arguments or "{}")
    except (ValueError, RecursionError):
        value = None
    if not isinstance(value, dict):
        raise Retryable(f"The model called the tool {call.name!r} with arguments that are no JSON.")
    return value


def piece_of(chunk: ChatCompletionChunk, reply: Reply, calls: Calls) -> str:
    _note_usage(chunk.usage, reply)
    # The client does not validate: a chunk without choices may come with None.
    for choice in chunk.choices or ():
        _note_finish(choice.finish_reason, reply)
        for piece in choice.delta.tool_calls or ():
            calls.add(piece)
        return choice.delta.content or ""
    return ""


def text_of(text: Completion, reply: Reply) -> str:
    _note_usage(text.usage, reply)
    for choice in text.choices or ():
        _note_finish(choice.finish_reason, reply)
        return choice.text or ""
    return ""


def _note_finish(reason: str | None, reply: Reply) -> None:
    if reason:
        reply.finish_reason = FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _note_usage(usage: CompletionUsage | None, reply: Reply) -> None:
    if usage is not None:
        reply.prompt_tokens = usage.prompt_tokens
        reply.completion_tokens = usage.completion_tokens


def sampling(request: Request, *, limit: str) -> dict[str, Any]:
    """`limit` is the name under which the server takes the greatest number of tokens."""
    asked = request.sampling
    told: dict[str, Any] = {
        limit: tokens_left(request), "temperature": asked.temperature, "top_p": asked.top_p,
    }  # fmt: skip
    if asked.stop:
        told["stop"] = list(asked.stop[:_STOP_LIMIT])
    if asked.seed is not None:
        told["seed"] = asked.seed
    return told


def extra(request: Request, *, is_prefill: bool = False) -> dict[str, Any]:
    """What is not of OpenAI's own protocol, and only where it is asked for."""
    told: dict[str, Any] = {}
    if request.sampling.top_k:
        told["top_k"] = request.sampling.top_k
    if request.sampling.repetition_penalty != 1.0:
        told["repetition_penalty"] = request.sampling.repetition_penalty
    if is_prefill:
        told |= {"add_generation_prompt": False, "continue_final_message": True}
    return told


def messages(said: Sequence[Message], resumed: str, mode: str) -> list[Any]:
    told = [_message(message) for message in said]
    if resumed:
        told.append({"role": Role.ASSISTANT.value, "content": resumed})
        if mode == "instruct":
            told.append({"role": Role.USER.value, "content": GO_ON})
    return told


def _message(message: Message) -> dict[str, Any]:
    told: dict[str, Any] = {"role": message.role.value, "content": message.content}
    if message.tool_calls:
        told["content"] = message.content or None
        told["tool_calls"] = [
            {
                "id": call.id,
                "type": "function",
                "function": {
                    "name": call.name,
                    "arguments": json.dumps(call.arguments, ensure_ascii=False),
                },
            }
            for call in message.tool_calls
        ]
    if message.tool_call_id is not None:
        told["tool_call_id"] = message.tool_call_id
    return told


def tools(offered: Sequence[Tool]) -> Any:
    return [
        {
            "type": "function",
            "function": {
                "name": tool.name,
                "description": tool.description,
                "parameters": tool.parameters,
            },
        }
        for tool in offered
    ] or openai.omit
