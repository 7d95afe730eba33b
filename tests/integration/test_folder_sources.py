"""Sources that are folders of buckets or of disks, through fsspec."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import uuid4

import fsspec
import pytest

from shared.config import Settings, load_settings
from shared.errors import ConfigurationError, InvalidInput
from shared.kinds.ingest import INGEST, IngestInput
from shared.urls import folder_url
from tests.integration.ingestion import (
    counts,
    live_texts,
    new_collection,
    order_sources,
    stores_agree,
)
from tests.integration.workbench import drain, job_of, make_process
from workers.attempts.process import Process
from workers.retrieval.embed import EMBEDDERS


@pytest.fixture
def bucket() -> str:
    """A folder of a storage in memory."""
    return f"memory:///bucket-{uuid4().hex[:8]}/"


@pytest.fixture
def process(
    settings: Settings, bucket: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    assert ".png 1" in job.warnings[0]
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
