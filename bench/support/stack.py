"""A local stack of its own for a benchmark: `sluice up` in a new home, with its memory's peaks."""

import os
import subprocess
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

import psutil

from cli.stack.stackfile import Stack, StackState, find_stack
from sluice import Client

READY_S = 180.0


@contextmanager
def running_stack(home: Path | None = None, /, **settings: str) -> Iterator[tuple[Stack, Client]]:
    """Start a stack, wait until all its parts are ready, and stop it in the end. Its home is kept
    where one is named."""
    with ExitStack() as entered:
        if home is None:
            new = tempfile.TemporaryDirectory(prefix="sluice-bench-")
            home = Path(entered.enter_context(new))
        home.mkdir(parents=True, exist_ok=True)
        home.chmod(0o755)  # PostgreSQL's own user must reach its part of it
        environment = {k: v for k, v in os.environ.items() if not k.startswith("SLUICE_")}
        environment |= {"SLUICE_HOME": str(home), **settings}
        log = (home / "up.log").open("w")
        up = subprocess.Popen(
            [sys.executable, "-m", "cli.main", "up"], env=environment, stdout=log, stderr=log
        )
        try:
            stack = _ready(home, up)
            with Client(stack.api_url) as client:
                yield stack, client
        except BaseException:
            sys.stderr.write((home / "up.log").read_text()[-4000:])
            raise
        finally:
            up.terminate()
            up.wait(60)


def _ready(home: Path, up: "subprocess.Popen[bytes]") -> Stack:
    deadline = time.monotonic() + READY_S
    while time.monotonic() < deadline and up.poll() is None:
        stack = find_stack(home)
        if stack is not None and stack.state is StackState.READY:
            return stack
        time.sleep(0.2)
    raise RuntimeError("the stack did not become ready")


def peaks_mib(stack: Stack) -> dict[str, float]:
    """The highest resident memory that any one process of each part has had, in MiB."""
    peaks: dict[str, float] = defaultdict(float)
    now = find_stack(stack.home) or stack  # parts may have been restarted
    for part in now.parts:
        if part.pid is None:
            continue
        main = psutil.Process(part.pid)
        for process in [main, *main.children(recursive=True)]:
            try:
                status = Path(f"/proc/{process.pid}/status").read_text()
            except OSError:
                continue  # it has ended
            peak_kib = next(
                int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM")
            )
            peaks[part.name] = max(peaks[part.name], peak_kib / 1024)
    return dict(peaks)
