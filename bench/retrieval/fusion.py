"""How well hybrid search joins its halves: against each of them, whatever the other one sees.

    python -m bench.retrieval.fusion [--chunks 30 100 300] [--more NAME=FILE ...] [--kiwi]
                                     [--keep FOLDER]

Each data set of `../shared/data`, a collection of synonyms, the pages of PostgreSQL's documentation
(with their titles as queries), and files in SQuAD's format that are named, is searched with four
embedders: the default model; vectors that are random; perfect ones, where a question has the vector
of its passage, and pseudo-queries either have random ones or that of the chunk they are cut from.
Prints recall@6 and MRR@10 of the dense half, of the lexical half, of reciprocal rank fusion and of
`workers.retrieval.fusion`; the difference between the last and the better half, marked where it is
below -0.002; and what was measured of the collection. `--chunks` draws collections of so many
passages. `--keep` keeps the model's vectors in a folder.
"""

import argparse
import hashlib
import json
import re
import sys
from abc import ABC, abstractmethod
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np
from lxml import html

from bench.support.corpus import NoCorpus, pages
from shared.config import Settings
from workers.models.devices import Vectors
from workers.retrieval.embed import Embedder, Embedders
from workers.retrieval.fusion import UNMEASURED, Floats, QueryFacts, Tuning, fuse
from workers.retrieval.terms import Morphemes, terms
from workers.retrieval.tuning import (
    SAMPLED_CHUNKS,
    SampledChunk,
    coverage_by,
    measure,
    pseudo_queries,
)

DATA = Path(__file__).resolve().parents[3] / "shared" / "data"
DIMENSION = 384
CANDIDATES = 50
"""Of each half; those of both are fused."""
K = 6
RECIPROCAL = 10
RRF = 60
TOLERANCE = 0.002
PAGE_CHARS = 6000
PIECE_CHARS = 1000
TITLES = 600
K1, B = 1.5, 0.75

SYNONYMS = [
    ("The physician prescribed medicine against the illness.", "doctor drug for a disease"),
    ("Automobiles must not exceed fifty kilometres an hour downtown.", "car speed limit in city"),
    ("Staff may take eighteen days of paid vacation annually.", "how much holiday per year"),
    ("The vessel sank near the shore during a violent storm.", "ship wreck at coast"),
    ("Infants sleep about sixteen hours daily.", "how long babies rest"),
    ("Remuneration is transferred on the last working day.", "when are salaries paid"),
    ("The movie received several prizes at the festival.", "awards won by a film"),
    ("Purchase two tickets at the counter beside the entrance.", "where to buy admission passes"),
    ("Our attorney filed a complaint with the tribunal.", "lawyer sues in court"),
    ("The blaze destroyed three houses before it was extinguished.", "fire burned down homes"),
    ("Pupils have to hand in their assignments by Friday.", "deadline of student homework"),
    ("The airplane landed late because of dense fog.", "flight delay due to poor visibility"),
    ("Felines hunt mice mostly at night.", "when do cats catch rodents"),
    ("Garbage is collected twice a week.", "how often does the city pick up trash"),
    ("The enterprise dismissed a hundred labourers.", "company lays off workers"),
    ("Physical exercise lowers the risk of cardiac arrest.", "sport prevents heart attack"),
    ("The monarch died without an heir.", "king had no successor"),
    ("Beverages are served free of charge.", "do drinks cost anything"),
    ("Robbers broke into the jewellery shop.", "thieves stole from gem store"),
    ("The kettle switches itself off once water boils.", "does appliance stop when hot"),
    ("Precipitation is rare in deserts.", "how frequently it rains where land is dry"),
    ("The instructor explained fractions patiently.", "teacher makes maths clear"),
    ("Lodging near campus is expensive.", "high rent of flats close to university"),
    ("Merchants exchanged silk against spices.", "trade of fabric for pepper"),
]
"""Passages and queries that share no word with them, but for the commonest."""


@dataclass(frozen=True, kw_only=True)
class Questions:
    """`answers` has the place of each query's passage."""

    name: str
    passages: Sequence[str]
    queries: Sequence[str]
    answers: Sequence[int]


@dataclass(frozen=True, kw_only=True)
class Quality:
    recall: float
    reciprocal_rank: float


