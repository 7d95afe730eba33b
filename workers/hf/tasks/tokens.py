"""Tokens of a text: which entities they are part of, and which ones a mask stands for."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import (
    AutoModelForMaskedLM,
    AutoModelForTokenClassification,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from shared.errors import InvalidInput, Permanent
from shared.hf.task import TaskParameters
from shared.hf.tokens import (
    FILL_MASK,
    TOKEN_CLASSIFICATION,
    FillMaskParameters,
    TokenClassificationParameters,
)
from workers.hf.task import PreparedInput, Row, TextTask, Watch
from workers.hf.text import Tokens, cut_warning, encode, labels_of, logits
from workers.models.load import LoadOptions, load_model, load_tokenizer

# Token classification: the entities of a text, with their places in it.
#
# Nothing of a long text is lost: it is judged in windows that overlap, and an entity that two
# windows have is given once. Only tokenizers that do not know positions (slow ones) make it be cut,
# with a warning.

# Judged tokens to entities, word for word as transformers' pipeline of token classification
# does it: tokens that make a word are brought to agree, neighbours of one kind make an
# entity.

Strategy = Literal["none", "simple", "first", "average", "max"]
BY_WORDS = frozenset({"first", "average", "max"})


@dataclass(frozen=True, kw_only=True)
class Token:
    """`start` and `end` are places in the text, unknown to slow tokenizers."""

    index: int
    id: int
    start: int | None
    end: int | None


@dataclass(frozen=True, kw_only=True)
class _Piece:
    """A token or a word: what it says, and the probability of each label."""

    word: str
    scores: NDArray[np.float32]
    index: int
    start: int | None
    end: int | None
    is_subword: bool = False


def entities(
    text: str,
    tokens: Sequence[Token],
    scores: NDArray[np.float32],
    *,
    labels: Mapping[int, str],
    tokenizer: PreTrainedTokenizerBase,
    strategy: Strategy,
    ignored: Sequence[str],
) -> list[dict[str, Any]]:
    """What one window of a text tells; `scores` has a row of probabilities for each token."""
    marked = tokenizer.is_fast and _marks_subwords(tokenizer)
    pieces = [
        _piece(text, token, row, tokenizer, marked)
        for token, row in zip(tokens, scores, strict=True)
    ]
    if strategy in BY_WORDS:
        pieces = _words(pieces, tokenizer, strategy)
    spans = [_entity(piece, labels) for piece in pieces]
    if strategy != "none":
        spans = _groups(spans, tokenizer)
    # A label may be ignored by its own name, or by that of its group.
    key = "entity" if strategy == "none" else "entity_group"
    return [span for span in spans if span[key] not in ignored]


def merged(spans: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entities of overlapping windows: of those that overlap the longest is kept, and of equally
    long ones the surest."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(spans, key=lambda span: span["start"]):
        if not kept or not kept[-1]["start"] <= entity["start"] < kept[-1]["end"]:
            kept.append(entity)
        elif _weight(entity) > _weight(kept[-1]):
            kept[-1] = entity
    return kept


def _weight(entity: dict[str, Any]) -> tuple[int, float]:
    return entity["end"] - entity["start"], entity["score"]


def _piece(
    text: str,
    token: Token,
    scores: NDArray[np.float32],
    tokenizer: PreTrainedTokenizerBase,
    marks_subwords: bool,
) -> _Piece:
    word: Any = tokenizer.convert_ids_to_tokens(token.id)
    is_subword = False
    if token.start is not None and token.end is not None:
        surface = text[token.start : token.end]
        if token.id == tokenizer.unk_token_id:
            word = surface
        elif marks_subwords:
            is_subword = len(word) != len(surface)
        else:
            # Such tokenizers know no words; what follows no blank is taken to go on with one.
            is_subword = token.start > 0 and " " not in text[token.start - 1 : token.start + 1]
    return _Piece(
        word=word,
        scores=scores,
        index=token.index,
        start=token.start,
        end=token.end,
        is_subword=is_subword,
    )


def _marks_subwords(tokenizer: PreTrainedTokenizerBase) -> bool:
    """Whether tokens that go on with a word look different, as in `Seo ##ul`."""
    model = tokenizer.backend_tokenizer.model
    return bool(getattr(model, "continuing_subword_prefix", None))


def _words(
    pieces: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase, strategy: Strategy
) -> list[_Piece]:
    words: list[list[_Piece]] = []
    for piece in pieces:
        if piece.is_subword and words:
            words[-1].append(piece)
        else:
            words.append([piece])
    return [_word(parts, tokenizer, strategy) for parts in words]


def _word(
    parts: Sequence[_Piece], tokenizer: PreTrainedTokenizerBase, strategy: Strategy
) -> _Piece:
    match strategy:
        case "first":
            scores = parts[0].scores
        case "max":
            scores = max(parts, key=lambda part: part.scores.max()).scores
        case _:
            scores = np.stack([part.scores for part in parts]).mean(axis=0)
    return _Piece(
        word=tokenizer.convert_tokens_to_string([part.word for part in parts]),
        scores=scores,
        index=parts[0].index,
        start=parts[0].start,
        end=parts[-1].end,
    )


def _entity(piece: _Piece, labels: Mapping[int, str]) -> dict[str, Any]:
    best = int(piece.scores.argmax())
    return {
        "entity": labels[best],
        "score": float(piece.scores[best]),
        "index": piece.index,
        "word": piece.word,
        "start": piece.start,
        "end": piece.end,
    }


def _groups(
    spans: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for entity in spans:
        begins, kind = _tag(entity["entity"])
        if groups and not begins and kind == _tag(groups[-1][-1]["entity"])[1]:
            groups[-1].append(entity)
        else:
            groups.append([entity])
    return [_group(parts, tokenizer) for parts in groups]


def _tag(label: str) -> tuple[bool, str]:
    """Whether an entity begins with it, and of what kind it is; labels without B- or I- go on."""
    return label.startswith("B-"), label[2:] if label.startswith(("B-", "I-")) else label


def _group(parts: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase) -> dict[str, Any]:
    return {
        "entity_group": parts[0]["entity"].split("-", 1)[-1],
        "score": float(np.mean([part["score"] for part in parts])),
        "word": tokenizer.convert_tokens_to_string([part["word"] for part in parts]),
        "start": parts[0]["start"],
        "end": parts[-1]["end"],
    }


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


class TokenClassification(TextTask):
    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, TokenClassificationParameters)
        is_fast = self.tokenizer.is_fast
        strategy = parameters.aggregation_strategy
        if strategy in BY_WORDS and not is_fast:
            raise InvalidInput(
                f"the model's tokenizer knows no words, as aggregation_strategy {strategy!r} "
                "would have it; take 'simple' or 'none'."
            )
        limit = None if is_fast else self.window
        [whole] = encode(self.tokenizer, [value], limit=limit, with_offsets=True)
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
        return PreparedInput(rows=rows, warnings=cut_warning([whole]))

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """The entities of each window: far less to keep than the scores of all tokens."""
        del watch  # One pass through an encoder is not worth watching.
        judged = logits(self.model, self.tokenizer, [row.data.row for row in rows])
        outputs = []
        for row, scores in zip(rows, judged, strict=True):
            window: _Window = row.data
            own = scores[[token.index - window.shift for token in window.tokens]]
            outputs.append(
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
        return outputs

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del parameters
        spans = [entity for output in outputs for entity in output]
        return merged(spans) if len(prepared.rows) > 1 else spans

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
    offsets: Sequence[tuple[int | None, int | None]] = whole.offsets or [(None, None)] * whole.size
    return [
        None if special else Token(index=n, id=token, start=start, end=end)
        for n, (token, special, (start, end)) in enumerate(
            zip(whole.inputs["input_ids"], whole.special, offsets, strict=True)
        )
    ]


def load_token_classification(folder: Path, options: LoadOptions) -> TokenClassification:
    model = load_model(
        AutoModelForTokenClassification, folder, options, task=TOKEN_CLASSIFICATION.name
    )
    return TokenClassification(model, load_tokenizer(folder, options), options)


# Filling masks: the likeliest tokens for each mask token of a text, and the texts they make.
#
# A text with several masks gives a list for each. A text that is too long is cut, with a warning;
# then its masks have to be within what is left.

# Logits of a whole vocabulary for every token of a batch would be gigabytes.
LOGITS_LIMIT_BYTES = 256 * 2**20


@dataclass(frozen=True, kw_only=True)
class _MaskedText:
    tokens: Tokens
    positions: list[int]
    targets: list[int] | None
    top_k: int


class FillMask(TextTask):
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        if tokenizer.mask_token_id is None:
            raise Permanent("The model's tokenizer has no mask token: it cannot fill masks.")

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, FillMaskParameters)
        [tokens] = encode(self.tokenizer, [value], limit=self.window)
        ids = tokens.inputs["input_ids"]
        positions = [n for n, token in enumerate(ids) if token == self.tokenizer.mask_token_id]
        warnings = cut_warning([tokens])
        if not positions:
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
        masked = _MaskedText(
            tokens=tokens, positions=positions, targets=targets, top_k=parameters.top_k
        )
        row = Row(size=tokens.size, data=masked)
        return PreparedInput(rows=[row], rest=masked, warnings=warnings)

    def run(self, rows: Sequence[Row], watch: Watch) -> list[Any]:
        """For each mask of each row, its best tokens as `[score, token]`."""
        best: list[Any] = []
        for part in self._parts(rows):
            # Only to be interrupted: leaving out a row of a part would save next to nothing.
            watch()
            judged = logits(self.model, self.tokenizer, [row.data.tokens for row in part])
            best += [_best(scores, row.data) for scores, row in zip(judged, part, strict=True)]
        return best

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        del parameters
        masked: _MaskedText = prepared.rest
        [output] = outputs
        filled = [
            [self._filled(masked, position, score, token) for score, token in best]
            for position, best in zip(masked.positions, output, strict=True)
        ]
        return filled[0] if len(filled) == 1 else filled

    def _parts(self, rows: Sequence[Row]) -> Iterator[Sequence[Row]]:
        """Parts of a batch whose logits fit."""
        per_token = 4 * self.model.config.get_text_config().vocab_size
        longest = max(row.size for row in rows)
        size = max(1, LOGITS_LIMIT_BYTES // (per_token * longest))
        for start in range(0, len(rows), size):
            yield rows[start : start + size]

    def _filled(
        self, masked: _MaskedText, position: int, score: float, token: int
    ) -> dict[str, Any]:
        ids = list(masked.tokens.inputs["input_ids"])
        ids[position] = token
        sequence = self.tokenizer.decode(
            [id_ for id_ in ids if id_ != self.tokenizer.pad_token_id],
            # Without special tokens, other masks would vanish from the text.
            skip_special_tokens=len(masked.positions) == 1,
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


def _best(judged: torch.Tensor, masked: _MaskedText) -> list[list[tuple[float, int]]]:
    scores = judged[masked.positions].softmax(-1)
    if masked.targets is not None:
        scores = scores[:, masked.targets]
    values, tokens = scores.topk(min(masked.top_k, scores.shape[1]))
    if masked.targets is not None:
        tokens = torch.tensor(masked.targets)[tokens]
    return [
        list(zip(best, ids, strict=True))
        for best, ids in zip(values.tolist(), tokens.tolist(), strict=True)
    ]


def load_fill_mask(folder: Path, options: LoadOptions) -> FillMask:
    model = load_model(AutoModelForMaskedLM, folder, options, task=FILL_MASK.name)
    return FillMask(model, load_tokenizer(folder, options), options)
