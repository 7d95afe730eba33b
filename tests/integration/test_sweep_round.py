"""The sweeper: overdue jobs, what is too old, what nobody works on; one sweep at a time."""

import io
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from redis import Redis
from sqlalchemy import func, select, text

from shared import files, jobs, queues
from shared.claims import Claim
from shared.config import Settings
from shared.errors import NotFound
from shared.ledger import Ledger
from shared.models import File, Job, QueueState, Step, Worker
from shared.payloads import Kind
from shared.queue import Queue
from shared.steps import NewStep
from tests.integration.workbench import (
    cancel,
    claimed,
    in_threads,
    invariants_hold,
    job_of,
    lose_workers,
    make_due,
    make_process,
    new_collection,
    order,
    order_sources,
    stores_agree,
    submit,
    submit_many,
    succeed,
)
from workers.handlers import cpu_handlers
from workers.process import Process
from workers.runner import run_next
from workers.sweep import Sweeper

PATIENCE_S = 60
OLD = "now() - interval '40 days'"


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


def sweep(process: Process) -> None:
    assert Sweeper(process, cpu_handlers()).sweep()


def change(process: Process, statement: str) -> None:
    with process.ledger.begin() as session:
        session.execute(text(statement))


def exists(process: Process, job_id: UUID) -> bool:
    try:
        job_of(process, job_id)
    except NotFound:
        return False
    return True


def upload(process: Process, name: str) -> tuple[str, str]:
    stored = process.storage.store(io.BytesIO(b"bytes"), name=name, limit_bytes=100)
    with process.ledger.begin() as session:
        file = files.record(session, stored, name=name, content_type=None)
        return str(file.id), file.path


def test_a_job_that_runs_too_long_fails_as_a_timeout(process: Process) -> None:
    slow, fine = submit(process, timeout_s=0.5), submit(process, timeout_s=900)
    running = [claimed(process), claimed(process)]
    change(process, "UPDATE jobs SET deadline_at = now() - interval '1 s' WHERE timeout_s < 1")

    sweep(process)

    assert job_of(process, slow).state == "running"  # until its step has stopped
    for each in running:
        succeed(process, each, result={})
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


def test_jobs_that_ended_long_ago_are_forgotten_with_their_steps(process: Process) -> None:
    old, new, open_ = submit(process), submit(process), submit(process)
    cancel(process, old)
    cancel(process, new)
    change(process, f"UPDATE jobs SET created_at = {OLD}")
    change(process, f"UPDATE jobs SET finished_at = {OLD} WHERE id = '{old}'")

    sweep(process)

    assert [exists(process, id_) for id_ in (old, new, open_)] == [False, True, True]
    with process.ledger.read() as session:
        assert session.scalar(select(func.count()).where(Step.job_id == old)) == 0
        assert session.scalar(select(func.count()).select_from(Job)) == 2


def test_uploads_are_kept_while_an_open_job_needs_them(process: Process) -> None:
    collection = new_collection(process)
    needed, unused, done = (upload(process, name) for name in ("needed", "unused", "done"))
    order_sources(process, collection, [{"type": "file", "file_id": needed[0]}])
    finished = order_sources(process, collection, [{"type": "file", "file_id": done[0]}])
    cancel(process, finished)
    change(process, f"UPDATE files SET created_at = {OLD}")
    recent = upload(process, "recent")

    sweep(process)

    with process.ledger.read() as session:
        assert {str(id_) for id_ in session.scalars(select(File.id))} == {needed[0], recent[0]}
    assert process.storage.read(needed[1]) == b"bytes"
    for path in (unused[1], done[1]):
        with pytest.raises(NotFound):
            process.storage.read(path)


def test_workers_that_are_long_gone_are_taken_off_the_list(process: Process) -> None:
    with process.ledger.begin() as session:
        for name, age in (("here", 0), ("gone", 3)):
            session.add(
                Worker(
                    name=name, hostname="h", pid=1, queues=["embed"], concurrency=1,
                    last_seen_at=datetime.now(UTC) - timedelta(days=age),
                )
            )  # fmt: skip

    sweep(process)

    with process.ledger.read() as session:
        assert list(session.scalars(select(Worker.name))) == ["here"]


def test_versions_that_nobody_works_on_are_collected(process: Process) -> None:
    collection = new_collection(process)
    order(process, collection, {"a": "one", "b": "two"}, fields={"max_attempts": 1})
    for _ in range(2):
        assert run_next(process, cpu_handlers(), "ingest")
    kept = order(process, collection, {"c": "three"})
    for _ in range(2):
        assert run_next(process, cpu_handlers(), "ingest")
    claimed_embed(process)
    lose_workers(process)

    sweep(process)

    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM versions")) == 1  # that of the open job
        assert session.scalar(text("SELECT count(*) FROM documents")) == 1
    cancel(process, kept)
    sweep(process)
    stores_agree(process, collection)
    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM documents")) == 0


def claimed_embed(process: Process) -> None:

    claimed(process, Queue.EMBED)


def test_one_sweep_at_a_time(process: Process, settings: Settings) -> None:
    inside, go_on = threading.Event(), threading.Event()

    class SlowBell:
        """Stands where the bell hangs, to hold the sweep in its middle."""

        def __init__(self, bell: object) -> None:
            self._bell = bell

        def waiting(self, queue: str) -> int:
            inside.set()
            assert go_on.wait(PATIENCE_S)
            return int(self._bell.waiting(queue))  # type: ignore[attr-defined]

        def __getattr__(self, name: str) -> object:
            return getattr(self._bell, name)

    submit(process)
    answers: list[bool] = []

    def work(own: Process, n: int) -> None:
        if n == 0:
            own.ledger.bell = SlowBell(own.ledger.bell)  # type: ignore[assignment]
            answers.append(Sweeper(own, cpu_handlers()).sweep())
            return
        assert inside.wait(PATIENCE_S)
        answers.append(Sweeper(own, cpu_handlers()).sweep())
        go_on.set()

    in_threads(2, settings, work)

    assert answers == [False, True]
    sweep(process)


def test_many_sweepers_at_once_take_each_lease_back_once(
    process: Process, settings: Settings
) -> None:
    ids = submit_many(process, 30, "a")
    for _ in ids:
        claimed(process)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")

    in_threads(4, settings, lambda own, _: Sweeper(own, cpu_handlers()).sweep())

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


def test_a_sweep_goes_on_without_chroma(process: Process) -> None:
    collection = new_collection(process)
    ended = order(process, collection, {"a": "one"})
    for _ in range(2):
        assert run_next(process, cpu_handlers(), "ingest")
    cancel(process, ended)
    change(process, f"UPDATE jobs SET finished_at = {OLD}")
    away = make_process(
        process.settings.model_copy(update={"chroma_url": "http://127.0.0.1:9"}), "away"
    )

    sweep(away)
    away.ledger.close()

    assert not exists(process, ended)
    sweep(process)
    stores_agree(process, collection)


def test_a_kind_that_is_unknown_to_the_sweeper_is_taken_back_too(process: Process) -> None:
    job_id = submit(process, Kind.SEARCH, {"collection": "c", "query": "q"}, max_attempts=1)

    claimed(process, Queue.QUERY)
    change(process, "UPDATE steps SET lease_until = now() - interval '1 s'")

    assert Sweeper(process, {}).sweep()

    with process.ledger.read() as session:
        assert jobs.get(session, job_id).dead
