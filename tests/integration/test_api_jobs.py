"""`/v1/jobs`: submitting, reading, waiting, cancelling, redriving."""

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from typing import Any
from uuid import UUID, uuid4

import httpx
import pytest

from api.requests import EXAMPLES
from api.schemas import JobView
from shared import steps
from shared.config import Settings
from shared.ledger import Ledger
from shared.payloads import INPUTS
from shared.steps import Claim

EMBED = {"kind": "embed", "input": {"texts": ["a"]}}
FIELDS = set(JobView.model_fields)


def problem(answer: httpx.Response, status: int) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    assert answer.headers["content-type"] == "application/problem+json"
    body: dict[str, Any] = answer.json()
    assert set(body) - {"errors"} == {"type", "title", "status", "detail"}
    assert body["status"] == status
    return body


def test_a_job_is_answered_with_its_place_and_read_back_the_same(api: httpx.Client) -> None:
    answer = api.post("/v1/jobs", json=EMBED | {"metadata": {"ticket": 7}})

    assert answer.status_code == 202
    job = answer.json()
    assert set(job) == FIELDS
    assert answer.headers["location"] == f"/v1/jobs/{job['id']}"
    assert (job["state"], job["lane"], job["queue"]) == ("queued", "normal", "embed")
    read = api.get(answer.headers["location"]).json()
    assert read.pop("position") == 0
    job.pop("position")
    assert read == job
    JobView.model_validate(read | {"position": 0})


def test_a_job_rings_once(api: httpx.Client, ledger: Ledger) -> None:
    api.post("/v1/jobs", json=EMBED)
    later = (datetime.now(UTC) + timedelta(hours=1)).isoformat()
    api.post("/v1/jobs", json=EMBED | {"run_after": later})

    assert ledger.bell.waiting("embed") == 1


@pytest.mark.parametrize("kind", INPUTS)
def test_the_documented_example_of_each_kind_is_accepted(api: httpx.Client, kind: str) -> None:
    api.put("/v1/collections/handbook")

    answer = api.post("/v1/jobs", json=EXAMPLES[kind]["value"])

    assert answer.status_code == 202, answer.text
    assert answer.json()["kind"] == kind


@pytest.mark.parametrize(
    ("body", "field", "says"),
    [
        ({"kind": "nope", "input": {}}, "kind", "'nope' is none of ingest, embed, search, rag"),
        ({"input": {}}, "kind", "is required"),
        ({"kind": "embed"}, "input", "is required"),
        (EMBED | {"colour": 1}, "colour", "there is no such field"),
        (EMBED | {"lane": "fast"}, "lane", "interactive"),
        (EMBED | {"timeout_s": 0}, "timeout_s", "greater than 0"),
        (EMBED | {"max_attempts": 21}, "max_attempts", "less than or equal to 20"),
        (EMBED | {"run_after": "2026-01-01T00:00:00"}, "run_after", "give a time zone"),
        (EMBED | {"webhook": {"url": "ftp://x"}}, "webhook.url", "http"),
        ({"kind": "embed", "input": {"texts": []}}, "input.texts", "at least 1"),
        ({"kind": "embed", "input": {"texts": [3]}}, "input.texts.0", "valid string"),
        ({"kind": "search", "input": {"collection": "a b", "query": "q"}}, "input.collection",
         "letters"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "text"}]}},
         "input.sources.0.text", "is required"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "ftp"}]}},
         "input.sources.0.type", "'ftp' is none of file, text"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources": [{"type": "text",
         "text": "a"}], "splitter": {"chunk_size": 100, "chunk_overlap": 100}}},
         "input.splitter", "chunk_overlap must be smaller"),
        ({"kind": "erase", "input": {}}, "input", "either document_ids or collection"),
    ],
)  # fmt: skip
def test_a_wrong_body_is_422_with_the_field_and_the_remedy(
    api: httpx.Client, body: dict[str, Any], field: str, says: str
) -> None:
    found = problem(api.post("/v1/jobs", json=body), 422)

    assert any(e["field"] == field and says in e["message"] for e in found["errors"]), found
    assert api.get("/v1/jobs").json()["items"] == []


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"kind": "rag", "input": {"collection": "abc", "question": "q", "model": "hf/x"}},
         "SLUICE_GENERATION_MODEL"),
        ({"kind": "erase", "input": {"document_ids": ["x"]}}, "ids are UUIDs"),
        ({"kind": "ingest", "input": {"collection": "abc", "sources":
         [{"type": "text", "text": "a"}] * 10_001}}, "SLUICE_MAX_SOURCES_PER_JOB"),
    ],
)  # fmt: skip
def test_what_this_server_cannot_run_is_422(
    api: httpx.Client, body: dict[str, Any], says: str
) -> None:
    assert says in problem(api.post("/v1/jobs", json=body), 422)["detail"]


