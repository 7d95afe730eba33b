"""Filling masks: the likeliest tokens for each mask token of a text, and the texts they make.

A text with several masks gives a list for each. A text that is too long is cut, with a warning;
then its masks have to be within what is left.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForMaskedLM, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput, Permanent
from shared.kinds.hf import FillMaskParameters, Task, TaskParameters
from workers.hf.task import LocalTask, Options, Prepared, Row, Watch
from workers.hf.text import Tokens, cut_warning, encode, logits, window_tokens
from workers.models.load import load_model, load_tokenizer

# Logits of a whole vocabulary for every token of a batch would be gigabytes.
LOGITS_LIMIT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class _Masked:
    tokens: Tokens
    places: list[int]
    targets: list[int] | None
    top_k: int


class FillMask(LocalTask):
    model: PreTrainedModel

    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: Options
    ) -> None:
        super().__init__(model, options)
        self.tokenizer = tokenizer
        self.window = window_tokens(model, tokenizer)
        if tokenizer.mask_token_id is None:
            raise Permanent("The model's tokenizer has no mask token: it cannot fill masks.")

    def prepare(self, value: Any, parameters: TaskParameters) -> Prepared:
        assert isinstance(parameters, FillMaskParameters)
        [tokens] = encode(self.tokenizer, [value], limit=self.window)
        ids = tokens.inputs["input_ids"]
        places = [n for n, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        warnings = cut_warning([tokens])
        if not places:
            mask = self.tokenizer.mask_token
            raise InvalidInput(
                f"no {mask} is within the first {tokens.size:,} of {tokens.full_size:,} tokens, "
                "which is all that the model takes at once. Shorten the text."
                if tokens.is_cut
                else f"the text has no mask to fill. Write {mask} where a word is wanted."
            )
        targets = None
        if parameters.targets is not None:
            targets, unknown = self._targets(parameters.targets)
            warnings += unknown
        masked = _Masked(tokens=tokens, places=places, targets=targets, top_k=parameters.top_k)
        row = Row(size=tokens.size, data=masked)
        return Prepared(rows=[row], rest=masked, warnings=warnings)

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """For each mask of each row, its best tokens as `[score, token]`."""
        best: list[Any] = []
        for part in self._parts(rows):
            # Only to be interrupted: leaving out a row of a part would save next to nothing.
            watch()
            judged = logits(self.model, self.tokenizer, [row.data.tokens for row in part])
            best += [_best(each, row.data) for each, row in zip(judged, part, strict=True)]
        return best

    def finish(self, prepared: Prepared, outputs: Sequence[Any], parameters: TaskParameters) -> Any:
        del parameters
        masked: _Masked = prepared.rest
        [output] = outputs
        filled = [
            [self._filled(masked, place, score, token) for score, token in best]
            for place, best in zip(masked.places, output, strict=True)
        ]
        return filled[0] if len(filled) == 1 else filled

    def _parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Parts of a batch whose logits fit."""
        per_token = 4 * self.model.config.get_text_config().vocab_size
        longest = max(row.size for row in rows)
        size = max(1, LOGITS_LIMIT_BYTES // (per_token * longest))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _filled(self, masked: _Masked, place: int, score: float, token: int) -> dict[str, Any]:
        ids = list(masked.tokens.inputs["input_ids"])
        ids[place] = token
        sequence = self.tokenizer.decode(
            [each for each in ids if each != self.tokenizer.pad_token_id],
            # Without special tokens, other masks would vanish from the text.
            skip_special_tokens=len(masked.places) == 1,
        )
        return {
            "score": score,
            "token": token,
            "token_str": self.tokenizer.decode([token]),
            "sequence": sequence,
        }

    def _targets(self, targets: Sequence[str]) -> tuple[list[int], list[str]]:
        """The tokens of the words that the caller allows, and what to tell of words without one."""
        vocabulary = self.tokenizer.get_vocab()
        ids: list[int] = []
        warnings = []
        for target in targets:
            if target in vocabulary:
                ids.append(vocabulary[target])
                continue
            parts = self.tokenizer(target, add_special_tokens=False, verbose=False)["input_ids"]
            if parts and parts[0] != self.tokenizer.unk_token_id:
                ids.append(parts[0])
                taken = self.tokenizer.convert_ids_to_tokens(parts[0])
                warnings.append(
                    f"was filled with {taken!r} for the target {target!r}, whose first token that "
                    "is: the model knows no single token of it."
                )
            else:
                warnings.append(f"was not filled with {target!r}: the model has no token of it.")
        if not ids:
            raise InvalidInput("parameters.targets has no word that the model has a token for.")
        return list(dict.fromkeys(ids)), warnings


def _best(judged: torch.Tensor, masked: _Masked) -> list[list[tuple[float, int]]]:
    scores = judged[masked.places].softmax(-1)
    if masked.targets is not None:
        scores = scores[:, masked.targets]
    values, tokens = scores.topk(min(masked.top_k, scores.shape[1]))
    if masked.targets is not None:
        tokens = torch.tensor(masked.targets)[tokens]
    return [
        list(zip(best, ids, strict=True))
        for best, ids in zip(values.tolist(), tokens.tolist(), strict=True)
    ]


def load(folder: Path, options: Options) -> FillMask:
    model = load_model(AutoModelForMaskedLM, folder, options, task=Task.FILL_MASK)
    return FillMask(model, load_tokenizer(folder, options), options)
