"""The events of a job, as a stream."""

import json
import re
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Response
from sqlalchemy.orm import load_only
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api.deps import FairKey, JobId, Parts, PartsDep
from api.http.answers import as_json, job_view
from api.jobs.following import START, StreamEntry, Update
from api.jobs.texts import TextPiece, Unread, entries
from api.openapi import documented
from api.schemas import JobView
from shared.bounds import one_line
from shared.errors import NotFound
from shared.jobs import jobs
from shared.kinds.registry import KINDS
from shared.redis.events import EventType
from shared.tables import Job
from shared.vocabulary import ENDED, State, known


@dataclass(frozen=True, kw_only=True)
class StreamedJob:
    """What a stream needs to know of its job; without fields that may be large."""

    id: UUID
    kind: str
    state: State
    progress: dict[str, Any]
    finished_at: datetime | None
    shows_text: bool
    """Whether the key may read the text that the job generates."""


def streamed_job(parts: Parts, job_id: UUID, fair_key: str) -> StreamedJob:
    """Raises NotFound."""
    columns = (
        Job.id, Job.kind, Job.state, Job.progress_done, Job.progress_total, Job.progress_unit,
        Job.finished_at, Job.private, Job.fair_key,
    )  # fmt: skip
    with parts.ledger.read() as session:
        job = session.get(Job, job_id, options=[load_only(*columns, raiseload=True)])
        if job is None:
            raise NotFound(f"There is no job {job_id}.")
        return StreamedJob(
            id=job.id,
            kind=job.kind,
            state=known(job.state),
            progress={
                "done": job.progress_done,
                "total": job.progress_total,
                "unit": job.progress_unit,
            },
            finished_at=job.finished_at,
            shows_text=not jobs.hides_text(job, fair_key),
        )


# A job's events as Server-Sent Events: `state`, `progress`, `token`, `tool`, `end`.
#
# The ids are those of the job's Redis stream, so that `Last-Event-ID` resumes it; once text was
# sent, they are followed by `~step.offset` for each step with text. An event from Postgres has the
# id after which the stream continues: that of the last entry, or of the stream's start. The id of
# `end` is made from the time of the job's end: a client that sends it has had everything.

EVENT_ID = re.compile(r"(\d{1,20}-\d{1,20})((?:~\d{1,18}\.\d{1,9})*)")
EVENT_ID_CHARS = 8192
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_TYPES = frozenset(EventType)
HEARTBEAT = b": still here\n\n"


def end_id(job: JobView | StreamedJob) -> str:
    ended_s = job.finished_at.timestamp() if job.finished_at is not None else 0
    return f"{int(ended_s * 1000)}-end"


def is_over(job: StreamedJob, last_event_id: str | None) -> bool:
    """Whether the client has had the job's `end` already."""
    return job.state in ENDED and last_event_id == end_id(job)


async def events(
    parts: Parts, job: StreamedJob, last_event_id: str | None, fair_key: str
) -> AsyncIterator[bytes]:
    """All events after an id that the key may see, up to `end`. `job` has just been read."""
    stream = _Stream(parts, job, last_event_id, fair_key)
    begin = stream.at
    # Existing entries come first, then what only the row has.
    while read := await entries(parts, job.id, stream.at):
        for frame in await stream.of_entries(read):
            yield frame
    if stream.at == begin and job.state not in ENDED:
        frames = await stream.of_open(job.state, job.progress)
    else:
        frames = await stream.look()
    with parts.followers.follow(job.id, stream.at) as follower:
        sent_at = time.monotonic()
        wait_s = min(parts.settings.sse_poll_s, parts.settings.sse_heartbeat_s)
        while True:
            for frame in frames:
                sent_at = time.monotonic()
                yield frame
            if stream.is_over or parts.stopping.is_set():
                return
            update = await follower.next(wait_s)
            frames = [] if update is None else await stream.of_update(update)
            if time.monotonic() - sent_at >= parts.settings.sse_heartbeat_s:
                frames.append(HEARTBEAT)


