"""Following a job through its Server-Sent Events until it ends.

A stream that drops, stays silent, or loses its server for a while is resumed from the last event.
Between streams the job itself is asked, so its end is seen even where a proxy holds events back:
the stream of a job that has ended is complete, and closes.
"""

import json
import time
from collections.abc import Iterable, Iterator

import httpx

from cli.errors import ApiError, WaitTimeout
from cli.transport import Transport
from cli.wire import Event, Job

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
