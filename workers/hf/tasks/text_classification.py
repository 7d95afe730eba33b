"""Text classification: every label of a text with its score, best first.

The API answers a text with all labels unless `top_k` says how many. One that is too long for the
model is judged by its beginning, with a warning.
"""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForSequenceClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.kinds.hf import ClassificationParameters, Task, TaskParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.text import cut_warning, encode, group, labelled, logits, window_tokens
from workers.models.load import load_model, load_tokenizer


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


def load(folder: Path, options: Options) -> TextClassification:
    model = load_model(
        AutoModelForSequenceClassification, folder, options, task=Task.TEXT_CLASSIFICATION
    )
    return TextClassification(model, load_tokenizer(folder, options), options)
