"""Progress of long work on stderr: bars with rate and remaining time, or a line now and then."""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.filesize import decimal
from rich.progress import BarColumn, Progress, ProgressColumn, Task, TextColumn, TimeRemainingColumn
from rich.text import Text

from cli.terminal.output import clean, duration, say, stderr
from sluice import Advance, Client, Job
from sluice.ingest import Phase
from sluice.waiting import OnReason, by_line

BYTES = "bytes"
_LINE_EVERY_S = 10.0
_NAMES: Mapping[Phase, str] = {"check": "Checking", "upload": "Uploading", "ingest": "Ingesting"}


def _amount(number: float, unit: str) -> str:
    return decimal(int(number)) if unit == BYTES else f"{number:,.0f}"


class _Count(ProgressColumn):
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
        _Count(),
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
