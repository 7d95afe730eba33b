"""`sluice hf`: a Hugging Face task on texts, audio or images, with its output or as a table."""

import json
import math
import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.options import complete_hf_tasks, with_client
from cli.terminal.output import (
    escaped,
    first_words,
    print_json,
    print_table,
    print_text,
    say,
    stdout,
)
from cli.terminal.progress import cancel_if_left, print_warnings, watch_job
from cli.values import Number, column_names, name_and_value
from shared.hf.task import HfTask, OneToManyInput, PairInput, TableOutput, TextOutput, in_a_list
from shared.kinds.hf import TASKS
from sluice import Client, Job
from sluice.inputs import hf_input

# Arguments: texts, files, or standard input become the inputs of a task.

STDIN = "-"
_FILE_NAME = re.compile(r"\S+(/|\.[A-Za-z]\w{0,4})")
"""A text that the user may have meant as the name of a file."""


@dataclass(frozen=True, kw_only=True)
class NamedInputs:
    """The inputs of a job, or its only input, with their names in the output."""

    inputs: Any
    names: Sequence[str]

    @property
    def is_one(self) -> bool:
        return not isinstance(self.inputs, list)


def read_inputs(
    task: HfTask,
    arguments: Sequence[str],
    *,
    context: str | None = None,
    sentences: Sequence[str] = (),
    lines: bool = False,
) -> NamedInputs:
    """Raises UsageError for inputs that the task cannot take, before anything is sent."""
    shape = task.input
    if [*arguments, context, *sentences].count(STDIN) > 1:
        raise click.UsageError("Standard input can be read once only; give - once.")
    if (context is not None) != isinstance(shape, PairInput):
        raise click.UsageError(
            f"--context has what the questions of {_of_shape(PairInput)} are about; "
            f"{'give one' if context is None else f'{task.name} takes none'}."
        )
    if sentences and not isinstance(shape, OneToManyInput):
        raise click.UsageError(
            f"--sentence is for {_of_shape(OneToManyInput)}; {task.name} has none."
        )
    if shape.is_file:
        if lines:
            raise click.UsageError(f"--lines is for texts; {task.name} takes files.")
        return _named_inputs([_file(argument) for argument in arguments], arguments)
    if isinstance(shape, OneToManyInput):
        return _one_to_many(task.name, shape, [*arguments, *sentences], lines)
    pairs = list(_input_texts(arguments, lines))
    values: list[Any] = [text for _, text in pairs]
    if isinstance(shape, PairInput) and context is not None:
        second = _text_of(context)
        values = [{shape.first: first, shape.second: second} for first in values]
    return _named_inputs(values, [name for name, _ in pairs], is_list=lines)


def _of_shape(shape: type) -> str:
    """The names of the tasks whose inputs have this shape."""
    return " and ".join(name for name, task in TASKS.items() if isinstance(task.input, shape))


def _named_inputs(values: list[Any], names: Sequence[str], *, is_list: bool = False) -> NamedInputs:
    if len(values) == 1 and not is_list:
        return NamedInputs(inputs=values[0], names=names)
    return NamedInputs(inputs=values, names=names)


def _one_to_many(
    task: str, shape: OneToManyInput, arguments: Sequence[str], lines: bool
) -> NamedInputs:
    texts = [text for _, text in _input_texts(arguments, lines)]
    if len(texts) < 2:
        raise click.UsageError(
            f"{task} compares its first INPUT with the others; give at least two."
        )
    return NamedInputs(inputs={shape.one: texts[0], shape.many: texts[1:]}, names=texts[1:])


def _input_texts(arguments: Sequence[str], lines: bool) -> Iterator[tuple[str, str]]:
    """Names and texts; with `lines` a file has one text on each of its lines."""
    for argument in arguments:
        text = _text_of(argument)
        if lines and _is_file(argument):
            yield from ((line, line) for line in text.splitlines() if line.strip())
        else:
            yield (argument if _is_file(argument) else text), text


def _text_of(argument: str) -> str:
    if not _is_file(argument):
        if not argument.strip():
            raise click.UsageError("An INPUT is empty; give a text, a file, or -.")
        if _FILE_NAME.fullmatch(argument):
            say(f"There is no file {argument}; it is taken as a text.")
        return argument
    try:
        text = _bytes(argument).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{_name(argument)} is no UTF-8 text ({error}).") from error
    if not text.strip():
        raise click.UsageError(f"{_name(argument)} holds no text.")
    return text.rstrip("\r\n")


def _file(argument: str) -> Path | bytes:
    if not _is_file(argument):
        raise click.UsageError(f"There is no file {argument}; this task takes files, or -.")
    if argument != STDIN:
        return Path(argument)
    data = _bytes(argument)
    if not data:
        raise click.UsageError("Standard input is empty.")
    return data


