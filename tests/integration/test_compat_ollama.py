"""The dialect of Ollama, as its own Python client knows it, over a real socket: a model in this
process, and an Ollama server behind."""

import asyncio
import base64
import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from uuid import UUID

import httpx
import ollama
import pytest

from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.jobs import jobs
from shared.vocabulary import Lane, State
from tests.integration.thread_worker import running_worker
from tests.tiny_models import Answerer
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import MODEL
from workers.attempts.process import Process

TOOL = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "The weather of a city.",
        "parameters": {
            "type": "object",
            "properties": {"city": {"type": "string", "description": "Its name"}},
            "required": ["city"],
        },
    },
}
GREEDY = {"temperature": 0, "num_predict": 48}


@pytest.fixture(scope="module")
def settings(settings: Settings, wire: Wire) -> Settings:
    return settings.model_copy(
        update={
            "ollama_url": wire.url,
            "generation_device": "cpu",
            "worker_heartbeat_s": 600,
            "hub_connect_timeout_s": 0.5,
        }
    )


@pytest.fixture(scope="module")
def ledger(settings: Settings) -> Iterator[Ledger]:
    ledger = make_ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def held(answerer: Answerer) -> str:
    """A model that the worker holds."""
    return f"hf/{answerer.path}"


@pytest.fixture(scope="module", autouse=True)
def worker(settings: Settings, held: str) -> Iterator[Process]:
    with running_worker(settings, held) as process:
        yield process


@pytest.fixture(scope="module")
def url(api_url: str) -> str:
    return f"{api_url}/ollama"


@pytest.fixture(scope="module")
def client(url: str) -> Iterator[ollama.Client]:
    with ollama.Client(host=url, trust_env=False) as client:
        yield client


@pytest.fixture(scope="module")
def http(url: str) -> Iterator[httpx.Client]:
    with httpx.Client(base_url=url, timeout=180, trust_env=False) as client:
        yield client


def user(content: str) -> dict[str, str]:
    return {"role": "user", "content": content}


def question(answerer: Answerer) -> tuple[str, str]:
    return next(iter(answerer.questions.items()))


def check_figures(answer: Any) -> None:
    assert answer.done
    assert answer.done_reason in ("stop", "length")
    assert answer.prompt_eval_count > 0
    assert answer.eval_count > 0
    for name in ("total", "load", "prompt_eval", "eval"):
        assert getattr(answer, f"{name}_duration") > 0
    parts = answer.load_duration + answer.prompt_eval_duration + answer.eval_duration
    assert parts <= answer.total_duration * 1.01 + 5e6


