"""Watching a job on the terminal until it ends: its place in the queue, its state, its progress."""

from cli.bars import bars
from cli.client import Client
from cli.output import duration, say
from cli.sending import Advance
from cli.waits import by_line
from cli.wire import Job


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
        tell_waiting = by_line(say)
        tell_waiting(job.waiting_for)
        with client.reasons_told(job.id, tell_waiting, known=job.waiting_for):
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
