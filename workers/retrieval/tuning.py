"""Tuning: how informative each half of a hybrid search is in a collection, without human
judgements.

A pseudo-query is a sentence (or heading, or line) of a chunk, and its answer is the rest of that
chunk: the inverse cloze task (Lee, Chang, Toutanova: Latent retrieval for weakly supervised open
domain question answering, 2019). The sentence is removed from the chunk; otherwise all its words
would match and lexical search would always win. A logistic regression with two slopes fits how the
probability of being the answer among sampled chunks rises with the score of each half; a prior
helps where there are few pairs.

`measure` does no I/O: its arguments are chunks, and functions that make terms and vectors.
`tuning_of` samples the chunks of a collection and stores the result with its index. Measuring
takes as long as a hundred searches. Only the first search in a collection that was never measured
waits for it; later ones use the stored tuning, and a new one is measured after a search or at the
end of an ingest job.
"""

import logging
import random
import re
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import partial
from threading import Lock
from typing import Any, Final
from uuid import UUID

import numpy as np
import numpy.typing as npt
from sqlalchemy.exc import SQLAlchemyError
from tokenizers import Tokenizer

from shared.documents import collections, documents, indexes
from shared.documents.indexes import IndexPlace
from shared.errors import SluiceError
from shared.tables import Collection, VectorIndex
from workers.attempts.process import Process
from workers.models.devices import Vectors, unit
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.fusion import (
    LEXICAL_PRIOR,
    STD_LEAST,
    UNMEASURED,
    Floats,
    Tuning,
    coverage_ratio,
    highest_by_chance,
)
from workers.retrieval.lexical import LexicalResult, lexical_of
from workers.retrieval.servers import store_of
from workers.retrieval.terms import terms
from workers.retrieval.vocabulary import script_coverage

log = logging.getLogger(__name__)

PSEUDO_QUERIES: Final = 64
SAMPLED_CHUNKS: Final = 256
"""The chunks among which answers are ranked, and of which the pseudo-queries are made."""
CHUNKS_LEAST: Final = 2
STALE_FACTOR: Final = 4
"""A tuning is stale if the collection has become so many times larger or smaller. The factor is
large, because the size of a collection beyond the sample matters little."""
INGESTED_CHUNKS_LEAST: Final = 16
"""An ingest job does not measure smaller collections: the first search does it quickly."""

K1: Final = 1.5
B: Final = 0.75

QUERY_CHARS: Final = 200
PIECE_LETTERS: Final = 8
"""Shorter pieces are joined with the next one."""
HALVED_LETTERS: Final = 2 * PIECE_LETTERS
"""A chunk of one piece with at least this many letters is divided into its odd and even words."""
HALVED_WEIGHT: Final = 0.25
"""The weight of such a pair: half a sentence means less than a sentence."""

RANK_PRIOR_PAIRS: Final = 4
"""The weight of the prior, in pairs, in the mean of reciprocal ranks."""
LEXICAL_OF_QUESTIONS: Final = 2.0
"""Questions of people repeat more words of the answer than the sentences around the answer do."""
LEXICAL_SLOPE_LEAST: Final = 0.05

CHUNK_CHARS: Final = 4_000
"""Only the beginning of longer chunks is used."""
COVERAGE_CHARS: Final = 2_000

_PIECES = re.compile(r"(?<=[.!?…।؟۔])\s|(?<=[。！？])|\n")


@dataclass(frozen=True, kw_only=True)
class SampledChunk:
    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PseudoQuery:
    chunk: int
    """The index of its chunk in the sample."""
    query: str
    answer: str
    """The rest of the chunk."""
    weight: float = 1.0


def is_stale(tuning: Tuning | None, chunk_count: int) -> bool:
    """Whether a collection of `chunk_count` live chunks has to be measured: it never was, or it had
    fewer or more chunks by `STALE_FACTOR`, or by 2 if the sample had all its chunks."""
    if chunk_count < CHUNKS_LEAST:
        return False
    if tuning is None:
        return True
    factor = 2 if tuning.chunks < SAMPLED_CHUNKS else STALE_FACTOR
    return not tuning.chunks / factor < chunk_count < tuning.chunks * factor


def coverage_by(tokenizer: Tokenizer | None) -> Callable[[str], float]:
    """A function: text -> how well an embedding model knows its words, from 0 to 1; always 1 if the
    model's tokenizer is not known."""
    if tokenizer is None:
        return lambda _: 1.0
    return lambda text: script_coverage(tokenizer, text[:COVERAGE_CHARS])


