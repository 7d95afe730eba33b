"""A collection goes into a bundle, and comes out of it in another store, without embedding."""

import hashlib
import io
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from threading import Event, Thread
from typing import Any
from uuid import UUID, uuid4
from zipfile import ZipFile

import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import func, select, update

from cli.main import run
from shared import files
from shared.config import Settings
from shared.documents import collections
from shared.documents.indexes import IndexState
from shared.documents.versions import ChunkRange
from shared.errors import Conflict, NotFound, SluiceError
from shared.kinds import registry as kinds
from shared.kinds.bundle import ExportResult
from shared.kinds.search import SearchOptions, SearchType
from shared.tables import Collection, Document, File, Job, VectorIndex, Version
from shared.vocabulary import Queue, State
from sluice import Client, bundles
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    hits_of,
    ingest,
    live_chunk_ids,
    live_texts,
    new_collection,
    pages,
    stores_agree,
    upload,
    vector_ids,
)
from tests.integration.job_runner import (
    cancel,
    drain,
    handlers,
    job_of,
    lose_workers,
    make_process,
    submit,
)
from tests.integration.sweeps import sweep
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest.index_vectors import write_vectors
from workers.ingest.transfer import exports
from workers.ingest.transfer.bundle import Bundle, Position
from workers.retrieval.servers import store_of
from workers.retrieval.stores.pgvector import LEDGER

QUERIES = ["When does the train leave?", "How long do cats sleep?", "Tea page 7"]
TEXTS = {"cats": CATS, "trains": TRAINS, "tea": pages("Tea", 30), "zebra": "Nobody reads this."}


@pytest.fixture(autouse=True)
def small_parts(monkeypatch: pytest.MonkeyPatch) -> None:
    """Documents that lie in several parts, and exports of several steps."""
    monkeypatch.setattr(exports, "PART_CHUNKS", 8)
    monkeypatch.setattr(exports, "SLICE_CHUNKS", 3)
    monkeypatch.setattr(exports, "BLOCK_DOCUMENTS", 2)


@pytest.fixture
def process(settings: Settings, ledger: Any) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings, bundle_step_s=1e-6)
    yield process
    process.close()


def new_name() -> str:
    return f"test-{uuid4().hex[:12]}"


def start_export(process: Process, collection: str) -> UUID:
    return submit(process, kinds.EXPORT, {"collection": collection})


def bundle_of(process: Process, job_id: UUID) -> bytes:
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    result = ExportResult.model_validate(job.result)
    with process.ledger.read() as session:
        file = files.get(session, result.file_id)
        data = files.read(process.storage, file)
    assert len(data) == result.size_bytes == file.size_bytes
    return data


def export(process: Process, collection: str) -> bytes:
    job_id = start_export(process, collection)
    drain(process)
    return bundle_of(process, job_id)