@dataclass(frozen=True, kw_only=True)
class Comparison:
    dense: Quality
    lexical: Quality
    ranks: Quality
    """Of reciprocal rank fusion."""
    hybrid: Quality
    tuning: Tuning
    weight: float
    """The mean over the queries."""

    @property
    def gain(self) -> tuple[float, float]:
        """Of recall and of reciprocal rank, over the better half."""
        return (
            self.hybrid.recall - max(self.dense.recall, self.lexical.recall),
            self.hybrid.reciprocal_rank
            - max(self.dense.reciprocal_rank, self.lexical.reciprocal_rank),
        )


# Data


def squad(name: str, path: Path) -> Questions:
    passages: list[str] = []
    queries: list[str] = []
    answers: list[int] = []
    for article in json.loads(path.read_text())["data"]:
        for paragraph in article["paragraphs"]:
            for question in paragraph["qas"]:
                queries.append(question["question"])
                answers.append(len(passages))
            passages.append(paragraph["context"])
    return Questions(name=name, passages=passages, queries=queries, answers=answers)


def sentence_pairs() -> Questions:
    pairs = json.loads((DATA / "klue-sts-v1.1_dev.json").read_text())
    alike = [n for n, pair in enumerate(pairs) if pair["labels"]["binary-label"] == 1]
    return Questions(
        name="klue",
        passages=[pair["sentence2"] for pair in pairs],
        queries=[pairs[n]["sentence1"] for n in alike],
        answers=alike,
    )


def synonyms() -> Questions:
    passages, queries = zip(*SYNONYMS, strict=True)
    return Questions(
        name="synonyms", passages=passages, queries=queries, answers=range(len(passages))
    )


def documentation() -> Questions:
    """Pages cut into pieces; their titles, which are cut out, are to find the first piece."""
    passages: list[str] = []
    queries: list[str] = []
    answers: list[int] = []
    for page in pages():
        body = html.parse(str(page)).getroot().find("body")
        for furniture in body.xpath('.//div[@class="navheader" or @class="navfooter"]'):
            furniture.drop_tree()
        title = next(iter(body.xpath('.//*[self::h1 or self::h2][@class="title"]')), None)
        if title is None:
            continue
        heading = re.sub(r"^(?:\w+\s)?[\dA-Z]+(?:\.\d+)*\.\s", "", _words(title.text_content()))
        title.drop_tree()
        text = _words(body.text_content())[:PAGE_CHARS]
        queries.append(heading)
        answers.append(len(passages))
        passages += [text[at : at + PIECE_CHARS] for at in range(0, len(text), PIECE_CHARS)]
    kept = np.random.default_rng(1).permutation(len(queries))[:TITLES]
    return Questions(
        name="postgresql",
        passages=passages,
        queries=[queries[n] for n in kept],
        answers=[answers[n] for n in kept],
    )


def _words(text: str) -> str:
    return " ".join(text.split())


def part_of(questions: Questions, count: int, seed: int) -> Questions:
    """A collection of so many of the passages, with their queries."""
    kept = np.sort(np.random.default_rng(seed).permutation(len(questions.passages))[:count])
    places = {int(n): place for place, n in enumerate(kept)}
    pairs = zip(questions.queries, questions.answers, strict=True)
    left = [(query, places[answer]) for query, answer in pairs if answer in places]
    return Questions(
        name=f"{questions.name}/{count}",
        passages=[questions.passages[n] for n in kept],
        queries=[query for query, _ in left],
        answers=[answer for _, answer in left],
    )


# The halves


class Bm25:
    """All passages are scored: the reference of `workers.retrieval.lexical`."""

    def __init__(
        self, passages: Sequence[str], terms_of: Callable[[str], Sequence[str]] = terms
    ) -> None:
        self._terms = terms_of
        self._size = len(passages)
        counts = [Counter(terms_of(passage)) for passage in passages]
        lengths = np.array([count.total() for count in counts], dtype=np.float64)
        norms = K1 * (1 - B + B * lengths / max(lengths.mean(), 1.0))
        postings: dict[str, tuple[list[int], list[float]]] = {}
        for n, count in enumerate(counts):
            for term, times in count.items():
                places, parts = postings.setdefault(term, ([], []))
                places.append(n)
                parts.append(times / (times + norms[n]))
        self._postings = postings

    def scores(self, queries: Sequence[str]) -> tuple[Floats, Floats]:
        """BM25 of each query and passage, and the best possible of each query."""
        scores = np.zeros((len(queries), self._size))
        best = np.zeros(len(queries))
        for n, query in enumerate(queries):
            for term, repeated in Counter(self._terms(query)).items():
                if term not in self._postings:
                    continue
                places, parts = self._postings[term]
                rarity = (self._size - len(places) + 0.5) / (len(places) + 0.5)
                weight = repeated * float(np.log1p(rarity))
                scores[n, places] += weight * np.array(parts)
                best[n] += weight
        return scores, best


