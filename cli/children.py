"""One child process on an asyncio loop: its lines as they come, its end at once.

The end is a readable pidfd and the output a readable pipe, so nothing polls. The child has its
own session; `kill` ends the whole of it. Start children from the main thread only: the signal
that the kernel sends them at the parent's death is tied to the thread that started them.
"""

import asyncio
import os
import subprocess
from collections.abc import Callable
from contextlib import suppress

from cli.launch import launch_argv
from cli.parts import Part
from cli.processes import find_process, kill_session, send

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
        # It may have ended already; as it is not reaped yet, no other process has its pid.
        self.started_ticks = process.started_ticks if process else 0
        os.set_blocking(self._output, False)
        self._loop.add_reader(self._output, self._read)
        self._pidfd = os.pidfd_open(self.pid)
        self._loop.add_reader(self._pidfd, self._end)

    def signal_stop(self, part: Part) -> None:
        if not self.exited.done():
            send(self.pid, part.stop_signal)

    def kill(self) -> None:
        """End the session at once, the leader's descendants included."""
        if self.started_ticks:
            kill_session(self.pid, self.started_ticks)

    async def wait(self) -> int:
        """Its exit code, once it has ended and all it wrote has been passed on."""
        code = await asyncio.shield(self.exited)
        self.kill()
        # Only a descendant that left the session could still hold the pipe.
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
