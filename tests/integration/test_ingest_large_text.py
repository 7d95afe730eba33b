"""Plain texts that are read in sections and written a portion at a time: as the others in the end,
whatever was half done. What is large is made small here, and so are the portions."""

from uuid import UUID

import pytest
from sqlalchemy import func, select

from shared.config import Settings
from shared.documents import versions
from shared.tables import Chunk, Version
from shared.vocabulary import Queue
from tests.integration.ingestion import (
    counts,
    ingest_files,
    live_texts,
    load_all,
    order_sources,
    stores_agree,
    upload,
)
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    handlers,
    invariants_hold,
    job_of,
    lose_workers,
    make_process,
)
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest import large_texts, steps
from workers.ingest.erasure import collect_garbage

TEXT = "\r\n\r\n".join(f"페이지 {n} speaks of matter {n} and of nothing else." for n in range(40))
PORTIONS = 8


@pytest.fixture(autouse=True)
def _small(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(large_texts, "LARGE_TEXT_BYTES", 1000)
    monkeypatch.setattr(large_texts, "GROWTH_CHUNKS", 40 // PORTIONS)


def order(process: Process, collection: str, *names: str, text: str = TEXT) -> UUID:
    sources = [{"type": "file", "file_id": upload(process, name, text.encode())} for name in names]
    return order_sources(process, collection, sources)


def chunk_rows(process: Process) -> int:
    with process.ledger.read() as session:
        return session.scalar(select(func.count()).select_from(Chunk)) or 0


def begin(process: Process, monkeypatch: pytest.MonkeyPatch, *, portions: int) -> None:
    """Run a load step that is killed after so many portions."""
    written: list[object] = []

    def grow(*arguments: object) -> bool:
        if len(written) == portions:
            raise SystemExit
        written.append(arguments)
        return original(*arguments)  # type: ignore[arg-type]

    original = versions.grow
    claim = claimed(process, Queue.INGEST)
    with monkeypatch.context() as patch:
        patch.setattr(versions, "grow", grow)
        with pytest.raises(SystemExit):
            steps.load(Context(process, claim))


def test_chunks_hashes_and_metadata_are_those_of_a_whole_text(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert ingest_files(process, collection, {"a.txt": TEXT.encode()}) == {"added": 1}
    in_portions = live_texts(process, collection)["a.txt"]
    stores_agree(process, collection)

    monkeypatch.setattr(large_texts, "LARGE_TEXT_BYTES", 10**6)
    assert ingest_files(process, collection, {"a.txt": TEXT.encode()}) == {"skipped": 1}
    assert ingest_files(process, collection, {"b.txt": TEXT.encode()}) == {"added": 1}
    assert live_texts(process, collection)["b.txt"] == in_portions
    with process.ledger.read() as session:
        rows = session.execute(select(Version.sha256, Version.meta, Version.chunk_count)).all()
    assert rows[0] == rows[1]

    monkeypatch.setattr(large_texts, "LARGE_TEXT_BYTES", 1000)
    changed = (TEXT + "\n\nMore.").encode()
    assert ingest_files(process, collection, {"b.txt": TEXT.encode()}) == {"skipped": 1}
    assert ingest_files(process, collection, {"b.txt": changed}) == {"replaced": 1}
    stores_agree(process, collection)


def test_a_step_that_stops_on_the_way_goes_on(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(large_texts, "GROWTH_SHARE", 0)  # after each portion
    job_id = order(process, collection, "a.txt")
    count = 0
    while run_next(process, handlers(), Queue.INGEST.value):
        count += 1
    assert count > PORTIONS
    drain(process)
    assert counts(process, job_id) == {"added": 1}
    found = live_texts(process, collection)["a.txt"]
    assert all(sum(f"matter {n} " in text for text in found) for n in range(40))
    stores_agree(process, collection)
    invariants_hold(process, all_ended=True)


def test_a_kill_between_portions_is_made_good(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = order(process, collection, "a.txt")
    assert run_next(process, handlers(), Queue.INGEST.value)
    begin(process, monkeypatch, portions=3)
    assert chunk_rows(process) == 3 * (40 // PORTIONS)
    lose_workers(process)
    drain(process)

    assert counts(process, job_id) == {"added": 1}
    job = job_of(process, job_id)
    assert job.work_total == job.work_done == chunk_rows(process)
    with process.ledger.read() as session:
        assert session.scalars(select(Version.chunk_count)).all() == [chunk_rows(process)]
    stores_agree(process, collection)


def test_what_a_cancelled_job_has_written_goes(
    process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    job_id = order(process, collection, "a.txt")
    assert run_next(process, handlers(), Queue.INGEST.value)
    begin(process, monkeypatch, portions=2)
    cancel(process, job_id)
    lose_workers(process)
    drain(process)
    assert job_of(process, job_id).state == "cancelled"
    assert collect_garbage(process) == 1
    assert chunk_rows(process) == 0
    assert order(process, collection, "a.txt")
    drain(process)
    stores_agree(process, collection)


def test_a_content_is_written_by_one_step_at_a_time(
    settings: Settings, process: Process, collection: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same file twice in a job, and in another job meanwhile."""
    first = order(process, collection, "a.txt", "a.txt")
    load_plan_and_spread(process)
    begin(process, monkeypatch, portions=1)
    second = order(process, collection, "a.txt")
    # Steps that wait for the content would be due again before all have been looked at.
    patient = make_process(settings, retry_base_s=600, retry_cap_s=600)
    load_all(patient)
    patient.close()
    assert job_of(process, second).state == "running"
    lose_workers(process)
    drain(process)
    assert counts(process, first) == {"added": 1, "skipped": 1}
    assert counts(process, second) == {"skipped": 1}
    found = live_texts(process, collection)["a.txt"]
    assert len(set(found)) == len(found)
    stores_agree(process, collection)


def load_plan_and_spread(process: Process) -> None:
    """Large sources of one step take a step of their own each."""
    for _ in range(2):
        assert run_next(process, handlers(), Queue.INGEST.value)


def test_limits_and_bad_bytes_fail_the_document_alone(
    settings: Settings, process: Process, collection: str
) -> None:
    bad = TEXT.encode() + b"\xff\xfe\xff more"
    assert ingest_files(process, collection, {"bad.txt": bad, "a.txt": b"One."}) == {
        "added": 1, "failed": 1,
    }  # fmt: skip
    strict = make_process(settings, max_document_chunks=10)
    try:
        job_id = order(strict, collection, "a.txt")
        drain(strict)
        assert counts(strict, job_id) == {"failed": 1}
        (error,) = (job_of(strict, job_id).result or {})["errors"]
        assert "SLUICE_MAX_DOCUMENT_CHUNKS" in error["message"]
    finally:
        strict.close()
    stores_agree(process, collection)
