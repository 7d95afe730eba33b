"""What a step's handler gets, what it returns, and where results go."""

import io
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, TypeVar
from uuid import UUID

from shared.bounds import EncodedJson, to_json
from shared.config import Settings
from shared.database.transaction import Transaction
from shared.errors import Cancelled
from shared.files import make_storage
from shared.jobs import jobs
from shared.jobs.claims import Claim
from shared.jobs.steps import Finish, NewStep, Record
from shared.redis.events import Event, EventType
from shared.vocabulary import Shape
from workers.attempts.process import Process

InputT = TypeVar("InputT", bound=Shape)


@dataclass(frozen=True, kw_only=True)
class Done:
    """What comes of an attempt that succeeds, all of it recorded in one transaction.

    `result` is JSON: the job's, unless the step has `children`, which run next, or its handler a
    `finish`. `warnings` are what the user has to know of the job. `record` writes what else there
    is; it may run twice, where the commit of the first went unanswered, and says with
    `transaction.after_commit` what is to follow. With `again_in_s` the same step runs again after
    so many seconds, for there is more to do.
    """

    result: Any = None
    children: Sequence[NewStep] = ()
    warnings: Sequence[str] = ()
    record: Record | None = None
    again_in_s: float | None = None


class Context:
    """One running attempt, as its handler sees it."""

    def __init__(self, process: Process, claim: Claim) -> None:
        self.process = process
        self.claim = claim
        self.stop = threading.Event()
        self.stop_reason = ""
        self.progressed = time.monotonic()
        """When the handler last showed that it is at work."""
        self.on_lost: list[Callable[[], None]] = []
        """Called if the attempt turns out not to be this worker's any more, to undo its writes."""
        self._input: Any = claim.input

    def input(self, shape: type[InputT]) -> InputT:
        """The input of the step's job. Raises NotFound where the job is gone."""
        if self._input is None:
            with self.process.ledger.read_single() as session:
                self._input = jobs.get(session, self.claim.job_id).input
        return shape.model_validate(self._input)

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


def fetch_inputs(contexts: Sequence[Context]) -> None:
    """Read the inputs that did not come with the claims, by one statement."""
    missing = {context.claim.job_id: context for context in contexts if context._input is None}
    if not missing:
        return
    with contexts[0].process.ledger.read_single() as session:
        for job_id, value in jobs.inputs_of(session, list(missing)).items():
            missing[job_id]._input = value


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


# Where results go: into the rows of their step and job, or into the storage where they are
# large.
#
# The row of a job is read whole, so it holds no more than SLUICE_RESULT_INLINE_BYTES of
# result, whatever the kind of the job. What an attempt stores that is then not recorded is
# deleted again; all of a job's folder goes when the job is erased or retention forgets it.


def prepared(context: Context, done: Done, handler: Handler | None = None) -> Done:
    """The success of a step, its result encoded; in the storage where it is the job's and large.
    Where the handler has a `finish`, it is the step's own, and stays in its row.

    Raises Permanent for a result that is no JSON, Unavailable where the storage does not take it.
    """
    if done.result is None or done.children:
        return done
    result = _encoded(done.result)
    if handler is not None and handler.finish is not None:
        return replace(done, result=result)
    data = result.text.encode()
    path = stored(context, data)
    if path is None:
        return replace(done, result=result)
    job_id, record = context.claim.job_id, done.record

    def record_all(transaction: Transaction) -> None:
        if record is not None:
            record(transaction)
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))

    return replace(done, result=None, record=record_all)


def _encoded(result: Any) -> EncodedJson:
    return result if isinstance(result, EncodedJson) else EncodedJson(result, to_json(result))


def stored(context: Context, data: bytes) -> str | None:
    """The path of what is too large for a row. An attempt that loses its step deletes it again."""
    process, claim = context.process, context.claim
    if len(data) <= process.settings.result_inline_bytes:
        return None
    path = f"{jobs.result_folder(claim.job_id)}/{claim.step_id}-{claim.attempt}.json"
    process.storage.write(path, io.BytesIO(data))
    context.on_lost.append(lambda: process.storage.delete(path))
    return path


def finish_of(handler: Handler | None, settings: Settings) -> Finish | None:
    """What computes the job's result when its last step has ended, and stores it where it is too
    large for the row: under a fixed name, since whoever ends a job does so alone."""
    if handler is None or handler.finish is None:
        return None
    compute = handler.finish

    def finish(transaction: Transaction, job_id: UUID) -> Any:
        value = compute(transaction, job_id)
        if value is None:
            return None
        result = _encoded(value)
        data = result.text.encode()
        if len(data) <= settings.result_inline_bytes:
            return result
        path = f"{jobs.result_folder(job_id)}/result.json"
        make_storage(settings).write(path, io.BytesIO(data))
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))
        return None

    return finish
