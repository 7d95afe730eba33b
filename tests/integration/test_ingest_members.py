"""Archives and mails through the ledger: members are documents like others, and those that vanish
are erased."""

import io
import tarfile
import zipfile
from collections.abc import Mapping
from email.message import EmailMessage
from typing import Any
from uuid import UUID

import py7zr

from shared.documents import ingest_items
from shared.kinds.ingest import IngestDocuments
from shared.tables import Job, PathToDelete
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    live_texts,
    order_sources,
    search,
    stores_agree,
    upload,
)
from tests.integration.job_runner import drain, job_of
from workers.attempts.process import Process


def zipped(content: Mapping[str, str | bytes]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def ingest(process: Process, collection: str, name: str, data: bytes, **options: Any) -> Job:
    source = {"type": "file", "file_id": upload(process, name, data)}
    job_id = order_sources(process, collection, [source], **options)
    drain(process)
    return job_of(process, job_id)


def documents(job: Job) -> dict[str, int]:
    assert job.result is not None, job.error
    return {name: n for name, n in job.result["documents"].items() if n}


def errors(job: Job) -> dict[str, str]:
    assert job.result is not None, job.error
    return {error["source"]: error["message"] for error in job.result["errors"]}


def test_members_are_documents_that_are_added_replaced_skipped_and_erased(
    process: Process, collection: str
) -> None:
    first = zipped({"cats.md": CATS, "b/trains.txt": TRAINS, "gone.txt": "Soon gone."})
    job = ingest(process, collection, "a.zip", first, metadata={"team": "ops"})
    assert documents(job) == {"added": 3}
    assert (job.progress_done, job.progress_total) == (3, 3)
    assert live_texts(process, collection).keys() == {
        "a.zip!/cats.md", "a.zip!/b/trains.txt", "a.zip!/gone.txt",
    }  # fmt: skip
    best = search(process, collection, "When does a train leave?", k=1)[0]
    assert (best.source, best.metadata["team"]) == ("a.zip!/b/trains.txt", "ops")
    assert best.metadata["media_type"] == "text/plain"

    second = zipped({"cats.md": CATS, "b/trains.txt": f"{TRAINS} Or at ten.", "new.txt": "New."})
    job = ingest(process, collection, "a.zip", second, metadata={"team": "ops"})
    assert documents(job) == {"added": 1, "replaced": 1, "skipped": 1, "erased": 1}
    assert (job.progress_done, job.progress_total) == (4, 4)
    assert live_texts(process, collection).keys() == {
        "a.zip!/cats.md", "a.zip!/b/trains.txt", "a.zip!/new.txt",
    }  # fmt: skip
    stores_agree(process, collection)
    # With `skip`, nothing that is there changes, nor goes.
    job = ingest(process, collection, "a.zip", first, on_existing="skip")
    assert documents(job) == {"added": 1, "skipped": 2}
    assert len(live_texts(process, collection)) == 4


def test_a_failed_member_leaves_the_others_and_keeps_what_was_there(
    process: Process, collection: str
) -> None:
    ingest(process, collection, "a.zip", zipped({"a.txt": CATS, "b.txt": TRAINS}))
    data = zipped({"a.txt": CATS, "b.txt": b"\x89PNG\r\n\x1a\n\0", "../c.txt": "evil", "d.txt": ""})
    job = ingest(process, collection, "a.zip", data)
    assert documents(job) == {"skipped": 1, "failed": 3}
    assert errors(job).keys() == {"a.zip!/b.txt", "a.zip!/../c.txt", "a.zip!/d.txt"}
    assert all(message.startswith(source) for source, message in errors(job).items())
    assert live_texts(process, collection).keys() == {"a.zip!/a.txt", "a.zip!/b.txt"}


def test_an_archive_that_is_refused_changes_nothing(process: Process, collection: str) -> None:
    data = zipped({"a.txt": CATS})
    ingest(process, collection, "a.zip", data)
    job = ingest(process, collection, "a.zip", data[:-30])
    assert documents(job) == {"failed": 1}
    assert errors(job).keys() == {"a.zip"}
    job = ingest(process, collection, "b.zip", zipped({"folder/": ""}))
    assert "without any file" in errors(job)["b.zip"]
    assert (job.progress_done, job.progress_total) == (1, 1)
    assert live_texts(process, collection).keys() == {"a.zip!/a.txt"}


def test_a_mail_is_a_document_and_so_are_its_attachments(process: Process, collection: str) -> None:
    message = EmailMessage()
    message["Subject"], message["From"] = "Timetable", "kim@example.org"
    message.set_content(TRAINS)
    message.add_attachment(CATS, filename="cats.txt")
    data = message.as_bytes()
    assert documents(ingest(process, collection, "m.eml", data)) == {"added": 2}
    assert documents(ingest(process, collection, "m.eml", data)) == {"skipped": 2}
    best = search(process, collection, "How long do cats sleep?", k=1)[0]
    assert best.source == "m.eml!/cats.txt"
    best = search(process, collection, "When does a train leave?", k=1)[0]
    assert (best.source, best.metadata["title"]) == ("m.eml", "Timetable")
    message = EmailMessage()
    message["Subject"] = "Timetable"
    message.set_content(TRAINS)
    again = ingest(process, collection, "m.eml", message.as_bytes())
    assert documents(again) == {"replaced": 1, "erased": 1}
    stores_agree(process, collection)


def test_many_members_and_several_archives_in_one_job(process: Process, collection: str) -> None:
    content = {f"{n}.txt": f"Document {n} of many." for n in range(15)}
    tar, seven = io.BytesIO(), io.BytesIO()
    with tarfile.open(fileobj=tar, mode="w:xz") as archive:
        for name, text in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(text)
            archive.addfile(entry, io.BytesIO(text.encode()))
    with py7zr.SevenZipFile(seven, "w") as packed:
        packed.writestr(zipped({"in.txt": CATS}), "in.zip")
    uploads = {"a.zip": zipped(content), "b.tar.xz": tar.getvalue(), "c.7z": seven.getvalue()}
    sources = [
        {"type": "file", "file_id": upload(process, name, data), "metadata": {"from": name}}
        for name, data in uploads.items()
    ]
    sources.append({"type": "text", "name": "plain.txt", "text": TRAINS})
    job_id = order_sources(process, collection, sources)
    drain(process)
    assert counts(process, job_id) == {"added": 32}
    job = job_of(process, job_id)
    assert (job.progress_done, job.progress_total) == (32, 32)
    hit = search(process, collection, "How long do cats sleep?", k=1)[0]
    assert (hit.source, hit.metadata["from"]) == ("c.7z!/in.zip!/in.txt", "c.7z")
    assert folders_to_delete(process, job_id) == 1


def folders_to_delete(process: Process, job_id: UUID) -> int:
    with process.ledger.read() as session:
        assert ingest_items.has_members(session, job_id)
        path = f"results/{job_id.hex[-2:]}/{job_id}/members"
        return int(session.get(PathToDelete, path) is not None)


def test_the_result_has_a_count_for_each_outcome() -> None:
    outcomes = {outcome.value for outcome in ingest_items.Outcome}
    assert outcomes - {"left_out"} == IngestDocuments.model_fields.keys()
