"""Batches of rows: what goes together, and what becomes of a batch that fails."""

from collections.abc import Sequence
from typing import Any

import pytest
import torch
from billiard.exceptions import SoftTimeLimitExceeded
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import Cancelled, InvalidInput, Permanent
from shared.hf.task import TaskParameters
from workers.hf.steps import Budget, batches, run_rows
from workers.hf.task import UNWATCHED, LocalTask, PreparedInput, Row, Watch
from workers.models.load import LoadOptions

OPTIONS = LoadOptions(device=torch.device("cpu"), dtype=torch.float32)


class Doubling(LocalTask):
    """Doubles numbers, with memory for so many tokens; a row's data may be an error to raise."""

    def __init__(self, room: int = 10_000) -> None:
        super().__init__(torch.nn.Identity(), OPTIONS)
        self.room = room
        self.ran: list[int] = []

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        del parameters
        return PreparedInput(rows=[Row(size=1, data=value)])

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        self.ran.append(len(rows))
        if len(rows) * max(row.size for row in rows) > self.room:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        dropped = watch()
        for row in rows:
            if isinstance(row.data, BaseException):
                raise row.data
        return [None if n < len(dropped) and dropped[n] else row.data * 2
                for n, row in enumerate(rows)]  # fmt: skip

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared, parameters
        return outputs[0]


@given(
    st.lists(st.tuples(st.integers(1, 60), st.sampled_from("ab")), max_size=40),
    st.integers(1, 200),
    st.none() | st.integers(1, 8),
)
def test_every_row_is_in_one_batch_of_its_group_within_the_budget(
    sizes: list[tuple[int, str]], tokens: int, limit: int | None
) -> None:
    rows = [Row(size=size, data=None, group=group) for size, group in sizes]
    parts = list(batches(rows, Budget(tokens), limit))
    assert sorted(n for batch in parts for n in batch) == list(range(len(rows)))
    for batch in parts:
        assert len({rows[n].group for n in batch}) == 1
        assert len(batch) == 1 or len(batch) * max(rows[n].size for n in batch) <= tokens
        assert limit is None or len(batch) <= limit


def test_rows_of_like_length_go_together() -> None:
    rows = [Row(size=size, data=None) for size in (1, 50, 2, 49, 3, 51)]
    assert list(batches(rows, Budget(153), None)) == [[5, 1, 3], [4, 2, 0]]


def test_out_of_memory_halves_the_batch_and_the_budget() -> None:
    task, budget = Doubling(room=3), Budget(100)
    rows = [Row(size=1, data=n) for n in range(10)]
    assert run_rows(task, rows, UNWATCHED, budget) == [2 * n for n in range(10)]
    assert budget.tokens < 10
    assert max(map(len, batches(rows, budget, None))) <= 3


def test_a_row_that_does_not_fit_alone_is_the_only_one_to_fail() -> None:
    rows = [Row(size=1, data=1), Row(size=50, data=2), Row(size=1, data=3)]
    one, two, three = run_rows(Doubling(room=10), rows, UNWATCHED, Budget(100))
    assert (one, three) == (2, 6)
    assert isinstance(two, Permanent)
    assert "memory" in two.message


def test_a_row_that_fails_takes_nobody_with_it() -> None:
    bad = [InvalidInput("not this"), IndexError("out of range")]
    rows = [Row(size=1, data=value) for value in (1, bad[0], 3, 4, bad[1])]
    assert run_rows(Doubling(), rows, UNWATCHED, Budget(100)) == [2, bad[0], 6, 8, bad[1]]


def test_the_watch_of_half_a_batch_is_of_its_own_rows() -> None:
    rows = [Row(size=1, data=value) for value in (1, 2, ValueError("no"), 4)]
    outputs = run_rows(Doubling(), rows, lambda: [False, True, False, True], Budget(100))
    assert [outputs[0], outputs[1], outputs[3]] == [2, None, None]


@pytest.mark.parametrize("error", [
    Cancelled("stop"), SoftTimeLimitExceeded(), RuntimeError("CUDA error: device-side assert"),
])  # fmt: skip
def test_what_ends_the_step_is_not_tried_in_halves(error: Exception) -> None:
    task = Doubling()
    with pytest.raises(type(error)):
        run_rows(task, [Row(size=1, data=value) for value in (1, error)], UNWATCHED, Budget(100))
    assert task.ran == [2]
