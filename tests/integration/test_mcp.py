"""The MCP server at `/mcp`, by the official client over a real socket, in both eras of the
protocol: a request that stands alone, and sessions that begin with a handshake."""

import asyncio
import json
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

import httpx
import httpx2
import pytest
from jsonschema import Draft202012Validator
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError
from mcp_types import CallToolResult, TextContent
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from shared.jobs import jobs
from shared.tables import Job
from tests.api_server import served
from tests.integration.ingestion import new_collection
from tests.integration.job_runner import drain, make_process
from tests.wire.behaviour import Wire
from workers.attempts.process import Process

Era = Literal["auto", "legacy"]
ERAS: tuple[Era, ...] = ("auto", "legacy")
SECRET = "a-secret-of-many-characters"
TOOLS = {"search", "ask", "ingest_text", "list_collections", "get_job"}
PATIENCE_S = 60

each_era = pytest.mark.parametrize("era", ERAS)


@pytest.fixture(scope="module")
def settings(settings: Settings, wire: Wire) -> Settings:
    changed = {
        "api_keys": {"anna": SecretStr(SECRET), "ben": SecretStr(SECRET + "-2")},
        "ollama_url": wire.url,
        "sse_poll_s": 0.05,
    }
    return settings.model_copy(update=changed)


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


@contextmanager
def at_work(process: Process) -> Iterator[None]:
    """Workers run whatever is submitted meanwhile."""
    is_over = threading.Event()

    def work() -> None:
        while not is_over.is_set():
            if not drain(process):
                is_over.wait(0.02)

    thread = threading.Thread(target=work)
    thread.start()
    try:
        yield
    finally:
        is_over.set()
        thread.join()


@asynccontextmanager
async def connected(url: str, era: Era = "auto", secret: str = SECRET) -> AsyncIterator[Client]:
    headers = {"Authorization": f"Bearer {secret}"}
    async with (
        httpx2.AsyncClient(headers=headers, timeout=PATIENCE_S, trust_env=False) as http,
        Client(streamable_http_client(f"{url}/mcp", http_client=http), mode=era) as client,
    ):
        yield client


def run(
    url: str, work: Callable[[Client], Awaitable[Any]], era: Era = "auto", secret: str = SECRET
) -> Any:
    async def whole() -> Any:
        async with connected(url, era, secret) as client:
            return await work(client)

    return asyncio.run(whole())


def call(url: str, tool: str, era: Era = "auto", **arguments: Any) -> CallToolResult:
    result = run(url, lambda client: client.call_tool(tool, arguments), era)
    assert isinstance(result, CallToolResult)
    return result


def text_of(result: CallToolResult) -> str:
    (content,) = result.content
    assert isinstance(content, TextContent)
    return content.text


def answer(url: str, tool: str, era: Era = "auto", **arguments: Any) -> dict[str, Any]:
    result = call(url, tool, era, **arguments)
    assert not result.is_error, text_of(result)
    assert json.loads(text_of(result)) == result.structured_content
    content: dict[str, Any] = result.structured_content
    return content


def only_job(ledger: Ledger) -> Job | None:
    with ledger.read() as session:
        rows = jobs.page(session, jobs.Filter(), limit=2, before=None)
    assert len(rows) <= 1
    return rows[0] if rows else None


def until(look: Callable[[], Any]) -> Any:
    deadline = time.monotonic() + PATIENCE_S
    while not (seen := look()):
        assert time.monotonic() < deadline, "waited in vain"
        time.sleep(0.01)
    return seen


@each_era
def test_tools_describe_themselves(api_url: str, era: Era) -> None:
    async def look(client: Client) -> Any:
        assert client.server_info is not None
        assert client.server_info.name == "sluice"
        assert client.protocol_version == ("2026-07-28" if era == "auto" else "2025-11-25")
        return (await client.list_tools()).tools

    tools = run(api_url, look, era)

    assert {tool.name for tool in tools} == TOOLS
    for tool in tools:
        assert tool.description
        assert tool.input_schema["type"] == "object"
        assert tool.input_schema["additionalProperties"] is False
        for schema in (tool.input_schema, tool.output_schema):
            Draft202012Validator.check_schema(schema)
        assert "$ref" not in json.dumps(tool.input_schema), "not all clients follow references"
        for name, field in tool.input_schema["properties"].items():
            assert field.get("description"), f"{tool.name}.{name} says what it is"


