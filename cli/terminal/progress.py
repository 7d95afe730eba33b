"""A job on the terminal while it runs: its progress on stderr, its answer as it comes on stdout.

Progress is a bar with rate and remaining time, or a line now and then.
"""

import json
import threading
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cli.errors import ERRORS
from cli.terminal.output import (
    ClosedPipe,
    clean,
    duration,
    first_words,
    say,
    stderr,
    stdout,
    write_text,
)
from sluice import Advance, Client, Job, StreamItem, TextPiece, ToolRun, WaitTimeout
from sluice.events import OnReason, by_line
from sluice.ingest import Phase

BYTES = "bytes"
_LINE_EVERY_S = 10.0
_NAMES: Mapping[Phase, str] = {"check": "Checking", "upload": "Uploading", "ingest": "Ingesting"}


def _amount(number: float, unit: str) -> str:
    return decimal(int(number)) if unit == BYTES else f"{number:,.0f}"


class _CountColumn(ProgressColumn):
    def render(self, task: Task) -> Text:
        unit = task.fields["unit"]
        total = "" if task.total is None else f"/{_amount(task.total, unit)}"
        return Text(f"{_amount(task.completed, unit)}{total} {'' if unit == BYTES else unit}")


class _Rate(ProgressColumn):
    def render(self, task: Task) -> Text:
        speed = task.finished_speed or task.speed
        if speed is None:
            return Text("")
        amount = decimal(int(speed)) if task.fields["unit"] == BYTES else f"{speed:,.1f}"
        return Text(f"{amount}/s", style="dim")


@contextmanager
def bars(names: Mapping[Phase, str] = _NAMES) -> Iterator[Callable[[Advance], None]]:
    """What to call with each `Advance`."""
    console = stderr()
    if not console.is_terminal:
        yield _lines(names)
        return
    columns = (
        TextColumn("{task.description:<10}"),
        BarColumn(),
        _CountColumn(),
        _Rate(),
        TimeRemainingColumn(compact=True),
    )
    with Progress(*columns, console=console) as progress:
        tasks = {}

        def show(advance: Advance) -> None:
            if advance.phase not in tasks:
                name = names[advance.phase]
                tasks[advance.phase] = progress.add_task(name, total=None, unit=advance.unit)
            progress.update(
                tasks[advance.phase],
                completed=advance.done,
                total=advance.total,
                unit=advance.unit,
            )

        yield show


@contextmanager
def waiting(what: str) -> Iterator[OnReason]:
    """A sign of life on a terminal, for what has no measure of progress.

    Yields what to call with the reason of the waiting when it changes.
    """
    console = stderr()
    if not console.is_terminal:
        yield by_line(say)
        return
    with console.status(Text(f"{what} …")) as status:

        def show(reason: str | None) -> None:
            status.update(Text(clean(f"{what} … waiting: {reason}" if reason else f"{what} …")))

        yield show


def _lines(names: Mapping[Phase, str]) -> Callable[[Advance], None]:
    """For logs: a line every ten seconds."""
    last = time.monotonic()

    def show(advance: Advance) -> None:
        nonlocal last
        if time.monotonic() - last < _LINE_EVERY_S:
            return
        last = time.monotonic()
        total = "" if advance.total is None else f" of {advance.total:,}"
        say(f"{names[advance.phase]}: {advance.done:,}{total} {advance.unit}")

    return show


# Watching a job on the terminal until it ends: its place in the queue, its state, its
# progress.


def watch_job(
    client: Client, job: Job, *, name: str | None = None, timeout_s: float | None = None
) -> Job:
    """The ended job, however it did. Ctrl-C leaves it running.

    `name` stands before its bar, for a command that says itself what it does; else each change of
    its state is told.
    """
    with bars({"ingest": name or job.kind.capitalize()}) as advance:
        if job.progress is not None and job.progress.total:
            advance(Advance.of(job.progress.model_dump()))
        elif job.position is not None and name is None:
            say(f"Queued at position {job.position:,}{eta(job)}.")
        on_waiting = by_line(say)
        on_waiting(job.waiting_for)
        with client.reasons(job.id, on_waiting, known=job.waiting_for):
            for event in client.events(job.id, timeout_s=timeout_s):
                if event.event == "progress":
                    advance(Advance.of(event.data))
                elif event.event == "state" and name is None:
                    say(f"{job.id} is {event.data.get('state')}")
                elif event.event == "end":
                    return Job.model_validate(event.data)
    return client.job(job.id, with_result=True)


def eta(job: Job) -> str:
    return "" if job.eta_s is None else f", done in about {duration(job.eta_s)}"


