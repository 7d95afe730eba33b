"""Which queue a worker listens at first."""

from kombu.utils.scheduling import cycle_by_name

from workers.turns import ControlFirst


def test_control_is_first_and_the_others_take_turns() -> None:
    cycle = cycle_by_name("workers.turns:ControlFirst")()
    assert isinstance(cycle, ControlFirst)
    cycle.update(["query", "embed", "control", "ingest"])
    assert cycle.consume(4) == ["control", "query", "embed", "ingest"]
    assert cycle.rotate("query") == "query"
    assert cycle.consume(4) == ["control", "embed", "ingest", "query"]
    cycle.rotate("control")
    assert cycle.consume(4) == ["control", "embed", "ingest", "query"]
    assert cycle.rotate("a queue that is no longer listened at")
    assert cycle.consume(2) == ["control", "embed"]
