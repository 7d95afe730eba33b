"""A small stand-in for the API, served over real HTTP on the loopback, for tests of the client.

It does no work, and keeps what it is sent in memory. Tests steer it through the public fields of
`State`. Every exchange is compared with the OpenAPI document of the real API (`contract.py`).
"""

import asyncio
import hashlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import uvicorn
from fastapi import Depends, FastAPI, HTTPException, Request, Response
from fastapi.responses import JSONResponse, StreamingResponse
from starlette.types import ASGIApp

from tests.integration.contract import OFF_CONTRACT, Checked
from tests.integration.fake_bodies import (
    NOW,
    WORKER,
    hf_result,
    make_collection,
    make_conversation,
    make_document,
    make_index,
    make_job,
    make_model,
    page,
    problem,
    result_of,
)

RETIRED = {"state": "retired", "can_roll_back": True, "kept_until": NOW}


@dataclass(kw_only=True)
class State:
    jobs: dict[str, dict[str, Any]] = field(default_factory=dict)
    keys: dict[str, str] = field(default_factory=dict)
    files: dict[str, dict[str, Any]] = field(default_factory=dict)
    collections: set[str] = field(default_factory=set)
    requests: list[tuple[str, str]] = field(default_factory=list)
    last_event_ids: list[str | None] = field(default_factory=list)
    api_key: str | None = None
    busy_times: int = 0
    """So many submits are answered 429 first."""
    lost_answers: int = 0
    """So many submits and deletions are carried out, and their connection is dropped without an
    answer."""
    dropped_indexes: set[str] = field(default_factory=set)
    dropped_streams: int = 0
    """So many event streams end after their first event."""
    held_uploads: bool = False
    """Uploads after the first are not answered."""
    broken_uploads: int = 0
    """So many uploads lose their connection."""
    outcome: str = "succeeded"
    """How jobs end; `running` ones never do."""
    max_file_bytes: int = 1000
    job_errors: list[dict[str, str]] = field(default_factory=list)
    ready: bool = True
    paused: bool = True
    """The one queue."""
    prefixed: dict[str, list[str]] = field(default_factory=dict)
    """Ids besides those of jobs and conversations, by type."""
    script: list[dict[str, Any]] = field(default_factory=list)
    """What jobs that generate tell, as `token` and `tool` events in order."""
    cuts: list[int] = field(default_factory=list)
    """So many events of the script each connection gets, until these are used up; the jobs end
    while nobody listens."""
    waiting_for: str | None = None
    reasons: list[str | None] = field(default_factory=list)
    """What a running job waits for, one for each time that it is looked at; with the last one the
    jobs end as succeeded."""
    warnings: list[str] = field(default_factory=list)
    """What jobs that succeed warn of."""
    results_are_large: bool = False
    large_results: dict[str, Any] = field(default_factory=dict)
    """Results by job that are not in the job's own view."""
    conversations: dict[str, dict[str, Any]] = field(default_factory=dict)
    models: dict[str, dict[str, Any]] = field(default_factory=dict)
    documents: list[dict[str, Any]] = field(default_factory=list)
    """Those of every collection; else it has three."""
    problems: list[tuple[int, str | None, str]] = field(default_factory=list)
    """Status, `Retry-After` and media type of what the next questions for queues are answered."""

    def loses_answer(self) -> bool:
        is_lost = self.lost_answers > 0
        self.lost_answers -= is_lost
        return is_lost

    def count(self, method: str, path: str) -> int:
        return self.requests.count((method, path))


