"""Small `embed` jobs of one model, and short queries of one collection, share batches."""

import json
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import numpy as np
import pytest
from sqlalchemy import event, text

from shared.bounds import EncodedJson, to_json
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.errors import Permanent
from shared.jobs import claims, steps
from shared.kinds import registry as kinds
from shared.kinds.embed import SMALL_CHARS, EmbedInput
from shared.kinds.kind import Kind
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from shared.redis.events import stream_key
from shared.vocabulary import Lane, Queue, Shape, State
from tests.integration.ingestion import CATS, TRAINS, ingest
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    embedders,
    handlers,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
    submit_many,
)
from tests.integration.toy_embedder import Letters
from workers.attempts.process import Process
from workers.attempts.runner import rings_of, run_next
from workers.models.devices import Vectors
from workers.retrieval.embed import EMBEDDERS

BAD = "this one is bad"


class Picky(Letters):
    """Fails where one of its texts is bad, and notes what it was given together."""

    def __init__(self, calls: list[list[str]]) -> None:
        super().__init__("picky")
        self._calls = calls

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        self._calls.append(list(texts))
        if BAD in texts:
            raise RuntimeError("cannot read that")
        return super().encode(texts, between=between)


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    """With time enough for each batch, however slow the machine is."""
    process = make_process(settings, embedding_batch_s=3600)
    yield process
    process.close()


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch) -> list[list[str]]:
    """The texts of each call of the model `picky/...`."""
    given: list[list[str]] = []
    monkeypatch.setitem(EMBEDDERS, "picky", f"{__name__}:picky")
    monkeypatch.setattr(f"{__name__}.picky", lambda *_: Picky(given))
    return given


def picky(*_: Any) -> Picky:
    raise AssertionError("the fixture replaces it")


def ask(process: Process, *texts: str, model: str | None = None, **fields: Any) -> UUID:
    return send(process, kinds.EMBED, EmbedInput(texts=list(texts), model=model), **fields)


def send(process: Process, kind: Kind, input_: Shape, **fields: Any) -> UUID:
    return submit(process, kind, input_.model_dump(mode="json"), **fields)


def run(process: Process, queue: Queue = Queue.EMBED) -> bool:
    return run_next(process, handlers(), queue.value)


def test_texts_of_waiting_jobs_are_encoded_together(
    process: Process, calls: list[list[str]]
) -> None:
    model = "picky/together"
    ids = [ask(process, f"word {n}", model=model, fair_key=f"k{n % 3}") for n in range(5)]
    two = ask(process, "a", "b", model=model)
    other = ask(process, "another model's")

    assert run(process)

    assert [sorted(texts) for texts in calls] == [
        sorted([f"word {n}" for n in range(5)] + ["a", "b"])
    ]
    assert {job_of(process, job_id).state for job_id in [*ids, two]} == {State.SUCCEEDED}
    assert job_of(process, other).state == State.QUEUED
    assert len(job_of(process, two).result["embeddings"]) == 2
    invariants_hold(process)


def test_each_job_has_the_vectors_of_its_own_texts(process: Process) -> None:
    texts = [("cats",), ("The train leaves at nine.", "고양이"), ("x" * 300,)]
    ids = [ask(process, *own) for own in texts]

    assert run(process)

    embedder = embedders().get()
    for job_id, own in zip(ids, texts, strict=True):
        result = job_of(process, job_id).result
        assert (result["model"], result["dimension"]) == (embedder.name, embedder.dimension)
        alone = embedder.encode(own, between=lambda: None)
        assert np.array(result["embeddings"]) == pytest.approx(alone, abs=2e-2)  # bfloat16


def test_a_bad_text_fails_its_own_job_and_no_other(
    process: Process, calls: list[list[str]]
) -> None:
    good = [ask(process, f"word {n}", model="picky/bad", max_attempts=1) for n in range(3)]
    bad = ask(process, BAD, model="picky/bad", max_attempts=1)

    assert run(process)

    assert {job_of(process, job_id).state for job_id in good} == {State.SUCCEEDED}
    error = job_of(process, bad).error
    assert error is not None
    assert "cannot read that" in error["message"]
    assert [len(texts) for texts in calls] == [4, 1, 1, 1, 1]
    invariants_hold(process, all_ended=True)


