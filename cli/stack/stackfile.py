"""The stack file: what runs under a home folder, told to other processes by the supervisor.

`run/stack.json` (mode 0600, for its URLs hold passwords) is replaced as a whole at each change and
removed at an orderly end; after a crash it names the leftovers. `run/stack.lock` is what keeps a
second supervisor out: the kernel frees it when its holder dies, however that happens.
"""

import fcntl
import json
import os
import select
import signal
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGTERM, Signals

from cli.stack.launch import Account
from shared.errors import ConfigurationError

# What a part of the local stack is, as data; the supervisor runs it.

Ready = Callable[[int], str | None]
"""Given the part's pid: None once it serves, else why it does not yet. Blocks for 5 s at most."""


class PartState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process, with its own session, that the supervisor keeps up."""

    name: str
    argv: tuple[str, ...]
    ready: Ready
    env: Mapping[str, str] = field(default_factory=dict)
    """Added to the environment of the stack itself."""
    port: int | None = None
    cwd: Path | None = None
    account: Account | None = None
    stop_signal: Signals = SIGTERM
    ready_timeout_s: float = 60
    first_attempts: int = 3
    """So often may it end before it was ever ready."""
    stop_grace_s: float = 10
    quiet_start: bool = False
    """What it prints before it is ready is for its log file only."""
    hint: str = ""
    """What to do where it does not become ready."""


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """How a part is doing."""

    name: str
    state: PartState
    pid: int | None
    started_ticks: int | None
    port: int | None
    restarts: int
    detail: str
    """Why it is not ready; empty when it is."""
    log: Path
    stop_signal: Signals


# Processes of this machine, as `/proc` tells of them: who they are, and whether they still
# live.
#
# A pid alone names nothing, for the kernel gives it out again. A pid with its start time
# does, on one boot and in one pid namespace (`machine()`). Linux only. This module starts
# nothing.

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class OsProcess:
    """One row of the process table; `started_ticks` counts clock ticks since boot."""

    pid: int
    session: int
    started_ticks: int


def machine() -> str:
    """This boot and this pid namespace: pids that were noted elsewhere mean nothing here."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(PROC / 'self/ns/pid').readlink()}"


def find_process(pid: int) -> OsProcess | None:
    """The process, or None where it has ended; one that waits to be reaped has ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may itself hold brackets and spaces; what follows the last one is ours.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return OsProcess(pid=pid, session=int(fields[3]), started_ticks=int(fields[19]))


def is_running(pid: int, started_ticks: int) -> bool:
    process = find_process(pid)
    return process is not None and process.started_ticks == started_ticks


def session_members(leader_pid: int, started_ticks: int) -> list[OsProcess]:
    """The processes of the session that this leader began, whether or not it still lives."""
    leader = find_process(leader_pid)
    if leader is not None and leader.started_ticks != started_ticks:
        return []  # The pid has been given out again; the session is another's.
    return [
        process
        for process in _all_processes()
        if process.session == leader_pid and process.started_ticks >= started_ticks
    ]


def kill_session(leader_pid: int, started_ticks: int) -> int:
    """SIGKILL everything in the session; returns how many processes that were."""
    killed = 0
    # Once more for those that a member forked while we looked; the killed fork no further.
    for _ in range(3):
        members = session_members(leader_pid, started_ticks)
        if not members:
            break
        for process in members:
            with suppress(ProcessLookupError):
                os.kill(process.pid, signal.SIGKILL)
                killed += 1
    return killed


def send(pid: int, number: signal.Signals) -> None:
    """Send a signal; a process that has ended meanwhile is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for_exit(pid: int, timeout_s: float) -> bool:
    """Sleep until the process has ended; False if it has not in time."""
    try:
        descriptor = os.pidfd_open(pid)
    except ProcessLookupError:
        return True
    try:
        poller = select.poll()
        poller.register(descriptor, select.POLLIN)
        return bool(poller.poll(max(0, timeout_s) * 1000))
    finally:
        os.close(descriptor)


def _all_processes() -> Iterator[OsProcess]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            process = find_process(int(entry.name))
            if process is not None:
                yield process


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
