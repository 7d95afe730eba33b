"""The step `hf.run`: inputs of one or many jobs of one model, run together.

A step that takes longer than SLUICE_HF_STEP_S records what it has and goes on in a new one, so
that a job of any length loses no more than that, and short jobs come in between.
"""

import gc
import json
import logging
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Final, NamedTuple, Self
from uuid import UUID

import torch
from billiard.exceptions import SoftTimeLimitExceeded
from sqlalchemy import select

from shared import bounds, files
from shared.bounds import EncodedJson
from shared.errors import (
    Cancelled,
    ConfigurationError,
    InvalidInput,
    NotFound,
    Permanent,
    SluiceError,
)
from shared.hf.task import HfTask, TaskParameters
from shared.jobs import jobs
from shared.jobs.steps import NewStep
from shared.kinds.hf import TASKS, HfInput, parse_parameters, single_inputs, takes_files
from shared.redis import events
from shared.redis.events import Event, EventType, Loading
from shared.tables import Step
from shared.vocabulary import Queue, State
from workers.attempts.context import Context, Done, Handler, Settle, fetch_inputs, store_large
from workers.attempts.process import Process
from workers.hf import hub
from workers.hf.task import LocalTask, PreparedInput, Row, Watch, models_of
from workers.models import checkpoints
from workers.models.devices import batches_of, is_fatal, is_out_of_memory, return_freed_blocks

log = logging.getLogger(__name__)

# What a step has to do of one job

MISSING: Any = object()


@dataclass(kw_only=True)
class StartedInput:
    """An input whose rows are being run, and the outputs of those that are done."""

    prepared: PreparedInput
    outputs: list[Any]

    @property
    def is_done(self) -> bool:
        return all(output is not MISSING for output in self.outputs)


@dataclass(kw_only=True, eq=False)
class Work:
    """The inputs of one job, and how far a step is with them. `before` are outputs that earlier
    steps of the job recorded.

    What a step leaves undone goes on in the next one: `rest()` is that step's payload, with the
    outputs of single rows of inputs that are not done.
    """

    context: Context
    task: HfTask
    inputs: Sequence[Any]
    many: bool
    parameters: TaskParameters
    before: dict[int, Any] = field(default_factory=dict)
    outputs: dict[int, Any] = field(default_factory=dict)
    started: dict[int, StartedInput] = field(default_factory=dict)
    warnings: list[str] = field(default_factory=list)
    warnings_before: list[str] = field(default_factory=list)
    rows_before: dict[int, dict[int, Any]] = field(default_factory=dict)

    @classmethod
    def of(cls, context: Context, name: str, job_input: HfInput) -> Self:
        """Raises InvalidInput for inputs and parameters that are not of the task."""
        inputs, many = single_inputs(name, job_input.inputs)
        rows = context.claim.payload.get("rows", {})
        return cls(
            context=context,
            task=TASKS[name],
            inputs=inputs,
            many=many,
            parameters=parse_parameters(name, job_input.parameters),
            rows_before={
                int(n): {int(k): v for k, v in outputs.items()} for n, outputs in rows.items()
            },
        )

    def path(self, n: int) -> str:
        return f"inputs.{n}" if self.many else "inputs"

    def left(self) -> Iterable[int]:
        """The inputs that no step has begun or finished, in order."""
        return (
            n
            for n in range(len(self.inputs))
            if n not in self.before and n not in self.outputs and n not in self.started
        )

    def begin(self, n: int, prepared: PreparedInput) -> StartedInput:
        """Take up an input, with the outputs of its rows that an earlier step has kept."""
        kept = self.rows_before.get(n, {})
        outputs = [kept.get(k, MISSING) for k in range(len(prepared.rows))]
        self.started[n] = StartedInput(prepared=prepared, outputs=outputs)
        self.warnings += [f"{self.path(n)} {warning}" for warning in prepared.warnings]
        return self.started[n]

    def finish(self, n: int, model: LocalTask) -> None:
        input_ = self.started.pop(n)
        self.outputs[n] = model.finish(input_.prepared, input_.outputs, self.parameters)

    @property
    def done(self) -> int:
        return len(self.before) + len(self.outputs)

    @property
    def is_complete(self) -> bool:
        return self.done == len(self.inputs)

    @property
    def has_outputs(self) -> bool:
        """Whether this step has run anything."""
        return bool(self.outputs) or any(
            output is not MISSING
            for n, input_ in self.started.items()
            for k, output in enumerate(input_.outputs)
            if k not in self.rows_before.get(n, {})
        )

    def rest(self) -> dict[str, Any]:
        rows = {n: outputs for n, outputs in self.rows_before.items() if n not in self.outputs}
        for n, input_ in self.started.items():
            rows[n] = {k: v for k, v in enumerate(input_.outputs) if v is not MISSING}
        return {
            "rows": {str(n): {str(k): v for k, v in outputs.items()} for n, outputs in rows.items()}
        }

    def answer(self) -> Any:
        """What the API answers: a list for a list, else the only output as the task gives it."""
        outputs = self.before | self.outputs
        if self.many:
            return [outputs[n] for n in range(len(self.inputs))]
        return self.task.alone(outputs[0])


