"""Feature extraction: one vector of a text from a sentence-transformers model, and a vector of
each token from any other, as transformers' pipeline gives them (in a list of one text).

`dimensions` cuts vectors, which makes sense for models that were trained for it (Matryoshka);
`normalize` gives them length 1 afterwards, and false leaves out what normalization the model has.
"""

import inspect
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from transformers import (
    AutoModel,
    AutoModelForTextEncoding,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from shared.errors import InvalidInput
from shared.hf import Task
from shared.hf_parameters import FeatureParameters, TaskParameters
from workers.hf.checkpoints import modules_of
from workers.hf.detect import read_config
from workers.hf.padding import Tokens, can_pad, encode, pad, window_tokens
from workers.hf.sentences import Sentences
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.weights import load_model, load_sentence_transformer, load_tokenizer

LENGTH_LEAST = 1e-12


class SentenceFeatures(LocalTask):
    """A vector of the whole text: a list of numbers."""

    model: SentenceTransformer

    def __init__(self, model: SentenceTransformer, options: Options) -> None:
        super().__init__(model, options)
        self.sentences = Sentences(model)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, FeatureParameters)
        _check_dimensions(parameters, self.sentences.size)
        prompt = self.sentences.prompt(parameters.prompt_name)
        measured = self.sentences.row(value, prompt, cut_side=parameters.truncation_direction)
        warnings = _cut(measured.full_size, measured.row.size, parameters)
        return Prepared(rows=[measured.row], warnings=warnings)

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        return self.sentences.vectors(rows)

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, FeatureParameters)
        vectors = np.asarray(outputs, dtype=np.float32)
        if self.sentences.is_unit and parameters.normalize is not False:
            vectors = _unit(vectors)
        [vector] = _shaped(vectors, parameters, self.sentences.dimensions)
        return vector


class TokenFeatures(LocalTask):
    """A vector of every token, special ones too: a list of one list of lists of numbers."""

    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)
        self.size: int | None = getattr(model.config.get_text_config(), "hidden_size", None)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, FeatureParameters)
        _check_dimensions(parameters, self.size)
        if parameters.prompt_name is not None:
            raise InvalidInput(
                f"the model has no prompt {parameters.prompt_name!r}: only models of "
                "sentence-transformers have any."
            )
        self.tokenizer.truncation_side = parameters.truncation_direction
        [tokens] = encode(self.tokenizer, [value], limit=self.window)
        warnings = _cut(tokens.full_size, tokens.size, parameters)
        return Prepared(rows=[Row(size=tokens.size, data=tokens)], warnings=warnings)

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        tokens = [row.data for row in rows]
        if can_pad(self.model, self.tokenizer):
            return self._batch(tokens)
        return [output for each in tokens for output in self._batch([each])]

    def _batch(self, tokens: Sequence[Tokens]) -> list[Any]:
        inputs = pad(self.tokenizer, tokens, self.model.device)
        taken = inspect.signature(self.model.forward).parameters
        given = {name: tensor for name, tensor in inputs.items() if name in taken}
        extra = {"use_cache": False} if "use_cache" in taken else {}
        with torch.inference_mode():
            output = self.model(**given, **extra)[0].float()
        masks = inputs["attention_mask"].bool()
        return [each[mask].cpu().tolist() for each, mask in zip(output, masks, strict=True)]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, FeatureParameters)
        return [_shaped(np.asarray(each, dtype=np.float32), parameters) for each in outputs]


def _check_dimensions(parameters: FeatureParameters, size: int | None) -> None:
    if parameters.dimensions is not None and size is not None and parameters.dimensions > size:
        raise InvalidInput(
            f"dimensions is {parameters.dimensions:,}; the model's vectors have {size:,}."
        )


def _cut(full_size: int, size: int, parameters: FeatureParameters) -> list[str]:
    """A warning of what is cut off. Raises InvalidInput where nothing may be."""
    if full_size <= size:
        return []
    if not parameters.truncate:
        raise InvalidInput(
            f"the text has {full_size:,} tokens; the model takes {size:,}. Shorten it, or let it "
            "be cut off (truncate)."
        )
    return [
        f"was cut from {full_size:,} to {size:,} tokens, which is all that the model takes at once."
    ]


def _shaped(
    vectors: NDArray[np.float32], parameters: FeatureParameters, usual: int | None = None
) -> list[list[float]]:
    vectors = vectors[:, : parameters.dimensions or usual]
    if parameters.normalize:
        vectors = _unit(vectors)
    shaped: list[list[float]] = vectors.tolist()
    return shaped


def _unit(vectors: NDArray[np.float32]) -> NDArray[np.float32]:
    lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
    unit: NDArray[np.float32] = vectors / np.maximum(lengths, LENGTH_LEAST)
    return unit


def load(folder: Path, options: Options) -> SentenceFeatures | TokenFeatures:
    if modules_of(folder):
        return SentenceFeatures(load_sentence_transformer(folder, options), options)
    # Of T5 and its kin only the encoder reads; the pipeline refuses them whole.
    family = str(read_config(folder).get("model_type"))
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(family, "")
    auto = AutoModelForTextEncoding if encoder.endswith("EncoderModel") else AutoModel
    model = load_model(auto, folder, options, task=Task.FEATURE_EXTRACTION)
    return TokenFeatures(model, load_tokenizer(folder, options), options)