def pseudo_queries(
    sample: Sequence[SampledChunk], limit: int = PSEUDO_QUERIES
) -> list[PseudoQuery]:
    """At most one pseudo-query of each chunk; always the same ones for the same chunks."""
    drawn: list[PseudoQuery] = []
    for n, chunk in enumerate(sample):
        if len(drawn) == limit:
            break
        pair = _pair(n, chunk)
        if pair is not None:
            drawn.append(pair)
    return drawn


def measure(
    sample: Sequence[SampledChunk],
    vectors: Vectors,
    *,
    chunk_count: int,
    terms: Callable[[str], Sequence[str]],
    encode: Callable[[Sequence[str]], Vectors],
    encode_queries: Callable[[Sequence[str]], Vectors],
    coverage: Callable[[str], float],
) -> Tuning | None:
    """Measure a collection by a random sample of at most `SAMPLED_CHUNKS` of its chunks. `vectors`
    has the shape (len(sample), dimension); they have length 1. None if no pseudo-query can be made.

    `encode` is called once, with one text for each pseudo-query (none longer than a chunk), and
    `encode_queries` is called once.
    """
    pairs = pseudo_queries(sample)
    if not pairs or len(sample) < CHUNKS_LEAST:
        return None
    queries = [pair.query for pair in pairs]
    rows, answers = np.arange(len(pairs)), np.array([pair.chunk for pair in pairs])

    query_vectors = encode_queries(queries).astype(np.float64)
    cosines = query_vectors @ vectors.astype(np.float64).T
    background = np.ones(cosines.shape, dtype=np.bool_)
    background[rows, answers] = False
    mean = float(cosines[background].mean())
    std = max(float(cosines[background].std()), STD_LEAST)
    answer_vectors = encode([pair.answer for pair in pairs])
    cosines[rows, answers] = np.sum(query_vectors * answer_vectors, axis=1)
    deviations = (cosines - mean) / std
    highest = np.where(background, deviations, -np.inf).max(axis=1)

    lexical = _bm25(
        [terms(query) for query in queries],
        [terms(chunk.text[:CHUNK_CHARS]) for chunk in sample],
        {n: terms(pair.answer) for n, pair in enumerate(pairs)},
        answers,
    )
    weights = np.array([pair.weight for pair in pairs])
    coverages = [coverage(query) for query in queries]
    known = float(np.quantile(coverages, 0.9))
    ratios = np.array([coverage_ratio(value, known) for value in coverages])
    alone = LEXICAL_PRIOR / LEXICAL_OF_QUESTIONS
    (lexical_slope,) = _slopes(
        [lexical], answers, weights, prior=[alone], precision=[(2 / alone) ** 2]
    )
    dense_slope, _ = _slopes(
        [deviations * ratios[:, None], lexical],
        answers,
        weights,
        prior=[known, lexical_slope],
        precision=[1.0, (4 / alone) ** 2],
    )
    return Tuning(
        mean=mean,
        std=std,
        chance=float(np.quantile(highest, 0.95)) / highest_by_chance(len(sample)),
        dense=max(0.0, dense_slope)
        * _rank_quality(deviations, answers, weights * ratios, prior=known),
        lexical=float(
            np.sqrt(LEXICAL_PRIOR * LEXICAL_OF_QUESTIONS * max(lexical_slope, LEXICAL_SLOPE_LEAST))
        ),
        coverage=known,
        pairs=len(pairs),
        chunks=chunk_count,
    )


# The tuning of a collection


@dataclass(frozen=True, kw_only=True)
class IndexFacts:
    """What tuning needs of a collection and one of its indexes; `tuning` is the stored JSON."""

    id: UUID
    """Of the collection."""
    name: str
    index_id: UUID
    place: IndexPlace
    tuning: Any

    @classmethod
    def of(cls, collection: Collection, index: VectorIndex) -> "IndexFacts":
        return cls(
            id=collection.id,
            name=collection.name,
            index_id=index.id,
            place=IndexPlace.of(index),
            tuning=index.tuning,
        )


def tuning_of(
    process: Process,
    collection: IndexFacts,
    embedder: Embedder,
    result: LexicalResult,
    *,
    check: Callable[[], None],
) -> Tuning:
    """The tuning of the collection. If it is stale (`is_stale`), it is measured and stored first,
    which takes as long as embedding `PSEUDO_QUERIES` chunks and as many sentences.

    `result`, of any query, says which chunks are live. `check` is called between batches and may
    raise. While one thread of this process measures, others use the stored tuning, or wait if there
    is none. Raises what the store and the embedder raise.
    """
    stored = Tuning.load(collection.tuning)
    if not is_stale(stored, result.live_chunks):
        return stored or UNMEASURED
    lock = process.held(_MeasuringLock).lock
    if not lock.acquire(blocking=stored is None):
        assert stored is not None
        return stored
    try:
        with process.ledger.read() as session:
            latest = Tuning.load(indexes.tuning(session, collection.index_id))
        if not is_stale(latest, result.live_chunks):
            return latest or UNMEASURED
        tuning = _measure_collection(process, collection, embedder, result, check)
        with process.ledger.begin() as session:
            indexes.note_tuning(session, collection.index_id, tuning.dump())
        return tuning
    finally:
        lock.release()