def test_a_model_that_cannot_be_loaded_is_looked_for_once(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    loads: list[str] = []

    def load(name: str, *_: Any) -> Any:
        loads.append(name)
        raise Permanent("no such model")

    monkeypatch.setitem(EMBEDDERS, "picky", f"{__name__}:picky")
    monkeypatch.setattr(f"{__name__}.picky", load)
    ids = [ask(process, "a", model="picky/none") for _ in range(4)]

    assert run(process)

    assert {job_of(process, job_id).state for job_id in ids} == {State.FAILED}
    assert loads == ["picky/none"]


def test_who_waits_is_answered_before_what_rides_along(
    process: Process, calls: list[list[str]]
) -> None:
    for n in range(3):
        ask(process, f"bulk {n}", model="picky/lanes", lane=Lane.BULK)
    urgent = ask(process, "urgent", model="picky/lanes", lane=Lane.INTERACTIVE)
    states: list[str] = []

    class Watching(Picky):
        def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
            states.append(job_of(process, urgent).state)
            return super().encode(texts, between=between)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(f"{__name__}.picky", lambda *_: Watching(calls))
        assert run(process)

    assert calls[0] == ["urgent"]
    assert sorted(calls[1]) == ["bulk 0", "bulk 1", "bulk 2"]
    assert states == [State.RUNNING, State.SUCCEEDED]


def test_a_large_job_runs_alone(process: Process, calls: list[list[str]]) -> None:
    large = ask(process, *["x" * 1000] * (SMALL_CHARS // 1000 + 1), model="picky/large")
    small = [ask(process, "small", model="picky/large") for _ in range(2)]

    assert run(process)
    assert [job_of(process, job_id).state for job_id in [large, *small]] == [
        State.SUCCEEDED, State.QUEUED, State.QUEUED,
    ]  # fmt: skip
    assert run(process)
    assert calls[1:] == [["small", "small"]]


def test_what_has_not_begun_in_time_goes_back_and_costs_no_attempt(
    settings: Settings, process: Process, calls: list[list[str]]
) -> None:
    hasty = make_process(
        settings, "hasty", embedding_batch_s=1e-9, embedding_batch_tokens=1, worker_concurrency=1
    )
    try:
        ids = [ask(process, f"word {n}", model="picky/late", max_attempts=1) for n in range(4)]
        assert run(hasty)
        assert len(calls) == 1
        ended = [job_of(process, job_id).state for job_id in ids]
        assert sorted(ended) == [State.RUNNING] * 3 + [State.SUCCEEDED]
        drain(hasty)
    finally:
        hasty.close()
    assert {job_of(process, job_id).state for job_id in ids} == {State.SUCCEEDED}
    assert {job_of(process, job_id).attempt for job_id in ids} == {1}


def test_a_job_cancelled_in_its_batch_ends_so_and_the_others_go_on(
    process: Process, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    ids = [ask(process, f"word {n}", model="picky/cancel") for n in range(3)]

    class Cancelling(Picky):
        def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
            cancel(process, ids[1])
            return super().encode(texts, between=between)

    monkeypatch.setattr(f"{__name__}.picky", lambda *_: Cancelling(calls))
    assert run(process)
    states = [job_of(process, job_id).state for job_id in ids]
    assert states == [State.SUCCEEDED, State.CANCELLED, State.SUCCEEDED]
    invariants_hold(process, all_ended=True)


def test_numbers_that_are_none_fail_their_job(
    process: Process, calls: list[list[str]], monkeypatch: pytest.MonkeyPatch
) -> None:
    class Overflowing(Picky):
        def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
            vectors = super().encode(texts, between=between)
            vectors[[text == "huge" for text in texts]] = float("nan")
            return vectors

    monkeypatch.setattr(f"{__name__}.picky", lambda *_: Overflowing(calls))
    huge, fine = ask(process, "huge", model="picky/nan"), ask(process, "fine", model="picky/nan")
    assert run(process)
    assert job_of(process, fine).state == State.SUCCEEDED
    error = job_of(process, huge).error
    assert error is not None
    assert "SLUICE_EMBEDDING_DTYPE=float32" in error["message"]


@pytest.fixture
def two(process: Process, collection: str) -> str:
    """A collection of two documents."""
    ingest(process, collection, {"cats": CATS, "trains": TRAINS})
    return collection


def test_queries_of_one_collection_are_answered_together(process: Process, two: str) -> None:
    queries = {"cats sleep": "cats", "train to Busan": "trains", "a cat": "cats"}
    ids = [
        send(process, kinds.SEARCH, SearchInput(collection=two, query=query, k=1))
        for query in queries
    ]
    more = send(process, kinds.SEARCH, SearchInput(collection=two, query="cats", k=2))
    lists = send(process, kinds.SEARCH, SearchInput(collection=two, queries=["cats", "trains"]))

    assert run(process, Queue.QUERY)

    hits = [job_of(process, job_id).result["hits"] for job_id in ids]
    assert [[hit["source"] for hit in own] for own in hits] == [[name] for name in queries.values()]
    assert len(job_of(process, more).result["hits"]) == 2
    assert job_of(process, lists).state == State.QUEUED  # it may be long, and runs alone
    drain(process)
    assert [row["query"] for row in job_of(process, lists).result["results"]] == ["cats", "trains"]
    invariants_hold(process, all_ended=True)


def test_a_query_alone_and_in_company_has_the_same_hits(process: Process, two: str) -> None:
    input_ = SearchInput(collection=two, query="When do trains run?")
    alone = send(process, kinds.SEARCH, input_)
    drain(process)
    ids = [send(process, kinds.SEARCH, input_) for _ in range(10)]
    drain(process)
    expected = job_of(process, alone).result["hits"]
    for job_id in ids:
        hits = job_of(process, job_id).result["hits"]
        assert [hit["chunk_id"] for hit in hits] == [hit["chunk_id"] for hit in expected]
        assert [hit["score"] for hit in hits] == pytest.approx(
            [hit["score"] for hit in expected], abs=2e-2
        )


def test_warnings_are_of_the_query_that_they_name(process: Process, two: str) -> None:
    long = send(process, kinds.SEARCH, SearchInput(collection=two, query="When? " * 300))
    short = send(process, kinds.SEARCH, SearchInput(collection=two, query="When?"))
    assert run(process, Queue.QUERY)
    assert job_of(process, short).warnings == []
    (warning,) = job_of(process, long).warnings
    assert warning.startswith("The query has")


def test_questions_are_looked_up_together_and_answered_each(process: Process, two: str) -> None:
    ids = [
        send(process, kinds.RAG, RagInput(collection=two, question=question, model="extractive"))
        for question in ("Do cats sleep?", "Where does the train go?")
    ]
    assert run(process, Queue.QUERY)
    assert [[step.name for step in steps_of(process, id_)] for id_ in ids] == [
        ["rag.find", "rag.answer"]
    ] * 2
    drain(process)
    assert {job_of(process, job_id).state for job_id in ids} == {State.SUCCEEDED}


def test_a_collection_that_is_gone_fails_its_searches_alone(process: Process, two: str) -> None:
    gone = [
        send(process, kinds.SEARCH, SearchInput(collection="gone", query="a")) for _ in range(2)
    ]
    there = send(process, kinds.SEARCH, SearchInput(collection=two, query="cats"))
    drain(process)
    assert {job_of(process, job_id).state for job_id in gone} == {State.FAILED}
    assert job_of(process, there).state == State.SUCCEEDED


# What it costs


@contextmanager
def own_statements(process: Process) -> Iterator[list[str]]:
    """Those of this thread: a slow machine sends heartbeats meanwhile, on a thread of their own."""
    seen: list[str] = []
    thread = threading.get_ident()

    def note(_connection: Any, _cursor: Any, statement: str, *_: Any) -> None:
        if threading.get_ident() == thread:
            seen.append(statement)

    engines = [process.ledger.engine, process.ledger.planned_engine]
    for engine in engines:
        event.listen(engine, "before_cursor_execute", note)
    try:
        yield seen
    finally:
        for engine in engines:
            event.remove(engine, "before_cursor_execute", note)


def test_a_batch_is_claimed_read_and_recorded_by_few_statements(
    process: Process, calls: list[list[str]]
) -> None:
    """However many jobs it has, it takes as many statements as one of two."""
    ask(process, "first", model="picky/count")
    assert run(process)  # on connections that ask who answers
    calls.clear()

    def count(jobs: int) -> int:
        for n in range(jobs):
            ask(process, f"word {n}", model="picky/count")
        with own_statements(process) as seen:
            assert run(process)
        assert sum(map(len, calls)) == jobs
        calls.clear()
        return len(seen)

    assert count(2) == count(16) == 3  # the claim, the companions, the record


def test_one_job_takes_two_statements(process: Process, calls: list[list[str]]) -> None:
    ask(process, "first", model="picky/one")
    assert run(process)
    ask(process, "a", model="picky/one")
    with own_statements(process) as seen:
        assert run(process)
    assert len(seen) == 2, seen
    assert calls == [["first"], ["a"]]


def test_messages_of_a_batch_are_taken_with_it_and_none_of_the_others(process: Process) -> None:
    bell, queue = process.ledger.bell, Queue.EMBED.value
    submit_many(process, 100, "a")
    table = handlers()
    waiting: list[int] = []
    while bell.waiting(queue):
        # As Celery does: one message is taken, and then the claim is made.
        bell.take(queue, 1)
        run_next(process, table, queue)
        waiting.append(bell.waiting(queue))
        assert waiting[-1] >= _queued(process)
    assert _queued(process) == 0
    assert len(waiting) < 10


def test_messages_for_other_steps_are_handed_back(process: Process) -> None:
    """A process that had a batch finds steps that run alone: each still has its message."""
    bell, queue = process.ledger.bell, Queue.EMBED.value
    rings_of(process).settle(queue, 0, claimed=16)  # the last claim was of so many
    for n in range(5):
        ask(process, "x" * (SMALL_CHARS + 1), model=f"picky/{n}", max_attempts=1)
    bell.take(queue, 1)
    run(process)
    assert (bell.waiting(queue), _queued(process)) == (4, 4)


def _queued(process: Process) -> int:
    with process.ledger.read() as session:
        return int(
            session.execute(text("SELECT count(*) FROM steps WHERE state = 'queued'")).scalar_one()
        )


def test_ends_are_published_and_only_those_that_are(process: Process) -> None:
    """One of three steps is another worker's by the time that all are recorded."""
    ids = [ask(process, "a") for _ in range(3)]
    mine = [claimed(process) for _ in ids]
    with process.ledger.begin() as session:
        session.execute(
            text("UPDATE steps SET attempt = attempt + 1 WHERE id = :id"), {"id": mine[1].step_id}
        )
    endings = [steps.Ending(claim=claim, result=_encoded({"n": n})) for n, claim in enumerate(mine)]
    with process.ledger.begin_planned() as session:
        assert steps.end_jobs(session, endings) == {mine[0].step_id, mine[2].step_id}

    assert [job_of(process, job_id).state for job_id in ids] == [
        State.SUCCEEDED, State.RUNNING, State.SUCCEEDED,
    ]  # fmt: skip
    assert [job_of(process, job_id).result for job_id in ids] == [{"n": 0}, None, {"n": 2}]
    redis = process.ledger.events.redis
    ended = ['"end"' in json.dumps(redis.xrange(stream_key(job_id))) for job_id in ids]
    assert ended == [True, False, True]


def _encoded(value: Any) -> EncodedJson:
    return EncodedJson(value, to_json(value))


@pytest.mark.parametrize("what", ["webhook", "ending", "other steps", "after end"])
def test_ends_that_something_follows_are_left_to_the_long_way(process: Process, what: str) -> None:
    webhook = {"url": "http://127.0.0.1:9/", "secret": "s"} if what == "webhook" else None
    job_id = ask(process, "a", webhook=webhook)
    claim = claimed(process)
    changes = {
        "ending": "UPDATE jobs SET ending = 'cancelled'",
        "other steps": "UPDATE jobs SET open_steps = 2",
        "after end": "UPDATE steps SET after_end = true",
    }
    if what in changes:
        with process.ledger.begin() as session:
            session.execute(text(changes[what]))
    with process.ledger.begin_planned() as session:
        assert steps.end_jobs(session, [steps.Ending(claim=claim, result=_encoded(1))]) == set()
    assert job_of(process, job_id).state == State.RUNNING
    assert [step.state for step in steps_of(process, job_id)] == [State.RUNNING]


PREPARED = "PREPARE claiming (text, text, float8, text[]) AS {}"
EXPLAINED = """
    EXPLAIN (ANALYZE, BUFFERS, FORMAT JSON) EXECUTE claiming('embed', 'w', 60, '{""}')
"""


def test_a_claim_that_is_planned_once_reads_no_more_among_many(process: Process) -> None:
    """The plan is made for whatever values come, and so without a look at them."""
    statement = claims.CLAIM.text
    for n, name in enumerate(("queue", "worker", "lease_s", "routes"), start=1):
        statement = statement.replace(f":{name}", f"${n}")

    def blocks() -> int:
        with process.ledger.planned_engine.connect() as connection:
            connection.exec_driver_sql(PREPARED.format(statement))
            plan = connection.exec_driver_sql(EXPLAINED).scalar_one()
            connection.rollback()
        read = plan[0]["Plan"]
        assert read["Actual Rows"] == 1
        return int(read["Shared Hit Blocks"] + read["Shared Read Blocks"])

    def fill(count: int) -> None:
        for key in "abcd":
            submit_many(process, count // 4, key)
        with process.ledger.engine.connect() as connection:
            own = connection.execution_options(isolation_level="AUTOCOMMIT")
            own.execute(text("VACUUM ANALYZE steps"))

    fill(400)
    few = blocks()
    fill(8000)
    assert blocks() < few + 150
