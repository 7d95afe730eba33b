"""Sources that are folders of buckets or of disks, through fsspec."""

import io
import os
import unicodedata
import zipfile
from collections.abc import Iterator
from email.message import EmailMessage
from pathlib import Path
from threading import Event
from typing import Any
from uuid import uuid4

import fsspec
import pytest
from fsspec.implementations.memory import MemoryFileSystem
from sqlalchemy import text

from shared.config import Settings, load_settings
from shared.database.transaction import Ledger
from shared.documents import collections, remote
from shared.errors import ConfigurationError, InvalidInput
from shared.kinds import registry as kinds
from shared.kinds.ingest import INGEST, IngestInput
from shared.urls import folder_url
from tests.integration.ingestion import (
    counts,
    live_texts,
    new_collection,
    order_sources,
    stores_agree,
)
from tests.integration.job_runner import (
    drain,
    handlers,
    job_of,
    make_due,
    make_process,
    submit,
)
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.retrieval.embed import EMBEDDERS
from workers.rounds import Round
from workers.sweep import Retention


@pytest.fixture
def bucket() -> str:
    """A folder of a storage in memory."""
    return f"memory:///bucket-{uuid4().hex[:8]}/"


@pytest.fixture
def process(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    bucket: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Process]:
    monkeypatch.setitem(EMBEDDERS, "toy", "tests.integration.toy_embedder:load")
    (tmp_path / "docs").mkdir()
    process = make_process(
        settings,
        embed_step_chunks=128,
        source_folders=(bucket, folder_url(f"file://{tmp_path}/docs")),
    )
    yield process
    process.close()


def run(process: Process, collection: str, url: str, **options: Any) -> Any:
    job_id = order_sources(process, collection, [{"type": "folder", "url": url, **options}])
    drain(process)
    return counts(process, job_id), job_of(process, job_id)


def write(url: str, text: str) -> None:
    with fsspec.open(url, "w") as stream:
        stream.write(text)


def test_a_bucket_is_read_and_then_only_what_has_changed(process: Process, bucket: str) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    for n in range(20):
        write(f"{bucket}docs/{n % 3}/page-{n}.md", f"# Page {n}\n\nIt speaks of matter {n}.")
    write(f"{bucket}docs/image.png", "x")
    write(f"{bucket}docs/.hidden/a.md", "secret")
    write(f"{bucket}other/a.md", "secret")
    done, job = run(process, collection, f"{bucket}docs")
    assert done == {"added": 20}
    assert "(.png 1). With ocr some of them are." in job.warnings[0]
    texts = live_texts(process, collection)
    assert texts[f"{bucket}docs/1/page-7.md"] == ["# Page 7\n\nIt speaks of matter 7."]
    assert run(process, collection, f"{bucket}docs/")[0] == {"skipped": 20}

    write(f"{bucket}docs/1/page-7.md", "# Page 7\n\nIt speaks of something else.")
    write(f"{bucket}docs/new.txt", "A new one.")
    fsspec.filesystem("memory").rm(f"{bucket}docs/0/page-0.md".removeprefix("memory://"))
    done, job = run(process, collection, f"{bucket}docs")
    assert done == {"added": 1, "replaced": 1, "skipped": 18}
    assert job.result["vanished"] == [f"{bucket}docs/0/page-0.md"]
    assert f"{bucket}docs/0/page-0.md" in live_texts(process, collection)
    done, job = run(process, collection, f"{bucket}docs", on_vanished="erase")
    assert done == {"skipped": 20}
    assert f"{bucket}docs/0/page-0.md" not in live_texts(process, collection)
    assert run(process, collection, f"{bucket}docs")[1].result["vanished"] == []
    stores_agree(process, collection)

    # Whoever empties a bucket by mistake keeps what is here.
    fsspec.filesystem("memory").rm(f"{bucket}docs/1".removeprefix("memory://"), recursive=True)
    fsspec.filesystem("memory").rm(f"{bucket}docs/2".removeprefix("memory://"), recursive=True)
    done, job = run(process, collection, f"{bucket}docs", on_vanished="erase")
    assert "none of them was erased" in job.warnings[-1]
    assert len(live_texts(process, collection)) == 20


