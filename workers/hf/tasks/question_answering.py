"""Extractive question answering: the span of a context that answers a question.

A context that is too long for the model is read in windows that overlap, each with the question
beside it; windows are rows, and those of all jobs share batches. Positions are in code points of
the context as it came, and `context[start:end]` is the answer."""

import base64
import inspect
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Encoding
from transformers import AutoModelForQuestionAnswering, PreTrainedModel, PreTrainedTokenizerBase

from shared.errors import InvalidInput, Permanent
from shared.hf.question_answering import QUESTION_ANSWERING, QuestionAnsweringParameters
from shared.hf.task import TaskParameters
from workers.hf.task import PreparedInput, Row, TextTask
from workers.hf.text import Tokens, can_pad, pad
from workers.models.load import LoadOptions, load_model, load_tokenizer

# The best spans of a text, from logits for where an answer starts and where it ends.
#
# The text has been read in windows that overlap. Windows are compared by their logits
# themselves, as BERT's `run_squad.py` does: the span of tokens s to e of a window has the
# weight exp(start[s] + end[e]), and counts in the window that gives it the most. That there
# is no answer has the weight exp(start[CLS] + end[CLS]) of the window where this is least: a
# question is unanswerable only if every window says so.
#
# Scores are shares of one sum over all windows ("shared normalization": Clark and Gardner
# 2018, "Simple and Effective Multi-Paragraph Reading Comprehension"):
#
#     score = exp(start[s]) / (no_start + sum of exp(start) over the text's tokens)
#           * exp(end[e])   / (no_end   + sum of exp(end)   over the text's tokens)
#
# A token in the overlap of windows is summed once, with its largest logit, so that an answer
# is not worth less for being seen twice. Scores lie between 0 and 1, and those of all spans
# and of no answer together never exceed 1. Where the text fits into one window they are those
# of transformers 4's question-answering pipeline. For longer texts that pipeline normalized
# each window by itself, by which the best span of a window without an answer can weigh as
# much as the answer in another, and added up what windows gave to the same text, by which
# scores could exceed 1.

Logits = NDArray[np.float64]


@dataclass(frozen=True, kw_only=True)
class Window:
    """What the model says of some consecutive tokens of the text."""

    first: int
    """The number of its first token among all of the text's."""
    starts: Logits
    ends: Logits
    no_answer: tuple[float, float] | None
    """The logits of start and end at the token that stands for no answer, if the model has one."""


@dataclass(frozen=True, kw_only=True)
class ContextText:
    """A text and its tokens, by where an answer that starts or ends with the token would do so.

    Positions are of characters (code points), the end behind the last one. Spans that are empty by
    them are no answers.
    """

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class SpanAnswer:
    """Empty (0 to 0) where there is no answer."""

    score: float
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _AnswerSpan:
    weight: float
    start: int
    end: int

    @property
    def rank(self) -> tuple[float, int, int]:
        return -self.weight, self.start, self.end


def best_answers(
    text: ContextText,
    windows: Sequence[Window],
    *,
    top_k: int,
    max_tokens: int,
    may_be_none: bool,
) -> list[SpanAnswer]:
    """At most `top_k` different answers, best first; the earlier and shorter of equally good ones.

    Answers whose texts differ in no more than case are one, where the best of them stands.
    `may_be_none` lets no answer be one.
    """
    best: dict[str, _AnswerSpan] = {}
    for window in windows:
        for words, span in _best_spans(text, window, top_k, max_tokens):
            if words not in best or span.rank < best[words].rank:
                best[words] = span
    spans = sorted(best.values(), key=lambda span: span.rank)[:top_k]
    nones = [window.no_answer for window in windows if window.no_answer is not None]
    none = min(nones, key=sum, default=None)
    total = _log_total(text, windows, none)
    answers = [
        SpanAnswer(score=_share(span.weight, total), start=span.start, end=span.end)
        for span in spans
    ]
    if may_be_none and none is not None:
        answers.append(SpanAnswer(score=_share(sum(none), total), start=0, end=0))
        answers.sort(key=lambda answer: -answer.score)
    return answers[:top_k]


