"""Judged tokens to entities, word for word as transformers' pipeline of token classification does
it: tokens that make a word are brought to agree, neighbours of one kind make an entity.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray
from transformers import PreTrainedTokenizerBase

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
    found = [_entity(piece, labels) for piece in pieces]
    if strategy != "none":
        found = _groups(found, tokenizer)
    # A label may be ignored by its own name, or by that of its group.
    key = "entity" if strategy == "none" else "entity_group"
    return [each for each in found if each[key] not in ignored]


def merged(found: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Entities of overlapping windows: of those that overlap the longest is kept, and of equally
    long ones the surest."""
    kept: list[dict[str, Any]] = []
    for entity in sorted(found, key=lambda each: each["start"]):
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
    found: Sequence[dict[str, Any]], tokenizer: PreTrainedTokenizerBase
) -> list[dict[str, Any]]:
    groups: list[list[dict[str, Any]]] = []
    for entity in found:
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
