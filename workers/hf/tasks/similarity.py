"""Sentence similarity: the cosine of the source sentence's vector with that of each sentence.

A sentence that an input has several times is one row. A model that is not one of
sentence-transformers becomes one with mean pooling, as that library does it, with a warning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from sentence_transformers import SentenceTransformer

from shared.kinds.hf import TaskParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.tasks.features import Measured, Sentences
from workers.models.checkpoints import modules_of
from workers.models.load import load_sentence_transformer

LENGTH_LEAST = 1e-12


class SentenceSimilarity(LocalTask):
    model: SentenceTransformer

    def __init__(
        self, model: SentenceTransformer, options: Options, *, is_for_sentences: bool
    ) -> None:
        super().__init__(model, options)
        self.sentences = Sentences(model)
        self.prompt = self.sentences.prompt(None)
        self.is_for_sentences = is_for_sentences

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        del parameters  # There are none.
        texts = [value["source_sentence"], *value["sentences"]]
        distinct = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        measured = [self.sentences.row(text, self.prompt) for text in distinct]
        warnings = [] if self.is_for_sentences else [_NOT_TRAINED]
        return Prepared(
            rows=[each.row for each in measured],
            rest=[distinct[text] for text in texts],
            warnings=warnings + _cut_warning(measured),
        )

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        return self.sentences.vectors(rows)

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del parameters
        vectors = np.asarray(outputs, dtype=np.float64)[:, : self.sentences.dimensions]
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        unit = vectors / np.maximum(lengths, LENGTH_LEAST)
        source, *others = prepared.rest
        cosines: list[float] = (unit[others] @ unit[source]).clip(-1, 1).tolist()
        return cosines


_NOT_TRAINED = (
    "was judged by a model that is not known to be trained for sentences (it has no modules.json): "
    "vectors of sentences are made from those of their tokens as sentence-transformers does it."
)


def _cut_warning(measured: Sequence[Measured]) -> list[str]:
    cut = [each for each in measured if each.is_cut]
    if not cut:
        return []
    longest = max(cut, key=lambda each: each.full_size)
    return [
        f"has {len(cut):,} of {len(measured):,} different sentences cut to {longest.row.size:,} "
        f"tokens, which is all that the model takes at once; the longest had "
        f"{longest.full_size:,}."
    ]


def load(folder: Path, options: Options) -> SentenceSimilarity:
    model = load_sentence_transformer(folder, options)
    return SentenceSimilarity(model, options, is_for_sentences=bool(modules_of(folder)))
