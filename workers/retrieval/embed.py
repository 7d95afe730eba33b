"""What an embedder is, which there are, and those that a process holds.

How to add one: CONTRIBUTING.md.
"""

from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Protocol, runtime_checkable

from tokenizers import Tokenizer

from shared.config import Settings
from workers.attempts.process import Process
from workers.models.devices import Kept, Vectors

MODELS_KEPT = 2


@runtime_checkable
class Embedder(Protocol):
    """A model that makes vectors of texts; for one thread at a time.

    `between` is called between units of work, and raises to stop. What has to be sent to a server
    raises `Unavailable` where that does not answer.
    """

    name: str
    """The model reference that it was made for."""

    @property
    def dimension(self) -> int: ...

    @property
    def window(self) -> int | None:
        """How many tokens of a text the model reads; None where it reads all."""

    @property
    def readable(self) -> int | None:
        """How many tokens of a passage itself are read: `window` less those that the model adds,
        its prompt among them."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """Without truncation or padding; None where there is none that tells what it makes of which
        characters. Splitting takes it."""

    @property
    def passage_prompt(self) -> str:
        """What stands before each passage; empty where there is nothing. With another one, passages
        have other vectors."""

    @property
    def can_shorten(self) -> bool:
        """Whether the beginnings of its vectors are vectors themselves (Matryoshka)."""

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        """How many tokens each text has, with what the model adds, also beyond `window`."""

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        """The tokens of those passages that `window` cuts, with what the model adds, by index."""

    def overlong_queries(
        self, texts: Sequence[str], *, between: Callable[[], None]
    ) -> dict[int, int]:
        """The same of queries."""

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        """Passages -> vectors of length 1, of the shape (len(texts), dimension), in float32.

        A text has its vector whatever it is encoded with. Texts beyond `window` are cut.
        """

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        """Queries -> vectors as of `encode`, for models that tell queries from passages."""


LoadEmbedder = Callable[[str, Settings, Callable[[], None]], Embedder]
"""Model reference, settings, check -> the embedder. What is not on this machine is fetched; `check`
is called all the while, and may raise. Raises `Permanent` where the model cannot be loaded."""

HUGGING_FACE = "hf"
EMBEDDERS: dict[str, str] = {
    HUGGING_FACE: "workers.retrieval.local_embedder:load",
}
"""Providers of embedding models -> a `LoadEmbedder`, as `module:name`."""


def provider_of(reference: str) -> str:
    """What stands before the first slash, if that is a provider; else the model is one of Hugging
    Face, by the name that it has there, or a path."""
    provider, slash, _ = reference.partition("/")
    return provider if slash and provider in EMBEDDERS else HUGGING_FACE


def import_embedder(reference: str) -> LoadEmbedder:
    """Imported with its libraries by the parent of workers, so that they share them."""
    load: LoadEmbedder = resolve_name(EMBEDDERS[provider_of(reference)])
    return load


class Embedders:
    """The models of a process: loaded at first use, the least recently used dropped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: Kept[str, Embedder] = Kept(MODELS_KEPT)

    def get(self, name: str | None = None, *, check: Callable[[], None] = lambda: None) -> Embedder:
        """Raises what its `LoadEmbedder` raises."""
        name = name or self._settings.embedding_model
        embedder = self._kept.get(name)
        if embedder is None:
            embedder = import_embedder(name)(name, self._settings, check)
            self._kept.add(name, embedder)
        return embedder


def embedders_of(process: Process) -> Embedders:
    return process.held(make_embedders)


def make_embedders(process: Process) -> Embedders:
    return Embedders(process.settings)