class TestChat:
    def test_a_model_that_a_worker_holds(
        self, client: ollama.Client, held: str, answerer: Answerer, ledger: Ledger
    ) -> None:
        asked, answer = question(answerer)
        said = client.chat(held, [user(asked)], options=GREEDY)
        assert said.message.role == "assistant"
        assert said.message.content == answer
        assert said.model == held
        check_figures(said)
        with ledger.read() as session:
            job = jobs.page(session, jobs.Filter(), limit=1, before=None)[0]
        assert (job.kind, job.lane) == ("chat", Lane.INTERACTIVE.rank)

    def test_a_stream_adds_up_to_the_answer(
        self, client: ollama.Client, held: str, answerer: Answerer
    ) -> None:
        asked, answer = question(answerer)
        *parts, last = client.chat(held, [user(asked)], options=GREEDY, stream=True)
        assert "".join(part.message.content or "" for part in parts) == answer
        assert not any(part.done for part in parts)
        assert last.message.content == ""
        check_figures(last)

    def test_asynchronously(self, url: str, held: str, answerer: Answerer) -> None:
        asked, answer = question(answerer)

        async def run() -> tuple[str, str]:
            async with ollama.AsyncClient(host=url, trust_env=False) as client:
                said = await client.chat(held, [user(asked)], options=GREEDY)
                stream = await client.chat(held, [user(asked)], options=GREEDY, stream=True)
                text = "".join([part.message.content or "" async for part in stream])
                return said.message.content or "", text

        assert asyncio.run(run()) == (answer, answer)

    @pytest.mark.parametrize("name", [MODEL, f"{MODEL}:latest", f"ollama/{MODEL}"])
    def test_a_model_of_the_server_behind_has_several_names(
        self, client: ollama.Client, wire: Wire, name: str
    ) -> None:
        said = client.chat(name, [user("count to 3")])
        assert (said.model, said.message.content) == (name, "1 2 3")
        options = wire.bodies("/api/chat")[-1]["options"]
        assert (options["temperature"], options["top_k"], options["top_p"]) == (0.8, 40, 0.9)

    def test_options_reach_the_server_behind(self, client: ollama.Client, wire: Wire) -> None:
        options = {
            "num_predict": 2, "stop": ["x"], "seed": 5, "temperature": 0.1, "top_k": 7,
            "top_p": 0.5, "repeat_penalty": 1.3, "num_ctx": 128, "num_gpu": 1,
        }  # fmt: skip
        said = client.chat(MODEL, [user("count to 30")], options=options)
        assert (said.message.content, said.done_reason) == ("1 2", "length")
        sent = wire.bodies("/api/chat")[-1]["options"]
        for name in ("num_predict", "stop", "seed", "temperature", "top_k", "top_p"):
            assert sent[name] == options[name]
        assert sent["repeat_penalty"] == 1.3

    def test_tools_are_called_and_their_results_read(self, client: ollama.Client) -> None:
        messages: list[Any] = [user('call weather {"city": "Seoul"}')]
        said = client.chat(MODEL, messages, tools=[TOOL])
        (call,) = said.message.tool_calls or ()
        assert (call.function.name, call.function.arguments) == ("weather", {"city": "Seoul"})
        messages += [said.message, {"role": "tool", "content": "sunny", "tool_name": "weather"}]
        again = client.chat(MODEL, messages, tools=[TOOL])
        assert again.message.content == "The tool says sunny"
        streamed = list(client.chat(MODEL, messages[:1], tools=[TOOL], stream=True))
        assert any(part.message.tool_calls for part in streamed[:-1])
        assert streamed[-1].done

    def test_json_by_its_name_and_by_a_schema(self, client: ollama.Client) -> None:
        said = client.chat(MODEL, [user('{"age": 22}')], format="json")
        assert json.loads(said.message.content or "") == {"age": 22}
        schema = {"type": "object", "properties": {"age": {"type": "integer"}}}
        (*_, last) = client.chat(MODEL, [user('{"age": 22}')], format=schema, stream=True)
        assert last.done

    def test_log_probabilities(self, client: ollama.Client, held: str, answerer: Answerer) -> None:
        asked, answer = question(answerer)
        said = client.chat(held, [user(asked)], options=GREEDY, logprobs=True, top_logprobs=2)
        assert said.logprobs is not None
        assert "".join(entry.token for entry in said.logprobs).startswith(answer)
        assert all(len(entry.top_logprobs or ()) == 2 for entry in said.logprobs)

    def test_thoughts_are_apart_from_the_answer(self, client: ollama.Client) -> None:
        wish = user("<think>\nhm, well\n</think>\n\nYes.")
        said = client.chat(MODEL, [wish])
        assert said.message.content == "Yes."
        assert (said.message.thinking or "").strip() == "hm, well"
        parts = list(client.chat(MODEL, [wish], stream=True))
        assert "".join(part.message.content or "" for part in parts) == "Yes."
        assert "".join(part.message.thinking or "" for part in parts).strip() == "hm, well"
        without = client.chat(MODEL, [wish], think=False)
        assert (without.message.content, without.message.thinking) == ("Yes.", None)
        with pytest.raises(ollama.ResponseError, match="does not support thinking"):
            client.chat(MODEL, [wish], think=True)
        with pytest.raises(ollama.ResponseError, match="think must be true or false"):
            client.chat(MODEL, [wish], think="high")

    def test_no_messages_load_or_unload(self, client: ollama.Client, held: str) -> None:
        assert client.chat(held, []).done_reason == "load"
        assert client.chat(MODEL, [], keep_alive=0).done_reason == "unload"
        for messages in ([], [user("Say yes.")]):
            with pytest.raises(ollama.ResponseError, match="keep_alive is 0"):
                client.chat(held, messages, keep_alive="0s")

    def test_a_model_of_the_server_behind_stays_as_long_as_asked(
        self, client: ollama.Client, wire: Wire
    ) -> None:
        assert client.chat(MODEL, [user("count to 2")], keep_alive="10m").done_reason == "stop"
        sent = wire.bodies("/api/generate")[-1]
        assert (sent["model"], sent["keep_alive"], sent.get("prompt")) == (MODEL, "10m", None)

    def test_a_client_that_goes_away_cancels_its_job(
        self, http: httpx.Client, wire: Wire, ledger: Ledger
    ) -> None:
        wire.of(MODEL).hang_after = 5
        body = {"model": MODEL, "messages": [user("count to 2000")], "options": {"num_ctx": 9999}}
        with http.stream("POST", "/api/chat", json=body) as stream:
            job_id = stream.headers["x-sluice-job-id"]
            next(stream.iter_lines())
        while True:
            with ledger.read() as session:
                state = jobs.get(session, UUID(job_id)).state
            if state not in (State.QUEUED, State.RUNNING):
                break
        wire.of(MODEL).hang_after = None
        assert state == State.CANCELLED

    def test_documents_answer_under_a_name(
        self, client: ollama.Client, api_url: str, wire: Wire
    ) -> None:
        name = "handbook"
        source = {"type": "text", "text": "We open at nine.", "name": "hours"}
        body = {"kind": "ingest", "input": {"collection": name, "sources": [source]}}
        with httpx.Client(base_url=api_url, timeout=60, trust_env=False) as api:
            api.put(f"/v1/collections/{name}").raise_for_status()
            job = api.post("/v1/jobs", json=body, headers={"Prefer": "wait=60"}).json()
        assert job["state"] == "succeeded", job
        messages = [user("Hello."), {"role": "assistant", "content": "Hi."}, user("When?")]
        said = client.chat(f"rag/{name}", messages)
        assert said.message.content
        said = client.chat(f"rag/{name}/ollama/{MODEL}", messages)
        assert "We open at nine." in (said.message.content or "")
        assert wire.bodies("/api/chat")[-1]["messages"][1]["content"] == "Hello."