def _best_spans(
    text: ContextText, window: Window, top_k: int, max_tokens: int
) -> Iterator[tuple[str, _AnswerSpan]]:
    """The window's `top_k` best spans of different words, best first."""
    count = len(window.starts)
    tokens = slice(window.first, window.first + count)
    starts, ends = text.starts[tokens], text.ends[tokens]
    width = min(max_tokens, count)
    # Row s, column k: the span of tokens s to s + k.
    last = np.concatenate([window.ends, np.full(width - 1, -np.inf)])
    weights = window.starts[:, None] + np.lib.stride_tricks.sliding_window_view(last, width)
    seen: set[str] = set()
    for n in _descending(weights.ravel(), at_once=4 * top_k):
        s, k = divmod(int(n), width)
        start, end = int(starts[s]), int(ends[s + k])
        words = text.text[start:end].lower()
        if words and words not in seen:
            seen.add(words)
            yield words, _AnswerSpan(weight=float(weights[s, k]), start=start, end=end)
            if len(seen) == top_k:
                return


def _descending(values: Logits, *, at_once: int) -> Iterator[np.int64]:
    """Indices of the finite values, largest first, equal ones in order.

    Few are wanted of many, so they are sorted by and by.
    """
    left = np.flatnonzero(values > -np.inf)
    while left.size:
        take = min(at_once, left.size)
        least = np.partition(values[left], left.size - take)[left.size - take]
        is_next = values[left] >= least
        these = left[is_next]
        yield from these[np.argsort(-values[these], kind="stable")]
        left = left[~is_next]
        at_once *= 4


def _log_total(
    text: ContextText, windows: Sequence[Window], none: tuple[float, float] | None
) -> float:
    """The logarithm of the weights' sum."""
    total = 0.0
    for n, sides in enumerate(([w.starts for w in windows], [w.ends for w in windows])):
        largest = np.full(len(text.starts) + 1, -np.inf)
        for window, logits in zip(windows, sides, strict=True):
            part = largest[window.first : window.first + len(logits)]
            np.maximum(part, logits, out=part)
        largest[-1] = -np.inf if none is None else none[n]
        total += float(np.logaddexp.reduce(largest))
    return total


def _share(weight: float, log_total: float) -> float:
    """Rounding must not lift it over 1."""
    return min(1.0, float(np.exp(weight - log_total)))


# A context as a model for question answering reads it: in windows that overlap, each with the
# question beside it, and where each token of the context lies in it.


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
) -> tuple[list[Reading], ContextText]:
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


def _text(
    context: str, offsets: Sequence[tuple[int, int]], words: Sequence[int | None]
) -> ContextText:
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
    return ContextText(text=context, starts=starts, ends=ends)


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


@dataclass(frozen=True, kw_only=True)
class _Context:
    """What `finish` needs of an input."""

    text: ContextText
    firsts: Sequence[int]
    """With which of the text's tokens each window begins."""


