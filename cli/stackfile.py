"""The stack file: what runs under a home folder, told to other processes by the supervisor.

`run/stack.json` (mode 0600, for its URLs hold passwords) is replaced as a whole at each change and
removed at an orderly end; after a crash it names the leftovers. `run/stack.lock` is what keeps a
second supervisor out: the kernel frees it when its holder dies, however that happens.
"""

import fcntl
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import Signals

from cli.parts import PartReport, PartState
from cli.processes import is_running, machine
from shared.errors import ConfigurationError


class StackState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    STOPPING = "stopping"


@dataclass(frozen=True, kw_only=True)
class Stack:
    """A local stack, as its supervisor last noted it; the URLs hold its passwords."""

    pid: int
    started_ticks: int
    machine: str
    state: StackState
    home: Path
    api_url: str
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    chroma_url: str
    parts: tuple[PartReport, ...]


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """How a part does: `ready`, or `detail` says why not."""

    name: str
    state: str
    pid: int | None
    port: int | None
    restarts: int
    ready: bool
    detail: str
    log: Path


def find_stack(home: Path) -> Stack | None:
    """The stack that runs under this home, or None. What it left behind does not count."""
    stack = read_stack(home)
    if stack is None or stack.machine != machine():
        return None
    return stack if is_running(stack.pid, stack.started_ticks) else None


def stack_status(stack: Stack) -> list[PartStatus]:
    """Per part, as its supervisor last noted it, checked against the process table."""
    return [_status(part) for part in stack.parts]


def read_stack(home: Path) -> Stack | None:
    """The stack file as it is, whether or not what it names still runs."""
    path = run_folder(home) / "stack.json"
    try:
        raw = json.loads(path.read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        return None
    except PermissionError as error:
        raise ConfigurationError(
            f"{path} belongs to another user. Run this as the user that ran `sluice up`, or set "
            "SLUICE_HOME to a folder of your own."
        ) from error
    parts = tuple(
        PartReport(
            **{
                **part,
                "state": PartState(part["state"]),
                "log": Path(part["log"]),
                "stop_signal": Signals(part["stop_signal"]),
            }
        )
        for part in raw.pop("parts")
    )
    raw["state"], raw["home"] = StackState(raw["state"]), Path(raw["home"])
    return Stack(**raw, parts=parts)


def write_stack(stack: Stack) -> None:
    """Replace the stack file; readers see the old or the new one."""
    path = run_folder(stack.home) / "stack.json"
    write_private(path, json.dumps(asdict(stack), default=str, ensure_ascii=False, indent=1))


def remove_stack(home: Path) -> None:
    (run_folder(home) / "stack.json").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Put the text there as a whole, readable by its owner only."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


@contextmanager
def stack_lock(home: Path) -> Iterator[bool]:
    """Hold the lock of this home's stack; False where another process has it."""
    # Never removed: a lock on a removed file would keep nobody out.
    descriptor = os.open(run_folder(home) / "stack.lock", os.O_RDWR | os.O_CREAT, 0o600)
    try:
        held = False
        with suppress(BlockingIOError):
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            held = True
        yield held
    finally:
        os.close(descriptor)


def run_folder(home: Path) -> Path:
    return home / "run"


def _status(part: PartReport) -> PartStatus:
    state, detail = part.state, part.detail
    # The supervisor may have been killed, or not have noted the part's end yet.
    if state == PartState.READY and not is_running(part.pid or 0, part.started_ticks or 0):
        state, detail = PartState.RESTARTING, "its process has ended"
    return PartStatus(
        name=part.name,
        state=state.value,
        pid=part.pid,
        port=part.port,
        restarts=part.restarts,
        ready=state == PartState.READY,
        detail=detail,
        log=part.log,
    )
