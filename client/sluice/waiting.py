"""What an open job waits for, reported as it changes, while its end is awaited elsewhere."""

import re
from collections.abc import Callable, Coroutine
from typing import Any

from sluice.errors import SluiceError
from sluice.shapes import Job
from sluice.transport import Background

FIRST_PAUSE_S = 0.5
LONGEST_PAUSE_S = 3.0

# What goes on changing while the reason stays the same.
_NUMBERS = re.compile(r"\d[\d.,:TZ-]*")
_NEXT_TRY = re.compile(r" ?The next attempt begins .*", re.DOTALL)

OnReason = Callable[[str | None], object]
"""Called with the reason, or with None when there is none any more."""


def by_line(say: Callable[[str], object]) -> OnReason:
    """For what is read line by line: a reason is said once, however its times go on, and not again
    after a try that came to nothing."""
    last: str | None = None

    def on_reason(reason: str | None) -> None:
        nonlocal last
        if reason is None:
            return
        same = _NUMBERS.sub("#", _NEXT_TRY.sub("", reason))
        if same != last:
            last = same
            say(f"Waiting: {reason}")

    return on_reason


async def report_reasons(
    read: Callable[[], Coroutine[Any, Any, Job]],
    on_reason: OnReason,
    background: Background,
    *,
    known: str | None,
) -> None:
    """Until the block that it runs beside ends, or the job does; `known` is reported already.

    No event says what a job waits for, so the job is read, at growing intervals. A read that
    fails is repeated; whoever waits for the end has the retries, and the errors.
    """
    last, pause_s = known, FIRST_PAUSE_S
    while await background.pause(pause_s):
        pause_s = min(2 * pause_s, LONGEST_PAUSE_S)
        try:
            job = await read()
        except (SluiceError, ValueError):
            continue
        if job.ended:
            return
        if job.waiting_for != last:
            last = job.waiting_for
            background.call(on_reason, last)
