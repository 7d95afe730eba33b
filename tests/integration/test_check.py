"""A check finds what differs between the ledger and the vector store, and mends it; it runs by
itself after the store was away."""

import random
from collections.abc import Callable, Iterator
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import numpy as np
import pytest
from pydantic import SecretStr
from sqlalchemy import select, text, update

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.documents import collections, erasure, indexes, lexical, versions
from shared.documents.documents import chunk_id, parse_chunk_id
from shared.documents.indexes import IndexState
from shared.kinds import registry as kinds
from shared.tables import Job, Step, VectorIndex, new_id
from shared.vocabulary import OPEN, Queue, State
from tests.api_server import served
from tests.integration import toy_embedder
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    ingest,
    live_chunk_ids,
    new_collection,
    pages,
    stores_agree,
    vector_ids,
)
from tests.integration.job_runner import (
    drain,
    handlers,
    job_of,
    lose_workers,
    make_due,
    make_process,
    submit,
)
from tests.integration.sweeps import change, sweep
from tests.servers import Server, start_chroma
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest.steps import entry_of
from workers.retrieval.embed import EMBEDDERS
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry

ALL = 1_000_000
FAULTS = ("missing", "surplus", "stale", "wrong", "leftover")
TEXTS = {"cats": CATS, "trains": TRAINS, "long": pages("Tea", 30)}


@pytest.fixture(params=["chroma", "faiss"])
def process(
    request: pytest.FixtureRequest,
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    tmp_path: Path,
) -> Iterator[Process]:
    own: dict[str, Any] = {
        "chroma_url": None,
        "vectors_url": SecretStr(f"faiss://{tmp_path}"),
    }
    process = make_process(settings, **(own if request.param == "faiss" else {}))
    yield process
    process.close()


on_chroma = pytest.mark.parametrize("process", ["chroma"], indirect=True)


def start(process: Process, collection: str, **fields: Any) -> UUID:
    return submit(process, kinds.CHECK, {"collection": collection, **fields})


def check(process: Process, collection: str, **fields: Any) -> dict[str, Any]:
    """Check to the end; returns the result."""
    job_id = start(process, collection, **fields)
    drain(process)
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    assert isinstance(job.result, dict)
    return job.result


def faults(result: dict[str, Any]) -> dict[str, int]:
    """Those that are not 0."""
    return {name: result[name] for name in FAULTS if result[name]}


def entries(process: Process, ids: list[str]) -> list[VectorEntry]:
    """What the store is to have of these chunks."""
    keys = [parsed for id_ in ids if (parsed := parse_chunk_id(id_))]
    with process.ledger.read() as session:
        owners = versions.documents_of(session, {version_id for version_id, _ in keys})
        parts = [versions.ChunkRange(version_id=v, first=n, end=n + 1) for v, n in keys]
        chunks = [chunk for part in parts for chunk in versions.chunks_of(session, part)]
    return [entry_of(chunk, owners[chunk.version_id]) for chunk in chunks]


def stored_chunks(process: Process, index: VectorIndex) -> set[str]:
    """The ids that the store has of an index; of Sluice's own."""
    ids: set[str] = set()
    while page := store_of(process).id_page(index.stored_name, limit=1000, offset=len(ids)):
        ids.update(page)
    return ids


def index_of(
    process: Process, collection: str, state: IndexState = IndexState.ACTIVE
) -> VectorIndex:
    with process.ledger.read() as session:
        id_ = collections.get(session, collection).id
        return session.scalars(
            select(VectorIndex).where(VectorIndex.collection_id == id_, VectorIndex.state == state)
        ).one()


