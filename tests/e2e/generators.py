"""Generation workers beside the stack's own: a model of their own, killed and started at will."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil

from cli.stack.launch import launch_argv
from tests.e2e.processes import until
from tests.e2e.stack import ROOT, LiveStack


class GenerationWorker:
    """`sluice worker generate --model REF`, which finds the running stack by itself."""

    def __init__(self, stack: LiveStack, model: str, name: str, log: Path, **settings: str) -> None:
        self.name = name
        self._stack = stack
        self._model = model
        self._log = log
        self._settings = settings
        self.start()

    def start(self) -> None:
        with self._log.open("ab") as stream:
            self._process = subprocess.Popen(
                launch_argv(
                    [
                        *(sys.executable, "-P", "-m", "cli.main", "worker", "generate"),
                        *("--model", self._model, "--name", self.name),
                    ]
                ),
                env={**self._stack.environment, "PYTHONPATH": str(ROOT), **self._settings},
                cwd=self._stack.home.parent,
                stdin=subprocess.DEVNULL,
                stdout=stream,
                stderr=stream,
                start_new_session=True,
            )

    def until_ready(self) -> None:
        """Wait until it is on the list of living workers, with its model loaded."""

        def serves() -> bool:
            assert self._process.poll() is None, f"the worker has ended:\n{self.log_tail()}"
            rows = self._stack.sql("SELECT pid FROM workers WHERE name = %s", self.name)
            return any(pid in self._pids() for (pid,) in rows)

        until(serves, f"{self.name} is ready")

    def log_tail(self) -> str:
        return self._log.read_text(errors="replace")[-6000:]

    def _pids(self) -> set[int]:
        top = psutil.Process(self._process.pid)
        return {top.pid, *(child.pid for child in top.children(recursive=True))}

    def freeze(self) -> None:
        """It stops in the middle of what it does, and holds on to it."""
        os.killpg(self._process.pid, signal.SIGSTOP)

    def kill(self) -> None:
        """SIGKILL to it and to all below it."""
        os.killpg(self._process.pid, signal.SIGKILL)
        self._process.wait()

    def stop(self) -> int:
        """Ask it to end, and wait; its exit code."""
        if self._process.poll() is None:
            os.killpg(self._process.pid, signal.SIGTERM)
        return self._process.wait(120)

    def wait(self) -> int:
        """Until it has ended by itself; its exit code."""
        return self._process.wait(120)
