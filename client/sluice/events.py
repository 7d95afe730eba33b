"""Server-Sent Events of a job, followed until the job ends; and the text and tool runs in them.

A stream that breaks, stays silent, or loses its server for a while is resumed from the last event.
Between two streams the job itself is read, so its end is noticed even if a proxy holds events
back. The stream of an ended job is complete, and closes.

The API sends each character of a text once. Text that comes twice all the same is dropped here
(`EventReader`), and text that is missing at the end is taken from the job's result.
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
"""After this time without a byte, the job is read directly."""
LAST_TRIES = 3
"""How often the stream of an ended job is opened before its events are given up."""
_PAUSES_S = (0.0, 0.2, 0.5, 1.0, 2.0)


async def follow(
    transport: Transport, job_id: str, *, last_event_id: str | None, timeout_s: float | None
) -> AsyncGenerator[Event, None]:
    """The events of a job up to `end`, whose data is the whole job.

    Raises `WaitTimeout`, `ApiError` (404 for an unknown job), or `ConnectionFailed` if the API
    does not answer for longer than the transport's retries.
    """
    deadline = None if timeout_s is None else time.monotonic() + timeout_s
    empty_streams = last_tries = 0
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
                        empty_streams = 0
                        last_event_id = event.id or last_event_id
                        yield event
                        if event.event == "end":
                            return
                    # Checked with every chunk: comments keep a stream without events open.
                    if deadline is not None and time.monotonic() >= deadline:
                        break
        except httpx.TransportError:
            pass  # Reading the job, below, has the retries and raises the error.
        except ApiError as error:
            if error.status != 429 and error.status < 500:
                raise
        job = Job.model_validate(await transport.json("GET", f"/v1/jobs/{job_id}"))
        if job.ended and last_tries < LAST_TRIES:
            # A new stream has the events since this one broke.
            await transport.pause(_PAUSES_S[last_tries])
            last_tries += 1
            continue
        if job.ended:
            data = job.model_dump(mode="json")
            yield Event(id=last_event_id, event="end", data=data)
            return
        pause_s = _PAUSES_S[min(empty_streams, len(_PAUSES_S) - 1)]
        empty_streams += 1
        if deadline is not None and time.monotonic() + pause_s >= deadline:
            raise WaitTimeout(job_id, timeout_s or 0.0)
        await transport.pause(pause_s)


class EventParser:
    """Server-Sent Events from chunks of bytes of any size.

    Lines end with line feeds only. `str.splitlines` would also split at characters such as U+2028,
    which may be part of the data.
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
        """The event, if this is the empty line that ends one."""
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


# The content of events: pieces of text, tool runs, and the ended job.


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Text that a step of the job has generated. Each answer of an agent is a step of its own."""

    step: int
    text: str


@dataclass(frozen=True, kw_only=True)
class ToolRun:
    """A tool call of the model: once without a result when it begins, once with its result."""

    id: str
    name: str
    arguments: dict[str, Any] | None = None
    result: str | None = None


StreamItem = TextPiece | ToolRun | Job


class EventReader:
    """The content of events, which are read one after the other."""

    def __init__(self, *, is_whole: bool) -> None:
        """`is_whole`: the first event is the job's first one."""
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
        """The text of the answer that no event has had."""
        step, text, ends_at = self._step, self._text, self._ends_at
        if not text:
            rest = answer if self._is_whole else ""  # `extractive` sends no token events
        elif answer[max(0, ends_at - len(text)) : ends_at] == text:
            rest = answer[ends_at:]
        else:
            step, rest = step + 1, answer  # the answer of a step without any token event
        if rest:
            yield TextPiece(step=step, text=rest)


def answer_of(job: Job) -> str:
    """The text of a job's answer; empty if it has none."""
    if job.state is not State.SUCCEEDED or not isinstance(job.result, dict):
        return ""
    message = job.result.get("message")
    answer = message.get("content") if isinstance(message, dict) else job.result.get("answer")
    return answer if isinstance(answer, str) else ""


OnEvent = Callable[[Event], object]

# The reason why an open job waits, reported when it changes, beside the waiting for its end.

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 3.0

# Parts of a reason that change while the reason stays the same.
_NUMBERS = re.compile(r"\d[\d.,:TZ-]*")
_NEXT_TRY = re.compile(r" ?The next attempt begins .*", re.DOTALL)

OnReason = Callable[[str | None], object]
"""Called with the reason, or with None when the job no longer waits."""


def by_line(say: Callable[[str], object]) -> OnReason:
    """A callback for logs and pipes: one line for each new reason.

    A reason is not said again when only its times have changed, or after a failed try.
    """
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
    """Call `on_reason` at each change until the job ends, or the block of `background` does.

    `known` was reported already. No event has the reason, so the job is read at growing intervals.
    A failed read is only repeated: the waiting for the end has the retries, and raises errors.
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
