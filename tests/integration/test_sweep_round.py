"""The sweeper: overdue jobs, what is too old, what nobody works on; one sweep at a time."""

import threading
from datetime import UTC, datetime, timedelta

from redis import Redis
from sqlalchemy import func, select, text

from shared.config import Settings
from shared.jobs import jobs, queues
from shared.jobs.claims import Claim
from shared.jobs.steps import NewStep
from shared.kinds import registry as kinds
from shared.tables import QueueState
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    claimed,
    in_threads,
    invariants_hold,
    job_of,
    make_due,
    submit,
    submit_many,
    succeed,
)
from tests.integration.sweeps import change, sweep
from workers.app import CPU_QUEUES, handlers_of
from workers.attempts.process import Process
from workers.sweep import LOCK, Sweeper


def test_a_job_that_runs_too_long_fails_as_a_timeout(process: Process) -> None:
    slow, fine = submit(process, timeout_s=0.5), submit(process, timeout_s=900)
    running = [claimed(process), claimed(process)]
    change(process, "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE timeout_s < 1")

    sweep(process)

    assert job_of(process, slow).state == "running"  # until its step has stopped
    for step in running:
        succeed(process, step, result={})
    job = job_of(process, slow)
    assert job.error is not None
    assert (job.state, job.error["type"], job.dead) == ("failed", "Timeout", False)
    assert "0.5 s" in job.error["message"]
    assert job_of(process, fine).state == "succeeded"


def test_a_job_that_waits_between_two_steps_times_out_as_well(process: Process) -> None:

    job_id = submit(process, timeout_s=0.5)
    succeed(process, claimed(process), children=[NewStep(name="embed", queue=Queue.EMBED)])
    change(process, "UPDATE jobs SET deadline_at = now() - interval '1 s'")

    sweep(process)

    assert job_of(process, job_id).state == "failed"
    invariants_hold(process, all_ended=True)


def test_a_job_that_has_not_started_does_not_time_out(process: Process) -> None:
    job_id = submit(process, timeout_s=0.001)

    sweep(process)

    assert job_of(process, job_id).state == "queued"


def test_the_sweeper_takes_back_what_lost_workers_held_and_rings_for_it(
    process: Process,
) -> None:
    job_id = submit(process)
    claimed(process)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")

    sweep(process)

    assert job_of(process, job_id).attempt == 1
    assert claimed_again(process).attempt == 2


def claimed_again(process: Process) -> Claim:

    make_due(process)
    return claimed(process)


def test_the_sweep_is_noted_for_readiness(process: Process) -> None:
    sweep(process)

    with process.ledger.read() as session:
        swept_at = session.scalar(select(QueueState.swept_at).where(QueueState.name == "control"))
    assert swept_at is not None
    assert datetime.now(UTC) - swept_at < timedelta(minutes=1)


def test_one_sweep_at_a_time(process: Process, settings: Settings) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class SlowBell:
        """Stands where the bell hangs, to hold the sweep in its middle."""

        def __init__(self, bell: object) -> None:
            self._bell = bell

        def lengths(self, lists: list[str]) -> dict[str, int]:
            inside.set()
            assert go_on.wait(PATIENCE_S)
            return dict(self._bell.lengths(lists))  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self._bell, name)

    submit(process)
    answers: list[bool] = []

    def work(own: Process, n: int) -> None:
        if n == 0:
            own.ledger.bell = SlowBell(own.ledger.bell)  # type: ignore[assignment]
            answers.append(Sweeper(own, handlers_of(CPU_QUEUES)).sweep())
            return
        assert inside.wait(PATIENCE_S)
        answers.append(Sweeper(own, handlers_of(CPU_QUEUES)).sweep())
        go_on.set()

    in_threads(2, settings, work)

    assert answers == [False, True]
    sweep(process)


def test_many_sweepers_at_once_take_every_lease_back_once(
    process: Process, settings: Settings
) -> None:
    ids = submit_many(process, 30, "a")
    for _ in ids:
        claimed(process)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")

    in_threads(4, settings, lambda own, _: Sweeper(own, handlers_of(CPU_QUEUES)).sweep())
    sweep(process)  # What two of them wanted at the same moment is left for the next round.

    with process.ledger.read() as session:
        states = session.execute(text("SELECT state, attempt, count(*) FROM steps GROUP BY 1, 2"))
        assert states.all() == [("queued", 1, 30)]
    invariants_hold(process)


def test_the_bell_does_not_ring_for_more_than_workers_can_take(process: Process) -> None:

    submit_many(process, 1500, "a")
    with Redis.from_url(process.settings.require_redis_url()) as redis:
        redis.flushall()

    sweep(process)

    assert process.ledger.bell.waiting("embed") == 1000
    sweep(process)
    assert process.ledger.bell.waiting("embed") == 1000


def test_a_paused_queue_is_not_rung_for(process: Process) -> None:

    submit(process)
    with process.ledger.begin() as session:
        queues.pause(session, Queue.EMBED)
    with Redis.from_url(process.settings.require_redis_url()) as redis:
        redis.flushall()

    sweep(process)

    assert process.ledger.bell.waiting("embed") == 0


def test_a_kind_that_is_unknown_to_the_sweeper_is_taken_back_too(process: Process) -> None:
    job_id = submit(process, kinds.SEARCH, {"collection": "c", "query": "q"}, max_attempts=1)

    claimed(process, Queue.QUERY)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")

    assert Sweeper(process, {}).sweep()

    with process.ledger.read() as session:
        assert jobs.get(session, job_id).dead


def test_a_sweeper_that_stands_still_does_not_keep_the_others_from_leases(
    process: Process,
) -> None:
    """It holds the lock, as a process does that was stopped in the middle of a round."""
    job_id = submit(process, max_attempts=1)
    claimed(process)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")
    with process.ledger.read() as still:
        assert still.scalar(select(func.pg_try_advisory_lock(LOCK)))
        sweep_noted(process, "now()")
        assert not Sweeper(process, handlers_of(CPU_QUEUES)).sweep()
        assert job_of(process, job_id).state == "running"

        sweep_noted(process, "now() - interval '1 h'")
        assert Sweeper(process, handlers_of(CPU_QUEUES)).sweep()
        assert job_of(process, job_id).state == "failed"
        still.execute(select(func.pg_advisory_unlock(LOCK)))


def sweep_noted(process: Process, moment: str) -> None:
    change(
        process,
        f"""INSERT INTO queues (name, swept_at) VALUES ('control', {moment})
        ON CONFLICT (name) DO UPDATE SET swept_at = excluded.swept_at""",
    )


def test_webhooks_wait_in_a_queue_of_their_own(process: Process) -> None:
    """What comes behind them in `control`, such as an erasure, does not wait for them."""
    for _ in range(3):
        cancel(process, submit(process, webhook={"url": "http://127.0.0.1:9/"}))

    with process.ledger.read() as session:
        counts = {
            summary.name: summary.queued
            for summary in queues.overview(session, process.ledger.bell)
        }
    assert (counts["webhook"], counts["control"]) == (3, 0)
    assert process.ledger.bell.waiting("webhook") == 3
    # Only beat sends them.
    assert Queue.WEBHOOK not in CPU_QUEUES
    assert "webhook" not in handlers_of(CPU_QUEUES)
