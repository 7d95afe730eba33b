"""Queues, workers, models, health, metrics and /docs."""

import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from typing import Any

import httpx
import pytest
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis

from shared.database.transaction import Ledger
from shared.jobs import claims
from shared.jobs.claims import Claim
from shared.kinds.hf import TASKS, Task
from shared.kinds.registry import KINDS
from shared.tables import QueueState, Worker
from shared.vocabulary import Queue
from tests.integration.answers import EMBED, problem

CPU_QUEUES = ("ingest", "embed", "query", "control", "hf")


def queue(api: httpx.Client, name: str) -> dict[str, Any]:
    return next(item for item in api.get("/v1/queues").json()["items"] if item["name"] == name)


def add_workers(ledger: Ledger, *, age_s: float = 0) -> None:
    with ledger.begin() as session:
        for name, queues in (("cpu", [*CPU_QUEUES]), ("g", ["generate"])):
            session.add(
                Worker(
                    name=name,
                    hostname="host",
                    pid=7,
                    queues=queues,
                    concurrency=2,
                    last_seen_at=datetime.now(UTC) - timedelta(seconds=age_s),
                )
            )


class TestQueues:
    def test_all_queues_are_listed_with_what_waits_and_runs(
        self, api: httpx.Client, claim: Callable[[str], Claim]
    ) -> None:
        for _ in range(3):
            api.post("/v1/jobs", json=EMBED)
        claim("embed")

        items = api.get("/v1/queues").json()["items"]

        assert [item["name"] for item in items] == list(Queue)
        assert queue(api, "embed") == {
            "name": "embed",
            "queued": 2,
            "running": 1,
            "paused": False,
            "messages": 3,
        }

    def test_a_paused_queue_serves_nobody_until_it_is_resumed(
        self, api: httpx.Client, ledger: Ledger, claim: Callable[[str], Claim], redis_url: str
    ) -> None:
        for _ in range(2):
            assert api.post("/v1/queues/embed/pause").json()["paused"] is True
        api.post("/v1/jobs", json=EMBED)
        api.post("/v1/jobs", json=EMBED)
        with ledger.begin() as session:
            assert claims.claim(session, "embed", worker="w", lease_s=5) is None
        # Workers take the messages, find nothing to do, and forget them.
        with Redis.from_url(redis_url) as redis:
            redis.delete("embed")

        resumed = api.post("/v1/queues/embed/resume").json()

        assert (resumed["paused"], resumed["messages"]) == (False, 2)
        assert api.post("/v1/queues/embed/resume").json()["messages"] == 2
        claim("embed")

    @pytest.mark.parametrize("action", ["pause", "resume"])
    def test_an_unknown_queue_is_404(self, api: httpx.Client, action: str) -> None:
        assert "generate" in problem(api.post(f"/v1/queues/nope/{action}"), 404)["detail"]


def test_workers_are_alive_or_not(api: httpx.Client, ledger: Ledger) -> None:
    assert api.get("/v1/workers").json() == {"items": []}
    add_workers(ledger, age_s=3600)

    items = api.get("/v1/workers").json()["items"]

    assert [(item["name"], item["alive"]) for item in items] == [("cpu", False), ("g", False)]
    assert set(items[0]) == {
        "name", "hostname", "pid", "queues", "models", "concurrency", "started_at",
        "last_seen_at", "alive",
    }  # fmt: skip


def test_models_are_the_configured_ones(api: httpx.Client) -> None:
    items = api.get("/v1/models").json()["items"]

    assert {(item["reference"], item["default"]) for item in items} == {
        ("extractive", True),
        *((task.default_model, True) for task in TASKS.values()),
    }
    assert {task for item in items for task in item["tasks"]} == set(Task)
    offered = {kind for item in items for kind in item["kinds"]}
    without = {"erase", "model", "chat", "eval", "complete", "batch", "export", "import"}
    assert offered == set(KINDS) - without


