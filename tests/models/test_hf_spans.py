"""The search for spans, against a reference that looks at every span of every window."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers.pipelines.document_question_answering import select_starts_ends

from tests.models.spans_reference import Seen, Token, brute_force
from workers.hf.tasks.question_answering import ContextText, SpanAnswer, Window, best_answers

WORDS = ("a", "A", "bc", "한강", "🌉", "de")


@dataclass(frozen=True, kw_only=True)
class Case:
    text: ContextText
    windows: list[Window]


def _text(words: list[str]) -> ContextText:
    starts = [sum(len(word) + 1 for word in words[:n]) for n in range(len(words))]
    ends = [start + len(word) for start, word in zip(starts, words, strict=True)]
    return ContextText(text=" ".join(words), starts=np.array(starts), ends=np.array(ends))


@st.composite
def _cases(draw: st.DrawFn) -> Case:
    words = draw(st.lists(st.sampled_from(WORDS), min_size=1, max_size=12))
    size = draw(st.integers(1, len(words)))
    overlap = draw(st.integers(0, size - 1))
    # Few different values make ties, and large ones make differences that underflow.
    logit = draw(st.sampled_from((st.integers(-2, 2), st.floats(-9, 9), st.floats(-900, 900))))
    has_none = draw(st.booleans())
    windows = []
    for first in range(0, len(words), size - overlap):
        count = min(size, len(words) - first)
        logits = [draw(logit) for _ in range(2 * count + 2)]
        windows.append(
            Window(
                first=first,
                starts=np.array(logits[:count], dtype=np.float64),
                ends=np.array(logits[count : 2 * count], dtype=np.float64),
                no_answer=(float(logits[-2]), float(logits[-1])) if has_none else None,
            )
        )
        if first + count == len(words):
            break
    return Case(text=_text(words), windows=windows)


def _reference(case: Case, top_k: int, max_tokens: int, may_be_none: bool) -> list[SpanAnswer]:
    seen = [
        Seen(
            tokens=[
                Token(
                    number=window.first + n,
                    place=(
                        int(case.text.starts[window.first + n]),
                        int(case.text.ends[window.first + n]),
                    ),
                    start=float(window.starts[n]),
                    end=float(window.ends[n]),
                )
                for n in range(len(window.starts))
            ],
            none=window.no_answer,
        )
        for window in case.windows
    ]
    return brute_force(
        case.text.text, seen, top_k=top_k, max_tokens=max_tokens, may_be_none=may_be_none
    )


@settings(max_examples=200)
@given(case=_cases(), top_k=st.integers(1, 12), max_tokens=st.integers(1, 15), none=st.booleans())
def test_the_best_spans_are_those_of_a_search_through_all(
    case: Case, top_k: int, max_tokens: int, none: bool
) -> None:
    answers = best_answers(
        case.text, case.windows, top_k=top_k, max_tokens=max_tokens, may_be_none=none
    )
    expected = _reference(case, top_k, max_tokens, none)
    assert [answer.score for answer in answers] == pytest.approx(
        [answer.score for answer in expected], rel=1e-9, abs=1e-12
    )
    # Rounding may put no answer before or behind one that is as likely.
    places, expected_places = _places(answers), _places(expected)
    shorter = min(len(places), len(expected_places))
    assert shorter >= len(expected) - 1
    assert places[:shorter] == expected_places[:shorter]


def _places(answers: list[SpanAnswer]) -> list[tuple[int, int]]:
    return [(answer.start, answer.end) for answer in answers if answer.end]


@settings(max_examples=100)
@given(case=_cases(), max_tokens=st.integers(1, 15))
def test_scores_are_shares(case: Case, max_tokens: int) -> None:
    answers = best_answers(
        case.text, case.windows, top_k=10_000, max_tokens=max_tokens, may_be_none=True
    )
    assert all(0 <= answer.score <= 1 for answer in answers)
    assert math.fsum(answer.score for answer in answers) <= 1 + 1e-9
    assert len({case.text.text[a.start : a.end].lower() for a in answers}) == len(answers)


@settings(max_examples=100)
@given(case=_cases(), top_k=st.integers(1, 12))
def test_more_answers_begin_with_the_fewer(case: Case, top_k: int) -> None:
    def search(top_k: int) -> list[SpanAnswer]:
        return best_answers(case.text, case.windows, top_k=top_k, max_tokens=15, may_be_none=True)

    assert search(12)[:top_k] == search(top_k)


@settings(max_examples=100)
@given(
    logits=st.lists(st.tuples(st.floats(-9, 9), st.floats(-9, 9)), min_size=2, max_size=20),
    max_tokens=st.integers(1, 15),
)
def test_one_window_is_scored_as_the_pipeline_of_transformers_4_did(
    logits: list[tuple[float, float]], max_tokens: int
) -> None:
    """The first token is the one for no answer; the others are the context's, all different."""
    starts, ends = np.array(logits).T
    count = len(starts) - 1
    mask = np.zeros((1, count + 1), dtype=int)
    s, e, scores, null = select_starts_ends(
        starts[None].copy(), ends[None].copy(), mask, 1 - mask,
        top_k=1, handle_impossible_answer=True, max_answer_len=max_tokens,
    )  # fmt: skip
    text = _text([f"w{n}" for n in range(count)])
    window = Window(
        first=0, starts=starts[1:], ends=ends[1:], no_answer=(float(starts[0]), float(ends[0]))
    )
    [best] = best_answers(text, [window], top_k=1, max_tokens=max_tokens, may_be_none=False)
    assert best.score == pytest.approx(scores[0], rel=1e-9)
    if np.isclose(scores[0], best.score, rtol=1e-12, atol=0):
        weight = starts[s[0]] + ends[e[0]]
        ours = (
            starts[1 + list(text.starts).index(best.start)]
            + ends[1 + list(text.ends).index(best.end)]
        )
        assert ours == pytest.approx(weight, abs=1e-9)
    both = best_answers(text, [window], top_k=2000, max_tokens=max_tokens, may_be_none=True)
    [none] = [answer for answer in both if answer.end == 0]
    assert none.score == pytest.approx(null, rel=1e-9)


