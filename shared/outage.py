"""Remembers that a server does not answer, so that not every caller waits to find that out."""

import time
from collections.abc import Callable
from threading import Lock


class Outage:
    """After a failure, one caller in `pause_s` tries again; the others are told not to."""

    def __init__(self, pause_s: float = 1.0, clock: Callable[[], float] = time.monotonic) -> None:
        self._pause_s = pause_s
        self._clock = clock
        self._lock = Lock()
        self._retry_at: float | None = None

    def passes(self) -> bool:
        """Whether the caller may try; one that may reports back with `over` or `begins`."""
        with self._lock:
            if self._retry_at is None:
                return True
            now = self._clock()
            if now < self._retry_at:
                return False
            self._retry_at = now + self._pause_s
            return True

    def begins(self) -> None:
        with self._lock:
            self._retry_at = self._clock() + self._pause_s

    def over(self) -> None:
        self._retry_at = None
