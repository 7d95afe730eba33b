"""What pseudo-queries say of both halves, on text made up of known words and known vectors."""

import hashlib
import random
from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from workers.models.devices import Vectors, unit
from workers.retrieval.fusion import LEXICAL_PRIOR, Tuning
from workers.retrieval.tuning import (
    CHUNK_CHARS,
    HALVED_WEIGHT,
    QUERY_CHARS,
    SampledChunk,
    _slopes,
    coverage_by,
    is_stale,
    measure,
    pseudo_queries,
)

DIMENSION = 128
CHUNKS = 120


def vector_of(text: str) -> Vectors:
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    drawn = np.random.default_rng(seed).standard_normal(DIMENSION)
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float32)


def random_vectors(texts: Sequence[str]) -> Vectors:
    return np.array([vector_of(text) for text in texts])


def topic_vectors(texts: Sequence[str]) -> Vectors:
    """By the first word of a text, whose letter before the colon names the topic in any words."""
    topics = random_vectors([text.split(":")[0].split()[-1] for text in texts])
    mixed = topics + random_vectors(texts)
    return unit(mixed)


def chunk_of(n: int, *, shared_words: bool) -> SampledChunk:
    """Three sentences on a topic, which name it alike for `topic_vectors`. Beside words that all
    chunks have, these have the same few ones, or no two sentences of a chunk share one."""
    draw = random.Random(n)
    own = [f"w{draw.randrange(10**6)}" for _ in range(12)]
    sentences = []
    for place in range(3):
        words = draw.sample(own, 6) if shared_words else [f"{word}x{place}" for word in own]
        common = [f"c{draw.randrange(40)}" for _ in range(3)]
        sentences.append(f"topic{n}: {' '.join(words + common)}.")
    return SampledChunk(id=f"{n}", text=" ".join(sentences))


def words(text: str) -> list[str]:
    return [word.strip(".") for word in text.split() if not word.endswith(":")]


def tuned(
    vectors: str, *, shared_words: bool = True, count: int = CHUNKS, coverage: float = 1.0
) -> Tuning:
    encode = {"random": random_vectors, "topics": topic_vectors}[vectors]
    sample = [chunk_of(n, shared_words=shared_words) for n in range(count)]
    tuning = measure(
        sample,
        encode([chunk.text for chunk in sample]),
        chunk_count=count,
        terms=words,
        encode=encode,
        encode_queries=encode,
        coverage=lambda _: coverage,
    )
    assert tuning is not None
    return tuning


def test_random_vectors_are_found_blind_and_vectors_of_topics_are_not() -> None:
    blind, seeing = tuned("random"), tuned("topics")
    assert blind.dense < 0.03
    assert seeing.dense > 0.8
    assert blind.mean == pytest.approx(0.0, abs=0.01)
    assert blind.std == pytest.approx(DIMENSION**-0.5, rel=0.1)
    assert blind.chance == pytest.approx(1.0, abs=0.25)
    assert (blind.pairs, blind.chunks) == (64, CHUNKS)


def test_sentences_that_share_no_word_make_words_count_less() -> None:
    shared, apart = tuned("topics"), tuned("topics", shared_words=False)
    assert apart.lexical < LEXICAL_PRIOR / 2 < shared.lexical


def test_with_few_pairs_what_the_tokenizer_knows_decides() -> None:
    assert tuned("random", count=2, coverage=0.0).dense < 0.05
    assert tuned("topics", count=2, coverage=1.0).dense > 0.2


def test_queries_that_the_model_does_not_know_do_not_blind_it_to_those_it_knows() -> None:
    """Half the collection in a script that the model spells out."""
    sample = [chunk_of(n, shared_words=True) for n in range(CHUNKS)]
    known = {f"topic{n}" for n in range(0, CHUNKS, 2)}

    def is_known(text: str) -> bool:
        return text.split(":")[0] in known

    def encode(texts: Sequence[str]) -> Vectors:
        pairs = zip(texts, topic_vectors(texts), random_vectors(texts), strict=True)
        return np.array([seen if is_known(text) else blind for text, seen, blind in pairs])

    tuning = measure(
        sample,
        encode([chunk.text for chunk in sample]),
        chunk_count=CHUNKS,
        terms=words,
        encode=encode,
        encode_queries=encode,
        coverage=lambda text: 1.0 if is_known(text) else 0.0,
    )
    assert tuning is not None
    assert tuning.coverage == 1.0
    assert tuning.dense > 0.6


