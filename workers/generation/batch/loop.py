"""The thread that a model runs in, from the first request to the last.

Requests come in from any thread. The loop sleeps while there are none; it ends when it is closed
or when the device is broken, and hands back what is under way then, so that others can serve it.
"""

import logging
import threading
from collections.abc import Callable

import torch

from shared.errors import Retryable
from workers.generation.batch.rows import Row
from workers.generation.batch.scheduler import Scheduler

log = logging.getLogger(__name__)


class Loop:
    """`on_fatal` is called from the loop's thread, after everything was handed back."""

    def __init__(self, scheduler: Scheduler, on_fatal: Callable[[], None]) -> None:
        self._scheduler = scheduler
        self._on_fatal = on_fatal
        self._inbox: list[Row] = []
        self._is_closed = False
        self._changed = threading.Condition()
        self._thread = threading.Thread(target=self._run, name="generation", daemon=True)
        self._thread.start()

    def submit(self, row: Row) -> None:
        with self._changed:
            if self._is_closed:
                raise Retryable("This generation worker is ending; another one takes over.")
            self._inbox.append(row)
            self._changed.notify()

    def close(self) -> None:
        """End after the current turn. What is under way fails with a Retryable."""
        with self._changed:
            self._is_closed = True
            self._changed.notify()
        if threading.current_thread() is not self._thread:
            self._thread.join()

    def _run(self) -> None:
        cause: Exception | None = None
        try:
            with torch.inference_mode():
                while self._take():
                    self._scheduler.turn()
        except Exception as error:
            log.exception("the device or the engine is broken; handing all requests back")
            cause = error
        with self._changed:
            self._is_closed = True
            rows = [*self._scheduler.rows, *self._inbox]
        reason = "is ending" if cause is None else f"broke down ({cause})"
        for row in rows:
            row.fail(Retryable(f"This generation worker {reason}; another one takes over."), cause)
        if cause is not None:
            self._on_fatal()

    def _take(self) -> bool:
        """Hand over what was submitted, once there is anything to do. False when it is over."""
        with self._changed:
            while not (self._is_closed or self._inbox or self._scheduler.rows):
                self._changed.wait()
            self._scheduler.take(self._inbox)
            self._inbox.clear()
            return not self._is_closed
