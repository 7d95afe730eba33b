"""What a sweep clears away: jobs, uploads, workers and versions past their time, no others."""

import io
from datetime import UTC, datetime, timedelta
from uuid import UUID

import pytest
from sqlalchemy import func, select, text

from shared import files, jobs
from shared.document_models import File
from shared.errors import NotFound
from shared.models import Job, Step, Worker
from shared.payloads import Kind
from shared.queue import Queue
from tests.integration.ingestion import new_collection, order, order_sources, stores_agree
from tests.integration.sweeps import change, sweep
from tests.integration.workbench import cancel, claimed, job_of, lose_workers, make_process, submit
from workers.handlers import cpu_handlers
from workers.process import Process
from workers.runner import run_next

OLD = "now() - interval '40 days'"


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


def test_uploads_are_kept_while_an_open_task_needs_them(process: Process) -> None:
    alone, listed, unused = (upload(process, name) for name in ("alone", "listed", "unused"))
    for inputs in ({"file_id": alone[0]}, [{"file_id": listed[0]}, "Zm9v"]):
        submit_task(process, inputs)
    change(process, f"UPDATE files SET created_at = {OLD}")

    sweep(process)

    with process.ledger.read() as session:
        kept = set(map(str, session.scalars(select(File.id))))
    assert kept == {alone[0], listed[0]}
    with pytest.raises(NotFound):
        process.storage.read(unused[1])


def test_a_large_result_goes_with_its_job(process: Process) -> None:
    job_id, other = submit_task(process, "x"), submit_task(process, "y")
    paths = {}
    for id_ in (job_id, other):
        paths[id_] = f"{jobs.result_folder(id_)}/1-1.json"
        process.storage.write(paths[id_], io.BytesIO(b"[]"))
        cancel(process, id_)
    change(process, f"UPDATE jobs SET finished_at = {OLD} WHERE id = '{job_id}'")

    sweep(process)

    assert process.storage.read(paths[other]) == b"[]"
    with pytest.raises(NotFound):
        process.storage.read(paths[job_id])


def submit_task(process: Process, inputs: object) -> UUID:
    input_ = {
        "task": None, "model": "a/b", "inputs": inputs, "parameters": {}, "backend": "local",
    }  # fmt: skip
    return submit(process, Kind.HF, input_)
