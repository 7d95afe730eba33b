"""What every local task is to the step that runs it: inputs become rows, rows are batched, and
what the model makes of the rows becomes the output of the API. And the loaded ones of a process.

A task holds a loaded model and nothing of any job. Rows of different jobs share a batch, so a
row's output must not depend on its company (padding is masked).
"""

import logging
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import import_module
from pathlib import Path
from typing import Any, ClassVar

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from shared.config import Settings
from shared.hf.task import TaskParameters
from shared.kinds.hf import TASKS
from workers.attempts.process import Process
from workers.hf.text import window_tokens
from workers.models import locate
from workers.models.checkpoints import MIB, check_task
from workers.models.devices import RecentlyUsed
from workers.models.load import LoadOptions

log = logging.getLogger(__name__)

Watch = Callable[[], Sequence[bool]]
"""Called between units of work inside `run`: which rows of the batch are not needed any more.

It may raise, which ends the batch."""

UNWATCHED: Watch = tuple


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
class PreparedInput:
    """An input ready to run. `rest` is whatever `finish` needs of it beside the rows' outputs."""

    rows: Sequence[Row]
    rest: Any = None
    warnings: Sequence[str] = field(default=())
    """What the user has to know, such as that a text was cut off."""


class LocalTask(ABC):
    """A model, loaded for one task. For one thread at a time."""

    row_limit: ClassVar[int | None] = None
    """How many rows a batch may have, whatever the token budget says."""

    def __init__(self, model: Any, options: LoadOptions) -> None:
        self.model = model
        self.options = options

    @property
    def size_bytes(self) -> int:
        """What the weights take in memory."""
        tensors = (*self.model.parameters(), *self.model.buffers())
        return sum(tensor.numel() * tensor.element_size() for tensor in tensors)

    @abstractmethod
    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
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
    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        """The output of the API for one input."""


class TextTask(LocalTask):
    """A task of texts: of a transformer and its tokenizer."""

    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)


class UnbatchedTask(LocalTask):
    """A task that is a function from an input and the parameters to the output: each input is a
    row, and runs by itself."""

    row_limit = 1

    def __init__(
        self, function: Callable[[Any, TaskParameters], Any], options: LoadOptions
    ) -> None:
        super().__init__(function, options)

    @property
    def size_bytes(self) -> int:
        """Not known: nothing says what a function holds."""
        return 0

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        return PreparedInput(rows=[Row(size=1, data=(value, parameters))])

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return [self.model(*row.data) for row in rows]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared, parameters
        [output] = outputs
        return output


DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LOAD_BYTES_PER_S = 200 * MIB
"""How fast weights are read; for estimates only."""
DOWNLOAD_S = 60.0
"""How long a model of unknown size may take to arrive; for estimates only."""


class Models:
    """The models of Hugging Face tasks. For one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folders: dict[str, Path] = {}
        self._kept: RecentlyUsed[tuple[str, str], LocalTask] = RecentlyUsed(
            settings.hf_cache_mib * MIB, lambda model: model.size_bytes
        )

    def __len__(self) -> int:
        return len(self._kept)

    def options(self) -> LoadOptions:
        settings = self._settings
        device = settings.hf_device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = torch.device(device).type == "cpu"
        # On a CPU, float32: classes and spans stay those of the published model to the last digit.
        name = settings.hf_dtype
        default = torch.float32 if on_cpu else torch.bfloat16
        return LoadOptions(
            device=torch.device(device),
            dtype=DTYPES.get(name, default),
            trust_remote_code=settings.hf_trust_remote_code,
            audio_limit_s=settings.hf_audio_limit_s,
            audio_chunk_s=settings.hf_audio_chunk_s,
            image_limit_pixels=settings.hf_image_limit_pixels,
        )

    def folder(
        self,
        model: str,
        task: str | None,
        *,
        check: Callable[[], None],
        on_known: Callable[[], None],
    ) -> Path:
        """Where the model lies, downloaded if need be. Raises what `files.locate` does."""
        known = self._folders.get(model)
        if known is None or not known.is_dir():
            known = locate.locate(model, self._settings, task=task, check=check, on_known=on_known)
            self._folders[model] = known
        return known

    def find(self, model: str, task: str) -> LocalTask | None:
        """The model, if it is in memory."""
        return self._kept.get((model, task))

    def estimated_s(self, folder: Path | None) -> float:
        """About how long loading takes, in seconds."""
        if folder is None:
            return DOWNLOAD_S
        return round(1 + locate.size_bytes(folder) / LOAD_BYTES_PER_S, 1)

    def ready(self, model: str, task: str, *, check: Callable[[], None]) -> LocalTask:
        """The model, loaded if need be, by one step that nobody shares. Raises what `folder` and
        `load` do, and WrongTask where it is for another task."""
        loaded = self.find(model, task)
        if loaded is not None:
            return loaded
        folder = self.folder(model, task, check=check, on_known=lambda: None)
        check_task(folder, model, task)
        return self.load(model, task, folder)

    def load(self, model: str, task: str, folder: Path) -> LocalTask:
        """Raises Permanent for what cannot be loaded, or has no room even alone."""
        size_bytes = locate.size_bytes(folder)
        locate.size_limit(self._settings).check(model, size_bytes)
        self._kept.make_room(size_bytes)
        torch.set_num_threads(self._settings.hf_threads)
        began = time.monotonic()
        module, _, name = TASKS[task].load.partition(":")
        made = getattr(import_module(module), name)(folder, self.options())
        loaded = made if isinstance(made, LocalTask) else UnbatchedTask(made, self.options())
        self._kept.add((model, task), loaded)
        log.info(
            "model %s loaded for %s in %.1f s (%.0f MiB)",
            model, task, time.monotonic() - began, loaded.size_bytes / MIB,
        )  # fmt: skip
        return loaded


def models_of(process: Process) -> Models:
    return process.held(_models)


def _models(process: Process) -> Models:
    return Models(process.settings)
