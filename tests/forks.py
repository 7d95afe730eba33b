"""`--processes N` runs tests in N processes, forked when everything is imported and collected.

pytest-xdist does the same with processes that import and collect for themselves: about 40 s of CPU
time in each, on the two cores that the tests need. Here they share that, and its memory.

A process takes a file when it has run the last one, whose fixtures it then ends, and not those of
the session. A process that dies fails the test that it ran, and another one goes on behind it.
"""

import contextlib
import gc
import os
import random
import signal
import sys
import tempfile
import time
import traceback
import warnings
from collections import deque
from collections.abc import Iterator
from functools import cached_property
from itertools import count, groupby
from multiprocessing import Pipe
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any, NamedTuple

import pytest

# To look for a CUDA device must not begin to use it: that cannot be forked.
os.environ.setdefault("PYTORCH_NVML_BASED_CUDA_CHECK", "1")

File = deque[int]
"""The indices of tests in one file, in the order of the session."""


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption("--processes", type=int, default=0, help="run files in so many processes")


@pytest.hookimpl(tryfirst=True)
def pytest_runtestloop(session: pytest.Session) -> bool | None:
    processes = session.config.getoption("--processes")
    if not processes or session.config.option.collectonly or session.testsfailed:
        return None
    by_file = groupby(range(len(session.items)), key=lambda n: session.items[n].path)
    _Parent(session, deque(File(indices) for _, indices in by_file)).run(processes)
    return True


class _Child(NamedTuple):
    pid: int
    pipe: Connection
    todo: File
    """What it was given and has not begun, or not ended."""


class _Parent:
    """Hands out files, and reports what comes back as if it had run here."""

    def __init__(self, session: pytest.Session, files: deque[File]) -> None:
        self._session = session
        self._files = files
        self._children: dict[Connection, _Child] = {}
        self._started = 0

    def run(self, processes: int) -> None:
        reporter = self._session.config.pluginmanager.get_plugin("terminalreporter")
        if reporter is not None:
            reporter.showfspath = False  # a line has results of several files
        # A collection of garbage must not touch, and so copy, all that the processes share.
        gc.collect()
        gc.freeze()
        self._session.config._tmp_path_factory.getbasetemp()  # type: ignore[attr-defined]
        try:
            for _ in range(min(processes, len(self._files))):
                self._fork()
            while self._children:
                for pipe in wait(list(self._children)):
                    assert isinstance(pipe, Connection)
                    self._receive(self._children[pipe])
        except BaseException:
            self._end()
            raise
        if self._session.shouldfail:
            raise self._session.Failed(self._session.shouldfail)
        if self._session.shouldstop:
            raise self._session.Interrupted(self._session.shouldstop)

    def _end(self) -> None:
        """End the children, which stop their servers. Those that share a terminal were interrupted
        with this process."""
        left = {child.pid for child in self._children.values()}
        for pipe in self._children:
            pipe.close()
        for tenth in count():
            left = {pid for pid in left if os.waitpid(pid, os.WNOHANG) == (0, 0)}
            if not left:
                return
            if tenth == 20:
                for pid in left:
                    os.kill(pid, signal.SIGINT)
            time.sleep(0.1)

    def _fork(self) -> None:
        ours, theirs = Pipe()
        self._started += 1
        sys.stdout.flush()
        with warnings.catch_warnings():
            # Python 3.12 warns where libraries have threads; those of OpenBLAS survive a fork.
            warnings.simplefilter("ignore", DeprecationWarning)
            pid = os.fork()
        if pid == 0:
            for pipe in (ours, *self._children):
                pipe.close()
            _run_child(self._session, theirs, number=self._started)
        theirs.close()
        self._children[ours] = _Child(pid, ours, File())

    def _receive(self, child: _Child) -> None:
        try:
            message, *values = child.pipe.recv()
        except (EOFError, ConnectionResetError):
            self._bury(child)
            return
        hook = self._session.config.hook
        match message:
            case "next":
                is_over = self._session.shouldfail or self._session.shouldstop or not self._files
                file = File() if is_over else self._files.popleft()
                child.todo.extend(file)
                with contextlib.suppress(BrokenPipeError):  # it is buried next
                    child.pipe.send(list(file))
            case "start":
                hook.pytest_runtest_logstart(nodeid=values[0], location=values[1])
            case "report":
                report = hook.pytest_report_from_serializable(
                    config=self._session.config, data=values[0]
                )
                hook.pytest_runtest_logreport(report=report)
            case "finish":
                child.todo.popleft()
                hook.pytest_runtest_logfinish(nodeid=values[0], location=values[1])
            case "error":
                raise RuntimeError(values[0])

    def _bury(self, child: _Child) -> None:
        """A child whose pipe has closed: it has run all of its tests, or has died in one."""
        del self._children[child.pipe]
        child.pipe.close()
        _, status = os.waitpid(child.pid, 0)
        if not child.todo:
            return
        item = self._session.items[child.todo.popleft()]
        code = os.waitstatus_to_exitcode(status)
        end = f"by {signal.Signals(-code).name}" if code < 0 else f"with status {code}"
        self._session.config.hook.pytest_runtest_logreport(
            report=pytest.TestReport(
                nodeid=item.nodeid,
                location=item.location,
                keywords={},
                outcome="failed",
                longrepr=f"The process of this test ended {end}.",
                when="call",
            )
        )
        if child.todo:
            self._files.appendleft(child.todo)
        if self._files:
            self._fork()


