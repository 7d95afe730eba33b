"""Waiting for what another thread or process does and tells nobody of."""

import threading
from collections.abc import Callable
from typing import TypeVar

PATIENCE_S = 120.0
PAUSE_S = 0.025

T = TypeVar("T")


def until(look: Callable[[], T], what: str, *, within_s: float = PATIENCE_S) -> T:
    """Look again and again until what is seen is true; returns it. `what` is what should come."""
    pause = threading.Event()
    for _ in range(int(within_s / PAUSE_S)):
        if seen := look():
            return seen
        pause.wait(PAUSE_S)
    raise AssertionError(f"waited in vain: {what}")
