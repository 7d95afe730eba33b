"""Fencing: what an attempt writes once it is no longer the running one changes nothing."""

import logging
from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import text

from shared.errors import Conflict
from shared.jobs import jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import Lease, NewStep
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    cancel,
    claim,
    claimed,
    doing,
    drain,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    steps_of,
    submit,
    succeed,
)
from workers.attempts.process import Process

ERROR = {"type": "Wrong", "message": "of the first attempt"}


def overtaken(process: Process) -> tuple[Claim, Claim]:
    """An attempt that lost its lease, and the one that runs now."""
    submit(process)
    first = claimed(process)
    lose_workers(process)
    make_due(process)
    return first, claimed(process)


def snapshot(process: Process) -> list[Any]:
    """Every row that a job has, less the time at which leases end."""
    with process.ledger.read() as session:
        return [
            session.execute(text(f"SELECT * FROM {table} ORDER BY 1, 2")).all()
            for table in ("jobs", "steps", "ingest_items")
        ]


WRITES: dict[str, Callable[[Any, Claim], object]] = {
    "succeed": lambda session, old: steps.succeed(
        session,
        old,
        result={"of": "the first"},
        children=[NewStep(name="embed", queue=Queue.EMBED)],
        record=lambda own: jobs.set_total(own, old.job_id, 9, "things"),
    ),
    "fail": lambda session, old: steps.fail(session, old, ERROR, dead=True),
    "fail, absorbed": lambda session, old: steps.fail(
        session, old, ERROR, absorb=lambda own: jobs.set_total(own, old.job_id, 9, "things")
    ),
    "retry": lambda session, old: steps.retry(session, old, ERROR, in_s=0, free=False),
    "free retry": lambda session, old: steps.retry(session, old, ERROR, in_s=0, free=True),
    "abandon": steps.abandon,
    "hold": steps.hold,
}


@pytest.mark.parametrize("write", WRITES)
def test_what_an_overtaken_attempt_writes_is_a_logged_no_op(
    process: Process, write: str, caplog: pytest.LogCaptureFixture
) -> None:
    first, second = overtaken(process)
    assert second.attempt == first.attempt + 1
    before = snapshot(process)

    with caplog.at_level(logging.WARNING, "shared.jobs.steps"), process.ledger.begin() as session:
        assert WRITES[write](session, first) is False

    assert "attempt 1 ignored" in caplog.text
    assert snapshot(process) == before
    assert succeed(process, second, result={"of": "the second"})
    assert job_of(process, second.job_id).result == {"of": "the second"}


@pytest.mark.parametrize("write", [name for name in WRITES if name != "hold"])
def test_an_attempt_cannot_end_twice(process: Process, write: str) -> None:
    submit(process)
    only = claimed(process)
    assert succeed(process, only, result={"n": 1})
    before = snapshot(process)

    with process.ledger.begin() as session:
        assert WRITES[write](session, only) is False

    assert snapshot(process) == before


def test_the_heartbeat_of_an_overtaken_attempt_learns_it_and_extends_nothing(
    process: Process,
) -> None:
    first, second = overtaken(process)
    before = snapshot(process)

    with process.ledger.begin() as session:
        assert steps.heartbeats(session, [first], lease_s=999, extend=[first]) == [Lease.LOST]
    assert snapshot(process) == before

    with process.ledger.begin() as session:
        assert steps.heartbeats(session, [second], lease_s=999, extend=[second]) == [Lease.GO_ON]
    assert snapshot(process) != before


def test_a_heartbeat_extends_the_lease_only_on_request(process: Process) -> None:
    submit(process)
    only = claimed(process)
    before = snapshot(process)

    with process.ledger.begin() as session:
        assert steps.heartbeats(session, [only], lease_s=999, extend=[]) == [Lease.GO_ON]

    assert snapshot(process) == before


def test_the_heartbeat_learns_that_the_job_is_ending(process: Process) -> None:
    job_id = submit(process)
    only = claimed(process)
    cancel(process, job_id)

    with process.ledger.begin() as session:
        assert steps.heartbeats(session, [only], lease_s=9, extend=[only]) == [Lease.STOP]


