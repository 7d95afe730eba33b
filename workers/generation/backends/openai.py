"""Models of OpenAI-compatible servers (`openai/...`): vLLM, llama.cpp, TGI, OpenAI itself.

Messages go to the endpoint `chat/completions`, a bare prompt to `completions`. SLUICE_OPENAI_RESUME
says how an interrupted text is continued: with `prefill` it is sent as the beginning of the answer
(vLLM, llama.cpp and TGI continue it exactly), with `instruct` a message asks the model to go on
(OpenAI itself offers nothing better). Not every server reports token counts in a stream; if they
are missing, the counts of a completion are estimates (`remote.py`).
"""

import json
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass
from typing import Any, Final
from urllib.parse import urlsplit
from uuid import uuid4

import openai
from openai.types import Completion, CompletionUsage
from openai.types.chat import ChatCompletionChunk, ChatCompletionTokenLogprob
from openai.types.chat.chat_completion_chunk import ChoiceDeltaToolCall
from openai.types.completion_choice import Logprobs

from shared.bounds import storable_text
from shared.config import Settings
from shared.errors import Retryable
from shared.kinds.chat import Likely, TokenLogprob
from shared.models.providers import OPENAI, OPENAI_HOST
from workers.generation.backends.interface import (
    FinishReason,
    Message,
    Request,
    Role,
    Tool,
    ToolCall,
)
from workers.generation.backends.remote import RemoteGenerator, Reply, tokens_left
from workers.servers.openai import OpenAIServer

# The shapes of OpenAI's protocol: how requests are sent, and what the chunks of answers mean.

GO_ON: Final = (
    "Your answer was interrupted. Continue it exactly where it stopped, in the middle of the word "
    "if need be. Do not repeat any of it, and say nothing about the interruption."
)

_STOP_LIMIT: Final = 4  # OpenAI takes no more; `StopFilter` applies them all.


@dataclass
class _Call:
    id: str = ""
    name: str = ""
    arguments: str = ""


class ToolCallPieces:
    """Tool calls, put together from their pieces in the chunks."""

    def __init__(self) -> None:
        self._calls: dict[int, _Call] = {}

    def add(self, piece: ChoiceDeltaToolCall) -> None:
        call = self._calls.setdefault(piece.index, _Call())
        call.id = call.id or piece.id or ""
        if piece.function is not None:
            call.name += piece.function.name or ""
            call.arguments += piece.function.arguments or ""

    def assemble(self) -> list[ToolCall]:
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


def piece_of(chunk: ChatCompletionChunk, reply: Reply, calls: ToolCallPieces) -> str:
    _note_usage(chunk.usage, reply)
    # The client does not validate: a chunk without choices may come with None.
    for choice in chunk.choices or ():
        _note_finish(choice.finish_reason, reply)
        if choice.logprobs is not None:
            reply.logprobs += map(_token_logprob, choice.logprobs.content or ())
        for piece in choice.delta.tool_calls or ():
            calls.add(piece)
        return choice.delta.content or ""
    return ""


def text_of(text: Completion, reply: Reply) -> str:
    _note_usage(text.usage, reply)
    for choice in text.choices or ():
        _note_finish(choice.finish_reason, reply)
        if choice.logprobs is not None:
            reply.logprobs += _logprobs_of_text(choice.logprobs)
        return choice.text or ""
    return ""


def _token_logprob(entry: ChatCompletionTokenLogprob) -> TokenLogprob:
    return TokenLogprob(
        token=storable_text(entry.token),
        logprob=entry.logprob,
        bytes=entry.bytes,
        top=[
            Likely(token=storable_text(other.token), logprob=other.logprob, bytes=other.bytes)
            for other in entry.top_logprobs or ()
        ],
    )


def _logprobs_of_text(logprobs: Logprobs) -> list[TokenLogprob]:
    """Of the endpoint `completions`, which has them in lists of equal length."""
    tokens, own = logprobs.tokens or [], logprobs.token_logprobs or []
    likeliest: list[dict[str, float]] = [*(logprobs.top_logprobs or [])]
    likeliest += [{}] * (len(tokens) - len(likeliest))
    return [
        TokenLogprob(
            token=storable_text(token),
            logprob=logprob or 0.0,
            bytes=list(token.encode(errors="replace")),
            top=[
                Likely(token=storable_text(text), logprob=value)
                for text, value in sorted((top or {}).items(), key=lambda item: -item[1])
            ],
        )
        for token, logprob, top in zip(tokens, own, likeliest, strict=False)
    ]


def _note_finish(reason: str | None, reply: Reply) -> None:
    if reason:
        reply.finish_reason = FinishReason.LENGTH if reason == "length" else FinishReason.STOP


def _note_usage(usage: CompletionUsage | None, reply: Reply) -> None:
    if usage is not None:
        reply.prompt_tokens = usage.prompt_tokens
        reply.completion_tokens = usage.completion_tokens


def sampling(request: Request, *, limit: str) -> dict[str, Any]:
    """`limit` is the server's name for the parameter that limits the number of tokens."""
    chosen = request.sampling
    options: dict[str, Any] = {
        limit: tokens_left(request), "temperature": chosen.temperature, "top_p": chosen.top_p,
    }  # fmt: skip
    if chosen.stop:
        options["stop"] = list(chosen.stop[:_STOP_LIMIT])
    if chosen.seed is not None:
        options["seed"] = chosen.seed
    if chosen.frequency_penalty:
        options["frequency_penalty"] = chosen.frequency_penalty
    if chosen.presence_penalty:
        options["presence_penalty"] = chosen.presence_penalty
    return options


