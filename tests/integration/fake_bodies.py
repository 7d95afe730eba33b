"""The bodies that `fake_api` answers with, in the shapes of the API's own document."""

from typing import Any
from uuid import UUID, uuid4

from fastapi import Response
from fastapi.responses import JSONResponse

from shared.kinds.hf import TASKS, Task
from tests.wire.hub_script import ANSWERS

NESTED = {
    Task("summarization"),
    Task("translation"),
    Task("text-classification"),
    Task("text-generation"),
}
"""The API answers with a list to one input of these."""


NOW = "2026-11-24T00:00:00Z"
LONG_KOREAN = "여권 갱신은 만료 여섯 달 전부터 신청할 수 있습니다.\n신분증을 가져오세요. " * 8
HIT = {
    "chunk_id": "c1",
    "document_id": "d1",
    "source": "안내/여권.md",
    "text": LONG_KOREAN,
    "start": 1200,
    "score": 0.8125,
    "metadata": {},
}
WORKER = {
    "name": "cpu-1",
    "hostname": "here",
    "pid": 7,
    "queues": ["ingest"],
    "models": ["ollama"],
    "concurrency": 2,
    "started_at": NOW,
    "last_seen_at": NOW,
    "alive": True,
}
ANSWER = {
    # With an escape sequence, as a document might have one.
    "answer": "만료 여섯 달 전부터 신청할 수 있습니다 [1].\x1b[31m",
    "citations": [{**HIT, "marker": "[1]"}],
    "model": "extractive",
    "usage": {"prompt_tokens": 0, "completion_tokens": 0},
}


def result_of(
    job: dict[str, Any], errors: list[dict[str, str]], script: list[dict[str, Any]]
) -> dict[str, Any]:
    """What a job of this kind ends with; `errors` are those of an ingest job, `script` is what
    one that generates has told."""
    job_input = job["input"]
    if job["kind"] == "chat":
        return chat_result(job_input, script)
    if job["kind"] == "model":
        return {"action": job_input["action"], "name": job_input["name"]}
    if job["kind"] == "ingest":
        added = len(job_input["sources"]) - len(errors)
        counts = {"added": added, "replaced": 0, "skipped": 0, "failed": len(errors)}
        return {"documents": counts, "chunks": 2 * added, "errors": errors}
    if job["kind"] == "embed":
        vectors = [[0.0, 1.0] for _ in job_input["texts"]]
        return {"model": "m", "dimension": 2, "embeddings": vectors}
    if job["kind"] == "search":
        return {"hits": [HIT]}
    if job["kind"] == "eval":
        return eval_result(job_input)
    if job["kind"] == "rebuild":
        return {
            "collection": job_input["collection"], "embedding_model": job_input.get("model", "m"),
            "embedding_model_before": "m", "dimension": 3, "chunks": 0, "comparison": None,
            "rollback_until": None,
        }  # fmt: skip
    if job["kind"] == "check":
        found = {"missing": 2, "surplus": 0, "stale": 0, "wrong": 0, "foreign": 0, "leftover": 0}
        is_dry = job_input.get("dry_run", False)
        return {
            "collection": job_input["collection"], "state": "damaged" if is_dry else "mended",
            "checked": 6, "sampled": 6, **found, "mended": 0 if is_dry else 2,
            "examples": {"missing": ["c1"]}, "rebuild_job_id": None,
        }  # fmt: skip
    if job["kind"] in {"export", "import"}:
        moved = {"embedding_model": "m", "dimension": 3, "documents": 3, "chunks": 6}
        moved["collection"] = job_input.get("collection") or "handbook"
        file = {"file_id": str(uuid4()), "size_bytes": 3, "expires_at": NOW}
        return moved | (file if job["kind"] == "export" else {})
    if job["kind"] == "batch":
        counts = {"total": 2, "succeeded": 2, "failed": 0}
        return counts | {"output_file_id": job_input["file_id"], "error_file_id": None}
    if job["kind"] == "complete":
        usage = {"prompt_tokens": 2, "completion_tokens": 1}
        choice = {"text": "Yes.", "finish_reason": "stop"}
        return {"choices": [choice], "model": "m", "usage": usage}
    if job["kind"] == "erase":
        return {"documents": 3, "chunks": 6, "vectors": 6}
    if script:
        answer = text_of(script)
        return {**ANSWER, "answer": answer, "passages_dropped": 2, "markers_removed": 1}
    return ANSWER


def eval_result(job_input: dict[str, Any]) -> dict[str, Any]:
    """Of three queries, which the first search answers best. JSONB has its keys in this order."""
    names = ["mrr@10", "ndcg@10", "answer@6", "recall@1", "recall@6"]
    figures = [
        {
            "search": search,
            "measures": {
                name: {"value": 0.5 / n, "low": 0.4 / n, "high": 0.625 / n} for name in names
            },
            "times": {"mean_ms": 12.0, "p50_ms": 10.25, "p99_ms": 20.5},
            "places": [[1], [n], []],
            "times_ms": [10.0, 5.5, 20.5],
        }
        for n, search in enumerate(job_input.get("searches", [{"type": "hybrid"}]), start=1)
    ]
    return {
        "collection": job_input["collection"],
        "embedding_model": "all-MiniLM-L6-v2",
        "query_count": 3,
        "k": job_input.get("k", 10),
        "searches": figures,
        "differences": [
            {
                "search": n,
                "measures": {name: {"value": -0.25, "low": -0.5, "high": 0.0} for name in names}
                | {"recall@6": {"value": -0.25, "low": -0.5, "high": -0.125}},
            }
            for n in range(1, len(figures))
        ],
    }


