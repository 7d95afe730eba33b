"""Every call of the HTTP API, typed in and out, written once for both clients.

They are coroutines. `AsyncClient` has them unchanged; `Client` runs the same coroutines over a
transport that blocks (`sluice/transport.py`). Whole tasks (`ask`, `chat`, `ingest`, …) are in
`sluice/client.py`.

`timeout_s` bounds a call with all its retries, or the waiting where a call waits for a job. In
`submit` it is the time limit of the job itself; `call_timeout_s` bounds the call there.
"""

import io
import json
import mimetypes
import re
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    AsyncIterator,
    Callable,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import aclosing, asynccontextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, Generic, TypeVar
from urllib.parse import quote

import httpx

from sluice.errors import ConnectionBroken, InvalidInput, NotFound, SluiceError, WaitTimeout
from sluice.events import (
    EventReader,
    OnEvent,
    OnReason,
    StreamItem,
    by_line,
    follow,
    report_reasons,
)
from sluice.inputs import create_input, delete_input, pull_input
from sluice.kinds import NewJob
from sluice.shapes import (
    Batch,
    Chunk,
    Collection,
    CollectionDetails,
    CollectionIndex,
    Conversation,
    ConversationMessage,
    Document,
    Event,
    Job,
    Model,
    ModelDetails,
    Page,
    Prompt,
    PromptDifference,
    Queue,
    Readiness,
    Schedule,
    State,
    StoredFile,
    Wire,
    Worker,
)
from sluice.transport import Background, Transport, problem_of

PAGE_ITEMS = 100
UNNAMED = "input"
"""The name of bytes that are uploaded for one job."""

BATCH_NAME = "batch.jsonl"
"""The name of bytes that are uploaded as the lines of a batch."""

_CLOSE_POLL_S = 0.2
"""The pause between two looks at a batch whose files are being written."""
_SILENCE_S = 60.0
_UPLOAD_TRIES = 3
"""A server may close the connection on a body that it refuses; more tries would not help."""
_ERASE_WAIT_S = 2
"""Short, since only the answer to a deletion says what it waits for."""
_PREFIX = re.compile(r"[0-9a-fA-F-]+")
_MIN_PREFIX_DIGITS, _ID_DIGITS = 4, 32
_SHOWN_IDS = 3
_QUERY_CHARS, _QUERY_NAMES = 4000, 100
# `mimetypes` differs between systems for these, and some systems know none of them.
_CONTENT_TYPES = {
    ".csv": "text/csv",
    ".htm": "text/html",
    ".html": "text/html",
    ".json": "application/json",
    ".jsonl": "application/x-ndjson",
    ".markdown": "text/markdown",
    ".md": "text/markdown",
    ".ndjson": "application/x-ndjson",
    ".tsv": "text/tab-separated-values",
    ".txt": "text/plain",
    ".xht": "application/xhtml+xml",
    ".xhtml": "application/xhtml+xml",
}


W = TypeVar("W", bound=Wire)
J = TypeVar("J", bound=Job)


def silent(_message: str) -> None:
    """The default of `notify`: nothing is reported."""