def logprobs_of_chat(request: Request) -> dict[str, Any]:
    count = request.sampling.logprobs
    return {} if count is None else {"logprobs": True, "top_logprobs": count}


def logprobs_of_completion(request: Request) -> dict[str, Any]:
    count = request.sampling.logprobs
    return {} if count is None else {"logprobs": count}


def tool_choice_options(request: Request) -> dict[str, Any]:
    """Only what differs from the defaults: not every server knows these parameters."""
    options: dict[str, Any] = {}
    if request.must_call and request.tools:
        options["tool_choice"] = "required"
    if not request.parallel_calls and request.tools:
        options["parallel_tool_calls"] = False
    return options


def extra(request: Request, *, is_prefill: bool = False) -> dict[str, Any]:
    """Parameters that are not of OpenAI's own protocol, only if the request needs them."""
    body: dict[str, Any] = {}
    if request.sampling.top_k:
        body["top_k"] = request.sampling.top_k
    if request.sampling.repetition_penalty != 1.0:
        body["repetition_penalty"] = request.sampling.repetition_penalty
    if is_prefill:
        body |= {"add_generation_prompt": False, "continue_final_message": True}
    return body


def messages(conversation: Sequence[Message], resumed: str, mode: str) -> list[Any]:
    payload: list[dict[str, Any]] = [_message(message) for message in conversation]
    if resumed:
        payload.append({"role": Role.ASSISTANT.value, "content": resumed})
        if mode == "instruct":
            payload.append({"role": Role.USER.value, "content": GO_ON})
    return payload


def _message(message: Message) -> dict[str, Any]:
    values = message.as_dict()
    if message.tool_calls:
        values["content"] = message.content or None
        for call in values["tool_calls"]:
            function = call["function"]
            function["arguments"] = json.dumps(function["arguments"], ensure_ascii=False)
    return values


def tools(offered: Sequence[Tool]) -> Any:
    return [tool.as_dict() for tool in offered] or openai.omit


# The seam between an interrupted text and its continuation.
#
# Models that are asked to go on tend to begin with the last words, or with the whole text again.
# What repeats the end of the text is dropped if it is too long to be chance.

CHANCE_CHARS: Final = 12


class RepeatFilter:
    """`feed` it the new text piece by piece, then `flush` it; both return what is really new."""

    def __init__(self, before: str) -> None:
        self._before = before
        self._held = ""
        self._is_open = len(before) < CHANCE_CHARS

    def feed(self, piece: str) -> str:
        if self._is_open:
            return piece
        self._held += piece
        if self._may_repeat_more():
            return ""
        return self.flush()

    def flush(self) -> str:
        self._is_open = True
        held, self._held = self._held, ""
        return held[self._repeated(held) :]

    def _may_repeat_more(self) -> bool:
        """Whether all that came stands in the text, and the next piece may repeat what follows."""
        at = self._before.find(self._held)
        return at >= 0 and at + len(self._held) < len(self._before)

    def _repeated(self, text: str) -> int:
        for length in range(min(len(text), len(self._before)), CHANCE_CHARS - 1, -1):
            if self._before.endswith(text[:length]):
                return length
        return 0


class OpenAIBackend:
    """All models of the server share its connections and its limit of requests."""

    def __init__(self, settings: Settings, **_: object) -> None:
        self._server = OpenAIServer(settings)

    def generator(self, name: str) -> "OpenAIGenerator":
        return OpenAIGenerator(self._server, name)

    def close(self) -> None:
        self._server.close()


class OpenAIGenerator(RemoteGenerator):
    """`name` is the model's name at the server."""

    def __init__(self, server: OpenAIServer, name: str) -> None:
        super().__init__(server, OPENAI.prefix + name)
        self.window_tokens = server.settings.remote_window_tokens
        self._openai = server
        self._name = name

    async def converse(self, request: Request, reply: Reply) -> AsyncGenerator[str, None]:
        resumed = request.resume.text if request.resume is not None else ""
        if request.prompt is not None:
            texts = await self._openai.client.completions.create(
                model=self._name,
                prompt=request.prompt + resumed,
                stream=True,
                stream_options={"include_usage": True},
                extra_body=extra(request),
                **sampling(request, limit="max_tokens"),
                **logprobs_of_completion(request),
            )
            async with texts:
                async for text in texts:
                    reply.has_begun = True
                    yield text_of(text, reply)
            return
        mode = self._openai.settings.openai_resume
        chunks = await self._openai.client.chat.completions.create(
            model=self._name,
            messages=messages(request.messages, resumed, mode),
            tools=tools(request.tools),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=extra(request, is_prefill=bool(resumed) and mode == "prefill"),
            **sampling(request, limit=self._limit_name),
            **logprobs_of_chat(request),
            **tool_choice_options(request),
        )
        calls = ToolCallPieces()
        repeats = RepeatFilter(resumed if mode == "instruct" else "")
        async with chunks:
            async for chunk in chunks:
                reply.has_begun = True
                yield repeats.feed(piece_of(chunk, reply, calls))
        yield repeats.flush()
        reply.tool_calls.extend(calls.assemble())

    @property
    def _limit_name(self) -> str:
        """OpenAI's newer models refuse the name that all other servers know."""
        is_openai = urlsplit(self._openai.base_url).hostname == OPENAI_HOST
        return "max_completion_tokens" if is_openai else "max_tokens"
