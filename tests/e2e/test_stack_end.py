"""The stack as a whole: what it says of itself, a second `sluice up`, and its end.

Runs last: the stack of all tests is stopped here.
"""

import os
from pathlib import Path

import psutil

from tests.e2e.processes import remote_addresses, until
from tests.e2e.stack import LiveStack

PARTS = {"postgres", "redis", "chroma", "api", "cpu-1", "generate-1", "beat"}


def test_status_and_doctor_say_that_all_is_well(stack: LiveStack) -> None:
    status = stack.sluice_json("status")
    assert status["ready"] is True
    assert {part["name"] for part in status["parts"]} == PARTS
    assert all(part["ready"] and part["pid"] for part in status["parts"])
    assert {queue["name"] for queue in status["queues"]} >= {"ingest", "embed", "query", "generate"}
    assert all(worker["alive"] for worker in status["workers"])
    doctor = stack.sluice_json("doctor")
    assert [check for check in doctor["checks"] if not check["ok"]] == []
    assert doctor["ok"] is True


def test_a_second_up_finds_the_first(stack: LiveStack) -> None:
    before = {part.name: part.pid for part in stack.noted.parts}
    second = stack.sluice("up", "--json")
    assert second.code == 0, second.err
    assert second.document["url"] == stack.noted.api_url
    assert second.document["pid"] == stack.noted.pid
    assert {part.name: part.pid for part in stack.noted.parts} == before


def test_nothing_is_open_to_other_machines(stack: LiveStack) -> None:
    processes = stack.processes()
    assert len(processes) > len(PARTS)
    assert remote_addresses(processes) == []
    # The check sees sockets at all: each part that has a port listens on it.
    listening = {
        connection.laddr.port
        for process in processes
        for connection in process.net_connections("tcp")
        if connection.status == psutil.CONN_LISTEN
    }
    assert listening == {part.port for part in stack.noted.parts if part.port}


def test_down_ends_every_process(stack: LiveStack) -> None:
    noted, processes = stack.noted, stack.processes()
    groups = {os.getpgid(process.pid) for process in processes}
    done = stack.sluice("down", "--json")
    assert done.code == 0, done.err
    assert done.document["stopped"] is True
    until(lambda: stack.up.poll() is not None, "`sluice up` has ended")
    assert stack.up.returncode == 0, stack.log_tail()

    assert [process for process in processes if _lives(process)] == []
    assert {pid: pgid for pid, pgid in _groups().items() if pgid in groups} == {}
    assert _of_home(noted.home) == []
    again = stack.sluice("down", "--json")
    assert again.document["stopped"] is False
    away = stack.sluice("status")
    assert away.code == 3
    assert "sluice up" in away.err


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def _groups() -> dict[int, int]:
    """The process group of each living process."""
    groups = {}
    for process in psutil.process_iter():
        try:
            if process.status() != psutil.STATUS_ZOMBIE:
                groups[process.pid] = os.getpgid(process.pid)
        except (psutil.NoSuchProcess, ProcessLookupError):
            continue
    return groups


def _of_home(home: Path) -> list[list[str]]:
    """Command lines of living processes that belong to this home."""
    commands = []
    for process in psutil.process_iter():
        try:
            has_home = process.environ().get("SLUICE_HOME") == str(home)
            if has_home or any(str(home) in word for word in process.cmdline()):
                commands.append(process.cmdline())
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue
    return commands
