"""The stack file, the lock, leftovers, logs and ports, with real files and processes."""

import io
import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pytest

from cli.stack.launch import launch_argv
from cli.stack.logs import FILES_KEPT, Console, LogFile, LogStream
from cli.stack.ports import free_ports, hold_api_port
from cli.stack.stackfile import (
    PartReport,
    PartState,
    Stack,
    StackState,
    find_process,
    find_stack,
    machine,
    read_stack,
    stack_lock,
    stack_status,
    write_stack,
)
from cli.stack.up import make_home, stop_leftovers, stop_stack
from shared.errors import ConfigurationError


@pytest.fixture
def home(tmp_path: Path) -> Path:
    path = tmp_path / "내 폴더 'a\" b"
    make_home(path)
    return path


@contextmanager
def sleeper() -> Iterator[tuple[int, int]]:
    """A process in a session of its own: its pid and start."""
    with subprocess.Popen(["sleep", "600"], start_new_session=True) as process:
        record = find_process(process.pid)
        assert record is not None
        try:
            yield record.pid, record.started_ticks
        finally:
            process.kill()


def make_stack(home: Path, pid: int, started_ticks: int) -> Stack:
    part = PartReport(
        name="redis",
        state=PartState.READY,
        pid=pid,
        started_ticks=started_ticks,
        port=20_001,
        restarts=2,
        detail="",
        log=home / "logs" / "redis.log",
        stop_signal=signal.SIGTERM,
    )
    return Stack(
        pid=pid,
        started_ticks=started_ticks,
        machine=machine(),
        state=StackState.READY,
        home=home,
        api_url="http://127.0.0.1:8000",
        database_url="postgresql://sluice:secret@127.0.0.1:20000/sluice",
        redis_url="redis://:secret@127.0.0.1:20001/0",
        vectors_url="qdrant://:secret@127.0.0.1:20002",
        parts=(part,),
    )


def test_a_running_stack_is_read_as_it_was_written(home: Path) -> None:
    with sleeper() as (pid, ticks):
        stack = make_stack(home, pid, ticks)
        write_stack(stack)
        assert find_stack(home) == stack
        (status,) = stack_status(stack)
    assert (status.name, status.ready, status.restarts) == ("redis", True, 2)
    assert (home / "run" / "stack.json").stat().st_mode & 0o777 == 0o600
    assert "secret" not in repr(stack)


def test_an_ended_stack_is_gone_and_its_parts_are_not_ready(home: Path) -> None:
    with sleeper() as (pid, ticks):
        stack = make_stack(home, pid, ticks)
    write_stack(stack)
    assert find_stack(home) is None
    assert read_stack(home) == stack
    assert [status.ready for status in stack_status(stack)] == [False]


@pytest.mark.parametrize("change", ["started_ticks", "machine"])
def test_a_pid_that_is_another_process_now_is_not_the_stack(home: Path, change: str) -> None:
    with sleeper() as (pid, ticks):
        stack = make_stack(home, pid, ticks)
        other = {"started_ticks": ticks - 1} if change == "started_ticks" else {"machine": "moon"}
        write_stack(replace(stack, **other))
        assert find_stack(home) is None


def test_no_stack_where_there_is_no_home(tmp_path: Path) -> None:
    assert find_stack(tmp_path / "none") is None
    assert stop_stack(tmp_path / "none", timeout_s=1) is False


def test_the_lock_keeps_a_second_holder_out(home: Path) -> None:
    with stack_lock(home) as first:
        assert first
        with stack_lock(home) as second:
            assert not second
    with stack_lock(home) as third:
        assert third


