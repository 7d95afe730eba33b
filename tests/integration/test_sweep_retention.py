"""What a sweep clears away: jobs, uploads, workers and versions past their time, no others."""

import io
from datetime import UTC, datetime, timedelta
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import func, select, text

from shared import files
from shared.config import Settings
from shared.documents.documents import chunk_id
from shared.errors import NotFound
from shared.jobs import jobs
from shared.kinds import registry as kinds
from shared.tables import File, Job, PathToDelete, Step, Worker, new_id
from shared.vocabulary import Queue
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    document_id,
    ingest,
    new_collection,
    order,
    order_sources,
    stores_agree,
    vector_ids,
)
from tests.integration.job_runner import cancel, claimed, job_of, lose_workers, make_process, submit
from tests.integration.sweeps import change, sweep
from workers.app import CPU_QUEUES, handlers_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry
from workers.sweep import Sweeper

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


def test_a_job_that_goes_on_is_kept_whatever_its_row_says(process: Process) -> None:
    queued, running = submit(process), submit(process)
    change(process, f"UPDATE jobs SET state = 'running' WHERE id = '{running}'")
    change(process, f"UPDATE jobs SET finished_at = {OLD}")

    sweep(process)

    assert [exists(process, id_) for id_ in (queued, running)] == [True, True]


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


def test_files_go_when_they_expire_with_all_their_parts(process: Process) -> None:
    with process.ledger.begin() as session:
        growing, kept = (
            files.begin(session, name=name, purpose=files.Purpose.BATCH_OUTPUT, content_type=None)
            for name in ("growing", "kept")
        )
    parts = {
        file.id: [files.write_part(process.storage, file.id, data) for data in (b"one", b"two")]
        for file in (growing, kept)
    }
    with process.ledger.begin() as session:
        files.append(session, growing.id, *parts[growing.id])
        files.append(session, kept.id, parts[kept.id][0])
        files.append(session, kept.id, parts[kept.id][1])
    whole = upload(process, "whole")
    for file_id in (growing.id, whole[0]):
        change(process, f"UPDATE files SET expires_at = now() WHERE id = '{file_id}'")

    sweep(process)

    with process.ledger.read() as session:
        (left,) = session.scalars(select(File))
    assert left.id == kept.id
    assert files.read(process.storage, left) == b"onetwo"
    assert left.size_bytes == 6
    for path in (whole[1], *(part.path for part in parts[growing.id])):
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
        assert run_next(process, handlers_of(CPU_QUEUES), "ingest")
    kept = order(process, collection, {"c": "three"})
    for _ in range(2):
        assert run_next(process, handlers_of(CPU_QUEUES), "ingest")
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
        assert run_next(process, handlers_of(CPU_QUEUES), "ingest")
    cancel(process, ended)
    change(process, f"UPDATE jobs SET finished_at = {OLD}")
    away = make_process(
        process.settings.model_copy(update={"chroma_url": "http://127.0.0.1:9"}), "away"
    )

    sweep(away)
    away.close()

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
    return submit(process, kinds.HF, input_)


def test_what_the_storage_does_not_delete_is_tried_again_and_stops_nothing_else(
    process: Process, settings: Settings
) -> None:
    stuck, fine = upload(process, "stuck"), upload(process, "fine")
    job_id = submit_task(process, "x")
    folder = jobs.result_folder(job_id)
    process.storage.write(f"{folder}/1-1.json", io.BytesIO(b"[]"))
    cancel(process, job_id)
    change(process, f"UPDATE files SET created_at = {OLD}")
    change(process, f"UPDATE jobs SET finished_at = {OLD}")
    hasty = make_process(settings, retry_base_s=0.000001)

    class Stubborn:
        """The real storage, but for one file that it does not let go."""

        def __init__(self) -> None:
            self.deletes_all = False

        def delete(self, path: str) -> None:
            if path == stuck[1] and not self.deletes_all:
                raise PermissionError("not now")
            process.storage.delete(path)

        def delete_folder(self, path: str) -> None:
            process.storage.delete_folder(path)

    storage = Stubborn()
    hasty.__dict__["storage"] = storage

    sweep(hasty)

    with process.ledger.read() as session:
        assert session.scalars(select(File.id)).all() == []
        assert session.scalars(select(PathToDelete.path)).all() == [stuck[1]]
    assert process.storage.read(stuck[1]) == b"bytes"
    for gone in (fine[1], f"{folder}/1-1.json"):
        with pytest.raises(NotFound):
            process.storage.read(gone)
    storage.deletes_all = True
    sweep(hasty)
    hasty.close()
    with process.ledger.read() as session:
        assert session.scalars(select(PathToDelete.path)).all() == []
    with pytest.raises(NotFound):
        process.storage.read(stuck[1])


