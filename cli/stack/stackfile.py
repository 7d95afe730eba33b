"""The stack file: the processes that run under a home folder, written by the supervisor.

`run/stack.json` (mode 0600, since its URLs contain passwords) is replaced as a whole at each change
and removed at a normal end; after a crash it names the processes that may be left. `run/stack.lock`
keeps a second supervisor out: the kernel releases it when its holder ends in any way.
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

# Parts

Ready = Callable[[int], str | None]
"""From the part's pid: None if it is ready, else the reason. Takes 5 s at most."""


class PartState(StrEnum):
    STARTING = "starting"
    READY = "ready"
    RESTARTING = "restarting"
    STOPPED = "stopped"


@dataclass(frozen=True, kw_only=True)
class Part:
    """One process, with its own session, that the supervisor keeps running."""

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
    """How often it may end before it is ready for the first time."""
    stop_grace_s: float = 10
    quiet_start: bool = False
    """Lines before it is ready are written to its log file only."""
    hint: str = ""
    """What the user can do if it does not become ready."""


@dataclass(frozen=True, kw_only=True)
class PartReport:
    """The state of a part in the stack file."""

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


# Processes of this machine, from `/proc` (Linux only)
#
# A pid alone does not identify a process, since the kernel reuses it. A pid with its start time
# does, within one boot and one pid namespace (`machine()`).

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class OsProcess:
    """One row of the process table; `started_ticks` counts clock ticks since boot."""

    pid: int
    session: int
    started_ticks: int


def machine() -> str:
    """An id of this boot and this pid namespace, within which a pid has a meaning."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(PROC / 'self/ns/pid').readlink()}"


def find_process(pid: int) -> OsProcess | None:
    """The process, or None if it has ended. A zombie has ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may contain brackets and spaces; the fields follow the last bracket.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return OsProcess(pid=pid, session=int(fields[3]), started_ticks=int(fields[19]))


def is_running(pid: int, started_ticks: int) -> bool:
    process = find_process(pid)
    return process is not None and process.started_ticks == started_ticks


def session_members(leader_pid: int, started_ticks: int) -> list[OsProcess]:
    """The processes of the session that this leader began, also if it has ended itself."""
    leader = find_process(leader_pid)
    if leader is not None and leader.started_ticks != started_ticks:
        return []  # the pid was reused, so this is another session
    return [
        process
        for process in _all_processes()
        if process.session == leader_pid and process.started_ticks >= started_ticks
    ]


def kill_session(leader_pid: int, started_ticks: int) -> int:
    """Send SIGKILL to all processes of the session; returns their number."""
    killed = 0
    # Repeated for processes that were forked meanwhile; killed ones do not fork again.
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
    """Send a signal. A process that has ended is no error."""
    with suppress(ProcessLookupError):
        os.kill(pid, number)


def wait_for_exit(pid: int, timeout_s: float) -> bool:
    """Wait until the process has ended; False after the timeout."""
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
    """The content of the stack file. The URLs contain passwords."""

    pid: int
    started_ticks: int
    machine: str
    state: StackState
    home: Path
    api_url: str
    database_url: str = field(repr=False)
    redis_url: str = field(repr=False)
    vectors_url: str = field(repr=False)
    parts: tuple[PartReport, ...]


@dataclass(frozen=True, kw_only=True)
class PartStatus:
    """The state of a part for `sluice status`. `detail` has the reason if it is not ready."""

    name: str
    state: str
    pid: int | None
    port: int | None
    restarts: int
    ready: bool
    detail: str
    log: Path


def find_stack(home: Path) -> Stack | None:
    """The stack whose supervisor runs under this home, or None."""
    stack = read_stack(home)
    if stack is None or stack.machine != machine():
        return None
    return stack if is_running(stack.pid, stack.started_ticks) else None


def stack_status(stack: Stack) -> list[PartStatus]:
    """The states in the stack file, checked against the process table."""
    return [_status(part) for part in stack.parts]


def read_stack(home: Path) -> Stack | None:
    """The content of the stack file, also if the processes in it have ended."""
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
    if "chroma_url" in raw:  # of an earlier version, which `sluice down` may still have to end
        raw["vectors_url"] = "chroma" + raw.pop("chroma_url").removeprefix("http")
    raw["state"], raw["home"] = StackState(raw["state"]), Path(raw["home"])
    return Stack(**raw, parts=parts)


def write_stack(stack: Stack) -> None:
    """Replace the stack file; readers see the old or the new one."""
    path = run_folder(stack.home) / "stack.json"
    write_private(path, json.dumps(asdict(stack), default=str, ensure_ascii=False, indent=1))


def remove_stack(home: Path) -> None:
    (run_folder(home) / "stack.json").unlink(missing_ok=True)


def write_private(path: Path, text: str) -> None:
    """Replace a file as a whole, with a mode that only its owner can read."""
    new = path.with_name(path.name + ".new")
    new.unlink(missing_ok=True)
    descriptor = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as file:
        file.write(text)
    new.replace(path)


@contextmanager
def stack_lock(home: Path) -> Iterator[bool]:
    """Hold the lock of this home's stack; False if another process has it."""
    # The file is never removed: a lock on a removed file excludes nobody.
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
    # The supervisor may have been killed, or not yet written the end of the part.
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
