"""Models of an Ollama server (`ollama/...`), through the `ollama` client.

Messages go to `/api/chat`, a bare prompt to `/api/generate` as it is. An interrupted text is sent
as the last message of the assistant, which Ollama continues. The context window is the model's own,
up to SLUICE_REMOTE_WINDOW_TOKENS. It is sent with every request: Ollama's default is smaller, and
Ollama silently drops what does not fit.
"""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing
from functools import cached_property
from typing import Any, TypeVar, cast
from uuid import uuid4

import httpx
import ollama

from shared.addresses import server_options
from shared.bounds import storable_text
from shared.config import Settings
from shared.errors import Retryable, SluiceError
from shared.kinds.chat import Likely, TokenLogprob
from shared.providers import OLLAMA, OLLAMA_SERVER
from workers.generation.backends.interface import (
    FinishReason,
    Message,
    ModelMissing,
    Request,
    Role,
    Tool,
    ToolCall,
)
from workers.generation.backends.remote import RemoteGenerator, Reply, Server, tokens_left
from workers.outbound import RemoteServer, broken_off, refused, unreachable, without_credentials

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


P = TypeVar("P")


class _StatusError(Exception):
    """An answer with a status of 300 or more. The client's own error would lose the headers."""

    def __init__(self, response: httpx.Response) -> None:
        super().__init__(response.text)
        self.status = response.status_code
        self.retry_after = response.headers.get("retry-after")
        self.message = str(_field(response.content, "error") or response.text)
        self.model = _field(response.request.content, "model")


class OllamaServer(Server):
    def __init__(self, settings: Settings) -> None:
        self.settings = settings
        setting = OLLAMA_SERVER.setting
        info = RemoteServer(
            name=OLLAMA_SERVER.title,
            url=without_credentials(settings.ollama_url, setting),
            setting=setting,
            remedy="Start it with `ollama serve`, or set the URL of one that runs.",
            key_setting=OLLAMA_SERVER.key_setting,
            retry_after_limit_s=settings.remote_retry_after_limit_s,
        )
        super().__init__(info, parallel_requests=settings.ollama_parallel_requests)

    @cached_property
    def client(self) -> ollama.AsyncClient:
        """For callers on the loop."""
        settings = self.settings
        return ollama.AsyncClient(
            host=settings.ollama_url,
            timeout=httpx.Timeout(
                settings.remote_read_timeout_s, connect=settings.connect_timeout_s, pool=None
            ),
            event_hooks={"response": [_refuse]},
            **server_options(settings.ollama_url),
        )

    async def disconnect(self) -> None:
        if "client" in self.__dict__:
            await self.client.close()  # type: ignore[no-untyped-call]  # the client's omission

    def translate_error(self, error: Exception, *, has_begun: bool) -> SluiceError | None:
        info = self.info
        if isinstance(error, _StatusError):
            if error.status == 404 and isinstance(error.model, str):
                return missing(info, error.model)
            return refused(info, error.status, error.message, error.retry_after)
        if isinstance(error, httpx.TransportError | ConnectionError):
            why = _why(error, self.settings)
            return broken_off(info, why) if has_begun else unreachable(info, why)
        if isinstance(error, ollama.ResponseError):
            return Retryable(f"{info} reports: {error.error}")
        if isinstance(error, ValueError):
            return broken_off(info, "what came is not of the protocol")
        return None


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
            own = await _trained_window(self._ollama.client, self._name)
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


def missing(info: RemoteServer, model: str) -> ModelMissing:
    return ModelMissing(
        f"{info} does not have the model {model!r}. Get it with `ollama pull {model}` or "
        f"`sluice models pull {OLLAMA.prefix}{model}`, or let Sluice do so by itself with "
        "SLUICE_OLLAMA_PULL=true.",
        reference=OLLAMA.prefix + model,
    )


async def _refuse(response: httpx.Response) -> None:
    if response.status_code >= 300:
        await response.aread()
        raise _StatusError(response)


def _field(body: bytes, name: str) -> Any:
    try:
        value = json.loads(body)
    except ValueError:
        return None
    return value.get(name) if isinstance(value, dict) else None


def _why(error: Exception, settings: Settings) -> str:
    if isinstance(error, httpx.ReadTimeout):
        return (
            f"nothing came for {settings.remote_read_timeout_s:g} s (SLUICE_REMOTE_READ_TIMEOUT_S)"
        )
    return f"{type(error).__name__} {error}".strip()


async def _trained_window(client: ollama.AsyncClient, name: str) -> int | None:
    """`model_info` has it under the name of the architecture, such as `llama.context_length`."""
    info = (await client.show(name)).modelinfo or {}
    lengths = [value for key, value in info.items() if key.endswith(".context_length")]
    return lengths[0] if lengths and isinstance(lengths[0], int) else None


def closable(parts: AsyncIterator[P]) -> AsyncGenerator[P, None]:
    """The client's type is an iterator, but it is a generator: closing it drops the stream."""
    return cast(AsyncGenerator[P, None], parts)
