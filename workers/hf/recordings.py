"""Decoded audio, kept from one step of a job to the next.

A long recording takes many steps, each of which prepares it again, and to decode two hours takes a
minute. What is kept in all is never more than one recording may have; what is done with is
forgotten.
"""

import hashlib
from collections import OrderedDict

from workers.hf.audio import Samples, decode


class Recordings:
    """For one thread at a time."""

    def __init__(self, *, rate_hz: int, limit_s: float) -> None:
        self.rate_hz = rate_hz
        self.limit_s = limit_s
        self._kept: OrderedDict[bytes, Samples] = OrderedDict()

    def take(self, data: bytes) -> tuple[bytes, Samples]:
        """The samples of a file, and the key to `forget` them by. Raises InvalidInput."""
        key = hashlib.sha256(data).digest()
        samples = self._kept.pop(key, None)
        if samples is None:
            samples = decode(data, rate_hz=self.rate_hz, limit_s=self.limit_s)
        self._kept[key] = samples
        while sum(map(len, self._kept.values())) > self.limit_s * self.rate_hz:
            self._kept.popitem(last=False)
        return key, samples

    def forget(self, key: bytes) -> None:
        self._kept.pop(key, None)
