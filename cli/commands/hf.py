"""`sluice hf`: a Hugging Face task on texts, audio or images, with its output or as a table."""

import json
import math
import sys
from typing import Any

import click

from cli import completions
from cli.asking import hf_input
from cli.attaching import attached
from cli.client import Client
from cli.hf_inputs import STDIN, read_inputs
from cli.hf_showing import show_output
from cli.options import column_names, with_client
from cli.output import print_json
from cli.showing import cancelled_when_left, tell_warnings
from cli.watching import watch_job
from shared.hf import Task

_LABELS = "candidate_labels"


def _parameters(
    _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """`top_k=3` and `targets=["a"]` are JSON, `truncation=longest_first` is text."""
    values = {}
    for pair in pairs:
        name, equals, text = pair.partition("=")
        if not equals or not name.strip():
            raise click.BadParameter(f"{pair!r} does not read NAME=VALUE.")
        values[name.strip()] = _value(text)
    return values


def _task(_ctx: click.Context, _param: click.Parameter, name: str) -> Task:
    try:
        return Task(name)
    except ValueError:
        raise click.BadParameter(f"{name!r} is none of: {', '.join(Task)}.") from None


@click.command()
@click.argument("task", callback=_task, shell_complete=completions.hf_tasks)
@click.argument("inputs", nargs=-1, metavar="[INPUT|-]...")
@click.option(
    "--model", "-m", metavar="MODEL", help="<owner>/<name>, as on the hub; else the task's."
)
@click.option(
    "--backend", type=click.Choice(["local", "hub"]), default="local", show_default=True,
    help="Where it runs: in a worker, or at the Hugging Face hub.",
)  # fmt: skip
@click.option(
    "--parameter", "-p", "parameters", multiple=True, metavar="NAME=VALUE", callback=_parameters,
    help="Of the task, as top_k=3; VALUE is JSON or text. May be repeated.",
)  # fmt: skip
@click.option("--context", metavar="TEXT|FILE|-", help="What questions are about.")
@click.option(
    "--sentence", "sentences", multiple=True, metavar="TEXT|FILE|-",
    help="To compare with the first INPUT, or to rank by it, as further INPUTs are.",
)  # fmt: skip
@click.option(
    "--labels", metavar="A,B,…", callback=column_names,
    help=f"What {Task.ZERO_SHOT_CLASSIFICATION} chooses from.",
)  # fmt: skip
@click.option("--lines", is_flag=True, help="Each line of a file is an input of its own.")
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), metavar="SECONDS",
    help="Give up waiting after this time.",
)  # fmt: skip
@with_client
def hf(
    client: Client,
    *,
    task: Task,
    inputs: tuple[str, ...],
    model: str | None,
    backend: str,
    parameters: dict[str, Any],
    context: str | None,
    sentences: tuple[str, ...],
    labels: list[str] | None,
    lines: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Run a Hugging Face TASK, such as summarization, on each INPUT.

    An INPUT is the file of that name if there is one, - is standard input, and anything else the
    text itself. Audio and images are files, or standard input.

    \b
    sluice hf summarization report.txt
    sluice hf question-answering "Who signed?" --context report.txt
    sluice hf text-ranking "opening hours" --lines passages.txt
    sluice hf automatic-speech-recognition call.flac -p return_timestamps=true
    """
    if labels is not None:
        if task is not Task.ZERO_SHOT_CLASSIFICATION:
            raise click.UsageError(f"--labels is for {Task.ZERO_SHOT_CLASSIFICATION}.")
        parameters = {**parameters, _LABELS: labels}
    elif task is Task.ZERO_SHOT_CLASSIFICATION and _LABELS not in parameters:
        raise click.UsageError(f"{task} chooses from labels; give --labels A,B,…")
    if not inputs and sys.stdin.isatty():
        raise click.UsageError("Give an INPUT, or - to read one from standard input.")
    asked = read_inputs(task, inputs or (STDIN,), context=context, sentences=sentences, lines=lines)
    with attached(client, asked.inputs) as sent:
        wanted = hf_input(task, sent, model=model, parameters=parameters, backend=backend)
        job = client.submit("hf", wanted, lane="interactive")
        with cancelled_when_left(client, job.id):
            if as_json:
                job = client.wait(job.id, timeout_s=timeout_s)
            else:
                # What answers a submit does not know yet what the job waits for.
                job = watch_job(client, client.job(job.id), name="Running", timeout_s=timeout_s)
        result = client.result(job.require_success())
    tell_warnings(job)
    if as_json:
        print_json(result)
    else:
        show_output(task, asked, result)
    return 0


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value
