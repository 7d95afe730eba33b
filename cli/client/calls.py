"""One method for each call of the HTTP API, typed in and out.

Whole tasks (`ask`, `chat`, `ingest`, …) are in `cli/client/client.py`.
"""

import io
import json
import mimetypes
import re
import time
import uuid
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext, suppress
from datetime import datetime
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.parse import quote

import httpx

from cli.client.asking import create_input, delete_input, pull_input
from cli.client.shapes import (
    Chunk,
    Collection,
    Conversation,
    ConversationMessage,
    Document,
    Event,
    Job,
    Model,
    ModelDetails,
    Page,
    Queue,
    Readiness,
    State,
    StoredFile,
    Wire,
    Worker,
)
from cli.client.streaming import StreamItem, stream_items
from cli.client.transport import Transport
from cli.client.waits import Tell, by_line, reasons_told
from cli.errors import ApiError, WaitTimeout
from shared.errors import InvalidInput, NotFound, SluiceError

# Sending one file to the API.

_TRIES = 3
"""A server may close the connection on a body it refuses; sending it for a minute is no use."""

# The usual name for these differs between systems, and some systems know none.
_TYPES = {
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


def upload(transport: Transport, source: str | Path | bytes, *, name: str | None) -> StoredFile:
    """Store a file or bytes under a name. Raises `OSError` for a file that cannot be read."""
    if isinstance(source, bytes):
        if name is None:
            raise InvalidInput("Bytes have no name of their own; give name=...")
        return _send(transport, name, io.BytesIO(source))
    with Path(source).open("rb") as stream:
        return _send(transport, name or Path(source).name, stream)


def _send(transport: Transport, name: str, stream: IO[bytes]) -> StoredFile:
    suffix = Path(name).suffix.lower()
    content_type = _TYPES.get(suffix) or mimetypes.guess_type(name)[0]
    answer = transport.json(
        "POST",
        "/v1/files",
        upload=(name, stream, content_type or "application/octet-stream"),
        tries=_TRIES,
    )
    return StoredFile.model_validate(answer)


# Following a job through its Server-Sent Events until it ends.
#
# A stream that drops, stays silent, or loses its server for a while is resumed from the last
# event. Between streams the job itself is asked, so its end is seen even where a proxy holds
# events back: the stream of a job that has ended is complete, and closes.

SILENCE_S = 15.0
"""After so long without a byte, the job is asked directly."""
LAST_TRIES = 3
"""So often the stream of a job that has ended is asked for; then the job itself has to do."""
_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)


