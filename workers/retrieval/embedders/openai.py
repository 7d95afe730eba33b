"""Embedding models of OpenAI-compatible servers (`openai/...`): vLLM, llama.cpp, TEI, OpenAI.

Such a server refuses texts longer than its model reads, but does not report that length, so
`window` is None.
"""

from collections.abc import Callable, Sequence

from shared.config import Settings
from workers.retrieval.embedders.remote import RemoteEmbedder
from workers.servers.openai import OpenAIServer


class OpenAIEmbedder(RemoteEmbedder):
    matryoshka = ("text-embedding-3-",)

    def __init__(self, reference: str, settings: Settings, server: OpenAIServer) -> None:
        super().__init__(reference, settings, server)
        self._openai = server

    async def learn_window(self) -> None:
        return None

    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        # As numbers: not every server knows base64.
        answer = await self._openai.client.embeddings.create(
            input=list(texts), model=self.model, encoding_format="float"
        )
        return [one.embedding for one in sorted(answer.data or (), key=lambda one: one.index)]


def load(name: str, settings: Settings, check: Callable[[], None]) -> OpenAIEmbedder:
    """Raises ConfigurationError if no server is set, and what `RemoteEmbedder.learn` raises."""
    embedder = OpenAIEmbedder(name, settings, OpenAIServer(settings))
    embedder.learn(check)
    return embedder
