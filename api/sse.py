"""A job's events as Server-Sent Events: `state`, `progress`, `token`, `tool`, `end`.

Ids are those of the job's Redis stream, so that `Last-Event-ID` resumes it; once text was told,
with the place in it behind a `~`. What comes from Postgres instead carries the id to resume from:
of the last entry seen, or the stream's start. `end` has an id of its own, made from the job's end,
by which a client that has it is known.
"""

import json
import re
import time
from collections.abc import AsyncIterator
from typing import Any

from starlette.concurrency import run_in_threadpool

from api import streams
from api.deps import Parts
from api.schemas import JobView
from api.telling import Place, Telling
from shared.errors import NotFound
from shared.events import EventType
from shared.states import OPEN

EVENT_ID = re.compile(r"(\d{1,20}-\d{1,20})(?:~(\d{1,18})\.(\d{1,18}))?")
EVENT_ID_CHARS = 100
HEADERS = {"Cache-Control": "no-store", "X-Accel-Buffering": "no"}
HEARTBEAT = b": still here\n\n"


def end_id(job: JobView) -> str:
    assert job.finished_at is not None
    return f"{int(job.finished_at.timestamp() * 1000)}-end"


def is_over(job: JobView, last_event_id: str | None) -> bool:
    """Whether the client has already had the job's `end`."""
    return job.state not in OPEN and last_event_id == end_id(job)


async def events(
    parts: Parts, job: JobView, last_event_id: str | None, fair_key: str
) -> AsyncIterator[bytes]:
    """All events after an id that the key may see, up to `end`; then the stream closes."""
    job_id = job.id
    shows_text = await run_in_threadpool(streams.shows_text, parts, job_id, fair_key)
    at, place = _resumed(last_event_id)
    telling = Telling(parts, job_id, place)
    told: dict[str, Any] = {}
    was_open, block_s, heard_at = job.state in OPEN, 0.0, time.monotonic()
    while not parts.stopping.is_set():
        entries = await streams.read(parts, job_id, at, block_s=block_s)
        if was_open:
            block_s = min(parts.settings.sse_poll_s, parts.settings.sse_heartbeat_s)
        has_end = False
        for entry in entries or ():
            at = entry.id
            if entry.type == EventType.END:
                has_end = True
                continue
            if entry.type in (EventType.TOKEN, EventType.TOOL) and not shows_text:
                continue
            data = json.loads(entry.data)
            heard_at = time.monotonic()
            if entry.type == EventType.TOKEN:
                for token in await telling.hear(data):
                    yield encode(EventType.TOKEN, _json(token.data), token.id(at))
                continue
            told[entry.type] = data
            yield encode(entry.type, entry.data, telling.id(at))
        if has_end or not entries:
            try:
                job = await run_in_threadpool(streams.view, parts, job_id, fair_key)
            except NotFound:  # removed by retention meanwhile
                return
            if job.kind in telling.KINDS and shows_text:
                for token in await telling.catch_up():
                    heard_at = time.monotonic()
                    yield encode(EventType.TOKEN, _json(token.data), token.id(at))
            # A job that was redriven has an old `end` in its stream, and goes on.
            if job.state not in OPEN:
                yield encode(EventType.END, job.model_dump_json(), end_id(job))
                return
            for type_, data in _unheard(job, told):
                told[type_] = data
                heard_at = time.monotonic()
                yield encode(type_, _json(data), telling.id(at))
        if entries is None:
            await streams.pause(parts)
        if time.monotonic() - heard_at >= parts.settings.sse_heartbeat_s:
            heard_at = time.monotonic()
            yield HEARTBEAT


def _resumed(last_event_id: str | None) -> tuple[str, Place]:
    found = EVENT_ID.fullmatch((last_event_id or "")[:EVENT_ID_CHARS])
    if found is None or any(int(part) >= 2**64 for part in found[1].split("-")):
        return streams.START, Place()
    return found[1], Place(step_id=int(found[2] or 0), offset=int(found[3] or 0))


def _unheard(job: JobView, told: dict[str, Any]) -> list[tuple[EventType, dict[str, Any]]]:
    """What Postgres knows and the stream did not tell, or told otherwise."""
    now: list[tuple[EventType, dict[str, Any]]] = [(EventType.STATE, {"state": job.state.value})]
    if job.progress.unit is not None:
        now.append((EventType.PROGRESS, job.progress.model_dump()))
    return [(type_, data) for type_, data in now if told.get(type_) != data]


def _json(data: dict[str, Any]) -> str:
    return json.dumps(data, ensure_ascii=False)


def encode(type_: str, data: str, id_: str) -> bytes:
    """`data` is JSON, which has no line breaks."""
    return f"id: {id_}\nevent: {type_}\ndata: {data}\n\n".encode()
