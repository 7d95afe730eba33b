"""`sluice hf`: a Hugging Face task on texts, audio or images, with its output or as a table."""

import json
import math
import re
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli import completions
from cli.client.asking import hf_input
from cli.client.calls import attached
from cli.client.client import Client
from cli.options import column_names, with_client
from cli.terminal.bars import watch_job
from cli.terminal.output import (
    escaped,
    first_words,
    print_json,
    print_table,
    print_text,
    say,
    stdout,
)
from cli.terminal.showing import cancelled_when_left, tell_warnings
from shared.kinds.hf import BINARY, Task

# What the arguments of `sluice hf` are: texts, files, or standard input, put together as the
# inputs of a task. Nothing here talks to the network.

STDIN = "-"
_FILE_NAME = re.compile(r"\S+(/|\.[A-Za-z]\w{0,4})")
"""What one may have meant as a file."""
_ONE_TO_MANY = {
    Task.SENTENCE_SIMILARITY: ("source_sentence", "sentences"),
    Task.TEXT_RANKING: ("query", "texts"),
}


@dataclass(frozen=True, kw_only=True)
class NamedInputs:
    """The inputs of a job, or the one input, and what each is called in what is printed."""

    inputs: Any
    names: Sequence[str]

    @property
    def is_one(self) -> bool:
        return not isinstance(self.inputs, list)


def read_inputs(
    task: Task,
    arguments: Sequence[str],
    *,
    context: str | None = None,
    sentences: Sequence[str] = (),
    lines: bool = False,
) -> NamedInputs:
    """Raises UsageError for what the task cannot take, before anything is sent."""
    if [*arguments, context, *sentences].count(STDIN) > 1:
        raise click.UsageError("Standard input can be read once only; give - once.")
    if (context is not None) != (task is Task.QUESTION_ANSWERING):
        raise click.UsageError(
            f"--context has what the questions of {Task.QUESTION_ANSWERING} are about; "
            f"{'give one' if context is None else f'{task} takes none'}."
        )
    if sentences and task not in _ONE_TO_MANY:
        raise click.UsageError(f"--sentence is for {' and '.join(_ONE_TO_MANY)}; {task} has none.")
    if task in BINARY:
        if lines:
            raise click.UsageError(f"--lines is for texts; {task} takes files.")
        return _named_inputs([_file(each) for each in arguments], arguments)
    if task in _ONE_TO_MANY:
        return _one_to_many(task, [*arguments, *sentences], lines)
    pairs = list(_input_texts(arguments, lines))
    if context is None:
        values: list[Any] = [text for _, text in pairs]
    else:
        about = _whole(context)
        values = [{"question": question, "context": about} for _, question in pairs]
    return _named_inputs(values, [name for name, _ in pairs], is_list=lines)


def _named_inputs(values: list[Any], names: Sequence[str], *, is_list: bool = False) -> NamedInputs:
    if len(values) == 1 and not is_list:
        return NamedInputs(inputs=values[0], names=names)
    return NamedInputs(inputs=values, names=names)


def _one_to_many(task: Task, arguments: Sequence[str], lines: bool) -> NamedInputs:
    one, many = _ONE_TO_MANY[task]
    texts = [text for _, text in _input_texts(arguments, lines)]
    if len(texts) < 2:
        raise click.UsageError(
            f"{task} compares its first INPUT with the others; give at least two."
        )
    return NamedInputs(inputs={one: texts[0], many: texts[1:]}, names=texts[1:])


def _input_texts(arguments: Sequence[str], lines: bool) -> Iterator[tuple[str, str]]:
    """Names and texts; with `lines` a file has one text on each of its lines."""
    for argument in arguments:
        text = _whole(argument)
        if lines and _is_read(argument):
            yield from ((line, line) for line in text.splitlines() if line.strip())
        else:
            yield (argument if _is_read(argument) else text), text


def _whole(argument: str) -> str:
    if not _is_read(argument):
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
    if not _is_read(argument):
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


def _is_read(argument: str) -> bool:
    """Whether it stands for a file or standard input, and not for itself."""
    try:
        return argument == STDIN or Path(argument).is_file()
    except OSError:  # A text that is too long for a file's name.
        return False


def _name(argument: str) -> str:
    return "Standard input" if argument == STDIN else argument


# The output of a Hugging Face task for a person; as JSON where it has another shape.

_NAME_CELLS = 40
_SHOWN_NUMBERS = 4
_PASSAGES = ("sentence", "text", "sequence")

Row = tuple[object, ...]
_TEXTS = {
    Task.SUMMARIZATION: "summary_text",
    Task.TRANSLATION: "translation_text",
    Task.TEXT_GENERATION: "generated_text",
    Task.SPEECH_RECOGNITION: "text",
}


def show_output(task: Task, inputs: NamedInputs, output: Any) -> None:
    try:
        if task in _TEXTS:
            shown = _texts(_TEXTS[task], inputs, output)
        elif task is Task.QUESTION_ANSWERING and inputs.is_one and isinstance(output, dict):
            shown = [_answer(output)]
        else:
            columns, rows = _table(task, inputs, output)
            print_table(columns, rows, flexible=_flexible(columns))
            return
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        print_json(output)
        return
    for text in shown:
        print_text(text)


