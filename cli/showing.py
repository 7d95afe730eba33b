"""A job's answer on the terminal as it comes: its text on stdout, runs of tools on stderr."""

import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from itertools import chain
from typing import Any

from cli.bars import waiting
from cli.client import Client
from cli.output import ClosedPipe, first_words, say, stderr, write_text
from cli.streaming import TextPiece, Told, ToolRun
from cli.wire import Job
from shared.errors import SluiceError

_TOOL_CELLS = 100
_DIM = "dim"


def show_answer(client: Client, job: Job, *, timeout_s: float | None = None) -> Job:
    """The job, which has succeeded; all text of its answer has been written, and a line end.

    The job is cancelled where its reader goes: at Ctrl-C, or when the pipe is closed. Raises
    `JobFailed`, `JobCancelled` or `WaitTimeout`.
    """
    # What answers a submit does not know it yet.
    if reason := client.job(job.id).waiting_for:
        say(f"Waiting: {reason}")
    writer = _Writer()
    with cancelled_when_left(client, job.id):
        for each in _first_awaited(client.stream(job.id, timeout_s=timeout_s)):
            if isinstance(each, TextPiece):
                writer.write(each)
            elif isinstance(each, ToolRun):
                writer.end_line()
                _show_run(each)
            else:
                job = each
    writer.end_line()
    return job.require_success()


def tell_remarks(result: Mapping[str, Any] | None) -> None:
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


class _Writer:
    """Text of different turns is kept on different lines."""

    def __init__(self) -> None:
        self._step = 0
        self._at_line_start = True

    def write(self, piece: TextPiece) -> None:
        if piece.step != self._step:
            self.end_line()
            self._step = piece.step
        write_text(piece.text)
        self._at_line_start = piece.text.endswith("\n")

    def end_line(self) -> None:
        if not self._at_line_start:
            write_text("\n")
            self._at_line_start = True


def _first_awaited(told: Iterator[Told]) -> Iterator[Told]:
    """All of it; a sign of life is shown until the first one comes."""
    with waiting("Waiting for the model"):
        first = next(told)
    return chain([first], told)


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
        with suppress(SluiceError):
            client.cancel(job_id)
        raise
