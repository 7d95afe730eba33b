"""What the arguments of `sluice hf` are: texts, files, or standard input, put together as the
inputs of a task. Nothing here talks to the network.
"""

import re
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import click

from cli.output import say
from shared.hf import BINARY, Task

STDIN = "-"
_FILE_NAME = re.compile(r"\S+(/|\.[A-Za-z]\w{0,4})")
"""What one may have meant as a file."""
_ONE_TO_MANY = {
    Task.SENTENCE_SIMILARITY: ("source_sentence", "sentences"),
    Task.TEXT_RANKING: ("query", "texts"),
}


@dataclass(frozen=True, kw_only=True)
class Asked:
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
) -> Asked:
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
        return _asked([_file(each) for each in arguments], arguments)
    if task in _ONE_TO_MANY:
        return _one_to_many(task, [*arguments, *sentences], lines)
    found = list(_texts(arguments, lines))
    if context is None:
        values: list[Any] = [text for _, text in found]
    else:
        about = _whole(context)
        values = [{"question": question, "context": about} for _, question in found]
    return _asked(values, [name for name, _ in found], is_list=lines)


def _asked(values: list[Any], names: Sequence[str], *, is_list: bool = False) -> Asked:
    if len(values) == 1 and not is_list:
        return Asked(inputs=values[0], names=names)
    return Asked(inputs=values, names=names)


def _one_to_many(task: Task, arguments: Sequence[str], lines: bool) -> Asked:
    one, many = _ONE_TO_MANY[task]
    texts = [text for _, text in _texts(arguments, lines)]
    if len(texts) < 2:
        raise click.UsageError(
            f"{task} compares its first INPUT with the others; give at least two."
        )
    return Asked(inputs={one: texts[0], many: texts[1:]}, names=texts[1:])


def _texts(arguments: Sequence[str], lines: bool) -> Iterator[tuple[str, str]]:
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
