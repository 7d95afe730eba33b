"""What a part of the local stack is, as data; the supervisor runs it."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path
from signal import SIGTERM, Signals

from cli.stack.launch import Account

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