def follow(
    transport: Transport, job_id: str, *, last_event_id: str | None, timeout_s: float | None
) -> Iterator[Event]:
    """The events of a job, up to and with `end`, whose data is the whole job.

    Raises `WaitTimeout`, `ApiError` (404 for an unknown job), or `ConnectionFailed` when the API
    stays away for longer than the transport's patience.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    fruitless = last_tries = 0
    while True:
        try:
            headers = {"Accept": "text/event-stream", "Cache-Control": "no-store"}
            if last_event_id is not None:
                headers["Last-Event-ID"] = last_event_id
            silence_s = SILENCE_S if deadline is None else _left(deadline)
            path = f"/v1/jobs/{job_id}/events"
            with transport.stream(path, headers=headers, silence_s=silence_s) as response:
                for event in parse(response.iter_bytes()):
                    if event is not None:
                        fruitless = 0
                        last_event_id = event.id or last_event_id
                        yield event
                        if event.event == "end":
                            return
                    # Asked for at every line, since comments keep a silent stream alive.
                    if deadline is not None and time.monotonic() >= deadline:
                        break
        except httpx.TransportError:
            pass  # The question below has the transport's patience, and its errors.
        except ApiError as error:
            if error.status != 429 and error.status < 500:
                raise
        job = Job.model_validate(transport.json("GET", f"/v1/jobs/{job_id}"))
        if job.ended and last_tries < LAST_TRIES:
            # What it told since the stream broke is still to come.
            time.sleep(_PAUSES_S[last_tries])
            last_tries += 1
            continue
        if job.ended:
            data = job.model_dump(mode="json")
            yield Event(id=last_event_id, event="end", data=data)
            return
        pause_s = _PAUSES_S[min(fruitless, len(_PAUSES_S) - 1)]
        fruitless += 1
        if deadline is not None and time.monotonic() + pause_s >= deadline:
            raise WaitTimeout(job_id, timeout_s or 0.0)
        time.sleep(pause_s)


def parse(chunks: Iterable[bytes]) -> Iterator[Event | None]:
    """Server-Sent Events from bytes; `None` for each other line, as a sign of life.

    Lines are split here, at line feeds only: `str.splitlines` also splits at characters such as
    U+2028 that may well stand inside the data.
    """
    event_id: str | None = None
    name = "message"
    data: list[str] = []
    for line in _lines(chunks):
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                event_id = value
            elif field == "event":
                name = value
            elif field == "data":
                data.append(value)
            yield None
            continue
        if data:
            yield Event(id=event_id, event=name, data=_object("\n".join(data)))
        name, data = "message", []


def _lines(chunks: Iterable[bytes]) -> Iterator[str]:
    rest = b""
    for chunk in chunks:
        *whole, rest = (rest + chunk).split(b"\n")
        for line in whole:
            yield line.removesuffix(b"\r").decode("utf-8", "replace")


def _object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"value": value}


def _left(deadline: float) -> float:
    return min(SILENCE_S, max(0.05, deadline - time.monotonic()))


# What all calls of the HTTP API are made of: one transport, typed answers, pages.

PAGE_ITEMS = 100

W = TypeVar("W", bound=Wire)


def silent(_message: str) -> None:
    """For clients whose program wants to know nothing of what they wait for."""


class Caller:
    """Calls over one transport; `notify` is told in sentences what is waited for."""

    def __init__(self, transport: Transport, notify: Callable[[str], None]) -> None:
        self.transport = transport
        self.notify = notify

    @property
    def url(self) -> str:
        return self.transport.url

    def _get(self, shape: type[W], path: str) -> W:
        return shape.model_validate(self.transport.json("GET", path))

    def _all(self, shape: type[W], path: str) -> list[W]:
        return [shape.model_validate(item) for item in self.transport.listed("GET", path)]

    def _post(self, path: str, *, safe: bool = True) -> Any:
        return self.transport.json("POST", path, safe=safe)

    def _pages(
        self, shape: type[W], path: str, params: Mapping[str, Any], page_items: int
    ) -> Iterator[W]:
        cursor: str | None = None
        while True:
            page_params = {**params, "limit": page_items, "cursor": cursor}
            page = Page.model_validate(self.transport.json("GET", path, params=page_params))
            for item in page.items:
                yield shape.model_validate(item)
            cursor = page.next_cursor
            if not cursor:
                return


def part(value: str) -> str:
    """A name as one part of a path, whatever is in it."""
    return quote(value, safe="")


# The calls about jobs: submit, look, follow, cancel, redrive.


class JobCalls(Caller):
    """Nothing here waits for anything but the answer, except for events and the end of a job."""

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
        return self._with_result(Job.model_validate(answer))

    def submit_batch(self, jobs: Sequence[Mapping[str, Any]]) -> list[str]:
        """Up to 1,000 jobs, all or none; each is a body of `POST /v1/jobs`. Returns their ids.

        The API knows no key for a batch, so it is not repeated when its answer is lost: that
        raises `ConnectionBroken`.
        """
        body = {"jobs": [dict(job) for job in jobs]}
        ids = self.transport.listed("POST", "/v1/jobs/batch", name="ids", body=body, safe=False)
        return [str(job_id) for job_id in ids]

    def job(self, job_id: str, *, with_result: bool = False) -> Job:
        """The job as it is now; `with_result` also fetches one that is too large for that view."""
        job = self._get(Job, f"/v1/jobs/{part(job_id)}")
        return self._with_result(job) if with_result else job

    def result(self, job: Job) -> Any:
        """What a job has ended with, also where that is too large for the job's own view."""
        if job.result is not None or job.result_url is None:
            return job.result
        return self.transport.json("GET", f"/v1/jobs/{part(job.id)}/result")

    def _with_result(self, job: Job) -> Job:
        if job.result is not None or job.result_url is None or job.state is not State.SUCCEEDED:
            return job
        return job.model_copy(update={"result": self.result(job)})

    def _event_with_result(self, event: Event) -> Event:
        if event.event != "end" or not event.data.get("result_url"):
            return event
        job = self._with_result(Job.model_validate(event.data))
        return event.model_copy(update={"data": event.data | {"result": job.result}})

    def erase_job(self, job_id: str) -> None:
        """Forget a job that has ended, with its input and result."""
        self.transport.request("DELETE", f"/v1/jobs/{part(job_id)}")

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
        """What happens to a job, up to and with `end`, which has its result; resumes by itself."""
        events = follow(self.transport, job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        return map(self._event_with_result, events)

    def stream(
        self, job_id: str, *, last_event_id: str | None = None, timeout_s: float | None = None
    ) -> Iterator[StreamItem]:
        """The text of a job's answer as it comes, its runs of tools, and at last the ended job.

        However often the connection breaks, each character is told once.
        """
        events = self.events(job_id, last_event_id=last_event_id, timeout_s=timeout_s)
        return stream_items(events, is_whole=last_event_id is None)

    def wait(
        self,
        job_id: str,
        *,
        timeout_s: float | None = None,
        on_event: Callable[[Event], None] | None = None,
        on_waiting: Tell | None = None,
    ) -> Job:
        """The job once it has ended, however. Raises `WaitTimeout`; the job then goes on.

        What it waits for `on_waiting` is told (in another thread), else `notify` of the client.
        """
        if on_waiting is None and self.notify is not silent:
            on_waiting = by_line(self.notify)
        with nullcontext() if on_waiting is None else self.reasons_told(job_id, on_waiting):
            for event in self.events(job_id, timeout_s=timeout_s):
                if on_event is not None:
                    on_event(event)
                if event.event == "end":
                    return Job.model_validate(event.data)
        return self.job(job_id, with_result=True)

    def reasons_told(
        self, job_id: str, tell: Tell, *, known: str | None = None
    ) -> AbstractContextManager[None]:
        """`tell` hears in another thread what the job waits for, whenever that changes."""

        def read() -> Job:
            path = f"/v1/jobs/{part(job_id)}"
            return Job.model_validate(self.transport.json("GET", path, retry=False))

        return reasons_told(read, tell, known=known)

    def cancel(self, job_id: str) -> Job:
        return Job.model_validate(self._post(f"/v1/jobs/{part(job_id)}/cancel"))

    def retry(self, job_id: str) -> Job:
        """Redrive a failed or cancelled job."""
        # Repeating it blindly could redrive a job that has failed again meanwhile.
        return Job.model_validate(self._post(f"/v1/jobs/{part(job_id)}/retry", safe=False))


# The calls about models and conversations.

OnEvent = Callable[[Event], None]


class GenerationCalls(JobCalls):
    # Models

    def models(self) -> list[Model]:
        return self._all(Model, "/v1/models")

    def model(self, reference: str) -> ModelDetails:
        """One model; of those of Ollama, what that server tells of it."""
        return self._get(ModelDetails, f"/v1/models/{quote(reference, safe='/')}")

    def pull_model(
        self, name: str, *, timeout_s: float | None = None, on_event: OnEvent | None = None
    ) -> Job:
        """Have the Ollama server fetch a model; the job, succeeded.

        `name` is `ollama/llama3.2` or, shorter, `llama3.2`.
        """
        return self._change(pull_input(name), timeout_s, on_event)

    def create_model(
        self,
        name: str,
        from_: str,
        *,
        system: str | None = None,
        template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Have the Ollama server make a model of another one, in the place of one of that name."""
        job_input = create_input(
            name, from_, system=system, template=template, parameters=parameters or {}
        )
        return self._change(job_input, timeout_s, on_event)

    def delete_model(self, name: str, *, timeout_s: float | None = None) -> Job:
        return self._change(delete_input(name), timeout_s, None)

    def _change(
        self, job_input: Mapping[str, Any], timeout_s: float | None, on_event: OnEvent | None
    ) -> Job:
        job = self.submit("model", job_input, lane="interactive")
        return self.wait(job.id, timeout_s=timeout_s, on_event=on_event).require_success()

    # Conversations

    def start_conversation(
        self, metadata: Mapping[str, Any] | None = None, *, summarize: bool = False
    ) -> Conversation:
        """With `summarize`, what finds no room in the model's window later is summed up."""
        body = {"metadata": dict(metadata or {}), "summarize": summarize}
        # Repeating it blindly could start two.
        answer = self.transport.json("POST", "/v1/conversations", body=body, safe=False)
        return Conversation.model_validate(answer)

    def conversations(self, *, page_items: int = PAGE_ITEMS) -> Iterator[Conversation]:
        """Newest first, page by page."""
        return self._pages(Conversation, "/v1/conversations", {}, page_items)

    def conversation(self, conversation_id: str) -> Conversation:
        return self._get(Conversation, f"/v1/conversations/{part(conversation_id)}")

    def conversation_messages(self, conversation_id: str) -> Sequence[ConversationMessage]:
        """All of them, oldest first."""
        path = f"/v1/conversations/{part(conversation_id)}/messages"
        return list(self._pages(ConversationMessage, path, {}, PAGE_ITEMS))

    def erase_conversation(self, conversation_id: str) -> None:
        """With all its messages. Turns that are open end, and are not stored."""
        self.transport.request("DELETE", f"/v1/conversations/{part(conversation_id)}")


# The calls about what is stored: collections, documents, files.

_ERASE_WAIT_S = 2
"""What a deletion waits for is not known before its first answer."""


class DocumentCalls(JobCalls):
    """Deletions wait until text and vectors are gone."""

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
            f"/v1/collections/{part(name)}",
            body={key: value for key, value in body.items() if value is not None},
        )
        return Collection.model_validate(answer)

    def collection(self, name: str) -> Collection:
        return self._get(Collection, f"/v1/collections/{part(name)}")

    def collections(self, *, page_items: int = PAGE_ITEMS) -> Iterator[Collection]:
        return self._pages(Collection, "/v1/collections", {}, page_items)

    def delete_collection(
        self, name: str, *, timeout_s: float | None = None, on_waiting: Tell | None = None
    ) -> Job:
        """The `erase` job, succeeded: the documents, their text and their vectors are gone."""
        return self._erase(f"/v1/collections/{part(name)}", timeout_s, on_waiting)

    def documents(self, collection: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Document]:
        path = f"/v1/collections/{part(collection)}/documents"
        return self._pages(Document, path, {}, page_items)

    def document(self, document_id: str) -> Document:
        return self._get(Document, f"/v1/documents/{part(document_id)}")

    def chunks(self, document_id: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Chunk]:
        return self._pages(Chunk, f"/v1/documents/{part(document_id)}/chunks", {}, page_items)

    def delete_document(
        self, document_id: str, *, timeout_s: float | None = None, on_waiting: Tell | None = None
    ) -> Job:
        return self._erase(f"/v1/documents/{part(document_id)}", timeout_s, on_waiting)

    # Files

    def upload(self, source: str | Path | bytes, *, name: str | None = None) -> StoredFile:
        """Store a file; `name` becomes the document's `source` when it is ingested."""
        return upload(self.transport, source, name=name)

    def file(self, file_id: str) -> StoredFile:
        return self._get(StoredFile, f"/v1/files/{part(file_id)}")

    def delete_file(self, file_id: str) -> None:
        self.transport.request("DELETE", f"/v1/files/{part(file_id)}")

    def files_by_hash(self, sha256: Sequence[str]) -> list[StoredFile]:
        """The stored files with one of these hashes (hexadecimal), in any order."""
        files: list[StoredFile] = []
        # Fifty hashes make a URL of 4 KB, which also proxies with small buffers let through.
        for start in range(0, len(sha256), 50):
            params = {"sha256": list(sha256[start : start + 50])}
            items = self.transport.listed("GET", "/v1/files", params=params)
            files += [StoredFile.model_validate(item) for item in items]
        return files

    def _erase(self, path: str, timeout_s: float | None, on_waiting: Tell | None) -> Job:
        headers = {"Prefer": f"wait={_ERASE_WAIT_S}"}
        answer = self.transport.json("DELETE", path, headers=headers, wait_s=_ERASE_WAIT_S)
        job = Job.model_validate(answer)
        if not job.ended:
            job = self.wait(job.id, timeout_s=timeout_s, on_waiting=on_waiting)
        return job.require_success()


_PREFIX = re.compile(r"[0-9a-fA-F-]+")
_SHORTEST, _DIGITS = 4, 32
_SHOWN_IDS = 3


class Calls(DocumentCalls, GenerationCalls):
    """All calls; here are those about the system itself."""

    def queues(self) -> list[Queue]:
        return self._all(Queue, "/v1/queues")

    def pause(self, queue: str) -> None:
        """Let no step of this queue start; what runs goes on."""
        self._post(f"/v1/queues/{part(queue)}/pause")

    def resume(self, queue: str) -> None:
        self._post(f"/v1/queues/{part(queue)}/resume")

    def workers(self) -> list[Worker]:
        return self._all(Worker, "/v1/workers")

    def whole_id(self, type: str, prefix: str) -> str:
        """The id of the one job, document, file or conversation that begins so.

        What is no beginning of an id, or of none, is given back as it is, for the API to refuse.
        Raises `NotFound` where several begin so.
        """
        digits = prefix.replace("-", "")
        if not _PREFIX.fullmatch(prefix) or not _SHORTEST <= len(digits) < _DIGITS:
            return prefix
        params = {"type": type, "prefix": prefix}
        ids = [str(item["id"]) for item in self.transport.listed("GET", "/v1/ids", params=params)]
        if len(ids) > 1:
            raise NotFound(
                f"More than one {type} begins with {prefix}; give more of the id: "
                f"{', '.join(ids[:_SHOWN_IDS])}{', …' if len(ids) > _SHOWN_IDS else ''}"
            )
        return ids[0] if ids else prefix

    def health(self) -> bool:
        """Whether the API itself answers."""
        return self.transport.request("GET", "/healthz").status_code == 200

    def ready(self) -> Readiness:
        """Whether everything that jobs need is there, part by part."""
        answer = self.transport.json("GET", "/readyz", accept_status=(503,))
        return Readiness.model_validate(answer)


# Files that a job reads once: uploaded before it, and deleted when it has succeeded.
#
# Each is an upload of its own, whatever lies in the storage already, so that no other job can
# be using it. After a failure it stays, for the job may be redriven or go on.

UNNAMED = "input"


@contextmanager
def attached(calls: DocumentCalls, inputs: Any) -> Iterator[Any]:
    """The inputs with every `Path` and all bytes replaced by what the API knows them by."""
    ids: list[str] = []

    def sent(value: Any) -> Any:
        if not isinstance(value, bytes | Path):
            return value
        name = UNNAMED if isinstance(value, bytes) else None
        ids.append(calls.upload(value, name=name).id)
        return {"file_id": ids[-1]}

    try:
        named = [sent(each) for each in inputs] if isinstance(inputs, list) else sent(inputs)
    except BaseException:
        _delete(calls, ids)
        raise
    yield named
    _delete(calls, ids)


def _delete(calls: DocumentCalls, ids: list[str]) -> None:
    """What cannot be deleted harms nobody."""
    for file_id in ids:
        with suppress(SluiceError):
            calls.delete_file(file_id)
