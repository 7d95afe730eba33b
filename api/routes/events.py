"""The events of a job, as a stream."""

import json
import re
import time
from collections.abc import AsyncIterator, Sequence
from dataclasses import dataclass
from typing import Annotated, Any
from uuid import UUID

from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api.deps import FairKey, JobId, Parts, PartsDep
from api.http.answers import as_json, documented
from api.jobs import streams
from api.jobs.news import Entry, Word
from api.jobs.streams import Outline
from api.schemas import JobView
from shared.errors import NotFound
from shared.kinds.registry import KINDS
from shared.redis.events import EventType
from shared.vocabulary import ENDED

# Telling one client the text that a job generates: each character once, whatever is lost.
#
# A `token` event is `{"step", "offset", "text"}`: text of one step, from a character on. The
# stream in Redis may have lost entries, tell some twice, or hold those of a run before a
# redrive; Postgres has all that was shown (`shared/conversations.py`), and is asked where the
# stream has a gap.


@dataclass(frozen=True, kw_only=True)
class Place:
    """How far a client has read: so many characters of the text of that step."""

    step_id: int = 0
    offset: int = 0


@dataclass(frozen=True, kw_only=True)
class Token:
    """The data of a `token` event, and how far a client has read that has it."""

    data: dict[str, Any]
    place: Place

    def id(self, entry_id: str) -> str:
        return _id(entry_id, self.place)


def _id(entry_id: str, place: Place) -> str:
    return f"{entry_id}~{place.step_id}.{place.offset}" if place.step_id else entry_id


class Telling:
    def __init__(self, parts: Parts, job_id: UUID, place: Place) -> None:
        self._parts = parts
        self._job_id = job_id
        self._place = place

    def id(self, entry_id: str) -> str:
        """The id of an event told now: where to go on in the stream, and in the text."""
        return _id(entry_id, self._place)

    async def hear(self, token: dict[str, Any]) -> list[Token]:
        """What of a `token` of the stream is news to the client, with what it missed before."""
        try:
            step_id, offset, text = int(token["step"]), int(token["offset"]), str(token["text"])
        except (KeyError, TypeError, ValueError):  # nothing of Sluice's has written it
            return []
        place = self._place
        if step_id < place.step_id:
            return []
        if step_id > place.step_id or offset > place.offset:
            # A step that is new here, or a gap. Postgres knows whether there is such a step.
            return await self.catch_up()
        return self._advance(step_id, place.offset, text[place.offset - offset :])

    async def catch_up(self) -> list[Token]:
        """All that Postgres has and the client does not."""
        place = self._place
        pieces = await run_in_threadpool(
            streams.shown_text,
            self._parts,
            self._job_id,
            step_id=place.step_id,
            offset=place.offset,
        )
        return [
            token
            for each in pieces
            for token in self._advance(each.step_id, each.offset, each.text)
        ]

    def _advance(self, step_id: int, offset: int, text: str) -> list[Token]:
        if not text:
            return []
        self._place = Place(step_id=step_id, offset=offset + len(text))
        data = {"step": step_id, "offset": offset, "text": text}
        return [Token(data=data, place=self._place)]


# A job's events as Server-Sent Events: `state`, `progress`, `token`, `tool`, `end`.
#
# Ids are those of the job's Redis stream, so that `Last-Event-ID` resumes it; once text was
# told, with the place in it behind a `~`. What comes from Postgres instead carries the id to
# resume from: of the last entry seen, or the stream's start. `end` has an id of its own, made
# from the job's end, by which a client that has it is known.

EVENT_ID = re.compile(r"(\d{1,20}-\d{1,20})(?:~(\d{1,18})\.(\d{1,18}))?")
EVENT_ID_CHARS = 100
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
_TYPES = frozenset(EventType)
HEARTBEAT = b": still here\n\n"


def end_id(job: JobView | Outline) -> str:
    ended_s = job.finished_at.timestamp() if job.finished_at is not None else 0
    return f"{int(ended_s * 1000)}-end"


def is_over(job: Outline, last_event_id: str | None) -> bool:
    """Whether the client has already had the job's `end`."""
    return job.state in ENDED and last_event_id == end_id(job)


async def events(
    parts: Parts, job: Outline, last_event_id: str | None, fair_key: str
) -> AsyncIterator[bytes]:
    """All events after an id that the key may see, up to `end`; then the stream closes.

    `job` is as it is now.
    """
    stream = _Stream(parts, job, last_event_id, fair_key)
    begin = stream.at
    # What is there already comes first, and then what the row says besides.
    while entries := await streams.read(parts, job.id, stream.at):
        for frame in await stream.of_entries(entries):
            yield frame
    if stream.at == begin and job.state not in ENDED:
        frames = await stream.of_open(job.state, job.progress)
    else:
        frames = await stream.look()
    with parts.news.follow(job.id, stream.at) as follower:
        heard_at = time.monotonic()
        wait_s = min(parts.settings.sse_poll_s, parts.settings.sse_heartbeat_s)
        while True:
            for frame in frames:
                heard_at = time.monotonic()
                yield frame
            if stream.is_over or parts.stopping.is_set():
                return
            word = await follower.next(wait_s)
            frames = [] if word is None else await stream.of_word(word)
            if time.monotonic() - heard_at >= parts.settings.sse_heartbeat_s:
                frames.append(HEARTBEAT)