class TestGenerate:
    def test_a_prompt_and_its_context(self, client: ollama.Client, wire: Wire) -> None:
        first = client.generate(MODEL, "count to 2", system="Count.")
        assert first.response == "1 2"
        check_figures(first)
        assert first.context
        assert all(isinstance(item, int) for item in first.context)
        second = client.generate(MODEL, "count to 3", context=first.context)
        assert second.response == "1 2 3"
        assert wire.bodies("/api/chat")[-1]["messages"] == [
            {"role": "system", "content": "Count."},
            user("count to 2"),
            {"role": "assistant", "content": "1 2"},
            user("count to 3"),
        ]

    def test_a_stream(self, client: ollama.Client, held: str, answerer: Answerer) -> None:
        asked, answer = question(answerer)
        *parts, last = client.generate(held, asked, options=GREEDY, stream=True)
        assert "".join(part.response or "" for part in parts) == answer
        assert last.context
        check_figures(last)

    def test_a_raw_prompt_goes_as_it_is(self, client: ollama.Client, wire: Wire) -> None:
        said = client.generate(MODEL, "[INST] count to 3 [/INST]", raw=True)
        assert wire.bodies("/api/generate")[-1]["prompt"] == "[INST] count to 3 [/INST]"
        assert said.context is None
        check_figures(said)

    def test_a_template_of_the_request(self, client: ollama.Client, wire: Wire) -> None:
        template = "{{ if .System }}<s>{{ .System }}</s>{{ end }}<u>{{ .Prompt }}</u>"
        said = client.generate(MODEL, "Hi", system="Be brief.", template=template)
        assert wire.bodies("/api/generate")[-1]["prompt"] == "<s>Be brief.</s><u>Hi</u>"
        assert said.context

    def test_no_prompt_loads(self, client: ollama.Client) -> None:
        assert client.generate(MODEL).done_reason == "load"


