"""The heartbeat of running steps: extends their leases, and learns when they have to stop.

One thread with one transaction serves all steps of a process: a generation worker runs dozens. It
never ends a step itself; it sets the stop flag of the step's context, which the handler checks
between units of work. A handler that hangs does not check it. Therefore a lease is not extended any
more if the job is ending, or if the step is beyond its time limit and has shown no progress for
`step_stall_s`. The sweeper then takes the step back, and the hanging thread is left alone.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings
from shared.database.transaction import Ledger, Transaction
from shared.jobs import steps
from shared.jobs.steps import Lease
from shared.vocabulary import Queue
from workers.attempts.context import Context
from workers.attempts.process import Process

log = logging.getLogger(__name__)


@dataclass
class Heartbeat:
    """The state of one running step; `lost_event` is set once another worker has the step, or may
    have it."""

    context: Context
    lost_event: threading.Event = field(default_factory=threading.Event)
    unanswered: Transaction | None = None
    """The transaction that records the attempt, if the answer to its commit was lost."""
    is_ending: bool = False
    is_stalled: bool = False
    started: float = field(default_factory=time.monotonic)
    extended: float = field(default_factory=time.monotonic)

    @property
    def is_lost(self) -> bool:
        return self.lost_event.is_set()

    def lose(self) -> None:
        self.lost_event.set()
        self.context.must_stop("The lease was lost; another worker has the step.")


class Heartbeats:
    """The heartbeats of all steps that the process runs.

    The thread ends once there is no step. It does not start and end with each step, because that
    would slow down short steps.
    """

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._lock = threading.Lock()
        self._beating = threading.Lock()
        self._running: list[Heartbeat] = []
        self._thread: threading.Thread | None = None

    @contextmanager
    def during(self, context: Context) -> Iterator[Heartbeat]:
        """Extend the lease of a step, and watch it, while the block runs."""
        heartbeat = Heartbeat(context)
        with self._lock:
            self._running.append(heartbeat)
            if self._thread is None:
                self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
                self._thread.start()
        try:
            yield heartbeat
        finally:
            with self._lock:
                self._running.remove(heartbeat)
            with self._beating:
                pass  # waits for a heartbeat in progress; later ones do not see this step

    def _run(self) -> None:
        while True:
            time.sleep(self._settings.step_heartbeat_s)
            with self._beating:
                with self._lock:
                    running = list(self._running)
                    if not running:
                        self._thread = None
                        return
                self._extend(running)

    def _extend(self, running: list[Heartbeat]) -> None:
        lease_s = self._settings.step_lease_s
        now = time.monotonic()
        for heartbeat in running:
            self._watch(heartbeat, now)
        due = [
            heartbeat
            for heartbeat in running
            if now - heartbeat.extended > lease_s / 3
            and not (heartbeat.is_ending or heartbeat.is_stalled)
        ]
        try:
            with self._ledger.begin() as session:
                leases = steps.heartbeats(
                    session,
                    [heartbeat.context.claim for heartbeat in running],
                    lease_s=lease_s,
                    extend=[heartbeat.context.claim for heartbeat in due],
                )
        except SQLAlchemyError as error:
            log.warning("heartbeat failed: %s", error)
            for heartbeat in running:
                if now - heartbeat.extended > lease_s:
                    heartbeat.lose()
            return
        for heartbeat in due:
            heartbeat.extended = now
        for heartbeat, lease in zip(running, leases, strict=True):
            if lease is Lease.LOST:
                heartbeat.lose()
            elif lease is Lease.STOP:
                heartbeat.is_ending = True
                heartbeat.context.must_stop("The job is ending.")

    def _watch(self, heartbeat: Heartbeat, now: float) -> None:
        generates = heartbeat.context.claim.queue == Queue.GENERATE
        limit_s = self._settings.step_soft_limit_s
        setting = "SLUICE_STEP_SOFT_LIMIT_S"
        if generates:
            limit_s, setting = self._settings.generation_limit_s, "SLUICE_GENERATION_LIMIT_S"
        if now - heartbeat.started <= limit_s:
            return
        heartbeat.context.must_stop(f"The step took longer than {limit_s} s ({setting}).")
        silent_s = now - max(heartbeat.context.progressed, heartbeat.started + limit_s)
        stalled, heartbeat.is_stalled = heartbeat.is_stalled, silent_s > self._settings.step_stall_s
        if heartbeat.is_stalled and not stalled:
            claim = heartbeat.context.claim
            log.warning(
                "step %s (%s) is beyond %s s (%s) and has shown no progress for %.0f s; its lease "
                "is not extended any more",
                claim.step_id, claim.name, limit_s, setting, silent_s,
            )  # fmt: skip


def heartbeats_of(process: Process) -> Heartbeats:
    return process.held(_heartbeats)


def _heartbeats(process: Process) -> Heartbeats:
    return Heartbeats(process.settings, process.ledger)
