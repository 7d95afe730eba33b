"""`sluice submit`: a job of any kind, from its input as JSON."""

import json
import sys
from datetime import datetime
from pathlib import Path
from typing import Any

import click

from cli.commands.jobs import show_job
from cli.errors import OF_STATE, Exit, Interrupted
from cli.options import key_values, with_client
from cli.terminal.output import print_json, print_text, say
from cli.terminal.progress import watch_job
from shared.kinds.registry import KINDS
from shared.vocabulary import Lane
from sluice import Client


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
    "--job-timeout", "job_timeout_s", type=click.FloatRange(min=0, min_open=True),
    metavar="SECONDS", help="The job fails when it has run for so long.",
)  # fmt: skip
@click.option("--wait", is_flag=True, help="Follow it to its end; the exit code tells how it did.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
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
    job = client.submit(
        kind,
        _input(source),
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
    return OF_STATE.get(job.state, Exit.OK)


def _input(source: str) -> dict[str, Any]:
    try:
        if source.lstrip().startswith("{"):
            where, text = "INPUT", source
        elif source == "-":
            if sys.stdin.isatty():
                say("Reading the input as JSON from the terminal; end it with Ctrl-D.")
            where, text = "Standard input", sys.stdin.buffer.read().decode("utf-8-sig")
        else:
            where, text = source, Path(source).read_bytes().decode("utf-8-sig")
        value = json.loads(text)
    except OSError as error:
        raise click.UsageError(f"Cannot read {source}: {error.strerror or error}.") from error
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{source} is no UTF-8 text ({error}).") from error
    except ValueError as error:
        raise click.UsageError(f"{where} is no JSON: {error}.") from error
    except RecursionError as error:
        raise click.UsageError(f"{where} is nested too deep.") from error
    if not isinstance(value, dict):
        raise click.UsageError(f"{where} must be a JSON object, the `input` of the job.")
    return value
