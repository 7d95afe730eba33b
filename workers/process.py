"""What one worker process holds: its settings and its connections, each made at first use.

Built after the fork, never before: connections and models do not survive one. Threads share it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from typing import TYPE_CHECKING

from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.files import Storage, make_storage
from workers.attempts.heartbeat import Heartbeats

if TYPE_CHECKING:
    # Imported late below: a generation worker of `extractive` needs neither Chroma nor torch.
    from workers.attempts.batches import BatchSizes
    from workers.generation.answers.structured import SchemaChecker
    from workers.generation.backends.interface import Generators
    from workers.generation.transcripts import TranscriptWriter
    from workers.models.cache import Models
    from workers.retrieval.embed import Embedders
    from workers.retrieval.store import VectorStore


class Process:
    """`routes` are the models whose steps it takes; `on_fatal` ends it where it cannot go on."""

    def __init__(
        self,
        settings: Settings,
        worker_name: str,
        *,
        routes: Sequence[str] = (),
        on_fatal: Callable[[], None] = lambda: None,
    ) -> None:
        self.settings = settings
        self.worker_name = worker_name
        self.routes = tuple(routes)
        self._on_fatal = on_fatal

    @cached_property
    def ledger(self) -> Ledger:
        return make_ledger(self.settings)

    @cached_property
    def heartbeats(self) -> Heartbeats:
        return Heartbeats(self.settings, self.ledger)

    @cached_property
    def storage(self) -> Storage:
        return make_storage(self.settings)

    @cached_property
    def store(self) -> "VectorStore":
        from workers.retrieval.store import make_store

        return make_store(self.settings)

    @cached_property
    def embedders(self) -> "Embedders":
        from workers.retrieval.embed import Embedders

        return Embedders(self.settings)

    @cached_property
    def hf_models(self) -> "Models":
        from workers.models.cache import Models

        return Models(self.settings)

    @cached_property
    def batch_sizes(self) -> "BatchSizes":
        from workers.attempts.batches import BatchSizes

        return BatchSizes(self.settings.hf_batch_steps)

    @cached_property
    def generators(self) -> "Generators":
        from workers.generation.backends.interface import Generators

        return Generators(self.settings, on_fatal=self._on_fatal)

    @cached_property
    def schemas(self) -> "SchemaChecker":
        from workers.generation.answers.structured import SchemaChecker

        return SchemaChecker(limit_s=self.settings.schema_check_s)

    @cached_property
    def transcript_writer(self) -> "TranscriptWriter":
        from workers.generation.transcripts import TranscriptWriter

        return TranscriptWriter(self.settings, self.ledger)
