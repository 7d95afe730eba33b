"""Several steps of one batch key: claimed at once, each with a life of its own."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any
from uuid import UUID

import pytest
from billiard.exceptions import SoftTimeLimitExceeded

from shared.config import Settings
from shared.errors import Cancelled, Permanent
from shared.jobs import queues
from shared.kinds import registry as kinds
from shared.vocabulary import Lane, Queue, State
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    in_threads,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    make_process,
    steps_of,
    submit,
)
from workers.attempts.context import Context, Done, Handler, Settle
from workers.attempts.process import Process
from workers.attempts.runner import Handlers, claim_more, run_next

Runs = list[list[UUID]]


def ask(process: Process, model: str = "a/b", **fields: Any) -> UUID:
    input_ = {
        "task": "fill-mask", "model": model, "inputs": "x", "parameters": {}, "backend": "local",
    }  # fmt: skip
    return submit(process, kinds.HF, input_, **fields)


def together(
    run_one: Callable[[Context], Any], runs: Runs | None = None, *, at_most: int = 1000
) -> Mapping[str, Handler]:
    """A handler that settles the first `at_most` of a batch, as `run_one` returns or raises."""

    def run_batch(contexts: Sequence[Context], settle: Settle) -> None:
        if runs is not None:
            runs.append([context.claim.job_id for context in contexts])
        for context in contexts[:at_most]:
            try:
                outcome: Done | Exception = Done(result=run_one(context))
            except SoftTimeLimitExceeded:
                raise
            except Exception as error:
                outcome = error
            settle(context, outcome)

    return {"hf.run": Handler(run_batch=run_batch)}


def run(process: Process, table: Handlers) -> bool:
    return run_next(process, table, Queue.HF.value)


def states(process: Process, ids: Sequence[UUID]) -> list[str]:
    return [job_of(process, job_id).state for job_id in ids]


def test_steps_of_one_model_run_in_one_batch_and_others_do_not(process: Process) -> None:
    ours = [ask(process, fair_key=f"key-{n % 3}") for n in range(5)]
    other = ask(process, "c/d")
    runs: Runs = []
    assert run(process, together(lambda _: {"ok": 1}, runs))
    assert [set(batch) for batch in runs] == [set(ours)]
    assert states(process, [*ours, other]) == [State.SUCCEEDED] * 5 + [State.QUEUED]
    drain(process, together(lambda _: {"ok": 1}, runs))
    assert runs[1:] == [[other]]
    invariants_hold(process, all_ended=True)


def test_the_batch_follows_the_lane_of_its_first_step(process: Process) -> None:
    bulk = [ask(process, lane=Lane.BULK) for _ in range(2)]
    urgent = ask(process, "c/d", lane=Lane.INTERACTIVE)
    late = ask(process, lane=Lane.INTERACTIVE)
    runs: Runs = []
    drain(process, together(lambda _: 1, runs))
    assert runs == [[urgent], [late, *bulk]]


def test_each_step_ends_in_its_own_way(process: Process) -> None:
    ids = [ask(process) for _ in range(3)]

    def run_one(context: Context) -> Any:
        if context.claim.job_id == ids[1]:
            raise Permanent("not this one")
        return [1, 2]

    assert run(process, together(run_one))
    assert states(process, ids) == [State.SUCCEEDED, State.FAILED, State.SUCCEEDED]
    assert job_of(process, ids[0]).result == [1, 2]
    assert job_of(process, ids[1]).error == {"type": "Permanent", "message": "not this one"}
    invariants_hold(process, all_ended=True)


def test_what_is_not_settled_goes_back_and_costs_no_attempt(process: Process) -> None:
    ids = [ask(process, max_attempts=1) for _ in range(6)]
    runs: Runs = []
    table = together(lambda _: 1, runs, at_most=2)
    assert run(process, table)
    assert states(process, ids) == [State.SUCCEEDED] * 2 + [State.RUNNING] * 4
    assert {step.state for job_id in ids[2:] for step in steps_of(process, job_id)} == {"queued"}
    invariants_hold(process)
    drain(process, table)
    assert set(states(process, ids)) == {State.SUCCEEDED}
    # What users see of the attempts is no more than what was counted.
    assert {job_of(process, job_id).attempt for job_id in ids} == {1}
    # The process has learnt how many are through in time.
    assert [len(batch) for batch in runs] == [6, 2, 2]
    invariants_hold(process, all_ended=True)


def test_a_cancelled_job_leaves_the_batch_and_the_others_go_on(process: Process) -> None:
    ids = [ask(process) for _ in range(3)]

    def run_one(context: Context) -> Any:
        if context.claim.job_id == ids[0]:
            cancel(process, ids[1])
        if context.claim.job_id == ids[1]:
            assert context.stop.wait(120)
            raise Cancelled(context.stop_reason)
        return 1

    assert run(process, together(run_one))
    assert states(process, ids) == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
    invariants_hold(process, all_ended=True)


def test_a_job_cancelled_before_its_turn_is_not_queued_again(process: Process) -> None:
    ids = [ask(process) for _ in range(2)]

    def run_one(_: Context) -> Any:
        cancel(process, ids[1])
        return 1

    assert run(process, together(run_one, at_most=1))
    assert states(process, ids) == [State.SUCCEEDED, State.CANCELLED]
    invariants_hold(process, all_ended=True)


@pytest.mark.parametrize("error", [RuntimeError("boom"), SoftTimeLimitExceeded()])
def test_an_error_of_the_whole_batch_is_tried_again_one_by_one(
    process: Process, error: Exception
) -> None:
    ids = [ask(process) for _ in range(3)]
    runs: Runs = []

    def run_batch(contexts: Sequence[Context], settle: Settle) -> None:
        runs.append([context.claim.job_id for context in contexts])
        if len(runs) == 1:
            raise error
        for context in contexts:
            settle(context, Done(result=1))

    table = {"hf.run": Handler(run_batch=run_batch)}
    drain(process, table)
    assert [len(batch) for batch in runs] == [3, 1, 1, 1]
    assert set(states(process, ids)) == {State.SUCCEEDED}
    invariants_hold(process, all_ended=True)


def test_a_step_that_killed_its_worker_takes_nobody_with_it(process: Process) -> None:
    """All of a batch are lost with the worker; after that each runs alone."""
    ids = [ask(process) for _ in range(3)]
    first = claimed(process, Queue.HF)
    with process.ledger.begin() as session:
        assert len(claim_more(process, session, first)) == 3
    runs: Runs = []
    table = together(lambda _: 1, runs)
    lose_workers(process, table)
    make_due(process)
    new = ask(process)
    drain(process, table)
    assert sorted(map(len, runs)) == [1, 1, 1, 1]
    assert set(states(process, [*ids, new])) == {State.SUCCEEDED}


def test_the_limit_of_steps_is_a_setting_and_batches_grow_to_it(
    process: Process, settings: Settings
) -> None:
    ids = [ask(process) for _ in range(100)]
    mine = make_process(settings, "mine", hf_batch_steps=40)
    try:
        runs: Runs = []
        drain(mine, together(lambda _: 1, runs))
    finally:
        mine.close()
    assert [len(batch) for batch in runs] == [32, 40, 28]
    assert set(states(process, ids)) == {State.SUCCEEDED}


def test_a_paused_queue_gives_no_batch(process: Process) -> None:
    ask(process)
    with process.ledger.begin() as session:
        queues.pause(session, Queue.HF)
    assert not run(process, together(lambda _: 1))


def test_two_workers_share_the_steps_and_run_each_once(
    process: Process, settings: Settings
) -> None:
    ids = [ask(process) for _ in range(120)]
    ran: list[UUID] = []

    def work(mine: Process, _: int) -> None:
        def run_one(context: Context) -> Any:
            ran.append(context.claim.job_id)
            return 1

        while run(mine, together(run_one)):
            pass

    in_threads(3, settings, work)
    assert sorted(ran) == sorted(ids)
    assert set(states(process, ids)) == {State.SUCCEEDED}
    invariants_hold(process, all_ended=True)