@pytest.mark.parametrize(
    ("content", "status", "says"),
    [
        (b'{"kind": ', 400, "position 9"),
        (b"\xff\xfe", 400, "not UTF-8"),
        (b"[" * 100_000, 400, "nested too deeply"),
        (b'{"kind":"embed","input":{"texts":["a\\u0000b"]}}', 422, "input.texts.0 holds a NUL"),
        (b'{"kind":"embed","input":{"texts":["\\ud800"]}}', 422, "surrogate"),
        (b'{"kind":"embed","metadata":{"x":NaN},"input":{"texts":["a"]}}', 422, "NaN"),
        (b'{"kind":"embed","metadata":{"x":1e999},"input":{"texts":["a"]}}', 422, "too large"),
        (b'{"kind":"embed","metadata":{"x":' + b"9" * 5000 + b"}}", 422, "too long"),
        (b'"text"', 422, "object"),
        (b"", 422, "is required"),
    ],
)
def test_what_is_not_storable_json_is_refused(
    api: httpx.Client, content: bytes, status: int, says: str
) -> None:
    headers = {"Content-Type": "application/json"}

    found = problem(api.post("/v1/jobs", content=content, headers=headers), status)

    assert says in found["detail"]


def test_an_escaped_backslash_before_u0000_is_no_nul(api: httpx.Client) -> None:
    body = b'{"kind":"embed","input":{"texts":["a\\\\u0000","\\ud83d\\ude00"]}}'

    answer = api.post("/v1/jobs", content=body, headers={"Content-Type": "application/json"})

    assert answer.status_code == 202
    assert answer.json()["input"]["texts"] == ["a\\u0000", "😀"]


@pytest.mark.parametrize("content_type", ["text/plain", "application/x-www-form-urlencoded", None])
def test_another_content_type_is_415(api: httpx.Client, content_type: str | None) -> None:
    headers = {"Content-Type": content_type} if content_type else {}

    found = problem(api.post("/v1/jobs", content=b"{}", headers=headers), 415)

    assert "application/json" in found["detail"]


@pytest.mark.parametrize("kind", ["ingest", "search", "rag", "erase"])
def test_an_unknown_collection_is_404_with_the_remedy(api: httpx.Client, kind: str) -> None:
    found = problem(api.post("/v1/jobs", json=EXAMPLES[kind]["value"]), 404)

    assert "handbook" in found["detail"]


@pytest.mark.parametrize("path", ["/v1/jobs/nonsense", f"/v1/jobs/{uuid4()}"])
@pytest.mark.parametrize(("method", "suffix"), [
    ("GET", ""), ("GET", "/events"), ("POST", "/cancel"), ("POST", "/retry"),
])  # fmt: skip
def test_an_unknown_job_is_404(api: httpx.Client, path: str, method: str, suffix: str) -> None:
    problem(api.request(method, path + suffix), 404)


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


