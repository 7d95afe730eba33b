"""A collection changes its model while it is searched and filled; a lost store is made again."""

import random
import threading
from collections.abc import Iterator
from dataclasses import replace
from functools import cache
from itertools import count
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import func, select, update

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.documents import collections, indexes
from shared.documents.indexes import IndexPlace, IndexState
from shared.errors import Permanent
from shared.kinds import registry as kinds
from shared.kinds.rebuild import RebuildInput
from shared.kinds.search import SearchOptions, SearchType
from shared.tables import Document, Step, VectorIndex, Version
from shared.vocabulary import OPEN, Queue, State
from tests.integration import toy_embedder
from tests.integration.erasures import erase
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    document_id,
    hits_of,
    ingest,
    live_chunk_ids,
    new_collection,
    order,
    pages,
)
from tests.integration.job_runner import (
    cancel,
    drain,
    embedders,
    handlers,
    job_of,
    lose_workers,
    make_due,
    make_process,
    submit,
)
from tests.integration.sweeps import change
from workers.attempts.context import Context, Done, Handler
from workers.attempts.process import Process
from workers.attempts.runner import Handlers, run_next
from workers.ingest.erasure import drop_indexes
from workers.retrieval.embed import (
    EMBEDDERS,
    Embedder,
    Embedders,
    embedders_of,
    load_coming,
    make_embedders,
)
from workers.retrieval.servers import store_of
from workers.retrieval.store import VectorEntry
from workers.rounds import Round

OTHER = "toy/letters"
SIMILARITY = SearchOptions(type=SearchType.SIMILARITY)


@pytest.fixture(autouse=True)
def other_model(monkeypatch: pytest.MonkeyPatch) -> None:
    """A second model, of another dimension."""
    monkeypatch.setitem(EMBEDDERS, "toy", f"{toy_embedder.__name__}:load")


def start(process: Process, collection: str, **fields: Any) -> UUID:
    input_ = RebuildInput(collection=collection, **fields).model_dump(mode="json")
    return submit(process, kinds.REBUILD, input_)


def rebuild(
    process: Process, collection: str, table: Handlers | None = None, **fields: Any
) -> dict[str, Any]:
    """Rebuild to the end; returns the result."""
    fields = fields if "rollback" in fields else {"model": OTHER, **fields}
    job_id = start(process, collection, **fields)
    drain(process, table)
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    assert isinstance(job.result, dict)
    return job.result


def indexes_of(process: Process, collection: str) -> dict[str, VectorIndex]:
    """By state; of several retired ones, the newest."""
    with process.ledger.read() as session:
        row = collections.get(session, collection)
        found = session.scalars(
            select(VectorIndex)
            .where(VectorIndex.collection_id == row.id)
            .order_by(VectorIndex.kept_until, VectorIndex.id)
        ).all()
    return {index.state: index for index in found}


def stored_ids(process: Process, index: VectorIndex) -> set[str]:
    ids: set[str] = set()
    while page := store_of(process).id_page(index.stored_name, limit=1000, offset=len(ids)):
        ids.update(page)
    return ids


def agrees(process: Process, collection: str) -> None:
    """The active index has exactly the live chunks, with vectors of its own model."""
    index = indexes_of(process, collection)[IndexState.ACTIVE]
    live = live_chunk_ids(process, collection)
    assert stored_ids(process, index) == live
    embedder = embedders_of(process).get(index.embedding_model)
    assert index.dimension == embedder.dimension
    vectors = store_of(process).vectors(index.stored_name, sorted(live))
    assert {len(vector) for vector in vectors.values()} <= {embedder.dimension}


def sweep(process: Process) -> None:
    drop_indexes(Round(process, handlers(), "vector indexes", threading.Event()))


def test_another_model_takes_over(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "trains": TRAINS, "long": pages("Tea", 30)})

    result = rebuild(process, collection)

    assert result["embedding_model_before"] == DEFAULT_EMBEDDING_MODEL
    assert (result["embedding_model"], result["dimension"]) == (OTHER, 26)
    assert result["chunks"] == len(live_chunk_ids(process, collection))
    assert 0 <= result["comparison"]["overlap"] <= 1
    assert not result["comparison"]["are_judged"]
    assert result["rollback_until"] is not None
    agrees(process, collection)
    assert (
        job_of(process, start(process, collection, model="hf/all-MiniLM-L6-v2")).input["model"]
        == DEFAULT_EMBEDDING_MODEL
    )  # in the one form that all its references have
    kept = indexes_of(process, collection)
    assert kept[IndexState.ACTIVE].stored_name == f"{collection}.2"
    assert kept[IndexState.RETIRED].stored_name == collection
    with process.ledger.read() as session:
        summary = collections.summary(session, collections.get(session, collection))
    assert (summary.embedding_model, summary.dimension) == (OTHER, 26)
    assert (
        hits_of(process, collection, "When does the train to Busan leave?", k=3)[0].source
        == "trains"
    )