class TestEmbeddings:
    def test_vectors(self, client: ollama.Client) -> None:
        both = client.embed("all-minilm", ["We open at nine.", "Hello."])
        assert len(both.embeddings) == 2
        assert sum(value**2 for value in both.embeddings[0]) == pytest.approx(1, abs=1e-3)
        one = client.embed("sentence-transformers/all-MiniLM-L6-v2", "We open at nine.")
        assert one.embeddings[0] == pytest.approx(both.embeddings[0], abs=1e-5)
        assert (one.total_duration or 0) > 0
        assert (one.prompt_eval_count or 0) > 3
        old = client.embeddings("all-minilm:latest", "We open at nine.")
        assert old.embedding == pytest.approx(both.embeddings[0], abs=1e-5)
        short = client.embed("all-minilm", "We open at nine.", dimensions=16)
        assert len(short.embeddings[0]) == 16
        assert sum(value**2 for value in short.embeddings[0]) == pytest.approx(1)
        assert client.embed("all-minilm", []).embeddings == []

    def test_too_long_a_text(self, client: ollama.Client) -> None:
        long = "word " * 2000
        assert client.embed("all-minilm", long).embeddings
        with pytest.raises(ollama.ResponseError, match="exceeds the context length"):
            client.embed("all-minilm", long, truncate=False)


class TestModels:
    def test_what_there_is(self, client: ollama.Client, held: str, http: httpx.Client) -> None:
        names = {model.model for model in client.list().models}
        assert {MODEL, held, "sentence-transformers/all-MiniLM-L6-v2"} <= names
        running = {model.model for model in client.ps().models}
        assert held in running
        assert http.get("/api/version").json()["version"]
        assert http.get("/").text == "Ollama is running"
        assert http.head("/").status_code == 200
        assert http.get("").text == "Ollama is running"

    def test_showing(self, client: ollama.Client, held: str) -> None:
        behind = client.show(MODEL)
        assert behind.modelinfo is not None
        assert behind.modelinfo["llama.context_length"] == 4096
        assert "completion" in (client.show(held).capabilities or ())
        assert client.show("all-minilm").capabilities == ["embedding"]

    def test_a_named_model_over_any_provider(
        self, client: ollama.Client, held: str, answerer: Answerer, wire: Wire
    ) -> None:
        progress = client.create(
            "Helpdesk",
            from_=MODEL,
            system="You answer.",
            parameters={"temperature": 0.3, "stop": ["END"], "num_predict": 9},
            messages=[user("Hi"), {"role": "assistant", "content": "Yes?"}],
            license="MIT",
            stream=True,
        )
        assert [part.status for part in progress][-1] == "success"
        assert "Helpdesk:latest" in {model.model for model in client.list().models}
        said = client.chat("Helpdesk", [user("count to 2")], options={"num_predict": 5})
        assert (said.model, said.message.content) == ("Helpdesk", "1 2")
        sent = wire.bodies("/api/chat")[-1]
        assert sent["messages"][:2] == [{"role": "system", "content": "You answer."}, user("Hi")]
        options = sent["options"]
        assert (options["temperature"], options["num_predict"], options["top_k"]) == (0.3, 5, 40)
        described = client.show("Helpdesk")
        assert described.license == "MIT"
        assert "PARAMETER temperature 0.3" in (described.modelfile or "")
        client.generate("Helpdesk", "count to 2", system="Else.")
        assert wire.bodies("/api/chat")[-1]["messages"][0]["content"] == "Else."

        client.copy("Helpdesk", "team/copy:v1")
        client.delete("Helpdesk")
        assert client.chat("team/copy:v1", [user("count to 2")]).message.content == "1 2"
        client.delete("team/copy:v1")
        with pytest.raises(ollama.ResponseError, match="not found") as refused:
            client.chat("Helpdesk", [user("Hi")])
        assert refused.value.status_code == 404

        asked, answer = question(answerer)
        assert client.create("tiny-own", from_=held, parameters=GREEDY).status == "success"
        assert client.chat("tiny-own", [user(asked)]).message.content == answer
        assert client.generate("tiny-own", asked).response == answer

    def test_pulling_and_deleting_at_the_server_behind(
        self, client: ollama.Client, wire: Wire
    ) -> None:
        parts = list(client.pull("llama3.2", stream=True))
        assert parts[0].status == "pulling manifest"
        assert parts[-1].status == "success"
        pulled = [part for part in parts if part.total]
        assert pulled
        assert (pulled[-1].completed, pulled[-1].total) == (1500, 1500)
        assert client.chat("llama3.2", [user("count to 1")]).message.content == "1"
        client.delete("llama3.2")
        assert "llama3.2" not in wire.models
        assert client.pull(MODEL).status == "success"
        with pytest.raises(ollama.ResponseError, match="file does not exist"):
            client.pull("nosuch")
        with pytest.raises(ollama.ResponseError, match="push is not supported"):
            client.push(MODEL)


