"""A worker's part, played by tests: a process, claims of its next steps, and how they ended."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest

from shared import claims, steps
from shared.claims import Claim
from shared.config import Settings
from shared.ledger import Ledger
from tests.integration.ingestion import new_collection
from tests.integration.workbench import make_process
from workers.process import Process

Finish = Callable[[str, dict[str, Any]], Claim]


@pytest.fixture
def process(settings: Settings, ledger: Ledger) -> Iterator[Process]:  # noqa: ARG001 (empty tables)
    process = make_process(settings)
    yield process
    process.ledger.close()


@pytest.fixture
def collection(process: Process) -> str:
    return new_collection(process)


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
