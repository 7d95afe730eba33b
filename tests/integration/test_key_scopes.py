"""What keys with scopes may do, by each API that is spoken."""

import asyncio
from collections.abc import Iterator
from typing import Any

import httpx
import httpx2
import pytest
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from pydantic import SecretStr

from api.compat.dialect import requires_key
from api.http.key_scopes import READING, rule_of
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.vocabulary import KeyScope
from tests.api_server import served
from tests.integration.contract import document

SCOPES = {
    "viewer": frozenset({KeyScope.READ}),
    "bot": frozenset({KeyScope.ASK}),
    "loader": frozenset({KeyScope.WRITE}),
    "owner": frozenset({KeyScope.ADMIN}),
}
KEYS = {name: SecretStr(f"the-secret-of-{name}") for name in (*SCOPES, "anyone")}
TEXT = {"type": "text", "text": "We open at nine."}
SAID = [{"role": "user", "content": "a"}]
CHAT = {"model": "ollama/a", "messages": SAID}
JOBS: list[tuple[str, Any, str]] = [
    ("search", {"collection": "notes", "query": "a"}, "bot"),
    ("rag", {"collection": "notes", "question": "a"}, "bot"),
    ("chat", CHAT, "bot"),
    ("embed", {"texts": ["a"]}, "bot"),
    ("ingest", {"collection": "notes", "sources": [TEXT]}, "loader"),
    ("erase", {"collection": "notes"}, "loader"),
    ("model", {"action": "pull", "name": "ollama/a"}, "owner"),
    ("export", {"collection": "notes"}, ""),
]
"""Kind, input, and the key whose scope it needs; none for what each key may do."""


@pytest.fixture(scope="module")
def settings(settings: Settings) -> Settings:
    changed = {"api_keys": KEYS, "api_key_scopes": SCOPES, "ollama_url": "http://127.0.0.1:9"}
    return settings.model_copy(update=changed)


@pytest.fixture(scope="module")
def url(settings: Settings) -> Iterator[str]:
    with served(settings) as url:
        yield url


@pytest.fixture
def keys(url: str, ledger: Ledger) -> Iterator[dict[str, httpx.Client]]:  # noqa: ARG001 (empty tables)
    headers = {name: f"Bearer {secret.get_secret_value()}" for name, secret in KEYS.items()}
    clients = {
        name: httpx.Client(base_url=url, headers={"Authorization": key}, trust_env=False)
        for name, key in headers.items()
    }
    clients["anyone"].put("/v1/collections/notes").raise_for_status()
    yield clients
    for client in clients.values():
        client.close()


def test_every_operation_has_a_rule() -> None:
    lacking = [
        (method.upper(), path)
        for path, operations in document()["paths"].items()
        for method in operations
        if requires_key(path)
        and rule_of(method.upper(), path.replace("{", "").replace("}", "")) is None
    ]
    assert lacking == []
    assert rule_of("POST", "/v1/nosuch") is None
    assert all(rule_of(method, "/v1/nosuch") == frozenset() for method in READING)


@pytest.mark.parametrize(("kind", "input_", "who"), JOBS, ids=[kind for kind, _, _ in JOBS])
def test_a_job_needs_the_scope_of_its_kind(
    keys: dict[str, httpx.Client], kind: str, input_: Any, who: str
) -> None:
    body = {"kind": kind, "input": input_}
    for name, client in keys.items():
        for path, sent in (("/v1/jobs", body), ("/v1/jobs/batch", {"jobs": [body]})):
            answer = client.post(path, json=sent)
            expected = 202 if not who or name in (who, "owner", "anyone") else 403
            assert answer.status_code == expected, (name, answer.text)
            if expected == 403:
                assert answer.headers["content-type"] == "application/problem+json"
                assert "SLUICE_API_KEY_SCOPES" in answer.json()["detail"]


def test_a_job_is_changed_with_the_scope_that_submits_it(keys: dict[str, httpx.Client]) -> None:
    body = {"kind": "ingest", "input": {"collection": "notes", "sources": [TEXT]}}
    job_id = keys["loader"].post("/v1/jobs", json=body).json()["id"]
    assert keys["viewer"].get(f"/v1/jobs/{job_id}").status_code == 200
    for name in ("viewer", "bot"):
        assert keys[name].post(f"/v1/jobs/{job_id}/cancel").status_code == 403
        assert keys[name].post(f"/v1/jobs/{job_id}/retry").status_code == 403
        assert keys[name].delete(f"/v1/jobs/{job_id}").status_code == 403
    assert keys["loader"].post(f"/v1/jobs/{job_id}/cancel").json()["state"] == "cancelled"
    assert keys["loader"].post(f"/v1/jobs/{job_id}/retry").json()["state"] == "queued"


