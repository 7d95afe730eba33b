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

import torch

from shared.config import Settings
from shared.kinds.hf import Task
from workers.hf.task import LocalTask, Options
from workers.models import locate
from workers.models.checkpoints import MIB
from workers.models.devices import return_freed_blocks

log = logging.getLogger(__name__)

LOADERS: dict[Task, str] = {
    Task.SUMMARIZATION: "seq2seq:load_summarization",
    Task.QUESTION_ANSWERING: "question_answering:load",
    Task.SENTENCE_SIMILARITY: "features:load_similarity",
    Task.TEXT_CLASSIFICATION: "classification:load_text_classification",
    Task.TRANSLATION: "seq2seq:load_translation",
    Task.SPEECH_RECOGNITION: "speech:load_speech",
    Task.ZERO_SHOT_CLASSIFICATION: "classification:load_zero_shot",
    Task.TOKEN_CLASSIFICATION: "token_classification:load",
    Task.FILL_MASK: "fill_mask:load",
    Task.FEATURE_EXTRACTION: "features:load_features",
    Task.TEXT_GENERATION: "text_generation:load",
    Task.TEXT_RANKING: "text_ranking:load",
    Task.IMAGE_CLASSIFICATION: "image_classification:load",
}
"""Where a model is loaded for each task: module below `workers.hf.tasks`, and function."""
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
    """For one thread at a time."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._folders: dict[str, Path] = {}
        self._kept: OrderedDict[tuple[str, Task], LocalTask] = OrderedDict()

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
        task: Task | None,
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

    def find(self, model: str, task: Task) -> LocalTask | None:
        """The model, if it is in memory."""
        cached = self._kept.get((model, task))
        if cached is not None:
            self._kept.move_to_end((model, task))
        return cached

    def estimated_s(self, folder: Path | None) -> float:
        """About how long loading takes, in seconds."""
        if folder is None:
            return DOWNLOAD_S
        return round(1 + locate.size_bytes(folder) / LOAD_BYTES_PER_S, 1)

    def load(self, model: str, task: Task, folder: Path) -> LocalTask:
        """Raises Permanent for what cannot be loaded, or has no room even alone."""
        limit_bytes = self._settings.hf_cache_mib * MIB
        wanted_bytes = locate.size_bytes(folder)
        locate.size_limit(self._settings).check(model, wanted_bytes)
        self._make_room(limit_bytes - wanted_bytes)
        torch.set_num_threads(self._settings.hf_threads)
        began = time.monotonic()
        module, _, load = LOADERS[task].partition(":")
        loaded: LocalTask = getattr(import_module(f"workers.hf.tasks.{module}"), load)(
            folder, self.options()
        )
        self._kept[(model, task)] = loaded
        self._make_room(limit_bytes, but=(model, task))
        log.info(
            "model %s loaded for %s in %.1f s (%.0f MiB)",
            model, task, time.monotonic() - began, loaded.size_bytes / MIB,
        )  # fmt: skip
        return loaded

    def _make_room(self, limit_bytes: int, but: tuple[str, Task] | None = None) -> None:
        while self._kept and sum(each.size_bytes for each in self._kept.values()) > limit_bytes:
            oldest = next(iter(self._kept))
            if oldest == but:
                return
            del self._kept[oldest]
            gc.collect()
            return_freed_blocks()
            if torch.cuda.is_available():
                torch.cuda.empty_cache()
            log.info("model %s (%s) dropped to make room", *oldest)