# Where outputs go: into the row of their step or job, or into the storage where they are
# large.
#
# What an attempt stores that is then not recorded is deleted again; all of a job's folder
# goes when retention forgets the job.


def recorded_before(context: Context) -> tuple[dict[int, Any], list[str]]:
    """Outputs by input, and warnings, of the steps of the job that went before this one."""
    process, claim = context.process, context.claim
    with process.ledger.read_single() as session:
        results = session.scalars(
            select(Step.result)
            .where(
                Step.job_id == claim.job_id, Step.name == claim.name, Step.state == State.SUCCEEDED,
                Step.id < claim.step_id,
            )
            .order_by(Step.id)
        ).all()  # fmt: skip
    outputs: dict[int, Any] = {}
    warnings: list[str] = []
    for result in results:
        stored = result.get("path")
        recorded = json.loads(process.storage.read(stored)) if stored else result["outputs"]
        outputs |= {int(n): output for n, output in recorded.items()}
        warnings += [warning for warning in result["warnings"] if warning not in warnings]
    return outputs, warnings


def complete(work: Work, answer: Any) -> Done:
    """The job's end. Raises Permanent for outputs that are no JSON."""
    return of_answer(answer, warnings=[*work.warnings_before, *work.warnings])


def of_answer(answer: Any, *, warnings: Sequence[str] = ()) -> Done:
    """The end of a job with this answer. Raises Permanent for what is no JSON."""
    text = _encoded(answer).decode()
    return Done(result=EncodedJson(answer, text), warnings=list(dict.fromkeys(warnings)))


def go_on(work: Work) -> Done:
    """What there is so far, and a step for the rest."""
    outputs = {str(n): output for n, output in work.outputs.items()}
    path = store_large(work.context, _encoded(outputs)) if outputs else None
    kept = {"path": path} if path else {"outputs": outputs}
    claim = work.context.claim
    following = NewStep(
        name=claim.name, queue=Queue.HF, batch_key=claim.batch_key, payload=work.rest()
    )
    return Done(result=kept | {"warnings": work.warnings}, children=[following])


def _encoded(value: Any) -> bytes:
    try:
        return json.dumps(value, ensure_ascii=False, allow_nan=False).encode()
    except ValueError:
        raise Permanent(
            "The model gave numbers that are none (NaN or infinity). Set SLUICE_HF_DTYPE=float32, "
            "or use another model."
        ) from None


# From claimed steps to works with a loaded model: where it lies, what it is for, who waits
# for it.
#
# While a model is being loaded, that is announced: a caller who does not want to wait gets to know.
# Jobs that are cancelled meanwhile end at once.

StepInput = tuple[Context, HfInput]


def load_for(requests: Sequence[StepInput], settle: Settle) -> list[tuple[LocalTask, list[Work]]]:
    """The works of each task, with its model. All are of one model; what cannot run is settled."""
    loader = _Loader(requests, settle)
    try:
        with suppress(Cancelled):  # each is settled by then
            return loader.load()
    finally:
        loader.take_back()
    return []


