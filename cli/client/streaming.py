"""A job's events as what they tell: pieces of text, runs of tools, and the ended job.

The API tells each character once (`api/routes/events.py`). What comes twice all the same is dropped
here, and what is missing at the end is taken from the job's result.
"""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from typing import Any

from cli.client.shapes import Event, Job, State


@dataclass(frozen=True, kw_only=True)
class TextPiece:
    """Text that a step of the job has generated. An agent's turns are steps of their own."""

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


def stream_items(events: Iterable[Event], *, is_whole: bool) -> Iterator[StreamItem]:
    """`is_whole` says that the events begin with the job's first one."""
    step, text, ends_at = 0, "", 0
    for event in events:
        data = event.data
        if event.event == "token":
            piece_step, offset, piece = int(data["step"]), int(data["offset"]), str(data["text"])
            if piece_step < step:
                continue
            if piece_step > step:
                step, text, ends_at = piece_step, "", 0
            if not text:
                ends_at = max(ends_at, offset)
            new = piece[max(0, ends_at - offset) :]
            if new:
                text, ends_at = text + new, offset + len(piece)
                yield TextPiece(step=step, text=new)
        elif event.event == "tool":
            yield ToolRun(
                id=str(data.get("id", "")),
                name=str(data.get("name", "")),
                arguments=data.get("arguments"),
                result=data.get("result"),
            )
        elif event.event == "end":
            job = Job.model_validate(event.data)
            answer = answer_of(job)
            if not text:
                rest = answer if is_whole else ""  # An answer that quotes was not told at all.
            elif answer[max(0, ends_at - len(text)) : ends_at] == text:
                rest = answer[ends_at:]
            else:
                step, rest = step + 1, answer  # of a turn that was not told
            if rest:
                yield TextPiece(step=step, text=rest)
            yield job


def answer_of(job: Job) -> str:
    """The text that a job has answered with; empty where it has none."""
    if job.state is not State.SUCCEEDED or not isinstance(job.result, dict):
        return ""
    message = job.result.get("message")
    answer = message.get("content") if isinstance(message, dict) else job.result.get("answer")
    return answer if isinstance(answer, str) else ""