IMAGE = base64.b64encode(b"\x89PNG").decode()
CHAT = {"model": MODEL, "messages": [user("a")]}
GENERATE = {"model": MODEL, "prompt": "a"}


@pytest.mark.parametrize(
    ("path", "body", "status", "says"),
    [
        ("chat", {"messages": []}, 400, "model is required"),
        ("chat", {**CHAT, "model": "nosuch"}, 404, "model 'nosuch' not found; there"),
        ("chat", {"model": MODEL, "messages": [{"role": "robot"}]}, 400, "messages.0.role"),
        (
            "chat",
            {"model": MODEL, "messages": [{**user("a"), "images": [IMAGE]}]},
            400,
            "messages.0.images: is not supported here",
        ),
        ("chat", {"model": MODEL, "messages": [user("")]}, 400, "messages.0.content is empty"),
        ("chat", [], 400, "the body must be a JSON object"),
        ("chat", {**CHAT, "options": {"min_p": 1}}, 400, "options.min_p"),
        ("chat", {**CHAT, "options": {"x": 1}}, 400, "options.x is no"),
        ("chat", {**CHAT, "options": {"top_p": 7}}, 400, "top_p"),
        ("chat", {**CHAT, "options": {"num_ctx": 1}}, 400, "options.num_ctx: "),
        ("chat", {**CHAT, "no_such": 1}, 400, "no_such"),
        ("chat", {**CHAT, "keep_alive": "soon"}, 400, "keep_alive"),
        ("chat", {**CHAT, "format": "xml"}, 400, "format"),
        ("chat", {**CHAT, "think": "hard"}, 400, "think"),
        (
            "chat",
            {"model": MODEL, "messages": [{"role": "tool", "content": "a"}]},
            400,
            "result of a tool that no message before it calls",
        ),
        ("chat", {"model": "extractive", "messages": [user("a")]}, 400, "rag/<collection>"),
        ("chat", {"model": "rag/nosuch", "messages": [user("a")]}, 404, "nosuch"),
        ("generate", {**GENERATE, "suffix": "b"}, 400, "does not support insert"),
        ("generate", {**GENERATE, "raw": True, "system": "b"}, 400, "raw mode"),
        ("generate", {**GENERATE, "context": [1, 2, 3]}, 400, "context is not one"),
        ("generate", {**GENERATE, "template": "{{ end }}"}, 400, "template, line 1"),
        ("generate", {**GENERATE, "images": [IMAGE]}, 400, "images"),
        ("embed", {"model": "openai/tiny", "input": "a"}, 400, "SLUICE_OPENAI_BASE_URL"),
        ("embed", {"model": "no/such", "input": "a"}, 404, "model 'no/such' not found"),
        ("embed", {"model": "all-minilm", "input": [1]}, 400, "input.0"),
        ("show", {"model": "nosuch"}, 404, "not found"),
        ("create", {"model": "mine"}, 400, "neither 'from' or 'files'"),
        ("create", {"model": "mine", "from": "nosuch"}, 404, "not found"),
        ("create", {"model": "hf/mine", "from": MODEL}, 400, "no name for a model of your own"),
        (
            "create",
            {"model": "mine", "modelfile": "FROM tiny\nPARAMETER num_ctx 1e400"},
            400,
            "line 2: PARAMETER num_ctx must be a finite number",
        ),
        ("create", {"model": "mine", "from": MODEL, "info": {"a": 1}}, 400, "info is not"),
        ("create", {"model": "mine", "from": MODEL, "quantize": "q4_0"}, 400, "quantize is not"),
        ("create", {"model": "mine", "modelfile": "FROM tiny\nFORM b"}, 400, "line 2"),
        ("create", {"model": "mine", "from": MODEL, "parameters": {"min_p": 1}}, 400, "min_p"),
        ("copy", {"source": "nosuch", "destination": "b"}, 404, "not found"),
        ("push", {"model": MODEL}, 501, "push is not supported"),
        ("nosuch", {}, 404, "nothing at"),
    ],
)  # fmt: skip
def test_what_is_refused_says_why(
    http: httpx.Client, path: str, body: dict[str, Any], status: int, says: str
) -> None:
    answer = http.post(f"/api/{path}", json=body)
    assert answer.status_code == status, answer.text
    assert set(answer.json()) == {"error"}
    assert says in answer.json()["error"]


