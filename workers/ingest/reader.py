"""Reads documents in processes beside the worker (`reader_child.py`), each with limits of its own.

If a document takes more processor time than SLUICE_LOAD_LIMIT_S or more memory than
SLUICE_LOAD_MEMORY_MIB, or crashes a library, that is a DocumentError, and the worker continues. A
step that has to stop does so in the middle of a document, whatever a library is doing.
"""

import os
import select
import signal
import subprocess
import sys
import threading
import time
import weakref
from collections.abc import Callable, Iterator
from contextlib import suppress
from typing import Any, Final

import orjson

from shared import errors
from shared.config import IngestSettings, Settings
from shared.errors import DocumentError, SluiceError
from shared.kinds.ingest import LoadOptions
from workers.attempts.process import Process
from workers.ingest import reader_child
from workers.ingest.formats.container import Member
from workers.ingest.load import LoadedText
from workers.ingest.reader_child import LENGTHS, Frame, packed

_START_S: Final = 120
CHECK_S: Final = 0.2
"""How often a worker that waits for a document checks whether its step has to stop."""
BLOCK_BYTES: Final = 2**20
_WALL_SHARE: Final = 0.9
"""The share of a step's time limit that one document may take, including waiting for other
programs."""
_KEPT_SHARE: Final = 0.5
"""A child that has once used more than this share of its memory limit is not used again."""
_ENVIRONMENT: Final = ("PATH", "LANG", "LC_ALL", "LD_LIBRARY_PATH", "TMPDIR", "TESSDATA_PREFIX")
"""The variables of the worker's environment that a child gets; others may be secrets."""


class Reader:
    """Thread-safe: one child for each document that is read at the same time; children are used
    again, also by other readers that have the same `children`."""

    def __init__(self, settings: Settings, children: "Children | None" = None) -> None:
        self._settings = settings
        self._children = children or Children()

    def load(
        self,
        data: bytes | str,
        *,
        name: str,
        content_type: str | None,
        options: LoadOptions,
        check: Callable[[], None],
        file_name: str | None = None,
    ) -> LoadedText:
        """As `load` in this process. Raises DocumentError, and what `check` raises."""
        (frame,) = self._answer("text", data, name, content_type, options, check, file_name)
        return LoadedText.of_json(frame.header["loaded"])

    def members(
        self,
        data: bytes | str,
        *,
        name: str,
        content_type: str | None,
        options: LoadOptions,
        check: Callable[[], None],
        file_name: str | None = None,
    ) -> Iterator[Member]:
        """As `members` in this process. Raises DocumentError, and what `check` raises."""
        for frame in self._answer("members", data, name, content_type, options, check, file_name):
            if "member" in frame.header:
                yield Member(**frame.header["member"], data=frame.data)

    def close(self) -> None:
        """End the children. A later request starts new ones."""
        self._children.close()

    def _answer(
        self,
        of: str,
        data: bytes | str,
        name: str,
        content_type: str | None,
        options: LoadOptions,
        check: Callable[[], None],
        file_name: str | None = None,
    ) -> Iterator[Frame]:
        """The frames of the answer. A child is used again only if it has sent all of them."""
        settings = self._settings
        request = {
            "of": of,
            "name": name,
            "file_name": file_name,
            "content_type": content_type,
            "is_text": isinstance(data, str),
            "options": options.model_dump(mode="json"),
            "settings": {field: getattr(settings, field) for field in IngestSettings.model_fields},
        }
        memory_bytes = settings.load_memory_mib * 2**20
        until = time.monotonic() + _WALL_SHARE * settings.step_soft_limit_s
        child = self._children.take(memory_bytes)
        is_kept = False
        try:
            child.send(request, data.encode() if isinstance(data, str) else data)
            while "last" not in (frame := child.receive(until, check)).header:
                yield frame
            if "error" in frame.header:
                class_, message = frame.header["error"]
                is_kept = True
                raise _ERRORS.get(class_, DocumentError)(message)
            is_kept = frame.header["peak_bytes"] < _KEPT_SHARE * memory_bytes
            yield frame
        except _Timeout:
            raise DocumentError(self._timeout_message(name)) from None
        except _ChildExit as error:
            raise DocumentError(self._exit_message(name, error.code)) from None
        finally:
            if is_kept:
                self._children.put_back(child)
            else:
                child.end()

    def _timeout_message(self, name: str) -> str:
        return (
            f"{name}: takes too long to read, more than {_WALL_SHARE:.0%} of a step "
            f"(SLUICE_STEP_SOFT_LIMIT_S, {self._settings.step_soft_limit_s} s). Divide it."
        )

    def _exit_message(self, name: str, code: int) -> str:
        settings = self._settings
        if code == -signal.SIGPROF:
            return (
                f"{name}: takes more than {settings.load_limit_s:g} s of processor time to read. "
                "It may be damaged; otherwise divide it, or raise SLUICE_LOAD_LIMIT_S."
            )
        how = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return (
            f"{name}: the program that reads it crashed ({how}). It may be damaged, or need more "
            f"memory than {settings.load_memory_mib:,} MiB (SLUICE_LOAD_MEMORY_MIB): open it in "
            "the program that made it, save it again, or divide it."
        )