class _Loader:
    def __init__(self, requests: Sequence[StepInput], settle: Settle) -> None:
        context, job_input = requests[0]
        self._name = str(job_input.model)
        self._models = models_of(context.process)
        self._events = context.process.ledger.events
        self._settle = settle
        self._requests = list(requests)
        self._is_announced = False

    def load(self) -> list[tuple[LocalTask, list[Work]]]:
        try:
            folder = self._folder()
        except SluiceError as error:
            for context, _ in list(self._requests):
                self._end(context, error)
            return []
        loaded = []
        for task, works in self._works(folder).items():
            model = self._model(task, works, folder)
            if model is not None:
                loaded.append((model, works))
        return loaded

    def take_back(self) -> None:
        """The model is loaded, or cannot be."""
        if self._is_announced:
            events.done(self._events.redis, self._name)

    def _folder(self) -> Path:
        tasks = {job_input.task for _, job_input in self._requests}
        task = tasks.pop() if len(tasks) == 1 else None
        return self._models.folder(
            self._name,
            task,
            check=self._check,
            # Not before: a model that is nowhere is not being loaded.
            on_known=lambda: self._announce(None),
        )

    def _works(self, folder: Path) -> dict[str, list[Work]]:
        works: dict[str, list[Work]] = {}
        for context, job_input in list(self._requests):
            try:
                task = checkpoints.choose(
                    folder, self._name, job_input.task, job_input.inputs, job_input.parameters
                )
                works.setdefault(task, []).append(Work.of(context, task, job_input))
            except SluiceError as error:
                self._end(context, error)
        return works

    def _model(self, task: str, works: Sequence[Work], folder: Path) -> LocalTask | None:
        loaded = self._models.find(self._name, task)
        if loaded is not None:
            return loaded
        self._announce(folder)
        try:
            return self._models.load(self._name, task, folder)
        except SluiceError as error:
            for work in works:
                self._end(work.context, error)
            return None

    def _announce(self, folder: Path | None) -> None:
        news = Loading(model=self._name, estimated_s=self._models.estimated_s(folder))
        events.announce(self._events.redis, news)
        self._events.publish(
            [
                Event(job_id=context.claim.job_id, type=EventType.STATE, data=news.event())
                for context, _ in self._requests
            ]
        )
        self._is_announced = True

    def _check(self) -> None:
        """Called while a model is waited for. Raises Cancelled once nobody waits for it."""
        for context, _ in list(self._requests):
            context.progress()
            if context.stop.is_set():
                self._end(context, Cancelled(context.stop_reason))
        if not self._requests:
            raise Cancelled("All jobs that waited for the model were cancelled.")

    def _end(self, context: Context, outcome: Done | Exception) -> None:
        self._requests = [request for request in self._requests if request[0] is not context]
        self._settle(context, outcome)


# Rows to outputs: batches under a token budget, halved where memory runs out.
#
# Rows of similar length go together, so that little of a batch is padding. A batch that fails
# is tried in halves, down to the row that is to blame: no row fails because of its company.


class Budget:
    """How many padded tokens a batch may have; less, once memory ran out with more."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def shrink(self, tried_tokens: int) -> None:
        self.tokens = max(1, min(self.tokens, tried_tokens // 2))


def batches(rows: Sequence[Row], budget: Budget, row_limit: int | None) -> Iterator[list[int]]:
    """Indices of rows, each batch of one group, by falling size, within the budget when padded.

    A row that is larger than the budget is a batch by itself.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        groups[row.group].append(n)
    for members in groups.values():
        sizes = [rows[n].size for n in members]
        for batch in batches_of(sizes, lambda: budget.tokens, row_limit=row_limit):
            yield [members[n] for n in batch]


def run_rows(
    task: LocalTask, rows: Sequence[Row], watch: Watch, budget: Budget
) -> list[Any | Exception]:
    """An output or an exception for each row. Raises what ends the step: a cancellation, a time
    limit, a broken device."""
    try:
        with torch.inference_mode():
            return task.run(rows, watch)
    except (Cancelled, SoftTimeLimitExceeded):
        raise
    except Exception as error:
        if is_fatal(error):
            raise
        short = is_out_of_memory(error)
        if short:
            budget.shrink(sum(row.size for row in rows))
            log.warning("out of memory with %s rows; the batch is halved", len(rows))
        if len(rows) == 1:
            return [_blamed(error, short=short)]
    # Outside of the handler: the traceback would keep the tensors of the failed batch alive.
    _free_memory()
    half = len(rows) // 2
    first = run_rows(task, rows[:half], _slice(watch, 0, half), budget)
    return first + run_rows(task, rows[half:], _slice(watch, half, len(rows)), budget)


