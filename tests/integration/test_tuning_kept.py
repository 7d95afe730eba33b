"""The tuning of a collection is measured at the first search, kept with it, and renewed in time."""

from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import contextmanager
from threading import Event
from uuid import UUID

import pytest

from shared.documents import collections, indexes
from shared.kinds import registry as kinds
from tests.integration.ingestion import document_id, ingest, new_collection
from tests.integration.job_runner import drain, embedders, submit
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder
from workers.retrieval.fusion import UNMEASURED, Tuning
from workers.retrieval.lexical import LexicalResult, lexical_of
from workers.retrieval.tuning import IndexFacts, tuning_of

TOPICS = {
    "cats": "Cats sleep for most of the day. A cat sleeps fifteen hours. Kittens sleep longer.",
    "trains": "The train to Busan leaves at nine. Trains run hourly. Seats in trains are free.",
    "bread": "Bread is baked from flour and yeast. A baker kneads dough. Fresh bread smells.",
    "stars": "A star is a ball of hot gas. Stars shine by fusion. Our sun is a star, too.",
}
WHOLE = {"type": "recursive", "chunk_size": 200, "chunk_overlap": 0}


class Counted:
    """The real embedder, which counts what it encodes; it may be held before it begins."""

    def __init__(self, hold: Event | None = None) -> None:
        embedder = embedders().get()
        self.name, self.dimension = embedder.name, embedder.dimension
        self.window, self.readable = embedder.window, embedder.readable
        self.tokenizer, self.passage_prompt = embedder.tokenizer, embedder.passage_prompt
        self.overlong, self.overlong_queries = embedder.overlong, embedder.overlong_queries
        self.sizes, self.can_shorten = embedder.sizes, embedder.can_shorten
        self.texts = 0
        self.entered = Event()
        self._hold = hold

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        self.entered.set()
        if self._hold is not None:
            assert self._hold.wait(60)
        self.texts += len(texts)
        return embedders().get().encode(texts, between=between)

    encode_queries = encode


def facts(process: Process, name: str) -> IndexFacts:
    with process.ledger.read() as session:
        return IndexFacts.of(*collections.get_with_index(session, name))


def found(process: Process, collection_id: UUID) -> LexicalResult:
    return lexical_of(process).search(collection_id, "cats", limit=5)


def tuned(process: Process, name: str, embedder: Embedder) -> Tuning:
    collection = facts(process, name)
    result = found(process, collection.id)
    return tuning_of(process, collection, embedder, result, check=lambda: None)


def test_it_is_measured_once_and_kept_with_the_collection(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    embedder = Counted()

    tuning = tuned(process, name, embedder)

    assert (tuning.chunks, tuning.pairs) == (4, 4)
    assert embedder.texts == 8
    assert tuning.dense > 0.1
    assert Tuning.load(facts(process, name).tuning) == tuning
    assert tuned(process, name, embedder) == tuning
    assert embedder.texts == 8


def test_a_collection_that_has_doubled_is_measured_again(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    embedder = Counted()
    assert tuned(process, name, embedder).chunks == 4
    ingest(process, name, {"rain": "Rain falls often. It is wet."}, splitter=WHOLE)
    assert tuned(process, name, embedder).chunks == 4

    more = {f"{topic} too": f"{text} All of this again." for topic, text in TOPICS.items()}
    ingest(process, name, more, splitter=WHOLE)

    assert tuned(process, name, embedder).chunks == 9
    assert embedder.texts == 8 + 18


def test_a_collection_of_nothing_to_measure_is_not_tried_at_every_search(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, {"a": "1.", "b": "2.", "c": "3."}, splitter=WHOLE)
    embedder = Counted()

    tuning = tuned(process, name, embedder)

    assert (tuning.pairs, tuning.chunks, tuning.dense) == (0, 3, UNMEASURED.dense)
    assert embedder.texts == 0
    assert Tuning.load(facts(process, name).tuning) == tuning


@pytest.mark.parametrize("stored", [{}, {"dense": 1.0}, {"mean": "high"}])
def test_what_another_version_kept_is_measured_again(
    process: Process, stored: dict[str, float]
) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    with process.ledger.begin() as session:
        indexes.note_tuning(session, facts(process, name).index_id, stored)

    assert tuned(process, name, Counted()).chunks == 4
    assert facts(process, name).tuning["chunks"] == 4


def test_while_one_thread_measures_others_use_what_was_kept(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    old = tuned(process, name, Counted())
    more = {f"{topic} too": f"{text} All of this again." for topic, text in TOPICS.items()}
    ingest(process, name, more, splitter=WHOLE)
    with measuring(process, name) as (running, go_on):
        unused = Counted()
        assert tuned(process, name, unused) == old
        assert unused.texts == 0
        go_on.set()
        assert running.result().chunks == 8


def test_several_first_searches_measure_once(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    with measuring(process, name) as (running, go_on), ThreadPoolExecutor(1) as other:
        unused = Counted()
        waiting = other.submit(tuned, process, name, unused)
        go_on.set()
        assert waiting.result() == running.result()
        assert unused.texts == 0


@contextmanager
def measuring(process: Process, name: str) -> Iterator[tuple[Future[Tuning], Event]]:
    """A thread that is within the measuring, until the event is set."""
    go_on = Event()
    embedder = Counted(hold=go_on)
    with ThreadPoolExecutor(1) as pool:
        running = pool.submit(tuned, process, name, embedder)
        try:
            assert embedder.entered.wait(60)
            yield running, go_on
        finally:
            go_on.set()


def test_the_sample_has_live_chunks_only(process: Process) -> None:
    name = new_collection(process)
    ingest(process, name, TOPICS, splitter=WHOLE)
    gone = document_id(process, name, "cats")
    collection = facts(process, name)
    assert len(found(process, collection.id).sample(10)) == 4
    submit(process, kinds.ERASE, {"document_ids": [str(gone)]})
    drain(process)

    sample = found(process, collection.id).sample(10)

    assert len(sample) == 3
    assert sample == found(process, collection.id).sample(10)
    assert len(found(process, collection.id).sample(2)) == 2
