"""Text ranking: texts by how well they answer a query, scored by a cross-encoder.

Scores are those of sentence-transformers' `CrossEncoder.predict`: the logit of the pair behind the
activation that the model was saved with, or the logit itself for `raw_scores`. Of a pair that is
too long, the longer part is cut, with a warning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from torch import nn
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import Permanent, WrongTask
from shared.kinds.hf import RankingParameters, Task, TaskParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.text import Tokens, beginning, encode, group, logits, window_tokens
from workers.models.checkpoints import read_object
from workers.models.load import load_model, load_tokenizer

SAVED_WITH = "config_sentence_transformers.json"
ACTIVATIONS: dict[str, type[nn.Module]] = {
    each.__name__: each
    for each in (nn.Identity, nn.Sigmoid, nn.Tanh, nn.ReLU, nn.LogSigmoid, nn.Hardsigmoid)
}


class TextRanking(LocalTask):
    model: PreTrainedModel

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        options: Options,
        *,
        activation: nn.Module,
        prompt: str = "",
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)
        self.activation = activation
        self.prompt = prompt

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        del parameters  # They only matter to `finish`.
        texts = value["texts"]
        query, _ = beginning(self.tokenizer, self.prompt + value["query"], self.window)
        encoded = encode(self.tokenizer, [query] * len(texts), texts, limit=self.window)
        rows = [Row(size=t.size, data=t, group=group(self.model, t)) for t in encoded]
        return Prepared(rows=rows, rest=texts, warnings=_warnings(encoded))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        scores = logits(self.model, self.tokenizer, [row.data for row in rows])
        return [each.item() for each in scores]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        assert isinstance(parameters, RankingParameters)
        scores = torch.tensor(outputs)
        if not parameters.raw_scores:
            scores = self.activation(scores)
        ranked = sorted(enumerate(scores.tolist()), key=lambda each: -each[1])
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


def load(folder: Path, options: Options) -> TextRanking:
    model = load_model(AutoModelForSequenceClassification, folder, options, task=Task.TEXT_RANKING)
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
