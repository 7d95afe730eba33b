"""A worker's part, played by tests: claim the next step of a queue and record how it ended."""

from collections.abc import Callable
from typing import Any

import pytest

from shared import claims, steps
from shared.claims import Claim
from shared.ledger import Ledger

Finish = Callable[[str, dict[str, Any]], Claim]


@pytest.fixture
def claim(ledger: Ledger) -> Callable[[str], Claim]:
    """Start the next step of a queue."""

    def start(queue: str) -> Claim:
        with ledger.begin() as session:
            found = claims.claim(session, queue, worker="a test", lease_s=60)
        assert found is not None, f"nothing to claim in {queue}"
        return found

    return start


@pytest.fixture
def finish(ledger: Ledger, claim: Callable[[str], Claim]) -> Finish:
    """Run the next step of a queue to its end, with this result."""

    def run(queue: str, result: dict[str, Any]) -> Claim:
        found = claim(queue)
        with ledger.begin() as session:
            assert steps.succeed(session, found, result=result)
        return found

    return run
