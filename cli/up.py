"""The local stack as a whole: what `sluice up` runs.

`run_stack` prepares home, starts PostgreSQL, Redis and Chroma (each unless its URL is set),
migrates, starts the API, the workers and beat, and stays until it is told to stop: Ctrl-C or
SIGTERM end all in order, a second Ctrl-C at once. Call it on the main thread.
"""

import asyncio
import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from cli.detached import run_detached
from cli.down import stop_leftovers, stop_stack
from cli.logstream import Console, LogStream
from cli.plan import Plan, make_home, make_plan, migrate
from cli.processes import find_process, machine
from cli.stackfile import (
    PartStatus,
    Stack,
    StackState,
    find_stack,
    read_stack,
    remove_stack,
    stack_lock,
    stack_status,
    write_stack,
)
from cli.supervisor import Supervisor
from shared.config import Settings
from shared.errors import ConfigurationError, SluiceError

__all__ = ["PartStatus", "Stack", "find_stack", "run_stack", "stack_status", "stop_stack"]

INTERRUPTED = 130
OTHER_STACK_S = 300.0
OTHER_STACK_PAUSE_S = 0.2


def run_stack(
    settings: Settings,
    *,
    gpu_workers: int = 1,
    cpu_workers: int = 1,
    models: Sequence[str] = (),
    device: str | None = None,
    detach: bool = False,
    on_ready: Callable[[Stack], None] | None = None,
) -> int:
    """Run the stack until it is told to stop; returns the exit code.

    0: stopped in order, or another one runs already under this home (its URL is printed); 1: it
    could not be started (the reason is printed); 130: stopped before it was ready. With `detach`
    it runs in the background, and 0 means that it is ready. `on_ready` is called once the
    stack is ready, also where it was so before; in the foreground on a thread of its own.
    """
    home = settings.home_path
    if sys.platform != "linux":
        raise ConfigurationError(
            "The local stack runs on Linux. Elsewhere use `docker compose up`, or set "
            "SLUICE_URL to a Sluice that runs on another machine."
        )
    make_home(home)
    workers = {
        "gpu_workers": gpu_workers,
        "cpu_workers": cpu_workers,
        "models": models,
        "device": device,
    }

    def body(stream: TextIO, started: Callable[[], None] | None) -> int:
        colour = stream.isatty() and "NO_COLOR" not in os.environ
        log = LogStream(
            home / "logs", Console(stream), colour=colour, parts_on_console=started is None
        )
        order = _Order(settings, workers, log, None if detach else on_ready)
        order.started = started
        try:
            return order.carry_out()
        except SluiceError as error:
            log.say(error.message)
            return 1
        finally:
            log.close()

    if not detach:
        return body(sys.stdout, None)
    code = run_detached(body, home / "logs" / "sluice.log")
    stack = find_stack(home)
    if code == 0 and stack is not None and on_ready is not None:
        on_ready(stack)
    return code


class _Order:
    """One call of `run_stack`."""

    def __init__(
        self,
        settings: Settings,
        workers: Mapping[str, Any],
        log: LogStream,
        on_ready: Callable[[Stack], None] | None,
    ) -> None:
        self._settings = settings
        self._home: Path = settings.home_path
        self._workers = workers
        self._log = log
        self._on_ready = on_ready
        self._state = StackState.STARTING
        self._plan: Plan | None = None
        self.started: Callable[[], None] | None = None

    def carry_out(self) -> int:
        """Run the stack if no other process does; else wait until that one is ready."""
        deadline = time.monotonic() + OTHER_STACK_S
        while True:
            with stack_lock(self._home) as held:
                if held:
                    self._clear()
                    return asyncio.run(self._supervise())
            stack = find_stack(self._home)
            if stack is not None and stack.state == StackState.READY:
                self._log.say(f"already running (pid {stack.pid}): {stack.api_url}")
                if self._on_ready is not None:
                    self._on_ready(stack)
                return 0
            if time.monotonic() > deadline:
                raise SluiceError(
                    f"Another `sluice up` has been starting or stopping under {self._home} for "
                    f"{OTHER_STACK_S:g} s. `sluice status` shows it; `sluice down` ends it."
                )
            time.sleep(OTHER_STACK_PAUSE_S)

    def _clear(self) -> None:
        left = read_stack(self._home)
        if left is not None:
            stop_leftovers(left, self._log.say)
            remove_stack(self._home)

    async def _supervise(self) -> int:
        self._supervisor = supervisor = Supervisor(self._log, on_change=self._note)
        self._handle_signals()
        try:
            return await self._start_and_stay()
        except SluiceError as error:
            self._log.say(error.message)
            return 1
        finally:
            self._state = StackState.STOPPING
            self._note()
            await supervisor.stop()
            remove_stack(self._home)
            self._log.say("stopped")

    async def _start_and_stay(self) -> int:
        supervisor, log = self._supervisor, self._log
        log.say(f"starting under {self._home}")
        plan = self._plan = await asyncio.to_thread(
            make_plan, self._settings, say=log.say, **self._workers
        )
        self._note()
        if not await supervisor.start(plan.servers):
            return INTERRUPTED
        await asyncio.to_thread(migrate, plan)
        log.say("the database is up to date")
        if not await supervisor.start(plan.programs):
            return INTERRUPTED
        self._state = StackState.READY
        self._note()
        url = plan.places.api_url
        stop = "Ctrl-C here, or `sluice down`" if self.started is None else "`sluice down`"
        log.say(f"ready: {url}  (API pages: {url}/docs; stop: {stop})")
        self._tell(self._stack(plan))
        if self.started is not None:
            log.mute()
            self.started()
        await supervisor.until_stop()
        return 0

    def _handle_signals(self) -> None:
        loop, supervisor = asyncio.get_running_loop(), self._supervisor
        interrupts = 0

        def interrupt() -> None:
            nonlocal interrupts
            interrupts += 1
            if interrupts == 1:
                self._log.say("stopping; Ctrl-C again kills at once")
                supervisor.request_stop()
            else:
                supervisor.kill()

        def terminate() -> None:
            self._log.say("stopping")
            supervisor.request_stop()

        loop.add_signal_handler(signal.SIGINT, interrupt)
        loop.add_signal_handler(signal.SIGTERM, terminate)
        loop.add_signal_handler(signal.SIGHUP, terminate)

    def _note(self) -> None:
        if self._plan is None:
            return
        try:
            write_stack(self._stack(self._plan))
        except OSError as error:  # A full disk; the parts matter more.
            self._log.say(f"the stack file could not be written: {error}")

    def _stack(self, plan: Plan) -> Stack:
        own = find_process(os.getpid())
        assert own is not None
        return Stack(
            pid=own.pid,
            started_ticks=own.started_ticks,
            machine=machine(),
            state=self._state,
            home=self._home,
            api_url=plan.places.api_url,
            database_url=plan.places.database_url,
            redis_url=plan.places.redis_url,
            chroma_url=plan.places.chroma_url,
            parts=tuple(self._supervisor.reports()),
        )

    def _tell(self, stack: Stack) -> None:
        if self._on_ready is not None:
            # What it does may take long, and must not keep the parts from being looked after.
            threading.Thread(target=self._on_ready, args=(stack,), daemon=True).start()
