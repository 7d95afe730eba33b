"""The objects that `fake_api` answers with, in the contract's shapes."""

from typing import Any

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
ANSWER = {
    # With an escape sequence, as a document might have one.
    "answer": "만료 여섯 달 전부터 신청할 수 있습니다 [1].\x1b[31m",
    "citations": [{**HIT, "marker": "[1]"}],
    "model": "extractive",
    "usage": {"prompt_tokens": 0, "completion_tokens": 0},
}


def result_of(job: dict[str, Any], errors: list[dict[str, str]]) -> dict[str, Any]:
    """What a job of this kind ends with; `errors` are those of an ingest job."""
    asked = job["input"]
    if job["kind"] == "ingest":
        added = len(asked["sources"]) - len(errors)
        counts = {"added": added, "replaced": 0, "skipped": 0, "failed": len(errors)}
        return {"documents": counts, "chunks": 2 * added, "errors": errors}
    if job["kind"] == "embed":
        vectors = [[0.0, 1.0] for _ in asked["texts"]]
        return {"model": "m", "dimension": 2, "embeddings": vectors}
    if job["kind"] == "search":
        return {"hits": [HIT]}
    if job["kind"] == "erase":
        return {"documents": 3, "chunks": 6, "vectors": 6}
    return ANSWER


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
    return {"name": name, **shape, "documents": 3, "chunks": 6, "created_at": NOW}


def make_document(collection: str, number: int) -> dict[str, Any]:
    return {
        "id": f"d{number}",
        "collection": collection,
        "source": f"docs/{number}.md",
        "sha256": "0" * 64,
        "content_hash": "1" * 64,
        "size_bytes": 10,
        "chunks": 2,
        "metadata": {},
        "created_at": NOW,
        "updated_at": NOW,
    }