def test_the_same_sample_is_measured_alike() -> None:
    assert tuned("topics") == tuned("topics")


def test_equal_chunks_are_measured_without_a_fault() -> None:
    sample = [SampledChunk(id=f"{n}", text="One sentence. The same again.") for n in range(5)]
    tuning = measure(
        sample,
        np.ones((5, 1), dtype=np.float32),
        chunk_count=5,
        terms=str.split,
        encode=lambda texts: np.ones((len(texts), 1), dtype=np.float32),
        encode_queries=lambda texts: np.ones((len(texts), 1), dtype=np.float32),
        coverage=lambda _: 1.0,
    )
    assert tuning is not None
    assert Tuning.load(tuning.dump()) == tuning


@pytest.mark.parametrize("text", ["", "  \n ", "짧다.", "1, 2", "…!?。"])
def test_chunks_without_words_give_no_pseudo_query(text: str) -> None:
    sample = [SampledChunk(id="a", text=text), SampledChunk(id="b", text=text)]
    assert pseudo_queries(sample) == []
    assert (
        measure(
            sample,
            random_vectors(["a", "b"]),
            chunk_count=2,
            terms=words,
            encode=random_vectors,
            encode_queries=random_vectors,
            coverage=lambda _: 1.0,
        )
        is None
    )


@pytest.mark.parametrize(
    "sentences",
    [
        ["The warehouse opens at eight.", "It closes in the evening.", "Sundays are free."],
        ["창고는 평일 여덟 시에 엽니다.", "저녁 일곱 시에 닫습니다.", "일요일은 쉽니다 모두."],
        ["仓库早上八点准时开门。", "晚上七点钟准时关门。", "星期天全天不营业。"],
        ["गोदाम सुबह आठ बजे खुलता है।", "शाम को सात बजे बंद होता है।", "रविवार को छुट्टी होती है।"],
        ["# Opening hours", "The warehouse opens at eight\nand closes late"],
    ],
)
def test_a_pseudo_query_is_a_sentence_and_its_answer_the_rest(sentences: list[str]) -> None:
    text = "\n".join(sentences)
    drawn = {
        pair.query: pair.answer
        for n in range(40)
        for pair in pseudo_queries([SampledChunk(id=f"{n}", text=text)])
    }
    lines = "\n".join(sentences).split("\n")
    assert set(drawn) == set(lines)
    for query, answer in drawn.items():
        assert answer.split("\n") == [line for line in lines if line != query]


@pytest.mark.parametrize(
    ("text", "query", "answer"),
    [
        ("one two three four five six", "one three five", "two four six"),
        ("仓库早上八点准开门晚上七点钟关门", "仓库早上八点准开", "门晚上七点钟关门"),
    ],
)
def test_a_chunk_of_one_sentence_is_halved_and_counts_less(
    text: str, query: str, answer: str
) -> None:
    (pair,) = pseudo_queries([SampledChunk(id="a", text=text)])
    assert (pair.query, pair.answer, pair.weight) == (query, answer, HALVED_WEIGHT)


def test_pseudo_queries_of_long_chunks_are_bounded() -> None:
    long = SampledChunk(id="a", text="word " * CHUNK_CHARS)
    (pair,) = pseudo_queries([long])
    assert len(pair.query) <= QUERY_CHARS
    assert len(pair.answer) <= CHUNK_CHARS


def test_a_collection_is_measured_again_when_its_size_is_another() -> None:
    small, large = tuned("random"), replace(tuned("random"), chunks=1000)
    assert is_stale(None, 2)
    assert not is_stale(None, 1)
    assert [is_stale(small, n) for n in (60, 61, 239, 240)] == [True, False, False, True]
    assert [is_stale(large, n) for n in (250, 251, 3999, 4000)] == [True, False, False, True]


def test_slopes_are_those_of_the_likelihood() -> None:
    """Answers drawn by known slopes: these come back."""
    draw = np.random.default_rng(7)
    one, other = draw.standard_normal((2, 4000, 20))
    logits = 1.5 * one - 0.5 * other + draw.gumbel(size=one.shape)
    slopes = _slopes(
        [one, other], logits.argmax(axis=1), np.ones(4000), prior=[0, 0], precision=[1e-6, 1e-6]
    )
    assert slopes == pytest.approx([1.5, -0.5], abs=0.1)


def test_what_no_tokenizer_tells_is_taken_for_known() -> None:
    assert coverage_by(None)("창고") == 1.0
