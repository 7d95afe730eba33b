"""Waiting for a state, commands in the background, and what sockets processes have.

Waiting has a deadline that only a broken system reaches. Nothing here knows of Sluice.
"""

import json
import subprocess
import time
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Self, TypeVar

import psutil

DEADLINE_S = 240.0
COMMAND_S = 480.0
PAUSE_S = 0.1

T = TypeVar("T")


def until(look: Callable[[], T], what: str, deadline_s: float = DEADLINE_S) -> T:
    """Look again and again until what is seen is true; returns it."""
    deadline = time.monotonic() + deadline_s
    while not (seen := look()):
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain: {what}"
        time.sleep(PAUSE_S)
    return seen


@dataclass(frozen=True, kw_only=True)
class CompletedCommand:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def document(self) -> Any:
        """What `--json` printed."""
        return json.loads(self.out)


class BackgroundCommand:
    """A command of the CLI in the background; it ends with the `with` block at the latest."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        if self.is_running():
            self._process.kill()
            self._process.communicate()

    def finish(self) -> CompletedCommand:
        out, err = self._process.communicate(timeout=COMMAND_S)
        return CompletedCommand(code=self._process.returncode, out=out, err=err)

    def is_running(self) -> bool:
        return self._process.poll() is None

    def is_connected(self, port: int) -> bool:
        """Whether the command has a connection to a server of this machine."""
        return any(
            connection.status == psutil.CONN_ESTABLISHED and connection.raddr.port == port
            for process in _tree(self._process.pid)
            for connection in process.net_connections("tcp")
        )


def _tree(pid: int) -> list[psutil.Process]:
    """A process and what it started; what has ended meanwhile is left out."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        return [process, *process.children(recursive=True)]
    return []


def remote_addresses(processes: Sequence[psutil.Process]) -> list[tuple[str, str, str]]:
    """Process, and both ends, of each internet socket that is not on the loopback alone."""
    addresses = []
    for process in processes:
        with suppress(psutil.NoSuchProcess):
            name = " ".join(process.cmdline()[:6])
            for connection in process.net_connections("inet"):
                ends = (connection.laddr, connection.raddr)
                if any(end and end.ip not in {"127.0.0.1", "::1"} for end in ends):
                    addresses.append((name, str(connection.laddr), str(connection.raddr)))
    return addresses
