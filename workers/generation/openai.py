"""Models of OpenAI-compatible servers (`openai/...`): vLLM, llama.cpp, TGI, OpenAI itself.

Messages go to the endpoint `chat/completions`, a bare prompt to `completions`. How an interrupted
text is gone on with, SLUICE_OPENAI_RESUME says: with `prefill` it goes back as the beginning of the
answer (vLLM, llama.cpp and TGI continue it exactly), with `instruct` the model is told to go on
(all that OpenAI itself offers). Not every server tells its token counts in a stream: where they are
missing, a completion's counts are estimates (`estimate.py`).
"""

from collections.abc import AsyncGenerator
from functools import cached_property
from typing import Final
from urllib.parse import urlsplit

import openai

from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Retryable, SluiceError
from workers.generation.engine import Request
from workers.generation.remote import openai_wire as wire
from workers.generation.remote.generator import RemoteGenerator, Reply
from workers.generation.remote.refusals import (
    Place,
    broken_off,
    is_loopback,
    refused,
    shown,
    unreachable,
)
from workers.generation.remote.seam import Seam
from workers.generation.remote.server import Server

SETTING: Final = "SLUICE_OPENAI_BASE_URL"
KEY_SETTING: Final = "SLUICE_OPENAI_API_KEY"
PROVIDER: Final = "openai/"
OPENAI_HOST: Final = "api.openai.com"

_NO_KEY: Final = "none"  # Local servers need no key, but the client insists on one.


class OpenAIServer(Server):
    def __init__(self, settings: Settings) -> None:
        if not settings.openai_base_url:
            raise ConfigurationError(
                f"{SETTING} is not set. Set it to the base URL of an OpenAI-compatible server, as "
                f"http://127.0.0.1:8080/v1, or https://{OPENAI_HOST}/v1 with {KEY_SETTING}."
            )
        self.settings = settings
        self.base_url = settings.openai_base_url
        url = shown(self.base_url, SETTING)
        place = Place(
            name="The OpenAI-compatible server",
            url=url,
            setting=SETTING,
            remedy=f"Check it with `curl {url.rstrip('/')}/models`.",
            key_setting=KEY_SETTING,
            retry_after_limit_s=settings.remote_retry_after_limit_s,
        )
        super().__init__(place, parallel_requests=settings.openai_parallel_requests)

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        """For use on the loop."""
        settings, key = self.settings, self.settings.openai_api_key
        return openai.AsyncOpenAI(
            api_key=key.get_secret_value() if key else _NO_KEY,
            base_url=self.base_url,
            timeout=openai.Timeout(
                settings.remote_read_timeout_s, connect=settings.connect_timeout_s, pool=None
            ),
            max_retries=0,
            # The operator named this server; where it points to is not what he named.
            http_client=openai.DefaultAsyncHttpxClient(
                trust_env=not is_loopback(self.base_url), follow_redirects=False
            ),
        )

    async def disconnect(self) -> None:
        if "client" in self.__dict__:
            await self.client.close()

    def translated(self, error: Exception, *, has_begun: bool) -> SluiceError | None:
        place = self.place
        if isinstance(error, openai.APIStatusError):
            return _refused(place, error)
        if isinstance(error, openai.APIConnectionError):
            why = self._why(error)
            return broken_off(place, why) if has_begun else unreachable(place, why)
        if isinstance(error, openai.APIError):
            return Retryable(f"{place} reports: {error.message}")
        if isinstance(error, ValueError):
            return broken_off(place, "what came is not of the protocol")
        return None

    def _why(self, error: openai.APIConnectionError) -> str:
        if isinstance(error, openai.APITimeoutError):
            limit = self.settings.remote_read_timeout_s
            return f"nothing came for {limit:g} s (SLUICE_REMOTE_READ_TIMEOUT_S)"
        return str(error.__cause__ or error)


class OpenAIGenerator(RemoteGenerator):
    """`name` is the model's name at the server."""

    def __init__(self, server: OpenAIServer, name: str) -> None:
        super().__init__(server, PROVIDER + name)
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
                extra_body=wire.extra(request),
                **wire.sampling(request, limit="max_tokens"),
            )
            async with texts:
                async for text in texts:
                    reply.has_begun = True
                    yield wire.text_of(text, reply)
            return
        mode = self._openai.settings.openai_resume
        chunks = await self._openai.client.chat.completions.create(
            model=self._name,
            messages=wire.messages(request.messages, resumed, mode),
            tools=wire.tools(request.tools),
            stream=True,
            stream_options={"include_usage": True},
            extra_body=wire.extra(request, is_prefill=bool(resumed) and mode == "prefill"),
            **wire.sampling(request, limit=self._limit_name),
        )
        calls = wire.Calls()
        seam = Seam(resumed if mode == "instruct" else "")
        async with chunks:
            async for chunk in chunks:
                reply.has_begun = True
                yield seam.feed(wire.piece_of(chunk, reply, calls))
        yield seam.flush()
        reply.tool_calls.extend(calls.assembled())

    @property
    def _limit_name(self) -> str:
        """OpenAI's newer models refuse the name that all the others know."""
        is_openai = urlsplit(self._openai.base_url).hostname == OPENAI_HOST
        return "max_completion_tokens" if is_openai else "max_tokens"


def _refused(place: Place, error: openai.APIStatusError) -> SluiceError:
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    if error.code == "insufficient_quota":
        # A 429 that no waiting helps.
        return Permanent(f"{place}: {message}")
    if error.status_code == 404:
        return Permanent(
            f"{place} answered 404: {message} Check the model's name against "
            f"`curl {place.url.rstrip('/')}/models`, and that the URL ends in /v1."
        )
    return refused(place, error.status_code, message, error.response.headers.get("retry-after"))