class Calls(Generic[J]):
    """Calls over one transport. `notify` gets a sentence when a call has to wait for something.

    `bind` makes an answer a job that has this client and its calls (`sluice/jobs.py`).
    """

    def __init__(
        self,
        transport: Transport,
        notify: Callable[[str], None],
        bind: Callable[[Job], J],
    ) -> None:
        self.transport = transport
        self.notify = notify
        self._bind = bind

    @property
    def url(self) -> str:
        return self.transport.url

    # Jobs

    async def submit_untyped(
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
        call_timeout_s: float | None = None,
    ) -> J:
        """Submit a job. With `wait_s` the server answers when the job ends, or after this time.

        `timeout_s` is how long the job may run, `call_timeout_s` how long this call may take.
        `run_after` without a time zone is local time. `submit` is the same with types for each
        kind; use this one where the kind or the input is known at run time only.
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
        answer = await self.transport.json(
            "POST",
            "/v1/jobs",
            body=body,
            headers=headers,
            wait_s=wait_s or 0.0,
            timeout_s=call_timeout_s,
        )
        return self._bind(await self._with_result(Job.model_validate(answer)))

    async def submit_batch(
        self, jobs: Sequence[NewJob], *, timeout_s: float | None = None
    ) -> list[str]:
        """Submit up to 1,000 jobs, all or none; returns their ids. Each is a body of
        `POST /v1/jobs`.

        This call has no idempotency key, so it is not repeated when its answer is lost: it raises
        `ConnectionBroken` then.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        ids = await self.transport.json_list(
            "POST", "/v1/jobs/batch", name="ids", body=body, safe=False, timeout_s=timeout_s
        )
        return [str(job_id) for job_id in ids]

    async def job(
        self, job_id: str, *, with_result: bool = False, timeout_s: float | None = None
    ) -> J:
        """The job as it is now; with `with_result` also a result that is too large to be in it."""
        job = await self._get(Job, f"/v1/jobs/{segment(job_id)}", timeout_s)
        return self._bind(await self._with_result(job, timeout_s) if with_result else job)

    async def result(self, job: Job, *, timeout_s: float | None = None) -> Any:
        """The result of a job, fetched separately where it is too large for the job itself."""
        if job.result is not None or job.result_url is None:
            return job.result
        path = f"/v1/jobs/{segment(job.id)}/result"
        return await self.transport.json("GET", path, timeout_s=timeout_s)

    async def _with_result(self, job: Job, timeout_s: float | None = None) -> Job:
        if not job.lacks_result:
            return job
        return job.model_copy(update={"result": await self.result(job, timeout_s=timeout_s)})

    async def _event_with_result(self, event: Event) -> Event:
        if event.event != "end" or not event.data.get("result_url"):
            return event
        job = await self._with_result(Job.model_validate(event.data))
        return event.model_copy(update={"data": event.data | {"result": job.result}})

    async def erase_job(self, job_id: str, *, timeout_s: float | None = None) -> None:
        """Delete a job that has ended, with its input and result."""
        await self._delete(f"/v1/jobs/{segment(job_id)}", timeout_s)

    async def jobs(
        self,
        *,
        state: State | str | None = None,
        kind: str | None = None,
        collection: str | None = None,
        dead: bool | None = None,
        batch: str | None = None,
        page_items: int = PAGE_ITEMS,
        timeout_s: float | None = None,
    ) -> AsyncGenerator[J, None]:
        """Newest first, page by page. `dead=True`: only jobs that have used up their attempts.
        `batch`: only the lines of this batch, which are left out otherwise.

        `timeout_s` is for each page.
        """
        params: dict[str, Any] = {
            "state": None if state is None else str(state),
            "kind": None if kind is None else str(kind),
            "collection": collection,
            "dead": None if dead is None else str(dead).lower(),
            "batch": batch,
        }
        async with aclosing(self._pages(Job, "/v1/jobs", params, page_items, timeout_s)) as jobs:
            async for job in jobs:
                yield self._bind(job)

    async def events(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[Event, None]:
        """The events of a job up to `end`, which has its result. A broken stream is resumed."""
        events = follow(self.transport, job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(events):
            async for event in events:
                yield await self._event_with_result(event)

    async def stream(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> AsyncGenerator[StreamItem, None]:
        """The text of a job's answer as it is written, its tool runs, and at last the ended job.

        Each character comes once, also when the connection breaks.
        """
        reader = EventReader(is_whole=last_event_id is None)
        events = self.events(job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        async with aclosing(events):
            async for event in events:
                for item in reader.items(event):
                    yield item

    async def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
        on_waiting: OnReason | None = None,
    ) -> J:
        """The job when it has ended, in whatever state. Raises `WaitTimeout`; the job then goes on.

        `on_waiting`, or else `notify` of the client, gets the reason why the job waits. `Client`
        calls it in another thread.
        """
        if on_waiting is None and self.notify is not silent:
            on_waiting = by_line(self.notify)
        reasons = nullcontext() if on_waiting is None else self.reasons(job_id, on_waiting)
        async with reasons, aclosing(self.events(job_id, timeout_s=timeout_s)) as events:
            async for event in events:
                if on_event is not None:
                    on_event(event)
                if event.event == "end":
                    return self._bind(Job.model_validate(event.data))
        return await self.job(job_id, with_result=True)

    @asynccontextmanager
    async def reasons(
        self, job_id: str, on_waiting: OnReason, *, known: str | None = None
    ) -> AsyncIterator[None]:
        """Within the block, call `on_waiting` whenever the reason changes why the job waits.

        `Client` calls it in another thread. `known` is a reason that was reported already.
        """

        async def read() -> Job | Batch:
            path = f"/v1/jobs/{segment(job_id)}"
            job = Job.model_validate(await self.transport.json("GET", path, retry=False))
            if job.kind != "batch" or job.ended:
                return job
            # The job of a batch does not say what its lines wait for.
            path = f"/v1/batches/{segment(job_id)}"
            return Batch.model_validate(await self.transport.json("GET", path, retry=False))

        def work(background: Background) -> Coroutine[Any, Any, None]:
            return report_reasons(read, on_waiting, background, known=known)

        async with self.transport.in_background(work):
            yield

    async def cancel(self, job_id: str, *, timeout_s: float | None = None) -> J:
        """A queued job ends at once. A running one stops soon: `wait` for its end."""
        answer = await self._post(f"/v1/jobs/{segment(job_id)}/cancel", timeout_s)
        return self._bind(Job.model_validate(answer))

    async def retry(self, job_id: str, *, timeout_s: float | None = None) -> J:
        """Redrive a failed or cancelled job."""
        # Not repeated: it could redrive a job that has failed again meanwhile.
        answer = await self._post(f"/v1/jobs/{segment(job_id)}/retry", timeout_s, safe=False)
        return self._bind(Job.model_validate(answer))

    # Batches

    async def create_batch(
        self,
        source: str | Path | bytes | None = None,
        *,
        file_id: str | None = None,
        endpoint: str | None = None,
        completion_window: str | None = None,
        finish_by: datetime | None = None,
        metadata: Mapping[str, Any] | None = None,
        max_attempts: int | None = None,
        lane: str | None = None,
        idempotency_key: str | None = None,
        timeout_s: float | None = None,
    ) -> Batch:
        """Run each line of a JSONL file as a job: a path, bytes, or the `file_id` of an upload.

        A line reads `{"custom_id": "1", "url": "/v1/embed", "body": {...}}`. With `endpoint`, all
        lines must name that URL. Lines that are not done by `finish_by`, or within the
        `completion_window` (`24h`), expire. `max_attempts` is for each line.
        """
        if (source is None) == (file_id is None):
            raise InvalidInput("Give either a file or the file_id of an upload.")
        if source is not None:
            name = BATCH_NAME if isinstance(source, bytes) else None
            file_id = (await self.upload(source, name=name, timeout_s=timeout_s)).id
        body: dict[str, Any] = {
            "file_id": file_id,
            "endpoint": endpoint,
            "completion_window": completion_window,
            "finish_by": finish_by.astimezone().isoformat() if finish_by else None,
            "metadata": dict(metadata) if metadata is not None else None,
            "max_attempts": max_attempts,
            "lane": lane,
        }
        answer = await self.transport.json(
            "POST",
            "/v1/batches",
            body={name: value for name, value in body.items() if value is not None},
            headers={"Idempotency-Key": idempotency_key or str(uuid.uuid4())},
            timeout_s=timeout_s,
        )
        return Batch.model_validate(answer)

    async def batch(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """The batch as it is now, with its progress and its place in the queue."""
        return await self._get(Batch, f"/v1/batches/{segment(batch_id)}", timeout_s)

    def batches(
        self, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Batch, None]:
        """Newest first, page by page."""
        return self._pages(Batch, "/v1/batches", {}, page_items, timeout_s)

    async def wait_batch(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """The batch when it has ended and its files are written. Raises `WaitTimeout`."""
        started = time.monotonic()
        await self.wait(batch_id, timeout_s=timeout_s)
        while True:
            batch = await self.batch(batch_id)
            if batch.closed:
                return batch
            if timeout_s is not None and time.monotonic() - started > timeout_s:
                raise WaitTimeout(batch_id, timeout_s)
            await self.transport.pause(_CLOSE_POLL_S)

    async def batch_results(
        self, batch_id: str, *, errors: bool = False, timeout_s: float | None = None
    ) -> AsyncGenerator[dict[str, Any], None]:
        """The answers so far, each with its `custom_id`; or with `errors` the lines without one.

        They come in the order in which lines ended, and after the end of the batch in the order
        of its file. `timeout_s` is how long the server may be silent.
        """
        path = f"/v1/batches/{segment(batch_id)}/{'errors' if errors else 'results'}"
        line_parts: list[bytes] = []
        try:
            silence_s = timeout_s or _SILENCE_S
            async with self.transport.stream(path, headers={}, silence_s=silence_s) as chunks:
                async for chunk in chunks:
                    *ends, rest = chunk.split(b"\n")
                    for end in ends:
                        yield json.loads(b"".join((*line_parts, end)))
                        line_parts.clear()
                    line_parts.append(rest)
        except httpx.TransportError as error:
            raise ConnectionBroken(f"The answers of batch {batch_id} broke off: {error}") from error

    async def cancel_batch(self, batch_id: str, *, timeout_s: float | None = None) -> Batch:
        """Cancel the lines that are not done, within 2 s. The answers of the others stay."""
        return Batch.model_validate(
            await self._post(f"/v1/batches/{segment(batch_id)}/cancel", timeout_s)
        )

    async def retry_batch(
        self, batch_id: str, *, unfinished: bool = False, timeout_s: float | None = None
    ) -> Batch:
        """Run the failed lines again; with `unfinished`, also cancelled and expired ones."""
        answer = await self.transport.json(
            "POST",
            f"/v1/batches/{segment(batch_id)}/retry",
            body={"lines": "unfinished" if unfinished else "failed"},
            safe=False,
            timeout_s=timeout_s,
        )
        return Batch.model_validate(answer)

    # Collections and documents

    async def put_collection(
        self,
        name: str,
        *,
        embedding_model: str | None = None,
        dimension: int | None = None,
        distance: str | None = None,
        timeout_s: float | None = None,
    ) -> Collection:
        """Create a collection. Repeating the call changes nothing; other values are refused."""
        body = {
            "embedding_model": embedding_model,
            "dimension": dimension,
            "distance": distance,
        }
        answer = await self.transport.json(
            "PUT",
            f"/v1/collections/{segment(name)}",
            body={key: value for key, value in body.items() if value is not None},
            timeout_s=timeout_s,
        )
        return Collection.model_validate(answer)

    async def collection(self, name: str, *, timeout_s: float | None = None) -> CollectionDetails:
        """A collection, with its vector indexes."""
        return await self._get(CollectionDetails, f"/v1/collections/{segment(name)}", timeout_s)

    def collections(
        self, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Collection, None]:
        return self._pages(Collection, "/v1/collections", {}, page_items, timeout_s)

    async def delete_collection(
        self, name: str, *, timeout_s: float | None = None, on_waiting: OnReason | None = None
    ) -> J:
        """Erase a collection with text and vectors. Returns the `erase` job, which succeeded."""
        return await self._erase(f"/v1/collections/{segment(name)}", timeout_s, on_waiting)

    async def drop_index(
        self,
        collection: str,
        index: str,
        *,
        forget: bool = False,
        timeout_s: float | None = None,
    ) -> CollectionIndex:
        """Let a vector index go that is not in use; its vectors are dropped soon after. With
        `forget`, one on a server that the store does not have any more."""
        before = (await self.collection(collection, timeout_s=timeout_s)).indexes
        path = f"/v1/collections/{segment(collection)}/indexes/{segment(index)}"
        response = await self.transport.request(
            "DELETE",
            f"{path}?forget=true" if forget else path,
            accept_gone=True,
            timeout_s=timeout_s,
        )
        if response.status_code != 404:
            return CollectionIndex.model_validate(response.json())
        for one in before:
            if one.name == index:
                return one.model_copy(update={"can_roll_back": False})
        raise problem_of(response)

    def documents(
        self, collection: str, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Document, None]:
        path = f"/v1/collections/{segment(collection)}/documents"
        return self._pages(Document, path, {}, page_items, timeout_s)

    async def document(self, document_id: str, *, timeout_s: float | None = None) -> Document:
        return await self._get(Document, f"/v1/documents/{segment(document_id)}", timeout_s)

    def chunks(
        self, document_id: str, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Chunk, None]:
        path = f"/v1/documents/{segment(document_id)}/chunks"
        return self._pages(Chunk, path, {}, page_items, timeout_s)

    async def find_chunks(
        self,
        collection: str,
        *,
        sources: Sequence[str] = (),
        ids: Sequence[str] = (),
        timeout_s: float | None = None,
    ) -> list[Chunk]:
        """The chunks with these ids, and the chunks of the documents with these sources.

        In any order; missing ones are left out. `timeout_s` is for each page.
        """
        path = f"/v1/collections/{segment(collection)}/chunks"
        chunks: dict[str, Chunk] = {}
        for name, values in (("source", sources), ("id", ids)):
            for batch in _query_batches(values):
                pages = self._pages(Chunk, path, {name: batch}, PAGE_ITEMS, timeout_s)
                chunks |= {chunk.id: chunk async for chunk in pages}
        return list(chunks.values())

    async def delete_document(
        self,
        document_id: str,
        *,
        timeout_s: float | None = None,
        on_waiting: OnReason | None = None,
    ) -> J:
        return await self._erase(f"/v1/documents/{segment(document_id)}", timeout_s, on_waiting)

    # Files

    async def upload(
        self,
        source: str | Path | bytes,
        *,
        name: str | None = None,
        timeout_s: float | None = None,
    ) -> StoredFile:
        """Store a file; `name` becomes the document's `source` when it is ingested.

        Raises `OSError` for a file that cannot be read.
        """
        if isinstance(source, bytes):
            if name is None:
                raise InvalidInput("Bytes have no name of their own; give name=...")
            return await self._send(name, io.BytesIO(source), timeout_s)
        with Path(source).open("rb") as stream:
            return await self._send(name or Path(source).name, stream, timeout_s)

    async def _send(self, name: str, stream: IO[bytes], timeout_s: float | None) -> StoredFile:
        suffix = Path(name).suffix.lower()
        content_type = _CONTENT_TYPES.get(suffix) or mimetypes.guess_type(name)[0]
        answer = await self.transport.json(
            "POST",
            "/v1/files",
            upload=(name, stream, content_type or "application/octet-stream"),
            tries=_UPLOAD_TRIES,
            timeout_s=timeout_s,
        )
        return StoredFile.model_validate(answer)

    async def file(self, file_id: str, *, timeout_s: float | None = None) -> StoredFile:
        return await self._get(StoredFile, f"/v1/files/{segment(file_id)}", timeout_s)

    async def delete_file(self, file_id: str, *, timeout_s: float | None = None) -> None:
        await self._delete(f"/v1/files/{segment(file_id)}", timeout_s)

    async def files_by_hash(
        self, sha256: Sequence[str], *, timeout_s: float | None = None
    ) -> list[StoredFile]:
        """The stored files with one of these SHA-256 hashes (hexadecimal), in any order.

        `timeout_s` is for each request of 50 hashes.
        """
        files: list[StoredFile] = []
        # 50 hashes make a URL of 4 KB, which also passes proxies with small buffers.
        for start in range(0, len(sha256), 50):
            params = {"sha256": list(sha256[start : start + 50])}
            items = await self.transport.json_list(
                "GET", "/v1/files", params=params, timeout_s=timeout_s
            )
            files += [StoredFile.model_validate(item) for item in items]
        return files

    @asynccontextmanager
    async def attached(self, inputs: Any, *, timeout_s: float | None = None) -> AsyncIterator[Any]:
        """The inputs of a job, with each `Path` and all bytes uploaded and replaced by a file id.
        The uploads are deleted after the block.

        Each is uploaded anew, even if the same file is stored already: no other job uses it then.
        After an error the uploads stay, because the job may go on or be redriven. `timeout_s` is
        for each upload.
        """
        ids: list[str] = []

        async def upload(value: Any) -> Any:
            if not isinstance(value, bytes | Path):
                return value
            name = UNNAMED if isinstance(value, bytes) else None
            ids.append((await self.upload(value, name=name, timeout_s=timeout_s)).id)
            return {"file_id": ids[-1]}

        try:
            if isinstance(inputs, list):
                uploaded: Any = [await upload(value) for value in inputs]
            else:
                uploaded = await upload(inputs)
        except BaseException:
            await self._delete_files(ids)
            raise
        yield uploaded
        await self._delete_files(ids)

    async def _delete_files(self, ids: Sequence[str], *, timeout_s: float | None = None) -> None:
        """Errors are ignored: a file that stays does no harm."""
        for file_id in ids:
            with suppress(SluiceError):
                await self.delete_file(file_id, timeout_s=timeout_s)

    async def _erase(self, path: str, timeout_s: float | None, on_waiting: OnReason | None) -> J:
        # Sent again after a lost answer, it gets the same job, also when that has erased all.
        headers = {"Prefer": f"wait={_ERASE_WAIT_S}", "Idempotency-Key": str(uuid.uuid4())}
        answer = await self.transport.json("DELETE", path, headers=headers, wait_s=_ERASE_WAIT_S)
        job = self._bind(Job.model_validate(answer))
        if not job.ended:
            job = await self.wait(job.id, timeout_s=timeout_s, on_waiting=on_waiting)
        return job.require_success()

    # Models

    async def models(self, *, timeout_s: float | None = None) -> list[Model]:
        return await self._all(Model, "/v1/models", timeout_s)

    async def model(self, reference: str, *, timeout_s: float | None = None) -> ModelDetails:
        """One model, for a model of Ollama with the details that its server has."""
        path = f"/v1/models/{quote(reference, safe='/')}"
        return await self._get(ModelDetails, path, timeout_s)

    async def pull_model(
        self, name: str, *, timeout_s: float | None = None, on_event: OnEvent | None = None
    ) -> J:
        """Have the Ollama server fetch a model. Returns the job, which succeeded.

        `name` is `ollama/llama3.2`, or `llama3.2` for short.
        """
        return await self._run_model_job(pull_input(name), timeout_s, on_event)

    async def create_model(
        self,
        name: str,
        from_: str,
        *,
        system: str | None = None,
        template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> J:
        """Have the Ollama server make a model from another, replacing one of the same name."""
        job_input = create_input(
            name, from_, system=system, template=template, parameters=parameters or {}
        )
        return await self._run_model_job(job_input, timeout_s, on_event)

    async def delete_model(self, name: str, *, timeout_s: float | None = None) -> J:
        return await self._run_model_job(delete_input(name), timeout_s, None)

    async def define_model(
        self,
        name: str,
        modelfile: str | None = None,
        *,
        from_: str | None = None,
        system: str | None = None,
        template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> ModelDetails:
        """Make or replace a named model: a preset over any model, which jobs then use by its name.

        `modelfile` is a description in Ollama's format; the other arguments override it.
        """
        fields = {
            "modelfile": modelfile, "from": from_, "system": system, "template": template,
            "parameters": None if parameters is None else dict(parameters),
        }  # fmt: skip
        body = {field: value for field, value in fields.items() if value is not None}
        path = f"/v1/models/{quote(name, safe='/')}"
        answer = await self.transport.json("PUT", path, body=body, timeout_s=timeout_s)
        return ModelDetails.model_validate(answer)

    async def undefine_model(self, name: str, *, timeout_s: float | None = None) -> None:
        """Delete a named model; jobs that were submitted with it go on."""
        await self._delete(f"/v1/models/{quote(name, safe='/')}", timeout_s)

    async def _run_model_job(
        self, job_input: Mapping[str, Any], timeout_s: float | None, on_event: OnEvent | None
    ) -> J:
        job = await self.submit_untyped("model", job_input, lane="interactive")
        job = await self.wait(job.id, timeout_s=timeout_s, on_event=on_event)
        return job.require_success()

    # Conversations

    async def start_conversation(
        self,
        metadata: Mapping[str, Any] | None = None,
        *,
        summarize: bool = False,
        timeout_s: float | None = None,
    ) -> Conversation:
        """With `summarize`, messages that no longer fit into the model's window are summarized."""
        body = {"metadata": dict(metadata or {}), "summarize": summarize}
        # Not repeated: it could start two conversations.
        answer = await self.transport.json(
            "POST", "/v1/conversations", body=body, safe=False, timeout_s=timeout_s
        )
        return Conversation.model_validate(answer)

    def conversations(
        self, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Conversation, None]:
        """Newest first, page by page."""
        return self._pages(Conversation, "/v1/conversations", {}, page_items, timeout_s)

    async def conversation(
        self, conversation_id: str, *, timeout_s: float | None = None
    ) -> Conversation:
        path = f"/v1/conversations/{segment(conversation_id)}"
        return await self._get(Conversation, path, timeout_s)

    async def conversation_messages(
        self, conversation_id: str, *, timeout_s: float | None = None
    ) -> Sequence[ConversationMessage]:
        """All of them, oldest first. `timeout_s` is for each page."""
        path = f"/v1/conversations/{segment(conversation_id)}/messages"
        pages = self._pages(ConversationMessage, path, {}, PAGE_ITEMS, timeout_s)
        return [message async for message in pages]

    async def erase_conversation(
        self, conversation_id: str, *, timeout_s: float | None = None
    ) -> None:
        """Erase a conversation with its messages. Its open jobs end, and are not stored in it."""
        await self._delete(f"/v1/conversations/{segment(conversation_id)}", timeout_s)

    # Schedules

    async def put_schedule(
        self,
        name: str,
        cron: str,
        job: Mapping[str, Any],
        *,
        timezone: str = "UTC",
        timeout_s: float | None = None,
    ) -> Schedule:
        """Make or replace a schedule. `job` is a body of `POST /v1/jobs`: kind, input, …"""
        body = {"cron": cron, "timezone": timezone, "job": dict(job)}
        path = f"/v1/schedules/{segment(name)}"
        answer = await self.transport.json("PUT", path, body=body, timeout_s=timeout_s)
        return Schedule.model_validate(answer)

    async def schedule(self, name: str, *, timeout_s: float | None = None) -> Schedule:
        return await self._get(Schedule, f"/v1/schedules/{segment(name)}", timeout_s)

    def schedules(
        self, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Schedule, None]:
        """Ordered by name, page by page."""
        return self._pages(Schedule, "/v1/schedules", {}, page_items, timeout_s)

    async def pause_schedule(self, name: str, *, timeout_s: float | None = None) -> Schedule:
        """Submit no jobs until the schedule is resumed."""
        path = f"/v1/schedules/{segment(name)}/pause"
        answer = await self.transport.json("POST", path, safe=True, timeout_s=timeout_s)
        return Schedule.model_validate(answer)

    async def resume_schedule(self, name: str, *, timeout_s: float | None = None) -> Schedule:
        """Submit jobs again from now on. Times that passed during the pause are skipped."""
        path = f"/v1/schedules/{segment(name)}/resume"
        answer = await self.transport.json("POST", path, safe=True, timeout_s=timeout_s)
        return Schedule.model_validate(answer)

    async def run_schedule(self, name: str, *, timeout_s: float | None = None) -> str:
        """Submit the job of a schedule now. Returns its id. Refused while the last one is open."""
        path = f"/v1/schedules/{segment(name)}/run"
        answer = await self.transport.json("POST", path, safe=False, timeout_s=timeout_s)
        return str(answer["job_id"])

    async def delete_schedule(self, name: str, *, timeout_s: float | None = None) -> None:
        """Delete a schedule. Its jobs stay."""
        await self._delete(f"/v1/schedules/{segment(name)}", timeout_s)

    # Prompts

    async def put_prompt(
        self,
        name: str,
        template: str,
        *,
        description: str = "",
        variables: Mapping[str, Mapping[str, Any]] | None = None,
        make_current: bool = True,
        timeout_s: float | None = None,
    ) -> Prompt:
        """Store a new version of a prompt, unless the newest one is the same. `variables` may have
        a `description` and a `default` for each variable."""
        body = {
            "template": template,
            "description": description,
            "variables": {key: dict(spec) for key, spec in (variables or {}).items()},
            "make_current": make_current,
        }
        path = f"/v1/prompts/{segment(name)}"
        answer = await self.transport.json("PUT", path, body=body, timeout_s=timeout_s)
        return Prompt.model_validate(answer)

    async def prompt(self, name: str, *, timeout_s: float | None = None) -> Prompt:
        """The current version, or the one that `name@3` names."""
        return await self._get(Prompt, f"/v1/prompts/{segment(name)}", timeout_s)

    def prompts(
        self, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Prompt, None]:
        """The current version of each prompt, ordered by name, page by page."""
        return self._pages(Prompt, "/v1/prompts", {}, page_items, timeout_s)

    def prompt_versions(
        self, name: str, *, page_items: int = PAGE_ITEMS, timeout_s: float | None = None
    ) -> AsyncGenerator[Prompt, None]:
        """Newest first, page by page."""
        path = f"/v1/prompts/{segment(name)}/versions"
        return self._pages(Prompt, path, {}, page_items, timeout_s)

    async def diff_prompt(
        self,
        name: str,
        from_: int | None = None,
        to: int | None = None,
        *,
        timeout_s: float | None = None,
    ) -> PromptDifference:
        """The difference between two versions: by default the newest and the one before it."""
        answer = await self.transport.json(
            "GET",
            f"/v1/prompts/{segment(name)}/diff",
            params={"from": from_, "to": to},
            timeout_s=timeout_s,
        )
        return PromptDifference.model_validate(answer)

    async def roll_back_prompt(
        self, name: str, version: int | None = None, *, timeout_s: float | None = None
    ) -> Prompt:
        """Make an earlier version the current one: by default the one before the current one."""
        answer = await self.transport.json(
            "POST",
            f"/v1/prompts/{segment(name)}/rollback",
            body={} if version is None else {"version": version},
            # Without a version it is not repeated: it could go back twice.
            safe=version is not None,
            timeout_s=timeout_s,
        )
        return Prompt.model_validate(answer)

    async def render_prompt(
        self,
        name: str,
        variables: Mapping[str, Any] | None = None,
        *,
        timeout_s: float | None = None,
    ) -> str:
        """The text of a prompt with these values for its variables. No model runs."""
        answer = await self.transport.json(
            "POST",
            f"/v1/prompts/{segment(name)}/render",
            body={"variables": dict(variables or {})},
            timeout_s=timeout_s,
        )
        return str(answer["text"])

    async def delete_prompt(self, name: str, *, timeout_s: float | None = None) -> None:
        """Delete a prompt with all its versions. Jobs that were submitted with it go on."""
        await self._delete(f"/v1/prompts/{segment(name)}", timeout_s)

    # Queues, workers, and the system itself

    async def queues(self, *, timeout_s: float | None = None) -> list[Queue]:
        return await self._all(Queue, "/v1/queues", timeout_s)

    async def pause(self, queue: str, *, timeout_s: float | None = None) -> None:
        """Start no more steps of this queue. Running steps go on."""
        await self._post(f"/v1/queues/{segment(queue)}/pause", timeout_s)

    async def resume(self, queue: str, *, timeout_s: float | None = None) -> None:
        await self._post(f"/v1/queues/{segment(queue)}/resume", timeout_s)

    async def workers(self, *, timeout_s: float | None = None) -> list[Worker]:
        return await self._all(Worker, "/v1/workers", timeout_s)

    async def whole_id(self, type: str, prefix: str, *, timeout_s: float | None = None) -> str:
        """The whole id of the one job, document, file or conversation that begins with `prefix`.

        A `prefix` that is no beginning of an id is returned unchanged, for the API to refuse it.
        Raises `NotFound` if several ids begin with it.
        """
        digits = prefix.replace("-", "")
        if not _PREFIX.fullmatch(prefix) or not _MIN_PREFIX_DIGITS <= len(digits) < _ID_DIGITS:
            return prefix
        params = {"type": type, "prefix": prefix}
        items = await self.transport.json_list("GET", "/v1/ids", params=params, timeout_s=timeout_s)
        ids = [str(item["id"]) for item in items]
        if len(ids) > 1:
            raise NotFound(
                f"More than one {type} begins with {prefix}; give more of the id: "
                f"{', '.join(ids[:_SHOWN_IDS])}{', …' if len(ids) > _SHOWN_IDS else ''}"
            )
        return ids[0] if ids else prefix

    async def health(self, *, timeout_s: float | None = None) -> bool:
        """Whether the API itself answers."""
        answer = await self.transport.request("GET", "/healthz", timeout_s=timeout_s)
        return answer.status_code == 200

    async def ready(self, *, timeout_s: float | None = None) -> Readiness:
        """Whether all parts that jobs need are ready, with a check for each."""
        answer = await self.transport.json(
            "GET", "/readyz", accept_status=(503,), timeout_s=timeout_s
        )
        return Readiness.model_validate(answer)

    # Requests and pages

    async def _get(self, shape: type[W], path: str, timeout_s: float | None) -> W:
        return shape.model_validate(await self.transport.json("GET", path, timeout_s=timeout_s))

    async def _all(self, shape: type[W], path: str, timeout_s: float | None) -> list[W]:
        items = await self.transport.json_list("GET", path, timeout_s=timeout_s)
        return [shape.model_validate(item) for item in items]

    async def _post(self, path: str, timeout_s: float | None, *, safe: bool = True) -> Any:
        return await self.transport.json("POST", path, safe=safe, timeout_s=timeout_s)

    async def _delete(self, path: str, timeout_s: float | None) -> None:
        await self.transport.request("DELETE", path, accept_gone=True, timeout_s=timeout_s)

    async def _pages(
        self,
        shape: type[W],
        path: str,
        params: Mapping[str, Any],
        page_items: int,
        timeout_s: float | None,
    ) -> AsyncGenerator[W, None]:
        """`timeout_s` is for each page."""
        cursor: str | None = None
        while True:
            page_params = {**params, "limit": page_items, "cursor": cursor}
            answer = await self.transport.json("GET", path, params=page_params, timeout_s=timeout_s)
            page = Page.model_validate(answer)
            for item in page.items:
                yield shape.model_validate(item)
            cursor = page.next_cursor
            if not cursor:
                return


def _query_batches(names: Sequence[str]) -> Iterator[list[str]]:
    """The names in batches that fit into a URL, also for proxies with small buffers."""
    batch: list[str] = []
    length = 0
    for name in names:
        size = len(segment(name)) + len("&source=")
        if batch and (length + size > _QUERY_CHARS or len(batch) == _QUERY_NAMES):
            yield batch
            batch, length = [], 0
        batch.append(name)
        length += size
    if batch:
        yield batch


def segment(value: str) -> str:
    """A name as one segment of a URL path, with all special characters escaped."""
    return quote(value, safe="")
