"""The `openai` package, unchanged, with batches: sync and async."""

import asyncio
import base64
import json
import struct
from collections.abc import Iterator
from typing import Any

import httpx
import pytest
from openai import AsyncOpenAI, BadRequestError, NotFoundError, OpenAI
from openai.types import CreateEmbeddingResponse
from openai.types.chat import ChatCompletion

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.database.transaction import Ledger
from tests.integration.ingestion import CATS, TRAINS, ingest, new_collection
from tests.integration.job_runner import drain, make_process
from workers.attempts.process import Process


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings, batch_interval_s=0.01)
    yield process
    process.close()


@pytest.fixture
def client(api: httpx.Client) -> Iterator[OpenAI]:
    with OpenAI(
        base_url=f"{api.base_url}/openai/v1",
        api_key="none",
        max_retries=0,
        _strict_response_validation=True,
    ) as client:
        yield client


def line(n: int, url: str = "/v1/embed", **body: Any) -> dict[str, Any]:
    return {
        "custom_id": f"line-{n}", "method": "POST", "url": url,
        "body": body or {"texts": [f"text {n}"]},
    }  # fmt: skip


def upload(client: OpenAI, lines: list[dict[str, Any]]) -> str:
    data = "".join(f"{json.dumps(one)}\n" for one in lines).encode()
    return client.files.create(file=("lines.jsonl", data), purpose="batch").id


def create(client: OpenAI, lines: list[dict[str, Any]], **fields: Any) -> Any:
    options: dict[str, Any] = {"endpoint": "mixed", "completion_window": "24h"} | fields
    return client.batches.create(input_file_id=upload(client, lines), **options)


def test_a_batch_runs_and_its_files_are_read(client: OpenAI, process: Process) -> None:
    lines = [line(0), line(1, "/v1/search", collection="not-there", query="x"), line(2)]
    batch = create(client, lines, metadata={"team": "a"})
    assert batch.object == "batch"
    assert batch.id.startswith("batch_")
    assert batch.status == "validating"
    assert (batch.endpoint, batch.completion_window) == ("mixed", "24h")
    assert batch.expires_at - batch.created_at == pytest.approx(86_400, abs=5)
    drain(process)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed"
    assert batch.request_counts is not None
    assert batch.request_counts.model_dump() == {"total": 3, "completed": 2, "failed": 1}
    assert batch.in_progress_at
    assert batch.finalizing_at
    assert batch.completed_at
    assert batch.metadata == {"team": "a"}
    assert batch.output_file_id is not None
    assert batch.error_file_id is not None
    rows = [json.loads(row) for row in client.files.content(batch.output_file_id).iter_lines()]
    assert [row["custom_id"] for row in rows] == ["line-0", "line-2"]
    assert all(row["response"]["status_code"] == 200 and row["error"] is None for row in rows)
    assert len({row["id"] for row in rows}) == 2
    (failed,) = map(json.loads, client.files.content(batch.error_file_id).iter_lines())
    assert failed["custom_id"] == "line-1"
    assert failed["response"]["status_code"] == 404
    assert failed["response"]["body"]["error"]["type"] == "invalid_request_error"
    file = client.files.retrieve(batch.output_file_id)
    assert file.purpose == "batch_output"
    assert file.bytes == len(client.files.content(batch.output_file_id).content)


def test_lines_of_its_own_endpoints_are_answered_as_calls_are(
    client: OpenAI, process: Process
) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats.txt": CATS, "trains.txt": TRAINS})
    model = DEFAULT_EMBEDDING_MODEL
    question = [{"role": "user", "content": "How long does a cat sleep?"}]
    lines = [
        line(0, "/v1/embeddings", model=model, input=["one", "two"]),
        line(1, "/v1/embeddings", model=model, input="one", encoding_format="base64"),
        line(2, "/v1/chat/completions", model=f"rag/{collection}", messages=question),
        line(3, "/v1/chat/completions", model="rag/not-there", messages=question),
    ]
    batch = create(client, lines)
    drain(process)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "completed", batch
    assert batch.output_file_id is not None
    rows = [json.loads(row) for row in client.files.content(batch.output_file_id).iter_lines()]
    assert [row["custom_id"] for row in rows] == ["line-0", "line-1", "line-2"]
    floats = CreateEmbeddingResponse.model_validate(rows[0]["response"]["body"])
    assert [item.index for item in floats.data] == [0, 1]
    packed = base64.b64decode(rows[1]["response"]["body"]["data"][0]["embedding"])
    assert struct.unpack("<384f", packed) == pytest.approx(floats.data[0].embedding, abs=1e-5)
    chat = ChatCompletion.model_validate(rows[2]["response"]["body"])
    assert chat.id.startswith("chatcmpl-")
    assert "fifteen hours" in (chat.choices[0].message.content or "")
    (failed,) = [
        json.loads(row) for row in client.files.content(batch.error_file_id or "").iter_lines()
    ]
    assert failed["response"]["status_code"] == 404
    assert batch.usage is not None
    assert batch.usage.input_tokens > 0


