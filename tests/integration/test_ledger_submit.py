"""Submitting: idempotency, batches, and what is announced after the commit and never before."""

import json
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import func, select, text

from shared.config import Settings
from shared.database.transaction import Ledger, Transaction
from shared.errors import Conflict
from shared.jobs import jobs, submission
from shared.jobs.submission import NewJob
from shared.kinds import registry as kinds
from shared.redis.events import stream_key
from shared.tables import Job, Step
from shared.vocabulary import Queue
from tests.integration.job_runner import (
    cancel,
    claimed,
    doing,
    drain,
    in_threads,
    invariants_hold,
    job_of,
    make_process,
    submit,
    succeed,
)
from tests.servers import Server, start_redis
from workers.app import CPU_QUEUES, handlers_of
from workers.attempts.context import Context, Done
from workers.attempts.process import Process
from workers.sweep import Sweeper


def new_job(**fields: Any) -> NewJob:
    return NewJob(**{"kind": kinds.EMBED, "input": {"texts": ["a"]}, "fair_key": "k", **fields})


def count_of(process: Process, table: type[Job] | type[Step]) -> int:
    with process.ledger.read() as session:
        return session.scalar(select(func.count()).select_from(table)) or 0


def roll_back(process: Process, work: Callable[[Transaction], object]) -> None:
    """Do the work in a transaction that fails."""

    def fail() -> None:
        with process.ledger.begin() as session:
            work(session)
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()


def events_of(process: Process, job_id: UUID) -> list[tuple[str, dict[str, Any]]]:
    with Redis.from_url(process.settings.require_redis_url(), decode_responses=True) as redis:
        entries = redis.xrange(stream_key(job_id))
    return [(fields["type"], json.loads(fields["data"])) for _, fields in entries]


def test_the_same_key_and_body_give_the_same_job(process: Process) -> None:
    with process.ledger.begin() as session:
        first = submission.submit(session, new_job(idempotency_key="once"))
    with process.ledger.begin() as session:
        second = submission.submit(session, new_job(idempotency_key="once"))

    assert (first.is_new, second.is_new) == (True, False)
    assert (second.id, second.created_at) == (first.id, first.created_at)
    assert count_of(process, Step) == 1
    assert process.ledger.bell.waiting("embed") == 1


@pytest.mark.parametrize(
    "changed",
    [
        {"input": {"texts": ["b"]}},
        {"metadata": {"ticket": 1}},
        {"timeout_s": 3.0},
        {"max_attempts": 7},
        {"webhook": {"url": "http://127.0.0.1:9/"}},
        {"run_after": datetime(2030, 1, 1, tzinfo=UTC)},
    ],
    ids=lambda changed: next(iter(changed)),
)
def test_the_same_key_with_another_body_is_refused(
    process: Process, changed: dict[str, Any]
) -> None:
    with process.ledger.begin() as session:
        submission.submit(session, new_job(idempotency_key="once"))

    with pytest.raises(Conflict, match="once"), process.ledger.begin() as session:
        submission.submit(session, new_job(idempotency_key="once", **changed))
    assert count_of(process, Job) == 1


def test_keys_of_different_clients_do_not_meet(process: Process) -> None:
    with process.ledger.begin() as session:
        one = submission.submit(session, new_job(idempotency_key="once", fair_key="anna"))
        other = submission.submit(session, new_job(idempotency_key="once", fair_key="ben"))

    assert one.id != other.id


def test_sixteen_concurrent_submits_with_one_key_make_one_job(
    process: Process, settings: Settings
) -> None:
    def work(own: Process, _: int) -> set[UUID]:
        ids = set()
        for n in range(5):
            with own.ledger.begin() as session:
                ids.add(submission.submit(session, new_job(idempotency_key=f"key {n}")).id)
        return ids

    answers = in_threads(16, settings, work)

    assert len(set.union(*answers)) == 5
    assert all(len(ids) == 5 for ids in answers)
    assert (count_of(process, Job), count_of(process, Step)) == (5, 5)


def test_a_key_whose_first_submit_was_rolled_back_is_free(process: Process) -> None:
    roll_back(process, lambda session: submission.submit(session, new_job(idempotency_key="once")))

    with process.ledger.begin() as session:
        assert submission.submit(session, new_job(idempotency_key="once", metadata={"n": 2})).is_new


def test_a_batch_is_committed_whole_or_not_at_all(process: Process) -> None:
    with process.ledger.begin() as session:
        ids = submission.submit_batch(session, [new_job(metadata={"n": n}) for n in range(20)])
    assert [job_of(process, id_).meta["n"] for id_ in ids] == list(range(20))
    assert process.ledger.bell.waiting("embed") == 20
    invariants_hold(process)

    bad = new_job(metadata={"of": {1, 2}})  # a set is no JSON
    with pytest.raises(Exception, match="JSON"), process.ledger.begin() as session:
        submission.submit_batch(session, [new_job(), bad])
    assert count_of(process, Job) == 20


