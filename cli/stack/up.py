"""The local stack as a whole, for `sluice up` and `sluice down`.

`run_stack` prepares home, starts PostgreSQL, Redis and Chroma (each unless its URL is set;
Chroma unless any store is),
migrates, starts the API, the workers and beat, and waits for a stop request: Ctrl-C or SIGTERM end
all parts in order, a second Ctrl-C kills them. Call it in the main thread.
"""

import asyncio
import os
import signal
import sys
import threading
import time
import traceback
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from cli.stack.logs import Console, LogStream
from cli.stack.ports import free_ports, hold_api_port
from cli.stack.programs import ServerAddresses, WorkerCounts, program_parts
from cli.stack.readiness import database_ready, redis_ready, store_ready
from cli.stack.servers import (
    chroma_part,
    chroma_url,
    new_password,
    postgres_part,
    postgres_url,
    prepare,
    redis_part,
    redis_url,
)
from cli.stack.stackfile import (
    Part,
    PartReport,
    Stack,
    StackState,
    find_process,
    find_stack,
    kill_session,
    machine,
    read_stack,
    remove_stack,
    run_folder,
    send,
    session_members,
    stack_lock,
    wait_for_exit,
    write_stack,
)
from cli.stack.supervisor import Supervisor
from shared.config import Settings
from shared.errors import ConfigurationError, SluiceError
from shared.vector_stores import configured_store

# A background process

READY = b"\0"


def run_detached(body: Callable[[TextIO, Callable[[], None]], int], errors: Path) -> int:
    """Call `body(stream, ready)` in a background process, and copy its stream to stdout.

    Returns 0 as soon as it calls `ready`, which closes the stream; else its exit code. Call it
    before any thread is started. Ctrl-C before that ends the background process, too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _run_child(body, write_end, errors)
    os.close(write_end)
    try:
        is_ready = _copy_output(read_end)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        is_ready = _copy_output(read_end)
    finally:
        os.close(read_end)
    return 0 if is_ready else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _copy_output(read_end: int) -> bool:
    """Copy until the background process is ready or has ended; True if it is ready."""
    while data := os.read(read_end, 4096):
        sys.stdout.write(data.removesuffix(READY).decode(errors="replace"))
        sys.stdout.flush()
        if data.endswith(READY):
            return True
    return False


def _run_child(
    body: Callable[[TextIO, Callable[[], None]], int], write_end: int, errors: Path
) -> None:
    """The code of the background process. Never returns."""
    code = 1
    try:
        os.setsid()
        with Path(os.devnull).open("rb") as null, errors.open("ab") as file:
            os.dup2(null.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        stream = os.fdopen(write_end, "w", encoding="utf-8")  # `ready` closes it

        def ready() -> None:
            # The parent may have ended.
            with suppress(OSError):
                stream.write(READY.decode())
                stream.close()

        code = body(stream, ready)
        with suppress(OSError):
            stream.close()
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


# The plan of a stack: which servers it runs itself, and their addresses


@dataclass(frozen=True, kw_only=True)
class Plan:
    """The parts of a stack. The programs are started after the servers that they need."""

    servers: tuple[Part, ...]
    programs: tuple[Part, ...]
    addresses: ServerAddresses


def make_home(home: Path) -> None:
    """Make the folders under home, which only their owner can read."""
    try:
        home.mkdir(mode=0o700, parents=True, exist_ok=True)
        for folder in (run_folder(home), home / "logs", home / "files"):
            folder.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise ConfigurationError(
            f"The folder {home} cannot be used ({error}). Set SLUICE_HOME to a folder that you "
            "may write to."
        ) from error


def make_plan(
    settings: Settings,
    *,
    api_port: int,
    gpu_workers: int,
    cpu_workers: int,
    models: Sequence[str] = (),
    device: str | None = None,
    say: Callable[[str], None],
) -> Plan:
    """Plan all parts, and make the files that they need. Takes seconds the first time."""
    home = settings.home_path
    _require_configured_servers(settings)
    if api_port != settings.api_port:
        say(f"port {settings.api_port} is taken; the API listens on {api_port}")
    database_port, redis_port, chroma_port = free_ports(3)
    servers: list[Part] = []
    store = configured_store(settings)

    if settings.database_url is None:
        cluster = prepare(home, say)
        has_vectors = store is not None and store.is_ledger
        servers.append(postgres_part(cluster, database_port, has_vectors=has_vectors))
        database = postgres_url(cluster, database_port)
    else:
        database = settings.require_database_url()
    if settings.redis_url is None:
        password = new_password()
        servers.append(redis_part(home, redis_port, password))
        redis = redis_url(redis_port, password)
    else:
        redis = settings.require_redis_url()
    if store is None:
        servers.append(chroma_part(home, chroma_port))
        vectors = chroma_url(chroma_port)
    else:
        vectors = store.text

    addresses = ServerAddresses(
        database_url=database,
        redis_url=redis,
        vectors_url=vectors,
        api_host=settings.api_host,
        api_port=api_port,
    )
    workers = WorkerCounts(
        cpu_workers=cpu_workers, gpu_workers=gpu_workers, models=tuple(models), device=device
    )
    programs = program_parts(settings, addresses, workers)
    return Plan(servers=tuple(servers), programs=tuple(programs), addresses=addresses)


def migrate(plan: Plan) -> None:
    from shared.database.engine import upgrade

    try:
        upgrade(plan.addresses.database_url)
    except Exception as error:
        raise SluiceError(
            f"The database could not be brought up to date: {error}\nIf this is a database of your "
            "own (SLUICE_DATABASE_URL), its user must be allowed to create tables. If a newer "
            "Sluice has used it, install that version."
        ) from error


def _require_configured_servers(settings: Settings) -> None:
    if settings.database_url is not None:
        reason = database_ready(settings.require_database_url())
        _require("SLUICE_DATABASE_URL", reason)
    if settings.redis_url is not None:
        _require("SLUICE_REDIS_URL", redis_ready(settings.require_redis_url()))
    store = configured_store(settings)
    if store is not None:
        _require(store.setting, store_ready(store))


def _require(name: str, reason: str | None) -> None:
    if reason is not None:
        raise ConfigurationError(
            f"{name} is set, but that server does not answer: {reason}. Start it or correct the "
            f"URL; without {name} the local stack runs a server of its own."
        )


# Stopping a stack from another process, and the parts that a killed supervisor has left

LEFTOVER_GRACE_S = 10.0
LOCK_PAUSE_S = 0.2


def stop_stack(home: Path, timeout_s: float = 60) -> bool:
    """Stop the stack under this home; True if there was one, or parts left of one.

    Parts that still run after `timeout_s` are killed.
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
    left = read_stack(home)  # None after a normal end
    if left is not None:
        stopped = stop_leftovers(left)
        with stack_lock(home) as held:
            if held:
                remove_stack(home)
    return running or bool(stopped)