BAD_BODIES: list[tuple[str, dict[str, Any], str]] = [
    ("/v1/chat/completions", {"messages": [{"role": "user", "content": "x"}]}, "model"),
    ("/v1/chat/completions", {"model": "extractive", "messages": []}, "messages"),
    ("/v1/chat/completions", {"model": "ollama/x", "messages": [
        {"role": "user", "content": "x"}], "stream": True}, "stream"),
    ("/v1/embeddings", {"model": "m", "input": [[1, 2]]}, "check_embedding_ctx_length"),
    ("/v1/embeddings", {"model": "m", "input": "x", "nothing": 1}, "nothing"),
    ("/v1/completions", {"model": "ollama/x"}, "prompt"),
]  # fmt: skip


def test_bad_bodies_are_named_by_their_lines(client: OpenAI, process: Process) -> None:
    batch = create(client, [line(n, url, **body) for n, (url, body, _) in enumerate(BAD_BODIES)])
    drain(process)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    errors = (batch.errors.data if batch.errors else None) or []
    assert [error.line for error in errors] == [*range(1, len(BAD_BODIES) + 1)]
    for error, (_, _, words) in zip(errors, BAD_BODIES, strict=True):
        assert words in f"{error.param} {error.message}", error


def test_a_bad_file_fails_with_its_lines(client: OpenAI, process: Process) -> None:
    batch = create(client, [line(0), line(0), line(1, "/v1/none")])
    drain(process)
    batch = client.batches.retrieve(batch.id)
    assert batch.status == "failed"
    assert batch.failed_at
    assert batch.errors is not None
    assert batch.errors.object == "list"
    assert [(one.line, one.code, one.param) for one in batch.errors.data or []] == [
        (2, "duplicate_custom_id", "custom_id"), (3, "invalid_url", "url"),
    ]  # fmt: skip
    assert batch.output_file_id is None


def test_cancelling_keeps_what_is_done(client: OpenAI, process: Process) -> None:
    batch = create(client, [line(n) for n in range(5)])
    cancelled = client.batches.cancel(batch.id)
    assert cancelled.status in ("cancelling", "cancelled")
    drain(process)
    cancelled = client.batches.retrieve(batch.id)
    assert cancelled.status == "cancelled"
    assert cancelled.cancelled_at
    assert client.batches.cancel(batch.id).status == "cancelled"


def test_lists_are_read_page_by_page(client: OpenAI, api: httpx.Client, process: Process) -> None:
    assert client.batches.list().data == []
    made = [create(client, [line(n)]).id for n in range(3)]
    first = client.batches.list(limit=2)
    assert [batch.id for batch in first.data] == made[:0:-1]
    assert first.has_more
    assert [batch.id for batch in client.batches.list(limit=2)] == made[::-1]

    async def listed() -> list[str]:
        async with AsyncOpenAI(base_url=f"{api.base_url}/openai/v1", api_key="none") as several:
            retrieved = await several.batches.retrieve(made[0])
            assert retrieved.id == made[0]
            return [batch.id async for batch in several.batches.list(limit=1)]

    assert asyncio.run(listed()) == made[::-1]
    drain(process)


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"endpoint": "/v1/images/generations"}, "endpoint"),
        ({"completion_window": "soon"}, "completion_window"),
        ({"extra_body": {"priority": 1}}, "priority"),
        ({"metadata": {str(n): "x" for n in range(17)}}, "metadata"),
        ({"output_expires_after": {"anchor": "created_at", "seconds": 1}}, "output_expires_after"),
    ],
)
def test_bad_requests_name_the_parameter(
    client: OpenAI, fields: dict[str, Any], param: str
) -> None:
    with pytest.raises(BadRequestError) as caught:
        create(client, [line(0)], **fields)
    body: Any = caught.value.body
    assert str(body["param"]).startswith(param), body
    assert body["type"] == "invalid_request_error"


def test_what_is_not_there_is_not_found(client: OpenAI) -> None:
    with pytest.raises(NotFoundError):
        client.batches.retrieve("batch_" + "0" * 32)
    with pytest.raises(NotFoundError):
        client.batches.retrieve("nonsense")
    with pytest.raises(NotFoundError):
        client.batches.list(after="batch_x")
    with pytest.raises(NotFoundError):
        client.batches.create(
            input_file_id="file-" + "0" * 32,
            endpoint="mixed",  # type: ignore[arg-type]
            completion_window="24h",
        )