def test_a_lease_that_has_not_ended_is_left_alone(process: Process) -> None:
    submit(process)
    only = claimed(process)

    with process.ledger.begin() as session:
        assert steps.expired(session, limit=10) == []
    assert succeed(process, only)


def test_an_expired_lease_queues_the_step_again_and_says_why(process: Process) -> None:
    job_id = submit(process)
    claimed(process)

    lose_workers(process)

    (step,) = steps_of(process, job_id)
    assert (step.state, step.attempt, step.worker, step.lease_until) == ("queued", 1, None, None)
    assert step.error is not None
    assert step.error["type"] == "WorkerLost"
    assert job_of(process, job_id).state == "running"
    invariants_hold(process)


def test_a_step_that_kills_its_worker_ends_as_a_dead_letter(process: Process) -> None:
    job_id = submit(process, max_attempts=3)
    for attempt in (1, 2, 3):
        make_due(process)
        assert claimed(process).attempt == attempt
        lose_workers(process)

    job = job_of(process, job_id)
    assert (job.state, job.dead, job.attempt) == ("failed", True, 3)
    assert job.error is not None
    assert job.error["type"] == "WorkerLost"
    assert "attempt 3" in job.error["message"]
    assert make_due(process) == 0
    assert claim(process) is None
    invariants_hold(process, all_ended=True)
    with process.ledger.read() as session:
        dead = jobs.page(session, jobs.Filter(dead=True), limit=10, before=None)
    assert [row.id for row in dead] == [job_id]


def test_a_redriven_dead_letter_runs_from_its_start(process: Process) -> None:
    job_id = submit(process, max_attempts=1, timeout_s=50)
    claimed(process)
    lose_workers(process)

    with process.ledger.begin() as session:
        jobs.redrive(session, job_id)

    job = job_of(process, job_id)
    assert (job.state, job.dead, job.attempt, job.error) == ("queued", False, 0, None)
    assert (job.started_at, job.finished_at, job.deadline_at) == (None, None, None)
    invariants_hold(process)
    assert process.ledger.bell.waiting("embed") == 2
    drain(process, doing(lambda _: {"ran": "again"}))
    job = job_of(process, job_id)
    assert (job.state, job.result, job.attempt) == ("succeeded", {"ran": "again"}, 1)


def test_only_jobs_that_failed_or_were_cancelled_can_be_redriven(process: Process) -> None:
    open_, done, cancelled = submit(process), submit(process), submit(process)
    cancel(process, cancelled)
    claimed(process)
    succeed(process, claimed(process))

    for job_id in (open_, done):
        with pytest.raises(Conflict), process.ledger.begin() as session:
            jobs.redrive(session, job_id)
    with process.ledger.begin() as session:
        jobs.redrive(session, cancelled)
    assert job_of(process, cancelled).state == "queued"


def test_the_first_attempt_of_before_a_redrive_cannot_write_into_it(process: Process) -> None:
    job_id = submit(process, max_attempts=1)
    zombie = claimed(process)
    lose_workers(process)
    with process.ledger.begin() as session:
        jobs.redrive(session, job_id)

    assert succeed(process, zombie, result={"from": "the past"}) is False
    assert job_of(process, job_id).state == "queued"


def test_progress_of_an_attempt_that_runs_no_longer_is_ignored(process: Process) -> None:
    """A zombie of before a redrive does not lift what the new run has done."""
    job_id = submit(process)
    old = claimed(process)
    with process.ledger.begin() as session:
        jobs.report(session, old, 900, 1000, "inputs")
    assert job_of(process, job_id).progress_done == 900
    with process.ledger.begin() as session:
        steps.fail(session, old, {"type": "Permanent", "message": "m"})
    with process.ledger.begin() as session:
        jobs.redrive(session, job_id)
    new = claimed(process)

    with process.ledger.begin() as session:
        jobs.report(session, old, 950, 1000, "inputs")
    assert job_of(process, job_id).progress_done == 0
    with process.ledger.begin() as session:
        jobs.report(session, new, 3, 1000, "inputs")
    assert job_of(process, job_id).progress_done == 3
