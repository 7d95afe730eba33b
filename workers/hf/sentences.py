"""Texts to vectors with a sentence-transformers model: what `SentenceTransformer.encode` gives, a
row at a time, so that rows of different jobs share batches.

Only the last module is not run if it just normalizes: whether vectors get length 1 is decided per
job, and in float32, whatever the model computes in.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from tokenizers import Tokenizer
from transformers import PreTrainedTokenizerBase

from shared.errors import InvalidInput, Permanent
from workers.hf.padding import window_tokens
from workers.hf.task import Row

Side = Literal["left", "right"]


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """A row's data."""

    text: str
    prompt: str
    cut_side: Side


@dataclass(frozen=True, kw_only=True)
class Measured:
    """A row, and how many tokens it would have if nothing were cut off."""

    row: Row
    full_size: int

    @property
    def is_cut(self) -> bool:
        return self.row.size < self.full_size


class Sentences:
    """For one thread at a time."""

    def __init__(self, model: SentenceTransformer) -> None:
        self._model = model
        self._tokenizer = model.tokenizer
        *rest, last = model.children()
        self.is_unit = isinstance(last, Normalize) and bool(rest)
        """Whether the model means its vectors to have length 1."""
        self._modules = rest if self.is_unit else [*rest, last]
        self.dimensions = model.truncate_dim
        """What the model means its vectors to be cut to, if to anything."""
        model.truncate_dim = None
        self.size = model.get_embedding_dimension()
        """How long vectors are; None where the model does not tell."""
        self.window = self._limit()

    def _limit(self) -> int | None:
        """How many tokens of a text the model reads; also set in the model, which may not know."""
        if isinstance(self._tokenizer, Tokenizer):  # of static vectors, which sum up any number
            return None
        if not isinstance(self._tokenizer, PreTrainedTokenizerBase):
            raise Permanent(
                f"The model's tokenizer ({type(self._tokenizer).__name__}) is of a kind that is "
                "not supported. Use a sentence-transformers model that is made on a transformer."
            )
        encoder = self._model.transformers_model
        limit = window_tokens(encoder, self._tokenizer) if encoder is not None else None
        if limit is not None:
            self._model.max_seq_length = limit
        return limit

    def prompt(self, name: str | None) -> str:
        """By its name in `config_sentence_transformers.json`; that file's default where none is
        named. Raises InvalidInput."""
        prompts = self._model.prompts
        if name is None:
            default = self._model.default_prompt_name
            return (prompts[default] or "") if default is not None else ""
        if name not in prompts:
            raise InvalidInput(
                f"the model has no prompt {name!r}; it knows {', '.join(sorted(prompts))}."
            )
        return prompts[name] or ""

    def row(self, text: str, prompt: str = "", *, cut_side: Side = "right") -> Measured:
        full_size = self._count(prompt + text)
        size = full_size if self.window is None else min(full_size, self.window)
        # Prompts are left out of some models' mean, and cut with the batch.
        group = f"{cut_side} {prompt}"
        data = Sentence(text=text, prompt=prompt, cut_side=cut_side)
        return Measured(row=Row(size=size, data=data, group=group), full_size=full_size)

    def _count(self, text: str) -> int:
        if isinstance(self._tokenizer, Tokenizer):
            return max(1, len(self._tokenizer.encode(text).ids))
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def vectors(self, rows: Sequence[Row]) -> list[list[float]]:
        """In float32, before any normalization by a last module. The rows are of one group."""
        first: Sentence = rows[0].data
        if isinstance(self._tokenizer, PreTrainedTokenizerBase):
            self._tokenizer.truncation_side = first.cut_side
        features: dict[str, Any] = self._model.preprocess(
            [row.data.text for row in rows], prompt=first.prompt or None
        )
        device = self._model.device
        features = {
            name: value.to(device) if isinstance(value, torch.Tensor) else value
            for name, value in features.items()
        }
        with torch.inference_mode():
            for module in self._modules:
                features = module(features)
        vectors: list[list[float]] = features["sentence_embedding"].float().cpu().tolist()
        return vectors
