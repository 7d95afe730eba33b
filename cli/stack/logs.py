"""The log of all parts: prefixed lines on the terminal, and a file of plain lines for each part.

The terminal never blocks the caller: lines that it does not take in time are dropped there (the
files have them), and a closed terminal is not used any more. Files are bounded: at `FILE_BYTES` a
file becomes `<name>.log.1`, and so on up to `FILES_KEPT`.
"""

import os
import queue
import re
import threading
from collections import deque
from contextlib import suppress
from datetime import datetime
from pathlib import Path
from typing import BinaryIO, TextIO

FILE_BYTES = 5 * 2**20
FILES_KEPT = 3
TAIL_LINES = 20
CONSOLE_LINES = 10_000
COLOURS = (36, 33, 32, 35, 34, 96, 93, 92, 95, 94)
OWN_NAME = "sluice"
ESCAPES = re.compile(r"\x1b\[[0-9;?]*[ -/]*[@-~]")
"""Escape sequences, such as colours, which are removed for files and pipes."""


class LogFile:
    """A file of lines with a bounded size. On a full disk lines are lost without an error."""

    def __init__(self, path: Path, *, limit_bytes: int = FILE_BYTES) -> None:
        self._path = path
        self._limit_bytes = limit_bytes
        self._file: BinaryIO | None = None

    def write(self, line: str) -> None:
        with suppress(OSError):
            if self._file is None:
                self._file = self._path.open("ab", buffering=0)
            elif self._file.tell() >= self._limit_bytes:
                self._rotate()
            self._file.write(line.encode(errors="replace") + b"\n")

    def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def _rotate(self) -> None:
        self.close()
        for number in range(FILES_KEPT - 1, 0, -1):
            older = self._path.with_name(f"{self._path.name}.{number}")
            newer = self._path if number == 1 else older.with_suffix(f".{number - 1}")
            if newer.exists():
                newer.replace(older)
        self._file = self._path.open("ab", buffering=0)


class Console:
    """Writes lines to a terminal or pipe in a thread of its own."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream
        self._lines: queue.Queue[str | None] = queue.Queue(CONSOLE_LINES)
        self._thread = threading.Thread(target=self._run, name="console", daemon=True)
        self._thread.start()

    def write(self, line: str) -> None:
        with suppress(queue.Full):
            self._lines.put_nowait(line)

    def close(self, timeout_s: float = 2) -> None:
        """Write the waiting lines, but do not wait for a terminal that takes none."""
        with suppress(queue.Full):
            self._lines.put(None, timeout=timeout_s)
        self._thread.join(timeout_s)

    def _run(self) -> None:
        is_closed = False
        while (line := self._lines.get()) is not None:
            if is_closed:
                continue
            try:
                self._print(line)
            except (OSError, ValueError):
                is_closed = True
                self._discard()

    def _print(self, line: str) -> None:
        encoding = self._stream.encoding or "utf-8"
        self._stream.write(line.encode(encoding, "replace").decode(encoding) + "\n")
        self._stream.flush()

    def _discard(self) -> None:
        # Buffered text would fail once more when the interpreter ends.
        with suppress(OSError, ValueError):
            null = os.open(os.devnull, os.O_WRONLY)
            os.dup2(null, self._stream.fileno())
            os.close(null)


class LogStream:
    """The lines of all parts. With `console=None` they are written to files only."""

    def __init__(
        self,
        folder: Path,
        console: Console | None,
        *,
        colour: bool = False,
        parts_on_console: bool = True,
    ) -> None:
        self._folder = folder
        self._console = console
        self._colour = colour
        self._parts_on_console = parts_on_console
        self._files: dict[str, LogFile] = {}
        self._tails: dict[str, deque[str]] = {}
        self._width = len("generate-1")

    def path(self, name: str) -> Path:
        return self._folder / f"{name}.log"

    def write(self, name: str, line: str, *, show: bool = True) -> None:
        """Log one line of a part; with `show=False` only in its file."""
        plain = ESCAPES.sub("", line)
        self._record(name, plain)
        if show and self._console is not None and self._parts_on_console:
            self._console.write(f"{self._prefix(name)} {line if self._colour else plain}")

    def say(self, line: str) -> None:
        """Log one line of the stack itself, also on the console."""
        self._record(OWN_NAME, f"{datetime.now().astimezone():%Y-%m-%d %H:%M:%S%z} {line}")
        if self._console is not None:
            self._console.write(f"{self._prefix(OWN_NAME)} {line}")

    def tail(self, name: str) -> list[str]:
        """The last lines that the part wrote."""
        return list(self._tails.get(name, ()))

    def close(self) -> None:
        for file in self._files.values():
            file.close()
        if self._console is not None:
            self._console.close()

    def mute(self) -> None:
        """Write to the files only from now on."""
        if self._console is not None:
            self._console.close()
            self._console = None

    def _record(self, name: str, line: str) -> None:
        if name not in self._files:
            self._files[name] = LogFile(self.path(name))
            self._tails[name] = deque(maxlen=TAIL_LINES)
        self._files[name].write(line)
        self._tails[name].append(line)

    def _prefix(self, name: str) -> str:
        self._width = max(self._width, len(name))
        text = f"{name:<{self._width}} |"
        if not self._colour:
            return text
        number = 1 if name == OWN_NAME else COLOURS[list(self._files).index(name) % len(COLOURS)]
        return f"\x1b[{number}m{text}\x1b[0m"
