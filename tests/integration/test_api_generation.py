"""Generation at the API: what is refused and why, conversations, models."""

from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.tables import Worker
from tests.integration.answers import problem
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama
from tests.wire.openai_server import served_openai

MESSAGES = [{"role": "user", "content": "Hello"}]


@pytest.fixture(scope="module")
def ollama() -> Iterator[Wire]:
    with served_ollama() as wire:
        yield wire


@pytest.fixture(scope="module")
def openai() -> Iterator[Wire]:
    with served_openai() as wire:
        yield wire


@pytest.fixture(scope="module")
def settings(settings: Settings, ollama: Wire, openai: Wire) -> Settings:
    changed = {"ollama_url": ollama.url, "openai_base_url": openai.url, "max_tokens_limit": 1000}
    return settings.model_copy(update=changed)


def chat(**input_: Any) -> dict[str, Any]:
    fields = {"model": "ollama/tiny", "messages": MESSAGES} | input_
    return {"kind": "chat", "input": fields}


def test_the_model_that_will_answer_is_in_the_job(api: httpx.Client) -> None:
    api.put("/v1/collections/c-1")
    rag = {"kind": "rag", "input": {"collection": "c-1", "question": "Why?"}}
    assert api.post("/v1/jobs", json=rag).json()["input"]["model"] == "extractive"


@pytest.mark.parametrize(
    ("input_", "reason"),
    [
        ({"messages": []}, "at least 1"),
        ({"messages": [{"role": "user", "content": ""}]}, "content"),
        ({"messages": [{"role": "wizard", "content": "a"}]}, "role"),
        ({"messages": [{"role": "assistant", "content": "a"}]}, "must end with one"),
        ({"messages": [{"role": "tool", "content": "a"}]}, "tool_call_id"),
        ({"parameters": {"max_tokens": 0}}, "max_tokens"),
        ({"parameters": {"max_tokens": 1001}}, "SLUICE_MAX_TOKENS_LIMIT"),
        ({"parameters": {"temperature": 100}}, "temperature"),
        ({"parameters": {"temperature": -1}}, "temperature"),
        ({"parameters": {"top_p": 0}}, "top_p"),
        ({"parameters": {"stop": ["x"] * 100}}, "stop"),
        ({"parameters": {"stop": [""]}}, "stop"),
        ({"parameters": {"seed": -1}}, "seed"),
        ({"parameters": {"tempreature": 1}}, "tempreature"),
        ({"model": "hf/"}, "model reference"),
        ({"model": "extractive"}, "rag"),
        ({"tools": [{"type": "sudo"}]}, "tools"),
        ({"tools": [{"type": "search_collection"}]}, "collection"),
        ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "name"),
    ],
    ids=lambda value: str(value)[:60] if isinstance(value, dict) else "",
)
def test_what_cannot_be_run_is_refused_with_its_reason(
    api: httpx.Client, input_: dict[str, Any], reason: str
) -> None:
    answer = problem(api.post("/v1/jobs", json=chat(**input_)), 422)
    assert reason in str(answer)


def test_a_name_that_is_no_model_is_404_with_the_forms_of_references(api: httpx.Client) -> None:
    answer = problem(api.post("/v1/jobs", json=chat(model="gpt-5")), 404)
    assert "model references" in answer["detail"]
    assert "ollama/gpt-5" in answer["detail"]


def test_temperature_zero_is_fine(api: httpx.Client) -> None:
    assert api.post("/v1/jobs", json=chat(parameters={"temperature": 0})).status_code == 202


def test_an_extractive_answer_takes_no_parameters(api: httpx.Client) -> None:
    api.put("/v1/collections/c-1")
    input_ = {"collection": "c-1", "question": "Why?", "parameters": {"temperature": 1}}
    answer = problem(api.post("/v1/jobs", json={"kind": "rag", "input": input_}), 422)
    assert "quotes passages" in answer["detail"]


@pytest.mark.parametrize("prompt", ["{context}", "{question}", "{context} {question} {x}", ""])
def test_a_prompt_needs_its_places(api: httpx.Client, prompt: str) -> None:
    api.put("/v1/collections/c-1")
    input_ = {"collection": "c-1", "question": "Why?", "model": "ollama/tiny", "prompt": prompt}
    problem(api.post("/v1/jobs", json={"kind": "rag", "input": input_}), 422)


