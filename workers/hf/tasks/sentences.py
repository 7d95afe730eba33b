"""Vectors of texts, how near two texts are by theirs, and texts ranked by a cross-encoder."""

import inspect
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from sentence_transformers import SentenceTransformer
from sentence_transformers.base.modules import Normalize
from tokenizers import Tokenizer
from torch import nn
from transformers import (
    AutoModel,
    AutoModelForSequenceClassification,
    AutoModelForTextEncoding,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES

from shared.errors import InvalidInput, Permanent, WrongTask
from shared.hf.sentences import (
    FEATURE_EXTRACTION,
    TEXT_RANKING,
    FeatureParameters,
    RankingParameters,
)
from shared.hf.task import TaskParameters
from workers.hf.task import LocalTask, PreparedInput, Row, TextTask
from workers.hf.text import (
    Side,
    Tokens,
    beginning,
    can_pad,
    encode,
    group,
    logits,
    pad,
    window_tokens,
)
from workers.models.checkpoints import modules_of, read_config, read_object
from workers.models.devices import unit
from workers.models.load import LoadOptions, load_model, load_sentence_transformer, load_tokenizer

# Feature extraction: one vector of a text from a sentence-transformers model, and a vector of
# each token from any other, as transformers' pipeline gives them (in a list of one text).
#
# `dimensions` cuts vectors, which makes sense for models that were trained for it (Matryoshka);
# `normalize` gives them length 1 afterwards, and false leaves out what normalization the model has.

# Texts to vectors with a sentence-transformers model: what `SentenceTransformer.encode`
# gives, a row at a time, so that rows of different jobs share batches.
#
# Only the last module is not run if it just normalizes: whether vectors get length 1 is
# decided per job, and in float32, whatever the model computes in.


@dataclass(frozen=True, kw_only=True)
class SentenceInput:
    """A row's data."""

    text: str
    prompt: str
    cut_side: Side


@dataclass(frozen=True, kw_only=True)
class MeasuredRow:
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

    def row(self, text: str, prompt: str = "", *, cut_side: Side = "right") -> MeasuredRow:
        full_size = self._count(prompt + text)
        size = full_size if self.window is None else min(full_size, self.window)
        # Prompts are left out of some models' mean, and cut with the batch.
        group = f"{cut_side} {prompt}"
        data = SentenceInput(text=text, prompt=prompt, cut_side=cut_side)
        return MeasuredRow(row=Row(size=size, data=data, group=group), full_size=full_size)

    def _count(self, text: str) -> int:
        if isinstance(self._tokenizer, Tokenizer):
            return max(1, len(self._tokenizer.encode(text).ids))
        return len(self._tokenizer(text, verbose=False)["input_ids"])

    def vectors(self, rows: Sequence[Row]) -> list[list[float]]:
        """In float32, before any normalization by a last module. The rows are of one group."""
        first: SentenceInput = rows[0].data
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


class SentenceFeatures(LocalTask):
    """A vector of the whole text: a list of numbers."""

    model: SentenceTransformer

    def __init__(self, model: SentenceTransformer, options: LoadOptions) -> None:
        super().__init__(model, options)
        self.sentences = Sentences(model)

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, FeatureParameters)
        _check_dimensions(parameters, self.sentences.size)
        prompt = self.sentences.prompt(parameters.prompt_name)
        measured = self.sentences.row(value, prompt, cut_side=parameters.truncation_direction)
        warnings = _cut(measured.full_size, measured.row.size, parameters)
        return PreparedInput(rows=[measured.row], warnings=warnings)

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return self.sentences.vectors(rows)

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared
        assert isinstance(parameters, FeatureParameters)
        vectors = np.asarray(outputs, dtype=np.float32)
        if self.sentences.is_unit and parameters.normalize is not False:
            vectors = unit(vectors)
        [vector] = _shaped(vectors, parameters, self.sentences.dimensions)
        return vector


