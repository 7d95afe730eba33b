"""What one worker process holds: its settings, and connections and models, made at first use.

Built after the fork, never before: connections and models do not survive one. Threads share it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property
from threading import RLock
from typing import Any, TypeVar

from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.files import Storage, make_storage

T = TypeVar("T")


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
        self.on_fatal = on_fatal
        self._held: dict[Any, Any] = {}
        self._lock = RLock()

    @cached_property
    def ledger(self) -> Ledger:
        return make_ledger(self.settings)

    @cached_property
    def storage(self) -> Storage:
        return make_storage(self.settings)

    def held(self, make: Callable[["Process"], T]) -> T:
        """What `make` makes of this process, once, and kept for its life.

        So a process has what its steps use, and imports no more: a worker of `extractive` neither
        Chroma nor torch.
        """
        with self._lock:
            if make not in self._held:
                self._held[make] = make(self)
            value: T = self._held[make]
            return value

    def close(self) -> None:
        """End what it has opened: whatever it holds that can be closed, and its connections."""
        with self._lock:
            held = list(self._held.values())
            self._held.clear()
        for value in reversed(held):
            close = getattr(value, "close", None)
            if callable(close):
                close()
        if "ledger" in self.__dict__:
            self.ledger.close()

    def hold(self, make: Callable[["Process"], T], value: T) -> None:
        """Let `held` give this value, which another process made."""
        with self._lock:
            self._held[make] = value
