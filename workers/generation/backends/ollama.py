"""Models of an Ollama server (`ollama/...`), through the `ollama` client.

Messages go to `/api/chat`, a bare prompt to `/api/generate` as it is. An interrupted text is sent
as the last message of the assistant, which Ollama continues. The context window is the model's own,
up to SLUICE_REMOTE_WINDOW_TOKENS. It is sent with every request: Ollama's default is smaller, and
Ollama silently drops what does not fit.
"""

import json
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from typing import Any
from uuid import uuid4

import ollama

from shared.bounds import storable_text
from shared.config import Settings
from shared.kinds.chat import Likely, TokenLogprob
from shared.models.providers import OLLAMA
from workers.generation.backends.interface import (
    FinishReason,
    Message,
    Request,
    Role,
    Tool,
    ToolCall,
)
from workers.generation.backends.remote import RemoteGenerator, Reply, tokens_left
from workers.servers.ollama import OllamaServer, closable, model_info, trained_window

# The shapes of Ollama's protocol: how requests are sent, and what the parts of answers mean.


def sampling_options(request: Request, window: int) -> dict[str, Any]:
    """All options whose defaults at Ollama differ from ours, and those that the request sets."""
    sampling = request.sampling
    options: dict[str, Any] = {
        "num_ctx": window,
        "num_predict": tokens_left(request),
        "temperature": sampling.temperature,
        "top_p": sampling.top_p,
        "top_k": sampling.top_k,
        "repeat_penalty": sampling.repetition_penalty,
    }
    if sampling.stop:
        options["stop"] = list(sampling.stop)
    if sampling.seed is not None:
        options["seed"] = sampling.seed
    if sampling.frequency_penalty:
        options["frequency_penalty"] = sampling.frequency_penalty
    if sampling.presence_penalty:
        options["presence_penalty"] = sampling.presence_penalty
    return options


def messages(conversation: Sequence[Message], resumed: str) -> list[dict[str, Any]]:
    names = {call.id: call.name for message in conversation for call in message.tool_calls}
    payload = []
    for message in conversation:
        values = message.as_dict()
        if message.tool_calls:
            # Ollama's tool calls have no ids; a result names its tool.
            values["tool_calls"] = [{"function": call["function"]} for call in values["tool_calls"]]
        if (call_id := values.pop("tool_call_id", None)) is not None:
            values["tool_name"] = names.get(call_id, call_id)
        payload.append(values)
    if resumed:
        payload.append({"role": Role.ASSISTANT.value, "content": resumed})
    return payload


def describe_tool(tool: Tool) -> dict[str, Any]:
    """A tool for the client, which drops what its types do not have, such as objects within
    parameters: then the whole schema is put into the description."""
    definition = tool.as_dict()
    kept = ollama.Tool.model_validate(definition).model_dump(exclude_none=True, by_alias=True)
    if kept["function"].get("parameters") != tool.parameters:
        schema = json.dumps(tool.parameters, ensure_ascii=False)
        definition["function"]["description"] = (
            f"{tool.description}\nParameters as JSON Schema: {schema}".strip()
        )
    return definition


def calls(message: ollama.Message) -> list[ToolCall]:
    return [
        ToolCall(
            id=f"call_{uuid4().hex[:12]}",
            name=call.function.name,
            arguments=dict(call.function.arguments),
        )
        for call in message.tool_calls or ()
    ]


def logprob_options(request: Request) -> dict[str, Any]:
    """Servers before 0.12.11 ignore these."""
    count = request.sampling.logprobs
    return {} if count is None else {"logprobs": True, "top_logprobs": count}


def _likely(entry: Any) -> dict[str, Any]:
    token = storable_text(entry.token)
    bytes_ = list(entry.token.encode(errors="replace"))
    return {"token": token, "logprob": entry.logprob, "bytes": bytes_}


def note(part: ollama.ChatResponse | ollama.GenerateResponse, reply: Reply) -> None:
    reply.has_begun = True
    for entry in part.logprobs or ():
        top = [Likely(**_likely(other)) for other in entry.top_logprobs or ()]
        reply.logprobs.append(TokenLogprob(**_likely(entry), top=top))
    if part.done:
        is_cut = part.done_reason == "length"
        reply.finish_reason = FinishReason.LENGTH if is_cut else FinishReason.STOP
        reply.prompt_tokens = part.prompt_eval_count
        reply.completion_tokens = part.eval_count


class OllamaBackend:
    """All models of the server share its connections and its limit of requests."""

    def __init__(self, settings: Settings, **_: object) -> None:
        self._server = OllamaServer(settings)

    def generator(self, name: str) -> "OllamaGenerator":
        return OllamaGenerator(self._server, name)

    def close(self) -> None:
        self._server.close()


class OllamaGenerator(RemoteGenerator):
    """`name` is the model's name at the server, such as `llama3.2:3b`."""

    def __init__(self, server: OllamaServer, name: str) -> None:
        super().__init__(server, OLLAMA.prefix + name)
        self._ollama = server
        self._name = name
        self._window: int | None = None

    @property
    def window_tokens(self) -> int:  # type: ignore[override]  # known at its first use
        """Raises ModelMissing, or Unavailable where the server does not answer."""
        if self._window is None:
            return self._ollama.call(self.window())
        return self._window

    def learn(self, check: Callable[[], None]) -> None:
        if self._window is None:
            self._ollama.call(self.window(), check=check)

    async def window(self) -> int:
        if self._window is None:
            limit = self._ollama.settings.remote_window_tokens
            own = trained_window(await model_info(self._ollama.client, self._name))
            self._window = limit if own is None else min(own, limit)
        return self._window

    async def converse(self, request: Request, reply: Reply) -> AsyncGenerator[str, None]:
        options = sampling_options(request, await self.window())
        resumed = request.resume.text if request.resume is not None else ""
        client = self._ollama.client
        if request.prompt is not None:
            stream = await client.generate(
                self._name, request.prompt + resumed, raw=True, stream=True, options=options,
                **logprob_options(request),
            )  # fmt: skip
            async with aclosing(closable(stream)) as parts:
                async for part in parts:
                    note(part, reply)
                    yield part.response or ""
            return
        answer = await client.chat(
            self._name,
            messages(request.messages, resumed),
            tools=[describe_tool(tool) for tool in request.tools],
            stream=True,
            options=options,
            **logprob_options(request),
        )
        async with aclosing(closable(answer)) as chunks:
            async for chunk in chunks:
                note(chunk, reply)
                reply.tool_calls.extend(calls(chunk.message))
                yield chunk.message.content or ""