def damage(process: Process, collection: str) -> dict[str, int]:
    """Harm a store by hand; returns the faults."""
    store = store_of(process)
    lost1, lost2, moved, turned, *_ = ids = sorted(live_chunk_ids(process, collection))
    vectors = store.vectors(collection, ids)
    assert store.delete(collection, [lost1, lost2]) == 2
    (entry,) = entries(process, [moved])
    other = replace(entry, metadata={**entry.metadata, "n": 1}, own=entry.own | {"source": "no"})
    store.upsert(collection, [other], vectors[moved][np.newaxis])
    store.upsert(collection, entries(process, [turned]), -vectors[turned][np.newaxis])
    version_id, _ = parse_chunk_id(lost1) or (None, 0)
    assert version_id is not None
    strangers = [chunk_id(new_id(), 0), chunk_id(version_id, 999), "of another program"]
    store.upsert(
        collection,
        [replace(entry, id=id_) for id_ in strangers],
        np.stack([vectors[moved]] * 3),
    )
    return {"missing": 2, "surplus": 2, "stale": 1, "wrong": 1}


def test_damage_is_found_and_mended(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    live = live_chunk_ids(process, collection)
    result = check(process, collection)
    assert (result["state"], result["checked"], faults(result)) == ("ok", len(live), {})
    assert 0 < result["sampled"] <= len(live)
    made = damage(process, collection)
    before = vector_ids(process, collection)

    result = check(process, collection, dry_run=True, sample=ALL)

    assert (result["state"], faults(result), result["mended"]) == ("damaged", made, 0)
    assert (result["sampled"], result["foreign"]) == (len(live) - 3, 1)
    assert sorted(result["examples"]["missing"]) == sorted(live)[:2]
    assert vector_ids(process, collection) == before

    result = check(process, collection, sample=ALL)

    assert (result["state"], faults(result), result["mended"]) == ("mended", made, 6)
    assert vector_ids(process, collection) == live | {"of another program"}
    with process.ledger.read() as session:
        summary = collections.summary(session, collections.get(session, collection))
    assert summary.check is not None
    assert (summary.check.state, summary.check.counts.surplus) == ("mended", 2)

    job_id = start(process, collection, sample=ALL, delete_foreign=True)
    drain(process)

    again = job_of(process, job_id).result
    assert isinstance(again, dict)
    assert (again["state"], faults(again), again["foreign"]) == ("ok", {}, 1)
    stores_agree(process, collection)
    same = store_of(process).compare(collection, entries(process, sorted(live)))
    assert same == dict.fromkeys(live, True)


@on_chroma
def test_wrong_vectors_in_a_sample_mean_that_there_may_be_more(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    ids = sorted(live_chunk_ids(process, collection))
    vectors = store_of(process).vectors(collection, ids)
    turned = -np.stack(list(vectors.values()))
    store_of(process).upsert(collection, entries(process, list(vectors)), turned)

    job_id = start(process, collection, sample=len(ids) // 2)
    drain(process)

    job = job_of(process, job_id)
    assert isinstance(job.result, dict)
    assert job.result["state"] == "damaged"
    assert 0 < job.result["wrong"] == job.result["sampled"] < len(ids)
    assert f"--sample {len(ids)}" in job.warnings[0]
    assert check(process, collection, sample=len(ids))["state"] == "mended"
    assert check(process, collection, sample=len(ids))["state"] == "ok"


def test_a_lost_index_is_rebuilt_and_checked_again(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    live = live_chunk_ids(process, collection)
    store = store_of(process)
    store.drop(collection)
    result = check(process, collection, dry_run=True)
    assert (result["state"], result["rebuild_job_id"]) == ("damaged", None)

    for loss in ("collection", "dimension"):
        stored_name = index_of(process, collection).stored_name
        if loss == "dimension":
            store.drop(stored_name)
            store.make(stored_name, "cosine")
            axes = np.eye(3, dtype=np.float32)[[0] * len(live)]
            store.upsert(stored_name, entries(process, sorted(live)), axes)

        result = check(process, collection)  # and the rebuild

        assert (result["state"], result["missing"]) == ("damaged", len(live))
        rebuilt = job_of(process, UUID(result["rebuild_job_id"]))
        assert rebuilt.state == State.SUCCEEDED, rebuilt.error
        index = index_of(process, collection)
        assert index.stored_name != stored_name
        assert stored_chunks(process, index) == live
        sweep(process)  # a check is due
        drain(process)
        with process.ledger.read() as session:
            summary = collections.summary(session, collections.get(session, collection))
        assert summary.check is not None
        assert summary.check.state == "ok"


@on_chroma
def test_an_index_that_one_can_go_back_to_is_checked_as_well(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(EMBEDDERS, "toy", f"{toy_embedder.__name__}:load")
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    live = live_chunk_ids(process, collection)
    submit(process, kinds.REBUILD, {"collection": collection, "model": "toy/letters"})
    drain(process)
    assert index_of(process, collection).stored_name == f"{collection}.2"
    lost = sorted(live)[:3]
    store_of(process).delete(collection, lost)

    result = check(process, collection)

    assert (result["state"], faults(result)) == ("mended", {"missing": 3})
    assert result["checked"] == 2 * len(live)
    with process.ledger.read() as session:
        old = index_of(process, collection, IndexState.RETIRED)
        assert indexes.count_noted(session, old.id) == len(live) - 3
    submit(process, kinds.REBUILD, {"collection": collection, "rollback": True})
    drain(process)
    assert index_of(process, collection).stored_name == collection
    assert vector_ids(process, collection) == live

    store_of(process).drop(f"{collection}.2")
    assert faults(check(process, collection)) == {"missing": len(live)}
    sweep(process)
    with process.ledger.read() as session:
        states = session.scalars(select(VectorIndex.state)).all()
    assert states == [IndexState.ACTIVE]


class Meanwhile:
    """Lets something happen before each call of the store."""

    def __init__(self, process: Process, names: tuple[str, ...], act: Callable[[], None]) -> None:
        self._store, self._names, self._act = store_of(process), names, act
        self._is_acting = False

    def __enter__(self) -> None:
        for name in self._names:
            setattr(self._store, name, self._around(getattr(self._store, name)))

    def __exit__(self, *_: object) -> None:
        for name in self._names:
            delattr(self._store, name)

    def _around(self, call: Callable[..., Any]) -> Callable[..., Any]:
        def around(*args: Any, **kwargs: Any) -> Any:
            if not self._is_acting:
                self._is_acting = True
                try:
                    self._act()
                finally:
                    self._is_acting = False
            return call(*args, **kwargs)

        return around


@on_chroma
def test_what_is_on_its_way_is_no_fault(process: Process, settings: Settings) -> None:
    """Documents are erased, replaced and added between a look into the ledger and one into the
    store."""
    collection = new_collection(process)
    names = [f"page {n}" for n in range(12)]
    ingest(process, collection, {name: pages(name, 6) for name in names})
    job_id = start(process, collection, sample=ALL)
    other = make_process(settings, "other")
    turn = count()

    def change() -> None:
        n = next(turn)
        if n < 4:
            erase_now(other, document_id(other, collection, names.pop()))
        elif n < 8:
            run_now(other, collection, {names[n]: pages("other", 7)})
        elif n < 12:
            run_now(other, collection, {f"new {n}": pages("new", 7)})

    def run_now(process: Process, name: str, texts: dict[str, str]) -> None:
        sources = [{"type": "text", "text": t, "name": n} for n, t in texts.items()]
        input_ = {"collection": name, "sources": sources}
        run_alone(process, submit(process, kinds.INGEST, input_))

    def erase_now(process: Process, id_: UUID) -> None:
        run_alone(process, submit(process, kinds.ERASE, {"document_ids": [str(id_)]}))

    def run_alone(process: Process, own_id: UUID) -> None:
        """All steps of a job, before those of the check, which waits in the lane `bulk`."""
        with process.ledger.begin() as session:
            session.execute(update(Step).where(Step.job_id == own_id).values(lane=0))
        while job_of(process, own_id).state in OPEN:
            for queue in (Queue.CONTROL, Queue.INGEST, Queue.EMBED):
                run_next(process, handlers(), queue.value)

    with Meanwhile(process, ("compare", "vectors", "id_page"), change):
        while job_of(process, job_id).state in OPEN:
            run_next(process, handlers(), Queue.EMBED.value)
    drain(process)
    other.close()

    assert next(turn) > 12
    result = job_of(process, job_id).result
    assert isinstance(result, dict)
    assert (result["state"], faults(result)) == ("ok", {})
    stores_agree(process, collection)


@on_chroma
@pytest.mark.parametrize("seed", range(2))
def test_killed_at_any_moment_it_goes_on(process: Process, seed: int) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    damage(process, collection)
    job_id = start(process, collection, sample=ALL)
    deadly, moment = set(random.Random(seed).sample(range(24), 8)), count()

    class Killed(BaseException):
        pass

    def kill() -> None:
        if next(moment) in deadly:
            raise Killed

    deaths = 0
    calls = ("compare", "vectors", "upsert", "delete", "id_page")
    with Meanwhile(process, calls, kill):
        while job_of(process, job_id).state in OPEN:
            try:
                run_next(process, handlers(), Queue.EMBED.value)
            except Killed:
                deaths += 1
                with process.ledger.begin() as session:  # deaths are not what is counted here
                    more = Step.max_attempts + 1
                    session.execute(
                        update(Step).where(Step.job_id == job_id).values(max_attempts=more)
                    )
                lose_workers(process)
            make_due(process)

    assert deaths
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    assert isinstance(job.result, dict)
    assert job.result["state"] == "mended"
    assert job.result["checked"] == len(live_chunk_ids(process, collection))
    assert faults(check(process, collection, sample=ALL, delete_foreign=True)) == {}
    stores_agree(process, collection)


@on_chroma
def test_what_was_deleted_is_counted_though_the_worker_is_lost_then(process: Process) -> None:
    """And an index that is dropped meanwhile is no loss."""
    collection = new_collection(process)
    ingest(process, collection, TEXTS)
    damage(process, collection)
    job_id = start(process, collection)
    pages_read = count()

    class Killed(BaseException):
        pass

    def kill_behind_the_first() -> None:
        if next(pages_read) == 1:
            raise Killed

    with Meanwhile(process, ("id_page",), kill_behind_the_first), pytest.raises(Killed):
        drain(process)
    lose_workers(process)
    drain(process)
    result = job_of(process, job_id).result
    assert isinstance(result, dict)
    assert (result["surplus"], result["missing"]) == (2, 2)

    with process.ledger.read() as session:
        old = index_of(process, collection)
        assert indexes.find_to_check(session, old.id) is not None
    change(process, "UPDATE vector_indexes SET state = 'retired', kept_until = now()")
    with process.ledger.read() as session:
        assert indexes.find_to_check(session, old.id) is None


@on_chroma
def test_there_may_be_more_versions_than_a_statement_has_parameters(process: Process) -> None:
    ids = [new_id() for _ in range(2**16)]
    with process.ledger.begin() as session:
        assert lexical.live_among(session, ids) == set()
        assert erasure.hide_documents(session, ids) == []
        assert erasure.garbage_of_documents(session, ids) == []
        assert erasure.remove(session, ids) == 0


@on_chroma
def test_what_an_erasure_has_left_behind_is_found(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, TEXTS | {"gone": pages("Secret", 5), "half": pages("Half", 5)})
    ids = {name: document_id(process, collection, name) for name in ("gone", "half")}
    live = live_chunk_ids(process, collection)
    with process.ledger.begin() as session:
        # The rows of one are gone, and its vectors and postings stayed.
        session.execute(text("DELETE FROM documents WHERE id = :id"), {"id": ids["gone"]})
        # The erasure of another one was begun, and nobody has ended it.
        session.execute(
            text("""
                UPDATE documents SET live_version_id = NULL, updated_at = now() - interval '2 h',
                    erasing_at = now() - interval '2 h' WHERE id = :id
            """),
            {"id": ids["half"]},
        )
        session.execute(
            text("UPDATE versions SET state = 'retired' WHERE document_id = :id"),
            {"id": ids["half"]},
        )
        # Another one has no version any more.
        session.execute(
            text("""
                INSERT INTO documents (id, collection_id, source, updated_at)
                SELECT :id, id, 'empty', now() - interval '2 h' FROM collections
            """),
            {"id": new_id()},
        )
        # And of a collection, postings stayed.
        session.execute(
            text("""
                INSERT INTO lexical_deletions (collection_id, field, version_id, chunks)
                VALUES (:id, 0, :id, 3)
            """),
            {"id": new_id()},
        )
    left = live - live_chunk_ids(process, collection)

    result = check(process, collection, dry_run=True)

    # Of the half-erased one, the rows count, and its postings: they were never taken back.
    surplus = len({id_ for id_ in left if id_ not in half_ids(process, ids["half"])})
    assert faults(result) == {"surplus": surplus, "leftover": 5}

    result = check(process, collection)

    assert (result["state"], faults(result)) == ("mended", {"surplus": surplus, "leftover": 5})
    result = check(process, collection)
    assert (result["state"], faults(result)) == ("ok", {})
    stores_agree(process, collection)
    with process.ledger.read() as session:
        assert session.scalar(text("SELECT count(*) FROM documents")) == len(TEXTS)
        assert session.scalar(text("SELECT count(*) FROM lexical_deletions WHERE chunks = 3")) == 0


def half_ids(process: Process, document: UUID) -> set[str]:
    with process.ledger.read() as session:
        rows = session.execute(
            text("SELECT id, chunk_count FROM versions WHERE document_id = :id"), {"id": document}
        ).all()
    return {chunk_id(row.id, n) for row in rows for n in range(row.chunk_count)}


@pytest.fixture
def own_server(tmp_path: Path) -> Iterator[Server]:
    server = start_chroma(tmp_path / "chroma")
    yield server
    server.stop()


def test_it_runs_by_itself_after_the_store_was_away(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    own_server: Server,
) -> None:
    changes: dict[str, Any] = {"chroma_url": own_server.url, "store_away_s": 0.001}
    process = make_process(settings, **changes)
    collection, empty = new_collection(process), new_collection(process)
    ingest(process, collection, TEXTS)
    live = live_chunk_ids(process, collection)
    sweep(process)
    assert checks_of(process) == []
    lost = sorted(live)[::2]
    store_of(process).delete(collection, lost)

    own_server.stop()
    sweep(process)  # it is noted, whatever fails beside it
    assert checks_of(process) == []
    own_server.start()
    sweep(process)

    (job,) = checks_of(process)
    assert (job.collection, job.fair_key, job.state) == (collection, "integrity", State.QUEUED)
    with (
        served(settings.model_copy(update=changes)) as url,
        httpx.Client(base_url=url, trust_env=False) as api,
    ):
        before = api.get("/readyz").json()["checks"]["integrity"]
        drain(process)
        after = api.get("/readyz").json()["checks"]["integrity"]
        metrics = api.get("/metrics").text
        views = {name: api.get(f"/v1/collections/{name}").json() for name in (collection, empty)}
    assert before == {"ok": True, "detail": "no collection has been checked"}
    assert after["ok"]
    assert "1 mended" in after["detail"]
    assert f"{len(lost)} missing, 0 surplus, 0 stale" in after["detail"]
    assert 'sluice_collections_by_check{state="mended"} 1.0' in metrics
    assert 'sluice_collections_by_check{state="unchecked"} 1.0' in metrics
    assert f'sluice_check_vectors{{result="missing"}} {float(len(lost))}' in metrics
    assert 'sluice_check_timestamp_seconds{check="newest"}' in metrics
    assert views[empty]["check"] is None
    seen = views[collection]["check"]
    assert (seen["state"], seen["missing"], seen["job_id"]) == ("mended", len(lost), str(job.id))
    assert vector_ids(process, collection) == live
    sweep(process)
    assert len(checks_of(process)) == 1

    # Nobody has looked for long: the machine was off.
    with process.ledger.begin() as session:
        session.execute(text("UPDATE store_servers SET seen_at = now() - interval '1 day'"))
    sweep(process)
    sweep(process)  # one that waits is enough
    assert len(checks_of(process)) == 2
    assert erase(process, collection=collection)["vectors"] == len(live)
    drain(process)
    process.close()


def checks_of(process: Process) -> list[Job]:
    with process.ledger.read() as session:
        return list(session.scalars(select(Job).where(Job.kind == "check").order_by(Job.id)))
