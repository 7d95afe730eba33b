"""The life of an attempt: how it runs, and how it ends."""

import logging
import threading
from contextlib import ExitStack
from datetime import datetime
from typing import Any

import psycopg
import pytest
from sqlalchemy import event, text
from sqlalchemy.exc import OperationalError
from sqlalchemy.orm import Session

from shared.config import Settings
from shared.database.transaction import Transaction
from shared.errors import Permanent, Retryable, Unavailable
from shared.jobs.claims import Claim
from shared.jobs.steps import NewStep
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    PATIENCE_S,
    cancel,
    claimed,
    doing,
    drain,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    make_process,
    steps_of,
    submit,
)
from tests.integration.sweeps import sweep
from tests.waits import until
from workers.attempts.context import Context, Done, Handler
from workers.attempts.heartbeat import heartbeats_of
from workers.attempts.process import Process
from workers.attempts.runner import conclude_all, run, run_next


def test_an_empty_queue_is_no_work(process: Process) -> None:
    assert run_next(process, {}, "embed") is False


def test_success_is_recorded_with_what_the_handler_writes(process: Process) -> None:
    job_id = submit(process)
    after: list[str] = []

    def record(transaction: Transaction) -> None:
        transaction.execute(text("UPDATE jobs SET progress_done = 5"))
        transaction.after_commit(lambda: after.append("ran"))

    drain(process, doing(lambda _: Done(result={"n": 1}, record=record)))

    job = job_of(process, job_id)
    assert (job.state, job.result, job.progress_done) == ("succeeded", {"n": 1}, 5)
    assert after == ["ran"]


def test_a_record_that_fails_leaves_nothing_and_is_tried_again(process: Process) -> None:
    job_id = submit(process)
    left = [1]

    def record(session: Session) -> None:
        session.execute(text("UPDATE jobs SET progress_done = progress_done + 1"))
        if left:
            left.pop()
            raise Retryable("half way")

    children = [NewStep(name="embed", queue=Queue.EMBED)]
    run_next(process, doing(lambda _: Done(record=record, children=children)), "embed")
    assert (len(steps_of(process, job_id)), job_of(process, job_id).progress_done) == (1, 0)
    make_due(process)
    run_next(process, doing(lambda _: Done(record=record, children=children)), "embed")

    assert (len(steps_of(process, job_id)), job_of(process, job_id).progress_done) == (2, 1)
    invariants_hold(process)


def test_what_is_tidied_up_afterwards_may_fail(
    process: Process, caplog: pytest.LogCaptureFixture
) -> None:
    job_id = submit(process)

    def after() -> None:
        raise Unavailable("Chroma is away")

    with caplog.at_level(logging.WARNING, "shared.database.transaction"):
        drain(process, doing(lambda _: Done(result={}, record=lambda own: own.after_commit(after))))

    assert job_of(process, job_id).state == "succeeded"
    assert "Chroma is away" in caplog.text


def test_a_step_that_this_worker_does_not_know_fails_and_says_so(process: Process) -> None:
    job_id = submit(process)

    run_next(process, {}, "embed")

    error = job_of(process, job_id).error
    assert error is not None
    assert "of one version" in error["message"]


def test_a_failure_that_is_absorbed_lets_the_job_go_on(process: Process) -> None:
    job_id = submit(process, max_attempts=1)
    absorbed: list[str] = []

    def fail(_: Context) -> Done:
        raise Permanent("this part cannot be done")

    def absorb(_: Session, claim: Claim, message: str) -> None:
        absorbed.append(f"{claim.name}: {message}")

    table = {"embed": Handler(run=fail, absorb=absorb, finish=lambda _, id_: {"of": str(id_)})}
    drain(process, table)

    job = job_of(process, job_id)
    assert (job.state, job.error) == ("succeeded", None)
    assert job.result == {"of": str(job_id)}
    assert absorbed == ["embed: this part cannot be done"]


def test_one_failed_step_stops_the_others_of_its_job(process: Process) -> None:
    job_id = submit(process)

    def run_(context: Context) -> Done:
        if context.claim.payload.get("n") is None:
            return Done(
                children=[
                    NewStep(name="embed", queue=Queue.EMBED, payload={"n": n}) for n in range(4)
                ]
            )
        raise Permanent("no")

    drain(process, doing(run_))

    assert job_of(process, job_id).state == "failed"
    states = [step.state for step in steps_of(process, job_id)]
    assert states == ["succeeded", "failed", "cancelled", "cancelled", "cancelled"]
    invariants_hold(process, all_ended=True)


