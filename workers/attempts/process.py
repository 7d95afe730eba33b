"""What a worker process shares between its steps: settings, connections, models.

It is made after the fork, because connections and models do not survive one. Threads share it.
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
    """The shared objects of a process. `routes` are the models whose steps it takes; `on_fatal`
    ends the process if it cannot go on."""

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
        """The object that `make` makes for this process: made at the first call, and closed by
        `close` at the end of the process.

        So a process imports and opens only what its steps use: a worker of `extractive` imports
        neither Chroma nor torch.
        """
        with self._lock:
            if make not in self._held:
                value = make(self)
                self._held[make] = value
                if close is not None:
                    self._closes.append(partial(close, value))
            return cast(T, self._held[make])

    def close(self) -> None:
        """Close the objects of `held`, the latest first, and the connections."""
        with self._lock:
            closes, self._closes = self._closes, []
            self._held.clear()
        for close in reversed(closes):
            close()
        if "ledger" in self.__dict__:
            self.ledger.close()

    def hold(self, make: Callable[["Process"], T], value: T) -> None:
        """Let `held` return this value, which belongs to another process object."""
        with self._lock:
            self._held[make] = value