def test_an_archive_in_a_bucket_is_read_once_and_goes_with_what_is_in_it(
    process: Process, bucket: str
) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("one.txt", "First.")
        archive.writestr("deep/two.txt", "Second.")
    with fsspec.open(f"{bucket}docs/a.zip", "wb") as stream:
        stream.write(buffer.getvalue())
    message = EmailMessage()
    message.set_content("The mail.")
    message.add_attachment("The attachment.", filename="three.txt")
    with fsspec.open(f"{bucket}docs/b.eml", "wb") as stream:
        stream.write(message.as_bytes())
    write(f"{bucket}docs/c.md", "Alone.")
    write(f"{bucket}docs/d.md", "Alone, too.")
    a, b = f"{bucket}docs/a.zip", f"{bucket}docs/b.eml"
    assert run(process, collection, f"{bucket}docs")[0] == {"added": 6}
    # One for the archive: it is not even read.
    done, job = run(process, collection, f"{bucket}docs", on_vanished="erase")
    assert (done, job.result["vanished"]) == ({"skipped": 4}, [])
    assert job.progress_total == 4

    with process.ledger.begin() as session:
        session.execute(text("UPDATE containers SET is_whole = false"))
    assert run(process, collection, f"{bucket}docs")[0] == {"skipped": 6}

    system = fsspec.filesystem("memory")
    for url in (a, b):
        system.rm(url.removeprefix("memory://"))
    gone = [f"{a}!/deep/two.txt", f"{a}!/one.txt", b, f"{b}!/three.txt"]
    done, job = run(process, collection, f"{bucket}docs")
    assert job.result["vanished"] == gone
    done, job = run(process, collection, f"{bucket}docs", on_vanished="erase", max_erased_share=0.9)
    assert (done, job.result["vanished"]) == ({"skipped": 2}, gone)
    assert set(live_texts(process, collection)) == {f"{bucket}docs/c.md", f"{bucket}docs/d.md"}
    assert run(process, collection, f"{bucket}docs")[1].result["vanished"] == []
    stores_agree(process, collection)


