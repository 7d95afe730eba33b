"""What a person at a terminal sees of a job that cannot run yet, on the real stack."""

import pytest

from sluice import Client
from tests.e2e.stack import LiveStack
from tests.integration.terminal import on_terminal


@pytest.fixture
def at_home(stack: LiveStack, monkeypatch: pytest.MonkeyPatch) -> None:
    """Commands on a terminal find this stack."""
    for name, value in stack.environment.items():
        if name.startswith("SLUICE_"):
            monkeypatch.setenv(name, value)
    monkeypatch.chdir(stack.home.parent)


@pytest.mark.usefixtures("at_home")
def test_a_paused_queue_is_named_where_one_waits_and_looks(
    stack: LiveStack, client: Client
) -> None:
    client.ingest("paused", texts={"a.md": "The harbour opens at nine."})
    assert stack.sluice("queues", "pause", "query").out == "query is paused\n"
    try:
        status = stack.sluice("status")
        assert "Paused: query. `sluice queues resume query` goes on." in status.out
        doctor = stack.sluice_json("doctor")
        [queues] = [check for check in doctor["checks"] if check["name"] == "queues"]
        assert queues["detail"].startswith("paused: query;")
        with on_terminal("search", "harbour", "-c", "paused", columns=200) as terminal:
            terminal.expect("… waiting: The queue 'query' is paused")
            [job] = client.jobs(state="queued", kind="search")
            shown = stack.sluice("jobs", "show", job.id[:18])
            assert "\nwaiting\tThe queue 'query' is paused" in shown.out
            assert stack.sluice("queues", "resume", "query").out == "query is running\n"
            terminal.expect("1. a.md (")
            assert terminal.end() == 0
    finally:
        client.resume("query")
        client.delete_collection("paused")