def test_nothing_is_announced_before_the_commit_nor_after_a_rollback(process: Process) -> None:
    with process.ledger.begin() as session:
        job_id = submission.submit(session, new_job()).id
        jobs.advance(session, job_id, 1)
        assert process.ledger.bell.waiting("embed") == 0
        assert events_of(process, job_id) == []
    assert process.ledger.bell.waiting("embed") == 1
    assert [type_ for type_, _ in events_of(process, job_id)] == ["progress"]

    made: list[UUID] = []

    def submit_more(session: Transaction) -> None:
        made.append(submission.submit(session, new_job()).id)
        jobs.advance(session, made[0], 1)

    roll_back(process, submit_more)
    assert process.ledger.bell.waiting("embed") == 1
    assert events_of(process, made[0]) == []


def test_a_job_that_runs_later_does_not_ring_yet(process: Process) -> None:
    submit(process, run_after=datetime.now(UTC) + timedelta(hours=1))

    assert process.ledger.bell.waiting("embed") == 0


def test_the_stream_tells_of_start_progress_and_end(process: Process) -> None:
    job_id = submit(process)

    def run(context: Context) -> Done:
        with context.process.ledger.begin() as session:
            jobs.set_total(session, job_id, 2, "things")
        return Done(result={}, record=lambda session: jobs.advance(session, job_id, 2))

    drain(process, doing(run))

    assert events_of(process, job_id) == [
        ("state", {"state": "running"}),
        ("progress", {"done": 0, "total": 2, "unit": "things"}),
        ("progress", {"done": 2, "total": 2, "unit": "things"}),
        ("end", {"state": "succeeded"}),
    ]


def test_the_stream_tells_of_a_cancel_and_a_redrive(process: Process) -> None:
    job_id = submit(process)
    cancel(process, job_id)
    with process.ledger.begin() as session:
        jobs.redrive(session, job_id)

    assert events_of(process, job_id) == [
        ("end", {"state": "cancelled"}),
        ("state", {"state": "queued"}),
    ]


@pytest.fixture
def own_redis(server_home: Path, request: pytest.FixtureRequest) -> Iterator[Server]:
    server = start_redis(server_home / request.node.name[:30])
    yield server
    server.stop()


def test_without_redis_jobs_are_taken_and_later_rung(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    own_redis: Server,
) -> None:
    process = make_process(settings.model_copy(update={"redis_url": _secret(own_redis.url)}))
    own_redis.stop()
    ids = [submit(process) for _ in range(3)]
    succeed(process, claimed(process), result={})

    # A sweep without Redis does its other work.
    assert Sweeper(process, handlers_of(CPU_QUEUES)).sweep()

    own_redis.start()
    assert process.ledger.bell.waiting("embed") == 0
    sweeper = Sweeper(process, handlers_of(CPU_QUEUES))
    assert sweeper.sweep()
    assert process.ledger.bell.waiting("embed") == 2
    assert sweeper.sweep()
    assert process.ledger.bell.waiting("embed") == 2
    assert {job_of(process, id_).state for id_ in ids[1:]} == {"queued"}
    process.close()


def test_after_losing_every_key_of_redis_all_jobs_are_rung_for_again(process: Process) -> None:
    for _ in range(4):
        submit(process)
    submit(process, kinds.SEARCH, {"collection": "some", "query": "q"})
    submit(process, run_after=datetime.now(UTC) + timedelta(hours=1))
    with Redis.from_url(process.settings.require_redis_url()) as redis:
        redis.flushall()

    assert Sweeper(process, handlers_of(CPU_QUEUES)).sweep()

    assert process.ledger.bell.waiting("embed") == 4
    assert process.ledger.bell.waiting("query") == 1


def test_what_is_waited_for_is_on_disk_with_its_end_or_before_it_is_named(
    process: Process,
) -> None:
    durability = text("SHOW synchronous_commit")
    with process.ledger.begin() as session:
        submission.submit(session, new_job(), is_waited=True)
        assert session.scalar(durability) == "off"
    with process.ledger.begin() as session:
        submission.submit(session, new_job())
        assert session.scalar(durability) == "on"

    with process.ledger.read() as session:
        written = session.scalar(text("SELECT pg_current_wal_insert_lsn()"))
    process.ledger.flush()
    with process.ledger.read() as session:
        is_flushed = session.scalar(
            text("SELECT pg_current_wal_flush_lsn() >= CAST(:written AS pg_lsn)"),
            {"written": written},
        )
    assert is_flushed is True


def test_a_ring_is_a_message_that_celery_can_read(process: Process) -> None:
    submit(process)
    with Redis.from_url(process.settings.require_redis_url()) as redis:
        message = json.loads(redis.lindex(Queue.EMBED.value, 0))

    assert message["headers"]["task"] == "sluice.ring"
    assert message["properties"]["delivery_info"]["routing_key"] == "embed"


def _secret(url: str) -> Any:
    return Settings(_env_file=None, redis_url=url).redis_url
