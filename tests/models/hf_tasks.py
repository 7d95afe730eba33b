"""Running tasks as steps do, without a step; comparing what they say with another source."""

import json
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import pytest
import torch
from transformers import pipeline

from shared.kinds.hf import Task, parse_parameters
from workers.hf.steps import Budget, batches
from workers.hf.task import UNWATCHED, LocalTask, Row
from workers.models.load import LoadOptions

OPTIONS = LoadOptions(device=torch.device("cpu"), dtype=torch.float32)
HALF = replace(OPTIONS, dtype=torch.bfloat16)
TOLERANCE = 1e-5


def reference_pipeline(task: str, **parts: Any) -> Any:
    """The pipeline of transformers, whose overloads know no tokenizer by its base class."""
    make: Any = pipeline
    return make(task, **parts)


def outputs(task: LocalTask, name: Task, values: Sequence[Any], **given: Any) -> list[Any]:
    """One for each value; rows of all values share batches, and are stored in between."""
    parameters = parse_parameters(name, given)
    prepared = [task.prepare(value, parameters) for value in values]
    rows: list[Row] = [row for each in prepared for row in each.rows]
    made: dict[int, Any] = {}
    for batch in batches(rows, Budget(4096), task.row_limit):
        # Not through `run_rows`: halving would hide a batch that fails.
        with torch.inference_mode():
            found = task.run([rows[n] for n in batch], UNWATCHED)
        made |= dict(zip(batch, json.loads(json.dumps(found)), strict=True))
    ends, start = [], 0
    for each in prepared:
        end = start + len(each.rows)
        ends.append(task.finish(each, [made[n] for n in range(start, end)], parameters))
        start = end
    return ends


def warnings(task: LocalTask, name: Task, value: Any, **given: Any) -> list[str]:
    return list(task.prepare(value, parse_parameters(name, given)).warnings)


def assert_same(found: Any, wanted: Any) -> None:
    """Equal, but for the last digits of scores."""
    if isinstance(wanted, dict):
        assert set(found) == set(wanted)
        for key, value in wanted.items():
            assert_same(found[key], value)
    elif isinstance(wanted, list):
        assert len(found) == len(wanted)
        for one, other in zip(found, wanted, strict=True):
            assert_same(one, other)
    elif isinstance(wanted, float):
        assert found == pytest.approx(wanted, abs=TOLERANCE)
    else:
        # numpy's numbers are no JSON.
        assert type(found) in (str, int, type(None))
        assert found == wanted
