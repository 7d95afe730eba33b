"""`sluice batch`: files of many requests, each line a job."""

import itertools
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import datetime
from pathlib import Path
from shutil import copyfileobj
from tempfile import TemporaryDirectory
from typing import Any, TextIO

import click

from cli.errors import Exit, Interrupted, exit_of_state
from cli.options import ListByDefault, complete_batches, with_client
from cli.terminal.output import (
    ago,
    duration,
    plural,
    print_fields,
    print_json,
    print_json_line,
    print_table,
    print_text,
    say,
    stdout,
    write_text,
)
from cli.terminal.progress import watch_job
from cli.values import Number, key_values
from shared.bounds import json_line
from shared.vocabulary import Lane
from sluice import Batch, Client

SHOWN_ERRORS = 10


@click.group(cls=ListByDefault)
def batch() -> None:
    """Run the lines of files as jobs (alone: list the batches).

    \b
    A line of a file reads:
      {"custom_id": "1", "url": "/v1/embed", "body": {"texts": ["We open at nine."]}}
    """


ID = click.argument("batch_id", metavar="ID", shell_complete=complete_batches)
TIMEOUT = click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Stop waiting after this time; the batch goes on.",
)  # fmt: skip


@batch.command()
@click.argument("path", metavar="FILE.jsonl|-", type=click.Path(allow_dash=True, path_type=str))
@click.option("--endpoint", metavar="URL", help="Which all lines are to name; else each its own.")
@click.option("--window", metavar="TIME", help="What is not done after it expires: 90m, 24h, 3d.")
@click.option("--finish-by", type=click.DateTime(), metavar="TIME",
              help="The same as a moment (local), as 2027-01-31T06:00:00.")  # fmt: skip
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Noted with the batch; may be repeated.",
)  # fmt: skip
@click.option("--max-attempts", type=click.IntRange(1, 20), metavar="N", help="Of each line.")
@click.option(
    "--lane", type=click.Choice([lane.value for lane in Lane]), help="Of the lines; else bulk."
)
@click.option("--idempotency-key", metavar="KEY", help="The same key is the same batch.")
@click.option("--wait", is_flag=True, help="Follow it to its end; the exit code tells how it did.")
@TIMEOUT
@with_client
def submit(
    client: Client,
    *,
    path: str,
    endpoint: str | None,
    window: str | None,
    finish_by: datetime | None,
    metadata: dict[str, Any],
    max_attempts: int | None,
    lane: str | None,
    idempotency_key: str | None,
    wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Upload FILE and run its lines, each as a job; prints the id of the batch.

    \b
    Examples:
      sluice batch submit questions.jsonl --wait
      sluice batch submit texts.jsonl --endpoint /v1/embed --window 3d
    """
    if timeout_s is not None and not wait:
        raise click.UsageError("--timeout is for --wait.")
    with _source(path) as source:
        batch = client.create_batch(
            source,
            endpoint=endpoint,
            completion_window=window,
            finish_by=finish_by,
            metadata=metadata or None,
            max_attempts=max_attempts,
            lane=lane,
            idempotency_key=idempotency_key,
        )
    if wait:
        return _follow(client, batch.id, timeout_s=timeout_s, as_json=as_json)
    if as_json:
        print_json(batch)
    else:
        print_text(batch.id)
        say(f"Submitted. Follow it with `sluice batch watch {batch.id}`.")
    return Exit.OK


@batch.command()
@ID
@TIMEOUT
@with_client
def watch(client: Client, *, batch_id: str, timeout_s: float | None, as_json: bool) -> int:
    """Follow a batch to its end: lines done, rate, time left. Ctrl-C leaves it running."""
    return _follow(client, _full_id(client, batch_id), timeout_s=timeout_s, as_json=as_json)


@batch.command()
@ID
@with_client
def show(client: Client, *, batch_id: str, as_json: bool) -> int:
    """How far a batch is, and what was wrong with its file."""
    batch = client.batch(_full_id(client, batch_id))
    if as_json:
        print_json(batch)
    else:
        _show(batch)
    return Exit.OK


@batch.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@with_client
def list_batches(client: Client, *, limit: int, as_json: bool) -> int:
    """The newest batches."""
    items = list(itertools.islice(client.batches(page_items=min(limit, 100)), limit))
    if as_json:
        print_json({"items": items})
        return Exit.OK
    for_person = stdout().is_terminal
    print_table(
        ("id", "status", "done", "failed", "age" if for_person else "created", "endpoint"),
        [
            (
                batch.id,
                batch.status,
                f"{batch.lines.succeeded}/{batch.lines.total}",
                batch.lines.failed,
                ago(batch.created_at).removesuffix(" ago") if for_person else batch.created_at,
                batch.endpoint,
            )
            for batch in items
        ],
        flexible="endpoint",
    )
    if not items:
        say("No batches. `sluice batch submit FILE.jsonl` makes one.")
    return Exit.OK


@batch.command()
@ID
@click.option("--errors", is_flag=True, help="The lines that have ended without an answer instead.")
@click.option(
    "--output", "-o", type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="PATH", help="Write them to a file.",
)  # fmt: skip
@with_client
def results(
    client: Client, *, batch_id: str, errors: bool, output: Path | None, as_json: bool
) -> int:
    """The answers so far, as JSON lines. While the batch runs they come in the order in which
    lines ended, and after its end in the order of its file."""
    lines = client.batch_results(_full_id(client, batch_id), errors=errors)
    if output is not None:
        with _replaced_file(output) as stream:
            count = 0
            for line in lines:
                stream.write(f"{json_line(line)}\n")
                count += 1
        say(f"Wrote {plural(count, 'line')} to {output}.")
    elif as_json:
        # One after the other: all of them may not fit into memory.
        write_text('{"items": [\n')
        for number, line in enumerate(lines):
            write_text("," if number else "")
            print_json_line(line)
        print_text("]}")
    else:
        count = 0
        for line in lines:
            print_json_line(line)
            count += 1
        if not count:
            say("No lines that failed." if errors else "No answers yet.")
    return Exit.OK


@contextmanager
def _replaced_file(path: Path) -> Iterator[TextIO]:
    """A new file, which takes its place at the path when all of it is written."""
    new = path.resolve().with_name(f".{path.name}.new")
    is_special = path.exists() and not path.is_file()
    # A lone surrogate is written in the escape of JSON.
    with (path if is_special else new).open(
        "w", encoding="utf-8", errors="backslashreplace"
    ) as stream:
        try:
            yield stream
        except BaseException:
            if not is_special:
                new.unlink(missing_ok=True)
            raise
    if not is_special:
        new.replace(path.resolve())


@batch.command("retry-failed")
@ID
@click.option("--unfinished", is_flag=True, help="Also those that were cancelled or have expired.")
@with_client
def retry_failed(client: Client, *, batch_id: str, unfinished: bool, as_json: bool) -> int:
    """Run the lines again that have failed, and nothing else."""
    batch = client.retry_batch(_full_id(client, batch_id), unfinished=unfinished)
    if as_json:
        print_json(batch)
    else:
        left = batch.lines.waiting + batch.lines.running
        say(f"{plural(left, 'line')} to run. Follow it with `sluice batch watch {batch.id}`.")
    return Exit.OK


@batch.command()
@ID
@with_client
def cancel(client: Client, *, batch_id: str, as_json: bool) -> int:
    """Cancel the lines that are not done. The answers of the others stay."""
    batch = client.cancel_batch(_full_id(client, batch_id))
    if as_json:
        print_json(batch)
    else:
        say(f"{batch.id} is {batch.status}; {plural(batch.lines.succeeded, 'answer')} stay.")
    return Exit.OK


@contextmanager
def _source(path: str) -> Iterator[Path]:
    """A file with the lines. A pipe is copied into one: it may be large, and an upload is repeated
    if the connection breaks."""
    if path != "-" and Path(path).is_file():
        yield Path(path)
        return
    if path != "-" and (not Path(path).exists() or Path(path).is_dir()):
        raise click.UsageError(f"There is no file {path}.")
    if path == "-" and sys.stdin.isatty():
        say("Reading lines from the terminal; end them with Ctrl-D.")
    with TemporaryDirectory() as folder:
        copy = Path(folder) / "batch.jsonl"
        with copy.open("wb") as stream:
            if path == "-":
                copyfileobj(sys.stdin.buffer, stream)
            else:
                with Path(path).open("rb") as pipe:
                    copyfileobj(pipe, stream)
        yield copy


def _full_id(client: Client, batch_id: str) -> str:
    """The id of a batch, also from its beginning, or from the form of OpenAI's API."""
    return client.whole_id("job", batch_id.removeprefix("batch_"))


def _follow(client: Client, batch_id: str, *, timeout_s: float | None, as_json: bool) -> int:
    try:
        batch = client.batch(batch_id)  # raises NotFound for a job of another kind
        if not as_json and not batch.ended:
            job = client.job(batch_id).model_copy(update={"waiting_for": batch.waiting_for})
            watch_job(client, job, name="Lines", timeout_s=timeout_s)
        batch = client.wait_batch(batch_id, timeout_s=timeout_s)
    except KeyboardInterrupt:
        raise Interrupted(
            f"The batch goes on. Cancel it with `sluice batch cancel {batch_id}`."
        ) from None
    if as_json:
        print_json(batch)
    else:
        _show(batch)
    return exit_of_state(batch.state)


def _show(batch: Batch) -> None:
    print_fields([(name, value) for name, value in _fields(batch) if value not in (None, "")])


def _fields(batch: Batch) -> Iterator[tuple[str, object]]:
    counts = batch.lines
    yield "id", batch.id
    yield "status", batch.status
    yield "endpoint", batch.endpoint
    yield "lines", counts.total
    for name in ("waiting", "running", "succeeded", "failed", "cancelled", "expired"):
        if count := getattr(counts, name):
            yield name, count
    yield "position", batch.position
    if batch.eta_s is not None:
        yield "done in", duration(batch.eta_s)
    yield "waits for", batch.waiting_for
    if not batch.ended:
        yield "finish by", batch.finish_by
    yield "error", batch.error.message if batch.error else ""
    for error in batch.errors[:SHOWN_ERRORS]:
        yield "", f"line {error.line}: {error.message}" if error.line else error.message
    if (left := len(batch.errors) - SHOWN_ERRORS) > 0:
        yield "", f"and {left} more; --json has all"
    for warning in batch.warnings:
        yield "warning", warning
    if counts.succeeded:
        yield "answers", f"`sluice batch results {batch.id}`"