class _Stream:
    """What one client has had of a job's events; makes the frames of the rest."""

    def __init__(
        self,
        parts: Parts,
        job: StreamedJob,
        last_event_id: str | None,
        fair_key: str,
    ) -> None:
        self._parts = parts
        self._id = job.id
        self._fair_key = fair_key
        self._shows_text = job.shows_text
        self._generates = job.shows_text and _is_generated(job.kind)
        self.at, offsets = _parse_id(last_event_id)
        self._unread = Unread(parts, job.id, offsets)
        self._sent: dict[str, Any] = {}
        self._shown_bytes: int | None = None
        self._may_be_over = False
        self.is_over = False

    async def of_update(self, update: Update) -> list[bytes]:
        frames = await self.of_entries(update.entries)
        row = update.row
        if update.is_gone or (row is not None and row.state in ENDED):
            # The stream may have the events before the end already.
            frames += await self.of_entries(await entries(self._parts, self._id, self.at))
            self._may_be_over = True
        if self._may_be_over:
            return frames + await self.look()
        if row is not None:
            if self._generates and row.shown_bytes != self._shown_bytes:
                self._shown_bytes = row.shown_bytes
                frames += await self._unread_text()
            frames += self._unsent(str(row.state), row.progress)
        return frames

    async def of_entries(self, entries: Sequence[StreamEntry]) -> list[bytes]:
        frames: list[bytes] = []
        for entry in entries:
            self.at = entry.id
            if entry.type == EventType.END:
                # A job that was redriven has an old `end` in its stream, and goes on.
                self._may_be_over = True
                continue
            if entry.type in (EventType.TOKEN, EventType.TOOL) and not self._shows_text:
                continue
            data = _data_of(entry)
            if data is None:
                continue
            if entry.type == EventType.TOKEN:
                frames += self._tokens(await self._unread.of_token(data))
                continue
            if entry.type == EventType.STATE and self._sent.get(entry.type) == data:
                continue  # it was sent from the row before
            self._sent[entry.type] = data
            frames.append(encode(entry.type, entry.data, self._event_id()))
        return frames

    async def look(self) -> list[bytes]:
        """The frames of what only Postgres has; with `end` if the job has ended."""
        self._may_be_over = False
        try:
            job = await run_in_threadpool(job_view, self._parts, self._id, self._fair_key)
        except NotFound:  # retention has removed the job meanwhile
            self.is_over = True
            return []
        if job.state in ENDED:
            self.is_over = True
            text = await self._unread_text() if self._generates else []
            return [*text, encode(EventType.END, as_json(job), end_id(job))]
        return await self.of_open(job.state, job.progress.model_dump())

    async def of_open(self, state: str, progress: dict[str, Any]) -> list[bytes]:
        text = await self._unread_text() if self._generates else []
        return text + self._unsent(str(state), progress)

    def _unsent(self, state: str, progress: dict[str, Any]) -> list[bytes]:
        """The frames of the state and the progress that differ from what was sent last."""
        now: list[tuple[EventType, dict[str, Any]]] = [(EventType.STATE, {"state": state})]
        if progress["unit"] is not None:
            now.append((EventType.PROGRESS, progress))
        frames = []
        for type_, data in now:
            if self._sent.get(type_) != data:
                self._sent[type_] = data
                frames.append(encode(type_, _json(data), self._event_id()))
        return frames

    async def _unread_text(self) -> list[bytes]:
        return self._tokens(await self._unread.of_database())

    def _tokens(self, pieces: Sequence[TextPiece]) -> list[bytes]:
        return [
            encode(EventType.TOKEN, _json(piece.data), _id(self.at, piece.offsets))
            for piece in pieces
        ]

    def _event_id(self) -> str:
        """The id of an event that is sent now: the positions in the stream and in the text."""
        return _id(self.at, self._unread.offsets)


def _id(entry_id: str, offsets: Mapping[int, int]) -> str:
    return entry_id + "".join(f"~{step_id}.{offset}" for step_id, offset in sorted(offsets.items()))


def _is_generated(kind: str) -> bool:
    definition = KINDS.get(kind)
    return definition is not None and definition.is_generated


def _data_of(entry: StreamEntry) -> dict[str, Any] | None:
    """The data of an entry; None if Sluice has not written it."""
    try:
        data = json.loads(entry.data)
    except (ValueError, RecursionError):
        return None
    return data if entry.type in _TYPES and isinstance(data, dict) else None


def _parse_id(last_event_id: str | None) -> tuple[str, Mapping[int, int]]:
    """The positions in the stream and in the text of each step, from `Last-Event-ID`."""
    match = EVENT_ID.fullmatch((last_event_id or "")[:EVENT_ID_CHARS])
    if match is None or any(int(part) >= 2**64 for part in match[1].split("-")):
        return START, {}
    pairs = (pair.split(".") for pair in match[2].split("~")[1:])
    return match[1], {int(step_id): int(offset) for step_id, offset in pairs}


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def encode(type_: str, data: str, id_: str) -> bytes:
    """The frame of an event; `data` is JSON."""
    return f"id: {id_}\nevent: {type_}\ndata: {one_line(data)}\n\n".encode()


router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

RESPONSES = documented({}, 404) | {
    200: {
        "description": "`state`, `progress`, `token`, `tool`, `end`; the last carries the job",
        "content": {
            "text/event-stream": {
                "schema": {
                    "description": "An event: `data` is JSON, `id` is for `Last-Event-ID`",
                    "properties": {
                        "id": {"type": "string"},
                        "event": {"enum": [type_.value for type_ in EventType]},
                        "data": {"type": "string"},
                    },
                }
            }
        },
    },
    204: {"description": "The client has had the `end` already"},
}


@router.get("/{job_id}/events", responses=RESPONSES)
async def stream_job_events(
    parts: PartsDep,
    fair_key: FairKey,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """The events of a job as Server-Sent Events; they resume after `Last-Event-ID`."""
    job = await run_in_threadpool(streamed_job, parts, job_id, fair_key)
    if is_over(job, last_event_id):
        return Response(status_code=204)
    parts.followers.check_room()
    return StreamingResponse(
        events(parts, job, last_event_id, fair_key),
        media_type="text/event-stream",
        headers=HEADERS,
    )
