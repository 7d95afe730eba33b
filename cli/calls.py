"""One method for each call of the HTTP API, typed in and out.

Nothing here waits for anything but the answer, except for events and the end of a job; whole tasks
(`ask`, `ingest`, …) are in `cli/client.py`.
"""

import uuid
from collections.abc import Callable, Iterator, Mapping, Sequence
from datetime import datetime
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import quote

from cli.follow import follow
from cli.transport import Transport
from cli.uploads import upload
from cli.wire import (
    Chunk,
    Collection,
    Document,
    Event,
    Job,
    Model,
    Queue,
    Readiness,
    State,
    StoredFile,
    Wire,
    Worker,
)

PAGE_ITEMS = 100
_ERASE_WAIT_S = 60.0
"""A deletion is answered when it is done, or after the server's patience with the job."""

W = TypeVar("W", bound=Wire)


class Calls:
    """The calls, over one transport."""

    def __init__(self, transport: Transport, notify: Callable[[str], None]) -> None:
        self.transport = transport
        self.notify = notify

    @property
    def url(self) -> str:
        return self.transport.url

    # Jobs

    def submit(
        self,
        kind: str,
        input: Mapping[str, Any],
        *,
        lane: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        webhook: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        max_attempts: int | None = None,
        run_after: datetime | None = None,
        idempotency_key: str | None = None,
        wait_s: float | None = None,
    ) -> Job:
        """A new job. With `wait_s` the answer is held back until it ends, at most so long.

        `run_after` without a time zone is local time.
        """
        optional: dict[str, Any] = {
            "lane": lane,
            "metadata": metadata,
            "webhook": webhook,
            "timeout_s": timeout_s,
            "max_attempts": max_attempts,
            "run_after": run_after.astimezone().isoformat() if run_after else None,
        }
        body = {"kind": str(kind), "input": dict(input)}
        body |= {name: value for name, value in optional.items() if value is not None}
        headers = {"Idempotency-Key": idempotency_key or str(uuid.uuid4())}
        if wait_s:
            # RFC 7240 knows whole seconds only.
            headers["Prefer"] = f"wait={max(1, round(wait_s))}"
        answer = self.transport.json(
            "POST", "/v1/jobs", body=body, headers=headers, wait_s=wait_s or 0.0
        )
        return Job.model_validate(answer)

    def submit_batch(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Up to 1,000 jobs, all or none; each is a body of `POST /v1/jobs`. Returns their ids.

        The API knows no key for a batch, so it is not repeated when its answer is lost: that
        raises `ConnectionBroken`.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        answer = self.transport.json("POST", "/v1/jobs/batch", body=body, safe=False)
        return [str(job_id) for job_id in answer["ids"]]

    def job(self, job_id: str) -> Job:
        return self._get(Job, f"/v1/jobs/{_part(job_id)}")

    def jobs(
        self,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        collection: str | None = None,
        dead: bool | None = None,
        page_items: int = PAGE_ITEMS,
    ) -> Iterator[Job]:
        """Newest first, page by page. `dead=True`: those that have used up their attempts."""
        params: dict[str, Any] = {
            "state": None if state is None else str(state),
            "kind": None if kind is None else str(kind),
            "collection": collection,
            "dead": None if dead is None else str(dead).lower(),
        }
        return self._pages(Job, "/v1/jobs", params, page_items)

    def events(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[Event]:
        """What happens to a job, up to and with `end`; resumes by itself."""
        return follow(self.transport, job_id, last_event_id=last_event_id, timeout_s=timeout_s)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_event: Callable[[Event], None] | None = None,
    ) -> Job:
        """The job once it has ended, however. Raises `WaitTimeout`; the job then goes on."""
        for event in self.events(job_id, timeout_s=timeout_s):
            if on_event is not None:
                on_event(event)
            if event.event == "end":
                return Job.model_validate(event.data)
        return self.job(job_id)

    def cancel(self, job_id: str) -> Job:
        return Job.model_validate(self._post(f"/v1/jobs/{_part(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """Redrive a failed or cancelled job."""
        # Repeating it blindly could redrive a job that has failed again meanwhile.
        return Job.model_validate(self._post(f"/v1/jobs/{_part(job_id)}/retry", safe=False))

    # Collections and documents

    def put_collection(
        self,
        name: str,
        *,
        embedding_model: str | None = None,
        dimension: int | None = None,
        distance: str | None = None,
    ) -> Collection:
        """Create a collection; the same again changes nothing, a different one is refused."""
        body = {
            "embedding_model": embedding_model,
            "dimension": dimension,
            "distance": distance,
        }
        answer = self.transport.json(
            "PUT",
            f"/v1/collections/{_part(name)}",
            body={key: value for key, value in body.items() if value is not None},
        )
        return Collection.model_validate(answer)

    def collection(self, name: str) -> Collection:
        return self._get(Collection, f"/v1/collections/{_part(name)}")

    def collections(self, *, page_items: int = PAGE_ITEMS) -> Iterator[Collection]:
        return self._pages(Collection, "/v1/collections", {}, page_items)

    def delete_collection(self, name: str, *, timeout_s: float | None = None) -> Job:
        """The `erase` job, succeeded: the documents, their text and their vectors are gone."""
        return self._erase(f"/v1/collections/{_part(name)}", timeout_s)

    def documents(self, collection: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Document]:
        path = f"/v1/collections/{_part(collection)}/documents"
        return self._pages(Document, path, {}, page_items)

    def document(self, document_id: str) -> Document:
        return self._get(Document, f"/v1/documents/{_part(document_id)}")

    def chunks(self, document_id: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Chunk]:
        return self._pages(Chunk, f"/v1/documents/{_part(document_id)}/chunks", {}, page_items)

    def delete_document(self, document_id: str, *, timeout_s: float | None = None) -> Job:
        return self._erase(f"/v1/documents/{_part(document_id)}", timeout_s)

    # Files

    def upload(self, source: str | Path | bytes, *, name: str | None = None) -> StoredFile:
        """Store a file; `name` becomes the document's `source` when it is ingested."""
        return upload(self.transport, source, name=name)

    def file(self, file_id: str) -> StoredFile:
        return self._get(StoredFile, f"/v1/files/{_part(file_id)}")

    def delete_file(self, file_id: str) -> None:
        self.transport.request("DELETE", f"/v1/files/{_part(file_id)}")

    def files_by_hash(self, sha256: Sequence[str]) -> list[StoredFile]:
        """The stored files with one of these hashes (hexadecimal), in any order."""
        found: list[StoredFile] = []
        # Fifty hashes make a URL of 4 KB, which also proxies with small buffers let through.
        for start in range(0, len(sha256), 50):
            params = {"sha256": list(sha256[start : start + 50])}
            items = self.transport.json("GET", "/v1/files", params=params)["items"]
            found += [StoredFile.model_validate(item) for item in items]
        return found

    # The system

    def queues(self) -> list[Queue]:
        return self._all(Queue, "/v1/queues")

    def pause(self, queue: str) -> None:
        """Let no step of this queue start; what runs goes on."""
        self._post(f"/v1/queues/{_part(queue)}/pause")

    def resume(self, queue: str) -> None:
        self._post(f"/v1/queues/{_part(queue)}/resume")

    def workers(self) -> list[Worker]:
        return self._all(Worker, "/v1/workers")

    def models(self) -> list[Model]:
        return self._all(Model, "/v1/models")

    def health(self) -> bool:
        """Whether the API itself answers."""
        return self.transport.request("GET", "/healthz").status_code == 200

    def ready(self) -> Readiness:
        """Whether everything that jobs need is there, part by part."""
        answer = self.transport.json("GET", "/readyz", accept_status=(503,))
        return Readiness.model_validate(answer)

    # What these are made of

    def _erase(self, path: str, timeout_s: float | None) -> Job:
        answer = self.transport.json("DELETE", path, wait_s=_ERASE_WAIT_S)
        job = Job.model_validate(answer)
        if not job.ended:
            job = self.wait(job.id, timeout_s=timeout_s)
        return job.require_success()

    def _get(self, shape: type[W], path: str) -> W:
        return shape.model_validate(self.transport.json("GET", path))

    def _all(self, shape: type[W], path: str) -> list[W]:
        items = self.transport.json("GET", path)["items"]
        return [shape.model_validate(item) for item in items]

    def _post(self, path: str, *, safe: bool = True) -> Any:
        return self.transport.json("POST", path, safe=safe)

    def _pages(
        self, shape: type[W], path: str, params: Mapping[str, Any], page_items: int
    ) -> Iterator[W]:
        cursor: str | None = None
        while True:
            page_params = {**params, "limit": page_items, "cursor": cursor}
            page = self.transport.json("GET", path, params=page_params)
            for item in page["items"]:
                yield shape.model_validate(item)
            cursor = page.get("next_cursor")
            if not cursor:
                return


def _part(value: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(value, safe="")
