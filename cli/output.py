"""What the CLI writes: results to stdout, everything else to stderr.

A terminal gets tables and colours (none with `NO_COLOR`); a pipe gets tab-separated lines in full
length; `--json` gets one document. Widths are those of the terminal's cells, so that Korean lines
up. Nothing here knows the API.
"""

import json
import re
import sys
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.table import Table
from rich.text import Text

# Escape sequences of a document or a server must not reach the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
_COPIED_CELLS = 36


class ClosedPipe(Exception):
    """The reader of the output has gone. No OSError, for which click would leave by itself."""


class _Pipe(Console):
    """rich, too, would leave by itself; `cli/main.py` decides."""

    def on_broken_pipe(self) -> None:
        raise ClosedPipe


def stdout() -> Console:
    return _Pipe(markup=False, highlight=False, emoji=False)


def stderr() -> Console:
    return _Pipe(stderr=True, markup=False, highlight=False, emoji=False)


def say(message: str, *, style: str = "") -> None:
    """A message to the person; never part of the result."""
    stderr().print(Text(clean(message), style=style), soft_wrap=True)


def print_text(text: str = "", *, style: str = "") -> None:
    """A line of the result. A terminal wraps it at words, a pipe gets it whole."""
    console = stdout()
    console.print(Text(clean(text), style=style), soft_wrap=not console.is_terminal)


def write_text(text: str) -> None:
    """A piece of the result, shown at once."""
    encoding = sys.stdout.encoding or "utf-8"
    _write(clean(text).encode(encoding, "replace").decode(encoding), end="")


def print_json(value: Any) -> None:
    """The one document of a `--json` run."""
    _write(json.dumps(jsonable(value), ensure_ascii=_ascii_only(), indent=2))


def print_json_line(value: Any) -> None:
    _write(json.dumps(jsonable(value), ensure_ascii=_ascii_only()))


def print_table(columns: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """A table on a terminal; tab-separated lines without a head elsewhere, to be cut and sorted."""
    console = stdout()
    cells = [[clean(str(cell)).replace("\n", " ").replace("\t", " ") for cell in r] for r in rows]
    if not console.is_terminal:
        for row in cells:
            _write("\t".join(row))
        return
    table = Table(box=None, pad_edge=False, header_style="bold")
    for number, column in enumerate(columns):
        # The first column is what one copies; only the last may run over several lines.
        width = max([cell_len(column), *(cell_len(row[number]) for row in cells)])
        table.add_column(
            column,
            min_width=min(width, _COPIED_CELLS) if number == 0 else None,
            no_wrap=number < len(columns) - 1,
            overflow="fold" if number == len(columns) - 1 else "ellipsis",
        )
    for row in cells:
        table.add_row(*(Text(cell) for cell in row))
    console.print(table)


def jsonable(value: Any) -> Any:
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json")
    if isinstance(value, dict):
        return {str(key): jsonable(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [jsonable(item) for item in value]
    return value


def clean(text: str) -> str:
    return _CONTROLS.sub("", text)


def first_words(text: str, cells: int) -> str:
    """The beginning of a passage on one line, at most so many cells wide."""
    line = Text(" ".join(clean(text).split()))
    line.truncate(max(cells, 1), overflow="ellipsis")
    return line.plain


def plural(number: int, noun: str) -> str:
    return f"{number:,} {noun}" if number == 1 else f"{number:,} {noun}s"


def ago(moment: datetime | None) -> str:
    if moment is None:
        return ""
    seconds = max(0.0, (datetime.now(UTC) - moment).total_seconds())
    return "just now" if seconds < 1 else f"{duration(seconds)} ago"


def duration(seconds: float) -> str:
    if seconds < 10:
        return f"{seconds:.1f} s"
    if seconds < 120:
        return f"{seconds:.0f} s"
    if seconds < 7200:
        return f"{seconds / 60:.0f} min"
    return f"{seconds / 3600:.0f} h" if seconds < 172_800 else f"{seconds / 86_400:.0f} days"


def _write(line: str, *, end: str = "\n") -> None:
    try:
        sys.stdout.write(line + end)
        # A watcher's lines are wanted now, and a closed pipe is noticed here.
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ClosedPipe from error


def _ascii_only() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
