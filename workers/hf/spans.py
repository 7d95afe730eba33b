"""The best spans of a text, from logits for where an answer starts and where it ends.

The text has been read in windows that overlap. Windows are compared by their logits themselves, as
BERT's `run_squad.py` does: the span of tokens s to e of a window has the weight
exp(start[s] + end[e]), and counts in the window that gives it the most. That there is no answer has
the weight exp(start[CLS] + end[CLS]) of the window where this is least: a question is unanswerable
only if every window says so.

Scores are shares of one sum over all windows ("shared normalization": Clark and Gardner 2018,
"Simple and Effective Multi-Paragraph Reading Comprehension"):

    score = exp(start[s]) / (no_start + sum of exp(start) over the text's tokens)
          * exp(end[e])   / (no_end   + sum of exp(end)   over the text's tokens)

A token in the overlap of windows is summed once, with its largest logit, so that an answer is not
worth less for being seen twice. Scores lie between 0 and 1, and those of all spans and of no answer
together never exceed 1. Where the text fits into one window they are those of transformers 4's
question-answering pipeline. For longer texts that pipeline normalized each window by itself, by
which the best span of a window without an answer can weigh as much as the answer in another, and
added up what windows gave to the same text, by which scores could exceed 1.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

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
class Text:
    """A text and its tokens, by where an answer that starts or ends with the token would do so.

    Positions are of characters (code points), the end behind the last one. Spans that are empty by
    them are no answers.
    """

    text: str
    starts: NDArray[np.int64]
    ends: NDArray[np.int64]


@dataclass(frozen=True, kw_only=True)
class Answer:
    """Empty (0 to 0) where there is no answer."""

    score: float
    start: int
    end: int


@dataclass(frozen=True, kw_only=True)
class _Span:
    weight: float
    start: int
    end: int

    @property
    def rank(self) -> tuple[float, int, int]:
        return -self.weight, self.start, self.end


def best_answers(
    text: Text,
    windows: Sequence[Window],
    *,
    top_k: int,
    max_tokens: int,
    may_be_none: bool,
) -> list[Answer]:
    """At most `top_k` different answers, best first; the earlier and shorter of equally good ones.

    Answers whose texts differ in no more than case are one, where the best of them stands.
    `may_be_none` lets no answer be one.
    """
    found: dict[str, _Span] = {}
    for window in windows:
        for words, span in _best_spans(text, window, top_k, max_tokens):
            if words not in found or span.rank < found[words].rank:
                found[words] = span
    spans = sorted(found.values(), key=lambda span: span.rank)[:top_k]
    nones = [window.no_answer for window in windows if window.no_answer is not None]
    none = min(nones, key=sum, default=None)
    total = _log_total(text, windows, none)
    answers = [
        Answer(score=_share(span.weight, total), start=span.start, end=span.end) for span in spans
    ]
    if may_be_none and none is not None:
        answers.append(Answer(score=_share(sum(none), total), start=0, end=0))
        answers.sort(key=lambda answer: -answer.score)
    return answers[:top_k]


def _best_spans(
    text: Text, window: Window, top_k: int, max_tokens: int
) -> Iterator[tuple[str, _Span]]:
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
            yield words, _Span(weight=float(weights[s, k]), start=start, end=end)
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


def _log_total(text: Text, windows: Sequence[Window], none: tuple[float, float] | None) -> float:
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
