"""Ledgers of tests, whose engines go to the next test: to make an engine, and to compile its
statements anew, takes longer than most tests."""

import os
from collections import defaultdict
from collections.abc import Hashable
from dataclasses import dataclass

from shared.config import Settings
from shared.database.transaction import Engines, Ledger, make_engines, make_ledger

OF_ENGINES = (
    "database_url", "connect_timeout_s", "request_timeout_s", "database_pool_connections",
    "database_statement_timeout_s", "database_lock_timeout_s",
)  # fmt: skip
"""The settings that decide what an engine is."""

_idle: dict[Hashable, list["_KeptEngines"]] = defaultdict(list)
"""Without connections, by settings; those of a forked process are its own."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _KeptEngines(Engines):
    key: Hashable

    def close(self) -> None:
        """Nobody else has them before, so that each ledger has all connections of its pools."""
        super().close()
        if self not in _idle[self.key]:
            _idle[self.key].append(self)


def kept_ledger(settings: Settings) -> Ledger:
    """As `make_ledger`, with the engines of a closed ledger of the same settings."""
    key = (os.getpid(), *(getattr(settings, name) for name in OF_ENGINES))
    if _idle[key]:
        return make_ledger(settings, _idle[key].pop())
    made = make_engines(settings)
    return make_ledger(settings, _KeptEngines(usual=made.usual, planned=made.planned, key=key))
