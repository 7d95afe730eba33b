"""The line of requests that wait for a slot, and who joins the batch next.

Order: lane, requests that were preempted, the fair key with the fewest rows in the batch, age.
One whose keys and values do not fit yet is passed over for smaller ones, but not for ever: once
others have joined before it `PASSES_LIMIT` times, nobody does until it fits. One whose beginning
another row is reading at the moment waits for that, instead of reading the same beside it.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Final

from workers.generation.batch.prefixes import SHORTEST_TOKENS, Prefix, Prefixes, common_tokens
from workers.generation.batch.rows import Batch, Row

PASSES_LIMIT: Final = 16


@dataclass(frozen=True, kw_only=True)
class Beginning:
    """What of a row's tokens need not be read: they are in the slot `source`, or were kept."""

    tokens: int = 0
    source: int | None = None
    kept: Prefix | None = None


class Waiting:
    """For the engine's thread alone."""

    def __init__(self) -> None:
        self.rows: list[Row] = []

    def __len__(self) -> int:
        return len(self.rows)

    def add(self, row: Row) -> None:
        self.rows.append(row)

    def remove(self, row: Row) -> None:
        self.rows.remove(row)

    def next(
        self, batch: Batch, fits: Callable[[Row], bool], prefixes: Prefixes
    ) -> "tuple[Row, Beginning] | None":
        """Who joins now; it has left the line."""
        passed = []
        for row in sorted(self.rows, key=lambda row: _order(row, batch)):
            if not fits(row):
                if row.times_passed >= PASSES_LIMIT:
                    return None
                passed.append(row)
                continue
            beginning = _beginning(row, batch, prefixes)
            if beginning is None:
                continue
            for each in passed:
                each.times_passed += 1
            self.rows.remove(row)
            return row, beginning
        return None


def _order(row: Row, batch: Batch) -> tuple[int, bool, int, int]:
    request = row.request
    return request.lane, not row.was_preempted, batch.active(request.fair_key), row.age


def _beginning(row: Row, batch: Batch, prefixes: Prefixes) -> Beginning | None:
    """None where it pays to wait until another row has read what both begin with."""
    # The last token is always read: its logits are what is wanted.
    wanted = row.tokens[:-1]
    kept, length = prefixes.longest(wanted)
    best = Beginning(tokens=length, kept=kept)
    coming = 0
    for slot, other in enumerate(batch):
        common = common_tokens(other.tokens, wanted)
        ready = min(common, other.filled)
        if ready > best.tokens:
            best = Beginning(tokens=ready, source=slot)
        # A row that decodes has all but its last token in the slab.
        coming = max(coming, common if other.missing_tokens > 1 else ready)
    if coming - best.tokens >= SHORTEST_TOKENS:
        return None
    return best if best.tokens >= SHORTEST_TOKENS else Beginning()
