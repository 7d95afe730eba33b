"""The fused score adds the evidence of both halves: one that sees nothing takes nothing away."""

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from workers.retrieval.fusion import UNMEASURED, FusedScores, QueryFacts, Tuning, fuse

BLIND = Tuning(
    mean=0.0, std=0.05, chance=1.0, dense=0.0, lexical=1.25, coverage=1.0, pairs=64, chunks=1000
)
"""Random vectors of 400 dimensions, as they are measured."""
SEEING = replace(BLIND, mean=0.1, std=0.1, chance=1.5, dense=1.5)


def fused(
    cosines: list[float],
    lexical: list[float],
    tuning: Tuning,
    *,
    best_possible: float = 20.0,
    coverage: float = 1.0,
    chunk_count: int = 1000,
) -> FusedScores:
    return fuse(
        cosines,
        lexical,
        best_possible=best_possible,
        facts=QueryFacts(coverage=coverage),
        tuning=tuning,
        chunk_count=chunk_count,
    )


def order(result: FusedScores) -> list[int]:
    return [int(n) for n in np.argsort(-result.scores, kind="stable")]


def test_a_blind_half_changes_no_order_and_has_no_weight() -> None:
    result = fused([0.01, 0.17, -0.12, 0.16], [9.0, 4.0, 6.0, 3.5], BLIND)
    assert order(result) == [0, 2, 1, 3]
    assert result.weight < 0.01


def test_a_cosine_beyond_all_chance_wins_even_where_the_model_was_blind_so_far() -> None:
    result = fused([0.01, 1.0, 0.1], [16.0, 0.0, 3.0], BLIND)
    assert order(result)[0] == 1
    assert result.weight > 0.8


@pytest.mark.parametrize("dimension", [32, 64, 384, 4096])
def test_a_perfect_match_wins_whatever_the_dimension(dimension: int) -> None:
    tuning = replace(BLIND, std=dimension**-0.5)
    assert order(fused([0.0, 1.0], [16.0, 0.0], tuning))[0] == 1


def test_where_no_word_matches_the_nearest_comes_first() -> None:
    for tuning in (BLIND, SEEING, UNMEASURED):
        result = fused([0.1, 0.3, 0.2], [0.0, 0.0, 0.0], tuning, best_possible=0.0)
        assert order(result) == [1, 2, 0]
        assert result.weight == 1.0


def test_both_halves_together_beat_what_each_puts_first() -> None:
    assert order(fused([0.62, 0.30, 0.55], [0.0, 11.0, 9.0], SEEING))[0] == 2


def test_a_query_that_the_model_does_not_know_is_left_to_its_words() -> None:
    known = fused([0.50, 0.20], [3.0, 5.0], SEEING)
    unknown = fused([0.50, 0.20], [3.0, 5.0], SEEING, coverage=0.0)
    assert (order(known), order(unknown)) == ([0, 1], [1, 0])
    assert unknown.weight < known.weight


def test_what_many_chunks_give_by_chance_is_no_evidence() -> None:
    """A cosine of 4.6 deviations is one in a thousand thousand, so one of a million has it."""
    few = fused([0.23, 0.0], [0.0, 2.0], BLIND, chunk_count=30)
    many = fused([0.23, 0.0], [0.0, 2.0], BLIND, chunk_count=1_000_000)
    assert (order(few), order(many)) == ([0, 1], [1, 0])


def test_scores_are_a_convex_combination_of_both_halves() -> None:
    cosines, lexical = [0.9, 0.4, 0.1], [0.0, 7.0, 20.0]
    result = fused(cosines, lexical, SEEING)
    of_dense = fused(cosines, [0.0, 0.0, 0.0], SEEING, best_possible=0.0).scores
    expected = result.weight * of_dense + (1 - result.weight) * np.array(lexical) / 20.0
    assert result.scores == pytest.approx(expected)


def test_the_nearest_chunk_with_every_word_scores_one_and_a_common_one_nothing() -> None:
    best, common = fused([0.95, 0.1], [20.0, 0.0], SEEING).scores
    assert (best, common) == (pytest.approx(1.0), pytest.approx(0.0))


def test_a_chunk_without_a_vector_is_like_any_other_to_the_dense_half() -> None:
    scores = fused([float("nan"), 0.1, 0.6], [0.0, 0.0, 0.0], SEEING).scores
    assert scores[0] == scores[1] < scores[2]


def test_no_candidates_are_no_scores() -> None:
    assert fused([], [], SEEING).scores.shape == (0,)


NUMBERS = st.floats(-1, 1)


@given(
    rows=st.lists(st.tuples(NUMBERS, st.floats(0, 100)), min_size=1, max_size=8),
    chance=st.floats(0, 10),
    std=st.floats(0, 1),
    dense=st.floats(0, 50),
    chunk_count=st.integers(0, 10**9),
    coverage=st.floats(0, 1),
)
def test_scores_are_finite_at_most_one_and_rise_with_each_half(
    rows: list[tuple[float, float]],
    chance: float,
    std: float,
    dense: float,
    chunk_count: int,
    coverage: float,
) -> None:
    tuning = replace(SEEING, chance=chance, std=std, dense=dense)
    cosines, lexical = [row[0] for row in rows], [row[1] for row in rows]
    result = fused(
        [*cosines, min(1.0, cosines[0] + 0.1)],
        [*lexical, lexical[0] + 1.0],
        tuning,
        best_possible=101.0,
        coverage=coverage,
        chunk_count=chunk_count,
    )
    assert np.isfinite(result.scores).all()
    assert (result.scores <= 1 + 1e-9).all()
    assert 0 <= result.weight <= 1
    assert result.scores[-1] > result.scores[0]


def test_a_tuning_comes_back_from_json_as_it_was() -> None:
    assert Tuning.load(SEEING.dump()) == SEEING


@pytest.mark.parametrize(
    "stored",
    [
        None,
        [],
        "x",
        {},
        {**SEEING.dump(), "std": float("nan")},
        {**SEEING.dump(), "std": "0.1"},
        {**SEEING.dump(), "more": 1},
        {**SEEING.dump(), "coverage": -0.1},
        {**SEEING.dump(), "lexical": 1e300},
        {"mean": 0.1},
    ],
)
def test_what_is_no_tuning_is_none(stored: object) -> None:
    assert Tuning.load(stored) is None
