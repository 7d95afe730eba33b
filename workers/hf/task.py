"""What every local task is to the step that runs it: inputs become rows, rows are batched, and
what the model makes of the rows becomes the output of the API.

A task holds a loaded model and nothing of any job. Rows of different jobs share a batch, so a
row's output must not depend on its company (padding is masked).
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.hf.task import TaskParameters
from workers.hf.text import window_tokens

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

    def __init__(self, model: Any, options: Options) -> None:
        self.model = model
        self.options = options

    @property
    def size_bytes(self) -> int:
        """What the weights take in memory."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @abstractmethod
    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        """Rows of one input. `value` is checked (`shared.kinds.hf.single_inputs`); of a file it is
        the bytes. Raises InvalidInput."""

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """One output a row, in order, as JSON could hold it (a step may be interrupted between
        batches, and its outputs are stored); anything for rows that `watch` reports.

        One pass through an encoder is too short to be watched: `forward` is enough.
        """
        del watch
        return self.forward(rows)

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        """What `run` gives, of tasks that need not watch."""
        raise NotImplementedError

    @abstractmethod
    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        """The output of the API for one input."""


class TextTask(LocalTask):
    """A task of texts: of a transformer and its tokenizer."""

    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)


class UnbatchedTask(LocalTask):
    """A task that is a function from an input and the parameters to the output: each input is a
    row, and runs by itself."""

    row_limit = 1

    def __init__(self, function: Callable[[Any, TaskParameters], Any], options: Options) -> None:
        super().__init__(function, options)

    @property
    def size_bytes(self) -> int:
        """Not known: nothing says what a function holds."""
        return 0

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        return Prepared(rows=[Row(size=1, data=(value, parameters))])

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return [self.model(*row.data) for row in rows]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared, parameters
        [output] = outputs
        return output
