"""Token classification: the entities of a text, with their places in it.

Nothing of a long text is lost: it is judged in windows that overlap, and what two windows tell of
one place is told once. Only tokenizers that do not know places (slow ones) make it be cut, with a
warning.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from transformers import (
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import InvalidInput
from shared.hf import Task
from shared.hf_parameters import TaskParameters, TokenClassificationParameters
from workers.hf.entities import BY_WORDS, Strategy, Token, entities, merged
from workers.hf.logits import logits
from workers.hf.padding import Tokens, cut_warning, encode, window_tokens
from workers.hf.scores import labels_of
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.weights import load_model, load_tokenizer

# Of a window, for callers who give no `stride`: more than any entity is long.
OVERLAP_FRACTION = 0.25


@dataclass(frozen=True, kw_only=True)
class _Window:
    """A piece of a text as a row for the model. `tokens` are those of the text's own, which the
    row has `shift` places before their index in the whole text."""

    text: str
    row: Tokens
    tokens: Sequence[Token]
    shift: int
    strategy: Strategy
    ignored: Sequence[str]


class TokenClassification(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, TokenClassificationParameters)
        is_fast = self.tokenizer.is_fast
        strategy = parameters.aggregation_strategy
        if strategy in BY_WORDS and not is_fast:
            raise InvalidInput(
                f"the model's tokenizer knows no words, as aggregation_strategy {strategy!r} "
                "would have it; take 'simple' or 'none'."
            )
        limit = None if is_fast else self.window
        [whole] = encode(self.tokenizer, [value], limit=limit, with_places=True)
        own = _own(whole)
        windows = [
            _Window(
                text=value,
                row=row,
                tokens=[token for token in own[part] if token],
                shift=shift,
                strategy=strategy,
                ignored=parameters.ignore_labels,
            )
            for row, part, shift in self._windows(whole, parameters.stride)
        ]
        rows = [Row(size=window.row.size, data=window) for window in windows]
        return Prepared(rows=rows, warnings=cut_warning([whole]))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """The entities of each window: far less to keep than the scores of all tokens."""
        del watch  # One pass through an encoder is not worth watching.
        judged = logits(self.model, self.tokenizer, [row.data.row for row in rows])
        found = []
        for row, each in zip(rows, judged, strict=True):
            window: _Window = row.data
            own = each[[token.index - window.shift for token in window.tokens]]
            found.append(
                entities(
                    window.text,
                    window.tokens,
                    own.softmax(-1).numpy(),
                    labels=labels_of(self.model.config),
                    tokenizer=self.tokenizer,
                    strategy=window.strategy,
                    ignored=window.ignored,
                )
            )
        return found

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del parameters
        found = [entity for output in outputs for entity in output]
        return merged(found) if len(prepared.rows) > 1 else found

    def _windows(self, whole: Tokens, stride: int) -> Iterator[tuple[Tokens, slice, int]]:
        """Rows no longer than the model takes, the part of the whole that each has, and by how
        much it stands there before its place in the whole."""
        if self.window is None or whole.size <= self.window:
            yield whole, slice(None), 0
            return
        first = whole.special.index(0)
        end = whole.size - whole.special[::-1].index(0)
        room = self.window - (first + whole.size - end)
        overlap = stride or int(room * OVERLAP_FRACTION)
        if overlap >= room:
            raise InvalidInput(
                f"parameters.stride is {stride}; windows of this model hold {room} tokens of a "
                "text, and have to overlap by fewer."
            )
        for start in range(first, end, room - overlap):
            stop = min(start + room, end)
            inputs = {
                name: values[:first] + values[start:stop] + values[end:]
                for name, values in whole.inputs.items()
            }
            size = len(inputs["input_ids"])
            yield Tokens(inputs=inputs, full_size=size), slice(start, stop), start - first
            if stop == end:
                return


def _own(whole: Tokens) -> list[Token | None]:
    """The tokens that stand for the text; None for the special ones around it."""
    places: Sequence[tuple[int | None, int | None]] = whole.places or [(None, None)] * whole.size
    return [
        None if special else Token(index=n, id=token, start=start, end=end)
        for n, (token, special, (start, end)) in enumerate(
            zip(whole.inputs["input_ids"], whole.special, places, strict=True)
        )
    ]


def load(folder: Path, options: Options) -> TokenClassification:
    model = load_model(
        AutoModelForTokenClassification, folder, options, task=Task.TOKEN_CLASSIFICATION
    )
    return TokenClassification(model, load_tokenizer(folder, options), options)
