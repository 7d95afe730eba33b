"""Hybrid search on questions of people: as good as the better half, whatever the other one sees.

The data lie beside the checkout; `python -m bench.retrieval.fusion` measures all of it.
"""

from functools import cache

import pytest

from bench.retrieval.fusion import (
    DATA,
    EMBEDDINGS,
    TOLERANCE,
    Comparison,
    Questions,
    compare,
    lexical_scores,
    part_of,
    sentence_pairs,
    squad,
    synonyms,
    tuning_for,
)
from workers.retrieval.fusion import Floats

needs_data = pytest.mark.skipif(not DATA.is_dir(), reason=f"{DATA} is not there")
PARTS = {"en": 40, "zh": 10, "ko": 15}
"""So many passages are embedded by the real model."""


@cache
def questions(name: str) -> Questions:
    if name == "klue":
        return sentence_pairs()
    if name == "synonyms":
        return synonyms()
    if "/" in name:
        whole, _, count = name.partition("/")
        return part_of(questions(whole), int(count), seed=1)
    return squad(name, DATA / ("tydiqa.ko.json" if name == "ko" else f"xquad.{name}.json"))


@cache
def lexical(name: str) -> tuple[Floats, Floats]:
    return lexical_scores(questions(name), None)


def compared(name: str, embedder: str) -> Comparison:
    embedding = EMBEDDINGS[embedder](questions(name))
    return compare(embedding, lexical(name), tuning_for(embedding))


@needs_data
@pytest.mark.parametrize("name", ["en/100", "zh", "ko/300", "klue"])
def test_random_vectors_take_nothing_from_the_words(name: str) -> None:
    result = compared(name, "random")
    assert min(result.gain) >= -TOLERANCE
    assert result.weight < 0.02
    assert result.ranks.recall < result.lexical.recall - 0.3  # what fusing ranks does


@needs_data
@pytest.mark.parametrize("embedder", ["perfect", "perfect of parts"])
@pytest.mark.parametrize("name", ["en/100", "zh", "ko/300", "klue"])
def test_perfect_vectors_win_whatever_the_words_say(name: str, embedder: str) -> None:
    result = compared(name, embedder)
    assert min(result.gain) >= -TOLERANCE
    assert result.weight > 0.5


def test_where_queries_share_no_word_with_their_passages_vectors_decide() -> None:
    for embedder in ("model", "perfect", "perfect of parts"):
        result = compared("synonyms", embedder)
        assert result.lexical.recall < 0.3
        assert min(result.gain) >= -TOLERANCE, embedder
        assert result.weight > 0.5


@needs_data
@pytest.mark.parametrize("name", [f"{name}/{count}" for name, count in PARTS.items()])
def test_the_default_model_adds_to_the_words_what_it_sees(name: str) -> None:
    """It reads English, a little Chinese and no Korean."""
    result = compared(name, "model")
    assert min(result.gain) >= -max(TOLERANCE, 1.5 / len(questions(name).queries))
    assert (result.weight > 0.1) == name.startswith("en")
    if name.startswith("en"):
        assert result.gain[1] > 0.005
        assert result.hybrid.recall >= 0.99
