"""The models of a process: loaded once, the least recently used dropped where memory is short.

Sizes are those of the weights. A model is kept for each task it runs, since each task has its own
head; what cannot fit by itself is refused before it is loaded.
"""

import gc
import logging
import time
from collections import OrderedDict
from collections.abc import Callable
from importlib import import_module
from pathlib import Path
from typing import Generic, TypeVar

import torch

from shared.config import Settings
from shared.kinds.hf import TASKS
from workers.attempts.process import Process
from workers.hf.task import LocalTask, Options, UnbatchedTask
from workers.models import locate
from workers.models.checkpoints import MIB
from workers.models.devices import return_freed_blocks

log = logging.getLogger(__name__)

DTYPES = {
    "float32": torch.float32,
    "bfloat16": torch.bfloat16,
    "float16": torch.float16,
}
LOAD_BYTES_PER_S = 200 * MIB
"""How fast weights are read; for estimates only."""
DOWNLOAD_S = 60.0
"""How long a model of unknown size may take to arrive; for estimates only."""


K = TypeVar("K")
M = TypeVar("M")


class Kept(Generic[K, M]):
    """Models in memory, by what they were loaded for; the least recently used are dropped where
    all together are larger than `limit`. For one thread at a time."""

    def __init__(self, limit: int, size: Callable[[M], int] = lambda _: 1) -> None:
        self._limit = limit
        self._size = size
        self._models: OrderedDict[K, M] = OrderedDict()

    def __len__(self) -> int:
        return len(self._models)

    def get(self, key: K) -> M | None:
        model = self._models.get(key)
        if model is not None:
            self._models.move_to_end(key)
        return model

    def add(self, key: K, model: M) -> None:
        """It stays, even if it is too large alone."""
        self._models[key] = model
        self._drop(self._limit, least=1)

    def make_room(self, size: int) -> None:
        """For a model of that size, before it is loaded."""
        self._drop(self._limit - size, least=0)

    def _drop(self, limit: int, *, least: int) -> None:
        while len(self._models) > least and sum(map(self._size, self._models.values())) > limit:
            key, model = self._models.popitem(last=False)
            del model
            gc.collect()
            return_freed_blocks()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.info("model %s dropped to make room", key)


class Models:
    """The models of Hugging Face tasks. For one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folders: dict[str, Path] = {}
        self._kept: Kept[tuple[str, str], LocalTask] = Kept(
            settings.hf_cache_mib * MIB, lambda model: model.size_bytes
        )

    def __len__(self) -> int:
        return len(self._kept)

    def options(self) -> Options:
        settings = self._settings
        device = settings.hf_device
        if device == "auto":
            device = "cuda" if torch.cuda.is_available() else "cpu"
        on_cpu = torch.device(device).type == "cpu"
        # On a CPU, float32: classes and spans stay those of the published model to the last digit.
        name = settings.hf_dtype
        default = torch.float32 if on_cpu else torch.bfloat16
        return Options(
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
        on_found: Callable[[], None],
    ) -> Path:
        """Where the model lies, downloaded if need be. Raises what `files.locate` does."""
        known = self._folders.get(model)
        if known is None or not known.is_dir():
            known = locate.locate(model, self._settings, task=task, check=check, on_found=on_found)
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