@pytest.mark.parametrize(
    "input_",
    [
        {"action": "create", "name": "ollama/x"},
        {"action": "pull", "name": "hf/x"},
        {"action": "pull", "name": "ollama/x", "from": "y"},
        {"action": "pull", "name": "ollama/x", "system": "y"},
        {"action": "dance", "name": "ollama/x"},
    ],
)
def test_a_wrong_model_job_is_refused(api: httpx.Client, input_: dict[str, Any]) -> None:
    problem(api.post("/v1/jobs", json={"kind": "model", "input": input_}), 422)


def test_a_job_waits_for_a_worker_of_its_model_and_says_so(
    api: httpx.Client, ledger: Ledger
) -> None:
    job = api.post("/v1/jobs", json=chat(model="hf/some/model")).json()
    waits = api.get(f"/v1/jobs/{job['id']}").json()
    assert "sluice worker generate --model hf/some/model" in waits["waiting_for"]
    with ledger.begin() as session:
        session.add(
            Worker(
                name="w", hostname="h", pid=1, queues=["generate"], routes=["hf/some/model"],
                concurrency=4,
            )
        )  # fmt: skip
    assert api.get(f"/v1/jobs/{job['id']}").json()["waiting_for"] is None


def test_a_conversation_from_its_start_to_its_end(api: httpx.Client) -> None:
    made = api.post("/v1/conversations", json={"metadata": {"ticket": 7}, "summarize": True})
    assert made.status_code == 201
    talk = made.json()
    assert (talk["metadata"], talk["summarize"], talk["messages"]) == ({"ticket": 7}, True, 0)
    assert made.headers["location"] == f"/v1/conversations/{talk['id']}"
    other = api.post("/v1/conversations").json()
    listed = api.get("/v1/conversations").json()["items"]
    assert [item["id"] for item in listed] == [other["id"], talk["id"]]
    page = api.get("/v1/conversations", params={"limit": 1}).json()
    rest = api.get("/v1/conversations", params={"limit": 1, "cursor": page["next_cursor"]}).json()
    assert [item["id"] for item in rest["items"]] == [talk["id"]]

    job = api.post("/v1/jobs", json=chat(conversation_id=talk["id"]))
    assert job.status_code == 202
    held = api.post("/v1/jobs", json=chat(conversation_id=talk["id"])).json()
    waits = api.get(f"/v1/jobs/{held['id']}").json()
    assert waits["waiting_for"] == "an earlier turn of the conversation"

    assert api.delete(f"/v1/conversations/{talk['id']}").status_code == 204
    for path in ("", "/messages"):
        problem(api.get(f"/v1/conversations/{talk['id']}{path}"), 404)
    problem(api.post("/v1/jobs", json=chat(conversation_id=talk["id"])), 404)


def test_a_batch_of_turns_is_held_in_its_order(api: httpx.Client) -> None:
    talk = api.post("/v1/conversations").json()["id"]
    jobs = [chat(conversation_id=talk) for _ in range(3)]
    ids = api.post("/v1/jobs/batch", json={"jobs": jobs}).json()["ids"]
    waits = [api.get(f"/v1/jobs/{id_}").json()["waiting_for"] for id_ in ids]
    assert "No living worker" in waits[0]
    assert waits[1:] == ["an earlier turn of the conversation"] * 2


def test_models_of_workers_and_servers_are_listed(api: httpx.Client, ledger: Ledger) -> None:
    with ledger.begin() as session:
        session.add(
            Worker(
                name="w", hostname="h", pid=1, queues=["generate"], routes=["hf/a", "ollama"],
                concurrency=4,
            )
        )  # fmt: skip
    listed = {model["reference"]: model for model in api.get("/v1/models").json()["items"]}
    assert listed["hf/a"]["workers"] == 1
    assert listed["ollama/tiny"]["workers"] == 1
    assert listed["ollama/tiny"]["kinds"] == ["rag", "chat", "complete"]
    assert any(name.startswith("openai/") for name in listed)
    assert listed["extractive"]["default"]

    shown = api.get("/v1/models/ollama/tiny").json()
    assert shown["details"]["details"]["family"] == "llama"
    problem(api.get("/v1/models/ollama/nothing"), 404)
    problem(api.get("/v1/models/nothing"), 404)
    embedding = api.get("/v1/models/sentence-transformers/all-MiniLM-L6-v2").json()
    assert embedding["kinds"] == ["ingest", "embed", "search", "rebuild", "check"]
    assert embedding["workers"] is None