def test_leftovers_are_stopped_and_only_ours(home: Path) -> None:
    with sleeper() as (pid, ticks), sleeper() as (other_pid, other_ticks):
        not_ours = make_stack(home, other_pid, other_ticks - 1)
        assert stop_leftovers(not_ours) == []
        stack = replace(make_stack(home, pid, ticks), pid=os.getpid(), started_ticks=1)
        write_stack(stack)
        assert stop_stack(home, timeout_s=10) is True
        assert find_process(pid) is None
        assert find_process(other_pid) is not None
    assert read_stack(home) is None
    assert stop_stack(home, timeout_s=1) is False


def test_a_home_that_cannot_be_made_names_the_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(ConfigurationError, match="SLUICE_HOME"):
        make_home(tmp_path / "file" / "home")


def test_the_shim_keeps_empty_arguments_and_ends_without_its_parent() -> None:
    argv = launch_argv([sys.executable, "-c", "import sys; print(sys.argv[1:])", "", "a b", "글"])
    done = subprocess.run(argv, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['', 'a b', '글']"
    position = argv.index(str(os.getpid()))
    orphan = [*argv[:position], "1", *argv[position + 1 :]]
    assert (
        "the parent ended"
        in subprocess.run(orphan, capture_output=True, text=True, check=False).stderr
    )


def test_log_files_are_bounded(tmp_path: Path) -> None:
    file = LogFile(tmp_path / "part.log", limit_bytes=1000)
    for number in range(1000):
        file.write(f"line {number}")
    file.close()
    files = sorted(path.name for path in tmp_path.iterdir())
    assert files == ["part.log", *(f"part.log.{number}" for number in range(1, FILES_KEPT))]
    assert all(path.stat().st_size <= 1010 for path in tmp_path.iterdir())
    assert (tmp_path / "part.log").read_text().endswith("line 999\n")


def test_lines_carry_the_name_of_their_part(tmp_path: Path) -> None:
    text = io.StringIO()
    log = LogStream(tmp_path, Console(text), colour=False)
    log.write("api", "\x1b[1;32m안녕\x1b[0m")
    log.write("api", "kept off the console", show=False)
    log.say("hello")
    log.close()
    assert text.getvalue().splitlines() == ["api        | 안녕", "sluice     | hello"]
    assert (tmp_path / "api.log").read_text(encoding="utf-8") == "안녕\nkept off the console\n"


def test_a_terminal_that_takes_nothing_does_not_stop_the_stack(tmp_path: Path) -> None:
    read_end, write_end = os.pipe()
    with os.fdopen(write_end, "w") as stream:
        console = Console(stream)
        log = LogStream(tmp_path, console)

        def flood() -> None:
            for _ in range(20_000):
                log.write("part", "x" * 100)

        writer = threading.Thread(target=flood)
        writer.start()
        writer.join(60)
        assert not writer.is_alive()
        os.close(read_end)  # what waits fails now, and is forgotten
        log.close()


def test_free_ports_differ_and_lie_below_the_ephemeral_range() -> None:
    ports = free_ports(5)
    first = int(Path("/proc/sys/net/ipv4/ip_local_port_range").read_text().split()[0])
    assert len(set(ports)) == 5
    assert all(port < first for port in ports)


def test_the_api_port_moves_on_only_when_nobody_fixed_it() -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with hold_api_port("127.0.0.1", port, fixed=False) as other:
            assert other != port
        with (
            pytest.raises(ConfigurationError, match="SLUICE_API_PORT"),
            hold_api_port("127.0.0.1", port, fixed=True),
        ):
            pass


def test_two_stacks_that_start_together_have_ports_of_their_own() -> None:
    """The first one's API does not listen yet when the second one looks for a port."""
    (preferred,) = free_ports(1)
    with hold_api_port("127.0.0.1", preferred, fixed=False) as one:
        with hold_api_port("127.0.0.1", preferred, fixed=False) as other:
            assert one != other
        with (
            pytest.raises(ConfigurationError, match="SLUICE_API_PORT"),
            hold_api_port("127.0.0.1", one, fixed=True),
        ):
            pass
    with hold_api_port("127.0.0.1", one, fixed=True) as again:
        assert again == one