def _texts(field: str, inputs: NamedInputs, output: Any) -> list[str]:
    """One alone as it is; of many, a line for each in a pipe, and their names on a terminal."""
    if inputs.is_one:
        each = output if isinstance(output, list) else [output]
        return [line for item in each for line in (item[field], *_pieces(item))]
    texts = [
        " / ".join(item[field] for item in (one if isinstance(one, list) else [one]))
        for one in output
    ]
    if not stdout().is_terminal:
        return [escaped(text) for text in texts]
    return [f"{_short(name)}\n  {text}\n" for name, text in zip(inputs.names, texts, strict=True)]


def _pieces(item: dict[str, Any]) -> Iterator[str]:
    """What was said when, where a transcript tells."""
    for piece in item.get("chunks", ()):
        start, end = piece["timestamp"]
        yield f"{_seconds(start):>9} {_seconds(end):>9}  {piece['text'].strip()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _answer(output: dict[str, Any]) -> str:
    where = f"{output['score']:.2f}, from character {output['start']:,}"
    return f"{output['answer']} ({where})" if output["answer"] else f"No answer ({where})"


def _table(task: Task, inputs: NamedInputs, output: Any) -> tuple[Sequence[str], list[Row]]:
    columns, rows_of = _TABLES[task]
    if inputs.is_one:
        if task is Task.TEXT_CLASSIFICATION:
            [output] = output  # nested, as the API has it
        return columns, list(rows_of(output, inputs.names))
    rows = [
        (name, *row)
        for name, one in zip(inputs.names, output, strict=True)
        for row in rows_of(one, (name,))
    ]
    return ("input", *columns), rows


def _flexible(columns: Sequence[str]) -> str | None:
    """What one knows already, or reads elsewhere; an answer is never shortened."""
    return next((name for name in ("input", *_PASSAGES) if name in columns), None)


def _labels(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output:
        yield _score(item["score"]), item["label"]


def _answers(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output if isinstance(output, list) else [output]:
        yield _score(item["score"]), item["start"], item["end"], item["answer"]


def _entities(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output:
        name = item.get("entity_group") or item["entity"]
        yield name, _score(item["score"]), item["start"], item["end"], item["word"]


def _fillings(output: Any, _: Sequence[str]) -> Iterator[Row]:
    """With several masks there is a list for each."""
    masks = output if output and isinstance(output[0], list) else [output]
    for mask, items in enumerate(masks, start=1):
        for item in items:
            yield mask, _score(item["score"]), item["token_str"].strip(), item["sequence"]


def _similarities(output: Any, sentences: Sequence[str]) -> Iterator[Row]:
    for score, sentence in zip(output, sentences, strict=True):
        yield _score(score), sentence


def _ranks(output: Any, texts: Sequence[str]) -> Iterator[Row]:
    for item in output:
        yield _score(item["score"]), item["index"], texts[item["index"]]


def _vectors(output: Any, _: Sequence[str]) -> Iterator[Row]:
    rows = output if isinstance(output[0], list) else [output]
    size = f"{len(rows)} × {len(rows[0])}" if rows is output else f"{len(output)}"
    shown = ", ".join(f"{number:.4f}" for number in rows[0][:_SHOWN_NUMBERS])
    yield size, shown + (", …" if len(rows[0]) > _SHOWN_NUMBERS or len(rows) > 1 else "")


def _score(value: float) -> str:
    return f"{value:.4f}"


def _short(name: str) -> str:
    return first_words(name, _NAME_CELLS)


_LABEL_TABLE = (("score", "label"), _labels)
_TABLES: dict[Task, tuple[Sequence[str], Callable[[Any, Sequence[str]], Iterator[Row]]]] = {
    Task.TEXT_CLASSIFICATION: _LABEL_TABLE,
    Task.ZERO_SHOT_CLASSIFICATION: _LABEL_TABLE,
    Task.IMAGE_CLASSIFICATION: _LABEL_TABLE,
    Task.QUESTION_ANSWERING: (("score", "start", "end", "answer"), _answers),
    Task.TOKEN_CLASSIFICATION: (("entity", "score", "start", "end", "word"), _entities),
    Task.FILL_MASK: (("mask", "score", "token", "sequence"), _fillings),
    Task.SENTENCE_SIMILARITY: (("score", "sentence"), _similarities),
    Task.TEXT_RANKING: (("score", "index", "text"), _ranks),
    Task.FEATURE_EXTRACTION: (("numbers", "vector"), _vectors),
}


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
    named_inputs = read_inputs(
        task, inputs or (STDIN,), context=context, sentences=sentences, lines=lines
    )
    with attached(client, named_inputs.inputs) as sent:
        job_input = hf_input(task, sent, model=model, parameters=parameters, backend=backend)
        job = client.submit("hf", job_input, lane="interactive")
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
        show_output(task, named_inputs, result)
    return 0


def _value(text: str) -> Any:
    try:
        value = json.loads(text)
    except ValueError:
        return text
    return text if isinstance(value, float) and not math.isfinite(value) else value
