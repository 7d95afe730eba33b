"""Which of a model's files are fetched from the hub: of weights, one format and one copy."""

import re
from collections.abc import Collection, Iterable
from glob import escape
from pathlib import Path, PurePosixPath
from typing import Final

from workers.hf.checkpoints import modules_of

DESCRIPTION: Final = (
    "README.md",
    "config.json",
    "config_sentence_transformers.json",
    "modules.json",
    "preprocessor_config.json",
    "processor_config.json",
)
"""What tells what a model is for."""

KEPT: Final = frozenset(
    {".json", ".txt", ".model", ".spm", ".jinja", ".tiktoken", ".vocab", ".bpe", ".codes"}
    | {".tokenizer"}
)
"""Configurations, and what tokenizers read."""

WEIGHTS: Final = (
    re.compile(r"model\.safetensors"),
    re.compile(r"model-.+\.safetensors"),
    re.compile(r"pytorch_model\.bin"),
    re.compile(r"pytorch_model-.+\.bin"),
)
"""Whole or in shards; of what a folder has, the first is fetched."""


def wanted(names: Iterable[str], folder: Path) -> list[str]:
    """Of all files of a model, those to fetch, as patterns. `folder` has its description."""
    by_folder: dict[str, list[str]] = {}
    for name in names:
        path = PurePosixPath(name)
        by_folder.setdefault(str(path.parent), []).append(path.name)
    places = {".", *(str(PurePosixPath(module.path)) for module in modules_of(folder))}
    return sorted(
        escape(str(PurePosixPath(place) / name))
        for place in places
        for name in _of_folder(by_folder.get(place, []))
    )


def has_weights(patterns: Iterable[str]) -> bool:
    return any(is_weights(pattern) for pattern in patterns)


def _of_folder(names: Collection[str]) -> list[str]:
    described = [name for name in names if PurePosixPath(name).suffix in KEPT]
    described += [name for name in names if name == "README.md"]
    for kind in WEIGHTS:
        weights = [name for name in names if kind.fullmatch(name)]
        if weights:
            return described + weights
    return described


def is_weights(path: str) -> bool:
    name = PurePosixPath(path).name
    return any(kind.fullmatch(name) for kind in WEIGHTS)
