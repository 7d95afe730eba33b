"""A process that finds models as a worker does: `python -m tests.models.model_finder HOME`.

A line of standard input is a request in JSON, a line of standard output its outcome. `waits` names
a file that is made while the process waits, `found` one that is made once the hub is known to have
the model, and `stop` another: when it is there, the wait ends with the error `stopped_by`.
"""

import json
import os
import subprocess
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from billiard.exceptions import SoftTimeLimitExceeded

from shared.config import Settings
from shared.errors import Cancelled, SluiceError
from shared.kinds.hf import Task
from workers.models.locate import locate, locate_generator

ERRORS = {"Cancelled": Cancelled, "SoftTimeLimitExceeded": SoftTimeLimitExceeded}


class Locator:
    """The process, as a test talks to it."""

    def __init__(self, process: "subprocess.Popen[str]") -> None:
        self._process = process

    def send(self, model: str, task: Task | None = None, **request: Any) -> None:
        assert self._process.stdin is not None
        print(json.dumps({"model": model, "task": task, **request}), file=self._process.stdin)
        self._process.stdin.flush()

    def receive(self) -> dict[str, Any]:
        assert self._process.stdout is not None
        answer: dict[str, Any] = json.loads(self._process.stdout.readline())
        return answer

    def ask(self, model: str, task: Task | None = None, **request: Any) -> dict[str, Any]:
        self.send(model, task, **request)
        return self.receive()


@contextmanager
def locator(home: Path, environment: Mapping[str, str]) -> Iterator[Locator]:
    process = subprocess.Popen(
        [sys.executable, "-W", "error", "-m", __name__, str(home)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**{k: v for k, v in os.environ.items() if not k.startswith("HF_")}, **environment},
    )
    try:
        yield Locator(process)
    finally:
        process.kill()
        process.communicate()


def main() -> None:
    home = Path(sys.argv[1])
    for line in sys.stdin:
        print(json.dumps(_outcome(home, json.loads(line))), flush=True)


def _outcome(home: Path, request: dict[str, Any]) -> dict[str, Any]:
    stop, waits = Path(request.get("stop", home / "never")), request.get("waits")
    marker = request.get("marker")

    def check() -> None:
        if waits:
            Path(waits).touch()
        if stop.exists():
            raise ERRORS[request["stopped_by"]]()

    def on_known() -> None:
        if marker:
            Path(marker).touch()

    settings = Settings(
        _env_file=None, home=home, hf_token=request.get("token"), **request.get("settings", {})
    )
    task = Task(request["task"]) if request["task"] else None
    try:
        if request.get("generates"):
            folder = locate_generator(request["model"], settings)
        else:
            folder = locate(request["model"], settings, task=task, check=check, on_known=on_known)
        return {"folder": str(folder)}
    except SluiceError as error:
        waits_s = getattr(error, "retry_after_s", None)
        return {"error": type(error).__name__, "message": error.message, "retry_after_s": waits_s}


if __name__ == "__main__":
    main()
