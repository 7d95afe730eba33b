"""How much each half of a hybrid search tells of a collection, measured without anyone's judgement.

A pseudo-query is a sentence (or heading, or line) of a chunk, and its answer is the rest of that
chunk: the inverse cloze task (Lee, Chang, Toutanova: Latent retrieval for weakly supervised open
domain question answering, 2019). The sentence itself is taken out, else every word of it would
match and lexical search would always win. How steeply the chance to be the answer rises with each
half's score is the maximum of the conditional likelihood of the answers among sampled chunks (a
logistic regression of two slopes), with a prior where the pairs are few.

`measure` is without I/O: it is given chunks, and functions that make terms and vectors.
`tuning_of` draws the chunks of a collection, and keeps what was measured with the collection.
Measuring takes the time of a hundred searches, so that none waits for it but the first of a
collection of which nothing is known: the others go by what is kept, and it is measured behind them,
or at the end of an ingest.
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

from shared.documents import collections, documents
from shared.errors import SluiceError
from workers.attempts.process import Process
from workers.models.devices import Vectors, unit
from workers.retrieval.embed import Embedder, embedders_of
from workers.retrieval.fusion import (
    LEXICAL_PRIOR,
    STD_LEAST,
    UNMEASURED,
    Floats,
    Tuning,
    covered,
    highest_by_chance,
)
from workers.retrieval.lexical import LexicalResult, lexical_of
from workers.retrieval.store import store_of
from workers.retrieval.terms import terms
from workers.retrieval.vocabulary import script_coverage

log = logging.getLogger(__name__)

PSEUDO_QUERIES: Final = 64
SAMPLED_CHUNKS: Final = 256
"""Among which the answers are looked for; the pseudo-queries are of these, too."""
CHUNKS_LEAST: Final = 2
STALE_FACTOR: Final = 4
"""How large a collection is beyond a sample matters little."""
INGESTED_CHUNKS_LEAST: Final = 16
"""Smaller collections are measured so quickly that the first search does it."""

K1: Final = 1.5
B: Final = 0.75

QUERY_CHARS: Final = 200
PIECE_LETTERS: Final = 8
"""Shorter pieces are joined with the one behind."""
HALVED_LETTERS: Final = 2 * PIECE_LETTERS
"""A chunk of one piece gives every other word, if it has so many letters."""
HALVED_WEIGHT: Final = 0.25
"""Such a pair counts for so many: halves of a sentence mean less than sentences do."""

SIGHT_PRIOR_PAIRS: Final = 4
"""Pairs that the prior counts for where ranks are averaged."""
LEXICAL_OF_QUESTIONS: Final = 2.0
"""Questions of people repeat more of the answer's words than the sentences around it do."""
LEXICAL_SLOPE_LEAST: Final = 0.05

CHUNK_CHARS: Final = 4_000
"""Of longer chunks the beginning is taken."""
COVERAGE_CHARS: Final = 2_000

_PIECES = re.compile(r"(?<=[.!?…।؟۔])\s|(?<=[。！？])|\n")


@dataclass(frozen=True, kw_only=True)
class SampledChunk:
    id: str
    text: str


@dataclass(frozen=True, kw_only=True)
class PseudoQuery:
    chunk: int
    """Its place in the sample."""
    query: str
    answer: str
    """The rest of that chunk."""
    weight: float = 1.0


def is_stale(tuning: Tuning | None, chunk_count: int) -> bool:
    """Whether a collection of so many live chunks has to be measured: never yet, or when it had
    fewer or more by the factor `STALE_FACTOR`; where samples were the whole, by 2."""
    if chunk_count < CHUNKS_LEAST:
        return False
    if tuning is None:
        return True
    factor = 2 if tuning.chunks < SAMPLED_CHUNKS else STALE_FACTOR
    return not tuning.chunks / factor < chunk_count < tuning.chunks * factor


def coverage_by(tokenizer: Tokenizer | None) -> Callable[[str], float]:
    """How well an embedding model knows the words of a text, from 0 to 1; 1 where its tokenizer
    cannot be asked."""
    if tokenizer is None:
        return lambda _: 1.0
    return lambda text: script_coverage(tokenizer, text[:COVERAGE_CHARS])


