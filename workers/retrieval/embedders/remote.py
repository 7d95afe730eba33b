"""Embedders whose models are on a server: common code of `openai.py` and `ollama.py`.

Texts are sent in batches, several at a time, within the limits of settings. The tokenizer is on the
server, so numbers of tokens are estimates, rather too high. Nothing is retried here; the runner
does that, by the errors of `workers/outbound.py`.
"""

import asyncio
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from typing import ClassVar, Final

import numpy as np

from shared.bounds import plain_letters
from shared.config import Settings
from shared.errors import Permanent
from shared.models.embedding_models import canonical
from workers.models.devices import Vectors, batches_of, unit
from workers.retrieval.embedders.prompts import prompts_of
from workers.servers.server import Server

ASCII_CHARS_A_TOKEN: Final = 3
TOKENS_AROUND_A_TEXT: Final = 2
LANE: Final = 1
PROBE: Final = "a"


class RemoteEmbedder(ABC):
    """A model of a server. The embedder owns the connections, and closes them when it is
    dropped."""

    matryoshka: ClassVar[tuple[str, ...]] = ()
    """Prefixes of the names of models whose vectors can be shortened."""
    tokenizer = None
    spells_out = False
    """Whether the tokenizer takes other scripts apart, as those of models for English do: a Hangul
    syllable, three bytes in UTF-8, has up to three tokens."""

    def __init__(self, reference: str, settings: Settings, server: Server) -> None:
        self.name = reference
        self.model = reference.partition("/")[2]
        self.window: int | None = None
        self.dimension = 0
        self.server = server
        self._settings = settings
        self._prompts = prompts_of(reference, None, settings)
        self._texts_limit = settings.remote_embedding_batch_texts
        self._tokens_limit = settings.remote_embedding_batch_tokens
        self.close = weakref.finalize(self, server.close)

    @abstractmethod
    async def ask(self, texts: Sequence[str]) -> Sequence[Sequence[float]]:
        """The vectors of the texts, in their order. One request."""

    @abstractmethod
    async def learn_window(self) -> int | None:
        """How many tokens of a text the model reads; None if the server does not report it."""

    def learn(self, check: Callable[[], None]) -> None:
        """Ask for the dimension, and whether the server has the model. Raises ModelNotFound,
        Permanent or Unavailable."""

        async def first() -> Sequence[Sequence[float]]:
            self.window = await self.learn_window()
            return await self.ask([PROBE])

        [vector] = self._checked(self.server.call(first(), check=check), 1)
        self.dimension = len(vector)

    def tokens_of(self, text: str) -> int:
        """An estimate of the tokens of a text, rather too high: four characters of English are a
        token, and each character of other scripts, or each of its bytes (`spells_out`)."""
        if not text:
            return 0
        plain = sum(char.isascii() for char in text)
        others = (len(text.encode()) if self.spells_out else len(text)) - plain
        return others + plain // ASCII_CHARS_A_TOKEN + TOKENS_AROUND_A_TEXT

    @property
    def readable(self) -> int | None:
        if self.window is None:
            return None
        return max(1, self.window - self.tokens_of(self._prompts.passage))

    @property
    def passage_prompt(self) -> str:
        return self._prompts.passage

    @property
    def can_shorten(self) -> bool:
        return self.model.startswith(self.matryoshka) or self.name in map(
            canonical, self._settings.embedding_matryoshka_models
        )

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        between()
        prompt = self.tokens_of(self._prompts.query if is_query else self._prompts.passage)
        return [self.tokens_of(text) + prompt for text in texts]

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        return self._overlong(self.sizes(texts, is_query=False, between=between))

    def overlong_queries(
        self, texts: Sequence[str], *, between: Callable[[], None]
    ) -> dict[int, int]:
        return self._overlong(self.sizes(texts, is_query=True, between=between))

    def _overlong(self, sizes: Sequence[int]) -> dict[int, int]:
        if self.window is None:
            return {}
        return {n: size for n, size in enumerate(sizes) if size > self.window}

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, self._prompts.passage, between)

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        return self._encode(texts, self._prompts.query, between)

    def _encode(self, texts: Sequence[str], prompt: str, between: Callable[[], None]) -> Vectors:
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        if not texts:
            return vectors
        between()
        sizes = [self.tokens_of(text) + self.tokens_of(prompt) for text in texts]
        batches = list(batches_of(sizes, lambda: self._tokens_limit, row_limit=self._texts_limit))
        prompted = [prompt + plain_letters(text) for text in texts]
        answers = self.server.call(
            self._ask_all([[prompted[n] for n in batch] for batch in batches]), check=between
        )
        for batch, answer in zip(batches, answers, strict=True):
            vectors[batch] = answer
        return unit(vectors)

    async def _ask_all(self, batches: Sequence[Sequence[str]]) -> list[Vectors]:
        tasks = [asyncio.ensure_future(self._ask_one(batch)) for batch in batches]
        try:
            return await asyncio.gather(*tasks)
        finally:
            for task in tasks:
                task.cancel()

    async def _ask_one(self, batch: Sequence[str]) -> Vectors:
        async with self.server.slots.slot(LANE):
            vectors = self._checked(await self.ask(batch), len(batch))
        if vectors.shape[1] != self.dimension:
            raise Permanent(
                f"{self.server.info} now answers with vectors of {vectors.shape[1]} dimensions for "
                f"{self.name}, which had {self.dimension}: the model behind the name has changed. "
                "Put it back, or make the vectors of the collection anew: `sluice collections "
                "rebuild NAME`."
            )
        return vectors

    def _checked(self, answer: Sequence[Sequence[float]], count: int) -> Vectors:
        if len(answer) != count:
            raise Permanent(
                f"{self.server.info} answered with {len(answer)} vectors for {count} texts of "
                f"{self.name}. Check that the model makes embeddings."
            )
        try:
            with np.errstate(over="ignore"):  # numbers too large for float32 are refused below
                vectors = np.asarray(answer, dtype=np.float32)
        except (TypeError, ValueError):  # rows of different lengths, or not numbers
            vectors = np.empty(0, dtype=np.float32)
        if vectors.ndim != 2 or not vectors.size or not np.isfinite(vectors).all():
            raise Permanent(
                f"{self.server.info} answered with vectors for {self.name} that are empty, of "
                "several lengths, or not finite. Check that the model makes embeddings."
            )
        return vectors
