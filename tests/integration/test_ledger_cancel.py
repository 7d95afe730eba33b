"""Cancelling: at once where nothing runs, within a heartbeat where something does."""

import threading
from collections.abc import Callable
from uuid import UUID

import pytest

from shared.config import Settings
from shared.errors import NotFound, Retryable
from shared.jobs import jobs
from shared.jobs.steps import NewStep
from shared.tables import new_id
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    claim,
    claimed,
    doing,
    drain,
    in_threads,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    steps_of,
    submit,
    succeed,
)
from workers.attempts.context import Context, Done
from workers.attempts.process import Process
from workers.attempts.runner import run_next


def test_a_queued_job_is_cancelled_at_once(process: Process) -> None:
    job_id = submit(process)

    cancel(process, job_id)

    job = job_of(process, job_id)
    assert (job.state, job.error, job.result) == ("cancelled", None, None)
    assert claim(process) is None
    invariants_hold(process, all_ended=True)


def test_a_running_job_is_cancelled_only_when_its_step_has_stopped(process: Process) -> None:
    job_id = submit(process)
    only = claimed(process)

    cancel(process, job_id)
    assert job_of(process, job_id).state == "running"
    invariants_hold(process)

    succeed(process, only, result={"too": "late"})
    job = job_of(process, job_id)
    assert (job.state, job.result) == ("cancelled", None)
    invariants_hold(process, all_ended=True)


def test_the_running_handler_notices_within_a_heartbeat(process: Process) -> None:
    job_id = submit(process)
    stopped = threading.Event()

    def run(context: Context) -> None:
        cancel(process, job_id)
        if context.stop.wait(PATIENCE_S):
            stopped.set()
        context.check()
        raise AssertionError("check() let a cancelled step go on")

    run_next(process, doing(run), "embed")

    assert stopped.is_set()
    (step,) = steps_of(process, job_id)
    assert (step.state, job_of(process, job_id).state) == ("cancelled", "cancelled")
    invariants_hold(process, all_ended=True)


def test_children_of_a_step_that_ends_during_the_cancel_are_not_run(process: Process) -> None:
    job_id = submit(process)
    first = claimed(process)
    cancel(process, job_id)

    succeed(process, first, children=[NewStep(name="embed", queue=Queue.EMBED)] * 3)

    assert [step.state for step in steps_of(process, job_id)] == ["succeeded"]
    assert job_of(process, job_id).state == "cancelled"


def test_between_two_steps_the_next_is_cancelled(process: Process) -> None:
    job_id = submit(process)
    succeed(process, claimed(process), children=[NewStep(name="embed", queue=Queue.EMBED)])

    cancel(process, job_id)

    assert [step.state for step in steps_of(process, job_id)] == ["succeeded", "cancelled"]
    assert job_of(process, job_id).state == "cancelled"


def test_a_job_with_several_running_steps_ends_with_the_last_of_them(process: Process) -> None:
    job_id = submit(process)
    succeed(process, claimed(process), children=[NewStep(name="embed", queue=Queue.EMBED)] * 3)
    running = [claimed(process), claimed(process)]

    cancel(process, job_id)
    assert job_of(process, job_id).open_steps == 2
    succeed(process, running[0])
    assert job_of(process, job_id).state == "running"
    succeed(process, running[1])

    assert job_of(process, job_id).state == "cancelled"
    invariants_hold(process, all_ended=True)


def test_a_step_that_fails_while_its_job_is_cancelled_leaves_it_cancelled(
    process: Process,
) -> None:
    job_id = submit(process, max_attempts=1)

    def run(_: Context) -> None:
        cancel(process, job_id)
        raise RuntimeError("at the same moment")

    run_next(process, doing(run), "embed")

    job = job_of(process, job_id)
    assert (job.state, job.dead) == ("cancelled", False)


def test_a_step_is_not_tried_again_once_its_job_is_cancelled(process: Process) -> None:
    job_id = submit(process)

    def run(_: Context) -> None:
        cancel(process, job_id)
        raise RuntimeError("that would be retried")

    run_next(process, doing(run), "embed")

    assert make_due(process) == 0
    assert job_of(process, job_id).state == "cancelled"


def race_with_cancel(settings: Settings, run: Callable[[Context], None]) -> list[UUID]:
    """Cancel jobs, one after the other, in the moment in which a worker takes their step."""
    ids: list[UUID] = []
    barrier = threading.Barrier(2)

    def work(own: Process, n: int) -> None:
        for _ in range(25):
            if n == 0:
                ids.append(submit(own))
            barrier.wait(PATIENCE_S)
            if n == 0:
                cancel(own, ids[-1])
            else:
                run_next(own, doing(run), "embed")
            barrier.wait(PATIENCE_S)

    in_threads(2, settings, work, retry_base_s=1000, retry_cap_s=1000)
    return ids


def test_a_cancel_that_comes_while_a_retry_is_written_is_not_forgotten(
    process: Process, settings: Settings
) -> None:
    """Whichever is first, no cancelled job waits out the backoff of a step."""

    def fail(_: Context) -> None:
        raise Retryable("try me again")

    ids = race_with_cancel(settings, fail)

    assert {job_of(process, job_id).state for job_id in ids} == {"cancelled"}
    invariants_hold(process, all_ended=True)


def test_the_job_of_a_lost_worker_is_cancelled_when_its_lease_ends(process: Process) -> None:
    job_id = submit(process)
    claimed(process)
    cancel(process, job_id)

    lose_workers(process)

    assert job_of(process, job_id).state == "cancelled"
    invariants_hold(process, all_ended=True)


def test_cancelling_twice_and_after_the_end_changes_nothing(process: Process) -> None:
    twice, done = submit(process), submit(process)
    cancel(process, twice)
    first = job_of(process, twice)
    succeed(process, claimed(process), result={"n": 1})
    ended = job_of(process, done)

    for job_id in (twice, done):
        cancel(process, job_id)

    assert job_of(process, twice).finished_at == first.finished_at
    job = job_of(process, done)
    assert (job.state, job.result, job.finished_at) == ("succeeded", {"n": 1}, ended.finished_at)


def test_cancelling_a_running_job_twice_ends_it_once(process: Process) -> None:
    job_id = submit(process, webhook={"url": "http://127.0.0.1:9/"})
    only = claimed(process)
    cancel(process, job_id)
    cancel(process, job_id)

    succeed(process, only)
    cancel(process, job_id)

    names = [step.name for step in steps_of(process, job_id)]
    assert names == ["embed", "webhook"]
    assert job_of(process, job_id).open_steps == 0


def test_an_unknown_job_cannot_be_cancelled(process: Process) -> None:
    with pytest.raises(NotFound):
        cancel(process, new_id())


def test_a_cancel_racing_with_a_claim_always_wins_in_the_end(
    process: Process, settings: Settings
) -> None:
    def until_stopped(context: Context) -> None:
        context.stop.wait(PATIENCE_S)
        context.check()

    ids = race_with_cancel(settings, until_stopped)

    assert {job_of(process, job_id).state for job_id in ids} == {"cancelled"}
    invariants_hold(process, all_ended=True)


def test_a_cancelled_job_can_be_redriven_and_cancelled_again(process: Process) -> None:
    job_id = submit(process)
    for _ in range(2):
        cancel(process, job_id)
        with process.ledger.begin() as session:
            jobs.redrive(session, job_id)

    drain(process, doing(lambda _: Done(result={"n": 2})))
    assert job_of(process, job_id).result == {"n": 2}
