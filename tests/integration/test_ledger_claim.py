"""Claiming: which step is next, and that every step is claimed once."""

import re
from collections import Counter
from datetime import UTC, datetime, timedelta

import pytest
from sqlalchemy import text

from shared.config import Settings
from shared.jobs import claims, queues, steps, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.vocabulary import Lane, Queue
from tests.integration.job_runner import (
    claim,
    claimed,
    in_threads,
    job_of,
    make_due,
    submit,
    submit_many,
    succeed,
)
from workers.attempts.process import Process


def keys_in_turn(process: Process, *, at_once: int = 1) -> str:
    """The keys of all steps in the order of claims, with so many slots."""
    running, order = [], ""
    while (step := claim(process)) is not None:
        order += job_of(process, step.job_id).fair_key
        running.append(step)
        if len(running) == at_once:
            succeed(process, running.pop(0))
    return order


def test_a_claim_counts_the_attempt_and_starts_the_job(process: Process) -> None:
    job_id = submit(process, timeout_s=60)

    step = claimed(process)

    assert (step.job_id, step.attempt, step.name) == (job_id, 1, "embed")
    job = job_of(process, job_id)
    assert (job.state, job.attempt) == ("running", 1)
    assert job.started_at is not None
    assert job.deadline_at == job.started_at + timedelta(seconds=60)
    assert claim(process) is None


def test_only_claims_of_steps_that_compute_and_no_more_do_not_wait_for_the_disk(
    process: Process,
) -> None:
    submit(process)
    submit(process, kinds.INGEST, dict(kinds.INGEST.example))
    durability = {}
    for queue in (Queue.EMBED, Queue.INGEST):
        with process.ledger.begin() as session:
            step = claims.claim(session, queue.value, worker=process.worker_name, lease_s=60)
            assert step is not None
            durability[step.name] = session.scalar(text("SHOW synchronous_commit"))
    assert durability == {"embed": "off", "ingest.plan": "on"}


def test_a_better_lane_goes_before_fair_share_and_age(process: Process) -> None:
    bulk = submit(process, lane=Lane.BULK, fair_key="never served")
    normal = submit(process, lane=Lane.NORMAL, fair_key="busy")
    urgent = [submit(process, lane=Lane.INTERACTIVE, fair_key="busy") for _ in range(3)]

    order = [claimed(process).job_id for _ in range(5)]

    assert order == [*urgent, normal, bulk]


def test_within_a_key_the_oldest_job_goes_first(process: Process) -> None:
    ids = [submit(process) for _ in range(30)]

    assert [claimed(process).job_id for _ in range(30)] == ids


def test_a_batch_is_served_in_its_own_order(process: Process) -> None:
    ids = submit_many(process, 50, "a")

    assert [claimed(process).job_id for _ in range(50)] == ids


def test_with_one_slot_two_keys_alternate_however_much_one_has(process: Process) -> None:
    submit_many(process, 8, "a")
    submit_many(process, 4, "b")

    assert keys_in_turn(process) == "abababab" + "aaaa"


def test_a_newcomer_is_served_next(process: Process) -> None:
    submit_many(process, 1000, "a")
    for _ in range(5):
        succeed(process, claimed(process))
    submit(process, fair_key="b")

    assert job_of(process, claimed(process).job_id).fair_key == "b"


def test_a_key_with_many_running_steps_waits_for_one_with_few(process: Process) -> None:
    submit_many(process, 10, "a")
    held = [claimed(process) for _ in range(3)]
    submit_many(process, 4, "b")

    order = "".join(job_of(process, claimed(process).job_id).fair_key for _ in range(6))

    assert len(held) == 3
    assert order[:3] == "bbb"  # b has to catch up with a's three
    assert sorted(order[3:5]) == ["a", "b"]


def test_several_slots_are_shared_evenly(process: Process) -> None:
    for key in "abc":
        submit_many(process, 9, key)

    order = keys_in_turn(process, at_once=4)

    for first in range(0, 27, 3):
        assert sorted(order[first : first + 3]) == ["a", "b", "c"]


def test_a_step_is_not_claimed_before_its_time(process: Process) -> None:
    later = submit(process, run_after=datetime.now(UTC) + timedelta(hours=1))
    assert claim(process) is None

    now = submit(process, fair_key="someone else")
    assert claimed(process).job_id == now
    make_due(process)
    assert claimed(process).job_id == later


def test_a_delayed_step_does_not_hold_up_those_behind_it(process: Process) -> None:
    submit(process, run_after=datetime.now(UTC) + timedelta(hours=1))
    ready = submit(process)

    assert claimed(process).job_id == ready


