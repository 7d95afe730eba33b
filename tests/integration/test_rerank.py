"""Hits that a cross-encoder ranks again: alone, together with other jobs, or before an answer."""

import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import pytest

from shared.config import Settings
from shared.documents import erasure
from shared.jobs import steps
from shared.kinds import registry as kinds
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from shared.vocabulary import Queue
from tests.integration.ingestion import document_id, ingest, new_collection, search
from tests.integration.job_runner import (
    drain,
    invariants_hold,
    job_of,
    make_process,
    steps_of,
    submit,
)
from tests.tiny import crossencoder
from tests.tiny_models import one_thread
from workers.app import handlers_of
from workers.attempts.process import Process
from workers.attempts.runner import run_next

MODEL = "tiny/ranker"
QUERIES = list(crossencoder.ANSWERS)
ANSWERS = list(crossencoder.ANSWERS.values())


@pytest.fixture
def worker(process: Process, settings: Settings, tmp_path: Path) -> Iterator[Process]:
    """It has the model, laid out as SLUICE_MODELS_FOLDER is."""
    shutil.copytree(crossencoder.folder(), tmp_path / MODEL)
    own = make_process(settings, "hf", models_folder=tmp_path)
    with one_thread():
        yield own
    own.close()
    invariants_hold(process, all_ended=True)


@pytest.fixture
def collection(process: Process) -> str:
    name = new_collection(process)
    texts = {f"text {n}": text for n, text in enumerate(ANSWERS)}
    ingest(process, name, texts, splitter={"chunk_size": 200})
    return name


def order(process: Process, collection: str, queries: list[str], **options: Any) -> UUID:
    input_ = SearchInput(
        collection=collection, queries=queries, search={"rerank": MODEL, **options}, k=2
    )
    return submit(process, kinds.SEARCH, input_.model_dump(mode="json"))


def rows_of(process: Process, job_id: UUID) -> list[list[dict[str, Any]]]:
    job = job_of(process, job_id)
    assert job.result is not None, job.error
    return [row["hits"] for row in job.result["results"]]


def test_the_answer_is_the_first_hit_with_the_rankers_score(
    process: Process, worker: Process, collection: str
) -> None:
    job_id = order(process, collection, QUERIES)
    drain(worker, handlers_of(list(Queue)))

    for row, answer in zip(rows_of(process, job_id), ANSWERS, strict=True):
        assert row[0]["text"] == answer
        assert row[0]["score"] > 0.9 > 0.1 > row[1]["score"]
        assert len(row) == 2


def test_jobs_that_wait_for_one_model_share_a_batch(
    process: Process, worker: Process, collection: str
) -> None:
    jobs = [order(process, collection, [query]) for query in QUERIES]
    table = handlers_of(list(Queue))
    while run_next(worker, table, Queue.QUERY.value):
        pass

    assert run_next(worker, table, Queue.HF.value)

    for job_id, answer in zip(jobs, ANSWERS, strict=True):
        assert rows_of(process, job_id)[0][0]["text"] == answer


def test_what_was_erased_meanwhile_is_no_hit(
    process: Process, worker: Process, collection: str
) -> None:
    job_id = order(process, collection, QUERIES)
    table = handlers_of(list(Queue))
    assert run_next(worker, table, Queue.QUERY.value)
    with process.ledger.begin() as session:
        erasure.hide_documents(session, [document_id(process, collection, "text 0")])

    drain(worker, table)

    rows = rows_of(process, job_id)
    assert ANSWERS[0] not in {hit["text"] for row in rows for hit in row}
    assert [row[0]["text"] for row in rows[1:]] == ANSWERS[1:]


def test_a_long_job_goes_on_in_another_step(
    process: Process, worker: Process, collection: str
) -> None:
    own = make_process(worker.settings, hf_step_s=1e-9, hf_batch_tokens=1)
    job_id = order(process, collection, QUERIES)
    drain(own, handlers_of(list(Queue)))
    own.close()

    assert [row[0]["text"] for row in rows_of(process, job_id)] == ANSWERS
    assert len(steps_of(process, job_id)) > 3


def test_an_answer_comes_from_reranked_passages(
    process: Process, worker: Process, collection: str
) -> None:
    input_ = RagInput(collection=collection, question=QUERIES[2], k=1, search={"rerank": MODEL})
    job_id = submit(process, kinds.RAG, input_.model_dump(mode="json"))
    drain(worker, handlers_of(list(Queue)))

    with process.ledger.read() as session:
        [match] = steps.result_of(session, job_id, "rag.rerank")["found"]
    [hit] = search(process, collection, ANSWERS[2], k=1)
    assert match["id"] == hit.chunk_id
    assert match["score"] > 0.9
    assert job_of(process, job_id).state == "succeeded"


def test_a_model_that_is_nowhere_is_named(
    process: Process, worker: Process, collection: str
) -> None:
    input_ = SearchInput(collection=collection, query="q", search={"rerank": "no/model"})
    job_id = submit(process, kinds.SEARCH, input_.model_dump(mode="json"))
    drain(worker, handlers_of(list(Queue)))

    job = job_of(process, job_id)
    assert job.state == "failed"
    assert job.error is not None
    assert "no/model" in job.error["message"]
