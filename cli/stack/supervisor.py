"""The supervisor: starts parts, restarts them, and stops them. It knows no particular part.

A part that ends is restarted with exponential backoff; the others run on. A part that does not
become ready at its first start is an error (`StartFailed`); after a restart it is waited for
without a limit. `stop` ends the groups in the reverse order of their start.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

from cli.stack.launch import launch_argv
from cli.stack.logs import LogStream
from cli.stack.stackfile import Part, PartReport, PartState, find_process, kill_session, send
from shared.errors import SluiceError

# Child processes on an asyncio loop
#
# The end of a child is a readable pidfd and its output a readable pipe, so nothing polls. A child
# has its own session, and `kill` ends all of it. Start children in the main thread only: the kernel
# sends the signal at the parent's death when the starting thread ends.

LINE_BYTES = 64 * 1024
READ_BYTES = 64 * 1024
DRAIN_S = 1.0


class Child:
    """A running part. `exited` resolves to its exit code."""

    def __init__(self, part: Part, on_line: Callable[[str], None]) -> None:
        self._loop = asyncio.get_running_loop()
        self._on_line = on_line
        self._rest = b""
        self.exited: asyncio.Future[int] = self._loop.create_future()
        self._drained: asyncio.Future[None] = self._loop.create_future()
        self._output, write_end = os.pipe()
        try:
            self._popen = subprocess.Popen(
                launch_argv(part.argv, account=part.account, parent_signal=part.stop_signal),
                env={**os.environ, **part.env},
                cwd=part.cwd,
                stdin=subprocess.DEVNULL,
                stdout=write_end,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )
        except BaseException:
            os.close(self._output)
            raise
        finally:
            os.close(write_end)
        self.pid = self._popen.pid
        process = find_process(self.pid)
        # It may have ended already. It is not reaped yet, so no other process has its pid.
        self.started_ticks = process.started_ticks if process else 0
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._end)

    def signal_stop(self, part: Part) -> None:
        if not self.exited.done():
            send(self.pid, part.stop_signal)

    def kill(self) -> None:
        """Kill all processes of the session."""
        if self.started_ticks:
            kill_session(self.pid, self.started_ticks)

    async def wait(self) -> int:
        """The exit code, when it has ended and all its output has been passed on."""
        code = await asyncio.shield(self.exited)
        self.kill()
        # A descendant that has left the session may keep the pipe open.
        with suppress(TimeoutError):
            await asyncio.wait_for(asyncio.shield(self._drained), DRAIN_S)
        self._close_output()
        return code

    def _read(self) -> None:
        try:
            data = os.read(self._output, READ_BYTES)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        *lines, self._rest = (self._rest + data).split(b"\n")
        if not data or len(self._rest) > LINE_BYTES:
            lines, self._rest = [*lines, *filter(None, [self._rest])], b""
        for line in lines:
            self._on_line(line.decode(errors="replace").rstrip("\r"))
        if not data:
            self._close_output()

    def _close_output(self) -> None:
        if not self._drained.done():
            self._loop.remove_reader(self._output)
            os.close(self._output)
            self._drained.set_result(None)

    def _end(self) -> None:
        self._loop.remove_reader(self._pidfd)
        os.close(self._pidfd)
        self.exited.set_result(self._popen.wait())


@dataclass(frozen=True, kw_only=True)
class Timing:
    backoff_base_s: float = 0.2
    backoff_cap_s: float = 10
    stable_after_s: float = 30
    """After running for so long, a part is restarted with the shortest backoff again."""
    ready_pause_s: float = 0.05
    ready_pause_cap_s: float = 1

    def backoff_s(self, failures: int) -> float:
        """The pause after this number of failures in a row."""
        doubled: float = self.backoff_base_s * 2 ** min(failures - 1, 30)
        return min(self.backoff_cap_s, doubled)


class StartFailed(SluiceError):
    """A part of the local stack did not start."""


class _PartRun:
    """The state of one part."""

    def __init__(self, part: Part) -> None:
        self.part = part
        self.state = PartState.STARTING
        self.child: Child | None = None
        self.restarts = 0
        self.detail = ""
        self.first_ready: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        self.keeper: asyncio.Task[None] | None = None


class Supervisor:
    """The parts of one stack, on the running event loop of the main thread."""

    def __init__(
        self,
        log: LogStream,
        *,
        on_change: Callable[[], None] = lambda: None,
        timing: Timing | None = None,
    ) -> None:
        self._log = log
        self._on_change = on_change
        self._timing = timing or Timing()
        self._groups: list[list[_PartRun]] = []
        self._stop = asyncio.Event()

    async def start(self, parts: Sequence[Part]) -> bool:
        """Start the parts at the same time; True when all are ready, False after a stop request.

        Raises StartFailed for the first that does not become ready.
        """
        if self._stop.is_set():
            return False
        group = [_PartRun(part) for part in parts]
        self._groups.append(group)
        for run in group:
            run.keeper = asyncio.create_task(self._keep(run))
        ready = asyncio.gather(*(run.first_ready for run in group))
        stopping = asyncio.ensure_future(self._stop.wait())
        awaited: list[asyncio.Future[Any]] = [ready, stopping]
        try:
            await asyncio.wait(awaited, return_when=asyncio.FIRST_COMPLETED)
            if ready.done():
                ready.result()
        finally:
            stopping.cancel()
            ready.cancel()
            with suppress(asyncio.CancelledError, StartFailed):
                await ready
        return not self._stop.is_set()

    def request_stop(self) -> None:
        """Make `start` and `until_stop` return. Nothing is restarted from now on."""
        self._stop.set()

    async def until_stop(self) -> None:
        await self._stop.wait()

    async def stop(self) -> None:
        """End all parts and wait for them. A part that takes longer than its grace is killed."""
        self._stop.set()
        for group in reversed(self._groups):
            await asyncio.gather(*(self._end(run) for run in group))

    def kill(self) -> None:
        """Kill all parts. `stop` still has to be awaited."""
        self._stop.set()
        for run in self._runs():
            if run.child is not None:
                run.child.kill()

    def reports(self) -> list[PartReport]:
        return [
            PartReport(
                name=run.part.name,
                state=run.state,
                pid=run.child.pid if run.child else None,
                started_ticks=run.child.started_ticks if run.child else None,
                port=run.part.port,
                restarts=run.restarts,
                detail=run.detail,
                log=self._log.path(run.part.name),
                stop_signal=run.part.stop_signal,
            )
            for run in self._runs()
        ]

    def _runs(self) -> list[_PartRun]:
        return [run for group in self._groups for run in group]

    async def _keep(self, run: _PartRun) -> None:
        """Run the part, and restart it, until a stop request."""
        clock = asyncio.get_running_loop().time
        failures = 0
        while not self._stop.is_set():
            began = clock()
            reason = await self._once(run)
            if self._stop.is_set():
                break
            failures = 1 if clock() - began >= self._timing.stable_after_s else failures + 1
            if not run.first_ready.done() and failures >= run.part.first_attempts:
                self._fail(run, reason)
                break
            delay_s = self._timing.backoff_s(failures)
            self._set(run, PartState.RESTARTING, reason)
            self._log.say(f"{run.part.name} {reason}; starting it again in {delay_s:.1f} s")
            with suppress(TimeoutError):
                await asyncio.wait_for(self._stop.wait(), delay_s)
            run.restarts += 1
        run.child = None
        self._set(run, PartState.STOPPED, run.detail)

    async def _once(self, run: _PartRun) -> str:
        """Run the part once; returns how it ended, in words."""
        part = run.part
        try:
            run.child = child = Child(part, lambda line: self._take_line(run, line))
        except OSError as error:
            return f"could not be started ({error})"
        self._set(run, PartState.STARTING, "")
        watcher = asyncio.create_task(self._watch(run, child.pid))
        try:
            code = await child.wait()
        finally:
            watcher.cancel()
            with suppress(asyncio.CancelledError):
                await watcher
        run.child = None
        return f"was ended by signal {-code}" if code < 0 else f"ended with exit code {code}"

    def _take_line(self, run: _PartRun, line: str) -> None:
        quiet = run.part.quiet_start and run.state != PartState.READY
        self._log.write(run.part.name, line, show=not quiet)

    async def _watch(self, run: _PartRun, pid: int) -> None:
        """Check until the part is ready. Before the first time it was ready, there is a limit."""
        part, clock = run.part, asyncio.get_running_loop().time
        began, pause_s = clock(), self._timing.ready_pause_s
        while (reason := await asyncio.to_thread(_reason_not_ready, part, pid)) is not None:
            run.detail = reason
            if not run.first_ready.done() and clock() - began > part.ready_timeout_s:
                self._fail(run, f"was not ready after {part.ready_timeout_s:g} s: {reason}")
                return
            await asyncio.sleep(pause_s)
            pause_s = min(pause_s * 1.5, self._timing.ready_pause_cap_s)
        self._set(run, PartState.READY, "")
        where = f" on port {part.port}" if part.port else ""
        self._log.say(f"{part.name} is ready{where} ({clock() - began:.1f} s)")
        if not run.first_ready.done():
            run.first_ready.set_result(None)

    async def _end(self, run: _PartRun) -> None:
        keeper, child, grace_s = run.keeper, run.child, run.part.stop_grace_s
        if child is not None:
            child.signal_stop(run.part)
            done, _ = await asyncio.wait([child.exited], timeout=grace_s)
            if not done:
                self._log.say(f"{run.part.name} did not stop within {grace_s:g} s; killing it")
                child.kill()
        if keeper is not None:
            await keeper

    def _fail(self, run: _PartRun, reason: str) -> None:
        if not run.first_ready.done():
            tail = "".join(f"\n    {line}" for line in self._log.tail(run.part.name))
            log = self._log.path(run.part.name)
            run.first_ready.set_exception(
                StartFailed(
                    f"{run.part.name} {reason}.\n  Its last lines (all of them: {log}):"
                    f"{tail or ' it wrote none'}\n  What to do: {run.part.hint or 'see its log'}"
                )
            )

    def _set(self, run: _PartRun, state: PartState, detail: str) -> None:
        run.state, run.detail = state, detail
        self._on_change()


def _reason_not_ready(part: Part, pid: int) -> str | None:
    try:
        return part.ready(pid)
    except Exception as error:  # a failing check must not end the task that keeps the part
        return f"{type(error).__name__}: {error}"
