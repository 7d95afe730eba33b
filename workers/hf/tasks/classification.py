"""Zero-shot classification: which of the caller's labels fit a text, by a model of inference.

Each label makes a hypothesis of the template, and a row with the text; the score is how far the
text entails it. A text that is too long is cut, never the hypothesis.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import WrongTask
from shared.kinds.hf import ClassificationParameters, Task, TaskParameters, ZeroShotParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.text import (
    beginning,
    cut_warning,
    encode,
    group,
    labelled,
    labels_of,
    logits,
    window_tokens,
)
from workers.models.load import load_model, load_tokenizer

# Text classification: every label of a text with its score, best first.
#
# The API answers a text with all labels unless `top_k` says how many. One that is too long
# for the model is judged by its beginning, with a warning.


class TextClassification(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        del parameters  # They only matter to `finish`.
        [tokens] = encode(self.tokenizer, [value], limit=self.window)
        row = Row(size=tokens.size, data=tokens, group=group(self.model, tokens))
        return Prepared(rows=[row], warnings=cut_warning([tokens]))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        return [
            each.tolist() for each in logits(self.model, self.tokenizer, [r.data for r in rows])
        ]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, ClassificationParameters)
        [output] = outputs
        return labelled(output, self.model.config, parameters.function_to_apply, parameters.top_k)

    def alone(self, output: Any) -> Any:
        """The API answers a single text as if it came in a list."""
        return [output]


def load_text_classification(folder: Path, options: Options) -> TextClassification:
    model = load_model(
        AutoModelForSequenceClassification, folder, options, task=Task.TEXT_CLASSIFICATION
    )
    return TextClassification(model, load_tokenizer(folder, options), options)


class ZeroShotClassification(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)
        self.entailment = _entailment(model)
        # Where a model knows more than two relations, the first is contradiction, by custom.
        self.contradiction = -1 if self.entailment == 0 else 0

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, ZeroShotParameters)
        labels = parameters.candidate_labels
        start, left_out = beginning(self.tokenizer, value, self.window)
        encoded = encode(
            self.tokenizer,
            [start] * len(labels),
            # Not `format`: other braces of a template are text.
            [parameters.hypothesis_template.replace("{}", label) for label in labels],
            limit=self.window,
            truncation="only_first",
        )
        rows = [Row(size=t.size, data=t, group=group(self.model, t)) for t in encoded]
        return Prepared(rows=rows, warnings=cut_warning(encoded, left_out=left_out))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        del watch  # One pass through an encoder is not worth watching.
        scores = logits(self.model, self.tokenizer, [row.data for row in rows])
        return [[float(each[self.contradiction]), float(each[self.entailment])] for each in scores]

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del prepared
        assert isinstance(parameters, ZeroShotParameters)
        labels = parameters.candidate_labels
        judged = torch.tensor(outputs)
        if parameters.multi_label or len(labels) == 1:
            scores = judged.softmax(1)[:, 1]
        else:
            scores = judged[:, 1].softmax(0)
        pairs = zip(labels, scores.tolist(), strict=True)
        return [
            {"label": label, "score": score}
            for label, score in sorted(pairs, key=lambda each: -each[1])
        ]


def _entailment(model: PreTrainedModel) -> int:
    labels = labels_of(model.config)
    for n, label in labels.items():
        if label.lower().startswith("entail"):
            return n
    known = ", ".join(labels.values())
    raise WrongTask(
        f"The model tells {known}, and nothing of entailment: zero-shot-classification needs a "
        "model of natural language inference, such as facebook/bart-large-mnli. If this is one, "
        "name its label `entailment` in `id2label` of its config.json."
    )


def load_zero_shot(folder: Path, options: Options) -> ZeroShotClassification:
    model = load_model(
        AutoModelForSequenceClassification, folder, options, task=Task.ZERO_SHOT_CLASSIFICATION
    )
    return ZeroShotClassification(model, load_tokenizer(folder, options), options)
