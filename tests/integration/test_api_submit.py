"""`POST /v1/jobs`: answers, idempotency keys, waiting, batches."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest

from api.schemas import EXAMPLES, JobView
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs.claims import Claim
from shared.kinds.registry import KINDS
from tests.integration.answers import EMBED, problem

FIELDS = set(JobView.model_fields)


def test_a_job_is_answered_with_its_place_and_read_back_the_same(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", json=EMBED | {"metadata": {"ticket": 7}})

    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == FIELDS
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["lane"], job["queue"]) == ("queued", "normal", "embed")
    read = api.get(answer.headers["location"]).json()
    assert read.pop("position") == 0
    assert "sluice worker cpu" in read.pop("waiting_for")
    job.pop("position")
    assert job.pop("waiting_for") is None
    assert read == job
    JobView.model_validate(read | {"position": 0})


def test_a_job_rings_once(api: httpx.Client, ledger: Ledger) -> None:
    api.post("/v1/jobs", json=EMBED)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    api.post("/v1/jobs", json=EMBED | {"run_after": later})

    assert ledger.bell.waiting("embed") == 1


@pytest.mark.parametrize("kind", list(KINDS))
def test_the_documented_example_of_each_kind_is_accepted(api: httpx.Client, kind: str) -> None:
    api.put("/v1/collections/handbook")
    example = EXAMPLES[kind]["value"]
    if "file_id" in example["input"]:
        upload = api.post("/v1/files", files={"file": ("lines.jsonl", b"{}")}).json()
        example = example | {"input": example["input"] | {"file_id": upload["id"]}}
    if "file_ids" in example["input"]:
        upload = api.post("/v1/files", files={"file": ("handbook.zip", b"PK")}).json()
        example = example | {"input": example["input"] | {"file_ids": [upload["id"]]}}

    answer = api.post("/v1/jobs", json=example)

    assert answer.status_code == 202, answer.text
    assert answer.json()["kind"] == kind


@pytest.mark.parametrize("kind", ["ingest", "search", "rag", "erase"])
def test_an_unknown_collection_is_404_with_the_remedy(api: httpx.Client, kind: str) -> None:
    answer = problem(api.post("/v1/jobs", json=EXAMPLES[kind]["value"]), 404)

    assert "handbook" in answer["detail"]


class TestIdempotency:
    def test_the_same_key_and_body_are_the_same_job(self, api: httpx.Client) -> None:
        first = api.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": "k1"})
        # Another order of fields is the same body.
        turned = {"input": EMBED["input"], "kind": "embed"}
        again = api.post("/v1/jobs", json=turned, headers={"Idempotency-Key": "k1"})

        assert again.status_code == 202
        assert again.json()["id"] == first.json()["id"]
        assert "idempotent-replayed" not in first.headers
        assert again.headers["idempotent-replayed"] == "true"
        assert len(api.get("/v1/jobs").json()["items"]) == 1

    @pytest.mark.parametrize("change", [{"lane": "normal"}, {"metadata": {"a": 1}}])
    def test_another_body_is_409(self, api: httpx.Client, change: dict[str, Any]) -> None:
        api.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": "k1"})

        answer = api.post("/v1/jobs", json=EMBED | change, headers={"Idempotency-Key": "k1"})

        assert "k1" in problem(answer, 409)["detail"]

    def test_a_retry_may_wait_and_gets_the_finished_job(
        self, api: httpx.Client, finish: Callable[..., Claim]
    ) -> None:
        first = api.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": "k1"})
        finish("embed", {"model": "m"})

        again = api.post(
            "/v1/jobs", json=EMBED, headers={"Idempotency-Key": "k1", "Prefer": "wait=5"}
        )

        assert again.status_code == 200
        assert again.json()["id"] == first.json()["id"]
        assert again.headers["idempotent-replayed"] == "true"

    def test_many_at_once_make_one_job(self, api: httpx.Client) -> None:
        def submit(_: int) -> str:
            answer = api.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": "race"})
            assert answer.status_code == 202
            return str(answer.json()["id"])

        with ThreadPoolExecutor(8) as pool:
            assert len(set(pool.map(submit, range(24)))) == 1

    @pytest.mark.parametrize("key", ["x" * 256, "with space"])
    def test_a_bad_key_is_422(self, api: httpx.Client, key: str) -> None:
        answer = api.post("/v1/jobs", json=EMBED, headers={"Idempotency-Key": key})

        assert problem(answer, 422)["errors"][0]["field"] == "Idempotency-Key"


class TestWaiting:
    def test_a_job_that_ends_in_time_is_200(
        self, api: httpx.Client, finish: Callable[..., Claim], ledger: Ledger
    ) -> None:
        def work() -> None:
            while not ledger.bell.waiting("embed"):
                threading.Event().wait(0.01)
            finish("embed", {"model": "m", "dimension": 1, "embeddings": [[1.0]]})

        worker = threading.Thread(target=work)
        worker.start()
        answer = api.post("/v1/jobs", json=EMBED, headers={"Prefer": 'respond-async, wait="30"'})
        worker.join()

        assert answer.status_code == 200
        assert answer.headers["preference-applied"] == "wait=30"
        assert answer.json()["result"]["embeddings"] == [[1.0]]
        assert answer.json()["lane"] == "interactive"

    def test_one_that_does_not_is_202(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs", json=EMBED | {"lane": "bulk"}, headers={"Prefer": "wait=0"})

        assert answer.status_code == 202
        assert answer.headers["preference-applied"] == "wait=0"
        assert (answer.json()["state"], answer.json()["lane"]) == ("queued", "bulk")

    def test_waiting_holds_no_thread(self, api: httpx.Client, settings: Settings) -> None:
        """More waiting requests than threads and connections, and the API still answers."""
        waiting = settings.api_threads + 10

        def wait(_: int) -> int:
            with httpx.Client(base_url=api.base_url, timeout=90, trust_env=False) as client:
                headers = {"Prefer": "wait=60"}
                return client.post("/v1/jobs", json=EMBED, headers=headers).status_code

        with ThreadPoolExecutor(waiting) as pool:
            answers = [pool.submit(wait, n) for n in range(waiting)]
            while len(jobs := api.get("/v1/jobs?limit=200").json()["items"]) < waiting:
                threading.Event().wait(0.1)
            still_waiting = sum(not answer.done() for answer in answers)
            for job in jobs:
                api.post(f"/v1/jobs/{job['id']}/cancel")
            assert {answer.result() for answer in answers} == {200}
        assert still_waiting == waiting


class TestBatch:
    def test_a_batch_is_one_list_of_ids(self, api: httpx.Client) -> None:
        jobs = [EMBED, EMBED | {"lane": "bulk", "webhook": {"url": "http://example.test/hook"}}]

        answer = api.post("/v1/jobs/batch", json={"jobs": jobs})

        assert answer.status_code == 202
        ids = answer.json()["ids"]
        assert [api.get(f"/v1/jobs/{id_}").json()["lane"] for id_ in ids] == ["normal", "bulk"]

    @pytest.mark.parametrize(
        ("bad", "status", "says"),
        [
            ({"kind": "embed", "input": {"texts": []}}, 422, "jobs.1.input.texts"),
            ({"kind": "search", "input": {"collection": "nowhere", "query": "q"}}, 404, "jobs.1"),
        ],
    )
    def test_one_bad_job_refuses_all(
        self, api: httpx.Client, bad: dict[str, Any], status: int, says: str
    ) -> None:
        answer = api.post("/v1/jobs/batch", json={"jobs": [EMBED, bad]})

        assert says in problem(answer, status)["detail"]
        assert api.get("/v1/jobs").json()["items"] == []

    def test_too_many_is_422(self, api: httpx.Client) -> None:
        answer = api.post("/v1/jobs/batch", json={"jobs": [EMBED] * 1001})

        assert "SLUICE_BATCH_LIMIT_JOBS" in problem(answer, 422)["detail"]