def stop_leftovers(stack: Stack, say: Callable[[str], None] = lambda _: None) -> list[str]:
    """End the parts that run without their supervisor, the latest first; returns their names."""
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
    """The stack of the stack file. Waits for a supervisor that has not written the file yet."""
    while run_folder(home).is_dir():
        stack = read_stack(home)
        if stack is not None:
            return stack
        with stack_lock(home) as held:
            if held or time.monotonic() > deadline:
                return read_stack(home)
        time.sleep(LOCK_PAUSE_S)
    return None


# Running a stack

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
    """Run the stack until a stop request; returns the exit code.

    0: stopped in order, or a stack already runs under this home (its URL is printed); 1: it could
    not be started (the reason is printed); 130: stopped before it was ready. With `detach` it runs
    in the background, and 0 means that it is ready. `on_ready` is called when the stack is ready,
    also if it was so before; in the foreground in a thread of its own.
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
        stack_run = _StackRun(settings, workers, log, None if detach else on_ready)
        stack_run.started = started
        try:
            return stack_run.run()
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


class _StackRun:
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

    def run(self) -> int:
        """Run the stack, unless another process does; then wait until that one is ready."""
        deadline = time.monotonic() + OTHER_STACK_S
        while True:
            with stack_lock(self._home) as held:
                if held:
                    self._remove_leftovers()
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

    def _remove_leftovers(self) -> None:
        left = read_stack(self._home)
        if left is not None:
            stop_leftovers(left, self._log.say)
            remove_stack(self._home)

    async def _supervise(self) -> int:
        self._supervisor = supervisor = Supervisor(self._log, on_change=self._note)
        self._handle_signals()
        settings = self._settings
        fixed = "api_port" in settings.model_fields_set
        try:
            with hold_api_port(settings.api_host, settings.api_port, fixed=fixed) as port:
                return await self._start_and_stay(port)
        except SluiceError as error:
            self._log.say(error.message)
            return 1
        finally:
            self._state = StackState.STOPPING
            self._note()
            await supervisor.stop()
            remove_stack(self._home)
            self._log.say("stopped")

    async def _start_and_stay(self, api_port: int) -> int:
        supervisor, log = self._supervisor, self._log
        log.say(f"starting under {self._home}")
        plan = self._plan = await asyncio.to_thread(
            make_plan, self._settings, api_port=api_port, say=log.say, **self._workers
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
        url = plan.addresses.api_url
        stop = "Ctrl-C here, or `sluice down`" if self.started is None else "`sluice down`"
        log.say(f"ready: {url}  (API pages: {url}/docs; stop: {stop})")
        self._report_ready(self._stack(plan))
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
        except OSError as error:  # such as a full disk, which must not stop the parts
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
            api_url=plan.addresses.api_url,
            database_url=plan.addresses.database_url,
            redis_url=plan.addresses.redis_url,
            vectors_url=plan.addresses.vectors_url,
            parts=tuple(self._supervisor.reports()),
        )

    def _report_ready(self, stack: Stack) -> None:
        if self._on_ready is not None:
            # It may take long, and must not block the supervisor.
            threading.Thread(target=self._on_ready, args=(stack,), daemon=True).start()
