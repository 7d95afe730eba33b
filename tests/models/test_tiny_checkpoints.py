"""The checkpoints of the tiny models are those that `python -m tests.tiny.make` would make."""

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoModelForSequenceClassification

from tests.tiny import distilbert
from tests.tiny.make import MODELS
from tests.tiny.manifest import (
    CHECKPOINTS,
    COMMAND,
    checkpoint,
    hash_of_code,
    hash_of_files,
    read_manifest,
)

LARGEST_BYTES = 6_000_000
"""Of all of them together: every clone of the repository holds them."""
CODE = 'TEXT = {"A": 1}\n\ndef learn(rate):\n    return rate * 2\n'


def test_each_model_has_a_checkpoint_and_nothing_else_is_there() -> None:
    folders = {path.name for path in CHECKPOINTS.iterdir() if path.is_dir()}
    assert folders == set(read_manifest()) == set(MODELS), f"make them anew: {COMMAND}"


@pytest.mark.parametrize("name", MODELS)
def test_a_checkpoint_is_of_the_lessons_and_the_training_that_are_here(name: str) -> None:
    assert read_manifest()[name]["sources"] == MODELS[name].sources(), (
        f"what {name} learns, or how, has changed; make its checkpoint anew: {COMMAND} {name}"
    )


@pytest.mark.parametrize("name", MODELS)
def test_its_files_are_those_that_were_made(name: str) -> None:
    assert hash_of_files(checkpoint(name)) == read_manifest()[name]["files"], (
        f"files of {checkpoint(name)} have changed; make them anew: {COMMAND} {name}"
    )


def test_they_are_small() -> None:
    sizes = [path.stat().st_size for path in CHECKPOINTS.rglob("*") if path.is_file()]
    assert sum(sizes) < LARGEST_BYTES


def test_half_the_bytes_are_stored_and_float32_is_loaded() -> None:
    stored = load_file(distilbert.folder() / "model.safetensors")
    assert {tensor.dtype for tensor in stored.values()} == {torch.float16}
    model = AutoModelForSequenceClassification.from_pretrained(distilbert.folder())
    assert model.dtype == torch.float32


def test_one_that_is_missing_is_reported_with_the_command() -> None:
    with pytest.raises(FileNotFoundError, match=r"python -m tests\.tiny\.make nobody"):
        checkpoint("nobody")


@pytest.mark.parametrize(
    "same",
    [
        f"import os\nfrom pathlib import Path\n{CODE}",
        f'"""What it is."""\n{CODE}',
        CODE.replace("(rate):\n", '(rate):\n    """Half."""\n    # quickly\n'),
        CODE.replace('{"A": 1}', "{\n    'A': 1,\n}"),
    ],
    ids=["imports", "docstring", "comments", "layout"],
)
def test_what_changes_no_model_asks_for_no_training(same: str) -> None:
    assert same != CODE
    assert hash_of_code(same) == hash_of_code(CODE)


@pytest.mark.parametrize(
    "other",
    [CODE.replace('"A"', '"B"'), CODE.replace("* 2", "* 3"), CODE.replace("1}", "0}")],
    ids=["a text", "a rate", "a label"],
)
def test_a_changed_lesson_does(other: str) -> None:
    assert hash_of_code(other) != hash_of_code(CODE)
