"""Jobs of the kind `eval`: what is measured, on real stores, in steps that let others go first."""

import json
import shutil
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.documents import documents
from shared.kinds import registry as kinds
from shared.kinds.eval import EvalInput, EvalResult
from shared.vocabulary import Lane, Queue, State
from tests.integration.ingestion import document_id, ingest, live_chunk_ids, new_collection, upload
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    handlers,
    invariants_hold,
    job_of,
    lose_workers,
    make_process,
    steps_of,
    submit,
)
from tests.tiny import crossencoder
from tests.tiny_models import one_thread
from workers.attempts.process import Process
from workers.attempts.runner import run, run_next

TEXTS = {
    "cats.md": "Cats sleep for most of the day, fifteen hours on average.",
    "trains.md": "The train to Busan leaves at nine in the morning.",
    "bread.md": "Bread is baked from flour, water, salt and yeast.",
    "stars.md": "A star is a ball of hot gas held together by gravity.",
}
QUERIES: list[dict[str, Any]] = [
    {"query": "How long do cats sleep?", "relevant": ["cats.md"], "answers": ["Fifteen  hours"]},
    {"query": "When does the train leave?", "relevant": ["trains.md"], "answers": ["at ten"]},
    {"query": "What is bread made of?", "relevant": ["stars.md"]},
]


@pytest.fixture
def collection(process: Process) -> str:
    name = new_collection(process)
    ingest(process, name, TEXTS)
    return name


def submitted(process: Process, collection: str, **options: Any) -> Any:
    input_ = EvalInput.model_validate({"collection": collection, "queries": QUERIES} | options)
    return submit(process, kinds.EVAL, input_.model_dump(mode="json"), lane=Lane.BULK)


def result_of(process: Process, job_id: Any) -> EvalResult:
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    return EvalResult.model_validate(job.result)


def test_each_search_has_its_measures_and_the_first_is_compared_with(
    process: Process, collection: str
) -> None:
    only_cats = {"filter": {"source": "cats.md"}}
    job_id = submitted(process, collection, searches=[{"type": "similarity"}, only_cats])
    drain(process)

    result = result_of(process, job_id)
    assert (result.query_count, result.k, result.collection) == (3, 10, collection)
    everything, cats = result.searches
    assert [places[:1] for places in everything.places[:2]] == [[1], [1]]
    assert everything.places[2][0] > 1  # bread.md is the first, and stars.md is called relevant
    assert cats.places == [[1], [], []]
    assert {name: figure.value for name, figure in cats.measures.items()} == {
        "recall@1": pytest.approx(1 / 3, abs=1e-5),
        "recall@6": pytest.approx(1 / 3, abs=1e-5),
        "mrr@10": pytest.approx(1 / 3, abs=1e-5),
        "ndcg@10": pytest.approx(1 / 3, abs=1e-5),
        "answer@6": 0.5,  # of the two queries that have answers
    }
    assert everything.measures["recall@6"].value == 1
    assert everything.measures["recall@1"].value == pytest.approx(2 / 3, abs=1e-5)
    (difference,) = result.differences
    assert difference.search == 1
    assert difference.measures["recall@1"].value == pytest.approx(-1 / 3, abs=1e-5)
    assert difference.measures["recall@1"].low == -1
    assert difference.measures["recall@1"].high == 0
    assert len(cats.times_ms) == 3
    assert 0 < cats.times.p50_ms <= cats.times.p99_ms
    assert job_of(process, job_id).warnings == []


def test_a_document_a_chunk_and_a_quotation_can_be_relevant(
    process: Process, collection: str
) -> None:
    train = str(document_id(process, collection, "trains.md"))
    bread = document_id(process, collection, "bread.md")
    with process.ledger.read() as session:
        (chunk,) = documents.chunk_page(session, bread, limit=2, after=None)
    assert chunk.id in live_chunk_ids(process, collection)
    queries = [
        {"query": "When does the train leave?", "relevant": [train]},
        {"query": "What is bread made of?", "relevant": [{"id": chunk.id, "grade": 3}]},
        {"query": "What is a star?", "relevant": [{"text": "ball of HOT\ngas"}]},
    ]
    job_id = submitted(process, collection, queries=queries)
    drain(process)

    result = result_of(process, job_id)
    assert [places[:1] for places in result.searches[0].places] == [[1], [1], [1]]
    assert "answer@6" not in result.searches[0].measures
    assert job_of(process, job_id).warnings == []


