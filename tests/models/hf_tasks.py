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


def outputs(task: LocalTask, name: Task, values: Sequence[Any], **options: Any) -> list[Any]:
    """One for each value; rows of all values share batches, and are stored in between."""
    parameters = parse_parameters(name, options)
    prepared = [task.prepare(value, parameters) for value in values]
    rows: list[Row] = [row for item in prepared for row in item.rows]
    made: dict[int, Any] = {}
    for batch in batches(rows, Budget(4096), task.row_limit):
        # Not through `run_rows`: halving would hide a batch that fails.
        with torch.inference_mode():
            results = task.run([rows[n] for n in batch], UNWATCHED)
        made |= dict(zip(batch, json.loads(json.dumps(results)), strict=True))
    ends, start = [], 0
    for item in prepared:
        end = start + len(item.rows)
        ends.append(task.finish(item, [made[n] for n in range(start, end)], parameters))
        start = end
    return ends


def warnings(task: LocalTask, name: Task, value: Any, **options: Any) -> list[str]:
    return list(task.prepare(value, parse_parameters(name, options)).warnings)


def assert_same(actual: Any, expected: Any) -> None:
    """Equal, but for the last digits of scores."""
    if isinstance(expected, dict):
        assert set(actual) == set(expected)
        for key, value in expected.items():
            assert_same(actual[key], value)
    elif isinstance(expected, list):
        assert len(actual) == len(expected)
        for one, other in zip(actual, expected, strict=True):
            assert_same(one, other)
    elif isinstance(expected, float):
        assert actual == pytest.approx(expected, abs=TOLERANCE)
    else:
        # numpy's numbers are no JSON.
        assert type(actual) in (str, int, type(None))
        assert actual == expected