class TestHealth:
    def test_alive(self, api: httpx.Client) -> None:
        assert api.get("/healthz").json() == {"status": "ok"}

    def test_not_ready_without_workers_and_sweeper(self, api: httpx.Client) -> None:
        answer = api.get("/readyz")

        assert answer.status_code == 503
        body = answer.json()
        assert body["status"] == "not ready"
        assert {name: check["ok"] for name, check in body["checks"].items()} == {
            "database": True,
            "redis": True,
            "chroma": True,
            "storage": True,
            "workers": False,
            "queues": True,
            "sweeper": False,
            "integrity": True,
        }
        assert "python -m workers cpu" in body["checks"]["workers"]["detail"]

    def test_ready_with_them(self, api: httpx.Client, ledger: Ledger) -> None:
        add_workers(ledger)
        with ledger.begin() as session:
            session.add(QueueState(name="control", swept_at=datetime.now(UTC)))

        answer = api.get("/readyz")

        assert (answer.status_code, answer.json()["status"]) == (200, "ready"), answer.text


def test_metrics_are_prometheus_text(
    api: httpx.Client, ledger: Ledger, claim: Callable[[str], Claim]
) -> None:
    add_workers(ledger)
    for _ in range(3):
        api.post("/v1/jobs", json=EMBED)
    claim("embed")

    answer = api.get("/metrics")

    assert answer.headers["content-type"].startswith("text/plain; version=0.0.4")
    values = {
        (sample.name, *sample.labels.values()): sample.value
        for family in text_string_to_metric_families(answer.text)
        for sample in family.samples
    }
    assert values["sluice_steps", "embed", "queued"] == 2
    assert values["sluice_steps", "embed", "running"] == 1
    assert values["sluice_workers_alive", "generate"] == 1
    assert values["sluice_workers_alive", "hf"] == 1
    lines = answer.text.splitlines()
    for name, labels in (
        ("sluice_jobs", "kind,state"),
        ("sluice_steps", "queue,state"),
        ("sluice_queue_oldest_seconds", "queue"),
        ("sluice_workers_alive", "queue"),
    ):
        assert f"# TYPE {name} gauge" in lines
        pairs = ",".join(f'{label}="[^"]*"' for label in labels.split(","))
        sample = re.compile(rf"{name}\{{{pairs}\}} [0-9.e+-]+")
        assert any(sample.fullmatch(line) for line in lines), name


class TestDocs:
    def test_the_page_and_its_assets_come_from_the_api_itself(self, api: httpx.Client) -> None:
        page = api.get("/docs").text

        links = re.findall(r"""(?:src|href)=["']([^"']+)""", page)
        assert len(links) == 3
        for link in links:
            assert link.startswith("/docs/assets/")
            assert api.get(link).status_code == 200
        assert not re.search(r"https?://", page)

    def test_openapi_describes_every_route_and_an_example_of_each_kind(
        self, api: httpx.Client
    ) -> None:
        document = api.get("/openapi.json").json()

        submit = document["paths"]["/v1/jobs"]["post"]
        examples = submit["requestBody"]["content"]["application/json"]["examples"]
        assert set(examples) == set(KINDS)
        names = {p["name"] for p in submit["parameters"]}
        assert names == {"Idempotency-Key", "Prefer"}
        refs = set(re.findall(r'"#/components/schemas/([^"]+)"', api.get("/openapi.json").text))
        assert refs <= set(document["components"]["schemas"])
        for path in ("/v1/jobs/{job_id}/events", "/v1/files/{file_id}/content", "/readyz"):
            assert path in document["paths"]


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/", 404),
        ("GET", "/v1", 404),
        ("GET", "/v1/nothing", 404),
        ("GET", "/docs/assets/nothing", 404),
        ("PATCH", "/v1/jobs", 405),
        ("DELETE", "/v1/models", 405),
    ],
)
def test_unknown_routes_are_problems_too(
    api: httpx.Client, method: str, path: str, status: int
) -> None:
    problem(api.request(method, path), status)