_ERRORS: Final[dict[str, Callable[[str], SluiceError]]] = {
    name: class_
    for name, class_ in vars(errors).items()
    if isinstance(class_, type) and issubclass(class_, SluiceError)
}


class Children:
    """The child processes that wait for a document. Thread-safe."""

    def __init__(self) -> None:
        self._idle: list[_Child] = []
        self._lock = threading.Lock()

    def take(self, memory_bytes: int) -> "_Child":
        """One with this memory limit; it is started if none waits."""
        with self._lock:
            for number, child in enumerate(self._idle):
                if child.memory_bytes == memory_bytes:
                    return self._idle.pop(number)
        return _Child(memory_bytes)

    def put_back(self, child: "_Child") -> None:
        with self._lock:
            self._idle.append(child)

    def close(self) -> None:
        """End those that wait."""
        with self._lock:
            idle, self._idle = self._idle, []
        for child in idle:
            child.end()


class _Timeout(Exception):
    """The answer took too long."""


class _ChildExit(Exception):
    """The child process has ended instead of answering; `code` is its exit code."""

    def __init__(self, code: int) -> None:
        super().__init__(code)
        self.code = code


class _Child:
    """A child process; used by one thread at a time."""

    def __init__(self, memory_bytes: int) -> None:
        self.memory_bytes = memory_bytes
        # In a session of its own: signals to the worker's group do not reach it, and its own child
        # processes end with it.
        self._process = subprocess.Popen(
            [sys.executable, "-m", reader_child.__name__, str(memory_bytes)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            env={
                **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
                "PYTHONPATH": os.pathsep.join(path for path in sys.path if path),
            },
            start_new_session=True,
            bufsize=0,
        )
        assert self._process.stdin is not None
        assert self._process.stdout is not None
        self._requests, self._answers = self._process.stdin, self._process.stdout
        self._received = bytearray()
        # If nobody has closed it, it ends when the object is deleted.
        self._end = weakref.finalize(self, _end, self._process)
        self._end.atexit = False  # a forked process is not its parent
        try:
            # The time to start does not count for the document.
            self.receive(time.monotonic() + _START_S, lambda: None)
        except (_Timeout, _ChildExit) as error:
            self.end()
            raise RuntimeError(f"{reader_child.__name__} does not start") from error

    def send(self, request: dict[str, Any], data: bytes) -> None:
        """Send a request with the bytes of its document. Raises _ChildExit."""
        try:
            for part in (packed(request, len(data)), data):
                rest = memoryview(part)
                while rest:
                    rest = rest[self._requests.write(rest) :]
        except OSError:
            raise self._exit() from None

    def receive(self, until: float, check: Callable[[], None]) -> Frame:
        """The next frame of the answer. Raises _Timeout, _ChildExit, and what `check` raises."""
        header_bytes, data_bytes = LENGTHS.unpack(self._take(LENGTHS.size, until, check))
        header = orjson.loads(self._take(header_bytes, until, check))
        return Frame(header, self._take(data_bytes, until, check))

    def _take(self, count: int, until: float, check: Callable[[], None]) -> bytes:
        received = self._received
        while len(received) < count:
            check()
            if not select.select([self._answers], [], [], CHECK_S)[0]:
                if time.monotonic() > until:
                    raise _Timeout
                continue
            block = os.read(self._answers.fileno(), BLOCK_BYTES)
            if not block:
                raise self._exit()
            received += block
        taken = bytes(received[:count])
        del received[:count]
        return taken

    def _exit(self) -> _ChildExit:
        return _ChildExit(self._process.wait())

    def end(self) -> None:
        self._end()


def _end(process: subprocess.Popen[bytes]) -> None:
    with suppress(ProcessLookupError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    for pipe in (process.stdin, process.stdout):
        if pipe is not None:
            with suppress(OSError):
                pipe.close()


def reader_of(process: Process) -> Reader:
    return process.held(make_reader, lambda reader: reader.close())


def make_reader(process: Process) -> Reader:
    return Reader(process.settings)
