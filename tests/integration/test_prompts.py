"""Prompts: versions over HTTP, and jobs that name them."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from cli.main import run
from sluice import Client
from sluice.inputs import chat_input
from tests.integration.answers import problem
from tests.integration.chats import chat_result
from tests.integration.ingestion import ingest, new_collection
from tests.integration.job_runner import drain, job_of
from tests.wire.behaviour import Wire
from workers.attempts.process import Process

GREETING = "/v1/prompts/greeting"
MESSAGES = [{"role": "user", "content": "count to 2"}]


def put(api: httpx.Client, template: str, name: str = "greeting", **fields: Any) -> dict[str, Any]:
    response = api.put(f"/v1/prompts/{name}", json={"template": template, **fields})
    assert response.status_code in (200, 201), response.text
    view: dict[str, Any] = response.json()
    return view


def submit(api: httpx.Client, kind: str, **input_: Any) -> dict[str, Any]:
    body = {"kind": kind, "input": {"model": "ollama/tiny", **input_}}
    response = api.post("/v1/jobs", json=body)
    assert response.status_code == 202, response.text
    job: dict[str, Any] = response.json()
    return job


def chat(api: httpx.Client, **input_: Any) -> dict[str, Any]:
    return submit(api, "chat", **input_)


def refused(api: httpx.Client, status: int, **input_: Any) -> str:
    body = {"kind": "chat", "input": {"model": "ollama/tiny", **input_}}
    return str(problem(api.post("/v1/jobs", json=body), status)["detail"])


def test_a_version_is_made_once_and_never_changes(api: httpx.Client) -> None:
    first = api.put(GREETING, json={"template": "Hello {who}"})
    assert first.status_code == 201
    assert first.headers["location"] == f"{GREETING}/versions/1"
    again = api.put(GREETING, json={"template": "Hello {who}"})
    assert (again.status_code, again.json()) == (200, first.json())

    variables = {"who": {"description": "whom", "default": "you"}}
    second = put(api, "Hello {who}", variables=variables, description="for mails")
    assert (second["version"], second["reference"], second["is_current"]) == (2, "greeting@2", True)
    assert second["variables"] == [{"name": "who", "description": "whom", "default": "you"}]
    # The same as an older one is still a new version: history goes on.
    assert put(api, "Hello {who}")["version"] == 3
    assert api.get(GREETING).json()["version"] == 3
    assert api.get(f"{GREETING}@2").json()["description"] == "for mails"
    assert api.get(f"{GREETING}/versions/2").json() == api.get(f"{GREETING}@2").json()


def test_versions_are_listed_compared_and_rolled_back(api: httpx.Client) -> None:
    put(api, "Be brief.\nHello {who}\nBye", variables={"who": {"default": "you"}})
    put(api, "Be brief.\nHi {who} {mark}\nBye", variables={"mark": {"default": "!"}})
    put(api, "Draft {who}", make_current=False)
    assert api.get(GREETING).json()["version"] == 2

    page = api.get(f"{GREETING}/versions?limit=2").json()
    assert [item["version"] for item in page["items"]] == [3, 2]
    rest = api.get(f"{GREETING}/versions?cursor={page['next_cursor']}").json()
    assert [item["version"] for item in rest["items"]] == [1]
    assert rest["next_cursor"] is None

    diff = api.get(f"{GREETING}/diff?from=1&to=2").json()
    assert (diff["name"], diff["from"], diff["to"]) == ("greeting", 1, 2)
    assert "-Hello {who}\n+Hi {who} {mark}\n" in diff["template"]
    assert [item["name"] for item in diff["added"]] == ["mark"]
    assert diff["changed"] == [{"name": "who", "description": "", "default": None}]
    assert diff["removed"] == []
    newest = api.get(f"{GREETING}/diff").json()
    assert (newest["from"], newest["to"]) == (2, 3)
    assert api.get(f"{GREETING}/diff?from=2&to=2").json()["template"] == ""

    back = api.post(f"{GREETING}/rollback")
    assert back.json()["version"] == 1
    assert api.get(GREETING).json() == back.json()
    detail = problem(api.post(f"{GREETING}/rollback"), 422)["detail"]
    assert "greeting@1 is the first version" in detail
    assert api.post(f"{GREETING}/rollback", json={"version": 3}).json()["template"] == "Draft {who}"
    assert put(api, "New")["version"] == 4
    assert api.get(f"{GREETING}/versions").json()["items"][0]["is_current"]


def test_prompts_are_listed_by_name_and_erased(api: httpx.Client) -> None:
    for name in ("b", "a.1", "c_2"):
        put(api, "x", name)
    page = api.get("/v1/prompts?limit=2").json()
    assert [item["name"] for item in page["items"]] == ["a.1", "b"]
    rest = api.get(f"/v1/prompts?cursor={page['next_cursor']}").json()["items"]
    assert [item["name"] for item in rest] == ["c_2"]

    assert api.delete("/v1/prompts/b").status_code == 204
    assert "no prompt 'b'" in problem(api.get("/v1/prompts/b"), 404)["detail"]
    problem(api.delete("/v1/prompts/b"), 404)
    problem(api.get("/v1/prompts/b@1"), 404)
    assert [item["name"] for item in api.get("/v1/prompts").json()["items"]] == ["a.1", "c_2"]
    # What was b@1 never means another text.
    assert put(api, "y", "b")["version"] == 2
    assert "has only 2" in problem(api.get("/v1/prompts/b@1"), 404)["detail"]


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("greeting", {"template": "Hello {who"}, "template"),
        ("greeting", {"template": ""}, "template"),
        ("greeting", {"template": "{a}", "variables": {"b": {}}}, "'b'"),
        ("greeting", {"template": "{a}", "variables": {"a": {"default": []}}}, "default"),
        ("greeting", {"template": "x", "extra": 1}, "extra"),
        ("greeting@1", {"template": "x"}, "letters"),
        ("a%20b", {"template": "x"}, "letters"),
        ("a" * 64, {"template": "x"}, "letters"),
    ],
)
def test_what_cannot_be_a_prompt_is_refused(
    api: httpx.Client, path: str, body: dict[str, Any], words: str
) -> None:
    assert words in problem(api.put(f"/v1/prompts/{path}", json=body), 422)["detail"]
    assert api.get("/v1/prompts").json()["items"] == []


def test_a_text_is_rendered_without_a_model(api: httpx.Client) -> None:
    put(api, "Hello {who}", variables={"who": {"default": "you"}})
    assert api.post(f"{GREETING}/render").json() == {"prompt": "greeting@1", "text": "Hello you"}
    rendered = api.post(f"{GREETING}@1/render", json={"variables": {"who": "{Ada}"}})
    assert rendered.json()["text"] == "Hello {Ada}"
    assert (
        "'hwo'"
        in problem(api.post(f"{GREETING}/render", json={"variables": {"hwo": "x"}}), 422)["detail"]
    )


def test_a_job_says_what_its_prompt_lacks(api: httpx.Client) -> None:
    put(api, "Hello {who}", variables={"who": {"description": "whom"}})
    assert "greeting@1 needs who (whom)" in refused(api, 422, prompt="greeting")
    unknown = {"who": "x", "hwo": "y"}
    assert "no variable 'hwo'" in refused(api, 422, prompt="greeting", variables=unknown)
    assert "no version 7; it has only 1" in refused(api, 404, prompt="greeting@7")
    assert "no prompt 'greetings'" in refused(api, 404, prompt="greetings")
    assert "name of a stored prompt" in refused(api, 422, prompt="Hello {who}")
    assert "variables" in refused(api, 422, messages=MESSAGES, variables={"who": "x"})
    variables = {"who": "Ada"}
    detail = refused(api, 422, prompt="greeting", variables=variables, rendered="Hello Eve")
    assert "leave it out" in detail
    assert "leave it out" in refused(api, 422, messages=MESSAGES, rendered="Hello Eve")
    assert api.get("/v1/jobs").json()["items"] == []


def test_later_versions_do_not_alter_jobs(
    api: httpx.Client, talker: Callable[..., Process], wire: Wire
) -> None:
    process = talker()
    put(api, "count to {n}")
    alone = chat(api, prompt="greeting", variables={"n": 3})
    beside = chat(api, prompt="greeting@1", variables={"n": 3}, messages=MESSAGES)
    (batched,) = api.post(
        "/v1/jobs/batch",
        json={"jobs": [{"kind": "chat", "input": {**alone["input"], "prompt": "greeting"}}]},
    ).json()["ids"]
    assert alone["input"]["prompt"] == "greeting@1"
    assert alone["input"]["rendered"] == "count to 3"
    put(api, "count to 9")
    assert api.delete(GREETING).status_code == 204
    drain(process)

    for id_, content in ((alone["id"], "1 2 3"), (beside["id"], "1 2"), (batched, "1 2 3")):
        job = api.get(f"/v1/jobs/{id_}").json()
        assert job["state"] == "succeeded", job["error"]
        assert job["result"]["message"]["content"] == content
        assert job["input"]["prompt"] == "greeting@1"
    read = [body["messages"] for body in wire.bodies("/api/chat")]
    assert [{"role": "user", "content": "count to 3"}] in read
    assert [{"role": "system", "content": "count to 3"}, *MESSAGES] in read


def test_turns_of_a_conversation_use_a_prompt(
    api: httpx.Client, talker: Callable[..., Process]
) -> None:
    process = talker()
    put(api, "You are {who}.")
    talk = api.post("/v1/conversations").json()["id"]
    turn = {"messages": MESSAGES, "conversation_id": talk}
    for _ in range(2):
        chat(api, prompt="greeting", variables={"who": "Ada"}, **turn)
        drain(process)
    rows = api.get(f"/v1/conversations/{talk}/messages").json()["items"]
    assert [row["message"]["role"] for row in rows] == ["system", *["user", "assistant"] * 2]


def test_a_chat_that_continues_one_begins_with_its_prompt(
    api: httpx.Client, talker: Callable[..., Process], wire: Wire
) -> None:
    process = talker()
    put(api, "count to {n}")
    first = chat(api, prompt="greeting", variables={"n": 3})
    drain(process)
    chat(api, previous_job_id=first["id"], messages=MESSAGES)
    drain(process)
    read = [message["content"] for message in wire.bodies("/api/chat")[-1]["messages"]]
    assert read == ["count to 3", "1 2 3", "count to 2"]


def test_rag_fills_a_stored_prompt(
    api: httpx.Client, talker: Callable[..., Process], wire: Wire
) -> None:
    process = talker()
    collection = new_collection(process)
    ingest(process, collection, {"hours": "We open at nine."})
    put(api, "As {tone}: {context} ? {question}", "answer")
    asked = {"collection": collection, "question": "When {tone}?"}
    made = submit(api, "rag", prompt="answer", variables={"tone": "a {question} pirate"}, **asked)
    drain(process)

    job = job_of(process, made["id"])
    assert job.input["prompt"] == "answer@1"
    content = wire.bodies("/api/chat")[-1]["messages"][-1]["content"]
    assert content.startswith("As a {question} pirate: <passage")
    assert content.endswith("? When {tone}?")

    # A text with braces is a template, as ever; one without is a name.
    inline = submit(api, "rag", prompt="{question} {context}", **asked)
    assert chat_result(process, inline["id"])["answer"].startswith("When {tone}?")

    def refused_rag(status: int, **changes: str) -> str:
        body = {"kind": "rag", "input": {"model": "ollama/tiny", **asked, **changes}}
        return str(problem(api.post("/v1/jobs", json=body), status)["detail"])

    assert "has only 1" in refused_rag(404, prompt="answer@2")
    assert "neither a template" in refused_rag(422, prompt="answer me")
    put(api, "{question} only", "answer")
    assert "answer@2 has no {context}" in refused_rag(422, prompt="answer")
    assert "extractive" in refused_rag(422, prompt="answer@1", model="extractive")


# The command line and the client


def test_the_command_line_does_all_of_it(
    api: httpx.Client,
    api_url: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert api.get("/v1/prompts").json()["items"] == []
    monkeypatch.setenv("SLUICE_URL", api_url)
    monkeypatch.chdir(tmp_path)
    (tmp_path / "answer.txt").write_text("Hi {who}\nas {tone}", encoding="utf-8")

    def shown(*words: str, code: int = 0) -> str:
        assert run(["prompts", *words]) == code
        captured = capsys.readouterr()
        return captured.out if code == 0 else captured.err

    shown("list")
    assert shown("put", "greeting", "Hello {who}", "--default", "who=you=me") == (
        "Stored greeting@1.\n"
    )
    put = ["put", "greeting", "--file", "answer.txt", "--describe", "who=whom", "--draft"]
    assert shown(*put) == "Stored greeting@2, not the current one (1).\n"
    assert "Hello {who}" in shown("show", "greeting")
    assert 'who (default "you=me")' in shown("show", "greeting@1")
    assert "who: whom" in shown("show", "greeting@2")
    assert shown("render", "greeting") == "Hello you=me\n"
    assert shown("render", "greeting@2", "--var", "who=Ada", "--var", "tone=a friend") == (
        "Hi Ada\nas a friend\n"
    )
    difference = shown("diff", "greeting")
    assert "-Hello {who}\n+Hi {who}\n+as {tone}" in difference
    assert "+ tone" in difference
    assert shown("rollback", "greeting", "--to", "2") == "greeting is greeting@2 now.\n"
    assert shown("rollback", "greeting") == "greeting is greeting@1 now.\n"
    assert "first version" in shown("rollback", "greeting", code=5)
    versions = json.loads(shown("versions", "greeting", "--json"))["items"]
    assert [(v["version"], v["is_current"]) for v in versions] == [(2, False), (1, True)]
    assert "greeting\t1\t2\twho" in shown("list")
    assert "needs who (whom)" in shown("render", "greeting@2", code=5)
    assert "no prompt 'none'" in shown("show", "none", code=4)
    shown("put", "greeting", code=2)
    shown("put", "greeting", "x", "--default", "who", code=2)
    assert shown("delete", "greeting", "--yes") == "Deleted greeting.\n"
    assert json.loads(shown("list", "--json")) == {"items": []}


def test_the_client_uses_prompts(
    api: httpx.Client, api_url: str, talker: Callable[..., Process]
) -> None:
    api.get("/healthz")
    process = talker()
    with Client(api_url) as client:
        variables = {"n": {"description": "how far", "default": 2}}
        stored = client.put_prompt("counting", "count to {n}", variables=variables)
        assert [(v.name, v.description, v.default) for v in stored.variables] == [
            ("n", "how far", 2)
        ]
        client.put_prompt("counting", "count to {n}!", variables=variables, make_current=False)
        assert client.prompt("counting").reference == "counting@1"
        assert [prompt.version for prompt in client.prompt_versions("counting")] == [2, 1]
        assert "+count to {n}!" in client.diff_prompt("counting", 1, 2).template
        assert client.roll_back_prompt("counting", 2).version == 2
        assert client.render_prompt("counting@1", {"n": 7}) == "count to 7"
        input_ = chat_input((), prompt="counting@1", variables={"n": 3}, model="ollama/tiny")
        job = client.submit("chat", input_)
        drain(process)
        assert client.job(job.id).result["message"]["content"] == "1 2 3"
        client.delete_prompt("counting")
        assert list(client.prompts()) == []
