"""`sluice jobs`: list, show, watch, cancel and redrive jobs; `sluice submit`: a job of any kind."""

import itertools
import json
from collections.abc import Iterator
from datetime import datetime
from typing import Any

import click

from cli.errors import Exit, Interrupted, exit_of_state
from cli.options import (
    ListByDefault,
    complete_batches,
    complete_collections,
    complete_jobs,
    with_client,
)
from cli.terminal.output import (
    ago,
    duration,
    first_words,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    print_text,
    say,
    stdout,
)
from cli.terminal.progress import eta, watch_job
from cli.values import Number, key_values, read_json_object
from shared.kinds.registry import KINDS
from shared.vocabulary import Lane
from sluice import Client, InvalidInput, Job, State
from sluice.events import answer_of

_RESULT_CELLS = 200
_job_ids = click.argument(
    "job_ids", metavar="ID...", nargs=-1, required=True, shell_complete=complete_jobs
)


@click.group(cls=ListByDefault)
def jobs() -> None:
    """List, show, watch, cancel and redrive jobs (alone: list).

    An ID may be shortened to its first digits, as long as they fit one job only.
    """


@jobs.command("list")
@click.option("--state", type=click.Choice([state.value for state in State]))
@click.option("--kind", type=click.Choice(list(KINDS)))
@click.option("--collection", "-c", metavar="NAME", shell_complete=complete_collections)
@click.option("--dead", is_flag=True, help="Only those that have used up their attempts.")
@click.option(
    "--batch", metavar="ID", shell_complete=complete_batches,
    help="The lines of this batch, which are else left out.",
)  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@with_client
def list_jobs(
    client: Client,
    *,
    state: str | None,
    kind: str | None,
    collection: str | None,
    dead: bool,
    batch: str | None,
    limit: int,
    as_json: bool,
) -> int:
    """The newest jobs. With --json their inputs and results are left out; `show` has them.

    \b
    Examples:
      sluice jobs list --state failed --limit 100
      sluice jobs list --dead | cut -f 1 | xargs sluice jobs retry
    """
    newest = client.jobs(
        state=state,
        kind=kind,
        collection=collection,
        dead=True if dead else None,
        batch=None if batch is None else client.whole_id("job", batch.removeprefix("batch_")),
        page_items=min(limit, 100),
    )
    shown = list(itertools.islice(newest, limit))
    if as_json:
        print_json({"items": [_without_payload(job) for job in shown]})
        return 0
    print_table(
        ("id", "kind", "state", "progress", "age", "note"),
        [_row(job, for_person=stdout().is_terminal) for job in shown],
        flexible="note",
    )
    if not shown:
        say("No jobs.")
    elif len(shown) == limit:
        say(f"The newest {limit:,}; --limit shows more.")
    return 0


@jobs.command()
@click.argument("job_id", metavar="ID", shell_complete=complete_jobs)
@with_client
def show(client: Client, *, job_id: str, as_json: bool) -> int:
    """One job: its state, progress, result or error."""
    job = client.job(client.whole_id("job", job_id))
    if as_json:
        print_json(job)
    else:
        show_job(job)
    return 0


@jobs.command()
@click.argument("job_id", metavar="ID", shell_complete=complete_jobs)
@with_client
def result(client: Client, *, job_id: str, as_json: bool) -> int:
    """What a job has ended with, as JSON with or without --json, however large it is."""
    del as_json
    job = client.job(client.whole_id("job", job_id))
    if not job.ended:
        raise InvalidInput(f"Job {job.id} is {job.state}; `sluice jobs watch {job.id}` waits.")
    print_json(client.result(job.require_success()))
    return 0


@jobs.command()
@click.argument("job_id", metavar="ID", shell_complete=complete_jobs)
@click.option("--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS")
@with_client
def watch(client: Client, *, job_id: str, timeout_s: float | None, as_json: bool) -> int:
    """Follow a job until it ends; the exit code tells how it did.

    With --json each event is one line, and the last one holds the whole job.
    """
    job_id = client.whole_id("job", job_id)
    if as_json:
        for event in client.events(job_id, timeout_s=timeout_s):
            print_json_line(event)
            if event.event == "end":
                return exit_of_state(Job.model_validate(event.data).state)
        return Exit.OK
    try:
        job = watch_job(client, client.job(job_id), timeout_s=timeout_s)
    except KeyboardInterrupt:
        raise Interrupted(
            f"Stopped watching; the job goes on. Cancel it with `sluice jobs cancel {job_id}`."
        ) from None
    show_job(job)
    return exit_of_state(job.state)


@jobs.command()
@_job_ids
@with_client
def cancel(client: Client, *, job_ids: tuple[str, ...], as_json: bool) -> int:
    """Cancel queued or running jobs."""
    return _print_states([client.cancel(job_id) for job_id in _full_ids(client, job_ids)], as_json)


@jobs.command()
@_job_ids
@with_client
def retry(client: Client, *, job_ids: tuple[str, ...], as_json: bool) -> int:
    """Run failed or cancelled jobs again."""
    return _print_states([client.retry(job_id) for job_id in _full_ids(client, job_ids)], as_json)


def _full_ids(client: Client, job_ids: tuple[str, ...]) -> list[str]:
    """All ids are looked up before anything is changed."""
    return [client.whole_id("job", job_id) for job_id in job_ids]


@jobs.command()
@click.argument("job_ids", metavar="ID...", nargs=-1, required=True)
@with_client
def erase(client: Client, *, job_ids: tuple[str, ...], as_json: bool) -> int:
    """Forget jobs that have ended, with their inputs and results."""
    for job_id in job_ids:
        client.erase_job(job_id)
        if not as_json:
            print_text(f"{job_id} is erased")
    if as_json:
        print_json({"erased": list(job_ids)})
    return 0


