"""A running job on the terminal: its progress on stderr, its answer on stdout while it is written.

Progress is a bar with rate and remaining time on a terminal, else a line every ten seconds.
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
    """Yields a callback that shows each `Advance`."""
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
    """A spinner on a terminal, for work without a measure of progress.

    Yields a callback for the reason of the waiting, when it changes.
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
    """A callback for logs: a line every ten seconds."""
    last = time.monotonic()

    def show(advance: Advance) -> None:
        nonlocal last
        if time.monotonic() - last < _LINE_EVERY_S:
            return
        last = time.monotonic()
        total = "" if advance.total is None else f" of {advance.total:,}"
        say(f"{names[advance.phase]}: {advance.done:,}{total} {advance.unit}")

    return show


# Watching a job: its place in the queue, its state, its progress


def watch_job(
    client: Client, job: Job, *, name: str | None = None, timeout_s: float | None = None
) -> Job:
    """Show a job until it ends; returns the ended job, in any state. Ctrl-C leaves it running.

    `name` is the title of the bar, for a command that reports its end itself. Without it, each
    change of state is reported.
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


# The answer of a job: its text on stdout, tool runs on stderr

_TOOL_CELLS = 100
_DIM = "dim"
_QUICK_S = 1.0
"""How long a submit waits for the end of its job. After that, the job is watched by its id."""


def show_answer(client: Client, job: Job, *, timeout_s: float | None = None) -> Job:
    """Write the answer while it comes, and a line end; returns the job, which has succeeded.

    Ctrl-C and a closed pipe cancel the job. Raises `JobFailed`, `JobCancelled` or `WaitTimeout`.
    """
    writer = _StreamWriter()
    stream = client.stream(job.id, timeout_s=timeout_s)
    with cancel_if_left(client, job.id):
        first = _first_item(client, job.id, stream)
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
    """Remarks about a job's answer, such as that it was cut off."""
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
    """The warnings of a job, on stderr."""
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
    """Submit a job in the lane `interactive` and wait for its success. Prints its warnings."""
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
    """Writes texts of different steps, and remarks between them, on different lines."""

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
        """A message in the middle of a text; on a terminal, on a line of its own."""
        with self._lock:
            if not self._at_line_start and stdout().is_terminal:
                say("")
            say(text)


def _first_item(client: Client, job_id: str, stream: Iterator[StreamItem]) -> StreamItem:
    """The first item of the stream. Until then a spinner shows why the job waits."""
    # The answer to a submit does not have the reason yet.
    reason = client.job(job_id).waiting_for
    with waiting("Waiting for the model") as show:
        show(reason)
        with client.reasons(job_id, show, known=reason):
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
def cancel_if_left(client: Client, job_id: str) -> Iterator[None]:
    """Cancel the job at Ctrl-C, or when the pipe is closed."""
    try:
        yield
    except (KeyboardInterrupt, ClosedPipe):
        with suppress(*ERRORS):
            client.cancel(job_id)
        raise
