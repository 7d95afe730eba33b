"""A batch while the API, workers and Redis are killed: its answers are those of an undisturbed run.

`python -m tests.e2e.batch_faults` does the same with 5,000 lines and three seeds.
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from sluice import Client
from tests.e2e import batch_faults
from tests.e2e.generators import GenerationWorker
from tests.e2e.stack import LiveStack
from tests.tiny_models import Answerer

LINES = 160
FAULTS = 5


@pytest.fixture(scope="module")
def generator(live_stack: LiveStack, answerer: Answerer) -> Iterator[GenerationWorker]:
    batch_faults.prepare(live_stack)
    with tempfile.TemporaryDirectory(prefix="sluice-worker-") as folder:
        worker = GenerationWorker(
            live_stack,
            f"hf/{answerer.path}",
            "tiny-batch",
            Path(folder) / "log",
            **batch_faults.WORKER_SETTINGS,
        )
        worker.until_ready()
        yield worker
        worker.stop()


def test_no_line_is_lost_or_answered_twice(
    stack: LiveStack,
    client: Client,
    generator: GenerationWorker,
    answerer: Answerer,
    tmp_path: Path,
) -> None:
    path = tmp_path / "lines.jsonl"
    ids = batch_faults.write(path, LINES, f"hf/{answerer.path}", answerer)
    peaceful = batch_faults.run(stack, path)
    expected = batch_faults.answers(client, peaceful)
    assert list(expected) == ids
    batch, killed = batch_faults.disturbed(stack, generator, path, seed=7, faults=FAULTS)
    assert sorted(killed) == ["api", "cpu", "generator", "pool", "redis"]
    assert batch.status == "completed", batch
    assert batch.lines.succeeded == LINES
    assert batch_faults.differences(expected, batch_faults.answers(client, batch)) == []
    doubled = (
        "SELECT count(*) - count(DISTINCT metadata ->> 'custom_id') FROM jobs WHERE batch_id = %s"
    )
    assert stack.value(doubled, batch.id) == 0
