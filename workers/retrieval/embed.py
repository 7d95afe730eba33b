"""Texts to unit vectors, on the CPU, with a SentenceTransformer model.

Texts are batched by length under a token budget, which on texts of mixed length is worth three
times the speed of batches in input order. Vectors are float32 and of length 1, so that their dot
product is the cosine similarity. No database and no store in here.
"""

import logging
from collections import OrderedDict
from collections.abc import Callable, Iterator, Sequence
from functools import cached_property

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from tokenizers import Tokenizer
from transformers.utils.logging import disable_progress_bar

from shared.config import Settings
from shared.errors import Permanent
from shared.kinds.hf import Task
from workers.models import locate
from workers.models.checkpoints import SizeLimit
from workers.models.devices import cpu_is_fast_in_bfloat16, return_freed_blocks

log = logging.getLogger(__name__)

Vectors = NDArray[np.float32]

MODELS_KEPT = 2
CHARS_PER_TOKEN = 3  # of ASCII
COUNTED_CHARS = 200_000
"""Of texts that are counted together, so that their tokens take little memory."""


class Embedder:
    """A loaded model. `encode` is for one thread at a time."""

    def __init__(self, name: str, model: SentenceTransformer, *, batch_tokens: int) -> None:
        self.name = name
        self._model = model
        self._batch_tokens = batch_tokens

    @cached_property
    def dimension(self) -> int:
        size = self._model.get_embedding_dimension()
        assert size is not None
        return size

    @cached_property
    def tokenizer(self) -> Tokenizer:
        """The model's fast tokenizer, without truncation or padding, for splitting by tokens."""
        tokenizer = Tokenizer.from_str(self._model.tokenizer.backend_tokenizer.to_str())
        tokenizer.no_truncation()
        tokenizer.no_padding()
        return tokenizer

    @property
    def window(self) -> int | None:
        """How many tokens of a text the model reads; None where it reads all."""
        return self._model.max_seq_length

    def overlong(self, texts: Sequence[str], *, between: Callable[[], None]) -> dict[int, int]:
        """The tokens of those texts that the window cuts, by index.

        Counted by the model's own tokenizer, which takes some two hundredths of the time that
        encoding takes. `between` runs now and then.
        """
        window = self.window
        if window is None:
            return {}
        prompt = self._model.prompts.get(self._model.default_prompt_name or "") or ""
        cut: dict[int, int] = {}
        first = 0
        while first < len(texts):
            between()
            end, chars = first + 1, len(texts[first])
            while end < len(texts) and chars + len(texts[end]) <= COUNTED_CHARS:
                chars += len(texts[end])
                end += 1
            sizes = self._sizes([prompt + text for text in texts[first:end]])
            cut |= {n: size for n, size in enumerate(sizes, first) if size > window}
            first = end
        return cut

    @cached_property
    def readable(self) -> int | None:
        """How many tokens of the text itself are read: less those that the model adds."""
        return None if self.window is None else self.window - self._sizes([""])[0]

    def _sizes(self, texts: Sequence[str]) -> list[int]:
        try:
            tokenizer = self.tokenizer
        except AttributeError:  # one that is written in Python
            encoded = self._model.tokenizer(list(texts), truncation=False, verbose=False)
            return [len(ids) for ids in encoded["input_ids"]]
        return [len(encoding) for encoding in tokenizer.encode_batch_fast(list(texts))]

    def encode(self, texts: Sequence[str], *, between: Callable[[], None]) -> Vectors:
        """Vectors of shape (len(texts), dimension). `between` runs before each batch."""
        vectors = np.empty((len(texts), self.dimension), dtype=np.float32)
        for batch in self._batches(texts):
            between()
            return_freed_blocks()
            vectors[batch] = self._model.encode(
                [texts[n] for n in batch],
                batch_size=len(batch),
                convert_to_numpy=True,
                show_progress_bar=False,
            )
        # In float32, whatever the model computed in: scores are cosines.
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit: Vectors = vectors / lengths.clip(min=1e-12)
        return unit

    def _batches(self, texts: Sequence[str]) -> Iterator[list[int]]:
        """Indices by falling length, each batch under the token budget when padded."""
        window = self._model.max_seq_length or self._batch_tokens
        tokens = [min(window, _tokens(text)) for text in texts]
        batch: list[int] = []
        for n in sorted(range(len(texts)), key=lambda n: tokens[n], reverse=True):
            if batch and tokens[batch[0]] * (len(batch) + 1) > self._batch_tokens:
                yield batch
                batch = []
            batch.append(n)
        if batch:
            yield batch


def _tokens(text: str) -> int:
    """A guess. Models of English spell other scripts out: a syllable of Hangul, three bytes in
    UTF-8, takes up to three tokens."""
    return len(text) // CHARS_PER_TOKEN + len(text.encode()) - len(text) + 2


class Embedders:
    """The models of a process: loaded at first use, the least recently used dropped."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._kept: OrderedDict[str, Embedder] = OrderedDict()

    def get(self, name: str | None = None, *, check: Callable[[], None] = lambda: None) -> Embedder:
        """What is not on this machine is fetched; `check` is called all the while, and may raise.

        Raises what `workers.models.locate.locate` does, and Permanent where the model cannot be
        loaded.
        """
        name = name or self._settings.embedding_model
        if name not in self._kept:
            self._kept[name] = self._load(name, check)
            while len(self._kept) > MODELS_KEPT:
                self._kept.popitem(last=False)
        self._kept.move_to_end(name)
        return self._kept[name]

    def _load(self, name: str, check: Callable[[], None]) -> Embedder:
        settings = self._settings
        limit = SizeLimit(settings.embedding_model_limit_mib, "SLUICE_EMBEDDING_MODEL_LIMIT_MIB")
        folder = locate.locate(
            name, settings, task=Task.FEATURE_EXTRACTION, limit=limit, check=check
        )
        limit.check(name, locate.size_bytes(folder))
        torch.set_num_threads(settings.embedding_threads)
        disable_progress_bar()
        try:
            model = SentenceTransformer(
                str(folder),
                device="cpu",
                local_files_only=True,
                model_kwargs={"dtype": self._dtype()},
            )
        except (OSError, ValueError, RuntimeError) as error:
            raise Permanent(
                f"The embedding model {name!r} cannot be loaded ({error}). Put all its files into "
                f"{folder} anew, or name another model{self._where(name)}."
            ) from error
        log.info("embedding model %s loaded (%s)", name, self._dtype())
        return Embedder(name, model.eval(), batch_tokens=settings.embedding_batch_tokens)

    def _where(self, name: str) -> str:
        return " (SLUICE_EMBEDDING_MODEL)" if name == self._settings.embedding_model else ""

    def _dtype(self) -> torch.dtype:
        setting = self._settings.embedding_dtype
        if setting == "auto":
            return torch.bfloat16 if cpu_is_fast_in_bfloat16() else torch.float32
        return torch.bfloat16 if setting == "bfloat16" else torch.float32
