"""Jobs run in this process against the real stores: no Celery, one step after the other.

`drain` plays all workers at once. The embedding model is loaded, and the programs that read
documents are started, once for the whole test session.
"""

from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from functools import cache
from threading import Event
from typing import Any
from uuid import UUID

from sqlalchemy import func, select, text, update

from shared.config import Settings
from shared.jobs import claims, jobs, steps, submission
from shared.jobs.claims import Claim
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.kinds.kind import Kind
from shared.tables import Job, Step
from shared.vocabulary import OPEN, Lane, Queue, State
from tests.ledgers import kept_ledger
from workers.app import CPU_QUEUES, GENERATE_QUEUES, WEBHOOK_QUEUES, handlers_of
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import Handlers, run_next
from workers.ingest.reader import Children, Reader, make_reader
from workers.retrieval.embed import Embedders, make_embedders
from workers.rounds import Round
from workers.sweep import take_back

PATIENCE_S = 120
ROUTES = ("extractive", "ollama", "openai")
QUICK = {
    "worker_concurrency": 1,
    "step_lease_s": 10,
    "step_heartbeat_s": 0.05,
    "retry_base_s": 0.01,
    "retry_cap_s": 0.02,
    "load_step_documents": 4,
    "embed_step_chunks": 6,
    "webhook_allow_private": True,
}


@cache
def embedders() -> Embedders:
    return Embedders(Settings(_env_file=None))


@cache
def reader_children() -> Children:
    """To start one takes a second of processor time; `tests/conftest.py` ends them."""
    return Children()


@cache
def handlers() -> Handlers:
    return {
        **handlers_of(CPU_QUEUES),
        **handlers_of(GENERATE_QUEUES),
        **handlers_of(WEBHOOK_QUEUES),
    }


def make_process(settings: Settings, name: str = "test", **changes: Any) -> Process:
    """A worker process with quick settings; close its ledger when done."""
    process = Process(settings.model_copy(update=QUICK | changes), name, routes=ROUTES)
    process.ledger = kept_ledger(process.settings)
    process.hold(make_embedders, embedders())
    process.hold(make_reader, Reader(process.settings, reader_children()))
    return process


def submit(
    process: Process, kind: Kind = kinds.EMBED, input_: dict[str, Any] | None = None, **fields: Any
) -> UUID:
    new = NewJob(kind=kind, input=input_ or {"texts": ["a"]}, **{"fair_key": "someone", **fields})
    with process.ledger.begin() as session:
        return submission.submit(session, new).id


def submit_many(process: Process, count: int, key: str, lane: Lane = Lane.NORMAL) -> list[UUID]:
    new = NewJob(kind=kinds.EMBED, input={"texts": ["a"]}, fair_key=key, lane=lane)
    with process.ledger.begin() as session:
        return submission.submit_batch(session, [new] * count)


def claim(process: Process, queue: Queue = Queue.EMBED, *, lease_s: float = 60) -> Claim | None:
    with process.ledger.begin() as session:
        return claims.claim(
            session, queue.value, worker=process.worker_name, lease_s=lease_s, routes=process.routes
        )


def claimed(process: Process, queue: Queue = Queue.EMBED) -> Claim:
    step = claim(process, queue)
    assert step is not None, f"nothing to claim in {queue}"
    return step


def succeed(process: Process, claim_: Claim, **details: Any) -> bool:
    with process.ledger.begin() as session:
        return steps.succeed(session, claim_, **details)


def cancel(process: Process, job_id: UUID) -> None:
    with process.ledger.begin() as session:
        jobs.cancel(session, job_id)


def drain(process: Process, table: Handlers | None = None, *, hurry: bool = True) -> int:
    """Run all steps that can run, until none is left; `hurry`: also those that wait to be tried
    again. Returns how many were run."""
    count = 0
    while True:
        if hurry:
            make_due(process)
        # To claim from each of the queues would cost more than most steps do.
        with process.ledger.read_single() as session:
            waiting = set(
                session.scalars(select(Step.queue).where(Step.state == State.QUEUED).distinct())
            )
        ran = sum(
            run_next(process, table if table is not None else handlers(), queue.value)
            for queue in Queue
            if queue in waiting
        )
        if not ran:
            return count
        count += ran


def make_due(process: Process) -> int:
    """End the waiting of queued steps; returns how many there were."""
    with process.ledger.begin() as session:
        return len(
            session.execute(
                update(Step)
                .where(Step.state == State.QUEUED, Step.run_after > func.now())
                .values(run_after=func.now())
                .returning(Step.id)
            ).all()
        )


def lose_workers(process: Process, table: Handlers | None = None) -> None:
    """What the sweeper does once the leases of all running steps have ended."""
    with process.ledger.begin() as session:
        session.execute(
            text("""
                UPDATE steps SET lease_until = now() - interval '1 s' WHERE id IN
                (SELECT id FROM steps WHERE state = 'running' FOR UPDATE SKIP LOCKED)
            """)
        )
    take_back(Round(process, table if table is not None else handlers(), "take back", Event()))


def job_of(process: Process, job_id: UUID) -> Job:
    with process.ledger.read() as session:
        return jobs.get(session, job_id)


def steps_of(process: Process, job_id: UUID) -> list[Step]:
    with process.ledger.read() as session:
        return list(session.scalars(select(Step).where(Step.job_id == job_id).order_by(Step.id)))


def invariants_hold(process: Process, *, all_ended: bool = False) -> None:
    """What is true of the ledger between any two transactions."""
    with process.ledger.read() as session:
        rows = session.execute(
            select(Job, func.count(Step.id))
            .outerjoin(
                Step,
                (Step.job_id == Job.id) & Step.state.in_(OPEN) & ~Step.after_end,
            )
            .group_by(Job.id)
        ).all()
        for job, open_steps in rows:
            assert job.open_steps == open_steps, (job.id, job.state, job.open_steps, open_steps)
            if job.state in OPEN:
                assert open_steps > 0, f"{job.id} is {job.state} and has nothing left to run"
                assert not all_ended, f"{job.id} is still {job.state}"
                assert job.finished_at is None
            else:
                assert open_steps == 0
                assert job.ending is None
                assert job.finished_at is not None


def in_threads(
    count: int, settings: Settings, work: Callable[[Process, int], Any], **changes: Any
) -> list[Any]:
    """Run `work(process, n)` in threads, each with a process (and connections) of its own."""

    def run(n: int) -> Any:
        process = make_process(settings, f"thread-{n}", **changes)
        try:
            return work(process, n)
        finally:
            process.close()

    with ThreadPoolExecutor(count) as pool:
        return list(pool.map(run, range(count)))


def doing(run: Callable[[Context], Any], name: str = "embed") -> Mapping[str, Handler]:
    """A table of one handler; what `run` returns is the step's result, if it is a mapping."""

    def handler(context: Context) -> Done:
        result = run(context)
        return result if isinstance(result, Done) else Done(result=result)

    return {name: Handler(run=handler)}