def tuning_for_search(
    process: Process,
    collection: IndexFacts,
    embedder: Embedder,
    result: LexicalResult,
    *,
    check: Callable[[], None],
) -> Tuning:
    """As `tuning_of`, but a stale tuning is used as it is, and `measure_due` will measure it."""
    stored = Tuning.load(collection.tuning)
    if stored is None or not is_stale(stored, result.live_chunks):
        return tuning_of(process, collection, embedder, result, check=check)
    process.held(_Due).names.add(collection.name)
    return stored


def measure_due(process: Process) -> None:
    """Measure the collections whose tunings searches of this process met stale; called after the
    searches are answered. Failures are logged, and the next search tries again."""
    due = process.held(_Due).names
    while due:
        measure_ingested(process, due.pop(), chunks_least=CHUNKS_LEAST)


def measure_ingested(
    process: Process, name: str, *, chunks_least: int = INGESTED_CHUNKS_LEAST
) -> None:
    """Measure a collection if its tuning is stale and it has at least `chunks_least` chunks.
    Failures are logged."""
    try:
        with process.ledger.read() as session:
            row, index = collections.get_with_index(session, name)
        collection = IndexFacts.of(row, index)
        result = lexical_of(process).search(collection.id, "", limit=1)
        if result.live_chunks < chunks_least:
            return
        if is_stale(Tuning.load(collection.tuning), result.live_chunks):
            embedder = embedders_of(process).get(index.embedding_model)
            tuning_of(process, collection, embedder, result, check=lambda: None)
    except (SluiceError, SQLAlchemyError) as error:
        log.info("collection %s was not measured: %s", name, error)


class _Due:
    """The names of collections that `measure_due` has to measure."""

    def __init__(self, _process: Process) -> None:
        self.names: set[str] = set()


def _measure_collection(
    process: Process,
    collection: IndexFacts,
    embedder: Embedder,
    result: LexicalResult,
    check: Callable[[], None],
) -> Tuning:
    ids = result.sample(SAMPLED_CHUNKS)
    vectors = store_of(process).vectors(collection.place.stored_name, ids)
    with process.ledger.read() as session:
        live = documents.live_chunks(session, collection.id, ids)
    sample = [
        SampledChunk(id=id_, text=live[id_].text) for id_ in ids if id_ in live and id_ in vectors
    ]
    tuning = measure(
        sample,
        unit(np.array([vectors[chunk.id] for chunk in sample]).reshape(len(sample), -1)),
        chunk_count=result.live_chunks,
        terms=terms,
        encode=partial(embedder.encode, between=check),
        encode_queries=partial(embedder.encode_queries, between=check),
        coverage=coverage_by(embedder.tokenizer),
    )
    return tuning or replace(UNMEASURED, chunks=result.live_chunks)


class _MeasuringLock:
    """Held by the thread of this process that measures."""

    def __init__(self, _process: Process) -> None:
        self.lock = Lock()


# Pseudo-queries


