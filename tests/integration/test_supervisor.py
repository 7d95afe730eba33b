"""The supervisor with small real processes: crash, stop, failure to start, no orphans."""

import asyncio
import os
import signal
import subprocess
import sys
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest

from cli.stack.logs import LogStream
from cli.stack.stackfile import (
    Part,
    PartReport,
    PartState,
    Ready,
    find_process,
    session_members,
    wait_for_exit,
)
from cli.stack.supervisor import StartFailed, Supervisor, Timing
from tests import waits

QUICK = Timing(backoff_base_s=0.01, backoff_cap_s=0.05, ready_pause_s=0.01)
SLEEP = "import time; print('up', flush=True); time.sleep(600)"
STUBBORN = "import signal; signal.signal(signal.SIGTERM, signal.SIG_IGN); " + SLEEP
WITH_CHILD = (
    f"import subprocess, sys; subprocess.Popen([sys.executable, '-c', {STUBBORN!r}]); {SLEEP}"
)
PATIENCE_S = 120


def python_part(
    name: str,
    code: str,
    *,
    ready: Ready = lambda _pid: None,
    ready_timeout_s: float = 0.3,
    grace_s: float = 10,
) -> Part:
    argv = (sys.executable, "-I", "-S", "-c", code)
    return Part(
        name=name,
        argv=argv,
        ready=ready,
        ready_timeout_s=ready_timeout_s,
        stop_grace_s=grace_s,
        hint="look here",
    )


def supervise(folder: Path, scenario: Callable[[Supervisor], Awaitable[None]]) -> list[PartReport]:
    """Run the scenario, stop everything, and return what was reported in between."""
    reports: list[PartReport] = []

    async def run() -> None:
        log = LogStream(folder, None)
        supervisor = Supervisor(log, timing=QUICK)
        try:
            await scenario(supervisor)
            reports.extend(supervisor.reports())
        finally:
            await supervisor.stop()
            log.close()
        assert all(report.state == PartState.STOPPED for report in supervisor.reports())

    asyncio.run(run())
    return reports


async def until(condition: Callable[[], bool]) -> None:
    async with asyncio.timeout(PATIENCE_S):
        while not condition():
            await asyncio.sleep(0.01)


def report(supervisor: Supervisor, name: str) -> PartReport:
    return next(one for one in supervisor.reports() if one.name == name)


def said(folder: Path, name: str) -> str:
    """What the part's log file says, once it says anything."""
    path = folder / f"{name}.log"
    return path.read_text(encoding="utf-8") if path.exists() else ""


