"""One round of a part of the sweeper: so many rows, so many seconds, and each row for itself."""

import logging
import threading
import time
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any
from uuid import UUID

from shared.database.sqlstates import first_line, is_outage, trouble_of
from shared.database.transaction import Transaction
from shared.jobs import sweeps
from workers.attempts.process import Process
from workers.attempts.runner import Handlers

log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Item:
    """A row that a part has to do with; `kind` and `id` are what people look for it by."""

    kind: str
    id: Any
    job_id: UUID | None = None

    @property
    def label(self) -> str:
        return f"{self.kind} {self.id}"


class Round:
    """What a part works with. It ends when its rows or seconds are used up, or at a stop."""

    def __init__(self, process: Process, handlers: Handlers, part: str, stop: threading.Event):
        self.process = process
        self.handlers = handlers
        self.part = part
        self.limit_rows = process.settings.sweep_limit_rows
        self._ends = time.monotonic() + process.settings.sweep_limit_s
        self._stop = stop

    @property
    def goes_on(self) -> bool:
        return not self._stop.is_set() and time.monotonic() < self._ends

    def handle_all(
        self, items: Iterable[Item], handle: Callable[[Transaction, Item], object]
    ) -> int:
        """Handle each in a transaction of its own; returns how many went well.

        One that cannot be handled is noted, and left alone for a while. Raises what an outage of
        the database raises: that is no fault of a row.
        """
        well, some_failed_before = 0, None
        for item in items:
            if not self.goes_on:
                break
            if some_failed_before is None:
                with self.process.ledger.read_single() as session:
                    some_failed_before = sweeps.have_faults(session)
            try:
                with self.process.ledger.begin() as session:
                    handle(session, item)
                    if some_failed_before:
                        sweeps.forgive(session, self.part, item.label)
            except Exception as error:
                self.blame(item, error)
            else:
                well += 1
        return well

    def blame(self, item: Item, error: Exception) -> None:
        """Note that an item cannot be handled. Raises the error where it is an outage."""
        if is_outage(error):
            raise error
        trouble = trouble_of(error)
        if trouble is not None and trouble.is_contention:
            log.info("%s: %s is left for the next round: %s", self.part, item.label, error)
            return
        words = first_line(error)
        message = words if trouble is not None else f"{type(error).__name__}: {words}"
        log.error("%s: %s cannot be handled: %s", self.part, item.label, message)
        settings = self.process.settings
        with self.process.ledger.begin() as session:
            sweeps.note_fault(
                session,
                self.part,
                item.label,
                message,
                job_id=item.job_id,
                retry_base_s=settings.retry_base_s,
                retry_cap_s=settings.retry_cap_s,
            )