def _print_states(changed: list[Job], as_json: bool) -> int:
    if as_json:
        print_json({"items": changed})
    else:
        for job in changed:
            print_text(f"{job.id} is {job.state}")
    return 0


def show_job(job: Job) -> None:
    """A summary on a terminal, all fields in a pipe."""
    is_person = stdout().is_terminal
    print_fields([(name, value) for name, value in _fields(job, is_whole=not is_person) if value])
    if is_person and (answer := answer_of(job)):
        print_text()
        print_text(answer)


def _row(job: Job, *, for_person: bool) -> tuple[object, ...]:
    """A row of the table. For a person it is short enough to fit 80 columns with the id."""
    created = job.created_at
    progress = _progress(job)
    if for_person:
        progress = progress.partition(" ")[0]
    age = ago(created).removesuffix(" ago") if for_person else created
    return job.id, job.kind, job.state, progress, age, _note(job)


def _without_payload(job: Job) -> dict[str, Any]:
    return job.model_dump(mode="json", exclude={"input", "result"})


def _fields(job: Job, *, is_whole: bool) -> Iterator[tuple[str, object]]:
    """Names and values. `is_whole` is for programs; else long values are cut off."""
    yield "id", job.id
    yield "kind", job.kind
    yield "state", str(job.state)
    yield "queue", f"{job.queue or ''} ({job.lane or 'normal'})"
    yield "position", "" if job.position is None else f"{job.position:,}{eta(job)}"
    yield "waiting", job.waiting_for or ""
    yield "progress", _progress(job)
    yield "attempt", "" if job.attempt is None else f"{job.attempt} of {job.max_attempts}"
    yield "created", job.created_at
    if job.started_at and job.finished_at:
        yield "took", duration((job.finished_at - job.started_at).total_seconds())
    yield "error", job.error.message if job.error else ""
    for warning in job.warnings:
        yield "warning", warning
    if job.result_url:
        yield "result", f"`sluice jobs result {job.id}` fetches it"
    elif is_whole and isinstance(job.result, dict):
        for key, value in job.result.items():
            yield key, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
    elif isinstance(job.result, dict):
        for key, value in job.result.items():
            # Long lists (embeddings, hits) are shown in pipes and by --json alone.
            yield key, len(value) if isinstance(value, list) else _short(value)
    elif job.result is not None:
        text = json.dumps(job.result, ensure_ascii=False)
        yield "result", text if is_whole else first_words(text, _RESULT_CELLS)


def _short(value: object) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{inner} {key}" for key, inner in value.items())
    return first_words(str(value), _RESULT_CELLS)


def _progress(job: Job) -> str:
    progress = job.progress
    if progress is None or not progress.total:
        return ""
    return f"{progress.done:,}/{progress.total:,} {progress.unit or ''}".rstrip()


def _note(job: Job) -> str:
    if job.waiting_for:
        return f"waits: {job.waiting_for}"
    return job.error.message if job.error else ""


# `sluice submit`: a job of any kind, from its input as JSON.


@click.command(short_help="Submit a job of any kind.")
@click.argument("kind", type=click.Choice(list(KINDS)))
@click.argument("source", metavar="[INPUT.json|JSON|-]", default="-")
@click.option(
    "--lane", type=click.Choice([lane.value for lane in Lane]), help="Its place among other jobs."
)
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Noted with the job; may be repeated.",
)  # fmt: skip
@click.option("--idempotency-key", metavar="KEY", help="The same key and job is the same job.")
@click.option("--run-after", type=click.DateTime(), metavar="TIME",
              help="Not before this time (local), as 2027-01-31T06:00:00.")  # fmt: skip
@click.option("--max-attempts", type=click.IntRange(min=1), metavar="N")
@click.option(
    "--job-timeout", "job_timeout_s", type=Number(min=0, min_open=True),
    metavar="SECONDS", help="The job fails when it has run for so long.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Follow it to its end; the exit code tells how it did.")
@click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="With --wait: stop waiting after this time; the job goes on.",
)  # fmt: skip
@with_client
def submit(
    client: Client,
    *,
    kind: str,
    source: str,
    lane: str | None,
    metadata: dict[str, Any],
    idempotency_key: str | None,
    run_after: datetime | None,
    max_attempts: int | None,
    job_timeout_s: float | None,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Submit a job of KIND with this input: a JSON file, JSON itself, or - for standard input.

    Prints the job's id; with --wait the job when it has ended. /docs of the API and docs/http.md
    have the input of each kind.

    \b
    Examples:
      sluice submit embed '{"texts": ["one", "two"]}' --wait
      sluice submit rag question.json --lane bulk --metadata team=a
      jq '{texts: .}' texts.json | sluice submit embed - --idempotency-key texts-7
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is for --wait; --job-timeout bounds the job itself.")
    job: Job = client.submit_untyped(
        kind,
        read_json_object(source),
        lane=lane,
        metadata=metadata or None,
        timeout_s=job_timeout_s,
        max_attempts=max_attempts,
        run_after=run_after,
        idempotency_key=idempotency_key,
    )
    if wait:
        try:
            if as_json:
                job = client.wait(job.id, timeout_s=timeout_s)
            else:
                job = watch_job(client, client.job(job.id), timeout_s=timeout_s)
        except KeyboardInterrupt:
            raise Interrupted(
                f"The job goes on. Cancel it with `sluice jobs cancel {job.id}`."
            ) from None
    if as_json:
        print_json(job)
    elif wait:
        show_job(job)
    else:
        print_text(job.id)
        say(f"Submitted. Follow it with `sluice jobs watch {job.id}`.")
    return exit_of_state(job.state)
