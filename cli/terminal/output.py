"""The output of the CLI: results on stdout, everything else on stderr.

A terminal gets tables and colours (none with `NO_COLOR`). A pipe gets one tab-separated line for
each record, not shortened. `--json` gets one document. Widths are counted in terminal cells, so
that Korean text lines up. The API is unknown here.
"""

import json
import re
import sys
import unicodedata
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

from pydantic import BaseModel
from rich.cells import cell_len
from rich.console import Console
from rich.text import Text

# Escape sequences of a document or a server must not reach the terminal.
_CONTROLS = re.compile(r"[\x00-\x08\x0b-\x1f\x7f-\x9f]")
# Characters that end a line or a field for a reader of the pipe, or control a terminal behind it.
_UNPIPED = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\\]")
_JSON_ESCAPES = {code: f"\\u{code:04x}" for code in (*range(0x7F, 0xA0), 0x2028, 0x2029)}
"""The same characters in JSON, which escapes the others itself."""
_ESCAPES = {"\t": "\\t", "\n": "\\n", "\r": "\\r", "\\": "\\\\"}
_GAP = "  "
_FLEXIBLE_CELLS = 10
"""The minimum width of a shortened column; else each row becomes a block."""


class ClosedPipe(Exception):
    """The reader of the output has closed it. Not an OSError, for which click would exit."""


class _Pipe(Console):
    """A console that raises ClosedPipe, where rich would exit."""

    def on_broken_pipe(self) -> None:
        raise ClosedPipe


def stdout() -> Console:
    return _Pipe(markup=False, highlight=False, emoji=False)


def stderr() -> Console:
    return _Pipe(stderr=True, markup=False, highlight=False, emoji=False)


def say(message: str, *, style: str = "") -> None:
    """A message on stderr; never part of the result."""
    stderr().print(Text(clean(message), style=style), soft_wrap=True)


def say_json(value: Any) -> None:
    """A JSON document on one line of stderr, for programs that read it."""
    line = json.dumps(jsonable(value), ensure_ascii=True)
    try:
        sys.stderr.write(line + "\n")
        sys.stderr.flush()
    except BrokenPipeError as error:
        raise ClosedPipe from error


def print_text(text: str = "", *, style: str = "") -> None:
    """A line of the result, wrapped at words on a terminal."""
    console = stdout()
    console.print(Text(clean(text), style=style), soft_wrap=not console.is_terminal)


def write_text(text: str) -> None:
    """A piece of the result, without a line end, written at once."""
    encoding = sys.stdout.encoding or "utf-8"
    _write(clean(text).encode(encoding, "replace").decode(encoding), end="")


def print_json(value: Any) -> None:
    """The one document of a `--json` run."""
    _write(_json(value, indent=2))


def print_json_line(value: Any) -> None:
    _write(_json(value))


def print_table(
    columns: Sequence[str], rows: Sequence[Sequence[object]], *, flexible: str | None = None
) -> None:
    """A table on a terminal; in a pipe, tab-separated lines without a header.

    If the table is too wide, only the column `flexible` is shortened, with an ellipsis; if that is
    not enough, each row becomes a block of lines. On a terminal integers and times are formatted
    for a person.
    """
    console = stdout()
    if not console.is_terminal:
        for row in rows:
            print_record(*row)
        return
    if not rows:
        return
    cells = [[_shown(cell) for cell in row] for row in rows]
    at = None if flexible is None else columns.index(flexible)
    widths = _fitting(columns, cells, at, console.width)
    if widths is None:
        for number, row in enumerate(cells):
            if number:
                console.print()
            _print_block(console, list(zip(columns, row, strict=True)), _widest(columns))
        return
    is_number = [
        all(isinstance(row[number], int) or row[number] in (None, "") for row in rows)
        for number in range(len(columns))
    ]
    for style, line in (("bold", list(columns)), *(("", row) for row in cells)):
        padded = [
            _padded(first_words(cell, width) if number == at else cell, width, right=right)
            for number, (cell, width, right) in enumerate(zip(line, widths, is_number, strict=True))
        ]
        console.print(Text(_GAP.join(padded).rstrip(), style=style), soft_wrap=True)