class TokenFeatures(TextTask):
    """A vector of every token, special ones too: a list of one list of lists of numbers."""

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.size: int | None = getattr(model.config.get_text_config(), "hidden_size", None)

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
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
        return PreparedInput(rows=[Row(size=tokens.size, data=tokens)], warnings=warnings)

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        tokens = [row.data for row in rows]
        if can_pad(self.model, self.tokenizer):
            return self._batch(tokens)
        return [output for row in tokens for output in self._batch([row])]

    def _batch(self, tokens: Sequence[Tokens]) -> list[Any]:
        inputs = pad(self.tokenizer, tokens, self.model.device)
        taken = inspect.signature(self.model.forward).parameters
        arguments = {name: tensor for name, tensor in inputs.items() if name in taken}
        extra = {"use_cache": False} if "use_cache" in taken else {}
        with torch.inference_mode():
            output = self.model(**arguments, **extra)[0].float()
        masks = inputs["attention_mask"].bool()
        return [vectors[mask].cpu().tolist() for vectors, mask in zip(output, masks, strict=True)]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del prepared
        assert isinstance(parameters, FeatureParameters)
        return [_shaped(np.asarray(output, dtype=np.float32), parameters) for output in outputs]


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
        vectors = unit(vectors)
    shaped: list[list[float]] = vectors.tolist()
    return shaped


def load_feature_extraction(folder: Path, options: LoadOptions) -> SentenceFeatures | TokenFeatures:
    if modules_of(folder):
        return SentenceFeatures(load_sentence_transformer(folder, options), options)
    # Of T5 and its kin only the encoder reads; the pipeline refuses them whole.
    family = str(read_config(folder).get("model_type"))
    encoder = MODEL_FOR_TEXT_ENCODING_MAPPING_NAMES.get(family, "")
    auto = AutoModelForTextEncoding if encoder.endswith("EncoderModel") else AutoModel
    model = load_model(auto, folder, options, task=FEATURE_EXTRACTION.name)
    return TokenFeatures(model, load_tokenizer(folder, options), options)


# Sentence similarity: the cosine of the source sentence's vector with that of each sentence.
#
# A sentence that an input has several times is one row. A model that is not one of
# sentence-transformers becomes one with mean pooling, as that library does it, with a
# warning.


class SentenceSimilarity(LocalTask):
    model: SentenceTransformer

    def __init__(
        self, model: SentenceTransformer, options: LoadOptions, *, is_for_sentences: bool
    ) -> None:
        super().__init__(model, options)
        self.sentences = Sentences(model)
        self.prompt = self.sentences.prompt(None)
        self.is_for_sentences = is_for_sentences

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        del parameters  # There are none.
        texts = [value["source_sentence"], *value["sentences"]]
        distinct = {text: n for n, text in enumerate(dict.fromkeys(texts))}
        measured = [self.sentences.row(text, self.prompt) for text in distinct]
        warnings = [] if self.is_for_sentences else [_NOT_TRAINED]
        return PreparedInput(
            rows=[sentence.row for sentence in measured],
            rest=[distinct[text] for text in texts],
            warnings=warnings + _cut_warning(measured),
        )

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        return self.sentences.vectors(rows)

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del parameters
        vectors = unit(np.asarray(outputs, dtype=np.float64)[:, : self.sentences.dimensions])
        source, *others = prepared.rest
        cosines: list[float] = (vectors[others] @ vectors[source]).clip(-1, 1).tolist()
        return cosines


_NOT_TRAINED = (
    "was judged by a model that is not known to be trained for sentences (it has no modules.json): "
    "vectors of sentences are made from those of their tokens as sentence-transformers does it."
)


def _cut_warning(measured: Sequence[MeasuredRow]) -> list[str]:
    cut = [sentence for sentence in measured if sentence.is_cut]
    if not cut:
        return []
    longest = max(cut, key=lambda sentence: sentence.full_size)
    return [
        f"has {len(cut):,} of {len(measured):,} different sentences cut to {longest.row.size:,} "
        f"tokens, which is all that the model takes at once; the longest had "
        f"{longest.full_size:,}."
    ]