def test_a_killed_part_comes_back_and_the_other_runs_on(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        assert await supervisor.start([python_part("one", SLEEP), python_part("two", SLEEP)])
        first, other = report(supervisor, "one").pid, report(supervisor, "two").pid
        assert first is not None
        os.kill(first, signal.SIGKILL)
        await until(
            lambda: (
                report(supervisor, "one").pid not in (None, first)
                and report(supervisor, "one").state == PartState.READY
            )
        )
        assert report(supervisor, "one").restarts == 1
        assert report(supervisor, "two").pid == other

    supervise(tmp_path, scenario)
    assert "one was ended by signal 9" in said(tmp_path, "sluice")


def test_a_part_that_was_ready_is_restarted_however_often_it_ends(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        assert await supervisor.start([python_part("brief", "print('ran')")])
        await until(lambda: report(supervisor, "brief").restarts > 4)

    supervise(tmp_path, scenario)


def test_the_backoff_doubles_up_to_its_cap() -> None:
    assert [Timing().backoff_s(n) for n in (1, 2, 3, 6, 7, 1000)] == [0.2, 0.4, 0.8, 6.4, 10, 10]


def test_stop_ends_descendants_that_ignore_sigterm(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        assert await supervisor.start([python_part("parent", WITH_CHILD)])
        # Both print when they are up, the stubborn one when it ignores SIGTERM already.
        await until(lambda: said(tmp_path, "parent").count("up") == 2)

    (parent,) = supervise(tmp_path, scenario)
    assert parent.pid is not None
    assert parent.started_ticks is not None
    assert session_members(parent.pid, parent.started_ticks) == []


def test_descendants_of_a_killed_part_do_not_outlive_it(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        assert await supervisor.start([python_part("parent", WITH_CHILD)])
        await until(lambda: said(tmp_path, "parent").count("up") == 2)
        first = report(supervisor, "parent")
        assert first.pid is not None
        assert first.started_ticks is not None
        members = session_members(first.pid, first.started_ticks)
        assert len(members) == 2
        os.kill(first.pid, signal.SIGKILL)
        await until(lambda: report(supervisor, "parent").restarts == 1)
        assert all(find_process(process.pid) is None for process in members)

    supervise(tmp_path, scenario)


def test_a_part_that_outlives_its_grace_is_killed(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        part = python_part("stubborn", STUBBORN, grace_s=0.05)
        assert await supervisor.start([part])
        await until(lambda: "up" in said(tmp_path, "stubborn"))

    (stubborn,) = supervise(tmp_path, scenario)
    assert stubborn.pid is not None
    assert find_process(stubborn.pid) is None
    assert "did not stop within 0.05 s" in said(tmp_path, "sluice")


def test_kill_ends_everything_without_waiting_for_grace(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        part = python_part("stubborn", STUBBORN, grace_s=600)
        assert await supervisor.start([part])
        await until(lambda: "up" in said(tmp_path, "stubborn"))
        supervisor.kill()

    supervise(tmp_path, scenario)
    assert "did not stop" not in said(tmp_path, "sluice")


def test_groups_stop_in_the_reverse_order_of_their_start(tmp_path: Path) -> None:
    code = (
        "import signal, sys, time\n"
        "def end(*_):\n"
        "    with open({path!r}, 'a') as file: file.write({name!r} + '\\n')\n"
        "    sys.exit(0)\n"
        "signal.signal(signal.SIGTERM, end)\n"
        "print('up', flush=True)\n"
        "time.sleep(600)\n"
    )
    order = tmp_path / "order"

    async def scenario(supervisor: Supervisor) -> None:
        for name in ("servers", "programs"):
            part = python_part(name, code.format(path=str(order), name=name))
            assert await supervisor.start([part])
            await until(lambda name=name: "up" in said(tmp_path, name))  # type: ignore[misc]

    supervise(tmp_path, scenario)
    assert order.read_text().split() == ["programs", "servers"]


def test_a_part_that_never_becomes_ready_fails_with_its_last_lines(tmp_path: Path) -> None:
    log = tmp_path / "deaf.log"

    def deaf(_pid: int) -> str:
        waits.until(lambda: log.exists() and "up" in log.read_text(), "it has written")
        return "nobody answers"

    part = python_part("deaf", SLEEP, ready=deaf)

    async def scenario(supervisor: Supervisor) -> None:
        await supervisor.start([python_part("fine", SLEEP), part])

    with pytest.raises(StartFailed) as failure:
        supervise(tmp_path, scenario)
    message = failure.value.message
    assert "deaf was not ready after 0.3 s: nobody answers" in message
    assert "    up\n" in message
    assert "What to do: look here" in message


def test_a_part_that_ends_at_once_fails_after_three_attempts(tmp_path: Path) -> None:
    part = python_part(
        "broken",
        "raise SystemExit('no such thing')",
        ready=lambda _pid: "no",
        ready_timeout_s=PATIENCE_S,
    )

    async def scenario(supervisor: Supervisor) -> None:
        await supervisor.start([part])

    with pytest.raises(StartFailed, match=r"broken ended with exit code 1\.") as failure:
        supervise(tmp_path, scenario)
    assert failure.value.message.count("no such thing") == part.first_attempts


def test_a_program_that_does_not_exist_is_named(tmp_path: Path) -> None:
    part = Part(name="ghost", argv=("/nowhere/ghost",), ready=lambda _pid: "no")

    async def scenario(supervisor: Supervisor) -> None:
        await supervisor.start([part])

    with pytest.raises(StartFailed, match="/nowhere/ghost"):
        supervise(tmp_path, scenario)


def test_a_readiness_check_that_breaks_is_a_reason_not_a_crash(tmp_path: Path) -> None:
    def breaks(_pid: int) -> str | None:
        raise KeyError("checks")

    async def scenario(supervisor: Supervisor) -> None:
        await supervisor.start([python_part("odd", SLEEP, ready=breaks)])

    with pytest.raises(StartFailed, match="KeyError"):
        supervise(tmp_path, scenario)


def test_a_stop_during_the_start_ends_it(tmp_path: Path) -> None:
    async def scenario(supervisor: Supervisor) -> None:
        deaf = python_part("deaf", SLEEP, ready=lambda _pid: "not yet")
        start = asyncio.create_task(supervisor.start([deaf]))
        await asyncio.sleep(0)
        supervisor.request_stop()
        assert await start is False
        assert await supervisor.start([python_part("late", SLEEP)]) is False

    assert [one.name for one in supervise(tmp_path, scenario)] == ["deaf"]


def test_children_end_when_the_supervisor_is_killed(tmp_path: Path) -> None:
    """SIGKILL cannot be handled; the kernel tells the children."""
    script = (
        "import asyncio, pathlib, sys\n"
        "from cli.stack.logs import LogStream\n"
        "from cli.stack.supervisor import Part\n"
        "from cli.stack.supervisor import Supervisor\n"
        "async def main():\n"
        "    supervisor = Supervisor(LogStream(pathlib.Path(sys.argv[1]), None))\n"
        f"    argv = (sys.executable, '-c', {SLEEP!r})\n"
        "    part = Part(name='child', argv=argv, ready=lambda _: None)\n"
        "    await supervisor.start([part])\n"
        "    print(supervisor.reports()[0].pid, flush=True)\n"
        "    await supervisor.until_stop()\n"
        "asyncio.run(main())\n"
    )
    with subprocess.Popen(
        [sys.executable, "-c", script, str(tmp_path)], stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout is not None
        child_pid = int(process.stdout.readline())
        assert find_process(child_pid) is not None
        process.kill()
    assert wait_for_exit(child_pid, PATIENCE_S)
