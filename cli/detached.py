"""Runs a function in a process of its own that outlives this one, once it says that it is ready."""

import os
import signal
import sys
import traceback
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import TextIO

READY = b"\0"


def run_detached(body: Callable[[TextIO, Callable[[], None]], int], errors: Path) -> int:
    """Call `body(stream, ready)` in a background process; pass on what it writes to the stream.

    Returns 0 as soon as it calls `ready`, which closes the stream, and otherwise its exit code.
    Call it before any thread is started. Ctrl-C meanwhile ends the other process, too.
    """
    sys.stdout.flush()
    sys.stderr.flush()
    read_end, write_end = os.pipe()
    pid = os.fork()
    if pid == 0:
        os.close(read_end)
        _become(body, write_end, errors)
    os.close(write_end)
    try:
        is_ready = _pass_on(read_end)
    except KeyboardInterrupt:
        os.kill(pid, signal.SIGTERM)
        is_ready = _pass_on(read_end)
    finally:
        os.close(read_end)
    return 0 if is_ready else os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])


def _pass_on(read_end: int) -> bool:
    """Copy until the other side is ready or gone; True if ready."""
    while data := os.read(read_end, 4096):
        sys.stdout.write(data.removesuffix(READY).decode(errors="replace"))
        sys.stdout.flush()
        if data.endswith(READY):
            return True
    return False


def _become(
    body: Callable[[TextIO, Callable[[], None]], int], write_end: int, errors: Path
) -> None:
    """The new process. Never returns: the caller's stack is not its own."""
    code = 1
    try:
        os.setsid()
        with Path(os.devnull).open("rb") as null, errors.open("ab") as file:
            os.dup2(null.fileno(), 0)
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        stream = os.fdopen(write_end, "w", encoding="utf-8")  # `ready` closes it

        def ready() -> None:
            # Nobody may be there any more to hear it.
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
