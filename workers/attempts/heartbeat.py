"""The heartbeat of running steps: extends their leases, and learns when to stop.

One thread and one transaction for all steps that a process runs, however many: a generation worker
runs dozens. It never ends a step itself; it tells the step's context, which the handler looks at
between units of work. A handler that does not look, because it hangs, does not keep its step for
that: the lease of a step whose job is ending, or that is beyond its limit and has shown no progress
for `step_stall_s`, is not extended any more. The sweeper takes the step, and the thread is left to
what it is at.
"""

import logging
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from sqlalchemy.exc import SQLAlchemyError

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs import steps
from shared.jobs.steps import Pulse
from shared.vocabulary import Queue
from workers.attempts.context import Context

log = logging.getLogger(__name__)


@dataclass
class Beat:
    """One running step; `gone` is set once it is, or may be, another worker's."""

    context: Context
    gone: threading.Event = field(default_factory=threading.Event)
    is_ending: bool = False
    is_stalled: bool = False
    started: float = field(default_factory=time.monotonic)
    extended: float = field(default_factory=time.monotonic)

    @property
    def lost(self) -> bool:
        return self.gone.is_set()

    def lose(self) -> None:
        self.gone.set()
        self.context.must_stop("The lease was lost; another worker has the step.")


class Heart:
    """Beats for as long as any step of the process runs."""

    def __init__(self, settings: Settings, ledger: Ledger) -> None:
        self._settings = settings
        self._ledger = ledger
        self._lock = threading.Lock()
        self._beats: list[Beat] = []
        self._thread: threading.Thread | None = None
        self._idle = threading.Event()

    @contextmanager
    def beating(self, context: Context) -> Iterator[Beat]:
        """The step is kept, and watched, while the block runs."""
        beat = Beat(context)
        with self._lock:
            self._beats.append(beat)
            if self._thread is None:
                self._idle = threading.Event()
                self._thread = threading.Thread(
                    target=self._run, args=(self._idle,), name="heartbeat", daemon=True
                )
                self._thread.start()
        try:
            yield beat
        finally:
            with self._lock:
                self._beats.remove(beat)
                last = None if self._beats else self._thread
                if last is not None:
                    self._thread = None
                    self._idle.set()
            if last is not None:
                last.join()

    def _run(self, idle: threading.Event) -> None:
        while not idle.wait(self._settings.step_heartbeat_s):
            with self._lock:
                beats = list(self._beats)
            self._beat(beats)

    def _beat(self, beats: list[Beat]) -> None:
        lease_s = self._settings.step_lease_s
        now = time.monotonic()
        for beat in beats:
            self._watch(beat, now)
        due = [
            beat
            for beat in beats
            if now - beat.extended > lease_s / 3 and not (beat.is_ending or beat.is_stalled)
        ]
        try:
            with self._ledger.begin() as session:
                pulses = steps.heartbeats(
                    session,
                    [beat.context.claim for beat in beats],
                    lease_s=lease_s,
                    extend=[beat.context.claim for beat in due],
                )
        except SQLAlchemyError as error:
            log.warning("heartbeat failed: %s", error)
            for beat in beats:
                if now - beat.extended > lease_s:
                    beat.lose()
            return
        for beat in due:
            beat.extended = now
        for beat, pulse in zip(beats, pulses, strict=True):
            if pulse is Pulse.LOST:
                beat.lose()
            elif pulse is Pulse.STOP:
                beat.is_ending = True
                beat.context.must_stop("The job is ending.")

    def _watch(self, beat: Beat, now: float) -> None:
        generates = beat.context.claim.queue == Queue.GENERATE
        limit_s = self._settings.step_soft_limit_s
        setting = "SLUICE_STEP_SOFT_LIMIT_S"
        if generates:
            limit_s, setting = self._settings.generation_limit_s, "SLUICE_GENERATION_LIMIT_S"
        if now - beat.started <= limit_s:
            return
        beat.context.must_stop(f"The step took longer than {limit_s} s ({setting}).")
        silent_s = now - max(beat.context.progressed, beat.started + limit_s)
        stalled, beat.is_stalled = beat.is_stalled, silent_s > self._settings.step_stall_s
        if beat.is_stalled and not stalled:
            claim = beat.context.claim
            log.warning(
                "step %s (%s) is beyond %s s (%s) and has shown no progress for %.0f s; its lease "
                "is not extended any more",
                claim.step_id, claim.name, limit_s, setting, silent_s,
            )  # fmt: skip