def _slice(watch: Watch, start: int, end: int) -> Watch:
    return lambda: watch()[start:end]


def _blamed(error: Exception, *, short: bool) -> Exception:
    if short:
        return Permanent(
            "This input does not fit into the memory of the worker, even alone. Send a shorter "
            "one, use a smaller model, or give the worker more memory."
        )
    if not isinstance(error, SluiceError):
        log.exception("a row failed", exc_info=error)
    return error


def _free_memory() -> None:
    gc.collect()
    return_freed_blocks()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


# The bytes of files: those of an upload, or base64.


def _read_file(process: Process, value: Any) -> bytes:
    """Raises InvalidInput for what is no base64, and for an upload that is not there."""
    if isinstance(value, dict):
        return _read_upload(process, UUID(str(value["file_id"])))
    return bounds.decode(str(value))


def _read_upload(process: Process, file_id: UUID) -> bytes:
    try:
        with process.ledger.read_single() as session:
            file = files.get(session, file_id)
        return files.read(process.storage, file)
    except NotFound as error:
        raise InvalidInput(error.message) from error


# Jobs of the back end `hub`: requests to another server, several at once.

POLL_S: Final = 0.2
"""How often it is looked whether a job that waits for the hub has to stop."""


def run(requests: Sequence[tuple[Context, HfInput]], settle: Settle) -> None:
    """Ask the hub for each job, and settle each as its answer comes, or as it has to stop: a
    request that hangs keeps no job from that."""
    settings = requests[0][0].process.settings
    pool = ThreadPoolExecutor(settings.hf_hub_parallel_requests, thread_name_prefix="hub")
    waiting: dict[Future[Any], Context] = {
        pool.submit(_call_hub, context, job_input): context for context, job_input in requests
    }
    try:
        while waiting:
            for future in wait(waiting, timeout=POLL_S, return_when=FIRST_COMPLETED).done:
                context = waiting.pop(future)
                try:
                    outcome: Done | Exception = of_answer(future.result())
                except Exception as error:
                    outcome = error
                settle(context, outcome)
                settle.flush()
            for future, context in list(waiting.items()):
                if context.stop.is_set():
                    del waiting[future]
                    future.cancel()
                    settle(context, Cancelled(context.stop_reason))
    finally:
        # A request that is under way when nobody waits any more ends by its own timeout.
        pool.shutdown(wait=False, cancel_futures=True)


def _call_hub(context: Context, job_input: HfInput) -> Any:
    context.check()
    if job_input.task is None or job_input.model is None:
        raise ConfigurationError("API and workers must be of one version.")
    return hub.run(
        job_input.task,
        job_input.model,
        _hub_inputs(context, job_input.task, job_input.inputs),
        job_input.parameters,
        context.process.settings,
        check=context.check,
    )


def _hub_inputs(context: Context, task: str, inputs: Any) -> Any:
    if not takes_files(task):
        return inputs
    try:
        if isinstance(inputs, list):
            return [_read_file(context.process, value) for value in inputs]
        return _read_file(context.process, inputs)
    except InvalidInput as error:
        raise InvalidInput(f"inputs: {error.message}") from None


ROUND_BATCHES = 8
"""How many batches' worth of rows are prepared at once: enough to sort them by length."""
UNIT = "inputs"


class JobRow(NamedTuple):
    """A row, and whose it is: the `k`-th of the `n`-th input of a work."""

    work: Work
    n: int
    k: int
    row: Row


def run_batch(contexts: Sequence[Context], settle: Settle) -> None:
    """Steps of one batch key: of one model, on one back end."""
    fetch_inputs(contexts)
    requests = [(context, context.input(HfInput)) for context in contexts]
    if requests[0][1].backend == "hub":
        run(requests, settle)
    else:
        run_local(requests, settle)


def run_local(requests: Sequence[StepInput], settle: Settle) -> None:
    """Inputs of one model, which this process loads."""
    loaded = load_for(requests, settle)
    deadline = time.monotonic() + requests[0][0].process.settings.hf_step_s
    for model, works in loaded:
        _TaskRun(model, works, settle, deadline).run()


