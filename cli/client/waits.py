"""What an open job waits for, told as it changes, while its end is awaited elsewhere."""

import re
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from cli.client.shapes import Job
from shared.errors import SluiceError

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 3.0

# What goes on changing while the reason stays the same.
_NUMBERS = re.compile(r"\d[\d.,:TZ-]*")
_NEXT_TRY = re.compile(r" ?The next attempt begins .*", re.DOTALL)

Tell = Callable[[str | None], None]
"""Called with the reason, or with None when there is none any more."""


def by_line(say: Callable[[str], None]) -> Tell:
    """For what is read line by line: a reason is said once, however its times go on, and not again
    after a try that came to nothing."""
    said: str | None = None

    def tell(reason: str | None) -> None:
        nonlocal said
        if reason is None:
            return
        same = _NUMBERS.sub("#", _NEXT_TRY.sub("", reason))
        if same != said:
            said = same
            say(f"Waiting: {reason}")

    return tell


@contextmanager
def reasons_told(
    read: Callable[[], Job], tell: Tell, *, known: str | None = None
) -> Iterator[None]:
    """Until the end of the block or of the job, in a thread; `known` has been told already.

    No event says what a job waits for, so it is asked for, at growing intervals. A question that
    fails is asked again; whoever waits for the end has the patience, and the errors.
    """
    lock, over = threading.Lock(), threading.Event()

    def run() -> None:
        last, pause_s = known, FIRST_PAUSE_S
        while not over.wait(pause_s):
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
            try:
                job = read()
            except (SluiceError, ValueError):
                continue
            if job.ended:
                return
            if job.waiting_for == last:
                continue
            last = job.waiting_for
            with lock:
                if not over.is_set():
                    tell(last)

    threading.Thread(target=run, name="reasons", daemon=True).start()
    try:
        yield
    finally:
        with lock:
            over.set()