def lexical_scores(questions: Questions, kiwi: Morphemes | None) -> tuple[Floats, Floats]:
    scores, best = Bm25(questions.passages).scores(questions.queries)
    if kiwi is None:
        return scores, best
    other, other_best = Bm25(questions.passages, kiwi.terms).scores(questions.queries)
    has = other_best > 0
    shares = scores[has] / np.maximum(best[has], 1e-9)[:, None]
    shares = (shares + other[has] / other_best[has][:, None]) / 2
    scores[has] = shares * best[has][:, None]
    return scores, best


class Embedding(ABC):
    """Vectors of passages, of queries, and of what pseudo-queries are made of."""

    def __init__(self, questions: Questions) -> None:
        self.questions = questions
        self.passages = self.encode(questions.passages)
        self.queries = self.encode(questions.queries)

    @abstractmethod
    def encode(self, texts: Sequence[str]) -> Vectors:
        """Shape (len(texts), dimension), of length 1."""

    def prepare(self, sample: Sequence[SampledChunk], vectors: Vectors) -> None:
        """Before the pseudo-queries of the sample are encoded."""
        del sample, vectors

    def coverage(self, text: str) -> float:
        del text
        return 1.0


class Model(Embedding):
    """The default embedding model."""

    folder: Path | None = None

    def encode(self, texts: Sequence[str]) -> Vectors:
        if self.folder is None or len(texts) <= 2 * len(SYNONYMS):
            return _model().encode(texts, between=lambda: None)
        name = hashlib.sha256("\0".join(texts).encode()).hexdigest()[:24]
        kept = self.folder / f"{name}.npy"
        if not kept.exists():
            np.save(kept, _model().encode(texts, between=lambda: None))
        vectors: Vectors = np.load(kept)
        return vectors

    def coverage(self, text: str) -> float:
        return _coverage()(text)


class Random(Embedding):
    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([random_vector(text) for text in texts]).reshape(len(texts), DIMENSION)


class Perfect(Random):
    def __init__(self, questions: Questions) -> None:
        super().__init__(questions)
        self.queries = self.passages[list(questions.answers)]


class PerfectOfParts(Perfect):
    """Parts of a chunk have its vector, too."""

    def __init__(self, questions: Questions) -> None:
        self._own: dict[str, Vectors] = {}
        super().__init__(questions)

    def prepare(self, sample: Sequence[SampledChunk], vectors: Vectors) -> None:
        for pair in pseudo_queries(sample):
            self._own[pair.query] = self._own[pair.answer] = vectors[pair.chunk]

    def encode(self, texts: Sequence[str]) -> Vectors:
        return np.array([self._own.get(text, random_vector(text)) for text in texts])


EMBEDDINGS: dict[str, type[Embedding]] = {
    "model": Model,
    "random": Random,
    "perfect": Perfect,
    "perfect of parts": PerfectOfParts,
}


def random_vector(text: str) -> Vectors:
    """Of length 1; the text decides it."""
    seed = int.from_bytes(hashlib.blake2b(text.encode(), digest_size=8).digest())
    drawn = np.random.default_rng(seed).standard_normal(DIMENSION)
    return np.asarray(drawn / np.linalg.norm(drawn), dtype=np.float32)


@cache
def _model() -> Embedder:
    return Embedders(Settings()).get()


@cache
def _coverage() -> Callable[[str], float]:
    return coverage_by(_model().tokenizer)


# Comparing


def tuning_for(embedding: Embedding, seed: int = 0) -> Tuning:
    passages = embedding.questions.passages
    drawn = np.random.default_rng(seed).permutation(len(passages))[:SAMPLED_CHUNKS]
    sample = [SampledChunk(id=f"{seed}-{n}", text=passages[n]) for n in drawn]
    embedding.prepare(sample, embedding.passages[drawn])
    tuning = measure(
        sample,
        embedding.passages[drawn],
        chunk_count=len(passages),
        terms=terms,
        encode=embedding.encode,
        encode_queries=embedding.encode,
        coverage=embedding.coverage,
    )
    return tuning or replace(UNMEASURED, chunks=len(passages))