def test_an_answer_seen_by_two_windows_is_worth_as_much_as_by_one() -> None:
    text = _text(["the", "river", "is", "wide"])
    sure = np.array([0.0, 9.0, 0.0])
    one = Window(first=0, starts=sure, ends=sure, no_answer=(0.0, 0.0))
    two = Window(first=1, starts=sure[[1, 0, 0]], ends=sure[[1, 0, 0]], no_answer=(0.0, 0.0))
    short = ContextText(text=text.text, starts=text.starts[:3], ends=text.ends[:3])
    [alone] = best_answers(short, [one], top_k=1, max_tokens=5, may_be_none=True)
    [twice] = best_answers(text, [one, two], top_k=1, max_tokens=5, may_be_none=True)
    assert text.text[twice.start : twice.end] == "river"
    assert twice.score == pytest.approx(alone.score, abs=1e-3)


def test_a_window_without_the_answer_does_not_outweigh_the_one_with_it() -> None:
    """Normalized by itself, the second window would be surer of its span than the first one."""
    text = _text(["one", "two", "three", "four"])
    right = Window(
        first=0, starts=np.array([8.0, 5.0]), ends=np.array([8.0, 5.0]), no_answer=(1.0, 1.0)
    )
    wrong = Window(
        first=2, starts=np.array([3.0, -9.0]), ends=np.array([3.0, -9.0]), no_answer=(-5.0, -5.0)
    )
    [best] = best_answers(text, [right, wrong], top_k=1, max_tokens=5, may_be_none=False)
    assert (best.start, best.end) == (0, 3)


def test_no_answer_is_as_likely_as_in_the_window_that_doubts_it_most() -> None:
    text = _text(["one", "two"])
    confident = Window(
        first=0, starts=np.array([6.0]), ends=np.array([6.0]), no_answer=(-2.0, -2.0)
    )
    nothing = Window(first=1, starts=np.array([-3.0]), ends=np.array([-3.0]), no_answer=(9.0, 9.0))
    [best] = best_answers(text, [confident, nothing], top_k=1, max_tokens=5, may_be_none=True)
    assert text.text[best.start : best.end] == "one"
    assert best.score > 0.99
    [none] = best_answers(
        ContextText(text=text.text, starts=text.starts[1:], ends=text.ends[1:]),
        [Window(first=0, starts=nothing.starts, ends=nothing.ends, no_answer=(9.0, 9.0))],
        top_k=1, max_tokens=5, may_be_none=True,
    )  # fmt: skip
    assert (none.start, none.end) == (0, 0)


def test_a_long_text_is_searched_in_full() -> None:
    """A window whose best spans are all of one word, to look through by and by."""
    count = 300
    text = ContextText(
        text="x" * count, starts=np.zeros(count, dtype=np.int64), ends=np.full(count, count)
    )
    starts = text.starts.copy()
    starts[-1] = 1
    ends = text.ends.copy()
    logits = np.linspace(5, -5, count)
    window = Window(first=0, starts=logits, ends=logits, no_answer=None)
    answers = best_answers(
        ContextText(text=text.text, starts=starts, ends=ends), [window],
        top_k=3, max_tokens=1000, may_be_none=True,
    )  # fmt: skip
    assert [(answer.start, answer.end) for answer in answers] == [(0, count), (1, count)]
