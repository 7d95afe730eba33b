"""An OpenAI-compatible server: vLLM, llama.cpp, TGI, TEI, OpenAI itself; through the `openai`
client."""

from functools import cached_property
from typing import Final

import openai

from shared.addresses import server_options
from shared.config import Settings
from shared.errors import ConfigurationError, Permanent, Retryable, SluiceError
from shared.models.providers import OPENAI_HOST, OPENAI_SERVER
from workers.outbound import RemoteServer, broken_off, refused, unreachable, without_credentials
from workers.servers.server import Server

_NO_KEY: Final = "none"  # Local servers need no key, but the client insists on one.


class OpenAIServer(Server):
    def __init__(self, settings: Settings) -> None:
        if not settings.openai_base_url:
            raise ConfigurationError(
                f"{OPENAI_SERVER.setting} is not set. Set it to the base URL of an "
                "OpenAI-compatible server, as http://127.0.0.1:8080/v1, or "
                f"https://{OPENAI_HOST}/v1 with {OPENAI_SERVER.key_setting}."
            )
        self.settings = settings
        self.base_url = settings.openai_base_url
        url = without_credentials(self.base_url, OPENAI_SERVER.setting)
        info = RemoteServer(
            name=OPENAI_SERVER.title,
            url=url,
            setting=OPENAI_SERVER.setting,
            remedy=f"Check it with `curl {url.rstrip('/')}/models`.",
            key_setting=OPENAI_SERVER.key_setting,
            retry_after_limit_s=settings.remote_retry_after_limit_s,
        )
        super().__init__(info, parallel_requests=settings.openai_parallel_requests)

    @cached_property
    def client(self) -> openai.AsyncOpenAI:
        """For callers on the loop."""
        settings, key = self.settings, self.settings.openai_api_key
        return openai.AsyncOpenAI(
            api_key=key.get_secret_value() if key else _NO_KEY,
            base_url=self.base_url,
            timeout=openai.Timeout(
                settings.remote_read_timeout_s, connect=settings.connect_timeout_s, pool=None
            ),
            max_retries=0,
            http_client=openai.DefaultAsyncHttpxClient(**server_options(self.base_url)),
        )

    async def disconnect(self) -> None:
        if "client" in self.__dict__:
            await self.client.close()

    def translate_error(self, error: Exception, *, has_begun: bool) -> SluiceError | None:
        info = self.info
        if isinstance(error, openai.APIStatusError):
            return _refused(info, error)
        if isinstance(error, openai.APIConnectionError):
            why = self._why(error)
            return broken_off(info, why) if has_begun else unreachable(info, why)
        if isinstance(error, openai.APIError):
            return Retryable(f"{info} reports: {error.message}")
        if isinstance(error, ValueError):
            return broken_off(info, "what came is not of the protocol")
        return None

    def _why(self, error: openai.APIConnectionError) -> str:
        if isinstance(error, openai.APITimeoutError):
            limit = self.settings.remote_read_timeout_s
            return f"nothing came for {limit:g} s (SLUICE_REMOTE_READ_TIMEOUT_S)"
        return str(error.__cause__ or error)


def _refused(info: RemoteServer, error: openai.APIStatusError) -> SluiceError:
    body = error.body if isinstance(error.body, dict) else {}
    message = str(body.get("message") or error.message)
    if error.code == "insufficient_quota":
        # Comes as a 429, but waiting does not help.
        return Permanent(f"{info}: {message}")
    if error.status_code == 404:
        return Permanent(
            f"{info} answered 404: {message} Check the model's name against "
            f"`curl {info.url.rstrip('/')}/models`, and that the URL ends in /v1."
        )
    return refused(info, error.status_code, message, error.response.headers.get("retry-after"))
