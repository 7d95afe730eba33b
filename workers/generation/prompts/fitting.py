"""How many of something fit, with few measurements: measuring a prompt is tokenizing it."""

from collections.abc import Callable


def most(limit: int, fits: Callable[[int], bool]) -> int:
    """The largest n of 0 to `limit` that fits; 0 is taken without a question.

    All are tried first, since all of them usually fit. More must not fit where fewer do not.
    """
    if limit <= 0 or fits(limit):
        return max(limit, 0)
    low, high = 0, limit
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if fits(middle) else (low, middle)
    return low
