"""What was read once is not read again: keys and values of common beginnings.

Requests often begin alike (a system prompt, the same passages, the conversation so far). The keys
and values of ended requests are kept, the least recently used dropped first, within a number of
tokens. No slab in here: what is kept are copies.
"""

from collections import OrderedDict
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from workers.generation.batch.slab import Saved

SHORTEST_TOKENS: Final = 32
"""Shorter beginnings are read faster than they are looked up and copied."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Prefix:
    tokens: Sequence[int]
    saved: Saved


class Prefixes:
    """Bounded by the tokens of all that is kept."""

    def __init__(self, token_limit: int) -> None:
        self.token_limit = token_limit
        self._kept: OrderedDict[int, Prefix] = OrderedDict()
        self._tokens = 0

    def longest(self, tokens: Sequence[int]) -> tuple[Prefix | None, int]:
        """The kept one that shares most of its beginning, and how many tokens that is."""
        best, length = None, 0
        for prefix in self._kept.values():
            if (common := common_tokens(prefix.tokens, tokens)) > length:
                best, length = prefix, common
        if best is not None:
            self._kept.move_to_end(id(best))
        return best, length

    def wants(self, tokens: Sequence[int]) -> bool:
        """Whether keeping these says more than what is kept already."""
        if not SHORTEST_TOKENS <= len(tokens) <= self.token_limit:
            return False
        return self.longest(tokens)[1] < len(tokens)

    def keep(self, tokens: Sequence[int], saved: Saved) -> None:
        """Instead of any that is a beginning of it."""
        for key, prefix in list(self._kept.items()):
            if common_tokens(prefix.tokens, tokens) == len(prefix.tokens):
                self._drop(key)
        prefix = Prefix(tokens=list(tokens), saved=saved)
        self._kept[id(prefix)] = prefix
        self._tokens += len(tokens)
        while self._tokens > self.token_limit:
            self._drop(next(iter(self._kept)))

    def clear(self) -> None:
        self._kept.clear()
        self._tokens = 0

    def _drop(self, key: int) -> None:
        self._tokens -= len(self._kept.pop(key).tokens)


def common_tokens(one: Sequence[int], other: Sequence[int]) -> int:
    """How long the common beginning is; 0 where it is not worth using."""
    if one[:SHORTEST_TOKENS] != other[:SHORTEST_TOKENS]:
        return 0
    low, high = 0, min(len(one), len(other))
    while low < high:
        middle = (low + high + 1) // 2
        if one[low:middle] == other[low:middle]:
            low = middle
        else:
            high = middle - 1
    return low if low >= SHORTEST_TOKENS else 0
