"""What one worker process holds: its settings, and connections and models, made at first use.

Built after the fork, never before: connections and models do not survive one. Threads share it.
"""

from collections.abc import Callable, Sequence
from functools import cached_property, partial
from threading import RLock
from typing import Any, TypeVar, cast

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
        self._closes: list[Callable[[], object]] = []
        self._lock = RLock()

    @cached_property
    def ledger(self) -> Ledger:
        return make_ledger(self.settings)

    @cached_property
    def storage(self) -> Storage:
        return make_storage(self.settings)

    def held(self, make: Callable[["Process"], T], close: Callable[[T], object] | None = None) -> T:
        """What `make` makes of this process, once, and kept for its life; then `close` ends it.

        So a process has what its steps use, and imports no more: a worker of `extractive` neither
        Chroma nor torch.
        """
        with self._lock:
            if make not in self._held:
                value = make(self)
                self._held[make] = value
                if close is not None:
                    self._closes.append(partial(close, value))
            return cast(T, self._held[make])

    def close(self) -> None:
        """End what it has opened, the latest first, and its connections."""
        with self._lock:
            closes, self._closes = self._closes, []
            self._held.clear()
        for close in reversed(closes):
            close()
        if "ledger" in self.__dict__:
            self.ledger.close()

    def hold(self, make: Callable[["Process"], T], value: T) -> None:
        """Let `held` give this value, which another process made."""
        with self._lock:
            self._held[make] = value
