"""Positions and ETAs against what really happens when nothing new comes."""

import random
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import select, text

from shared.jobs.queues import Estimate, estimate
from shared.tables import Job, Worker
from shared.vocabulary import Lane
from tests.integration.job_runner import claim, claimed, job_of, submit, submit_many, succeed
from workers.attempts.process import Process


def estimates(process: Process) -> dict[UUID, Estimate]:
    with process.ledger.read() as session:
        every = session.scalars(select(Job)).all()
        return estimate(session, every, worker_heartbeat_s=5)


def positions(process: Process) -> dict[UUID, int]:
    return {
        id_: estimate.position
        for id_, estimate in estimates(process).items()
        if estimate.position is not None
    }


def order_of_claims(process: Process, *, finish: bool) -> dict[UUID, int]:
    order: dict[UUID, int] = {}
    while (step := claim(process)) is not None:
        order[step.job_id] = len(order)
        if finish:
            succeed(process, step)
    return order


@pytest.mark.parametrize("seed", range(12))
def test_positions_are_the_order_of_claims_over_lanes_and_keys(process: Process, seed: int) -> None:
    """Random histories: keys that were served, keys that hold slots, keys that are new."""
    chance = random.Random(seed)
    keys = "abcd"[: chance.randint(1, 4)]
    for _ in range(chance.randint(0, 6)):
        submit(process, fair_key=chance.choice(keys), lane=chance.choice(list(Lane)))
        held = claimed(process)
        if chance.random() < 0.5:
            succeed(process, held)
    for _ in range(chance.randint(1, 6)):
        lane, key = chance.choice(list(Lane)), chance.choice(keys)
        submit_many(process, chance.randint(1, 4), key, lane)

    answer = positions(process)

    assert answer == order_of_claims(process, finish=False)


@pytest.mark.parametrize("seed", range(4))
def test_positions_hold_for_one_slot_as_well(process: Process, seed: int) -> None:
    """Within a lane it is all the same whether steps end before the next is claimed."""
    chance = random.Random(seed)
    for _ in range(6):
        submit(process, fair_key=chance.choice("abc"))
        succeed(process, claimed(process))
    for _ in range(5):
        submit_many(process, chance.randint(1, 4), chance.choice("abc"))

    answer = positions(process)

    assert answer == order_of_claims(process, finish=True)


def test_jobs_whose_time_has_not_come_have_no_position_and_count_for_nobody(
    process: Process,
) -> None:
    later = submit(process, run_after=datetime.now(UTC) + timedelta(hours=1))
    now = submit(process)

    assert positions(process) == {now: 0}
    assert estimates(process).get(later, Estimate()).position is None


def test_the_eta_is_the_recent_pace_over_the_slots_of_living_workers(process: Process) -> None:
    for _ in range(4):
        submit(process)
        succeed(process, claimed(process))
    with process.ledger.begin() as session:
        session.execute(text("UPDATE steps SET started_at = finished_at - interval '6 seconds'"))
    first, second = submit(process), submit(process)
    assert estimates(process)[first].eta_s is None  # nobody is there to do it

    with process.ledger.begin() as session:
        for name, age_s, slots in (("alive", 0, 2), ("dead", 3600, 50)):
            session.add(
                Worker(
                    name=name,
                    hostname="here",
                    pid=1,
                    queues=["embed"],
                    concurrency=slots,
                    last_seen_at=datetime.now(UTC) - timedelta(seconds=age_s),
                )
            )

    answer = estimates(process)
    assert (answer[first].eta_s, answer[second].eta_s) == (3.0, 6.0)


def test_a_running_job_is_estimated_by_its_own_progress(process: Process) -> None:
    job_id = submit(process)
    claimed(process)
    assert estimates(process)[job_id] == Estimate()
    with process.ledger.begin() as session:
        session.execute(
            text(
                "UPDATE jobs SET progress_done = 3, progress_total = 9,"
                " started_at = now() - interval '30 seconds'"
            )
        )

    answer = estimates(process)[job_id]
    assert answer.position is None
    assert answer.eta_s == pytest.approx(60, abs=5)


def test_jobs_that_have_ended_have_no_estimate(process: Process) -> None:
    submit(process)
    job_id = claimed(process)
    succeed(process, job_id)

    assert job_of(process, job_id.job_id).id not in estimates(process)