def test_the_last_of_several_steps_ends_the_job_with_its_finish(process: Process) -> None:
    job_id = submit(process)

    def run_(context: Context) -> Done:
        if context.claim.payload.get("n") is None:
            return Done(
                children=[
                    NewStep(name="embed", queue=Queue.EMBED, payload={"n": n}) for n in range(3)
                ]
            )
        return Done(result={"n": context.claim.payload["n"]})

    calls: list[str] = []

    def finish(_: Session, id_: object) -> dict[str, Any]:
        calls.append(str(id_))
        return {"all": "done"}

    drain(process, {"embed": Handler(run=run_, finish=finish)})

    assert job_of(process, job_id).result == {"all": "done"}
    assert calls == [str(job_id)]


def test_the_heartbeat_keeps_a_long_step(settings: Settings, process: Process) -> None:
    """It moves the end of the lease on and on, while the step is at work."""
    job_id = submit(process)
    own = make_process(settings, step_lease_s=0.2)
    ends: set[datetime] = set()

    def slow(context: Context) -> None:
        while len(ends) < 4:
            context.check()
            with own.ledger.read() as session:
                ends.add(session.execute(text("SELECT lease_until FROM steps")).scalar_one())
            context.stop.wait(0.02)

    run_next(own, doing(slow), "embed")
    own.close()

    assert job_of(process, job_id).state == "succeeded"


def test_a_step_over_its_soft_limit_is_tried_again(process: Process, settings: Settings) -> None:
    job_id = submit(process, max_attempts=1)
    own = make_process(settings, step_soft_limit_s=0)

    def slow(context: Context) -> None:
        assert context.stop.wait(PATIENCE_S)
        context.check()

    run_next(own, doing(slow), "embed")
    own.close()

    job = job_of(process, job_id)
    assert job.error is not None
    assert (job.dead, job.error["type"]) == (True, "Retryable")
    assert "SLUICE_STEP_SOFT_LIMIT_S" in job.error["message"]


def test_a_step_that_lost_its_lease_stops_and_undoes_what_it_wrote(process: Process) -> None:
    job_id = submit(process)
    undone: list[str] = []

    def slow(context: Context) -> None:
        context.on_lost.append(lambda: undone.append("vectors"))
        lose_workers(process, {})
        assert context.stop.wait(PATIENCE_S)
        context.check()

    run_next(process, doing(slow), "embed")

    assert undone == ["vectors"]
    (step,) = steps_of(process, job_id)
    assert (step.state, step.attempt) == ("queued", 1)


@pytest.mark.parametrize("ending", ["succeeds", "fails", "is refused"])
def test_a_lost_step_undoes_its_writes_however_it_ends(process: Process, ending: str) -> None:
    submit(process)
    undone: list[str] = []
    errors = {"fails": RuntimeError("a bug"), "is refused": Permanent("no")}

    def slow(context: Context) -> dict[str, str]:
        context.on_lost.append(lambda: undone.append("vectors"))
        lose_workers(process, {})
        if ending in errors:
            raise errors[ending]
        return {}

    run(process, doing(slow), claimed(process))

    assert undone == ["vectors"]


def test_an_undo_that_fails_does_not_keep_the_others_from_running(process: Process) -> None:
    submit(process)
    undone: list[str] = []

    def bad() -> None:
        raise Unavailable("Chroma is away")

    def slow(context: Context) -> None:
        context.on_lost += [bad, lambda: undone.append("second")]
        lose_workers(process, {})

    run_next(process, doing(slow), "embed")

    assert undone == ["second"]


def test_heartbeats_end_with_their_steps(process: Process) -> None:
    for _ in range(5):
        submit(process)
    drain(process, doing(lambda _: {}))

    for thread in threading.enumerate():
        if thread.name == "heartbeat":
            thread.join(PATIENCE_S)
            assert not thread.is_alive()