def start_import(process: Process, data: bytes, name: str | None) -> UUID:
    """Of a bundle that is sent in three uploads."""
    ends = [0, len(data) // 3, len(data) // 2, len(data)]
    ids = [
        upload(process, f"{n}.zip", data[first:end])
        for n, (first, end) in enumerate(pairwise(ends))
    ]
    return submit(process, kinds.IMPORT, {"file_ids": ids, "collection": name})


def contents(data: bytes) -> dict[str, bytes]:
    with ZipFile(io.BytesIO(data)) as archive:
        assert archive.testzip() is None
        return {name: archive.read(name) for name in archive.namelist()}


def answers(process: Process, collection: str) -> list[dict[tuple[str, int], Any]]:
    """What searches of three types give: what depends on no id, by source and start. Hits with the
    lowest score are left out, for others may have the same."""
    found = []
    for query in QUERIES:
        for type_ in (SearchType.SIMILARITY, SearchType.HYBRID, SearchType.LEXICAL):
            hits = hits_of(process, collection, query, k=8, options=SearchOptions(type=type_))
            found.append(
                {
                    (hit.source, hit.start): (hit.text, hit.metadata, hit.score)
                    for hit in hits
                    if hit.score > hits[-1].score + 1e-4
                }
            )
    assert sum(map(len, found)) > 20
    return found


def same(process: Process, collection: str, before: list[dict[tuple[str, int], Any]]) -> None:
    """The collection gives the same answers, with the same scores."""
    for now, then in zip(answers(process, collection), before, strict=True):
        assert now.keys() == then.keys()
        for key, (text, metadata, score) in then.items():
            assert now[key] == (text, metadata, pytest.approx(score, abs=1e-5))


def names_of(process: Process) -> set[str]:
    with process.ledger.read() as session:
        return set(session.scalars(select(Collection.name)))


def test_a_collection_is_the_same_in_another_store(
    process: Process, settings: Settings, tmp_path: Path
) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS, metadata={"team": "안내"})
    before = answers(process, collection)
    data = export(process, collection)

    # Anybody can read it.
    entries = contents(data)
    manifest = json.loads(entries["manifest.json"])
    assert (manifest["format"], manifest["version"]) == ("sluice-bundle", 1)
    assert manifest["collection"]["name"] == collection
    parts = manifest["parts"]
    assert len(parts) > 2
    counted: dict[str, int] = {"documents": 0, "chunks": 0}
    for n, part in enumerate(parts):
        for kind, record in part.items():
            name = f"{kind}/{n:06d}.{'npy' if kind == 'vectors' else 'jsonl'}"
            assert hashlib.sha256(entries[name]).hexdigest() == record["sha256"]
            if kind != "vectors":
                counted[kind] += len(entries[name].splitlines())
        rows = np.load(io.BytesIO(entries[f"vectors/{n:06d}.npy"]))
        assert (rows.dtype, rows.shape[1]) == (np.float32, manifest["dimension"])
        assert len(rows) == len(entries[f"chunks/{n:06d}.jsonl"].splitlines())
    assert counted == {"documents": 4, "chunks": manifest["chunks"]}

    stores: list[tuple[str, str | None]] = [(f"faiss://{tmp_path}", "elsewhere"), (LEDGER, None)]
    for url, given in stores:
        if given is None:  # as it is called in the bundle: once that is free
            with process.ledger.begin() as session, pytest.raises(Conflict, match="--as"):
                kinds.IMPORT.find_collection(session, collection)
            erased = submit(process, kinds.ERASE, {"collection": collection})
            drain(process)
            assert job_of(process, erased).state == State.SUCCEEDED
        other = make_process(settings, chroma_url=None, vectors_url=SecretStr(url))
        try:
            job_id = start_import(other, data, given)
            drain(other)
            job = job_of(other, job_id)
            assert job.state == State.SUCCEEDED, job.error
            assert job.result is not None
            assert job.result["collection"] == (given or collection)
            assert (job.result["documents"], job.result["chunks"]) == (4, manifest["chunks"])
            assert (job.progress_done, job.progress_total) == (manifest["chunks"],) * 2
            imported = given or collection
            same(other, imported, before)
            stores_agree(other, imported)
            assert contents(export(other, imported)).keys() == entries.keys()
            # It is a collection like any other.
            ingest(other, imported, {"cats": "Cats purr."})
            assert live_texts(other, imported)["cats"] == ["Cats purr."]
            stores_agree(other, imported)
        finally:
            other.close()

    # One without documents, whose dimension nobody knows yet.
    job_id = start_import(process, export(process, new_collection(process)), "empty")
    drain(process)
    assert job_of(process, job_id).state == State.SUCCEEDED, job_of(process, job_id).error
    ingest(process, "empty", {"cats": "Cats purr."})
    stores_agree(process, "empty")


