"""A context as a model for question answering reads it: in windows that overlap, each with the
question beside it, and where each token of the context lies in it.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import PreTrainedTokenizerBase

from workers.hf.padding import Tokens
from workers.hf.spans import Text


@dataclass(frozen=True, kw_only=True)
class Reading:
    """A window of a context beside the question: a row."""

    tokens: Tokens
    first: int
    """The number of its first token of the context among all of the context's."""
    context: slice
    """Which of the row's tokens are the context's."""
    no_answer: int | None
    """Which of them stands for no answer, if the model has such a token."""


def read(
    tokenizer: PreTrainedTokenizerBase,
    question: str,
    context: str,
    *,
    size: int,
    overlap: int,
    by_word: bool,
    is_question_first: bool,
) -> tuple[list[Reading], Text]:
    """Windows of at most `size` tokens, of which they share `overlap` of the context's; and the
    context's tokens, each once."""
    encoded = tokenizer(
        question if is_question_first else context,
        context if is_question_first else question,
        truncation="only_second" if is_question_first else "only_first",
        max_length=size,
        stride=overlap,
        return_overflowing_tokens=True,
        return_offsets_mapping=True,
        verbose=False,
    )
    readings: list[Reading] = []
    offsets: list[tuple[int, int]] = []
    words: list[int | None] = []
    encodings: Sequence[Encoding] = encoded.encodings or ()
    for encoding in encodings:
        shared = overlap if readings else 0
        first = len(offsets) - shared
        reading = _reading(tokenizer, encoding, side=int(is_question_first), first=first)
        readings.append(reading)
        new = slice(reading.context.start + shared, reading.context.stop)
        offsets += encoding.offsets[new]
        words += encoding.word_ids[new]
    return readings, _text(context, offsets, words if by_word else [None] * len(words))


def _reading(
    tokenizer: PreTrainedTokenizerBase, encoding: Encoding, *, side: int, first: int
) -> Reading:
    ids = encoding.ids
    inputs = {"input_ids": ids, "attention_mask": encoding.attention_mask}
    if "token_type_ids" in tokenizer.model_input_names:
        inputs["token_type_ids"] = encoding.type_ids
    context = [n for n, sequence in enumerate(encoding.sequence_ids) if sequence == side]
    cls = tokenizer.cls_token_id
    return Reading(
        tokens=Tokens(inputs=inputs, full_size=len(ids)),
        first=first,
        context=slice(context[0], context[-1] + 1) if context else slice(0, 0),
        no_answer=ids.index(cls) if cls in ids else None,
    )


def _text(context: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None]) -> Text:
    """Tokens begin and end where their words do, if they are of any, without white space around."""
    bounds = np.array(offsets, dtype=np.int64).reshape(-1, 2)
    # White space may be a token, which trimming leaves empty in its place; a token that is nowhere
    # in the text is empty at its very beginning.
    before = np.maximum.accumulate(np.append(0, bounds[:-1, 1]))[: len(bounds)]
    is_nowhere = (bounds[:, 0] >= bounds[:, 1]) & (bounds[:, 0] < before)
    bounds = _whole_words(bounds, words)
    solid = np.flatnonzero([not character.isspace() for character in context])
    starts = np.append(solid, len(context))[np.searchsorted(solid, bounds[:, 0])]
    ends = np.append(0, solid + 1)[np.searchsorted(solid, bounds[:, 1])]
    starts[is_nowhere], ends[is_nowhere] = len(context), 0
    return Text(text=context, starts=starts, ends=ends)


def _whole_words(bounds: NDArray[np.int64], words: Sequence[int | None]) -> NDArray[np.int64]:
    """A word is whole here even where the end of a window cuts it."""
    whole: dict[int, tuple[int, int]] = {}
    for word, (start, end) in zip(words, bounds.tolist(), strict=True):
        if word is not None and start < end:
            whole[word] = whole.get(word, (start, end))[0], end
    spans = [
        own if word is None else whole.get(word, own)
        for word, own in zip(words, bounds.tolist(), strict=True)
    ]
    return np.array(spans, dtype=np.int64).reshape(-1, 2)
