"""Everything at once, at random: no deadlock, no lost step, no job that never ends."""

import random
import threading
from typing import Any
from uuid import UUID

import pytest
from sqlalchemy import text

from shared.config import Settings
from shared.errors import Conflict
from shared.jobs import jobs, steps
from shared.jobs.claims import Claim
from shared.jobs.steps import NewStep
from shared.tables import new_id
from shared.vocabulary import Lane, Queue
from tests.integration.job_runner import (
    cancel,
    claim,
    doing,
    drain,
    in_threads,
    invariants_hold,
    lose_workers,
    submit,
    succeed,
)
from workers.attempts.process import Process

ERROR = {"type": "Random", "message": "as it happens"}
OPERATIONS = 80
only_one_sweeper = threading.Lock()


def deadlocks(process: Process) -> int:
    with process.ledger.read() as session:
        count: int = session.execute(
            text("SELECT deadlocks FROM pg_stat_database WHERE datname = current_database()")
        ).scalar_one()
        return count


def some_job(process: Process, chance: random.Random) -> Any:
    with process.ledger.read() as session:
        ids = session.scalars(text("SELECT id FROM jobs ORDER BY id DESC LIMIT 12")).all()
    return chance.choice(ids) if ids else None


def one_operation(own: Process, chance: random.Random, held: list[Claim]) -> None:
    what = chance.choice(
        ["submit", "claim", "claim", "succeed", "succeed", "fork", "fail", "absorb", "retry",
         "abandon", "cancel", "redrive", "expire", "beat"]
    )  # fmt: skip
    if what == "submit":
        submit(
            own,
            fair_key=chance.choice("abc"),
            lane=chance.choice(list(Lane)),
            max_attempts=chance.choice([1, 3]),
            webhook=chance.choice([None, {"url": "http://127.0.0.1:9/"}]),
        )
    elif what == "claim":
        step = claim(own, chance.choice([Queue.EMBED, Queue.EMBED, Queue.WEBHOOK]))
        held += [step] if step else []
    elif what == "expire":
        with only_one_sweeper:
            lose_workers(own, {})
    elif what in ("cancel", "redrive"):
        job_id = some_job(own, chance)
        if job_id is not None and what == "cancel":
            cancel(own, job_id)
        elif job_id is not None:
            try:
                with own.ledger.begin() as session:
                    jobs.redrive(session, job_id)
            except Conflict:
                pass
    elif held:
        mine = held.pop(chance.randrange(len(held)))
        end(own, what, mine)


def end(own: Process, what: str, mine: Claim) -> None:
    if what in ("succeed", "fork"):
        is_fork = what == "fork" and mine.name == "embed"
        children = [NewStep(name="embed", queue=Queue.EMBED)] * (2 if is_fork else 0)
        succeed(own, mine, result={"n": 1}, children=children)
        return
    with own.ledger.begin() as session:
        if what == "fail":
            steps.fail(session, mine, ERROR, dead=True)
        elif what == "absorb":
            steps.fail(session, mine, ERROR, absorb=lambda _: None)
        elif what == "retry":
            steps.retry(session, mine, ERROR, in_s=0, free=False)
        elif what == "beat":
            steps.heartbeats(session, [mine], lease_s=5, extend=[mine])
        elif steps.is_ending(session, mine):
            steps.abandon(session, mine)


@pytest.mark.parametrize("seed", [1, 2])
def test_eight_threads_at_random_leave_a_sound_ledger(
    process: Process, settings: Settings, seed: int
) -> None:
    before = deadlocks(process)
    for _ in range(6):
        submit(process)

    def work(own: Process, n: int) -> None:
        chance, held = random.Random(seed * 100 + n), list[Claim]()
        for _ in range(OPERATIONS):
            one_operation(own, chance, held)

    in_threads(8, settings, work)

    invariants_hold(process)
    lose_workers(process, {})
    everything = {**doing(lambda _: {}, "embed"), **doing(lambda _: {}, "webhook")}
    drain(process, everything)
    invariants_hold(process, all_ended=True)
    assert deadlocks(process) == before


def test_a_redrive_does_not_deadlock_with_the_webhook_of_the_end_before(
    process: Process, settings: Settings
) -> None:
    """The redrive deletes the step that another worker is just recording."""
    before = deadlocks(process)
    ids = []
    for _ in range(40):
        ids.append(submit(process, webhook={"url": "http://127.0.0.1:9/"}))
        cancel(process, ids[-1])
    held = [claim(process, Queue.WEBHOOK) for _ in ids]

    def work(own: Process, n: int) -> None:
        for job_id, hook in zip(ids, held, strict=True):
            assert hook is not None
            if n == 0:
                with own.ledger.begin() as session:
                    jobs.redrive(session, job_id)
            else:
                succeed(own, hook)

    in_threads(2, settings, work)

    invariants_hold(process)
    assert deadlocks(process) == before


def test_ids_of_many_threads_are_distinct_and_of_one_thread_in_order() -> None:
    ids = [new_id() for _ in range(20_000)]

    assert ids == sorted(set(ids))
    assert {(id_.version, id_.variant) for id_ in ids} == {(7, "specified in RFC 4122")}


def test_an_id_sorts_after_the_one_it_is_to_follow_even_of_a_clock_that_is_ahead() -> None:
    ahead = UUID(int=new_id().int + (60_000 << 80))

    following = new_id(after=ahead)

    assert following > ahead
    assert following.version == 7
    assert new_id() < ahead