def text_of(script: list[dict[str, Any]]) -> str:
    """What the last step of the script says."""
    tokens = [event for event in script if event["event"] == "token"]
    return "".join(token["text"] for token in tokens if token["step"] == tokens[-1]["step"])


def chat_result(job_input: dict[str, Any], script: list[dict[str, Any]]) -> dict[str, Any]:
    text = text_of(script) if script else job_input["messages"][-1]["content"].upper()
    return {
        "message": {"role": "assistant", "content": text},
        "model": job_input.get("model", "ollama/tiny"),
        "usage": {"prompt_tokens": 3, "completion_tokens": 4},
        "finish_reason": "length" if job_input.get("parameters", {}).get("max_tokens") else "stop",
        "turns": 1,
        "steps": [],
        "messages_dropped": 0,
        "parsed": None,
    }


def make_job(job_id: str, body: dict[str, Any]) -> dict[str, Any]:
    return {
        "id": job_id,
        "kind": body["kind"],
        "state": "queued",
        "lane": body.get("lane", "normal"),
        "queue": "ingest",
        "input": body["input"],
        "result": None,
        "error": None,
        "progress": {"done": 0, "total": None, "unit": "documents"},
        "position": 1,
        "eta_s": 2.5,
        "attempt": 1,
        "max_attempts": 3,
        "metadata": body.get("metadata", {}),
        "created_at": NOW,
        "started_at": None,
        "finished_at": None,
        "a_field_of_a_newer_server": True,
    }


def make_collection(name: str) -> dict[str, Any]:
    shape = {"embedding_model": "all-MiniLM-L6-v2", "dimension": 384, "distance": "cosine"}
    counts = {"documents": 3, "chunks": 6}
    check = {
        "state": "ok", "finished_at": NOW, "job_id": None, "missing": 0, "surplus": 0, "stale": 0,
        "sampled": 6, "wrong": 0, "foreign": 0, "leftover": 0,
    }  # fmt: skip
    store = "chroma://127.0.0.1:8000"
    return {"name": name, **shape, "store": store, **counts, "check": check, "created_at": NOW}


def make_index(name: str, **changes: Any) -> dict[str, Any]:
    shape = {"embedding_model": "all-MiniLM-L6-v2", "dimension": 384, "distance": "cosine"}
    where = {"state": "active", "store": "chroma://127.0.0.1:8000", "chunks": 6}
    rest = {"can_roll_back": False, "job_id": None, "created_at": NOW, "kept_until": None}
    return {"name": name, **shape, **where, **rest, **changes}


def make_conversation(id_: str, **changes: Any) -> dict[str, Any]:
    conversation = {"metadata": {}, "summarize": False, "summary": None, "messages": 2}
    return {"id": id_, **conversation, "created_at": NOW, "updated_at": NOW, **changes}


def make_document(collection: str, number: int) -> dict[str, Any]:
    return {
        "id": str(UUID(int=number)),
        "collection": collection,
        "source": f"docs/{number}.md",
        "sha256": "0" * 64,
        "content_hash": "1" * 64,
        "size_bytes": 10,
        "chunks": 2,
        "metadata": {},
        "source_id": None,
        "container": None,
        "container_sha256": None,
        "is_whole": True,
        "created_at": NOW,
        "updated_at": NOW,
    }


def page(items: list[dict[str, Any]], limit: int, cursor: int) -> Response:
    following = cursor + limit
    next_cursor = str(following) if following < len(items) else None
    return JSONResponse({"items": items[cursor:following], "next_cursor": next_cursor})


def problem(
    status: int,
    title: str,
    detail: str,
    headers: dict[str, str] | None = None,
    errors: list[dict[str, Any]] | None = None,
) -> Response:
    body = {"type": "about:blank", "title": title, "status": status, "detail": detail}
    content = body if errors is None else {**body, "errors": errors}
    return JSONResponse(content, status, headers, "application/problem+json")


def make_model(reference: str, kinds: list[str]) -> dict[str, Any]:
    return {
        "reference": reference,
        "kinds": kinds,
        "default": reference == "extractive",
        "workers": 1,
    }


def hf_result(job_input: dict[str, Any], files: dict[str, dict[str, Any]]) -> Any:
    """What the model behind `tests/wire/hub.py` would say, in the shape of Sluice's results."""
    task = Task(job_input["task"])

    def output(value: Any) -> Any:
        if TASKS[task].input.is_file:
            value = bytes(files[value["file_id"]]["size_bytes"])
        return ANSWERS[task](value, job_input.get("parameters", {}))

    inputs = job_input["inputs"]
    if not isinstance(inputs, list):
        return output(inputs)
    outputs = [output(value) for value in inputs]
    return [one for [one] in outputs] if task in NESTED else outputs
