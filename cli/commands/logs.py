"""`sluice logs`: what the parts of the local stack have written, and what they write."""

import os
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import BinaryIO, Self

import click
from click.shell_completion import CompletionItem

from cli.connection import client_settings
from cli.options import json_option
from cli.terminal.output import clean, print_json_line, write_text
from sluice import NotFound

FOLLOW_PAUSE_S = 0.25


def _parts(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _files() if name.startswith(incomplete)]


@click.command(short_help="Show the logs of the stack on this machine.")
@click.argument("names", nargs=-1, metavar="[PART]...", shell_complete=_parts)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="How many of the last lines of each part.",
)  # fmt: skip
@json_option
def logs(*, names: tuple[str, ...], follow: bool, lines: int, as_json: bool) -> int:
    """Show the logs of the stack on this machine: of each PART named, else of all.

    `sluice status` names the parts. With --json each line is a document.

    \b
    Examples:
      sluice logs api -n 100
      sluice logs -f generate-1 cpu-1
    """
    files = _files()
    if unknown := [name for name in names if name not in files]:
        there = ", ".join(files) or "none; nothing has run there yet"
        raise NotFound(
            f"There is no log of {', '.join(unknown)} under {_folder()}. Parts with one: {there}."
        )
    if not files:
        raise NotFound(f"There are no logs under {_folder()}: no stack has run there.")
    shown = names or tuple(files)
    prefix_cells = max(map(len, shown)) if len(shown) > 1 else 0
    with ExitStack() as stack:
        tails = {name: stack.enter_context(_Tail(files[name])) for name in shown}
        for name, tail in tails.items():
            for line in tail.last(lines):
                _show(name, line, prefix_cells, as_json)
        while follow:
            fresh = [(name, line) for name, tail in tails.items() for line in tail.new()]
            for name, line in fresh:
                _show(name, line, prefix_cells, as_json)
            if not fresh:
                time.sleep(FOLLOW_PAUSE_S)
    return 0


class _Tail:
    """A log file as it grows. When it is full it becomes another file, and a new one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def last(self, number: int) -> Sequence[str]:
        return list(deque(self._whole_lines(), maxlen=number))

    def new(self) -> Sequence[str]:
        lines = list(self._whole_lines())
        if not lines and self._is_replaced():
            self._file.close()
            self._file, self._rest = self._path.open("rb"), b""
            lines = list(self._whole_lines())
        return lines

    def _is_replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except OSError:
            return False  # for the moment between the two

    def _whole_lines(self) -> Iterator[str]:
        while data := self._file.readline():
            self._rest += data
            if self._rest.endswith(b"\n"):
                yield self._rest[:-1].decode("utf-8", "replace")
                self._rest = b""


def _show(name: str, line: str, prefix_cells: int, as_json: bool) -> None:
    if as_json:
        print_json_line({"part": name, "line": line})
    elif prefix_cells:
        write_text(f"{name:<{prefix_cells}} | {clean(line)}\n")
    else:
        write_text(f"{clean(line)}\n")


def _folder() -> Path:
    return client_settings().home_path / "logs"


def _files() -> dict[str, Path]:
    """The newest file of each part, by its name."""
    return {path.stem: path for path in sorted(_folder().glob("*.log"))}
