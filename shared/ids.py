"""Identifiers that sort by age: UUID version 7 (RFC 9562, sections 5.7 and 6.2)."""

import os
import threading
import time
from uuid import UUID

_lock = threading.Lock()
_last = 0


def new_id(*, after: UUID | None = None) -> UUID:
    """A UUIDv7: a time in steps of 1/4096 ms, then random bits.

    It sorts after all that this process made before, and after `after`, whatever the clock says.
    """
    tick = _next_tick()
    if after is not None:
        tick = max(tick, _tick_of(after) + 1)
    random_bits = int.from_bytes(os.urandom(8), "big") & (2**62 - 1)
    value = (tick >> 12) << 80 | 0x7 << 76 | (tick & 0xFFF) << 64 | 0x2 << 62 | random_bits
    return UUID(int=value)


def _next_tick() -> int:
    global _last
    with _lock:
        _last = max(time.time_ns() * 4096 // 1_000_000, _last + 1)
        return _last


def _tick_of(id_: UUID) -> int:
    return (id_.int >> 80) << 12 | (id_.int >> 64) & 0xFFF
