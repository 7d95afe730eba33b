"""The step `hf.run`: inputs of one or many jobs of one model, run together.

A step that takes longer than SLUICE_HF_STEP_S records what it has and goes on in a new one, so
that a job of any length loses no more than that, and short jobs come in between.
"""

import time
from collections.abc import Iterator, Sequence
from typing import NamedTuple

from sqlalchemy import select

from shared import jobs
from shared.errors import Cancelled, InvalidInput, SluiceError
from shared.hf import BINARY, HfInput
from shared.models import Job
from workers.hf import contents, hub_steps, results
from workers.hf.batching import Budget, batches, run_rows
from workers.hf.loading import load_for
from workers.hf.task import LocalTask, Row, Watch
from workers.hf.work import MISSING, Work
from workers.step import Context, Handler, Settle

ROUND_BATCHES = 8
"""How many batches' worth of rows are prepared at once: enough to sort them by length."""
UNIT = "inputs"


class Place(NamedTuple):
    """A row, and whose it is: the `row`-th of the `n`-th input of a work."""

    work: Work
    n: int
    k: int
    row: Row


def run_batch(contexts: Sequence[Context], settle: Settle) -> None:
    """Steps of one batch key: of one model, on one back end."""
    asked = [(context, wanted) for context, wanted in zip(contexts, _inputs(contexts), strict=True)]
    if asked[0][1].backend == "hub":
        hub_steps.run(asked, settle)
        return
    loaded = load_for(asked, settle)
    deadline = time.monotonic() + contexts[0].process.settings.hf_step_s
    for model, works in loaded:
        _Run(model, works, settle, deadline).run()


def _inputs(contexts: Sequence[Context]) -> list[HfInput]:
    with contexts[0].process.ledger.read() as session:
        ids = [context.claim.job_id for context in contexts]
        rows = session.execute(select(Job.id, Job.input).where(Job.id.in_(ids)))
        inputs = {row.id: row.input for row in rows}
    return [HfInput.model_validate(inputs[job_id]) for job_id in ids]


class _Run:
    """The works of one task, run in rounds until all are through or the time is up."""

    def __init__(
        self, model: LocalTask, works: Sequence[Work], settle: Settle, deadline: float
    ) -> None:
        self._model = model
        self._open = list(works)
        self._settle = settle
        self._deadline = deadline
        self._process = works[0].context.process
        self._budget = Budget(self._process.settings.hf_batch_tokens)
        self._told_at = time.monotonic()

    def run(self) -> None:
        for work in list(self._open):
            if work.context.claim.payload:  # an earlier step of the job has done a part
                work.before, work.warnings_before = results.recorded_before(work.context)
            self._advance(work)
        while self._open:
            places = list(self._round())
            rows = [place.row for place in places]
            for batch in batches(rows, self._budget, self._model.row_limit):
                self._run_batch([places[n] for n in batch])
                if time.monotonic() > self._deadline:  # at least one batch is run
                    self._stop()
                    return

    def _round(self) -> Iterator[Place]:
        """Rows of the next inputs, as many as make some batches."""
        room = ROUND_BATCHES * self._budget.tokens
        for work in list(self._open):
            for n in work.left():
                if room <= 0:
                    return
                if not self._prepare(work, n):
                    break
                part = work.parts.get(n)
                for k, row in enumerate(part.prepared.rows if part else ()):
                    if part is not None and part.outputs[k] is MISSING:
                        room -= row.size
                        yield Place(work, n, k, row)

    def _prepare(self, work: Work, n: int) -> bool:
        """False where the input cannot be used, which ends its job."""
        try:
            work.context.check()
            value = work.inputs[n]
            if work.task in BINARY:
                value = contents.read(self._process, value)
            part = work.begin(n, self._model.prepare(value, work.parameters))
            if part.is_through:
                self._finish(work, n)
        except InvalidInput as error:
            self._end(work, InvalidInput(f"{work.place(n)}: {error.message}"))
            return False
        except SluiceError as error:
            self._end(work, error)
            return False
        return work in self._open

    def _run_batch(self, batch: Sequence[Place]) -> None:
        watch = self._watch([place.work for place in batch])
        batch = [place for place, is_gone in zip(batch, watch(), strict=True) if not is_gone]
        if not batch:
            return
        watch = self._watch([place.work for place in batch])
        outputs = run_rows(self._model, [place.row for place in batch], watch, self._budget)
        for place, output in zip(batch, outputs, strict=True):
            if place.work not in self._open:
                continue
            if isinstance(output, Exception):
                self._end(place.work, output)
                continue
            part = place.work.parts[place.n]
            part.outputs[place.k] = output
            if part.is_through:
                self._finish(place.work, place.n)
        self._settle.flush()
        self._tell()

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
            self._settle(work.context, results.complete(work, work.answer(self._model)))

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

    def _tell(self) -> None:
        """How far jobs of many inputs are, once a heartbeat."""
        if time.monotonic() - self._told_at < self._process.settings.step_heartbeat_s:
            return
        self._told_at = time.monotonic()
        long = [work for work in self._open if len(work.inputs) > 1]
        with self._process.ledger.begin() as session:
            for work in long:
                jobs.report(session, work.context.claim, work.done, len(work.inputs), UNIT)

    def _stop(self) -> None:
        """What is not through goes on in another step; what was not begun is given back."""
        for work in list(self._open):
            if work.has_moved:
                self._open.remove(work)
                self._settle(work.context, results.go_on(work))


HF_RUN = Handler(run_batch=run_batch)
