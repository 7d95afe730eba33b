"""The command line on a terminal of its own: keys go in, what the screen would show comes out."""

import os
import pty
import re
import select
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

from tests.integration.cli_process import ROOT

PATIENCE_S = 120.0
CTRL_C, CTRL_D = "\x03", "\x04"
_IN_FOREGROUND = """
import fcntl, termios
fcntl.ioctl(0, termios.TIOCSCTTY, 0)  # so that Ctrl-C comes as a signal
from cli.main import main
main()
"""
_ESCAPES = re.compile(r"\x1b\[[0-9;?]*[a-zA-Z]")


class Terminal:
    """`sluice` with the terminal as its standard streams."""

    def __init__(self, process: subprocess.Popen[bytes], master: int) -> None:
        self.process = process
        self._master = master
        self.seen = ""
        self._from = 0

    def type(self, keys: str) -> None:
        os.write(self._master, keys.encode())

    def expect(self, text: str) -> str:
        """Wait until the text is on the screen, behind what was expected before."""
        deadline = time.monotonic() + PATIENCE_S
        while (at := self.seen.find(text, self._from)) < 0:
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.seen}"
            assert self._read() or self.process.poll() is None, f"no {text!r}:\n{self.seen}"
        before, self._from = self.seen[self._from : at], at + len(text)
        return before

    def type_until(self, keys: str, text: str) -> None:
        """Again, where the keys came in a moment when the program did not look."""
        deadline = time.monotonic() + PATIENCE_S
        while self.seen.find(text, self._from) < 0:
            assert time.monotonic() < deadline, f"{text!r} never came:\n{self.seen}"
            self.type(keys)
            for _ in range(10):
                self._read()
        self.expect(text)

    def end(self) -> int:
        """The exit code, once it has ended."""
        while self.process.poll() is None or self._read():
            self._read()
        return self.process.wait()

    def _read(self) -> bool:
        if not select.select([self._master], [], [], 0.1)[0]:
            return False
        with suppress(OSError):  # What Linux says of a terminal that nobody holds any more.
            data = os.read(self._master, 4096)
            self.seen = _ESCAPES.sub("", self.seen + data.decode("utf-8", "replace"))
            return bool(data)
        return False


@contextmanager
def on_terminal(*args: str, columns: int = 100) -> Iterator[Terminal]:
    """A running `sluice`, killed at the end of the block if it has not ended."""
    master, slave = pty.openpty()
    process = subprocess.Popen(
        [sys.executable, "-c", _IN_FOREGROUND, *args],
        env={**os.environ, "PYTHONPATH": str(ROOT), "TERM": "xterm", "COLUMNS": str(columns)},
        stdin=slave,
        stdout=slave,
        stderr=slave,
        start_new_session=True,
    )
    os.close(slave)
    try:
        yield Terminal(process, master)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()
        os.close(master)