def make_app(state: State) -> FastAPI:
    def note(request: Request) -> None:
        state.requests.append((request.method, request.url.path))
        authorization = f"Bearer {state.api_key}"
        if request.url.path in ("/healthz", "/readyz"):
            return
        if state.api_key and request.headers.get("Authorization") != authorization:
            raise HTTPException(401, "Send a valid API key.")

    app = FastAPI(dependencies=[Depends(note)])

    @app.exception_handler(HTTPException)
    def refused(_: Request, error: HTTPException) -> Response:
        return problem(error.status_code, "Refused", error.detail)

    @app.post("/v1/jobs")
    async def submit(request: Request) -> Response:
        if state.busy_times:
            state.busy_times -= 1
            return problem(429, "Queue full", "The queue is full.", {"Retry-After": "0"})
        body = await request.json()
        if body["kind"] == "nonsense":
            entry = {"field": "kind", "message": "unknown kind"}
            return problem(422, "Invalid", "The request is not valid.", errors=[entry])
        key = request.headers["Idempotency-Key"]
        job_id = state.keys.setdefault(key, str(uuid.uuid4()))
        state.jobs.setdefault(job_id, make_job(job_id, body))
        if state.loses_answer():
            return StreamingResponse(broken())
        if "Prefer" in request.headers and state.outcome != "running":
            return JSONResponse(finish(state, job_id))
        return JSONResponse(state.jobs[job_id], 202)

    @app.post("/v1/jobs/batch")
    async def submit_batch(request: Request) -> Response:
        if state.lost_answers:
            return StreamingResponse(broken())
        ids = [str(uuid.uuid4()) for _ in (await request.json())["jobs"]]
        return JSONResponse({"ids": ids}, 202)

    @app.get("/v1/jobs")
    def list_jobs(limit: int, cursor: int = 0) -> Response:
        return page(list(reversed(state.jobs.values())), limit, cursor)

    @app.get("/v1/jobs/{job_id}")
    def one_job(job_id: str) -> Response:
        job = state.jobs.get(job_id)
        if job is None:
            return problem(404, "Not found", f"No job {job_id}.")
        if state.reasons:
            state.waiting_for = state.reasons.pop(0)
            if not state.reasons:
                state.outcome = "succeeded"
        return JSONResponse({**job, "waiting_for": state.waiting_for})

    @app.get("/v1/jobs/{job_id}/events")
    def events(job_id: str, request: Request) -> Response:
        if job_id not in state.jobs:
            return problem(404, "Not found", f"No job {job_id}.")
        last = request.headers.get("Last-Event-ID")
        state.last_event_ids.append(last)
        return StreamingResponse(stream(state, job_id, last), media_type="text/event-stream")

    @app.post("/v1/jobs/{job_id}/cancel")
    def cancel(job_id: str) -> Response:
        if job_id not in state.jobs:
            return problem(404, "Not found", f"No job {job_id}.")
        state.jobs[job_id] |= {"state": "cancelled", "finished_at": NOW}
        return JSONResponse(state.jobs[job_id])

    @app.post("/v1/jobs/{job_id}/retry")
    def retry(job_id: str) -> Response:
        return problem(409, "Conflict", f"Job {job_id} has not failed.")

    @app.put("/v1/collections/{name}")
    def put_collection(name: str) -> Response:
        state.collections.add(name)
        return JSONResponse(make_collection(name), 201)

    @app.get("/v1/collections")
    def list_collections(limit: int, cursor: int = 0) -> Response:
        return page([make_collection(name) for name in sorted(state.collections)], limit, cursor)

    @app.get("/v1/collections/{name}")
    def one_collection(name: str) -> Response:
        if name not in state.collections:
            return problem(404, "Not found", f"There is no collection {name}.")
        indexes = [make_index(name), make_index(f"{name}.2", **RETIRED)]
        return JSONResponse(make_collection(name) | {"indexes": indexes})

    @app.delete("/v1/collections/{name}/indexes/{index}")
    def drop_index(name: str, index: str, forget: bool = False) -> Response:
        del forget
        if index == name:
            return problem(409, "Conflict", f"{index} is the index that searches read.")
        if index in state.dropped_indexes:
            return problem(404, "Not found", f"There is no index {index}.")
        state.dropped_indexes.add(index)
        if state.loses_answer():
            return StreamingResponse(broken())
        return JSONResponse(make_index(index, **RETIRED), 202)

    @app.post("/v1/collections/{name}/rebuild")
    async def rebuild(name: str, request: Request) -> Response:
        return submit_rebuild({"collection": name, **await request.json()})

    @app.post("/v1/collections/{name}/rollback")
    async def roll_back(name: str, request: Request) -> Response:
        return submit_rebuild({"collection": name, "rollback": True, **await request.json()})

    def submit_rebuild(job_input: dict[str, Any]) -> Response:
        job_id = str(uuid.uuid4())
        state.jobs[job_id] = make_job(job_id, {"kind": "rebuild", "input": job_input})
        return JSONResponse(state.jobs[job_id], 202, {"Location": f"/v1/jobs/{job_id}"})

    @app.delete("/v1/collections/{name}")
    def delete_collection(name: str, request: Request) -> Response:
        key = request.headers["Idempotency-Key"]
        if name not in state.collections and key not in state.keys:
            return problem(404, "Not found", f"There is no collection {name}.")
        state.collections.discard(name)
        job_id = state.keys.setdefault(key, str(uuid.uuid4()))
        state.jobs[job_id] = make_job(job_id, {"kind": "erase", "input": {"collection": name}})
        if state.loses_answer():
            return StreamingResponse(broken())
        return JSONResponse(state.jobs[job_id], 202)

    @app.get("/v1/collections/{name}/documents")
    def documents(name: str, limit: int, cursor: int = 0) -> Response:
        items = state.documents or [make_document(name, number) for number in range(3)]
        return page(items, limit, cursor)

    @app.get("/v1/documents/{document_id}")
    def document(document_id: str) -> Response:
        return problem(404, "Not found", f"There is no document {document_id}.")

    @app.get("/v1/files")
    def files_by_hash(request: Request) -> Response:
        hashes = set(request.query_params.getlist("sha256"))
        items = [file for file in state.files.values() if file["sha256"] in hashes]
        return JSONResponse({"items": items})

    @app.post("/v1/files")
    async def upload(request: Request) -> Response:
        if int(request.headers["Content-Length"]) > state.max_file_bytes + 1000:
            # As the real one does: refused before the body is read.
            return problem(413, "Too large", "The file is larger than the server accepts.")
        while state.held_uploads and state.files:
            await asyncio.sleep(0.02)
        if state.broken_uploads:
            state.broken_uploads -= 1
            return StreamingResponse(broken())
        async with request.form() as form:
            return await store(state, form["file"])

    @app.get("/v1/queues")
    def queues() -> Response:
        if state.problems:
            status, retry_after, media_type = state.problems.pop(0)
            headers = {OFF_CONTRACT.decode(): "a gateway, or any status"}
            if retry_after is not None:
                headers["Retry-After"] = retry_after
            body = {"title": "Away", "status": status, "detail": "Ollama does not answer."}
            return JSONResponse(body, status, headers, media_type)
        return JSONResponse({"items": [queue()]})

    def queue() -> dict[str, Any]:
        counts = {"queued": 3, "running": 1, "messages": 3}
        return {"name": "ingest", "paused": state.paused, **counts}

    @app.post("/v1/queues/{name}/{action}")
    def pause(name: str, action: str) -> Response:
        if name != "ingest":
            return problem(404, "Not found", f"There is no queue {name!r}; there are ingest.")
        state.paused = action == "pause"
        return JSONResponse(queue())

    @app.get("/v1/ids")
    def ids(type: str, prefix: str) -> Response:
        made = {"job": state.jobs, "conversation": state.conversations}.get(type, {})
        known = [*made, *state.prefixed.get(type, [])]
        digits = prefix.replace("-", "").lower()
        matches = [id_ for id_ in known if id_.replace("-", "").startswith(digits)]
        return JSONResponse({"items": [{"id": id_} for id_ in matches[:10]]})

    @app.get("/v1/workers")
    def workers() -> Response:
        return JSONResponse({"items": [WORKER]})

    @app.get("/healthz")
    def health() -> Response:
        return JSONResponse({"status": "ok"})

    @app.get("/readyz")
    def ready() -> Response:
        checks = {
            "database": {"ok": state.ready, "detail": "no answer"},
            "sweeper": {"ok": True, "detail": "ran 0.4 s ago"},
        }
        status = "ready" if state.ready else "not ready"
        return JSONResponse({"status": status, "checks": checks}, 200 if state.ready else 503)

    # Models and conversations

    def missing(conversation_id: str) -> Response:
        return problem(404, "Not found", f"There is no conversation {conversation_id}.")

    @app.get("/v1/models")
    def list_models() -> Response:
        models = [
            make_model("extractive", ["rag"]),
            *(
                {**make_model(name, ["chat"]), "base": details.get("from")}
                for name, details in state.models.items()
            ),
        ]
        return JSONResponse({"items": models})

    @app.get("/v1/models/{name:path}")
    def model(name: str) -> Response:
        if name not in state.models:
            return problem(404, "Not found", f"There is no model {name}.")
        view = make_model(name, ["chat"])
        return JSONResponse({**view, "details": state.models[name]})

    @app.put("/v1/models/{name:path}")
    async def define(name: str, request: Request) -> Response:
        state.models[name] = {"from": "ollama/tiny", "sent": await request.json()}
        view = make_model(name, ["chat"])
        return JSONResponse({**view, "details": state.models[name]}, 201)

    @app.delete("/v1/models/{name:path}")
    def undefine(name: str) -> Response:
        del state.models[name]
        return Response(status_code=204)

    @app.post("/v1/conversations")
    async def start(request: Request) -> Response:
        id_ = str(uuid.uuid4())
        body = await request.json()
        state.conversations[id_] = make_conversation(id_, **body)
        return JSONResponse(state.conversations[id_], 201)

    @app.get("/v1/conversations")
    def conversations(limit: int, cursor: int = 0) -> Response:
        return page(list(reversed(state.conversations.values())), limit, cursor)

    @app.get("/v1/conversations/{conversation_id}")
    def conversation(conversation_id: str) -> Response:
        stored = state.conversations.get(conversation_id)
        return missing(conversation_id) if stored is None else JSONResponse(stored)

    @app.get("/v1/conversations/{conversation_id}/messages")
    def list_messages(conversation_id: str) -> Response:
        if conversation_id not in state.conversations:
            return missing(conversation_id)
        call = {"id": "1", "function": {"name": "calculator", "arguments": {"expression": "6*7"}}}
        messages: list[dict[str, Any]] = [
            {"role": "user", "content": "얼마예요?"},
            {"role": "assistant", "content": "", "tool_calls": [call]},
        ]
        items = [{"message": message, "job_id": None, "created_at": NOW} for message in messages]
        return JSONResponse({"items": items})

    @app.delete("/v1/conversations/{conversation_id}")
    def erase(conversation_id: str) -> Response:
        if state.conversations.pop(conversation_id, None) is None:
            return missing(conversation_id)
        if state.loses_answer():
            return StreamingResponse(broken())
        return Response(status_code=204)

    # Results that are large, and files

    @app.get("/v1/jobs/{job_id}/result")
    def result(job_id: str) -> Response:
        if job_id not in state.large_results:
            return problem(404, "Not found", f"Job {job_id} has no result.")
        return JSONResponse(state.large_results[job_id])

    @app.delete("/v1/files/{file_id}")
    def delete_file(file_id: str) -> Response:
        if state.files.pop(file_id, None) is None:
            return problem(404, "Not found", f"There is no file {file_id}.")
        return Response(status_code=204)

    return app