@each_era
def test_an_agent_stores_finds_and_asks(api_url: str, process: Process, era: Era) -> None:
    """The SDK's client checks each structured answer by the schema of its tool."""
    name = new_collection(process)

    async def work(client: Client) -> list[Any]:
        text = "We open at nine. We close at six."
        stored = {"collection": name, "text": text, "name": "hours.md", "metadata": {"year": 2026}}
        made = await client.call_tool("ingest_text", stored)
        found = await client.call_tool("search", {"collection": name, "query": "When?", "k": 1})
        filtered = await client.call_tool(
            "search", {"collection": name, "query": "When?", "filter": {"year": {"$lt": 2026}}}
        )
        asked = await client.call_tool("ask", {"collection": name, "question": "When do you open?"})
        listed = await client.call_tool("list_collections", {})
        job = await client.call_tool("get_job", {"job_id": asked.structured_content["job_id"]})
        return [made, found, filtered, asked, listed, job]

    with at_work(process):
        results = run(api_url, work, era)
    for result in results:
        assert not result.is_error, text_of(result)
    made, found, filtered, asked, listed, job = (result.structured_content for result in results)

    assert (made["state"], made["chunks"], made["documents"]["added"]) == ("succeeded", 1, 1)
    assert [(hit["source"], hit["metadata"]["year"]) for hit in found["hits"]] == [
        ("hours.md", 2026)
    ]
    assert filtered["hits"] == []
    assert asked["answer"] == "We open at nine. [1]"
    assert asked["model"] == "extractive"
    assert [(one["marker"], one["source"]) for one in asked["citations"]] == [("[1]", "hours.md")]
    assert [one["documents"] for one in listed["collections"] if one["name"] == name] == [1]
    assert (job["state"], job["lane"], job["kind"]) == ("succeeded", "interactive", "rag")
    assert job["result"]["answer"] == asked["answer"]


def test_collections_are_made_where_that_is_wished(api_url: str, process: Process) -> None:
    name = f"{new_collection(process)}-2"
    with at_work(process):
        made = answer(api_url, "ingest_text", collection=name, text="Cats sleep.", create=True)
        again = answer(api_url, "ingest_text", collection=name, text="Dogs run.", create=True)
    assert made["chunks"] == again["chunks"] == 1
    later = answer(api_url, "ingest_text", collection=name, text="Birds fly.", wait=False)
    assert (later["state"], later["chunks"]) == ("queued", None)
    with at_work(process):
        ended = answer(api_url, "get_job", job_id=later["job_id"], wait_s=60)
    assert (ended["state"], ended["result"]["chunks"]) == ("succeeded", 1)


def test_no_collection_is_made_whose_model_nobody_runs(
    settings: Settings,
    process: Process,  # noqa: ARG001 (empty tables)
) -> None:
    own = settings.model_copy(update={"embedding_model": "openai/tiny", "openai_base_url": None})
    with served(own) as url:
        result = call(url, "ingest_text", collection="unset", text="a", create=True)
    assert result.is_error
    assert "SLUICE_OPENAI_BASE_URL" in text_of(result)


