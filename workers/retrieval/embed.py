"""Embedders: their protocol, and the models that a process has loaded.

How to add a provider: CONTRIBUTING.md.
"""

import logging
import random
import time
from collections.abc import Callable, Sequence
from pkgutil import resolve_name
from typing import Final, Protocol, runtime_checkable

from sqlalchemy.exc import SQLAlchemyError
from tokenizers import Tokenizer

from shared.config import Settings
from shared.documents import indexes
from shared.errors import SluiceError
from shared.models.embedding_models import EMBEDDING_PROVIDERS, canonical, provider_name
from shared.models.embedding_models import check as check_reference
from workers.attempts.process import Process
from workers.models.devices import RecentlyUsed, Vectors

log = logging.getLogger(__name__)

MODELS_KEPT = 2
LOOK_S: Final = (2.0, 6.0)
"""Between two looks for models that searches will need: the least and the most, at random, so that
the processes of a worker do not all load a model at once."""


@runtime_checkable
class Embedder(Protocol):
    """A model that turns texts into vectors; for one thread at a time.

    `between` is called between units of work and may raise to stop them. An embedder that asks a
    server raises `Unavailable` if the server does not answer.
    """

    name: str
    """The model reference that it was loaded for."""

    @property
    def dimension(self) -> int: ...

    @property
    def window(self) -> int | None:
        """How many tokens of a text the model reads; None if there is no limit."""

    @property
    def readable(self) -> int | None:
        """How many tokens of a passage the model reads: `window` without the tokens that are added
        to each passage, such as the prompt."""

    @property
    def tokenizer(self) -> Tokenizer | None:
        """The tokenizer, without truncation and padding, for splitting texts; None if the model has
        none that maps tokens to characters."""

    @property
    def passage_prompt(self) -> str:
        """What is put before each passage, or "". If it changes, the vectors of passages change."""

    @property
    def can_shorten(self) -> bool:
        """Whether the first numbers of a vector can be used as a shorter vector (Matryoshka)."""

    def sizes(
        self, texts: Sequence[str], *, is_query: bool, between: Callable[[], None]
    ) -> list[int]:
        """The number of tokens of each text, with those that the model adds, also beyond
        `window`."""

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        """Index -> number of tokens, for the passages that are longer than `window`."""

    def overlong_queries(
        self, texts: Sequence[str], *, between: Callable[[], None]
    ) -> dict[int, int]:
        """The same for queries."""

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        """Passages -> vectors of length 1, of the shape (len(texts), dimension), in float32.

        The vector of a text does not depend on the other texts. Texts are cut at `window`.
        """

    def encode_queries(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        """Queries -> vectors as in `encode`; models may treat queries and passages differently."""


LoadEmbedder = Callable[[str, Settings, Callable[[], None]], Embedder]
"""Model reference, settings, check -> the embedder. Files that are not on this machine are fetched;
meanwhile `check` is called often, and may raise. Raises `Permanent` if the model cannot be
loaded."""

EMBEDDERS: dict[str, str] = {name: provider.load for name, provider in EMBEDDING_PROVIDERS.items()}
"""Providers of embedding models -> a `LoadEmbedder`, as `module:name`."""


def provider_of(reference: str) -> str:
    """The provider before the first slash; without one, the reference is a name on the Hugging Face
    hub, or a path."""
    return provider_name(reference, EMBEDDERS)


def import_embedder(reference: str) -> LoadEmbedder:
    """The function that loads an embedder. The parent of worker processes calls this before it
    forks, so that they share the memory of the libraries."""
    load: LoadEmbedder = resolve_name(EMBEDDERS[provider_of(reference)])
    return load


class Embedders:
    """The models of a process: loaded at first use, the least recently used dropped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: RecentlyUsed[str, Embedder] = RecentlyUsed(MODELS_KEPT)

    def get(self, name: str | None = None, *, check: Callable[[], None] = lambda: None) -> Embedder:
        """The embedder of a model reference, by default that of the settings. Raises InvalidInput
        if no server, key or package is set up for it, and what its `LoadEmbedder` raises."""
        name = canonical(name or self._settings.embedding_model)
        embedder = self._kept.get(name)
        if embedder is None:
            check_reference(name, self._settings)
            embedder = import_embedder(name)(name, self._settings, check)
            self._kept.add(name, embedder)
        return embedder

    def load_ahead(self, name: str) -> None:
        """Load a model if there is room for it. Raises what `get` raises."""
        if len(self._kept) < MODELS_KEPT:
            self.get(name)


class _NextLook:
    def __init__(self, _process: Process) -> None:
        self.at = 0.0


def load_coming(process: Process) -> None:
    """Load the models of vector indexes that are being built, so that no search waits for them
    after the switch; called after searches are answered. Failures are logged: who needs the model
    gets the error."""
    look = process.held(_NextLook)
    if time.monotonic() < look.at:
        return
    look.at = time.monotonic() + random.uniform(*LOOK_S)
    try:
        with process.ledger.read_single() as session:
            names = indexes.building_models(session, limit=MODELS_KEPT)
        for name in names:
            embedders_of(process).load_ahead(name)
    except (SluiceError, SQLAlchemyError) as error:
        log.info("no model was loaded ahead: %s", error)


def embedders_of(process: Process) -> Embedders:
    return process.held(make_embedders)


def make_embedders(process: Process) -> Embedders:
    return Embedders(process.settings)