def test_json_without_a_content_type_is_json(http: httpx.Client) -> None:
    data = json.dumps({"model": MODEL, "messages": [user("count to 2")]}).encode()
    headers = {"Content-Type": "application/x-www-form-urlencoded"}
    answer = http.post("/api/chat", content=data, headers=headers)
    assert answer.headers["content-type"] == "application/x-ndjson"
    nothing = http.post("/api/chat", content=b"")
    assert (nothing.status_code, "a body is required" in nothing.text) == (400, True)
    lines = [json.loads(line) for line in answer.text.splitlines()]
    assert [line["done"] for line in lines] == [False] * (len(lines) - 1) + [True]
    assert lines[0]["created_at"].endswith("Z")


def test_an_answer_in_one_piece_has_a_plausible_speed(
    client: ollama.Client, held: str, answerer: Answerer
) -> None:
    asked, _ = question(answerer)
    said = client.chat(held, [user(asked)], options=GREEDY)
    assert (said.eval_duration or 0) > 1000  # ns: clients divide eval_count by it
    assert (said.prompt_eval_duration or 0) > 1000


def test_nobody_has_blobs_here(http: httpx.Client) -> None:
    assert http.head("/api/blobs/sha256:abc").status_code == 404


def test_what_fails_in_a_stream_is_its_last_line(http: httpx.Client, wire: Wire) -> None:
    wire.of(MODEL).refuse_times = 1
    wire.of(MODEL).refuse_status = 400
    body = {"model": MODEL, "messages": [user("count to 2")]}
    answer = http.post("/api/chat", json=body)
    wire.of(MODEL).refuse_times = 0
    assert answer.status_code == 400
    assert "out of order" in answer.json()["error"]


PAGE = Path(__file__).resolve().parents[2] / "docs" / "clients" / "ollama.md"


def test_the_page_runs(
    url: str, wire: Wire, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """With the one setting that it names. The server behind has the model of its examples."""
    monkeypatch.setenv("OLLAMA_HOST", url)
    wire.models["llama3.2"] = {}
    names: dict[str, Any] = {}
    for block in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL):
        exec(compile(block, str(PAGE), "exec"), names)
    names["client"].close()
    out = capsys.readouterr().out
    assert out.startswith("Say good morning in Korean. ")
    assert "1 2 3 4 5384\n" in out
    assert "helpdesk:latest" in out
