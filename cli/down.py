"""Stops a stack from another process, and what a killed supervisor left behind."""

import signal
import time
from collections.abc import Callable
from pathlib import Path

from cli.parts import PartReport
from cli.processes import kill_session, machine, send, session_members, wait_for_exit
from cli.stackfile import Stack, find_stack, read_stack, remove_stack, run_folder, stack_lock

LEFTOVER_GRACE_S = 10.0
LOCK_PAUSE_S = 0.2


def stop_stack(home: Path, timeout_s: float = 60) -> bool:
    """End the stack under this home and wait for it; True if there was one, or leftovers of one.

    In order first; what is still there after `timeout_s` is killed.
    """
    deadline = time.monotonic() + timeout_s
    stack = _stack_or_starting(home, deadline)
    if stack is None:
        return False
    running = find_stack(home) is not None
    if running:
        send(stack.pid, signal.SIGTERM)
        if not wait_for_exit(stack.pid, deadline - time.monotonic()):
            send(stack.pid, signal.SIGKILL)
            wait_for_exit(stack.pid, LEFTOVER_GRACE_S)
    stopped: list[str] = []
    left = read_stack(home)  # An orderly end has removed it.
    if left is not None:
        stopped = stop_leftovers(left)
        with stack_lock(home) as held:
            if held:
                remove_stack(home)
    return running or bool(stopped)


def stop_leftovers(stack: Stack, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """End the parts that outlived their supervisor, latest first; returns their names."""
    if stack.machine != machine():
        return []
    return [part.name for part in reversed(stack.parts) if _stop_leftover(part, say)]


def _stop_leftover(part: PartReport, say: Callable[[str], None]) -> bool:
    if part.pid is None or not part.started_ticks:
        return False
    members = session_members(part.pid, part.started_ticks)
    if not members:
        return False
    say(f"stopping {part.name} (pid {part.pid}), left behind by an earlier run")
    if any(process.pid == part.pid for process in members):
        send(part.pid, part.stop_signal)
        wait_for_exit(part.pid, LEFTOVER_GRACE_S)
    kill_session(part.pid, part.started_ticks)
    return True


def _stack_or_starting(home: Path, deadline: float) -> Stack | None:
    """The noted stack; a supervisor that has yet to note one is waited for."""
    while run_folder(home).is_dir():
        stack = read_stack(home)
        if stack is not None:
            return stack
        with stack_lock(home) as held:
            if held or time.monotonic() > deadline:
                return read_stack(home)
        time.sleep(LOCK_PAUSE_S)
    return None
