"""Rows to outputs: batches under a token budget, halved where memory runs out.

Rows of similar length go together, so that little of a batch is padding. A batch that fails is
tried in halves, down to the row that is to blame: no row fails because of its company.
"""

import gc
import logging
from collections import defaultdict
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from billiard.exceptions import SoftTimeLimitExceeded

from shared.errors import Cancelled, Permanent, SluiceError
from workers.generation.batch.faults import is_fatal, is_out_of_memory
from workers.hf.task import LocalTask, Row, Watch
from workers.memory import return_freed_blocks

log = logging.getLogger(__name__)


class Budget:
    """How many padded tokens a batch may have; less, once memory ran out with more."""

    def __init__(self, tokens: int) -> None:
        self.tokens = tokens

    def shrink(self, tried_tokens: int) -> None:
        self.tokens = max(1, min(self.tokens, tried_tokens // 2))


def batches(rows: Sequence[Row], budget: Budget, row_limit: int | None) -> Iterator[list[int]]:
    """Indices of rows, each batch of one group, by falling size, within the budget when padded.

    A row that is larger than the budget is a batch by itself.
    """
    groups: dict[str, list[int]] = defaultdict(list)
    for n, row in enumerate(rows):
        groups[row.group].append(n)
    for members in groups.values():
        batch: list[int] = []
        for n in sorted(members, key=lambda n: rows[n].size, reverse=True):
            widest = rows[batch[0]].size if batch else rows[n].size
            is_full = len(batch) == row_limit or widest * (len(batch) + 1) > budget.tokens
            if batch and is_full:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch


def run_rows(
    task: LocalTask, rows: Sequence[Row], watch: Watch, budget: Budget
) -> list[Any | Exception]:
    """An output or an exception for each row. Raises what ends the step: a cancellation, a time
    limit, a broken device."""
    try:
        with torch.inference_mode():
            return task.run(rows, watch)
    except (Cancelled, SoftTimeLimitExceeded):
        raise
    except Exception as error:
        if is_fatal(error):
            raise
        short = is_out_of_memory(error)
        if short:
            budget.shrink(sum(row.size for row in rows))
            log.warning("out of memory with %s rows; the batch is halved", len(rows))
        if len(rows) == 1:
            return [_blamed(error, short=short)]
    # Outside of the handler: the traceback would keep the tensors of the failed batch alive.
    _free_memory()
    half = len(rows) // 2
    first = run_rows(task, rows[:half], _part(watch, 0, half), budget)
    return first + run_rows(task, rows[half:], _part(watch, half, len(rows)), budget)


def _part(watch: Watch, start: int, end: int) -> Watch:
    return lambda: watch()[start:end]


def _blamed(error: Exception, *, short: bool) -> Exception:
    if short:
        return Permanent(
            "This input does not fit into the memory of the worker, even alone. Send a shorter "
            "one, use a smaller model, or give the worker more memory."
        )
    if not isinstance(error, SluiceError):
        log.exception("a row failed", exc_info=error)
    return error


def _free_memory() -> None:
    gc.collect()
    return_freed_blocks()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()