def test_a_paused_queue_gives_nothing_until_it_is_resumed(process: Process) -> None:
    submit(process)
    with process.ledger.begin() as session:
        queues.pause(session, Queue.EMBED)
    assert claim(process) is None
    with process.ledger.read() as session:
        assert steps.runnable(session, worker_heartbeat_s=5) == {}

    with process.ledger.begin() as session:
        queues.resume(session, process.ledger.bell, Queue.EMBED)
    assert claim(process) is not None


def test_pausing_one_queue_leaves_the_others_alone(process: Process) -> None:
    with process.ledger.begin() as session:
        queues.pause(session, Queue.QUERY)
    submit(process)
    submit(process, kinds.SEARCH, {"collection": "some", "query": "q"})

    assert claim(process) is not None
    assert claim(process, Queue.QUERY) is None


def test_eight_claimers_claim_every_step_once(process: Process, settings: Settings) -> None:
    ids = {id_ for n in range(6) for id_ in submit_many(process, 25, f"key-{n}")}

    def work(own: Process, _: int) -> list[tuple[int, str]]:
        pairs = []
        while (step := claim(own)) is not None:
            pairs.append((step.step_id, str(step.job_id)))
            if len(pairs) % 3:
                succeed(own, step)
        return pairs

    taken = [pair for part in in_threads(8, settings, work) for pair in part]

    assert max(Counter(step for step, _ in taken).values()) == 1
    assert {job for _, job in taken} == {str(id_) for id_ in ids}


def test_a_claim_does_not_wait_for_one_that_is_not_committed_yet(process: Process) -> None:
    submit(process, fair_key="a")
    succeed(process, claimed(process))  # a key that was never served waits once, for its turn's row
    first, second = submit_many(process, 2, "a")

    with process.ledger.begin() as slow:
        one = claims.claim(slow, "embed", worker="slow", lease_s=60)
        with process.ledger.begin() as quick:
            quick.execute(text("SET LOCAL lock_timeout = '2s'"))
            other = claims.claim(quick, "embed", worker="quick", lease_s=60)

    assert one is not None
    assert other is not None
    assert [one.job_id, other.job_id] == [first, second]


def test_concurrent_claimers_share_one_key_without_missing_any(
    process: Process, settings: Settings
) -> None:
    """All of them want the same row first; the losers must get the next one, not nothing."""
    submit_many(process, 64, "only one")

    taken = in_threads(8, settings, lambda own, _: [claim(own) for _ in range(8)])

    ids = [step.step_id for part in taken for step in part if step is not None]
    assert len(ids) == len(set(ids)) == 64


BLOCKS = re.compile(r"Buffers: shared hit=(\d+)(?: read=(\d+))?")


def blocks_of_a_claim(process: Process) -> tuple[int, str]:
    """Blocks that a claim touches, and its plan. The claim itself is undone."""
    values = {"queue": "embed", "worker": "test", "lease_s": 60, "routes": [""]}
    explain = text(f"EXPLAIN (ANALYZE, BUFFERS, TIMING OFF) {claims.CLAIM.text}")
    with process.ledger.read() as session:
        plan = "\n".join(line for (line,) in session.execute(explain, values))
        session.rollback()
    hit = BLOCKS.search(plan)
    assert hit is not None, plan
    return int(hit[1]) + int(hit[2] or 0), plan


def add_steps(process: Process, count: int, keys: int) -> None:
    job = NewJob(kind=kinds.EMBED, input={"texts": ["a"]}, fair_key="")
    with process.ledger.begin() as session:
        job_id = submission.submit(session, job).id
        session.execute(
            text("""
                INSERT INTO steps (job_id, name, queue, lane, fair_key, state, max_attempts)
                SELECT :job_id, 'embed', 'embed', n % 3, 'key-' || n % :keys, 'queued', 3
                FROM generate_series(1, :count) n
            """),
            {"job_id": job_id, "keys": keys, "count": count},
        )


@pytest.mark.parametrize("is_analyzed", [True, False])
def test_a_claim_costs_the_same_with_a_hundred_steps_and_with_many(
    process: Process, *, is_analyzed: bool
) -> None:
    def measure() -> tuple[int, str]:
        if is_analyzed:
            with process.ledger.begin() as session:
                session.execute(text("ANALYZE steps"))
        return blocks_of_a_claim(process)

    add_steps(process, 100, keys=4)
    few, _ = measure()
    add_steps(process, 20_000, keys=4)
    many, plan = measure()

    assert "Seq Scan on steps" not in plan
    # An index of 20,000 entries is a level or two deeper; reading it whole takes hundreds.
    assert many < few + 150, plan
