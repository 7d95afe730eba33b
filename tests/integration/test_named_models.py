"""Named models: made by the API, named by jobs, and what back ends are sent for them."""

import re
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.integration.chats import chat_error, chat_result
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import drain, job_of
from tests.wire.behaviour import Wire
from workers.attempts.process import Process

MODELFILE = """
FROM ollama/tiny
SYSTEM You answer for the helpdesk.
PARAMETER temperature 0.25
PARAMETER num_predict 7
PARAMETER stop END
MESSAGE user Are you there?
MESSAGE assistant I am.
"""
EXAMPLES = [
    {"role": "user", "content": "Are you there?"},
    {"role": "assistant", "content": "I am."},
]
SYSTEM = {"role": "system", "content": "You answer for the helpdesk."}
QUESTION = {"role": "user", "content": "When do you open?"}


@pytest.fixture
def process(talker: Callable[..., Process]) -> Process:
    return talker(remote_window_tokens=2048)


@pytest.fixture
def helpdesk(api: httpx.Client, process: Process) -> dict[str, Any]:  # noqa: ARG001  (order)
    answer = api.put("/v1/models/helpdesk", json={"modelfile": MODELFILE})
    assert answer.status_code == 201, answer.text
    details: dict[str, Any] = answer.json()
    return details


def submitted(api: httpx.Client, kind: str, **fields: Any) -> Any:
    answer = api.post("/v1/jobs", json={"kind": kind, "input": {"model": "helpdesk"} | fields})
    assert answer.status_code == 202, answer.text
    return answer.json()


def chat(api: httpx.Client, process: Process, **fields: Any) -> dict[str, Any]:
    return chat_result(process, submitted(api, "chat", **{"messages": [QUESTION], **fields})["id"])


def test_it_is_made_shown_listed_replaced_and_deleted(
    api: httpx.Client, helpdesk: dict[str, Any]
) -> None:
    assert (helpdesk["reference"], helpdesk["kinds"]) == ("helpdesk", ["rag", "chat", "complete"])
    details = helpdesk["details"]
    assert details["from"] == "ollama/tiny"
    assert details["parameters"] == {"temperature": 0.25, "max_tokens": 7, "stop": ["END"]}
    assert details["messages"] == EXAMPLES
    again = api.put("/v1/models/copy", json={"modelfile": details["modelfile"]}).json()["details"]
    for field in ("from", "system", "template", "parameters", "messages", "modelfile"):
        assert again[field] == details[field]
    assert api.get("/v1/models/helpdesk:latest").json()["details"] == details
    listed = [model["reference"] for model in api.get("/v1/models").json()["items"]]
    assert {"helpdesk", "copy"} < set(listed)

    fields = {"modelfile": "FROM helpdesk\nSYSTEM a", "system": "b", "parameters": {"top_k": 3}}
    changed = api.put("/v1/models/helpdesk", json=fields)
    assert changed.status_code == 200
    assert changed.json()["details"]["system"] == "b"
    assert changed.json()["details"]["parameters"] == details["parameters"] | {"top_k": 3}

    assert api.delete("/v1/models/helpdesk").status_code == 204
    for answer in (api.delete("/v1/models/helpdesk"), api.get("/v1/models/helpdesk")):
        assert answer.status_code == 404


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("mine", {"modelfile": "FROM a\nFORM b"}, "line 2: 'FORM' is no instruction"),
        ("mine", {"modelfile": "FROM a\nPARAMETER min_p 1"}, "line 2: .*min_p is not supported"),
        ("mine", {"from": "a", "template": "{{ end }}"}, "template, line 1"),
        ("mine", {}, "FROM is missing"),
        ("mine", {"from": "extractive"}, "generates text"),
        ("ollama/mine", {"from": "a"}, "no name for a model of your own"),
        ("mine", {"from": "a", "parameters": {"temperature": 9}}, "temperature"),
        ("mine", {"from": "a", "no_such": 1}, "no_such"),
    ],
)
def test_what_cannot_be_made_is_refused_with_its_line(
    name: str, body: dict[str, Any], says: str, api: httpx.Client
) -> None:
    answer = api.put(f"/v1/models/{name}", json=body)
    assert answer.status_code == 422
    assert re.search(says, answer.json()["detail"]), answer.text


def test_a_chat_has_its_system_prompt_its_examples_and_its_parameters(
    api: httpx.Client,
    process: Process,
    wire: Wire,
    helpdesk: dict[str, Any],  # noqa: ARG001
) -> None:
    result = chat(api, process)
    assert result["model"] == "helpdesk"
    sent = wire.bodies("/api/chat")[-1]
    assert sent["model"] == "tiny"
    assert sent["messages"] == [SYSTEM, *EXAMPLES, QUESTION]
    options = sent["options"]
    assert (options["temperature"], options["num_predict"], options["stop"]) == (0.25, 7, ["END"])

    own = {"role": "system", "content": "Be brief."}
    chat(api, process, messages=[own, QUESTION], parameters={"temperature": 0})
    sent = wire.bodies("/api/chat")[-1]
    assert sent["messages"] == [own, *EXAMPLES, QUESTION]
    assert (sent["options"]["temperature"], sent["options"]["num_predict"]) == (0, 7)


