"""What every local task is to the step that runs it: inputs become rows, rows are batched, and
what the model makes of the rows becomes the output of the API.

A task holds a loaded model and nothing of any job. Rows of different jobs share a batch, so a
row's output must not depend on its company (padding is masked).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar

import torch

from shared.kinds.hf import TaskParameters

Watch = Callable[[], Sequence[bool]]
"""Asked between units of work inside `run`: which rows of the batch nobody waits for any more.

It may raise, which ends the batch."""

UNWATCHED: Watch = tuple


@dataclass(frozen=True, kw_only=True)
class Options:
    """How models are loaded and run, from the settings."""

    device: torch.device
    dtype: torch.dtype
    trust_remote_code: bool = False
    audio_limit_s: float = 7200
    audio_chunk_s: float = 30
    image_limit_pixels: int = 64_000_000


@dataclass(frozen=True, kw_only=True)
class Row:
    """One row of a padded batch: a text, a window of a long one, a pair, a piece of audio.

    `size` is its length in tokens (for audio, in the model's frames); only rows of the same
    `group` can share a batch, such as those with equal parameters of generation.
    """

    size: int
    data: Any
    group: str = ""


@dataclass(frozen=True, kw_only=True)
class Prepared:
    """An input ready to run. `rest` is whatever `finish` needs of it beside the rows' outputs."""

    rows: Sequence[Row]
    rest: Any = None
    warnings: Sequence[str] = field(default=())
    """What the user has to know, such as that a text was cut off."""


class LocalTask(ABC):
    """A model, loaded for one task. For one thread at a time."""

    row_limit: ClassVar[int | None] = None
    """How many rows a batch may have, whatever the token budget says."""

    def __init__(self, model: torch.nn.Module, options: Options) -> None:
        self.model = model
        self.options = options

    @property
    def size_bytes(self) -> int:
        """What the weights take in memory."""
        held = (*self.model.parameters(), *self.model.buffers())
        return sum(each.numel() * each.element_size() for each in held)

    @abstractmethod
    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        """Rows of one input. `value` is checked (`shared.kinds.hf.single_inputs`); the input of a
        binary task is `bytes` here. Raises InvalidInput."""

    @abstractmethod
    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """One output a row, in order, as JSON could hold it (a step may be interrupted between
        batches, and its outputs are stored); anything for rows that `watch` reports."""

    @abstractmethod
    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        """The output of the API for one input."""

    def alone(self, output: Any) -> Any:
        """The answer for an input that did not come in a list; some tasks answer with a list."""
        return output


Load = Callable[[Path, Options], LocalTask]
"""Each task's module has a `load(folder, options)`. Raises Permanent where the folder holds no
model of the task."""