def test_names_that_the_collection_does_not_have_are_told(
    process: Process, collection: str
) -> None:
    queries = [*QUERIES, {"query": "Which?", "relevant": ["cat.md", "cats.md"]}]
    job_id = submitted(process, collection, queries=queries)
    drain(process)

    (warning,) = job_of(process, job_id).warnings
    assert warning.startswith("1 of 4 relevant names are no source, document or chunk of ")
    assert "'cat.md'. They count as not found" in warning


def test_it_goes_on_in_steps_whose_outcome_is_that_of_one(
    process: Process, collection: str, settings: Settings
) -> None:
    queries = QUERIES * 4
    at_once = submitted(process, collection, queries=queries)
    drain(process)
    slow = make_process(settings, eval_step_s=1e-6)
    try:
        in_steps = submitted(slow, collection, queries=queries)
        progress = []
        while run_next(slow, handlers(), Queue.QUERY.value):
            progress.append(job_of(slow, in_steps).progress_done)
    finally:
        slow.close()

    assert progress == list(range(1, 13))
    assert len(steps_of(process, in_steps)) == 12
    assert len(steps_of(process, at_once)) == 1
    one, many = result_of(process, at_once), result_of(process, in_steps)
    assert one.searches[0].measures == many.searches[0].measures
    assert one.searches[0].places == many.searches[0].places
    job = job_of(process, in_steps)
    assert (job.progress_done, job.progress_total, job.progress_unit) == (12, 12, "queries")


def test_a_search_that_waits_goes_before_the_next_query(process: Process, collection: str) -> None:
    job_id = submitted(process, collection)
    step = claimed(process, Queue.QUERY)
    waiting = submit(process, kinds.SEARCH, {"collection": collection, "query": "cats"})

    run(process, handlers(), step)

    assert job_of(process, job_id).progress_done == 1
    assert run_next(process, handlers(), Queue.QUERY.value)
    assert job_of(process, waiting).state == State.SUCCEEDED
    assert run_next(process, handlers(), Queue.QUERY.value)
    assert result_of(process, job_id).query_count == 3
    # What waits in the same lane, or in one behind, does not interrupt.
    job_id = submitted(process, collection)
    step = claimed(process, Queue.QUERY)
    search = {"collection": collection, "query": "cats"}
    submit(process, kinds.SEARCH, search, lane=Lane.BULK)
    run(process, handlers(), step)
    assert result_of(process, job_id).query_count == 3


def test_a_file_of_queries_is_as_good_as_a_list(process: Process, collection: str) -> None:
    lines = "\ufeff" + "\n\n".join(json.dumps(query) for query in QUERIES)
    file_id = upload(process, "judged.jsonl", lines.encode())
    of_file = submitted(process, collection, queries=None, file_id=file_id)
    of_list = submitted(process, collection)
    drain(process)

    measures = [result_of(process, id_).searches[0].measures for id_ in (of_file, of_list)]
    assert measures[0] == measures[1]


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b'{"query": "a", "relevant": ["b"]}\n\nnonsense\n', "judged.jsonl, line 3: is no JSON"),
        (b'{"query": "a"}', "line 1: relevant: Field required"),
        (b'{"query": "a", "relevant": [{"id": "b", "grade": 0}]}', "grades of 0 alone"),
        (b'{"query": "a", "relevant": ["b"]}\n\xff', "line 2: is no UTF-8 text"),
        (b"\n", "judged.jsonl has no queries"),
        (b'{"query": "a", "relevant": ["b"]}\n' * 3, "more than 2 queries"),
    ],
)
def test_a_bad_file_fails_and_names_the_line(
    settings: Settings, ledger: Ledger, data: bytes, message: str
) -> None:
    del ledger  # empty tables
    process = make_process(settings, eval_limit_queries=2)
    try:
        file_id = upload(process, "judged.jsonl", data)
        job_id = submitted(process, new_collection(process), queries=None, file_id=file_id)
        drain(process)
        job = job_of(process, job_id)
    finally:
        process.close()
    assert (job.state, job.attempt) == (State.FAILED, 1)
    assert job.error is not None
    assert message in job.error["message"]