async def store(state: State, upload: Any) -> Response:
    data = await upload.read()
    if not data:
        return problem(422, "Invalid", f"{upload.filename} is empty.")
    file_id = str(uuid.uuid4())
    state.files[file_id] = {
        "id": file_id,
        "name": upload.filename,
        "size_bytes": len(data),
        "sha256": hashlib.sha256(data).hexdigest(),
        "content_type": upload.content_type,
        "created_at": NOW,
    }
    return JSONResponse(state.files[file_id], 201)


def stream(state: State, job_id: str, last: str | None) -> Iterator[bytes]:
    if last is None:
        yield b': hello\n\nid: 1-0\nevent: state\ndata: {"state": "running"}\n\n'
        if state.dropped_streams:
            state.dropped_streams -= 1
            raise ConnectionError("dropped on purpose")
    if state.script:
        yield from script_from(state, job_id, last)
    else:
        yield b'id: 2-0\nevent: progress\ndata: {"done": 1, "total": 2, "unit": "documents"}\n\n'
    while state.outcome == "running" and state.jobs[job_id]["state"] != "cancelled":
        time.sleep(0.02)
        yield b": still here\n"
    data = json.dumps(finish(state, job_id), ensure_ascii=False)
    yield f"id: 3-0\nevent: end\ndata: {data}\n\n".encode()


