"""Both remote back ends in front of their test servers, for tests that are the same for both."""

from collections.abc import Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from typing import Any

from shared.config import Settings
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama
from tests.wire.openai_server import served_openai
from workers.generation.backends.ollama import OllamaGenerator
from workers.generation.backends.openai import OpenAIGenerator
from workers.generation.backends.remote import RemoteGenerator
from workers.servers.ollama import OllamaServer
from workers.servers.openai import OpenAIServer

MODEL = "tiny"
QUICK: dict[str, Any] = {
    "connect_timeout_s": 10,
    "remote_read_timeout_s": 60,
    "step_heartbeat_s": 0.02,
}


@dataclass(frozen=True, kw_only=True)
class Remote:
    """A back end, the server program behind it, and settings that lead there."""

    provider: str
    wire: Wire
    settings: Settings

    @contextmanager
    def generator(self, model: str = MODEL, /, **changes: Any) -> Iterator[RemoteGenerator]:
        settings = self.settings.model_copy(update=changes)
        if self.provider == "ollama":
            with closing(OllamaServer(settings)) as ollama:
                yield OllamaGenerator(ollama, model)
        else:
            with closing(OpenAIServer(settings)) as openai:
                yield OpenAIGenerator(openai, model)


@contextmanager
def remote(provider: str) -> Iterator[Remote]:
    with (served_ollama if provider == "ollama" else served_openai)() as wire:
        key = "ollama_url" if provider == "ollama" else "openai_base_url"
        address: dict[str, Any] = {key: wire.url}
        settings = Settings(_env_file=None, **QUICK, **address)
        yield Remote(provider=provider, wire=wire, settings=settings)