# A job's answer on the terminal as it comes: its text on stdout, runs of tools on stderr.

_TOOL_CELLS = 100
_DIM = "dim"
_QUICK_S = 1.0
"""What ends in this time is answered at once; what takes longer is known by its id, and watched."""


def show_answer(client: Client, job: Job, *, timeout_s: float | None = None) -> Job:
    """The job, which has succeeded; all text of its answer has been written, and a line end.

    The job is cancelled where its reader goes: at Ctrl-C, or when the pipe is closed. Raises
    `JobFailed`, `JobCancelled` or `WaitTimeout`.
    """
    writer = _StreamWriter()
    stream = client.stream(job.id, timeout_s=timeout_s)
    with cancelled_when_left(client, job.id):
        first = _awaited(client, job.id, stream)
        with client.reasons(job.id, by_line(writer.remark)):
            for item in chain([first], stream):
                if isinstance(item, TextPiece):
                    writer.write(item)
                elif isinstance(item, ToolRun):
                    writer.end_line()
                    _show_run(item)
                else:
                    job = item
    writer.end_line()
    return job.require_success()


def print_remarks(result: Mapping[str, Any] | None) -> None:
    """What is to be known of a job's answer besides its text."""
    result = result or {}
    if result.get("finish_reason") == "length":
        say("(Cut off at max_tokens; --max-tokens allows more.)", style="dim")
    if dropped := result.get("messages_dropped"):
        say(f"(Earlier messages that found no room in the window: {dropped})", style="dim")
    if dropped := result.get("passages_dropped"):
        say(f"(Passages that found no room in the window: {dropped})", style="dim")
    if removed := result.get("markers_removed"):
        say(f"(Markers that cited nothing, taken out: {removed})", style="dim")


def print_warnings(job: Job) -> None:
    """What a job has left out or cut off; never part of its result."""
    for warning in job.warnings:
        say(f"Warning: {warning}", style="yellow")


def finished_job(
    client: Client,
    kind: str,
    input: Mapping[str, Any],
    *,
    doing: str,
    timeout_s: float | None,
) -> Job:
    """A new job of the lane of those who wait, once it has succeeded, its warnings told."""
    started = time.monotonic()
    with waiting(doing) as show:
        wait_s = _QUICK_S if timeout_s is None or timeout_s > _QUICK_S else None
        job: Job = client.submit_untyped(kind, input, lane="interactive", wait_s=wait_s)
        if not job.ended:
            left_s = None if timeout_s is None else timeout_s - (time.monotonic() - started)
            try:
                left_s = None if left_s is None else max(0.0, left_s)
                job = client.wait(job.id, timeout_s=left_s, on_waiting=show)
            except WaitTimeout:
                raise WaitTimeout(job.id, timeout_s or 0.0) from None
    print_warnings(job.require_success())
    return job


class _StreamWriter:
    """Text of different turns is kept on different lines; so is what is told between."""

    def __init__(self) -> None:
        self._step = 0
        self._at_line_start = True
        self._lock = threading.RLock()

    def write(self, piece: TextPiece) -> None:
        with self._lock:
            if piece.step != self._step:
                self.end_line()
                self._step = piece.step
            write_text(piece.text)
            self._at_line_start = piece.text.endswith("\n")

    def end_line(self) -> None:
        with self._lock:
            if not self._at_line_start:
                write_text("\n")
                self._at_line_start = True

    def remark(self, text: str) -> None:
        """In the middle of a text; where both go to a terminal, on a line of its own."""
        with self._lock:
            if not self._at_line_start and stdout().is_terminal:
                say("")
            say(text)


def _awaited(client: Client, job_id: str, stream: Iterator[StreamItem]) -> StreamItem:
    """The first thing that the job tells; a sign of life, and the reason, are shown until then."""
    # What answers a submit does not know yet what the job waits for.
    known = client.job(job_id).waiting_for
    with waiting("Waiting for the model") as show:
        show(known)
        with client.reasons(job_id, show, known=known):
            return next(stream)


def _show_run(run: ToolRun) -> None:
    if run.result is None:
        text = f"> {run.name} {json.dumps(run.arguments or {}, ensure_ascii=False)}"
    else:
        text = f"< {run.result}"
    console = stderr()
    cells = console.width if console.is_terminal else _TOOL_CELLS
    say(first_words(text, cells), style=_DIM)


@contextmanager
def cancelled_when_left(client: Client, job_id: str) -> Iterator[None]:
    """A job whose reader goes is cancelled: at Ctrl-C, or when the pipe is closed."""
    try:
        yield
    except (KeyboardInterrupt, ClosedPipe):
        with suppress(*ERRORS):
            client.cancel(job_id)
        raise