def _bytes(argument: str) -> bytes:
    if argument == STDIN:
        return sys.stdin.buffer.read()
    try:
        return Path(argument).read_bytes()
    except OSError as error:
        raise click.UsageError(f"Cannot read {argument}: {error.strerror or error}.") from error


def _is_file(argument: str) -> bool:
    """Whether it is the name of a file, or `-`; else it is a text itself."""
    try:
        return argument == STDIN or Path(argument).is_file()
    except OSError:  # A text that is too long for a file's name.
        return False


def _name(argument: str) -> str:
    return "Standard input" if argument == STDIN else argument


# The output of a task for a person, or as JSON if it has another shape.

_NAME_CELLS = 40


def show_output(task: HfTask, inputs: NamedInputs, output: Any) -> None:
    try:
        if isinstance(task.output, TextOutput):
            lines = _texts(task.output, inputs, output)
        elif inputs.is_one and (line := task.output.line(output)) is not None:
            lines = [line]
        else:
            columns, rows, wide_column = _table(task, task.output, inputs, output)
            print_table(columns, rows, flexible=wide_column)
            return
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        print_json(output)
        return
    for text in lines:
        print_text(text)


def _texts(shape: TextOutput, inputs: NamedInputs, output: Any) -> list[str]:
    """The lines of one output, or a line for each of several; a terminal also shows their names."""
    if inputs.is_one:
        items = output if isinstance(output, list) else [output]
        return [line for item in items for line in (item[shape.field], *shape.details(item))]
    texts = [
        " / ".join(item[shape.field] for item in (one if isinstance(one, list) else [one]))
        for one in output
    ]
    if not stdout().is_terminal:
        return [escaped(text) for text in texts]
    return [f"{_short(name)}\n  {text}\n" for name, text in zip(inputs.names, texts, strict=True)]


def _table(
    task: HfTask, shape: TableOutput, inputs: NamedInputs, output: Any
) -> tuple[Sequence[str], list[Sequence[object]], str | None]:
    """Columns, rows, and the column that may be shortened."""
    if inputs.is_one:
        if task.alone is in_a_list:
            [output] = output
        return shape.columns, list(shape.rows(output, inputs.names)), shape.wide_column
    rows = [
        (name, *row)
        for name, one in zip(inputs.names, output, strict=True)
        for row in shape.rows(one, (name,))
    ]
    return ("input", *shape.columns), list(rows), "input"


def _short(name: str) -> str:
    return first_words(name, _NAME_CELLS)


_LABELS = "candidate_labels"


def _parameters(
    _ctx: click.Context, _param: click.Parameter, pairs: tuple[str, ...]
) -> dict[str, Any]:
    """`top_k=3` and `targets=["a"]` are JSON, `truncation=longest_first` is text."""
    return {name: _value(text) for name, text in map(name_and_value, pairs)}


def _task(_ctx: click.Context, _param: click.Parameter, name: str) -> HfTask:
    try:
        return TASKS[name]
    except KeyError:
        raise click.BadParameter(f"{name!r} is none of: {', '.join(TASKS)}.") from None


def _tasks_with_labels() -> str:
    """The names of the tasks that choose from the caller's labels."""
    return " and ".join(
        name for name, task in TASKS.items() if _LABELS in task.parameters.model_fields
    )


@click.command()
@click.argument("task", callback=_task, shell_complete=complete_hf_tasks)
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
    help=f"What {_tasks_with_labels()} chooses from.",
)  # fmt: skip
@click.option("--lines", is_flag=True, help="Each line of a file is an input of its own.")
@click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Give up waiting after this time.",
)  # fmt: skip
@with_client
def hf(
    client: Client,
    *,
    task: HfTask,
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
        if _LABELS not in task.parameters.model_fields:
            raise click.UsageError(f"--labels is for {_tasks_with_labels()}.")
        parameters = {**parameters, _LABELS: labels}
    elif _LABELS in task.required_parameters - parameters.keys():
        raise click.UsageError(f"{task.name} chooses from labels; give --labels A,B,…")
    if not inputs and sys.stdin.isatty():
        raise click.UsageError("Give an INPUT, or - to read one from standard input.")
    named_inputs = read_inputs(
        task, inputs or (STDIN,), context=context, sentences=sentences, lines=lines
    )
    with client.attached(named_inputs.inputs) as uploaded:
        job_input = hf_input(
            task.name, uploaded, model=model, parameters=parameters, backend=backend
        )
        job: Job = client.submit("hf", job_input, lane="interactive")
        with cancel_if_left(client, job.id):
            if as_json:
                job = client.wait(job.id, timeout_s=timeout_s)
            else:
                # The answer to a submit does not have the reason of the waiting yet.
                job = watch_job(client, client.job(job.id), name="Running", timeout_s=timeout_s)
        result = client.result(job.require_success())
    print_warnings(job)
    if as_json:
        print_json(result)
    else:
        show_output(task, named_inputs, result)
    return 0


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value