def test_what_may_not_be_listed_has_not_vanished(
    process: Process, bucket: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    for name in ("a/1", "a/2", "b/3", "b/4", "b/5"):
        write(f"{bucket}docs/{name}.md", f"Text {name}.")
    assert run(process, collection, f"{bucket}docs")[0] == {"added": 5}
    fsspec.filesystem("memory").rm(f"{bucket}docs/b/5.md".removeprefix("memory://"))
    ls = MemoryFileSystem.ls
    error: OSError = PermissionError(13, "refused", "a")

    def refusing(self: MemoryFileSystem, path: str, detail: bool = True, **options: Any) -> Any:
        if path.rstrip("/").endswith("/docs/a"):
            raise error
        return ls(self, path, detail=detail, **options)

    monkeypatch.setattr(MemoryFileSystem, "ls", refusing)
    done, job = run(process, collection, f"{bucket}docs", on_vanished="erase")
    assert (done, job.result["vanished"]) == ({"skipped": 2}, [])
    assert "may not read 1 folder" in job.warnings[0]
    assert len(live_texts(process, collection)) == 5
    error = OSError("the network is down")
    job_id = order_sources(
        process, collection,
        [{"type": "folder", "url": f"{bucket}docs", "on_vanished": "erase"}],
        fields={"max_attempts": 1},
    )  # fmt: skip
    for _ in range(3):
        make_due(process)
        run_next(process, handlers(), "ingest")
    assert job_of(process, job_id).result is None
    monkeypatch.setattr(MemoryFileSystem, "ls", ls)
    drain(process)
    assert job_of(process, job_id).result["vanished"] == [f"{bucket}docs/b/5.md"]


def test_names_that_look_alike_and_names_that_are_no_text(process: Process, tmp_path: Path) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    folder = tmp_path / "docs"
    (folder / "한글.md").write_text("composed")
    (folder / unicodedata.normalize("NFD", "한글.md")).write_text("decomposed")
    (folder / unicodedata.normalize("NFD", "다른.md")).write_text("alone")
    (folder / "two\nlines 100% #1?.md").write_text("lines")
    (folder / os.fsdecode(b"\xb0\xa1.md")).write_text("CP949")
    done, job = run(process, collection, f"file://{folder}")
    assert done == {"added": 2, "failed": 2}
    assert {error["source"] for error in job.result["errors"]} == {f"file://{folder}/한글.md"}
    assert "names that are not UTF-8 1" in job.warnings[0]
    assert set(live_texts(process, collection)) == {
        f"file://{folder}/다른.md", f"file://{folder}/two\nlines 100% #1?.md",
    }  # fmt: skip
    assert run(process, collection, f"file://{folder}")[0] == {"skipped": 2, "failed": 2}


def test_what_is_known_of_files_goes_with_their_documents(process: Process, bucket: str) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    write(f"{bucket}docs/a.md", "Text.")
    write(f"{bucket}docs/b.md", "")  # which is no document
    write(f"{bucket}docs/c.md", "More text.")
    for name in ("d.zip", "e.zip"):
        with (
            fsspec.open(f"{bucket}docs/{name}", "wb") as stream,
            zipfile.ZipFile(stream, "w") as archive,
        ):
            archive.writestr("one.txt", f"The text of {name}.")
    run(process, collection, f"{bucket}docs")
    with process.ledger.begin() as session:
        remote.reserve_request(session, "https://idle.example", delay_s=0, patience_s=1)
        remote.reserve_request(session, "https://busy.example", delay_s=60, patience_s=1)
        idle = "UPDATE remote_hosts SET next_at = now() - interval '2 hours' WHERE origin = :o"
        session.execute(text(idle), {"o": "https://idle.example"})
        owner = collections.get(session, collection)
        known = {one.source: one.document_id for one in remote.live_documents(
            session, owner.id, f"{bucket}docs/"
        )}  # fmt: skip
    erased = [known[f"{bucket}docs/c.md"], known[f"{bucket}docs/e.zip!/one.txt"]]
    submit(process, kinds.ERASE, {"document_ids": [str(id_) for id_ in erased]})
    drain(process)
    retention = Retention()
    for _ in range(3):  # the table is gone through some rows at a time
        for part in (retention.forget_containers, retention.forget_remote):
            part(Round(process, handlers(), "retention", Event()))
    assert rows(process, "remote_documents") == [f"{bucket}docs/a.md", f"{bucket}docs/d.zip"]
    assert rows(process, "containers") == [f"{bucket}docs/d.zip"]
    with process.ledger.read() as session:
        hosts = session.scalars(text("SELECT origin FROM remote_hosts")).all()
    assert "https://idle.example" not in hosts
    assert "https://busy.example" in hosts


def rows(process: Process, table: str) -> list[str]:
    with process.ledger.read() as session:
        return list(session.scalars(text(f"SELECT source FROM {table} ORDER BY source")))


def test_a_folder_of_a_disk_is_left_by_no_link(process: Process, tmp_path: Path) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    folder, outside = tmp_path / "docs", tmp_path / "outside"
    (folder / "deep").mkdir()
    outside.mkdir()
    (folder / "deep" / "a.txt").write_text("inside")
    (outside / "secret.txt").write_text("secret")
    (folder / "link.txt").symlink_to(outside / "secret.txt")
    (folder / "links").symlink_to(outside)
    (folder / "inner.txt").symlink_to(folder / "deep" / "a.txt")
    (folder / "loop.txt").symlink_to(folder / "loop.txt")
    assert run(process, collection, f"file://{folder}")[0] == {"added": 2}
    assert set(live_texts(process, collection)) == {
        f"file://{folder}/deep/a.txt", f"file://{folder}/inner.txt"
    }  # fmt: skip


@pytest.mark.parametrize(
    "url", ["file:///etc", "file:///", "s3://bucket/docs", "memory:///other", "gs://a", "az://a/b"]
)
def test_other_folders_are_refused(process: Process, url: str) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    done, job = run(process, collection, url)
    assert done == {"failed": 1}
    assert "SLUICE_SOURCE_FOLDERS" in job.result["errors"][0]["message"]
    body = {"collection": "team", "sources": [{"type": "folder", "url": url}]}
    with pytest.raises(InvalidInput, match="SLUICE_SOURCE_FOLDERS"):
        INGEST.check(IngestInput.model_validate(body), process.settings)


def test_a_folder_that_is_not_there_is_an_error(process: Process, bucket: str) -> None:
    collection = new_collection(process, embedding_model="toy/letters")
    done, job = run(process, collection, f"{bucket}none")
    assert done == {"failed": 1}
    assert "there is no such folder" in job.result["errors"][0]["message"]


@pytest.mark.parametrize(
    ("url", "normal"),
    [
        ("s3://Bucket/a//b/", "s3://Bucket/a/b/"), ("S3://b", "s3://b/"), ("gcs://b/c", "gs://b/c/"),
        ("abfs://b/c", "az://b/c/"), ("file:///srv/./docs", "file:///srv/docs/"),
        ("file:///", "file:///"), ("file://srv/docs", None), ("file://", None), ("s3://", None),
        ("s3:///a", None), ("file:///srv/../etc", None), ("/srv/docs", None), ("http://a/b", None),
        ("ftp://a/b", None), ("s3://b/*", None), ("file:///a\0b", None), ("zip://a::s3://b", None),
        ("simplecache::s3://b", None), ("s3://b?key=a", None), ("file:///a\\..\\b", None),
    ],
)  # fmt: skip
def test_urls_of_folders(url: str, normal: str | None) -> None:
    if normal is None:
        with pytest.raises(ValueError, match=r"folder|characters"):
            folder_url(url)
    else:
        assert folder_url(url) == normal == folder_url(normal)


def test_which_folders_are_permitted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_SOURCE_FOLDERS", "s3://team-docs, file:///srv/docs")
    settings = load_settings()
    allowed = ["s3://team-docs/", "s3://team-docs/a/", "file:///srv/docs/", "file:///srv/docs/b/"]
    refused = ["s3://team-docs2/", "s3://other/", "file:///srv/", "file:///srv/docs2/"]
    assert all(settings.permits_folder(url) for url in allowed)
    assert not any(settings.permits_folder(url) for url in refused)
    assert not Settings(_env_file=None).permits_folder("s3://a/")
    monkeypatch.setenv("SLUICE_SOURCE_FOLDERS", "/srv/docs")
    with pytest.raises(ConfigurationError, match="SLUICE_SOURCE_FOLDERS"):
        load_settings()