class QuestionAnswering(TextTask):
    def __init__(
        self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, options: LoadOptions
    ) -> None:
        super().__init__(model, tokenizer, options)
        # As transformers 4 has it: models that are padded on the left read the context first.
        self.is_question_first = tokenizer.padding_side == "right"
        # Windows are cut from the front of a context on, wherever the model would cut a text off.
        tokenizer.truncation_side = "right"
        self.taken = inspect.signature(model.forward).parameters

    def prepare(self, value: Any, parameters: TaskParameters) -> PreparedInput:
        assert isinstance(parameters, QuestionAnsweringParameters)
        question, warnings = self._cut(value["question"].lstrip(), parameters.max_question_len)
        size = min(parameters.max_seq_len, self.window or parameters.max_seq_len)
        readings, text = read(
            self.tokenizer,
            question,
            value["context"],
            size=size,
            overlap=self._overlap(question, size, parameters),
            by_word=parameters.align_to_words,
            is_question_first=self.is_question_first,
        )
        if not np.any(text.starts < text.ends):
            raise InvalidInput("the model's tokenizer finds nothing to read in the context.")
        is_set = "max_seq_len" in parameters.model_fields_set
        if is_set and size < parameters.max_seq_len and len(readings) > 1:
            warnings.append(
                f"was read in windows of {size:,} tokens and not of {parameters.max_seq_len:,}: "
                "the model takes no longer ones."
            )
        return PreparedInput(
            rows=[Row(size=reading.tokens.size, data=reading) for reading in readings],
            rest=_Context(text=text, firsts=[reading.first for reading in readings]),
            warnings=warnings,
        )

    def _cut(self, question: str, limit: int) -> tuple[str, list[str]]:
        """The question, of at most `limit` tokens, and a warning where it had more."""
        offsets: list[tuple[int, int]] = self.tokenizer(
            question, add_special_tokens=False, return_offsets_mapping=True, verbose=False
        )["offset_mapping"]
        if len(offsets) <= limit:
            return question, []
        return question[: offsets[limit - 1][1]], [
            f"has a question of {len(offsets):,} tokens, which was cut to {limit:,}; "
            "max_question_len can be raised."
        ]

    def _overlap(self, question: str, size: int, parameters: QuestionAnsweringParameters) -> int:
        """How many tokens of the context windows share. Raises InvalidInput where no window of
        `size` could take any new ones."""
        question_size = len(
            self.tokenizer(question, add_special_tokens=False, verbose=False)["input_ids"]
        )
        room = size - question_size - self.tokenizer.num_special_tokens_to_add(pair=True)
        if room < 2:
            raise InvalidInput(
                f"the question has {question_size:,} tokens, which leaves no room for the context "
                f"in windows of {size:,}. Raise max_seq_len, or lower max_question_len."
            )
        if parameters.doc_stride < room:
            return parameters.doc_stride
        if "doc_stride" in parameters.model_fields_set:
            raise InvalidInput(
                f"windows of {size:,} tokens have room for {room:,} of the context beside the "
                f"question, so they cannot overlap by {parameters.doc_stride:,}. Lower doc_stride, "
                "or raise max_seq_len."
            )
        return room // 2

    def forward(self, rows: Sequence[Row]) -> list[Any]:
        readings: list[Reading] = [row.data for row in rows]
        if can_pad(self.model, self.tokenizer):
            return self._batch(readings)
        return [output for reading in readings for output in self._batch([reading])]

    def _batch(self, readings: Sequence[Reading]) -> list[Any]:
        inputs = pad(self.tokenizer, [reading.tokens for reading in readings], self.model.device)
        arguments = {name: tensor for name, tensor in inputs.items() if name in self.taken}
        with torch.inference_mode():
            output = self.model(**arguments)
        logits = torch.stack([output.start_logits, output.end_logits], dim=1).float().cpu().numpy()
        return [_packed(row, reading) for row, reading in zip(logits, readings, strict=True)]

    def finish(
        self, prepared: PreparedInput, outputs: Sequence[Any], parameters: TaskParameters
    ) -> Any:
        assert isinstance(parameters, QuestionAnsweringParameters)
        context: _Context = prepared.rest
        answers = best_answers(
            context.text,
            [
                _unpacked(output, first)
                for output, first in zip(outputs, context.firsts, strict=True)
            ],
            top_k=parameters.top_k,
            max_tokens=parameters.max_answer_len,
            may_be_none=parameters.handle_impossible_answer,
        )
        items = [_wire(answer, context.text.text) for answer in answers]
        return items[0] if parameters.top_k == 1 else items


def _packed(logits: NDArray[np.float32], reading: Reading) -> dict[str, Any]:
    """As JSON, in a third of what lists of numbers take: starts, then ends, of the context.

    All of them, because what one window says of the tokens that it shares with another can only be
    weighed with the other's.
    """
    n = reading.no_answer
    return {
        "logits": base64.b64encode(logits[:, reading.context].astype("<f4").tobytes()).decode(),
        "no_answer": None if n is None else logits[:, n].tolist(),
    }


def _unpacked(output: dict[str, Any], first: int) -> Window:
    logits = np.frombuffer(base64.b64decode(output["logits"]), dtype="<f4").astype(np.float64)
    if not np.isfinite(logits).all():
        raise Permanent(
            "The model gave scores that are no numbers (NaN or infinity). Set "
            "SLUICE_HF_DTYPE=float32, or use another model."
        )
    starts, ends = logits.reshape(2, -1)
    none = output["no_answer"]
    return Window(
        first=first,
        starts=starts,
        ends=ends,
        no_answer=None if none is None else (none[0], none[1]),
    )


def _wire(answer: SpanAnswer, context: str) -> dict[str, Any]:
    return {
        "score": answer.score,
        "start": answer.start,
        "end": answer.end,
        "answer": context[answer.start : answer.end],
    }


def load_question_answering(folder: Path, options: LoadOptions) -> QuestionAnswering:
    model = load_model(AutoModelForQuestionAnswering, folder, options, task=QUESTION_ANSWERING.name)
    tokenizer = load_tokenizer(folder, options)
    if not tokenizer.is_fast:
        raise Permanent(
            f"The tokenizer of the model ({type(tokenizer).__name__}) does not tell where tokens "
            "lie in a text. question-answering needs a fast one (tokenizer.json)."
        )
    return QuestionAnswering(model, tokenizer, options)