def _run_child(session: pytest.Session, pipe: Connection, *, number: int) -> None:
    """Run what the parent hands out, and end the process."""
    status = 1
    try:
        _separate(session.config, number)
        session.config.pluginmanager.register(_Reports(session.config, pipe))
        items = _items(session, pipe)
        item = next(items, None)
        while item is not None:
            following = _Following(items)
            session.config.hook.pytest_runtest_protocol(item=item, nextitem=following)
            item = following.item
        status = 0
    except BaseException as error:
        signal.signal(signal.SIGINT, signal.SIG_IGN)  # the servers of the session are stopped first
        with contextlib.suppress(BaseException):
            session._setupstate.teardown_exact(None)
        if not isinstance(error, KeyboardInterrupt):
            with contextlib.suppress(OSError):
                pipe.send(("error", "".join(traceback.format_exception(error))))
    finally:
        pipe.close()
        os._exit(status)


class _Following:
    """The test behind another one, for pytest. Which it is, is asked when the first one is torn
    down, as it may come from another file, that another process may take meanwhile."""

    def __init__(self, items: Iterator[pytest.Item]) -> None:
        self._items = items

    @cached_property
    def item(self) -> pytest.Item | None:
        return next(self._items, None)

    def __bool__(self) -> bool:
        return self.item is not None

    def listchain(self) -> list[Any]:
        return [] if self.item is None else self.item.listchain()


def _items(session: pytest.Session, pipe: Connection) -> Iterator[pytest.Item]:
    while True:
        pipe.send(("next",))
        indices = pipe.recv()
        if not indices:
            return
        yield from (session.items[n] for n in indices)


def _separate(config: pytest.Config, number: int) -> None:
    """Let go of what two processes cannot share: the terminal, files of output, folders, chance."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is not None:
        reporter._tw._file = Path(os.devnull).open("w")  # noqa: SIM115 (as long as the process)
    capture = config.pluginmanager.get_plugin("capturemanager")
    if capture is not None and capture.is_globally_capturing():
        capture.stop_global_capturing()
        capture.start_global_capturing()
    folders = config._tmp_path_factory  # type: ignore[attr-defined]
    folders._basetemp = folders.getbasetemp() / f"process-{number}"
    folders._basetemp.mkdir(mode=0o700)
    random.seed()
    tempfile._name_sequence = None  # type: ignore[attr-defined]


class _Reports:
    """A plugin that sends to the parent what a terminal would show."""

    def __init__(self, config: pytest.Config, pipe: Connection) -> None:
        self._config = config
        self._pipe = pipe

    def pytest_runtest_logstart(self, nodeid: str, location: Any) -> None:
        self._pipe.send(("start", nodeid, location))

    def pytest_runtest_logfinish(self, nodeid: str, location: Any) -> None:
        self._pipe.send(("finish", nodeid, location))

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        data = self._config.hook.pytest_report_to_serializable(config=self._config, report=report)
        self._pipe.send(("report", data))