def script_from(state: State, job_id: str, last: str | None) -> Iterator[bytes]:
    """The script from where the client has it; ids are the number of the event."""
    first = int(last.partition("-")[0]) - 9 if last and last != "1-0" else 0
    cut = state.cuts.pop(0) if state.cuts else None
    for number, event in enumerate(state.script[first:]):
        if number == cut:
            break
        data = {key: value for key, value in event.items() if key != "event"}
        text = json.dumps(data, ensure_ascii=False)
        yield f"id: {first + number + 10}-0\nevent: {event['event']}\ndata: {text}\n\n".encode()
    if cut is not None:
        finish(state, job_id)
        raise ConnectionError("dropped on purpose")


def broken() -> Iterator[bytes]:
    yield b"{"
    raise ConnectionError("dropped on purpose")


def answering(answers: Mapping[str, object]) -> FastAPI:
    """A server of something else: each path answers a GET with its document."""
    app = FastAPI()

    @app.get("/{path:path}")
    def answer(path: str) -> JSONResponse:
        if f"/{path}" not in answers:
            return JSONResponse({"detail": "Not Found"}, 404)
        return JSONResponse(answers[f"/{path}"])

    return app


def finish(state: State, job_id: str) -> dict[str, Any]:
    job = state.jobs[job_id]
    if job["state"] == "cancelled":
        return job
    job |= {"state": state.outcome, "finished_at": NOW}
    if state.outcome == "failed":
        job["error"] = {"type": "Permanent", "message": "The model is not there."}
    elif state.outcome == "succeeded":
        if job["kind"] == "hf":
            keep_result(state, job, hf_result(job["input"], state.files))
        else:
            keep_result(state, job, result_of(job, state.job_errors, state.script))
    return job


def keep_result(state: State, job: dict[str, Any], result: Any) -> None:
    """With the job, or beside it, and what it warns of."""
    job["warnings"] = state.warnings
    if state.results_are_large:
        state.large_results[job["id"]] = result
        job["result_url"] = f"/v1/jobs/{job['id']}/result"
    else:
        job["result"] = result


@contextmanager
def serving(state: State, port: int = 0) -> Iterator[str]:
    """Serve until the end of the block; yields the URL."""
    app = Checked(make_app(state))
    with listening(app, port) as url:
        yield url
    assert not app.violations, "\n".join(["not as the real API", *app.violations])


@contextmanager
def listening(app: ASGIApp, port: int = 0) -> Iterator[str]:
    config = uvicorn.Config(
        app, port=port, log_level="critical", ws="none", lifespan="off",
        timeout_graceful_shutdown=1,
    )  # fmt: skip
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run)
    thread.start()
    while not server.started:
        time.sleep(0.01)
    try:
        yield f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}"
    finally:
        server.should_exit = True
        thread.join()
