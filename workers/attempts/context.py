"""The interface between the runner and the handlers of steps: `Context`, `Done`, `Handler`; and
where results are stored."""

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
    """The success of an attempt, which is recorded in one transaction.

    `result` is JSON. It is the result of the job, unless the step has `children`, which run next,
    or its handler has `finish`. `warnings` are shown to the user. `record` writes anything else; it
    may run twice, if the answer to the first commit was lost, and uses `transaction.after_commit`
    for what follows the commit. With `again_in_s` the same step runs again after so many seconds,
    because it has more to do.
    """

    result: Any = None
    children: Sequence[NewStep] = ()
    warnings: Sequence[str] = ()
    record: Record | None = None
    again_in_s: float | None = None


class Context:
    """One running attempt, for its handler."""

    def __init__(self, process: Process, claim: Claim) -> None:
        self.process = process
        self.claim = claim
        self.stop = threading.Event()
        self.stop_reason = ""
        self.progressed = time.monotonic()
        """When the handler last showed progress, by `time.monotonic()`."""
        self.on_lost: list[Callable[[], None]] = []
        """Called if this worker has lost the step, to undo what the attempt has written
        elsewhere."""
        self._input: Any = claim.input

    def input(self, shape: type[InputT]) -> InputT:
        """The input of the step's job. Raises NotFound if the job was erased."""
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
        """Show that the step makes progress. Beyond its time limit, a step without progress loses
        its lease."""
        self.progressed = time.monotonic()

    def publish_tool_call(self, call_id: str, data: dict[str, Any]) -> None:
        """Publish an event for clients that follow the job: a tool call, or its result."""
        payload = {"id": call_id, "step": self.claim.step_id, **data}
        event = Event(job_id=self.claim.job_id, type=EventType.TOOL, data=payload)
        self.process.ledger.events.publish([event])

    def must_stop(self, reason: str) -> None:
        self.stop_reason = reason
        self.stop.set()


def fetch_inputs(contexts: Sequence[Context]) -> None:
    """Read by one statement the inputs that were not read with the claims."""
    missing = {context.claim.job_id: context for context in contexts if context._input is None}
    if not missing:
        return
    with contexts[0].process.ledger.read_single() as session:
        for job_id, value in jobs.inputs_of(session, list(missing)).items():
            missing[job_id]._input = value


class Settle(Protocol):
    """Takes the outcome of each step of a batch."""

    def __call__(self, context: Context, outcome: Done | Exception, /) -> None: ...

    def flush(self) -> None:
        """Record the successes so far in one transaction; to be called before something slow."""


RunBatch = Callable[[Sequence[Context], Settle], None]
Absorb = Callable[[Transaction, Claim, str], None]


@dataclass(frozen=True, kw_only=True)
class Handler:
    """How steps of one name are run.

    `absorb` records the final failure of a step inside its job, which then goes on; without it the
    job fails. `finish` computes the job's result after its last step. A handler with `run_batch`
    instead of `run` gets several steps of one batch key, and settles each as soon as it is done;
    steps that it does not settle go back to the queue.
    """

    run: Callable[[Context], Done] | None = None
    run_batch: "RunBatch | None" = None
    absorb: Absorb | None = None
    finish: Finish | None = field(default=None)


# Results are stored in the rows of their step and job, or in the storage if they are large.
#
# The row of a job is always read whole, so it holds at most SLUICE_RESULT_INLINE_BYTES of the
# result. If the attempt that has stored a file is not recorded, the file is deleted again. The
# folder of a job is deleted when the job is erased, also by retention.


def encode_result(context: Context, done: Done, handler: Handler | None = None) -> Done:
    """Encode the result of a step, and store it as a file if it is the job's result and large. If
    the handler has `finish`, the result is the step's only, and stays in its row.

    Raises Permanent for a result that is no JSON, Unavailable if the storage does not answer.
    """
    if done.result is None or done.children:
        return done
    result = _encode(done.result)
    if handler is not None and handler.finish is not None:
        return replace(done, result=result)
    data = result.text.encode()
    path = store_large(context, data)
    if path is None:
        return replace(done, result=result)
    job_id, record = context.claim.job_id, done.record

    def record_all(transaction: Transaction) -> None:
        if record is not None:
            record(transaction)
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))

    return replace(done, result=None, record=record_all)


def _encode(result: Any) -> EncodedJson:
    return result if isinstance(result, EncodedJson) else EncodedJson(result, to_json(result))


def store_large(context: Context, data: bytes) -> str | None:
    """Store data that is too large for a row, and return its path; None if it is not too large. An
    attempt that has lost its step deletes the file again."""
    process, claim = context.process, context.claim
    if len(data) <= process.settings.result_inline_bytes:
        return None
    path = f"{jobs.result_folder(claim.job_id)}/{claim.step_id}-{claim.attempt}.json"
    process.storage.write(path, io.BytesIO(data))
    context.on_lost.append(lambda: process.storage.delete(path))
    return path


def finish_of(handler: Handler | None, settings: Settings) -> Finish | None:
    """The `finish` of a handler, which stores a result that is too large for the row. The file has
    a fixed name, because only one transaction can end a job."""
    if handler is None or handler.finish is None:
        return None
    compute = handler.finish

    def finish(transaction: Transaction, job_id: UUID) -> Any:
        value = compute(transaction, job_id)
        if value is None:
            return None
        result = _encode(value)
        data = result.text.encode()
        if len(data) <= settings.result_inline_bytes:
            return result
        path = f"{jobs.result_folder(job_id)}/result.json"
        make_storage(settings).write(path, io.BytesIO(data))
        jobs.note_result_file(transaction, job_id, path=path, size_bytes=len(data))
        return None

    return finish
