"""What a step's handler is given, and what it gives back."""

import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from shared.database.transaction import Transaction
from shared.errors import Cancelled
from shared.jobs.claims import Claim
from shared.jobs.steps import Finish, NewStep, Record
from shared.redis.events import Event, EventType

if TYPE_CHECKING:
    from workers.attempts.process import Process  # which holds the heartbeats, which know contexts


@dataclass(frozen=True, kw_only=True)
class Done:
    """What comes of an attempt that succeeds, all of it recorded in one transaction.

    `result` is JSON: the job's, unless the step has `children`, which run next, or its handler a
    `finish`. `warnings` are what the user has to know of the job. `record` writes what else there
    is; it may run twice, where the commit of the first went unanswered, and says with
    `transaction.after_commit` what is to follow.
    """

    result: Any = None
    children: Sequence[NewStep] = ()
    warnings: Sequence[str] = ()
    record: Record | None = None


class Context:
    """One running attempt, as its handler sees it."""

    def __init__(self, process: "Process", claim: Claim) -> None:
        self.process = process
        self.claim = claim
        self.stop = threading.Event()
        self.stop_reason = ""
        self.progressed = time.monotonic()
        """When the handler last showed that it is at work."""
        self.on_lost: list[Callable[[], None]] = []
        """Called if the attempt turns out not to be this worker's any more, to undo its writes."""

    def check(self) -> None:
        """Raises Cancelled once the attempt has to stop. Call it between units of work."""
        self.progress()
        if self.stop.is_set():
            raise Cancelled(self.stop_reason)

    def progress(self) -> None:
        """Show that the step is at work. One that does not, beyond its limit, loses its lease."""
        self.progressed = time.monotonic()

    def publish_tool_call(self, call_id: str, data: dict[str, Any]) -> None:
        """Let those who follow the job know that a tool is run, and what came of it."""
        payload = {"id": call_id, "step": self.claim.step_id, **data}
        event = Event(job_id=self.claim.job_id, type=EventType.TOOL, data=payload)
        self.process.ledger.events.publish([event])

    def must_stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.stop.set()


class Settle(Protocol):
    """Takes what came of each step of a batch."""

    def __call__(self, context: Context, outcome: Done | Exception, /) -> None: ...

    def flush(self) -> None:
        """Record the successes so far, together: called where something slow comes next."""


RunBatch = Callable[[Sequence[Context], Settle], None]
Absorb = Callable[[Transaction, Claim, str], None]


@dataclass(frozen=True, kw_only=True)
class Handler:
    """How steps of one name are run.

    `absorb` books a step's final failure inside its job, which then goes on; without it the job
    fails. `finish` computes the job's result when this was its last step. A handler that has
    `run_batch` instead of `run` is given several steps of one batch key, and settles each as soon
    as it is through; what it does not settle is given back to the queue.
    """

    run: Callable[[Context], Done] | None = None
    run_batch: "RunBatch | None" = None
    absorb: Absorb | None = None
    finish: Finish | None = field(default=None)