def test_a_schedule_is_changed_with_the_scope_that_submits_its_job(
    keys: dict[str, httpx.Client],
) -> None:
    def spec(kind: str, input_: dict[str, Any]) -> dict[str, Any]:
        return {"cron": "0 3 * * *", "job": {"kind": kind, "input": input_}}

    ingests = spec("ingest", {"collection": "notes", "sources": [TEXT]})
    embeds = spec("embed", {"texts": ["a"]})
    path = "/v1/schedules/nightly"
    for name in ("viewer", "bot"):
        assert keys[name].put(path, json=ingests).status_code == 403
    assert keys["loader"].put(path, json=ingests).status_code == 201
    assert keys["viewer"].get(path).status_code == 200
    for name in ("viewer", "bot"):
        assert keys[name].put(path, json=embeds).status_code == 403
        assert keys[name].delete(path).status_code == 403
        for action in ("pause", "resume", "run"):
            assert keys[name].post(f"{path}/{action}").status_code == 403
    assert keys["loader"].get(path).json()["kind"] == "ingest"
    assert keys["loader"].post(f"{path}/pause").status_code == 200
    assert keys["loader"].delete(path).status_code == 204


@pytest.mark.parametrize(
    ("method", "path", "body", "who"),
    [
        ("PUT", "/v1/collections/others", {}, {"loader"}),
        ("DELETE", "/v1/collections/none", None, {"loader"}),
        ("POST", "/v1/conversations", {}, {"bot"}),
        ("PUT", "/v1/prompts/hello", {"template": "a"}, set()),
        ("POST", "/v1/prompts/hello/render", {}, {"viewer", "bot", "loader"}),
        ("PUT", "/v1/models/mine", {"from": "ollama/a"}, set()),
        ("POST", "/v1/queues/embed/pause", None, set()),
        ("POST", "/v1/queues/embed/resume", None, set()),
        ("GET", "/v1/queues", None, {"viewer", "bot", "loader"}),
        ("POST", "/openai/v1/chat/completions", {"model": "nosuch"}, {"bot"}),
        ("POST", "/openai/v1/vector_stores", {"name": "a"}, {"loader"}),
        ("POST", "/openai/v1/vector_stores/x/search", {}, {"bot"}),
        ("POST", "/openai/v1/files", None, {"bot", "loader"}),
        ("POST", "/ollama/api/chat", {}, {"bot"}),
        ("POST", "/ollama/api/show", {"model": "a"}, {"viewer", "bot", "loader"}),
        ("POST", "/ollama/api/create", {}, set()),
        ("POST", "/tei/embed", {}, {"bot"}),
        ("POST", "/models/a/b", {}, {"bot"}),
    ],
)  # fmt: skip
def test_a_request_needs_the_scope_of_its_path(
    keys: dict[str, httpx.Client], method: str, path: str, body: Any, who: set[str]
) -> None:
    allowed = {
        name
        for name, client in keys.items()
        if client.request(method, path, json=body).status_code != 403
    }
    assert allowed == {*who, "owner", "anyone"}


def test_a_refusal_is_written_as_the_api_of_the_path_writes_errors(
    keys: dict[str, httpx.Client],
) -> None:
    viewer = keys["viewer"]
    openai = viewer.post("/openai/v1/embeddings", json={}).json()["error"]
    assert openai["type"] == "permission_error"
    assert "SLUICE_API_KEY_SCOPES" in viewer.post("/ollama/api/embed", json={}).json()["error"]
    assert set(viewer.post("/tei/embed", json={}).json()) == {"error", "error_type"}


def test_an_agent_has_the_tools_of_its_key(url: str, keys: dict[str, httpx.Client]) -> None:
    async def tools(name: str) -> tuple[set[str], bool]:
        headers = {"Authorization": f"Bearer {KEYS[name].get_secret_value()}"}
        async with (
            httpx2.AsyncClient(headers=headers, trust_env=False) as http,
            Client(streamable_http_client(f"{url}/mcp", http_client=http)) as client,
        ):
            listed = {tool.name for tool in (await client.list_tools()).tools}
            text = {"collection": "more", "text": "a", "create": True, "wait": False}
            stored = await client.call_tool("ingest_text", text)
            return listed, not stored.is_error

    reading = {"list_collections", "get_job"}
    assert asyncio.run(tools("viewer")) == (reading, False)
    assert asyncio.run(tools("bot")) == ({"search", "ask", *reading}, False)
    assert keys["viewer"].get("/v1/collections/more").status_code == 404
    assert asyncio.run(tools("loader")) == ({"ingest_text", *reading}, True)