class _TaskRun:
    """The works of one task, run in rounds until all are done or the time is up."""

    def __init__(
        self, model: LocalTask, works: Sequence[Work], settle: Settle, deadline: float
    ) -> None:
        self._model = model
        self._open = list(works)
        self._settle = settle
        self._deadline = deadline
        self._process = works[0].context.process
        self._budget = Budget(self._process.settings.hf_batch_tokens)
        self._reported_at = time.monotonic()

    def run(self) -> None:
        for work in list(self._open):
            if work.context.claim.payload:  # an earlier step of the job has done some
                work.before, work.warnings_before = recorded_before(work.context)
            self._advance(work)
        while self._open:
            job_rows = list(self._round())
            rows = [job_row.row for job_row in job_rows]
            for batch in batches(rows, self._budget, self._model.row_limit):
                self._run_batch([job_rows[n] for n in batch])
                if time.monotonic() > self._deadline:  # at least one batch is run
                    self._stop()
                    return

    def _round(self) -> Iterator[JobRow]:
        """Rows of the next inputs, as many as make some batches."""
        room = ROUND_BATCHES * self._budget.tokens
        for work in list(self._open):
            for n in work.left():
                if room <= 0:
                    return
                if not self._prepare(work, n):
                    break
                started = work.started.get(n)
                for k, row in enumerate(started.prepared.rows if started else ()):
                    if started is not None and started.outputs[k] is MISSING:
                        room -= row.size
                        yield JobRow(work, n, k, row)

    def _prepare(self, work: Work, n: int) -> bool:
        """False where the input cannot be used, which ends its job."""
        try:
            work.context.check()
            value = work.inputs[n]
            if work.task.input.is_file:
                value = _read_file(self._process, value)
            started = work.begin(n, self._model.prepare(value, work.parameters))
            if started.is_done:
                self._finish(work, n)
        except InvalidInput as error:
            self._end(work, InvalidInput(f"{work.path(n)}: {error.message}"))
            return False
        except SluiceError as error:
            self._end(work, error)
            return False
        return work in self._open

    def _run_batch(self, batch: Sequence[JobRow]) -> None:
        watch = self._watch([job_row.work for job_row in batch])
        batch = [job_row for job_row, is_gone in zip(batch, watch(), strict=True) if not is_gone]
        if not batch:
            return
        watch = self._watch([job_row.work for job_row in batch])
        outputs = run_rows(self._model, [job_row.row for job_row in batch], watch, self._budget)
        for job_row, output in zip(batch, outputs, strict=True):
            if job_row.work not in self._open:
                continue
            if isinstance(output, Exception):
                self._end(job_row.work, output)
                continue
            started = job_row.work.started[job_row.n]
            started.outputs[job_row.k] = output
            if started.is_done:
                self._finish(job_row.work, job_row.n)
        self._settle.flush()
        self._report()

    def _finish(self, work: Work, n: int) -> None:
        try:
            work.finish(n, self._model)
            self._advance(work)
        except SluiceError as error:
            self._end(work, error)

    def _advance(self, work: Work) -> None:
        """End the job if that was its last input."""
        if work.is_complete:
            self._open.remove(work)
            self._settle(work.context, complete(work, work.answer()))

    def _end(self, work: Work, error: Exception) -> None:
        if work in self._open:
            self._open.remove(work)
            self._settle(work.context, error)

    def _watch(self, works: Sequence[Work]) -> Watch:
        """Ends the jobs that are cancelled, at once, and says which rows are theirs."""

        def watch() -> list[bool]:
            for work in dict.fromkeys(works):
                work.context.progress()
                if work.context.stop.is_set():
                    self._end(work, Cancelled(work.context.stop_reason))
            return [work not in self._open for work in works]

        return watch

    def _report(self) -> None:
        """How far jobs of many inputs are, once a heartbeat."""
        if time.monotonic() - self._reported_at < self._process.settings.step_heartbeat_s:
            return
        self._reported_at = time.monotonic()
        long = [work for work in self._open if len(work.inputs) > 1]
        with self._process.ledger.begin() as session:
            for work in long:
                jobs.report(session, work.context.claim, work.done, len(work.inputs), UNIT)

    def _stop(self) -> None:
        """What is not done goes on in another step; what was not begun is given back."""
        for work in list(self._open):
            if work.has_outputs:
                self._open.remove(work)
                self._settle(work.context, go_on(work))


HF_RUN = Handler(run_batch=run_batch)
