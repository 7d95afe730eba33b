"""Long audio cut into windows that overlap.

What a model makes of a window's edges is worth little. So each window reaches into its neighbours,
and what it says of that part, `left` and `right`, gives way to what they say.
"""

from collections.abc import Sequence
from dataclasses import dataclass

# Of a window, on each side; as in transformers' pipeline.
STRIDE_PART = 6


@dataclass(frozen=True, kw_only=True)
class Window:
    """In samples."""

    start: int
    end: int
    left: int
    right: int

    @property
    def size(self) -> int:
        return self.end - self.start


def windows(samples: int, *, size: int, stride: int) -> Sequence[Window]:
    """One window where all fits into it; the last one is as long as what is left."""
    if samples <= size:
        return [Window(start=0, end=samples, left=0, right=0)]
    step = size - 2 * stride
    starts = range(0, samples - 2 * stride, step)
    return [
        Window(
            start=start,
            end=min(start + size, samples),
            left=stride if start else 0,
            right=stride if start + size < samples else 0,
        )
        for start in starts
    ]


def aligned(length_s: float, rate_hz: int, to: int = 1) -> int:
    """In samples, a multiple of `to`."""
    return round(length_s * rate_hz / to) * to