def test_what_is_wrong_with_a_call_the_model_reads_with_what_to_do(
    api_url: str, process: Process
) -> None:
    name = new_collection(process)
    there = {"collection": name}
    search, ask = there | {"query": "x"}, there | {"question": "x"}
    wrong: list[tuple[str, dict[str, Any], str]] = [
        ("search", {"collection": "nowhere", "query": "x"}, "no collection 'nowhere'"),
        ("search", {"collection": "nowhere", "query": "x"}, name),
        ("ingest_text", {"collection": "nowhere", "text": "x"}, "create=true"),
        ("search", there, "query: is required"),
        ("search", search | {"k": 0}, "k: "),
        ("search", search | {"kk": 1}, "there is no such field"),
        ("search", search | {"collection": "a/b"}, "128 letters"),
        ("search", search | {"filter": {"a": {"$x": 1}}}, "$x"),
        ("search", search | {"type": "exact"}, "hybrid"),
        ("search", search | {"score_threshold": 0.5}, "type"),
        ("ask", ask | {"model": "gpt"}, "model"),
        ("ask", ask | {"model": "hf/no/such"}, "No worker serves the model 'hf/no/such'. There"),
        ("ask", ask | {"prompt": "none"}, "extractive"),
        ("ask", ask | {"prompt": "none", "model": "ollama/tiny"}, "no prompt 'none'"),
        ("ingest_text", there | {"text": ""}, "text"),
        ("ingest_text", there | {"text": "x", "metadata": {"a": {}}}, "metadata"),
        ("get_job", {"job_id": "1"}, "job_id"),
        ("get_job", {"job_id": "01a21957-3c86-7c1b-9aaa-000000000001"}, "no job"),
        ("list_collections", {"cursor": "x"}, "cursor"),
    ]

    async def work(client: Client) -> list[CallToolResult]:
        return [await client.call_tool(tool, arguments) for tool, arguments, _ in wrong]

    for (tool, arguments, words), result in zip(wrong, run(api_url, work), strict=True):
        assert result.is_error, (tool, arguments)
        assert result.structured_content is None
        assert words in text_of(result), (tool, arguments)


@each_era
def test_a_job_that_fails_is_a_failed_call(api_url: str, process: Process, era: Era) -> None:
    name = new_collection(process)
    with at_work(process):
        answer(api_url, "ingest_text", collection=name, text="Cats sleep.")
        result = call(
            api_url, "ask", era, collection=name, question="x" * 50_000, model="ollama/tiny"
        )
    assert result.is_error
    assert "larger window" in text_of(result)


def test_a_tool_that_there_is_not_is_an_error_of_the_protocol(api_url: str) -> None:
    async def work(client: Client) -> None:
        with pytest.raises(MCPError, match=r"no tool 'erase'; there are: search, ask"):
            await client.call_tool("erase", {})

    run(api_url, work)


@each_era
def test_progress_is_told(api_url: str, process: Process, era: Era) -> None:
    name = new_collection(process)
    told: list[tuple[float, float | None, str | None]] = []

    async def note(progress: float, total: float | None, message: str | None) -> None:
        told.append((progress, total, message))

    async def work(client: Client) -> Any:
        arguments = {"collection": name, "query": "x"}
        calling = asyncio.create_task(client.call_tool("search", arguments, progress_callback=note))
        while not told:
            await asyncio.sleep(0.01)
        with at_work(process):
            return await calling

    assert not run(api_url, work, era).is_error
    assert "No living worker" in str(told[0][2])
    values = [progress for progress, _, _ in told]
    assert values == sorted(set(values))


@each_era
def test_a_request_that_is_cancelled_ends_its_job(
    api_url: str, ledger: Ledger, process: Process, era: Era
) -> None:
    name = new_collection(process)

    async def work(client: Client) -> None:
        arguments = {"collection": name, "query": "x"}
        calling = asyncio.create_task(client.call_tool("search", arguments))
        while only_job(ledger) is None:
            await asyncio.sleep(0.01)
        calling.cancel()
        while (job := only_job(ledger)) is not None and job.state != "cancelled":
            await asyncio.sleep(0.01)
        # The connection goes on.
        assert len((await client.list_tools()).tools) == len(TOOLS)

    run(api_url, lambda client: asyncio.wait_for(work(client), PATIENCE_S), era)


@each_era
def test_a_client_that_goes_away_ends_its_job(
    api_url: str, ledger: Ledger, process: Process, era: Era
) -> None:
    name = new_collection(process)
    message = {
        "jsonrpc": "2.0",
        "id": 1,
        "method": "tools/call",
        "params": {"name": "search", "arguments": {"collection": name, "query": "x"}},
    }
    headers = HEADERS
    if era == "auto":
        message["params"] |= {"_meta": MODERN}  # type: ignore[operator]
        headers = HEADERS | {
            "MCP-Protocol-Version": "2026-07-28",
            "Mcp-Method": "tools/call",
            "Mcp-Name": "search",
        }
    with (
        httpx.Client(base_url=api_url, trust_env=False, timeout=0.5) as http,
        pytest.raises(httpx.ReadTimeout),
    ):
        http.post("/mcp", json=message, headers=headers)
    assert only_job(ledger) is not None
    until(lambda: (job := only_job(ledger)) is not None and job.state == "cancelled")


