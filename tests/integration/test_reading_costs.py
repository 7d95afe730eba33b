"""What reading costs does not grow with the queue: rows that are read are counted, not seconds."""

from collections.abc import Callable
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import event, text

from shared.database.transaction import Transaction
from shared.jobs import claims, jobs, queues, steps
from shared.jobs.jobs import Filter
from shared.jobs.queues import EXACT_STEPS, MARK_EVERY, Depths, estimate
from shared.jobs.turns import HELD
from shared.vocabulary import Lane, Queue
from tests.integration.job_runner import claim, claimed, submit, submit_many, succeed
from workers.attempts.process import Process

LONG = 2 * EXACT_STEPS
"""Already more than is counted anew by each call."""


class Clock:
    """Time that stands still until a test moves it."""

    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def depths(clock: Clock) -> Depths:
    return Depths(keep_s=2, clock=clock)


def fill(process: Process, count: int) -> list[UUID]:
    """So many more steps of the queue `embed`, of several keys and lanes."""
    ids: list[UUID] = []
    for n, key in enumerate("abcd"):
        lane = (Lane.NORMAL, Lane.BULK)[n % 2]
        ids += submit_many(process, count // 4, key, lane)
    with process.ledger.engine.connect() as connection:
        connection.execution_options(isolation_level="AUTOCOMMIT").execute(text("ANALYZE"))
    return ids


def rows_read(process: Process, call: Callable[[Transaction], Any]) -> int:
    """Rows that Postgres fetches for the call, by its own count."""
    counted = text("""
        SELECT coalesce(sum(coalesce(seq_tup_read, 0) + coalesce(idx_tup_fetch, 0)), 0)
        FROM pg_stat_xact_user_tables
    """)
    with process.ledger.read() as session:
        assert isinstance(session, Transaction)  # claims are counted, too, and nothing is kept
        before = session.execute(counted).scalar_one()
        call(session)
        return int(session.execute(counted).scalar_one() - before)


def calls(process: Process, depths: Depths, some: UUID) -> dict[str, Callable[[Transaction], Any]]:
    def page(session: Transaction) -> None:
        listed = jobs.page(session, Filter(), limit=50, before=None)
        estimates = estimate(session, listed, worker_heartbeat_s=5, depths=depths)
        assert all(estimates[job.id].position is not None for job in listed)

    def one(session: Transaction) -> None:
        estimate(session, [jobs.get(session, some)], worker_heartbeat_s=5, depths=depths)

    return {
        "a page of jobs": page,
        "one job": one,
        "queues": lambda session: queues.overview(session, process.ledger.bell, depths=depths),
        "runnable": lambda session: steps.runnable(session, up_to=100),
        "the gate's count": lambda session: queues.count_due(session, Queue.EMBED, up_to=100),
        "a claim": lambda session: claims.claim(session, "embed", worker="w", lease_s=9),
    }


def test_ten_times_the_queue_costs_no_more(process: Process, depths: Depths) -> None:
    submit(process)
    succeed(process, claimed(process))
    some = fill(process, LONG)[LONG // 2]
    for call in calls(process, depths, some).values():
        rows_read(process, call)  # what is counted now and then is counted
    few = {name: rows_read(process, call) for name, call in calls(process, depths, some).items()}
    fill(process, 4 * LONG)

    many = {name: rows_read(process, call) for name, call in calls(process, depths, some).items()}

    assert min(few.values()) > 0
    for name in few:
        assert many[name] <= 1.2 * few[name] + 50, (name, few, many)


def test_a_long_queue_is_counted_as_a_whole_now_and_then(
    process: Process, depths: Depths, clock: Clock
) -> None:
    fill(process, LONG)

    def queued() -> int:
        with process.ledger.read() as session:
            summaries = queues.overview(session, process.ledger.bell, depths=depths)
        return next(summary.queued for summary in summaries if summary.name == "embed")

    assert queued() == LONG
    fill(process, 100)
    clock.now = 1.9
    assert queued() == LONG
    clock.now = 2.1
    assert queued() == LONG + 100


def test_positions_in_a_long_queue_are_off_by_few(process: Process, depths: Depths) -> None:
    ids = submit_many(process, LONG, "a")
    first = submit(process, lane=Lane.INTERACTIVE)
    last = submit(process, lane=Lane.BULK)
    with process.ledger.read() as session:
        every = [jobs.get(session, id_) for id_ in (*ids[::37], first, last)]
        estimates = estimate(session, every, worker_heartbeat_s=5, depths=depths)
    newer = submit(process, fair_key="a")
    with process.ledger.read() as session:
        estimates |= estimate(
            session, [jobs.get(session, newer)], worker_heartbeat_s=5, depths=depths
        )

    assert estimates[first].position == 0
    assert estimates[last].position == LONG + 1
    assert estimates[newer].position == LONG + 1  # behind all that were counted
    for rank, id_ in list(enumerate(ids))[::37]:
        position = estimates[id_].position
        assert position is not None
        assert abs(position - (rank + 1)) <= MARK_EVERY


def test_a_queue_that_is_not_long_is_exact(process: Process, depths: Depths) -> None:
    ids = submit_many(process, EXACT_STEPS, "a")
    with process.ledger.read() as session:
        every = [jobs.get(session, id_) for id_ in (ids[0], ids[617], ids[-1])]
        estimates = estimate(session, every, worker_heartbeat_s=5, depths=depths)
    assert [estimates[job.id].position for job in every] == [0, 617, EXACT_STEPS - 1]


def test_the_next_step_of_a_job_costs_no_more_among_many(process: Process, depths: Depths) -> None:
    """A running job of thousands of steps costs no more to read than one of a few."""
    ids = [submit(process) for _ in range(2)]
    for id_, count in zip(ids, (5, 3000), strict=True):
        taken = claimed(process)
        assert taken.job_id == id_
        new = [steps.NewStep(name="embed", queue=Queue.INGEST)] * count
        succeed(process, taken, children=new)

    def read(id_: UUID) -> int:
        return rows_read(
            process,
            lambda session: estimate(
                session, [jobs.get(session, id_)], worker_heartbeat_s=5, depths=depths
            ),
        )

    assert read(ids[1]) <= read(ids[0]) + 5


def blocks_read(process: Process, statement: Any, values: dict[str, Any]) -> int:
    """Pages of tables and indexes that a statement looks at; entries of an index are no rows."""
    explained = text(f"EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) {statement.text}")
    with process.ledger.engine.connect() as connection:
        plan = connection.execute(explained, values).scalar_one()[0]["Plan"]
        connection.rollback()
    return int(plan["Shared Hit Blocks"] + plan["Shared Read Blocks"])


def test_claims_do_not_walk_over_steps_whose_time_has_not_come(process: Process) -> None:
    """A key with very many delayed jobs in a queue delays nobody's claim, nor its own."""
    taken = {"queue": "embed", "worker": "w", "lease_s": 9, "routes": [""]}
    looked_for = {"alive_s": 9, "up_to": 100}

    def delay(count: int) -> None:
        for _ in range(count // 1000):
            submit_many(process, 1000, "a")
        with process.ledger.engine.connect() as connection:
            own = connection.execution_options(isolation_level="AUTOCOMMIT")
            own.execute(text("UPDATE steps SET run_after = now() + interval '1 h'"))
            own.execute(text("VACUUM ANALYZE steps"))

    def costs() -> tuple[int, ...]:
        return (
            blocks_read(process, claims.CLAIM, taken),
            blocks_read(process, steps.RUNNABLE, looked_for),
        )

    delay(1000)
    few = costs()
    delay(9000)
    many = costs()
    due = submit(process, fair_key="a")
    with_due = costs()

    for counts in (many, with_due):
        assert all(b <= a + 50 for a, b in zip(few, counts, strict=True)), (few, many, with_due)
    assert claimed(process).job_id == due
    assert claim(process) is None


def test_claims_do_not_grow_with_the_models_that_are_named(process: Process) -> None:
    """The steps of unserved models stand beside those that the worker can take."""

    def cost() -> int:
        return rows_read(
            process,
            lambda session: claims.claim(
                session, "generate", worker="w", lease_s=9, routes=["ollama"]
            ),
        )

    def name_models(count: int) -> None:
        with process.ledger.begin() as session:
            session.execute(
                text("""
                    WITH j AS (
                        INSERT INTO jobs (id, kind, state, lane, queue, fair_key, input,
                            max_attempts)
                        SELECT gen_random_uuid(), 'chat', 'queued', 1, 'generate', 'a', '{}', 3
                        FROM generate_series(1, :count) RETURNING id)
                    INSERT INTO steps (job_id, name, queue, route, lane, fair_key, state,
                        max_attempts)
                    SELECT id, 'chat.answer', 'generate', 'hf/' || id, 1, 'a', 'queued', 3 FROM j
                """),
                {"count": count},
            )
            session.execute(text("ANALYZE steps"))

    name_models(20)
    few = cost()
    name_models(2000)
    assert cost() <= few + 5
    with process.ledger.read() as session:
        assert steps.runnable(session) == {}


def test_many_running_jobs_are_estimated_with_one_look_at_the_clock(process: Process) -> None:
    for _ in range(5):
        submit(process)
        claimed(process)
    with process.ledger.begin() as session:
        session.execute(text("UPDATE jobs SET progress_done = 1, progress_total = 2"))
    statements: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        statements.append(statement)

    event.listen(process.ledger.engine, "before_cursor_execute", note)
    with process.ledger.read() as reading:
        every = jobs.page(reading, Filter(), limit=9, before=None)
        estimates = estimate(reading, every, worker_heartbeat_s=5)
    event.remove(process.ledger.engine, "before_cursor_execute", note)
    assert len(estimates) == 5
    assert len(statements) == 2, statements


def test_held_and_delayed_steps_are_not_due(process: Process) -> None:
    submit(process, run_after=HELD)
    submit(process, fair_key="b")
    submit(process, fair_key="a")
    with process.ledger.read() as session:
        assert queues.count_due(session, Queue.EMBED, up_to=9) == 2
        assert queues.count_due(session, Queue.EMBED, up_to=1) == 1
        assert queues.count_due(session, Queue.EMBED, up_to=9, fair_key="b") == 1