def test_a_conversation_does_not_store_what_the_model_says_before_it(
    api: httpx.Client,
    process: Process,
    wire: Wire,
    helpdesk: dict[str, Any],  # noqa: ARG001
) -> None:
    talk = api.post("/v1/conversations", json={}).json()["id"]
    for _ in range(2):
        chat(api, process, conversation_id=talk)
    sent = wire.bodies("/api/chat")[-1]["messages"]
    reply = {"role": "assistant", "content": "When do you open?"}
    assert sent == [SYSTEM, *EXAMPLES, QUESTION, reply, QUESTION]


def test_jobs_that_were_submitted_keep_the_model_as_it_was(
    api: httpx.Client,
    process: Process,
    wire: Wire,
    helpdesk: dict[str, Any],  # noqa: ARG001
) -> None:
    job = submitted(api, "chat", messages=[QUESTION])
    assert job["input"]["model"] == "ollama/tiny"
    assert job["input"]["preset"]["name"] == "helpdesk"
    assert api.get(f"/v1/jobs/{job['id']}").json()["input"] == job["input"]
    api.put("/v1/models/helpdesk", json={"from": "ollama/other"})
    api.delete("/v1/models/helpdesk")
    assert chat_result(process, job["id"])["model"] == "helpdesk"
    assert wire.bodies("/api/chat")[-1]["messages"][0] == SYSTEM

    answer = api.post(
        "/v1/jobs", json={"kind": "chat", "input": {"model": "helpdesk", "messages": [QUESTION]}}
    )
    assert answer.status_code == 404
    assert "there is none yet" in answer.json()["detail"]
    assert "ollama/helpdesk" in answer.json()["detail"]


def test_a_batch_of_jobs_may_name_it(
    api: httpx.Client,
    process: Process,
    helpdesk: dict[str, Any],  # noqa: ARG001
) -> None:
    job = {"kind": "chat", "input": {"model": "helpdesk", "messages": [QUESTION]}}
    ids = api.post("/v1/jobs/batch", json={"jobs": [job, job]}).json()["ids"]
    drain(process)
    for job_id in ids:
        result = job_of(process, job_id).result
        assert result is not None
        assert result["model"] == "helpdesk"


def test_a_template_takes_the_place_of_the_models_own(
    api: httpx.Client, process: Process, wire: Wire
) -> None:
    template = "{{ range .Messages }}<{{ .Role }}>{{ .Content }}{{ end }}<assistant>"
    api.put("/v1/models/helpdesk", json={"from": "tiny", "template": template, "system": "S"})
    result = chat(api, process)
    sent = wire.bodies("/api/generate")[-1]
    assert (sent["prompt"], sent["raw"]) == (
        "<system>S<user>When do you open?<assistant>",
        True,
    )
    assert result["message"]["content"].strip() == sent["prompt"]


def test_a_window_of_its_own_drops_what_finds_no_room(
    api: httpx.Client, process: Process, wire: Wire
) -> None:
    api.put("/v1/models/helpdesk", json={"modelfile": "FROM tiny\nPARAMETER num_ctx 64"})
    before = [
        {"role": role, "content": f"{n} " + "word " * 20}
        for n in range(5)
        for role in ("user", "assistant")
    ]
    result = chat(api, process, messages=[*before, QUESTION])
    assert result["messages_dropped"] > 0
    sent = wire.bodies("/api/chat")[-1]
    assert len(sent["messages"]) == len(before) + 1 - result["messages_dropped"]
    assert sent["options"]["num_predict"] < 64

    body = {"messages": [{"role": "user", "content": "word " * 200}]}
    error = chat_error(process, submitted(api, "chat", **body)["id"])
    assert error["type"] == "WindowExceeded"


def test_rag_has_its_system_prompt_and_its_examples(
    api: httpx.Client,
    process: Process,
    wire: Wire,
    helpdesk: dict[str, Any],  # noqa: ARG001
) -> None:
    name = new_collection(process)
    ingest(process, name, {"hours": "We open at nine."})
    result = chat_result(process, submitted(api, "rag", collection=name, question="When?")["id"])
    assert result["model"] == "helpdesk"
    sent = wire.bodies("/api/chat")[-1]
    system, *others = sent["messages"]
    assert system["content"].startswith("You answer for the helpdesk.\n\nYou answer questions")
    assert others[:2] == EXAMPLES
    assert sent["options"]["num_predict"] == 7