HEADERS = {
    "Authorization": f"Bearer {SECRET}",
    "Accept": "application/json, text/event-stream",
}
MODERN = {
    "io.modelcontextprotocol/protocolVersion": "2026-07-28",
    "io.modelcontextprotocol/clientCapabilities": {},
}


def test_a_session_is_of_its_key_alone(api_url: str, ledger: Ledger, process: Process) -> None:
    """Who guesses a session and the number of its request cancels nothing with another key."""
    name = new_collection(process)
    session = HEADERS | {"Mcp-Session-Id": "guessed"}
    other = session | {"Authorization": f"Bearer {SECRET}-2"}
    call = {
        "jsonrpc": "2.0",
        "id": 7,
        "method": "tools/call",
        "params": {"name": "search", "arguments": {"collection": name, "query": "x"}},
    }
    cancelled = {
        "jsonrpc": "2.0",
        "method": "notifications/cancelled",
        "params": {"requestId": 7},
    }
    with httpx.Client(base_url=api_url, trust_env=False, timeout=PATIENCE_S) as http:
        calling = threading.Thread(target=lambda: http.post("/mcp", json=call, headers=session))
        calling.start()
        until(lambda: only_job(ledger) is not None)
        assert http.post("/mcp", json=cancelled, headers=other).status_code == 202
        job = only_job(ledger)
        assert job is not None
        assert job.state == "queued"

        def ask_again() -> bool:
            assert http.post("/mcp", json=cancelled, headers=session).status_code == 202
            job = only_job(ledger)
            return job is not None and job.state == "cancelled"

        until(ask_again)
        calling.join()


def test_stored_prompts_are_prompts_of_the_protocol(api: httpx.Client, api_url: str) -> None:
    body = {"template": "Hello {who}{mark}", "variables": {"mark": {"default": "!"}}}
    api.put("/v1/prompts/greeting", json=body, headers=HEADERS).raise_for_status()

    async def work(client: Client) -> tuple[Any, Any]:
        listed = (await client.list_prompts()).prompts
        got = await client.get_prompt("greeting@1", {"who": "Ada"})
        with pytest.raises(MCPError, match="needs who"):
            await client.get_prompt("greeting", {})
        with pytest.raises(MCPError, match="no prompt 'none'"):
            await client.get_prompt("none", {})
        return listed, got

    listed, got = run(api_url, work)
    assert [(p.name, [(a.name, a.required) for a in p.arguments]) for p in listed] == [
        ("greeting", [("who", True), ("mark", False)])
    ]
    assert got.messages[0].content.text == "Hello Ada!"


LIST = {"jsonrpc": "2.0", "id": 1, "method": "tools/list"}


@pytest.mark.parametrize(
    ("method", "changes", "content", "status", "code", "words"),
    [
        ("POST", {"Authorization": "Bearer wrong"}, LIST, 401, -32600, "API key"),
        ("POST", {"Accept": "application/json"}, LIST, 406, -32600, "text/event-stream"),
        ("POST", {"Content-Type": "text/plain"}, LIST, 415, -32600, "application/json"),
        ("POST", {}, b"{", 400, -32700, "not valid JSON"),
        ("POST", {}, b'{"a": "\\u0000"}', 422, -32600, "NUL"),
        ("POST", {}, [LIST], 422, -32600, "one JSON-RPC message"),
        ("POST", {"MCP-Protocol-Version": "1999-01-01"}, LIST, 400, None, ""),
        ("GET", {}, None, 405, -32600, "GET is not a method"),
        ("DELETE", {}, None, 405, -32600, "DELETE is not a method"),
    ],
)
def test_errors_are_those_of_json_rpc(
    api: httpx.Client,
    method: str,
    changes: dict[str, str],
    content: Any,
    status: int,
    code: int | None,
    words: str,
) -> None:
    data = content if isinstance(content, bytes | None) else json.dumps(content).encode()
    headers = {"Content-Type": "application/json"} | HEADERS | changes
    response = api.request(method, "/mcp", content=data, headers=headers)
    assert response.status_code == status, response.text
    body = response.json()
    assert body["jsonrpc"] == "2.0"
    assert code in (None, body["error"]["code"]), body
    assert words in body["error"]["message"]
    if status == 401:
        assert response.headers["www-authenticate"] == "Bearer"