def compare(embedding: Embedding, lexical: tuple[Floats, Floats], tuning: Tuning) -> Comparison:
    """`lexical` is what `lexical_scores` gives."""
    questions = embedding.questions
    matches, best = lexical
    cosines = embedding.queries.astype(np.float64) @ embedding.passages.astype(np.float64).T
    nearest = _ranks(cosines)
    matching = np.where(matches > 0, _ranks(matches), len(questions.passages))
    fused = np.empty(cosines.shape)
    weights = np.empty(len(cosines))
    for n, query in enumerate(questions.queries):
        result = fuse(
            cosines[n],
            matches[n],
            best_possible=best[n],
            facts=QueryFacts(coverage=embedding.coverage(query)),
            tuning=tuning,
            chunk_count=len(questions.passages),
        )
        fused[n], weights[n] = result.scores, result.weight
    fused[(nearest >= CANDIDATES) & (matching >= CANDIDATES)] = -np.inf
    ranks = 1 / (RRF + nearest) + np.where(matches > 0, 1 / (RRF + matching), 0)
    answers = np.array(questions.answers)
    return Comparison(
        dense=_quality(cosines, answers),
        lexical=_quality(np.where(matches > 0, matches, -np.inf), answers),
        ranks=_quality(ranks, answers),
        hybrid=_quality(fused, answers),
        tuning=tuning,
        weight=float(weights.mean()),
    )


def _ranks(scores: Floats) -> Floats:
    """From 0; of equals, the first in order comes first."""
    order = np.argsort(-scores, axis=1, kind="stable")
    ranks = np.empty(order.shape)
    np.put_along_axis(ranks, order, np.arange(scores.shape[1])[None, :], axis=1)
    return ranks


def _quality(scores: Floats, answers: np.ndarray) -> Quality:
    """What has no score (-inf) is not found."""
    rows = np.arange(len(answers))
    ranks = np.where(np.isfinite(scores[rows, answers]), _ranks(scores)[rows, answers], np.inf)
    return Quality(
        recall=float((ranks < K).mean()),
        reciprocal_rank=float(np.where(ranks < RECIPROCAL, 1 / (ranks + 1), 0).mean()),
    )


def data_sets(more: Sequence[str]) -> Iterator[Questions]:
    yield squad("xquad en", DATA / "xquad.en.json")
    yield squad("xquad zh", DATA / "xquad.zh.json")
    yield squad("tydi ko", DATA / "tydiqa.ko.json")
    yield sentence_pairs()
    yield synonyms()
    try:
        yield documentation()
    except NoCorpus as error:
        print(error, file=sys.stderr)
    for pair in more:
        name, _, path = pair.partition("=")
        yield squad(name, Path(path))


HEADER = (
    f"{'collection':16}{'chunks':>7} {'embedder':17}{'dense':^14}{'lexical':^14}{'rrf':^14}"
    f"{'hybrid':^14}{'gain':^16}  {'weight':>6} {'slopes':>11}"
)


def row(questions: Questions, name: str, result: Comparison) -> str:
    qualities = "".join(
        f"{one.recall:>7.4f}{one.reciprocal_rank:>7.4f}"
        for one in (result.dense, result.lexical, result.ranks, result.hybrid)
    )
    gain = "".join(f"{one:>+8.4f}" for one in result.gain)
    mark = "!" if min(result.gain) < -TOLERANCE else " "
    slopes = f"{result.tuning.dense:.2f} {result.tuning.lexical:.2f}"
    return (
        f"{questions.name:16}{len(questions.passages):>7} {name:17}{qualities}{gain}{mark} "
        f"{result.weight:>6.2f} {slopes:>11}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--chunks", type=int, nargs="*", default=[])
    parser.add_argument("--more", nargs="*", default=[], metavar="NAME=FILE")
    parser.add_argument("--kiwi", action="store_true")
    parser.add_argument("--keep", type=Path)
    arguments = parser.parse_args()
    if not DATA.is_dir():
        raise SystemExit(f"{DATA} is not there.")
    Model.folder = arguments.keep
    kiwi = Morphemes() if arguments.kiwi else None
    print("recall@6 and MRR@10 of each", HEADER, sep="\n", flush=True)
    for whole in data_sets(arguments.more):
        parts = [part_of(whole, n, n) for n in arguments.chunks if n < len(whole.passages)]
        for questions in (whole, *parts):
            if not questions.queries:
                continue
            lexical = lexical_scores(questions, kiwi)
            for name, make in EMBEDDINGS.items():
                embedding = make(questions)
                result = compare(embedding, lexical, tuning_for(embedding))
                print(row(questions, name, result), flush=True)


if __name__ == "__main__":
    main()