def pseudo_queries(
    sample: Sequence[SampledChunk], limit: int = PSEUDO_QUERIES
) -> list[PseudoQuery]:
    """At most one of each chunk; the same ones for the same chunks."""
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
    """Of a random sample of a collection's chunks, up to `SAMPLED_CHUNKS`, whose vectors have the
    shape (len(sample), dimension) and length 1. None where no pseudo-query can be made of it.

    `encode` is called once with as many texts as there are pseudo-queries (each no longer than a
    chunk), and `encode_queries` once.
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
    seen = np.array([covered(one, known) for one in coverages])
    alone = LEXICAL_PRIOR / LEXICAL_OF_QUESTIONS
    (lexical_slope,) = _slopes(
        [lexical], answers, weights, prior=[alone], precision=[(2 / alone) ** 2]
    )
    dense_slope, _ = _slopes(
        [deviations * seen[:, None], lexical],
        answers,
        weights,
        prior=[known, lexical_slope],
        precision=[1.0, (4 / alone) ** 2],
    )
    return Tuning(
        mean=mean,
        std=std,
        chance=float(np.quantile(highest, 0.95)) / highest_by_chance(len(sample)),
        dense=max(0.0, dense_slope) * _sight(deviations, answers, weights * seen, prior=known),
        lexical=float(
            np.sqrt(LEXICAL_PRIOR * LEXICAL_OF_QUESTIONS * max(lexical_slope, LEXICAL_SLOPE_LEAST))
        ),
        coverage=known,
        pairs=len(pairs),
        chunks=chunk_count,
    )


# The tuning of a collection


@dataclass(frozen=True, kw_only=True)
class CollectionFacts:
    """`tuning` is what is stored of it."""

    id: UUID
    name: str
    tuning: Any


def tuning_of(
    process: Process,
    collection: CollectionFacts,
    embedder: Embedder,
    result: LexicalResult,
    *,
    check: Callable[[], None],
) -> Tuning:
    """The tuning that is kept with the collection, which is measured first where it is stale
    (`is_stale`): about log(chunks) times in its life. That takes the time of embedding
    `PSEUDO_QUERIES` chunks and as many sentences.

    `result` is of any query, and says which chunks are live. `check` is called between batches, and
    may raise. While one thread of this process measures, others go on with what was measured
    before, or wait where that is nothing. Raises what the store and the embedder raise.
    """
    kept = Tuning.load(collection.tuning)
    if not is_stale(kept, result.live_chunks):
        return kept or UNMEASURED
    lock = process.held(_Measuring).lock
    if not lock.acquire(blocking=kept is None):
        assert kept is not None
        return kept
    try:
        with process.ledger.read() as session:
            latest = Tuning.load(collections.tuning(session, collection.id))
        if not is_stale(latest, result.live_chunks):
            return latest or UNMEASURED
        tuning = _measured(process, collection, embedder, result, check)
        with process.ledger.begin() as session:
            collections.note_tuning(session, collection.id, tuning.dump())
        return tuning
    finally:
        lock.release()


def tuning_for_search(
    process: Process,
    collection: CollectionFacts,
    embedder: Embedder,
    result: LexicalResult,
    *,
    check: Callable[[], None],
) -> Tuning:
    """As `tuning_of`, but what is kept is taken if it is stale, too, and `measure_due` then knows
    of it."""
    kept = Tuning.load(collection.tuning)
    if kept is None or not is_stale(kept, result.live_chunks):
        return tuning_of(process, collection, embedder, result, check=check)
    process.held(_Due).names.add(collection.name)
    return kept


def measure_due(process: Process) -> None:
    """Measure the collections that searches of this process have met as stale. Called behind these;
    nothing comes of what fails, and the next search finds it stale again."""
    due = process.held(_Due).names
    while due:
        measure_ingested(process, due.pop(), chunks_least=CHUNKS_LEAST)


def measure_ingested(
    process: Process, name: str, *, chunks_least: int = INGESTED_CHUNKS_LEAST
) -> None:
    """Measure a collection where it is stale, and has so many chunks. Logs what fails."""
    try:
        with process.ledger.read() as session:
            row = collections.get(session, name)
            collection = CollectionFacts(id=row.id, name=row.name, tuning=row.tuning)
            model = row.embedding_model
        result = lexical_of(process).search(collection.id, "", limit=1)
        if result.live_chunks < chunks_least:
            return
        if is_stale(Tuning.load(collection.tuning), result.live_chunks):
            embedder = embedders_of(process).get(model)
            tuning_of(process, collection, embedder, result, check=lambda: None)
    except (SluiceError, SQLAlchemyError) as error:
        log.info("collection %s was not measured: %s", name, error)


class _Due:
    """The names of collections that are to be measured."""

    def __init__(self, _process: Process) -> None:
        self.names: set[str] = set()


def _measured(
    process: Process,
    collection: CollectionFacts,
    embedder: Embedder,
    result: LexicalResult,
    check: Callable[[], None],
) -> Tuning:
    ids = result.sample(SAMPLED_CHUNKS)
    vectors = store_of(process).vectors(collection.name, ids)
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


class _Measuring:
    """Held by the thread that measures."""

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
    """Sentences and lines, short ones with what is behind them, but for a short end."""
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
    """BM25 of each query and chunk of the sample, as `workers.retrieval.lexical` has it; for each
    query, the chunk of its answer is the answer alone. Shape (queries, chunks)."""
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
        own = Counter(answer_terms[n])
        answer = int(answers[n])
        for term, repeated in Counter(query).items():
            if term not in frequency:
                continue
            rarity = (len(chunks) - frequency[term] + 0.5) / (frequency[term] + 0.5)
            weight = repeated * float(np.log1p(rarity))
            for chunk, times in postings[term]:
                if chunk != answer:
                    scores[n, chunk] += weight * score(times, len(chunks[chunk]))
            if own[term]:
                scores[n, answer] += weight * score(own[term], len(answer_terms[n]))
    return scores


def _slopes(
    features: Sequence[Floats],
    answers: npt.NDArray[np.int64],
    weights: Floats,
    *,
    prior: Sequence[float],
    precision: Sequence[float],
) -> list[float]:
    """The slopes w that maximize the likelihood of the answers, under softmax over each row of the
    sum of w x feature, and normal priors. `weights` are those of the rows. Newton's method
    with halved steps: it is concave."""
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


def _sight(
    scores: Floats, answers: npt.NDArray[np.int64], weights: Floats, *, prior: float
) -> float:
    """How often scores alone put the answer first, nearly: its mean reciprocal rank, less the
    standard error, between what chance gives (0) and 1. Equals count half."""
    own = scores[np.arange(len(answers)), answers][:, None]
    ranks = 1 + (scores > own).sum(axis=1) + ((scores == own).sum(axis=1) - 1) / 2
    reciprocal = np.append(1 / ranks, prior)
    weights = np.append(weights, SIGHT_PRIOR_PAIRS)
    mean = np.average(reciprocal, weights=weights)
    error = np.sqrt(np.average((reciprocal - mean) ** 2, weights=weights) / weights.sum())
    chunks = scores.shape[1]
    chance = (1 / np.arange(1, chunks + 1)).sum() / chunks
    return max(0.0, float((mean - error - chance) / (1 - chance)))
