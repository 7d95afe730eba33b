"""What one worker process holds: its settings and its connections, each made at first use.

Built after the fork, never before: connections and models do not survive one.
"""

from functools import cached_property
from typing import TYPE_CHECKING

from shared.config import Settings
from shared.files import Storage, make_storage
from shared.ledger import Ledger, make_ledger

if TYPE_CHECKING:
    # Imported late below: a generation worker of `extractive` needs neither Chroma nor torch.
    from workers.retrieval.embed import Embedders
    from workers.retrieval.store import Store


class Process:
    def __init__(self, settings: Settings, worker_name: str) -> None:
        self.settings = settings
        self.worker_name = worker_name

    @cached_property
    def ledger(self) -> Ledger:
        return make_ledger(self.settings)

    @cached_property
    def storage(self) -> Storage:
        return make_storage(self.settings)

    @cached_property
    def store(self) -> "Store":
        from workers.retrieval.store import Store

        return Store(self.settings)

    @cached_property
    def embedders(self) -> "Embedders":
        from workers.retrieval.embed import Embedders

        return Embedders(self.settings)