def test_what_searches_need_after_the_switch_is_there_before(
    process: Process, settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The model, in processes that search meanwhile, and the tuning of hybrid searches."""
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "long": pages("Tea", 30)})
    job_id = start(process, collection, model=OTHER)
    run_next(process, handlers(), Queue.EMBED.value)
    monkeypatch.setitem(EMBEDDERS, "toy", f"{__name__}:counted_load")
    loads.clear()
    searcher = make_process(settings, "searcher")
    fresh = Embedders(settings)
    searcher.hold(make_embedders, fresh)
    load_coming(searcher)
    assert loads == [OTHER]
    fresh.get(OTHER)
    assert loads == [OTHER]
    searcher.close()

    drain(process)
    index = indexes_of(process, collection)[IndexState.ACTIVE]
    assert (index.job_id, index.embedding_model) == (job_id, OTHER)
    assert index.tuning is not None


loads: list[str] = []


def counted_load(name: str, settings: Settings, check: Any) -> Embedder:
    loads.append(name)
    return toy_embedder.load(name, settings, check)


def test_what_is_ingested_afterwards_is_of_the_new_model(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    rebuild(process, collection)

    done, _ = ingest(process, collection, {"trains": TRAINS, "cats": CATS + " They purr."})

    assert done == {"added": 1, "replaced": 1}
    agrees(process, collection)


def test_an_empty_collection_changes_its_model(process: Process) -> None:
    collection = new_collection(process)

    result = rebuild(process, collection)

    assert (result["chunks"], result["comparison"]) == (0, None)
    ingest(process, collection, {"cats": CATS})
    agrees(process, collection)

    # Both indexes give the same answer to what nothing answers.
    erase(process, document_ids=[document_id(process, collection, "cats")])
    judged = {"query": "cats", "relevant": ["cats"]}
    result = rebuild(process, collection, queries=[judged], min_overlap=1)
    assert (result["comparison"]["overlap"], result["comparison"]["recall"]) == (1, 0)


def test_judged_queries_are_asked_of_both(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    judged = {"query": "When does the train to Busan leave?", "relevant": ["trains"]}

    result = rebuild(process, collection, queries=[judged], k=5)

    comparison = result["comparison"]
    assert (comparison["are_judged"], comparison["queries"], comparison["k"]) == (True, 1, 5)
    assert comparison["recall"] == comparison["recall_before"] == 1


def test_below_a_bound_nothing_changes_and_what_was_built_is_used_again(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    judged = {"query": "cats", "relevant": ["nowhere.md"]}
    job_id = start(process, collection, model=OTHER, queries=[judged], min_recall=0.5)
    drain(process)

    job = job_of(process, job_id)
    assert job.state == State.FAILED
    assert "recall@10" in str(job.error)
    assert indexes_of(process, collection)[IndexState.ACTIVE].dimension == 384
    built = indexes_of(process, collection)[IndexState.BUILDING]
    with process.ledger.read() as session:  # nobody loads its model ahead any more
        assert indexes.building_models(session, limit=9) == []
    store_of(process).delete(built.stored_name, sorted(stored_ids(process, built))[:2])  # lost

    rebuild(process, collection)

    assert indexes_of(process, collection)[IndexState.ACTIVE].id == built.id
    agrees(process, collection)


def test_one_goes_back_to_the_model_before(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "old": pages("Old", 9)})
    first = indexes_of(process, collection)[IndexState.ACTIVE]
    rebuild(process, collection)
    ingest(process, collection, {"trains": TRAINS, "old": pages("New", 9)})
    lost = sorted(stored_ids(process, first))[:1]
    store_of(process).delete(first.stored_name, lost)

    debug = hits_of(process, collection, "cats", k=1, options=SearchOptions(debug=True))[0].debug
    assert debug is not None
    assert (debug.index, debug.embedding_model) == (f"{collection}.2", OTHER)

    result = rebuild(process, collection, rollback=True)

    assert result["embedding_model"] == DEFAULT_EMBEDDING_MODEL
    assert indexes_of(process, collection)[IndexState.ACTIVE].id == first.id
    agrees(process, collection)
    rebuild(process, collection, rollback=True)
    assert indexes_of(process, collection)[IndexState.ACTIVE].embedding_model == OTHER
    agrees(process, collection)


def test_a_lost_store_is_made_again(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    before = [
        (hit.chunk_id, hit.score) for hit in hits_of(process, collection, "sleeping cats", k=6)
    ]
    store_of(process).drop(collection)

    result = rebuild(process, collection, model=None)

    assert result["embedding_model"] == DEFAULT_EMBEDDING_MODEL
    assert result["comparison"]["overlap"] is None
    assert result["rollback_until"] is None
    agrees(process, collection)
    after = [
        (hit.chunk_id, hit.score) for hit in hits_of(process, collection, "sleeping cats", k=6)
    ]
    assert [id_ for id_, _ in after] == [id_ for id_, _ in before]
    assert [score for _, score in after] == pytest.approx([score for _, score in before], abs=1e-3)


def test_there_may_be_nothing_to_go_back_to(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    job_id = start(process, collection, rollback=True)
    drain(process)

    job = job_of(process, job_id)
    assert job.state == State.FAILED
    assert "SLUICE_RETIRED_INDEX_KEEP_S" in str(job.error)


def test_two_jobs_do_not_rebuild_at_once(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    jobs = [start(process, collection, model=OTHER) for _ in range(2)]
    run_next(process, handlers(), Queue.EMBED.value)  # one step of the first
    with process.ledger.begin() as session:
        session.execute(
            update(Step)
            .where(Step.job_id == jobs[0], Step.state == State.QUEUED)
            .values(run_after=func.now() + func.make_interval(0, 0, 0, 1))
        )
    while run_next(process, handlers(), Queue.EMBED.value):
        pass

    states = [job_of(process, job_id).state for job_id in jobs]
    assert states == [State.RUNNING, State.FAILED]
    assert str(jobs[0]) in str(job_of(process, jobs[1]).error)


def test_an_index_is_dropped_after_its_time(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    rebuild(process, collection)
    sweep(process)
    old = indexes_of(process, collection)[IndexState.RETIRED]
    assert stored_ids(process, old)
    with process.ledger.begin() as session:
        indexes.drop(session, indexes.named(session, old.collection_id, old.stored_name))

    sweep(process)

    assert IndexState.RETIRED not in indexes_of(process, collection)
    assert stored_ids(process, old) == set()
    agrees(process, collection)


def test_what_a_cancelled_job_has_built_is_dropped_and_its_name_is_not_used_again(
    process: Process,
) -> None:
    """What a worker that stood still writes there yet are vectors of another model."""
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "long": pages("Tea", 30)})
    job_id = start(process, collection, model=OTHER)
    run_next(process, handlers(), Queue.EMBED.value)
    built = indexes_of(process, collection)[IndexState.BUILDING]
    cancel(process, job_id)
    drain(process)

    sweep(process)

    assert set(indexes_of(process, collection)) == {IndexState.ACTIVE}
    assert stored_ids(process, built) == set()
    assert indexes_of(process, collection)[IndexState.ACTIVE].dimension == 384
    rebuild(process, collection)
    assert built.stored_name == f"{collection}.2"
    assert indexes_of(process, collection)[IndexState.ACTIVE].stored_name == f"{collection}.3"


def test_what_another_program_has_in_the_store_stays(process: Process) -> None:
    """A name that an index is to have, or has had in another store, may be taken there."""
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    taken = f"{collection}.2"
    store = store_of(process)
    store.drop(collection)
    entry = VectorEntry(id="of another program", text="theirs", metadata={"by": "others"})
    for name in (taken, collection):
        store.make(name, "cosine")
        store.upsert(name, [entry], np.eye(1, 9, dtype=np.float32))
    for last in ("retired", "erased"):
        job_id = start(process, collection, model="openai/nobody")  # ends before it is made
        drain(process)
        assert job_of(process, job_id).state == State.FAILED
        if last == "retired":
            change(process, f"DELETE FROM jobs WHERE id = '{job_id}'")
            sweep(process)
            assert set(indexes_of(process, collection)) == {IndexState.ACTIVE}
            change(process, "UPDATE collections SET indexes_made = 1")
        else:
            erase(process, collection=collection)
        for name in (taken, collection):
            assert store.id_page(name, limit=9, offset=0) == [entry.id]
    store.drop(taken), store.drop(collection)


def test_a_collection_gets_another_model_because_its_own_is_gone(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    rebuild(process, collection)
    monkeypatch.setitem(EMBEDDERS, "toy", f"{__name__}:load_nothing")
    process.hold(make_embedders, Embedders(process.settings))

    result = rebuild(process, collection, model=DEFAULT_EMBEDDING_MODEL)

    assert result["comparison"]["overlap"] is None
    assert result["comparison"]["recall_before"] is None
    agrees(process, collection)


def load_nothing(name: str, *_: Any) -> Embedder:
    raise Permanent(f"There is no model {name}.")


def test_erasing_during_a_rebuild_leaves_nothing_in_either_index(process: Process) -> None:
    collection = new_collection(process)
    texts = {f"page {n}": pages(f"Word{n}", 6) for n in range(6)}
    ingest(process, collection, texts)
    ids = [document_id(process, collection, name) for name in texts]
    job_id = start(process, collection, model=OTHER)
    erased: list[UUID] = []
    while job_of(process, job_id).state in OPEN:
        if ids and len(erased) < 4:
            erased.append(ids.pop())
            submit(process, kinds.ERASE, {"document_ids": [str(erased[-1])]})
            run_next(process, handlers(), Queue.CONTROL.value)
        run_next(process, handlers(), Queue.EMBED.value)
        make_due(process)
    drain(process)

    assert job_of(process, job_id).state == State.SUCCEEDED
    agrees(process, collection)
    both = indexes_of(process, collection)
    assert stored_ids(process, both[IndexState.RETIRED]) == live_chunk_ids(process, collection)
    submit(process, kinds.ERASE, {"collection": collection})
    drain(process)
    for index in both.values():
        assert store_of(process).drop(index.stored_name) == 0


def test_a_collection_that_is_erased_meanwhile_ends_the_job(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    job_id = start(process, collection, model=OTHER)
    run_next(process, handlers(), Queue.EMBED.value)
    both = indexes_of(process, collection)
    submit(process, kinds.ERASE, {"collection": collection})
    run_next(process, handlers(), Queue.CONTROL.value)
    drain(process)

    assert job_of(process, job_id).state == State.FAILED
    assert "no collection" in str(job_of(process, job_id).error)
    for index in both.values():
        assert store_of(process).drop(index.stored_name) == 0


def test_vectors_that_were_made_before_the_switch_are_made_again(process: Process) -> None:
    """An embedding step that began with the old index notices when it is to note its vectors."""
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    late = order(process, collection, {"trains": TRAINS})
    while run_next(process, handlers(), Queue.INGEST.value):
        pass
    embed = handlers()["ingest.embed"]
    assert embed.run is not None
    run = embed.run
    switched: list[bool] = []

    def embed_late(context: Context) -> Done:
        done = run(context)
        if not switched:
            switched.append(True)
            rebuild(process, collection)
        return done

    table = {**handlers(), "ingest.embed": replace(embed, run=embed_late)}
    run_next(process, table, Queue.EMBED.value)
    drain(process)

    assert switched
    job = job_of(process, late)
    assert job.state == State.SUCCEEDED, job.error
    assert job.attempt == 1
    agrees(process, collection)


@pytest.mark.parametrize("seed", range(3))
def test_killed_at_any_moment_it_goes_on(process: Process, seed: int) -> None:
    """Attempts are lost before and behind calls of the store."""
    deadly, moment = set(random.Random(seed).sample(range(14), 6)), count()
    collection = new_collection(process)
    ingest(process, collection, {f"page {n}": pages(f"Word{n}", 4) for n in range(4)})
    job_id = start(process, collection, model=OTHER)
    store = store_of(process)

    class Killed(BaseException):
        pass

    calls = ("make", "upsert", "query", "vectors", "delete")

    def killing(name: str) -> Any:
        real = getattr(store, name)

        def call(*args: Any, **kwargs: Any) -> Any:
            if next(moment) in deadly:
                raise Killed
            result = real(*args, **kwargs)
            if next(moment) in deadly:
                raise Killed
            return result

        return call

    for name in calls:
        setattr(store, name, killing(name))
    deaths = 0
    try:
        while job_of(process, job_id).state in OPEN:
            try:
                run_next(process, handlers(), Queue.EMBED.value)
            except Killed:
                deaths += 1
                with process.ledger.begin() as session:  # deaths are not what is counted here
                    session.execute(
                        update(Step)
                        .where(Step.job_id == job_id)
                        .values(max_attempts=Step.max_attempts + 1)
                    )
                lose_workers(process)
            make_due(process)
    finally:
        for name in calls:
            delattr(store, name)
    drain(process)

    assert deaths
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    agrees(process, collection)
    assert indexes_of(process, collection)[IndexState.ACTIVE].embedding_model == OTHER


class SharedEmbedders(Embedders):
    """Those of this test session, for several threads."""

    lock = threading.RLock()

    def get(self, name: str | None = None, *, check: Any = lambda: None) -> Any:
        with self.lock:
            return Shared(embedders().get(name, check=check), self.lock)


class Shared:
    def __init__(self, embedder: Embedder, lock: Any) -> None:
        self._embedder, self._lock = embedder, lock

    def __getattr__(self, name: str) -> Any:
        value = getattr(self._embedder, name)
        if not callable(value):
            return value

        def call(*args: Any, **kwargs: Any) -> Any:
            with self._lock:
                return value(*args, **kwargs)

        return call


@pytest.fixture
def searchers() -> Iterator[threading.Event]:
    stop = threading.Event()
    yield stop
    stop.set()


def test_nobody_who_searches_notices(
    process: Process, settings: Settings, searchers: threading.Event
) -> None:
    """16 threads search during rebuilds there and back, and an ingest: no error, and a hit's
    similarity is always that of the query and the hit in one of both models, the same for all."""
    collection = new_collection(process)
    ingest(process, collection, {f"page {n}": pages(f"Word{n}", 4) for n in range(8)})
    errors: list[BaseException] = []
    counts: list[int] = []
    mixed: list[Any] = []
    query = "Word3 page 2 speaks of matters"
    shared: Embedders = SharedEmbedders(settings)
    process.hold(make_embedders, shared)
    models = {name: shared.get(name) for name in (DEFAULT_EMBEDDING_MODEL, OTHER)}
    query_vectors = {
        name: model.encode_queries([query], between=lambda: None)[0]
        for name, model in models.items()
    }

    @cache
    def cosine(name: str, text: str) -> float:
        (vector,) = models[name].encode([text], between=lambda: None)
        return float(vector @ query_vectors[name])

    def is_of_one_model(hits: Any) -> bool:
        return any(
            all(abs(cosine(name, hit.text) - hit.score) < 0.02 for hit in hits) for name in models
        )

    searches = threading.Semaphore(16)

    def look(n: int) -> None:
        own = make_process(settings, f"searcher-{n}")
        own.hold(make_embedders, shared)
        found = 0
        try:
            while searches.acquire() and not searchers.is_set():
                hits = hits_of(own, collection, query, k=3, options=SIMILARITY)
                found += 1
                if len(hits) < 3 or not is_of_one_model(hits):
                    mixed.append(hits)
        except BaseException as error:
            errors.append(error)
        finally:
            counts.append(found)
            own.close()

    def beside_searches(handler: Handler) -> Handler:
        def run(context: Context) -> Done:
            searches.release(4)
            assert handler.run is not None
            return handler.run(context)

        return handler if handler.run is None else replace(handler, run=run)

    table = {name: beside_searches(handler) for name, handler in handlers().items()}
    threads = [threading.Thread(target=look, args=(n,)) for n in range(16)]
    for thread in threads:
        thread.start()
    try:
        for round_ in range(2):
            more = order(process, collection, {f"more {round_}": pages("More", 12)})
            rebuild(process, collection, table, **({"rollback": True} if round_ else {}))
            drain(process, table)
            assert job_of(process, more).state == State.SUCCEEDED
    finally:
        searchers.set()
        searches.release(16)
        for thread in threads:
            thread.join()

    assert errors == []
    assert mixed == []
    assert sum(counts) >= 16
    agrees(process, collection)
    with process.ledger.read() as session:
        place = IndexPlace.of(indexes_of(process, collection)[IndexState.RETIRED])
        assert indexes.is_in_use(session, place)
        pending = session.scalar(
            select(func.count())
            .select_from(Version)
            .join(Document)
            .where(Version.state == "pending")
        )
    assert pending == 0
