"""A vector store whose data is lost while jobs search and ingest: nothing is answered from half an
index, no job is lost, and `sluice collections rebuild` brings the same answers back."""

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx
import psycopg
import pytest
from pydantic import SecretStr

from cli.main import run
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.vector_stores import STORES
from tests.api_server import served
from tests.integration.ingestion import CATS, SMALL_PIECES, TRAINS, pages
from tests.integration.thread_worker import running_worker
from tests.servers import start_chroma
from tests.waits import until

QUERIES = ("When does the train to Busan leave?", "How long do cats sleep?", "Tea page 7")
ENDED = ("succeeded", "failed", "cancelled")
Step = Callable[[], None]


@contextmanager
def chroma_server(settings: Settings, folder: Path) -> Iterator[tuple[str, Step, Step]]:
    del settings
    server = start_chroma(folder)

    def lose() -> None:
        server.kill()
        shutil.rmtree(folder / "data")

    yield server.url.replace("http", "chroma", 1), lose, server.start
    server.stop()


@contextmanager
def faiss_folder(settings: Settings, folder: Path) -> Iterator[tuple[str, Step, Step]]:
    del settings
    folder.mkdir()
    yield f"faiss://{folder}", lambda: shutil.rmtree(folder), folder.mkdir


@contextmanager
def tables(settings: Settings, folder: Path) -> Iterator[tuple[str, Step, Step]]:
    del folder

    def lose() -> None:
        with psycopg.connect(settings.require_database_url(), autocommit=True) as connection:
            connection.execute("DROP SCHEMA vectors CASCADE")

    yield "postgres", lose, lambda: None


@pytest.mark.parametrize("place", [chroma_server, faiss_folder, tables])
def test_jobs_wait_and_a_rebuild_brings_the_same_answers_back(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    place: Any,
) -> None:
    with place(settings, tmp_path / "vectors") as (url, lose, start_empty):
        own = settings.model_copy(update={"chroma_url": None, "vectors_url": SecretStr(url)})
        # Its one thread has to come to new steps between those that are tried again.
        slow = {"retry_base_s": 2, "retry_cap_s": 2, "embed_step_chunks": 20}
        with running_worker(own, threads=0, **slow), served(own) as api:
            monkeypatch.setenv("SLUICE_URL", api)
            with httpx.Client(base_url=api, timeout=60, trust_env=False) as client:
                _lose_and_rebuild(client, lose, start_empty, is_away=place is not tables)


def _lose_and_rebuild(
    client: httpx.Client, lose: Step, start_empty: Step, *, is_away: bool
) -> None:
    kept = {"cats": CATS, "trains": TRAINS, "tea": pages("Tea", 12)}
    assert _ended(client, _ingest(client, "kept", kept))["state"] == "succeeded"
    _ingest(client, "grown", {"first": TRAINS})
    answers = _answers(client)

    more = _ingest(client, "grown", {f"page {n}": pages(f"Word{n}", 5) for n in range(20)})
    until(lambda: _job(client, more)["progress"]["done"] > 3, "some of it is embedded")
    lose()
    waiting = [_search(client, "kept", type_, QUERIES[0]) for type_ in ("similarity", "hybrid")]
    new = _ingest(client, "grown", {"ships": "Ships to Jeju leave at noon."})
    if is_away:
        checks = client.get("/readyz").json()["checks"]
        assert not all(checks[name]["ok"] for name in STORES if name in checks)
        _waits_for(client, waiting[0], "SLUICE_VECTORS_URL")
        assert client.get("/v1/collections/kept").json()["documents"] == 3
        start_empty()

    for job_id in waiting:
        job = _ended(client, job_id)
        assert job["state"] == "failed"
        assert "`sluice collections rebuild NAME`" in job["error"]["message"]
    _waits_for(client, new, "collections rebuild")
    if _job(client, more)["state"] not in ENDED:  # unless it was faster than the loss
        _waits_for(client, more, "collections rebuild")
    # A new job makes no new index, which would have its documents alone.
    assert _ended(client, _search(client, "grown", "similarity", "ships"))["state"] == "failed"

    for name in ("kept", "grown"):
        assert run(["collections", "rebuild", name, "--wait"]) == 0
    for job_id, added in ((more, 20), (new, 1)):
        job = _ended(client, job_id)
        assert (job["state"], job["result"]["documents"]["added"]) == ("succeeded", added)
        assert job["result"]["errors"] == []
    after = _answers(client)
    for question, hits in answers.items():
        assert [id_ for id_, _ in after[question]] == [id_ for id_, _ in hits]
        scores = [score for _, score in hits]
        assert [score for _, score in after[question]] == pytest.approx(scores, abs=1e-4)
    for query, source in (
        (QUERIES[0], "first"), ("Word0 page 3", "page 0"), ("Word19 page 3", "page 19"),
        ("ships to Jeju", "ships"),
    ):  # fmt: skip
        assert _hits(client, "grown", "similarity", query, k=3)[0]["source"] == source


def _ingest(client: httpx.Client, collection: str, texts: dict[str, str]) -> str:
    sources = [{"type": "text", "name": name, "text": text} for name, text in texts.items()]
    input_ = {"collection": collection, "sources": sources, "splitter": SMALL_PIECES}
    client.put(f"/v1/collections/{collection}").raise_for_status()
    answer = client.post("/v1/jobs", json={"kind": "ingest", "input": input_})
    return str(answer.raise_for_status().json()["id"])


def _search(client: httpx.Client, collection: str, type_: str, query: str, *, k: int = 5) -> str:
    input_ = {"collection": collection, "query": query, "k": k, "search": {"type": type_}}
    answer = client.post("/v1/jobs", json={"kind": "search", "input": input_})
    return str(answer.raise_for_status().json()["id"])


def _job(client: httpx.Client, job_id: str) -> dict[str, Any]:
    job: dict[str, Any] = client.get(f"/v1/jobs/{job_id}").raise_for_status().json()
    return job


def _waits_for(client: httpx.Client, job_id: str, what: str) -> None:
    until(lambda: what in str(_job(client, job_id)["waiting_for"]), f"it waits: {what}")


def _ended(client: httpx.Client, job_id: str) -> dict[str, Any]:
    def look() -> dict[str, Any] | None:
        job = _job(client, job_id)
        return job if job["state"] in ENDED else None

    job = until(look, "the job ends")
    assert job is not None
    return job


def _hits(
    client: httpx.Client, collection: str, type_: str, query: str, *, k: int = 5
) -> list[dict[str, Any]]:
    job = _ended(client, _search(client, collection, type_, query, k=k))
    assert job["state"] == "succeeded", job["error"]
    hits: list[dict[str, Any]] = job["result"]["hits"]
    return hits


def _answers(client: httpx.Client) -> dict[Any, list[tuple[str, float]]]:
    """Ids and scores of what the queries find in the collection that stays as it was."""
    return {
        (type_, query): [
            (hit["chunk_id"], hit["score"]) for hit in _hits(client, "kept", type_, query)
        ]
        for type_ in ("similarity", "hybrid")
        for query in QUERIES
    }