def _pair(place: int, chunk: SampledChunk) -> PseudoQuery | None:
    draw = random.Random(chunk.id)
    text = chunk.text[:CHUNK_CHARS].strip()
    pieces = list(_pieces(text))
    if len(pieces) > 1:
        n = draw.randrange(len(pieces))
        rest = "\n".join(pieces[:n] + pieces[n + 1 :])
        return PseudoQuery(chunk=place, query=_shortened(pieces[n]), answer=rest)
    if _letters(text) < HALVED_LETTERS:
        return None
    words = text.split()
    if len(words) >= 4:
        one, other = " ".join(words[::2]), " ".join(words[1::2])
    else:
        one, other = text[: len(text) // 2], text[len(text) // 2 :]
    return PseudoQuery(chunk=place, query=_shortened(one), answer=other, weight=HALVED_WEIGHT)


def _pieces(text: str) -> Iterator[str]:
    """Sentences and lines; a short one is joined with the next one, and dropped at the end."""
    piece = ""
    for part in _PIECES.split(text):
        piece = f"{piece} {part}".strip()
        if _letters(piece) >= PIECE_LETTERS:
            yield piece
            piece = ""


def _letters(text: str) -> int:
    return sum(map(str.isalnum, text))


def _shortened(query: str) -> str:
    if len(query) <= QUERY_CHARS:
        return query
    cut = query[:QUERY_CHARS]
    return cut[: cut.rfind(" ")] if " " in cut[QUERY_CHARS // 2 :] else cut


# Scores and slopes


def _bm25(
    queries: Sequence[Sequence[str]],
    chunks: Sequence[Sequence[str]],
    answer_terms: dict[int, Sequence[str]],
    answers: npt.NDArray[np.int64],
) -> Floats:
    """BM25 of each query and each chunk of the sample, by the formula of
    `workers.retrieval.lexical`; shape (queries, chunks). Instead of the chunk of a query's answer,
    the answer alone is scored."""
    counts = [Counter(chunk) for chunk in chunks]
    average = max(1.0, sum(map(len, chunks)) / len(chunks))
    frequency = Counter(term for count in counts for term in count)
    postings: dict[str, list[tuple[int, int]]] = {}
    for n, count in enumerate(counts):
        for term, times in count.items():
            postings.setdefault(term, []).append((n, times))

    def score(times: int, length: int) -> float:
        return times / (times + K1 * (1 - B + B * length / average))

    scores = np.zeros((len(queries), len(chunks)))
    for n, query in enumerate(queries):
        answer_counts = Counter(answer_terms[n])
        answer = int(answers[n])
        for term, repeated in Counter(query).items():
            if term not in frequency:
                continue
            rarity = (len(chunks) - frequency[term] + 0.5) / (frequency[term] + 0.5)
            weight = repeated * float(np.log1p(rarity))
            for chunk, times in postings[term]:
                if chunk != answer:
                    scores[n, chunk] += weight * score(times, len(chunks[chunk]))
            if answer_counts[term]:
                scores[n, answer] += weight * score(answer_counts[term], len(answer_terms[n]))
    return scores


def _slopes(
    features: Sequence[Floats],
    answers: npt.NDArray[np.int64],
    weights: Floats,
    *,
    prior: Sequence[float],
    precision: Sequence[float],
) -> list[float]:
    """The slopes w that maximize the likelihood of the answers, where the probabilities of a row
    are the softmax of the sum of w x feature, with normal priors. `weights` are those of the rows.
    Newton's method with step halving, which converges because the likelihood is concave."""
    x = np.stack(features, axis=-1)
    rows = np.arange(len(answers))
    chosen = x[rows, answers]
    means, firmness = np.array(prior, dtype=np.float64), np.array(precision, dtype=np.float64)

    def state(slopes: Floats) -> tuple[float, Floats]:
        logits = x @ slopes
        top = logits.max(axis=1, keepdims=True)
        shares = np.exp(logits - top)
        sums = shares.sum(axis=1, keepdims=True)
        likelihood = logits[rows, answers] - top[:, 0] - np.log(sums[:, 0])
        penalty = float((firmness * (slopes - means) ** 2).sum()) / 2
        return float(weights @ likelihood) - penalty, shares / sums

    slopes = means.copy()
    value, shares = state(slopes)
    for _ in range(50):
        expected = np.einsum("qc,qcf->qf", shares, x)
        gradient = weights @ (chosen - expected) - firmness * (slopes - means)
        spread = np.einsum("q,qc,qcf,qcg->fg", weights, shares, x, x, optimize=True)
        spread -= (expected.T * weights) @ expected
        step = np.linalg.solve(spread + np.diag(firmness), gradient)
        while True:
            further = slopes + step
            reached, further_shares = state(further)
            if reached >= value or np.abs(step).max() < 1e-9:
                break
            step /= 2
        gained = reached - value
        slopes, value, shares = further, reached, further_shares
        if gained < 1e-9:
            break
    return [float(slope) for slope in slopes]


def _rank_quality(
    scores: Floats, answers: npt.NDArray[np.int64], weights: Floats, *, prior: float
) -> float:
    """How well the scores alone rank the answers: the mean reciprocal rank less its standard error,
    scaled so that chance gives 0 and the best is 1. Chunks with equal scores share their ranks."""
    answer_scores = scores[np.arange(len(answers)), answers][:, None]
    higher, equal = scores > answer_scores, scores == answer_scores
    ranks = 1 + higher.sum(axis=1) + (equal.sum(axis=1) - 1) / 2
    reciprocal = np.append(1 / ranks, prior)
    weights = np.append(weights, RANK_PRIOR_PAIRS)
    mean = np.average(reciprocal, weights=weights)
    error = np.sqrt(np.average((reciprocal - mean) ** 2, weights=weights) / weights.sum())
    chunks = scores.shape[1]
    chance = (1 / np.arange(1, chunks + 1)).sum() / chunks
    return max(0.0, float((mean - error - chance) / (1 - chance)))