def test_a_step_that_lost_its_worker_is_run_again_and_counts_once(
    process: Process, collection: str, settings: Settings
) -> None:
    slow = make_process(settings, eval_step_s=1e-6)
    try:
        job_id = submitted(slow, collection)
        run_next(slow, handlers(), Queue.QUERY.value)
        claimed(slow, Queue.QUERY)
        lose_workers(slow)
        drain(slow)
    finally:
        slow.close()

    result = result_of(process, job_id)
    assert len(result.searches[0].places) == result.query_count == 3
    invariants_hold(process, all_ended=True)


def test_it_can_be_cancelled_between_two_steps(
    process: Process, collection: str, settings: Settings
) -> None:
    slow = make_process(settings, eval_step_s=1e-6)
    try:
        job_id = submitted(slow, collection)
        run_next(slow, handlers(), Queue.QUERY.value)
        cancel(slow, job_id)
        assert not run_next(slow, handlers(), Queue.QUERY.value)
    finally:
        slow.close()
    assert job_of(process, job_id).state == State.CANCELLED


def test_a_collection_without_text_has_no_hits(process: Process) -> None:
    job_id = submitted(process, new_collection(process))
    drain(process)

    figures = result_of(process, job_id).searches[0]
    assert figures.places == [[], [], []]
    assert figures.measures["recall@6"].value == 0


def test_a_large_result_lies_in_the_storage(collection: str, settings: Settings) -> None:
    frugal = make_process(settings, result_inline_bytes=100)
    try:
        job_id = submitted(frugal, collection)
        drain(frugal)
        job = job_of(frugal, job_id)
        assert job.result is None
        assert job.result_path is not None
        result = EvalResult.model_validate_json(frugal.storage.read(job.result_path))
    finally:
        frugal.close()
    assert result.query_count == 3


def test_what_waits_for_it_does_not_make_it_interactive(api: httpx.Client) -> None:
    """Nor does anything else but the request's own lane."""
    api.put("/v1/collections/handbook", json={})
    body = {"kind": "eval", "input": {"collection": "handbook", "queries": QUERIES}}
    lanes = [
        api.post("/v1/jobs", json=body | extra, headers=headers).json()["lane"]
        for extra, headers in (({}, {}), ({}, {"Prefer": "wait=0.01"}), ({"lane": "normal"}, {}))
    ]
    assert lanes == ["bulk", "bulk", "normal"]


def test_an_unknown_file_is_refused(api: httpx.Client) -> None:
    api.put("/v1/collections/handbook", json={})
    file_id = "0197a0a0-1234-7000-8000-00000000abcd"
    body = {"kind": "eval", "input": {"collection": "handbook", "file_id": file_id}}
    answer = api.post("/v1/jobs", json=body)
    assert answer.status_code == 404
    assert file_id in answer.json()["detail"]


def test_a_search_that_reranks_is_measured_with_its_ranker(
    settings: Settings, tmp_path: Path, process: Process
) -> None:
    shutil.copytree(crossencoder.folder(), tmp_path / "tiny/ranker")
    texts = {f"text {n}": text for n, text in enumerate(crossencoder.ANSWERS.values())}
    name = new_collection(process)
    ingest(process, name, texts, splitter={"chunk_size": 200})
    queries = [
        {"query": query, "relevant": [f"text {n}"]} for n, query in enumerate(crossencoder.ANSWERS)
    ]
    worker = make_process(settings, models_folder=tmp_path, eval_step_s=1e-6)
    try:
        with one_thread():
            searches = [{"filter": {"source": "text 0"}}, {"rerank": "tiny/ranker"}]
            job_id = submitted(worker, name, queries=queries, searches=searches)
            unknown = submitted(worker, name, searches=[{"rerank": "tiny/nothing"}])
            drain(worker)
    finally:
        worker.close()

    result = result_of(process, job_id)
    assert {step.name for step in steps_of(process, job_id)} == {"eval.run", "eval.rerank"}
    assert result.query_count == len(queries) == len(result.searches[0].places)
    plain, reranked = result.searches
    assert reranked.measures["recall@1"].value == 1
    assert plain.measures["recall@1"].value == pytest.approx(1 / len(queries), abs=1e-5)
    assert min(reranked.times_ms) > 0
    failed = job_of(process, unknown)
    assert failed.state == State.FAILED
    assert failed.error is not None
    assert "tiny/nothing" in failed.error["message"]