def test_a_backlog_goes_a_few_at_a_time(process: Process, settings: Settings) -> None:
    ids = [submit(process) for _ in range(12)]
    for job_id in ids:
        cancel(process, job_id)
    change(process, f"UPDATE jobs SET finished_at = {OLD}")
    small = make_process(settings, sweep_limit_rows=5)
    left = []
    for _ in range(3):
        sweep(small)
        with process.ledger.read() as session:
            left.append(session.scalar(select(func.count()).select_from(Job)))
    small.close()
    assert left == [7, 2, 0]


def test_jobs_of_any_input_keep_no_upload_and_stop_no_retention(process: Process) -> None:
    """Inputs of shapes that no version of Sluice writes."""
    unused = upload(process, "unused")
    for input_ in ("5", "[]", '{"sources": 7}', '{"inputs": null}', '{"sources": [[1], {}]}'):
        for kind in (kinds.INGEST, kinds.HF):
            job_id = submit(process)
            change(
                process,
                f"UPDATE jobs SET kind = '{kind.name}', input = '{input_}' WHERE id = '{job_id}'",
            )
    change(process, f"UPDATE files SET created_at = {OLD}")

    sweep(process)

    with process.ledger.read() as session:
        assert session.scalars(select(File.id)).all() == []
    with pytest.raises(NotFound):
        process.storage.read(unused[1])


def test_vectors_that_came_after_the_erasure_are_detected(process: Process) -> None:
    """A worker that was taken for dead writes for a version whose rows have been erased."""
    collection = new_collection(process)
    ingest(process, collection, {"kept": "one", "erased": "two"})
    kept = vector_ids(process, collection)
    erased = document_id(process, collection, "erased")
    with process.ledger.read() as session:
        version = session.execute(
            text("SELECT live_version_id FROM documents WHERE id = :id"), {"id": erased}
        ).scalar_one()
    erase(process, document_ids=[erased])
    kept = vector_ids(process, collection)
    late = [chunk_id(version, 0), chunk_id(version, 7)]
    own = "a-note-of-somebody-else"
    store_of(process).upsert(
        collection,
        [VectorEntry(id=id_, text="two", metadata={"source": "erased"}) for id_ in (*late, own)],
        np.eye(3, 384, dtype=np.float32),
    )
    assert vector_ids(process, collection) == {*kept, *late, own}

    sweep(process)

    assert vector_ids(process, collection) == {*kept, own}


def test_stray_vectors_are_detected_in_large_collections_round_by_round(
    process: Process, settings: Settings
) -> None:
    collection = new_collection(process)
    ingest(process, collection, {f"{n:02}": f"document {n}" for n in range(11)})
    kept = vector_ids(process, collection)
    late = [chunk_id(new_id(), 0) for _ in range(5)]
    store_of(process).upsert(
        collection,
        [VectorEntry(id=id_, text="late", metadata={"source": "late"}) for id_ in late],
        np.eye(len(late), 384, dtype=np.float32),
    )
    small = make_process(settings, sweep_limit_rows=3)
    sweeper = Sweeper(small, handlers_of(CPU_QUEUES))
    for _ in range(20):
        assert sweeper.sweep()
    small.close()
    assert vector_ids(process, collection) == kept