def test_an_export_is_of_one_moment(
    process: Process, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    tea = document_id(process, collection, "tea")
    with process.ledger.read() as session:
        index = collections.get_with_index(session, collection)[1]
        version = session.get_one(Version, session.get_one(Document, tea).live_version_id)
    calls = 0
    ends: list[datetime] = []
    real = handlers()["export"].run
    assert real is not None

    def run(context: Context) -> Done:
        nonlocal calls
        calls += 1
        if calls == 2:  # the documents are noted, and no chunk is read
            ingest(process, collection, {"cats": "Cats purr.", "new": "A new one."})
            ingest(process, collection, {"tea": "Tea is green."})
            late = document_id(process, collection, "zebra")
            submit(process, kinds.ERASE, {"document_ids": [str(late)]})
            drain(process)
            # What a check does that has read the ledger before.
            whole = ChunkRange(version_id=version.id, first=0, end=version.chunk_count)
            write_vectors(context, index, [whole])
            # A rebuild, whose time for the vectors before is over.
            submit(process, kinds.REBUILD, {"collection": collection})
            drain(process)
            with process.ledger.begin() as session:
                session.execute(
                    update(VectorIndex)
                    .where(VectorIndex.state == IndexState.RETIRED)
                    .values(kept_until=func.now())
                )
            sweep(process)
            with process.ledger.read() as session:
                file = session.scalars(select(File).where(File.parts.is_not(None))).one()
            assert file.expires_at is not None
            ends.append(file.expires_at)
        done = real(context)
        if calls == 3:
            lose_workers(process)  # what this attempt has written does not count
        return done

    monkeypatch.setattr(exports, "SLICE_CHUNKS", 8)
    monkeypatch.setattr(exports, "PART_BYTES", 3 * 1800)  # a chunk has a little less
    job_id = start_export(process, collection)
    drain(process, {**handlers(), "export": Handler(run=run)})

    data = bundle_of(process, job_id)
    entries = contents(data)
    assert ExportResult.model_validate(job_of(process, job_id).result).expires_at > ends[0]
    documents = [
        json.loads(line)
        for name, data in sorted(entries.items())
        if name.startswith("documents/")
        for line in data.splitlines()
    ]
    chunks = [
        json.loads(line)["text"]
        for name, data in sorted(entries.items())
        if name.startswith("chunks/")
        for line in data.splitlines()
    ]
    assert [document["source"] for document in documents] == ["cats", "tea", "trains"]
    assert len(chunks) == sum(document["chunk_count"] for document in documents) > 30
    assert not {"Cats purr.", "A new one.", "Tea is green."} & set(chunks)
    counts = [len(data.splitlines()) for name, data in entries.items() if "chunks" in name]
    assert 1 < max(counts) <= 4
    (tmp_path / "bundle.zip").write_bytes(data)
    with io.FileIO(tmp_path / "bundle.zip") as stored:
        bundle, position = Bundle(stored, process.settings), Position()
        for n in range(len(counts)):
            position = position.behind(bundle.part(n), "chunks")
        position.require_end(bundle.manifest)
    assert calls > 5
    sweep(process)  # what was kept for the export is collected
    assert vector_ids(process, collection) == set()
    assert vector_ids(process, f"{collection}.2") == live_chunk_ids(process, collection)
    with process.ledger.read() as session:
        assert set(session.scalars(select(Version.state))) == {"live"}


def test_an_import_goes_on_where_it_was_killed(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    before = answers(process, collection)
    data = export(process, collection)
    name = new_name()
    calls: Counter[str] = Counter()

    def killed(step: str) -> Handler:
        handler = handlers()[step]

        def run(context: Context) -> Done:
            calls[step] += 1
            if step == "import.part":
                with process.ledger.read() as session, pytest.raises(NotFound):
                    collections.get(session, name)
            assert handler.run is not None
            done = handler.run(context)
            if calls[step] in (1, 3):
                lose_workers(process)
            if calls["import.part"] == 2:
                sweep(process)  # takes what is there for no garbage
            return done

        return replace(handler, run=run)

    job_id = start_import(process, data, name)
    other_id = start_import(process, data, name)  # one of them is first
    drain(process, {**handlers(), **{step: killed(step) for step in ("import", "import.part")}})
    assert calls["import.part"] > 5
    states = {job_of(process, id_).state: id_ for id_ in (job_id, other_id)}
    assert states.keys() == {State.SUCCEEDED, State.FAILED}
    assert "a collection" in (job_of(process, states[State.FAILED]).error or {})["message"]
    same(process, name, before)
    stores_agree(process, name)

    # One that is cancelled leaves nothing, and a second one begins anew.
    second = new_name()

    def cancelled(context: Context) -> Done:
        cancel(process, context.claim.job_id)
        run = handlers()["import.part"].run
        assert run is not None
        return run(context)

    job_id = start_import(process, data, second)
    drain(process, {**handlers(), "import.part": Handler(run=cancelled)})
    assert job_of(process, job_id).state == State.CANCELLED
    assert second in names_of(process)
    again = start_import(process, data, second)
    run_next(process, handlers(), Queue.INGEST.value)
    sweep(process)
    drain(process)
    assert job_of(process, again).state == State.SUCCEEDED, job_of(process, again).error
    same(process, second, before)


def changed(data: bytes, change: Callable[[dict[str, bytes], dict[str, Any]], None]) -> bytes:
    """The bundle with other entries. `change` gets these by their names, and the manifest."""
    entries = contents(data)
    manifest = json.loads(entries.pop("manifest.json"))
    change(entries, manifest)
    buffer = io.BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, content in entries.items():
            archive.writestr(name, content)
        archive.writestr("manifest.json", json.dumps(manifest))
    return buffer.getvalue()


def put(
    entries: dict[str, bytes], manifest: dict[str, Any], kind: str, content: bytes, *, part: int = 0
) -> None:
    name = f"{kind}/{part:06d}.{'npy' if kind == 'vectors' else 'jsonl'}"
    digest = hashlib.sha256(content).hexdigest()
    entries[name] = content
    manifest["parts"][part][kind] = {"sha256": digest, "size_bytes": len(content)}


def test_a_bad_bundle_leaves_nothing(process: Process, monkeypatch: pytest.MonkeyPatch) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    data = export(process, collection)
    with ZipFile(io.BytesIO(data)) as archive:
        middle = archive.getinfo("vectors/000001.npy").header_offset + 400
    rows = np.load(io.BytesIO(contents(data)["vectors/000000.npy"]))

    def vectors(values: Any) -> Callable[[dict[str, bytes], dict[str, Any]], None]:
        buffer = io.BytesIO()
        np.save(buffer, values)
        return lambda entries, manifest: put(entries, manifest, "vectors", buffer.getvalue())

    def lines(kind: str, old: bytes, new: bytes) -> Callable[[Any, Any], None]:
        def change(entries: dict[str, bytes], manifest: dict[str, Any]) -> None:
            content = entries[f"{kind}/000000.jsonl"]
            assert old in content
            put(entries, manifest, kind, content.replace(old, new, 1))

        return change

    def without_chunks(entries: dict[str, bytes], _manifest: dict[str, Any]) -> None:
        del entries["chunks/000001.jsonl"]

    bad: list[tuple[bytes, str]] = [
        (data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :], r"vectors/000001\.npy"),
        (data[: len(data) * 2 // 3], "no whole ZIP archive"),
        (b"PK" + bytes(1000), "no whole ZIP archive"),
        (changed(data, without_chunks), "missing"),
        (changed(data, lambda e, _: e.update({"../evil": b""})), r"'\.\./evil'"),
        (changed(data, lambda e, _: e.update({"chunks/999999.jsonl": b""})), "is not in manifest"),
        (changed(data, lambda _, m: m.update(version=2)), "has version 2"),
        (changed(data, lambda _, m: m.update(format="zip")), "format"),
        (changed(data, lambda _, m: m.update(dimension=383)), "dimension in the manifest"),
        (changed(data, lambda _, m: m.update(chunks=m["chunks"] + 1)), "all complete"),
        (changed(data, lambda _, m: m["parts"].pop()), "is not in manifest"),
        (changed(data, vectors(rows * np.nan)), "no finite numbers"),
        (changed(data, vectors(rows * 0)), "only zeros"),
        (changed(data, vectors(rows[:, :5])), "has the shape"),
        (changed(data, vectors(rows.astype(np.float64))), "32-bit floats"),
        (changed(data, vectors(np.array([{}]))), "no array of numpy"),
        (changed(data, lines("chunks", b'"ordinal":1', b'"ordinal":7')), "comes next"),
        (changed(data, lines("chunks", b"Cats", b"\\u0000ats")), "NUL"),
        (changed(data, lines("documents", b'"source":"cats"', b'"source":""')), "line 1: source"),
        # Only the ledger notices this.
        (changed(data, lines("documents", b'"source":"tea"', b'"source":"cats"')), "same source"),
    ]
    names = names_of(process)
    for n, (content, message) in enumerate(bad):
        job_id = start_import(process, content, f"bad-{n}")
        drain(process)
        job = job_of(process, job_id)
        assert job.state == State.FAILED, n
        assert re.search(message, (job.error or {})["message"]), (n, job.error)
        assert names_of(process) - names <= {"bad-19"}
    settings = process.settings.model_copy(update={"bundle_limit_chunks": 10})
    small = make_process(settings, "small")
    job_id = start_import(small, data, "large")
    drain(small)
    small.close()
    assert "SLUICE_BUNDLE_LIMIT_CHUNKS" in (job_of(process, job_id).error or {})["message"]
    monkeypatch.setattr(exports, "PARTS_LIMIT", 2)
    job_id = start_export(process, collection)
    drain(process)
    assert "does not fit into one bundle" in (job_of(process, job_id).error or {})["message"]
    monkeypatch.undo()

    # What an export cannot give.
    job_id = start_export(process, collection)
    run_next(process, handlers(), Queue.INGEST.value)
    with process.ledger.begin() as transaction:
        file = transaction.scalars(select(File).where(File.parts == [])).one()
        files.delete(transaction, file.id)
    drain(process)
    assert "was deleted meanwhile" in (job_of(process, job_id).error or {})["message"]
    store_of(process).delete(collection, [sorted(live_chunk_ids(process, collection))[0]])
    job_id = start_export(process, collection)
    drain(process)
    assert "vectors of it are missing" in (job_of(process, job_id).error or {})["message"]
    sweep(process)
    drain(process)
    assert names_of(process) == names
    with process.ledger.read() as session:
        assert session.scalar(select(func.count()).select_from(VectorIndex)) == len(names)

    # A model that is not there is missed when the collection is asked, and not before.
    model = "openai/text-embedding-3-small"
    absent = changed(data, lambda _, m: m.update(embedding_model=model))
    job_id = start_import(process, absent, "absent")
    drain(process)
    assert job_of(process, job_id).state == State.SUCCEEDED, job_of(process, job_id).error
    with pytest.raises(SluiceError, match=model):
        hits_of(process, "absent", "cats", k=1)


def test_the_command_line_moves_a_collection(
    process: Process,
    api_url: str,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(bundles, "SLICE_BYTES", 20_000)
    collection, file = new_collection(process), tmp_path / "bundle.zip"
    ingest(process, collection, TEXTS)
    assert run(["collections", "export", collection, str(tmp_path / "no" / "b"), "--url", api_url])
    assert "no folder" in capsys.readouterr().err
    with process.ledger.read() as session:
        assert session.scalar(select(func.count()).where(Job.kind == kinds.EXPORT.name)) == 0
    stop = Event()

    def work() -> None:
        while not stop.is_set():
            drain(process)
            stop.wait(0.05)

    worker = Thread(target=work)
    worker.start()
    try:
        assert run(["collections", "export", collection, str(file), "--url", api_url]) == 0
        assert contents(file.read_bytes()).keys() >= {"manifest.json"}
        assert [path.name for path in tmp_path.iterdir()] == [file.name]
        command = ["collections", "import", str(file), "--url", api_url]
        assert run([*command, "--as", "moved"]) == 0
        with Client(api_url) as client:
            assert client.collection("moved").documents == len(TEXTS)
        assert run([*command, "--as", "again", "--json"]) == 0
        assert slices(process, file) == 0
        assert run(command) != 0  # there is one of that name
    finally:
        stop.set()
        worker.join()
    # Two imports of one bundle share the uploads, and who ends first does not delete them. What the
    # user has stored under another name is not touched.
    with Client(api_url) as client:
        own = client.upload(file.read_bytes()[:20_000], name="own")
        first, second = (client.import_collection(file, n, wait=False) for n in ("one", "two"))
        assert first.input == (second.input or {}) | {"collection": "one"}
        count = slices(process, file)
        assert count == len((first.input or {})["file_ids"]) > 2
        cancel(process, UUID(first.id))
        client.delete_slices(first)
        assert slices(process, file) == count
        cancel(process, UUID(second.id))
        client.delete_slices(second)
        assert slices(process, file) == 0
        assert client.file(own.id).name == "own"
    out, err = capsys.readouterr()
    assert f"Imported moved: {len(TEXTS)} documents" in out
    assert "--as NAME" in out + err
    same(process, "moved", answers(process, collection))


def slices(process: Process, file: Path) -> int:
    """How many uploads there are of a bundle."""
    with process.ledger.read() as session:
        of_file = File.name.like(f"{file.name}.%")
        return session.scalar(select(func.count()).select_from(File).where(of_file)) or 0