@pytest.mark.parametrize("is_cancelled", [True, False], ids=["cancelled", "beyond its limit"])
def test_a_step_that_hangs_loses_its_lease_and_the_worker_goes_on(
    settings: Settings, process: Process, is_cancelled: bool
) -> None:
    """Its thread never looks whether it has to stop, as one that is stuck in a pattern."""
    worker = make_process(
        settings, step_soft_limit_s=3600 if is_cancelled else 1, step_stall_s=0.05,
        step_lease_s=0.5, step_heartbeat_s=0.02,
    )  # fmt: skip
    begun, go_on, undone = threading.Event(), threading.Event(), []

    def hang(context: Context) -> Done:
        context.on_lost.append(lambda: undone.append("vectors"))
        begun.set()
        assert go_on.wait(PATIENCE_S)
        return Done(result={"too": "late"})

    job_id = submit(process)
    thread = threading.Thread(target=run_next, args=(worker, doing(hang), "embed"))
    thread.start()
    try:
        assert begun.wait(PATIENCE_S)
        if is_cancelled:
            cancel(process, job_id)
        other = job_id if not is_cancelled else submit(process)

        def runs_another() -> bool:
            """Once the lease has ended. The same process runs other steps, and keeps those as ever.

            A heartbeat that was late on a busy machine may renew a lease that had ended before.
            """
            sweep(process)
            if job_of(process, job_id).state != ("cancelled" if is_cancelled else "running"):
                return False
            if not is_cancelled:
                make_due(process)
            return run_next(worker, doing(lambda _: {"in": "time"}), "embed")

        until(runs_another, "the lease ends")
        assert job_of(process, other).result == {"in": "time"}
    finally:
        go_on.set()
        thread.join()
        worker.close()
    assert undone == ["vectors"]
    assert job_of(process, other).result == {"in": "time"}


def test_a_long_step_that_shows_progress_keeps_its_lease(
    settings: Settings, process: Process
) -> None:
    """It is beyond its limit and not yet at a place where it can stop."""
    worker = make_process(
        settings, step_soft_limit_s=1, step_stall_s=5, step_lease_s=0.3, step_heartbeat_s=0.02
    )
    seen: list[bool] = []

    def work(context: Context) -> Done:
        assert context.stop.wait(PATIENCE_S)  # the limit is over
        first = scalar(process, "SELECT lease_until FROM steps")

        def is_renewed() -> bool:
            context.progress()
            return bool(scalar(process, "SELECT lease_until FROM steps") > first)

        until(is_renewed, "the lease is renewed")
        seen.append(True)
        return Done(result={"in": "time"})

    job_id = submit(process)
    run_next(worker, doing(work), "embed")
    worker.close()
    assert seen == [True]
    assert job_of(process, job_id).result == {"in": "time"}


@pytest.mark.parametrize("together", [False, True], ids=["alone", "in a batch"])
def test_a_commit_whose_answer_is_lost_keeps_the_result(process: Process, together: bool) -> None:
    """The server has committed; the connection breaks before it can say so."""
    undone: list[str] = []
    job_ids = [submit(process, max_attempts=1) for _ in range(2 if together else 1)]

    def work(context: Context) -> Done:
        context.on_lost.append(lambda: undone.append("the file"))
        return Done(result={"kept": True}, record=record)

    broken: list[bool] = []
    followed: list[str] = []

    def record(transaction: Transaction) -> None:
        transaction.after_commit(lambda: followed.append("the commit"))
        break_after_commit(transaction)

    def break_after_commit(session: Session) -> None:
        if broken:
            return

        @event.listens_for(session, "after_commit", once=True)
        def _lose(_session: Session) -> None:
            broken.append(True)
            raise OperationalError("COMMIT", None, psycopg.OperationalError("connection lost"))

    if together:
        handler = Handler(run=work)
        with ExitStack() as stack:
            contexts = [Context(process, claimed(process)) for _ in job_ids]
            running = [
                stack.enter_context(heartbeats_of(process).during(context)) for context in contexts
            ]
            conclude_all(
                process, handler, [(heartbeat, work(heartbeat.context)) for heartbeat in running]
            )
    else:
        run_next(process, {"embed": Handler(run=work)}, "embed")

    assert broken == [True]
    assert undone == []
    assert followed == ["the commit"] * len(job_ids)
    for job_id in job_ids:
        job = job_of(process, job_id)
        assert (job.state, job.result) == ("succeeded", {"kept": True})


def scalar(process: Process, statement: str) -> Any:
    with process.ledger.read() as session:
        return session.scalar(text(statement))
