"""Processes of this machine, as `/proc` tells of them: who they are, and whether they still live.

A pid alone names nothing, for the kernel gives it out again. A pid with its start time does, on
one boot and in one pid namespace (`machine()`). Linux only. This module starts nothing.
"""

import os
import select
import signal
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

PROC = Path("/proc")


@dataclass(frozen=True, kw_only=True)
class Process:
    """One row of the process table; `started_ticks` counts clock ticks since boot."""

    pid: int
    session: int
    started_ticks: int


def machine() -> str:
    """This boot and this pid namespace: pids that were noted elsewhere mean nothing here."""
    boot = (PROC / "sys/kernel/random/boot_id").read_text().strip()
    return f"{boot} {(PROC / 'self/ns/pid').readlink()}"


def find_process(pid: int) -> Process | None:
    """The process, or None where it has ended; one that waits to be reaped has ended."""
    try:
        stat = (PROC / str(pid) / "stat").read_text(errors="replace")
    except (FileNotFoundError, ProcessLookupError):
        return None
    # The name in brackets may itself hold brackets and spaces; what follows the last one is ours.
    fields = stat.rpartition(")")[2].split()
    if fields[0] in "ZX":
        return None
    return Process(pid=pid, session=int(fields[3]), started_ticks=int(fields[19]))


def is_running(pid: int, started_ticks: int) -> bool:
    process = find_process(pid)
    return process is not None and process.started_ticks == started_ticks


def session_members(leader_pid: int, started_ticks: int) -> list[Process]:
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


def _all_processes() -> Iterator[Process]:
    for entry in PROC.iterdir():
        if entry.name.isdigit():
            process = find_process(int(entry.name))
            if process is not None:
                yield process
