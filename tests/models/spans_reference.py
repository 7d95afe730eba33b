"""Question answering in plain loops over every span of every window, to compare the search with."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from workers.hf.tasks.question_answering import SpanAnswer


@dataclass(frozen=True, kw_only=True)
class Token:
    number: int
    """Among all tokens of the text."""
    place: tuple[int, int]
    """Of the token, or of its word, in the text."""
    start: float
    end: float


@dataclass(frozen=True, kw_only=True)
class Seen:
    """A window."""

    tokens: Sequence[Token]
    none: tuple[float, float] | None


def brute_force(
    text: str, windows: Sequence[Seen], *, top_k: int, max_tokens: int, may_be_none: bool
) -> list[SpanAnswer]:
    """By the formula that `workers/hf/tasks/question_answering.py` tells."""
    nones = [window.none for window in windows if window.none is not None]
    none = min(nones, key=sum) if nones else None
    starts: dict[int, float] = {}
    ends: dict[int, float] = {}
    spans: list[tuple[float, int, int]] = []
    for window in windows:
        for i, first in enumerate(window.tokens):
            starts[first.number] = max(starts.get(first.number, -math.inf), first.start)
            ends[first.number] = max(ends.get(first.number, -math.inf), first.end)
            for j, last in enumerate(window.tokens):
                if not 0 <= j - i < max_tokens:
                    continue
                start, end = first.place[0], last.place[1]
                while start < end and text[start].isspace():
                    start += 1
                while start < end and text[end - 1].isspace():
                    end -= 1
                if start < end:
                    spans.append((-(first.start + last.end), start, end))
    # Differences to the largest, lest the exponentials overflow.
    top_start = max([*starts.values(), *([none[0]] if none else [])])
    top_end = max([*ends.values(), *([none[1]] if none else [])])
    all_starts = math.fsum(math.exp(score - top_start) for score in starts.values())
    all_ends = math.fsum(math.exp(score - top_end) for score in ends.values())
    if none:
        all_starts += math.exp(none[0] - top_start)
        all_ends += math.exp(none[1] - top_end)
    answers: dict[str, SpanAnswer] = {}
    for weight, start, end in sorted(spans):
        score = math.exp(-weight - top_start - top_end) / all_starts / all_ends
        if text[start:end].lower() not in answers:
            answers[text[start:end].lower()] = SpanAnswer(score=score, start=start, end=end)
    candidates = list(answers.values())
    if may_be_none and none:
        score = math.exp(sum(none) - top_start - top_end) / all_starts / all_ends
        candidates.append(SpanAnswer(score=score, start=0, end=0))
    return sorted(candidates, key=lambda answer: -answer.score)[:top_k]