def print_fields(fields: Sequence[tuple[str, object]]) -> None:
    """The fields of one object with their names; in a pipe, one line for each."""
    console = stdout()
    if not console.is_terminal:
        for name, value in fields:
            print_record(name, value)
        return
    shown = [(name, _shown(value, lines=True)) for name, value in fields]
    _print_block(console, shown, _widest([name for name, _ in shown]))


def print_record(*values: object) -> None:
    """One line of tab-separated values. Tabs and line ends in values are escaped, as in `\\n`."""
    _write("\t".join(escaped(_plain(value)) for value in values))


def escaped(text: str) -> str:
    """The text on one line without tabs and controls, as `\\n`, `\\t`, `\\\\`, `\\x1b`."""
    return _UNPIPED.sub(_escape, text)


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


def _shown(value: object, *, lines: bool = False) -> str:
    """A value for a person. With `lines` it may have several lines."""
    if isinstance(value, datetime):
        return ago(value)
    if isinstance(value, int) and not isinstance(value, bool):
        return f"{value:,}"
    # In NFD the parts of a Korean syllable would be counted as cells of their own.
    text = unicodedata.normalize("NFC", clean("" if value is None else str(value)))
    return text.replace("\t", "  ") if lines else " ".join(text.split())


def _plain(value: object) -> str:
    if isinstance(value, datetime):
        return value.isoformat()
    return "" if value is None else str(value)


def _escape(match: re.Match[str]) -> str:
    character = match[0]
    number = ord(character)
    return _ESCAPES.get(character) or (f"\\x{number:02x}" if number < 256 else f"\\u{number:04x}")


def _widest(texts: Sequence[str]) -> int:
    return max(map(cell_len, texts), default=0)


def _padded(text: str, width: int, *, right: bool) -> str:
    space = " " * (width - cell_len(text))
    return space + text if right else text + space


def _fitting(
    columns: Sequence[str], cells: Sequence[Sequence[str]], flexible: int | None, width: int
) -> list[int] | None:
    """A width for each column; None if they do not fit beside each other."""
    widths = [_widest([column, *(row[n] for row in cells)]) for n, column in enumerate(columns)]
    missing = sum(widths) + len(_GAP) * (len(columns) - 1) - width
    if missing <= 0:
        return widths
    if flexible is None:
        return None
    room = widths[flexible] - missing
    if room < max(_FLEXIBLE_CELLS, cell_len(columns[flexible])):
        return None
    widths[flexible] = room
    return widths


def _print_block(console: Console, fields: Sequence[tuple[str, str]], name_cells: int) -> None:
    """Names and whole values. A value that does not fit beside its name is written below it."""
    for name, value in fields:
        room = console.width - name_cells - len(_GAP)
        words = _widest(value.split())
        lines = _wrapped(console, value, room) if words <= room else []
        head, *rest = lines or [""]
        console.print(
            Text(f"{_padded(name, name_cells, right=False)}{_GAP}{head}".rstrip()), soft_wrap=True
        )
        indent = " " * (name_cells + len(_GAP))
        if not lines and value:
            indent, rest = _GAP, _wrapped(console, value, console.width - len(_GAP))
        for line in rest:
            console.print(Text(f"{indent}{line}"), soft_wrap=True)


def _wrapped(console: Console, text: str, cells: int) -> list[str]:
    """The lines of a text, broken at words; only a word longer than a line is broken itself."""
    return [line.plain.rstrip() for line in Text(text).wrap(console, max(cells, 1))]


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
        # Lines are read while the command runs, and a closed pipe must be noticed here.
        sys.stdout.flush()
    except BrokenPipeError as error:
        raise ClosedPipe from error


def _json(value: Any, *, indent: int | None = None) -> str:
    text = json.dumps(jsonable(value), ensure_ascii=_ascii_only(), indent=indent)
    # A lone surrogate can be written only in the escape of JSON.
    return text.translate(_JSON_ESCAPES).encode("utf-8", "backslashreplace").decode()


def _ascii_only() -> bool:
    return (sys.stdout.encoding or "").lower().replace("-", "") != "utf8"