class _Stream:
    """What one client has heard of a job, and how the rest is written."""

    def __init__(
        self,
        parts: Parts,
        job: Outline,
        last_event_id: str | None,
        fair_key: str,
    ) -> None:
        self._parts = parts
        self._id = job.id
        self._fair_key = fair_key
        self._shows_text = job.shows_text
        self._generates = job.shows_text and _is_generated(job.kind)
        self.at, place = _resumed(last_event_id)
        self._telling = Telling(parts, job.id, place)
        self._heard: dict[str, Any] = {}
        self._shown_bytes: int | None = None
        self._may_be_over = False
        self.is_over = False

    async def of_word(self, word: Word) -> list[bytes]:
        frames = await self.of_entries(word.entries)
        row = word.row
        if word.is_gone or (row is not None and row.state in ENDED):
            # What led to the end may be in the stream already.
            frames += await self.of_entries(await streams.read(self._parts, self._id, self.at))
            self._may_be_over = True
        if self._may_be_over:
            return frames + await self.look()
        if row is not None:
            if self._generates and row.shown_bytes != self._shown_bytes:
                self._shown_bytes = row.shown_bytes
                frames += await self._unread_text()
            frames += self._unheard(str(row.state), row.progress)
        return frames

    async def of_entries(self, entries: Sequence[Entry]) -> list[bytes]:
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
                frames += self._tokens(await self._telling.hear(data))
                continue
            if entry.type == EventType.STATE and self._heard.get(entry.type) == data:
                continue  # the row told it first
            self._heard[entry.type] = data
            frames.append(encode(entry.type, entry.data, self._telling.id(self.at)))
        return frames

    async def look(self) -> list[bytes]:
        """What Postgres has besides."""
        self._may_be_over = False
        try:
            job = await run_in_threadpool(streams.view, self._parts, self._id, self._fair_key)
        except NotFound:  # removed by retention meanwhile
            self.is_over = True
            return []
        if job.state in ENDED:
            self.is_over = True
            text = await self._unread_text() if self._generates else []
            return [*text, encode(EventType.END, as_json(job), end_id(job))]
        return await self.of_open(job.state, job.progress.model_dump())

    async def of_open(self, state: str, progress: dict[str, Any]) -> list[bytes]:
        text = await self._unread_text() if self._generates else []
        return text + self._unheard(str(state), progress)

    def _unheard(self, state: str, progress: dict[str, Any]) -> list[bytes]:
        """What Postgres knows and the stream did not tell, or told otherwise."""
        now: list[tuple[EventType, dict[str, Any]]] = [(EventType.STATE, {"state": state})]
        if progress["unit"] is not None:
            now.append((EventType.PROGRESS, progress))
        frames = []
        for type_, data in now:
            if self._heard.get(type_) != data:
                self._heard[type_] = data
                frames.append(encode(type_, _json(data), self._telling.id(self.at)))
        return frames

    async def _unread_text(self) -> list[bytes]:
        return self._tokens(await self._telling.catch_up())

    def _tokens(self, tokens: Sequence[Token]) -> list[bytes]:
        return [encode(EventType.TOKEN, _json(each.data), each.id(self.at)) for each in tokens]


def _is_generated(kind: str) -> bool:
    definition = KINDS.get(kind)
    return definition is not None and definition.is_generated


def _data_of(entry: Entry) -> dict[str, Any] | None:
    """None of what no part of Sluice has written."""
    try:
        data = json.loads(entry.data)
    except (ValueError, RecursionError):
        return None
    return data if entry.type in _TYPES and isinstance(data, dict) else None


def _resumed(last_event_id: str | None) -> tuple[str, Place]:
    match = EVENT_ID.fullmatch((last_event_id or "")[:EVENT_ID_CHARS])
    if match is None or any(int(part) >= 2**64 for part in match[1].split("-")):
        return streams.START, Place()
    return match[1], Place(step_id=int(match[2] or 0), offset=int(match[3] or 0))


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def encode(type_: str, data: str, id_: str) -> bytes:
    """`data` is JSON, which has no line breaks."""
    return f"id: {id_}\nevent: {type_}\ndata: {data}\n\n".encode()


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
    """Server-Sent Events; resumes after `Last-Event-ID`."""
    job = await run_in_threadpool(streams.outline, parts, job_id, fair_key)
    if is_over(job, last_event_id):
        return Response(status_code=204)
    parts.news.check_room()
    return StreamingResponse(
        events(parts, job, last_event_id, fair_key),
        media_type="text/event-stream",
        headers=HEADERS,
    )
