"""Embedding models of an Ollama server (`ollama/...`).

The window is the model's own, up to SLUICE_REMOTE_WINDOW_TOKENS. By default Ollama silently cuts
longer texts; it is told not to, except for texts that `overlong` has reported.
"""

from collections.abc import Callable, Sequence

from shared.config import Settings
from workers.retrieval.embedders.remote import RemoteEmbedder
from workers.servers.ollama import OllamaServer, model_info, trained_window


class OllamaEmbedder(RemoteEmbedder):
    def __init__(self, reference: str, settings: Settings, server: OllamaServer) -> None:
        super().__init__(reference, settings, server)
        self._ollama = server

    async def learn_window(self) -> int:
        limit = self._ollama.settings.remote_window_tokens
        info = await model_info(self._ollama.client, self.model)
        # WordPiece, which most models for English have.
        self.spells_out = info.get("tokenizer.ggml.model") == "bert"
        own = trained_window(info)
        return limit if own is None else min(own, limit)

    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        window = self.window or self._ollama.settings.remote_window_tokens
        is_long = [self.tokens_of(text) > window for text in texts]
        vectors: list[Sequence[float]] = [()] * len(texts)
        for truncate in sorted(set(is_long)):
            chosen = [n for n in range(len(texts)) if is_long[n] == truncate]
            answer = await self._ollama.client.embed(
                self.model,
                [texts[n] for n in chosen],
                truncate=truncate,
                options={"num_ctx": window},
            )
            for n, vector in zip(chosen, answer.embeddings, strict=False):
                vectors[n] = vector
        return vectors


def load(name: str, settings: Settings, check: Callable[[], None]) -> OllamaEmbedder:
    """Raises what `RemoteEmbedder.learn` raises."""
    embedder = OllamaEmbedder(name, settings, OllamaServer(settings))
    embedder.learn(check)
    return embedder
