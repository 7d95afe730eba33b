"""A job followed through its Server-Sent Events until it ends, and what these events say.

A stream that drops, stays silent, or loses its server for a while is resumed from the last event.
Between streams the job itself is read, so its end is seen even where a proxy holds events back:
the stream of a job that has ended is complete, and closes.

The API sends each character of a text once (`EventReader`). What comes twice all the same is
dropped here, and what is missing at the end is taken from the job's result.
"""

import json
import re
import time
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator
from dataclasses import dataclass
from typing import Any

import httpx

from sluice.errors import ApiError, SluiceError, WaitTimeout
from sluice.shapes import Batch, Event, Job, State
from sluice.transport import Background, Transport

SILENCE_S = 15.0
"""After so long without a byte, the job is read directly."""
LAST_TRIES = 3
"""How often the stream of a job that has ended is opened; then the job itself has to do."""
_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)


async def follow(
    transport: Transport, job_id: str, *, last_event_id: str | None, timeout_s: float | None
) -> AsyncGenerator[Event, None]:
    """The events of a job, up to and with `end`, whose data is the whole job.

    Raises `WaitTimeout`, `ApiError` (404 for an unknown job), or `ConnectionFailed` when the API
    stays away for longer than the transport's retries.
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
            parser = EventParser()
            async with transport.stream(path, headers=headers, silence_s=silence_s) as chunks:
                async for chunk in chunks:
                    for event in parser.feed(chunk):
                        fruitless = 0
                        last_event_id = event.id or last_event_id
                        yield event
                        if event.event == "end":
                            return
                    # Looked at with every piece, since comments keep a silent stream alive.
                    if deadline is not None and time.monotonic() >= deadline:
                        break
        except httpx.TransportError:
            pass  # Reading the job, below, is what retries, and what raises.
        except ApiError as error:
            if error.status != 429 and error.status < 500:
                raise
        job = Job.model_validate(await transport.json("GET", f"/v1/jobs/{job_id}"))
        if job.ended and last_tries < LAST_TRIES:
            # What happened since the stream broke is still to come.
            await transport.pause(_PAUSES_S[last_tries])
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
        await transport.pause(pause_s)


class EventParser:
    """Server-Sent Events from bytes, in whatever pieces these come.

    Lines are split at line feeds only: `str.splitlines` also splits at characters such as U+2028
    that may well stand inside the data.
    """

    def __init__(self) -> None:
        self._rest = b""
        self._id: str | None = None
        self._name = "message"
        self._data: list[str] = []

    def feed(self, chunk: bytes) -> Iterator[Event]:
        *lines, self._rest = (self._rest + chunk).split(b"\n")
        for line in lines:
            event = self._event_at(line.removesuffix(b"\r").decode("utf-8", "replace"))
            if event is not None:
                yield event

    def _event_at(self, line: str) -> Event | None:
        """The event that an empty line ends."""
        if line:
            field, _, value = line.partition(":")
            value = value.removeprefix(" ")
            if field == "id":
                self._id = value
            elif field == "event":
                self._name = value
            elif field == "data":
                self._data.append(value)
            return None
        name, data = self._name, self._data
        self._name, self._data = "message", []
        return Event(id=self._id, event=name, data=_object("\n".join(data))) if data else None


def _object(text: str) -> dict[str, object]:
    try:
        value = json.loads(text)
    except ValueError:
        value = text
    return value if isinstance(value, dict) else {"value": value}


def _left(deadline: float) -> float:
    return min(SILENCE_S, max(0.05, deadline - time.monotonic()))


# What the events say: pieces of text, runs of tools, and the ended job.


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Text that a step of the job has generated. An agent's answers are steps of their own."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """A tool that the model has called: without a result when it begins, with one at its end."""

    id: str
    name: str
    arguments: dict[str, Any] | None = None
    result: str | None = None


StreamItem = TextPiece | ToolRun | Job


class EventReader:
    """Events, one after the other, as what they say."""

    def __init__(self, *, is_whole: bool) -> None:
        """`is_whole` says that the events begin with the job's first one."""
        self._is_whole = is_whole
        self._step, self._text, self._ends_at = 0, "", 0

    def items(self, event: Event) -> Iterator[StreamItem]:
        data = event.data
        if event.event == "token":
            yield from self._pieces(int(data["step"]), int(data["offset"]), str(data["text"]))
        elif event.event == "tool":
            yield ToolRun(
                id=str(data.get("id", "")),
                name=str(data.get("name", "")),
                arguments=data.get("arguments"),
                result=data.get("result"),
            )
        elif event.event == "end":
            job = Job.model_validate(data)
            yield from self._rest(answer_of(job))
            yield job

    def _pieces(self, step: int, offset: int, text: str) -> Iterator[TextPiece]:
        if step < self._step:
            return
        if step > self._step:
            self._step, self._text, self._ends_at = step, "", 0
        if not self._text:
            self._ends_at = max(self._ends_at, offset)
        new = text[max(0, self._ends_at - offset) :]
        if new:
            self._text, self._ends_at = self._text + new, offset + len(text)
            yield TextPiece(step=step, text=new)

    def _rest(self, answer: str) -> Iterator[TextPiece]:
        """What the answer has beyond the text that has come."""
        step, text, ends_at = self._step, self._text, self._ends_at
        if not text:
            rest = answer if self._is_whole else ""  # An answer that quotes comes in no pieces.
        elif answer[max(0, ends_at - len(text)) : ends_at] == text:
            rest = answer[ends_at:]
        else:
            step, rest = step + 1, answer  # of a step of which nothing has come
        if rest:
            yield TextPiece(step=step, text=rest)


def answer_of(job: Job) -> str:
    """The text that a job has answered with; empty where it has none."""
    if job.state is not State.SUCCEEDED or not isinstance(job.result, dict):
        return ""
    message = job.result.get("message")
    answer = message.get("content") if isinstance(message, dict) else job.result.get("answer")
    return answer if isinstance(answer, str) else ""


OnEvent = Callable[[Event], object]

# What an open job waits for, reported as it changes, while its end is awaited elsewhere.

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 3.0

# What goes on changing while the reason stays the same.
_NUMBERS = re.compile(r"\d[\d.,:TZ-]*")
_NEXT_TRY = re.compile(r" ?The next attempt begins .*", re.DOTALL)

OnReason = Callable[[str | None], object]
"""Called with the reason, or with None when there is none any more."""


def by_line(say: Callable[[str], object]) -> OnReason:
    """For what is read line by line: a reason is said once, however its times go on, and not again
    after a try that came to nothing."""
    last: str | None = None

    def on_reason(reason: str | None) -> None:
        nonlocal last
        if reason is None:
            return
        same = _NUMBERS.sub("#", _NEXT_TRY.sub("", reason))
        if same != last:
            last = same
            say(f"Waiting: {reason}")

    return on_reason


async def report_reasons(
    read: Callable[[], Coroutine[Any, Any, Job | Batch]],
    on_reason: OnReason,
    background: Background,
    *,
    known: str | None,
) -> None:
    """Until the block that it runs beside ends, or the job does; `known` is reported already.

    No event says what a job waits for, so the job is read, at growing intervals. A read that
    fails is repeated; whoever waits for the end has the retries, and the errors.
    """
    last, pause_s = known, FIRST_PAUSE_S
    while await background.pause(pause_s):
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        try:
            job = await read()
        except (SluiceError, ValueError):
            continue
        if job.ended:
            return
        if job.waiting_for != last:
            last = job.waiting_for
            background.call(on_reason, last)