def load_sentence_similarity(folder: Path, options: LoadOptions) -> SentenceSimilarity:
    model = load_sentence_transformer(folder, options)
    return SentenceSimilarity(model, options, is_for_sentences=bool(modules_of(folder)))


# Text ranking: texts by how well they answer a query, scored by a cross-encoder.
#
# Scores are those of sentence-transformers' `CrossEncoder.predict`: the logit of the pair behind
# the activation that the model was saved with, or the logit itself for `raw_scores`. Of a pair that
# is too long, the longer part is cut, with a warning.

SAVED_WITH = "config_sentence_transformers.json"
ACTIVATIONS: dict[str, type[nn.Module]] = {
    activation.__name__: activation
    for activation in (nn.Identity, nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LogSigmoid, nn.Hardsigmoid)
}


class TextRanking(TextTask):
    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: LoadOptions,
        *,
        activation: nn.Module,
        prompt: str = "",
    ) -> None:
        super().__init__(model, tokenizer, options)
        self.activation = activation
        self.prompt = prompt

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        del parameters  # They only matter to `finish`.
        texts = value["texts"]
        query, _ = beginning(self.tokenizer, self.prompt + value["query"], self.window)
        encoded = encode(self.tokenizer, [query] * len(texts), texts, limit=self.window)
        rows = [Row(size=t.size, data=t, group=group(self.model, t)) for t in encoded]
        return PreparedInput(rows=rows, rest=texts, warnings=_warnings(encoded))

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        scores = logits(self.model, self.tokenizer, [row.data for row in rows])
        return [score.item() for score in scores]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        assert isinstance(parameters, RankingParameters)
        scores = torch.tensor(outputs)
        if not parameters.raw_scores:
            scores = self.activation(scores)
        ranked = sorted(enumerate(scores.tolist()), key=lambda pair: -pair[1])
        return [
            {"index": n, "score": score}
            | ({"text": prepared.rest[n]} if parameters.return_text else {})
            for n, score in ranked[: parameters.top_k]
        ]


def _warnings(encoded: Sequence[Tokens]) -> list[str]:
    cut = [n for n, tokens in enumerate(encoded) if tokens.is_cut]
    if not cut:
        return []
    longest = max(cut, key=lambda n: encoded[n].full_size)
    return [
        f"has {len(cut):,} of {len(encoded):,} texts that were cut, with the query, to "
        f"{encoded[longest].size:,} tokens, which is all that the model takes at once; the longest "
        f"(texts.{longest}) from {encoded[longest].full_size:,}."
    ]


def load_text_ranking(folder: Path, options: LoadOptions) -> TextRanking:
    model = load_model(AutoModelForSequenceClassification, folder, options, task=TEXT_RANKING.name)
    if model.config.num_labels != 1:
        raise WrongTask(
            f"The model gives {model.config.num_labels} scores to a pair of texts; text-ranking "
            "needs a cross-encoder that gives one, such as cross-encoder/ms-marco-MiniLM-L6-v2."
        )
    saved = read_object(folder / SAVED_WITH)
    prompts = saved.get("prompts") or {}
    return TextRanking(
        model,
        load_tokenizer(folder, options),
        options,
        activation=_activation(saved, model.config),
        prompt=prompts.get(saved.get("default_prompt_name")) or "",
    )


def _activation(saved: dict[str, Any], config: PreTrainedConfig) -> nn.Module:
    """By the name that sentence-transformers saved: today in a file of its own, before version 4
    in the model's configuration."""
    name = (
        saved.get("activation_fn")
        or (getattr(config, "sentence_transformers", None) or {}).get("activation_fn")
        or getattr(config, "sbert_ce_default_activation_function", None)
        or "torch.nn.Sigmoid"
    )
    package, _, last = name.rpartition(".")
    if package.split(".")[0] != "torch" or last not in ACTIVATIONS:
        raise Permanent(
            f"The model's scores go through {name}; of torch.nn, {', '.join(ACTIVATIONS)} are "
            "known, and code of the model's own is not run. Rank with another model."
        )
    return ACTIVATIONS[last]()