class TestList:
    def test_pages_hold_every_job_once_newest_first(self, api: httpx.Client) -> None:
        ids = [api.post("/v1/jobs", json=EMBED).json()["id"] for _ in range(7)]

        seen: list[str] = []
        cursor: str | None = None
        while True:
            params = {"limit": "3"} | ({"cursor": cursor} if cursor else {})
            page = api.get("/v1/jobs", params=params).json()
            seen += [job["id"] for job in page["items"]]
            cursor = page["next_cursor"]
            if cursor is None:
                break

        assert seen == ids[::-1]

    def test_filters(
        self, api: httpx.Client, claim: Callable[[str], Claim], ledger: Ledger
    ) -> None:
        api.put("/v1/collections/handbook")
        search = api.post("/v1/jobs", json=EXAMPLES["search"]["value"]).json()["id"]
        embed = api.post("/v1/jobs", json=EMBED).json()["id"]
        with ledger.begin() as session:
            steps.fail(session, claim("embed"), {"type": "X", "message": "broke"}, dead=True)

        def ids(**params: str) -> list[str]:
            return [job["id"] for job in api.get("/v1/jobs", params=params).json()["items"]]

        assert ids(kind="search") == ids(collection="handbook") == ids(state="queued") == [search]
        assert ids(dead="true") == ids(state="failed") == [embed]
        assert ids(kind="search", state="failed") == []

    @pytest.mark.parametrize("query", ["cursor=%%%", "cursor=bm9wZQ", "cursor=am9iczp4"])
    def test_a_bad_cursor_is_400(self, api: httpx.Client, query: str) -> None:
        assert "next_cursor" in problem(api.get(f"/v1/jobs?{query}"), 400)["detail"]

    @pytest.mark.parametrize("query", ["limit=0", "limit=201", "state=lost", "collection=%00aa"])
    def test_a_bad_parameter_is_422(self, api: httpx.Client, query: str) -> None:
        found = problem(api.get(f"/v1/jobs?{query}"), 422)

        assert found["errors"][0]["field"] == query.partition("=")[0]


class TestCancelAndRetry:
    def test_a_queued_job_is_cancelled_at_once_and_can_be_redriven(
        self, api: httpx.Client, finish: Callable[..., Claim]
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()

        assert api.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
        assert api.post(f"/v1/jobs/{job['id']}/cancel").json()["state"] == "cancelled"
        again = api.post(f"/v1/jobs/{job['id']}/retry").json()
        assert (again["state"], again["finished_at"]) == ("queued", None)
        finish("embed", {"model": "m"})
        assert api.get(f"/v1/jobs/{job['id']}").json()["result"] == {"model": "m"}

    def test_a_job_that_succeeded_cannot_be_redriven(
        self, api: httpx.Client, finish: Callable[..., Claim]
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()
        finish("embed", {})

        assert "succeeded" in problem(api.post(f"/v1/jobs/{job['id']}/retry"), 409)["detail"]

    def test_a_failed_job_shows_type_and_message(
        self, api: httpx.Client, claim: Callable[[str], Claim], ledger: Ledger
    ) -> None:
        job = api.post("/v1/jobs", json=EMBED).json()
        with ledger.begin() as session:
            steps.fail(session, claim("embed"), {"type": "Permanent", "message": "no", "x": 1})

        assert api.get(f"/v1/jobs/{job['id']}").json()["error"] == {
            "type": "Permanent",
            "message": "no",
        }


def test_position_and_eta_follow_the_queue(api: httpx.Client, finish: Callable[..., Claim]) -> None:
    ids = [UUID(api.post("/v1/jobs", json=EMBED).json()["id"]) for _ in range(3)]

    assert [api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in ids] == [0, 1, 2]
    finish("embed", {})
    assert [api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in ids] == [None, 0, 1]


def test_a_list_has_the_same_positions_as_the_jobs_one_by_one(api: httpx.Client) -> None:
    for lane in ["normal", "bulk", "interactive", "normal", "bulk", "normal"]:
        api.post("/v1/jobs", json=EMBED | {"lane": lane})

    listed = {job["id"]: job["position"] for job in api.get("/v1/jobs").json()["items"]}

    assert sorted(listed.values()) == list(range(6))
    assert listed == {id_: api.get(f"/v1/jobs/{id_}").json()["position"] for id_ in listed}
