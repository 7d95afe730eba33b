"""An Ollama server, through the `ollama` client."""

import json
from collections.abc import AsyncGenerator, AsyncIterator, Mapping
from functools import cached_property
from typing import Any, TypeVar, cast

import httpx
import ollama

from shared.addresses import server_options
from shared.config import Settings
from shared.errors import Permanent, Retryable, SluiceError
from shared.models.providers import OLLAMA, OLLAMA_SERVER
from workers.outbound import (
    RemoteServer,
    as_sentence,
    broken_off,
    refused,
    unreachable,
    without_credentials,
)
from workers.servers.server import ModelMissing, Server

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
            if error.status == 400 and "context length" in error.message:
                return Permanent(
                    f"{info} answered 400: {as_sentence(error.message)} A text has more tokens "
                    "than were estimated: divide it (ingestion: a smaller chunk_size of the "
                    "splitter), or choose a model that reads more."
                )
            return refused(info, error.status, error.message, error.retry_after)
        if isinstance(error, httpx.TransportError | ConnectionError):
            why = _why(error, self.settings)
            return broken_off(info, why) if has_begun else unreachable(info, why)
        if isinstance(error, ollama.ResponseError):
            return Retryable(f"{info} reports: {error.error}")
        if isinstance(error, ValueError):
            return broken_off(info, "what came is not of the protocol")
        return None


def missing(info: RemoteServer, model: str) -> ModelMissing:
    return ModelMissing(
        f"{info} does not have the model {model!r}. Get it with `ollama pull {model}` or "
        f"`sluice models pull {OLLAMA.prefix}{model}`, or let models be fetched at their first use "
        "with SLUICE_OLLAMA_PULL=true.",
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


async def model_info(client: ollama.AsyncClient, name: str) -> Mapping[str, Any]:
    """What the file of a model says of it."""
    return (await client.show(name)).modelinfo or {}


def trained_window(info: Mapping[str, Any]) -> int | None:
    """`info` has it under the name of the architecture, such as `llama.context_length`."""
    lengths = [value for key, value in info.items() if key.endswith(".context_length")]
    return lengths[0] if lengths and isinstance(lengths[0], int) else None


def closable(parts: AsyncIterator[P]) -> AsyncGenerator[P, None]:
    """The client's type is an iterator, but it is a generator: closing it drops the stream."""
    return cast(AsyncGenerator[P, None], parts)
