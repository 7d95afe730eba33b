"""Model references -> generators: made at first use, kept for the life of the process."""

import threading
from collections.abc import Callable
from typing import TypeVar, cast

from shared.config import EXTRACTIVE, Settings
from shared.errors import Permanent
from shared.kinds.generation import PROVIDERS
from workers.generation.backends.interface import Generator
from workers.generation.backends.remote.server import Server

ServerT = TypeVar("ServerT", bound=Server)


class Generators:
    """Thread-safe. `on_fatal` is called where a device is broken, its requests handed back."""

    def __init__(self, settings: Settings, *, on_fatal: Callable[[], None]) -> None:
        self._settings = settings
        self._on_fatal = on_fatal
        self._lock = threading.Lock()
        self._made: dict[str, Generator] = {}
        self._servers: dict[str, Server] = {}

    def get(self, reference: str) -> Generator:
        """Raises ConfigurationError or Permanent where there can be no such generator."""
        with self._lock:
            if reference not in self._made:
                self._made[reference] = self._make(reference)
            return self._made[reference]

    def prepare(self, model: str) -> None:
        """Load the model, if it is one that this process has to hold."""
        if model.startswith("hf/"):
            self.get(model)

    def close(self) -> None:
        with self._lock:
            for generator in self._made.values():
                generator.close()
            for server in self._servers.values():
                server.close()
            self._made.clear()
            self._servers.clear()

    def _make(self, reference: str) -> Generator:
        provider, _, name = reference.partition("/")
        # Imported late: torch takes seconds, and a worker of remote models needs none.
        if provider == "hf":
            from workers.generation.backends.rolling.generator import make_rolling

            return make_rolling(name, self._settings, self._on_fatal)
        if provider == "ollama":
            from workers.generation.backends.remote.ollama import OllamaGenerator, OllamaServer

            return OllamaGenerator(self._server(provider, OllamaServer), name)
        if provider == "openai":
            from workers.generation.backends.remote.openai import OpenAIGenerator, OpenAIServer

            return OpenAIGenerator(self._server(provider, OpenAIServer), name)
        raise Permanent(
            f"The model {reference!r} cannot generate text. Name one of {', '.join(PROVIDERS)}, as "
            f"`ollama/llama3.2`; {EXTRACTIVE} answers `rag` jobs only."
        )

    def _server(self, provider: str, make: Callable[[Settings], ServerT]) -> ServerT:
        """All models of a server share its connections and its limit."""
        if provider not in self._servers:
            self._servers[provider] = make(self._settings)
        return cast(ServerT, self._servers[provider])
