"""How often the `extractive` answerer quotes the right answer, and how often it invents one.

    python -m bench.extractive [--every N] [--curve]

XQuAD (English and Chinese), and the Korean of TyDi QA: each question with its paragraph among six
(three more of the same article, two of others), and with the six paragraphs that the lexical search
ranks first of all; a quote counts if it holds a gold answer. Questions without an answer:
the same ones with six paragraphs of other articles, none of which holds a gold answer, drawn at
random, or those that the search ranks highest. Korean besides: the questions of the tests, and
KLUE-STS, where `sentence2` is to be quoted for `sentence1` among five others.

`--curve` shows what other thresholds than the one in use would refuse. `--every 4` takes every
fourth question. Reads `../shared/data`.
"""

import argparse
import json
import math
import random
import sys
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.generation.backends import extractive
from workers.retrieval.lexical import K1, B
from workers.retrieval.terms import terms

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
KOREAN = ROOT / "tests" / "unit" / "fixtures" / "korean_questions.json"
PASSAGES = 6
SAME_ARTICLE = 3
SAME_SCORE = 0.5
THRESHOLDS = (0.1, 0.2, 0.25, 0.3, 0.35, 0.4, 0.5, 0.6)

Similarity = Callable[[Sequence[str], Sequence[str]], list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    question: str
    passages: list[str]
    scores: list[float]
    gold: list[str]  # empty where nothing answers the question


@dataclass(frozen=True, kw_only=True)
class Outcome:
    relevance: float
    quotes: int
    contained: bool  # a quote holds a gold answer
    first: bool  # the first quote does


@dataclass(frozen=True, kw_only=True)
class Rates:
    contained: float  # of the answerable: a quote holds a gold answer
    first: float  # of the answerable: the first quote does
    nothing: float  # share of "nothing relevant was found"
    quotes: float  # quotes an answer, where there is one


def outcomes(cases: Sequence[Case]) -> list[Outcome]:
    """What is quoted, whatever the threshold."""
    results = []
    for case in cases:
        ranking = extractive.rank(case.question, case.passages, case.scores)
        gold = [_bare(answer) for answer in case.gold]
        hits = [any(answer in _bare(quote.text) for answer in gold) for quote in ranking.quotes]
        results.append(
            Outcome(
                relevance=ranking.relevance,
                quotes=len(ranking.quotes),
                contained=any(hits),
                first=bool(hits) and hits[0],
            )
        )
    return results


def rates(results: Sequence[Outcome], enough: float = extractive.ENOUGH) -> Rates:
    shown = [one for one in results if one.quotes and one.relevance >= enough]
    total = len(results)
    return Rates(
        contained=sum(one.contained for one in shown) / total,
        first=sum(one.first for one in shown) / total,
        nothing=1 - len(shown) / total,
        quotes=sum(one.quotes for one in shown) / max(1, len(shown)),
    )


def measure(cases: Sequence[Case]) -> Rates:
    return rates(outcomes(cases))


def _bare(text: str) -> str:
    return "".join(unicodedata.normalize("NFKC", text).split())


def same_score(questions: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
    return [[SAME_SCORE] * len(passages) for _ in questions]


class Search:
    """BM25 over the terms of the lexical index, as that has it."""

    def __init__(self, passages: Sequence[str]) -> None:
        counts = [Counter(terms(passage)) for passage in passages]
        mean = sum(one.total() for one in counts) / len(counts)
        having = Counter(term for one in counts for term in one)
        self._postings: dict[str, list[tuple[int, float]]] = defaultdict(list)
        for at, one in enumerate(counts):
            norm = K1 * (1 - B + B * one.total() / mean)
            for term, times in one.items():
                rarity = math.log(1 + (len(counts) - having[term] + 0.5) / (having[term] + 0.5))
                self._postings[term].append((at, rarity * times / (times + norm)))

    def scores(self, question: str) -> dict[int, float]:
        """Of those passages that share a term with the question."""
        scores: dict[int, float] = defaultdict(float)
        for term in terms(question):
            for at, score in self._postings.get(term, ()):
                scores[at] += score
        return scores


def squad(
    path: Path, *, every: int = 1, seed: int = 0
) -> tuple[list[Case], list[Case], list[Case], list[Case]]:
    """Answerable: with the right passage among six, and with what the search returns; and without
    an answer: with passages at random, and with what the search returns of other articles."""
    articles = json.loads(path.read_text("utf-8"))["data"]
    paragraphs: list[tuple[int, str]] = []
    questions: list[tuple[str, int, list[str]]] = []
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            # TyDi QA has its paragraphs in one list, each of an article of its own.
            own = number if len(articles) > 1 else len(paragraphs)
            for qa in paragraph["qas"]:
                gold = [one["text"] for one in qa["answers"]]
                questions.append((qa["question"], len(paragraphs), gold))
            paragraphs.append((own, paragraph["context"]))
    texts = [text for _, text in paragraphs]
    search = Search(texts)
    draw = random.Random(seed)
    cases: tuple[list[Case], ...] = ([], [], [], [])
    for question, at_own, gold in questions[::every]:
        article = paragraphs[at_own][0]
        same = [at for at, (one, _) in enumerate(paragraphs) if one == article and at != at_own]
        other = [
            at
            for at, (one, text) in enumerate(paragraphs)
            if one != article and not any(answer in text for answer in gold)
        ]
        scores = search.scores(question)
        of_article = draw.sample(same, min(SAME_ARTICLE, len(same)))
        mixed = [at_own, *of_article, *draw.sample(other, PASSAGES - 1 - len(of_article))]
        draw.shuffle(mixed)
        ranked = sorted(range(len(texts)), key=lambda at: -scores.get(at, 0.0))
        without = set(other)
        picks: tuple[tuple[list[int], list[str], dict[int, float] | None], ...] = (
            (mixed, gold, None),
            (ranked[:PASSAGES], gold, scores),
            (draw.sample(other, PASSAGES), [], None),
            ([at for at in ranked if at in without][:PASSAGES], [], scores),
        )
        for one, (ids, answers, by) in zip(cases, picks, strict=True):
            one.append(
                Case(
                    question=question,
                    passages=[texts[at] for at in ids],
                    scores=[by.get(at, 0.0) if by else SAME_SCORE for at in ids],
                    gold=answers,
                )
            )
    right, retrieved, at_random, nearest = cases
    return right, retrieved, at_random, nearest


def korean(similarity: Similarity, *, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """The questions of the tests with and without the passage that answers them."""
    data: dict[str, Any] = json.loads(KOREAN.read_text("utf-8"))
    rows = data["answerable"]
    questions = [row["question"] for row in rows] + data["unanswerable"]
    texts = [row["passage"] for row in rows]
    scores = similarity(questions, texts)
    draw = random.Random(seed)
    right: list[Case] = []
    wrong: list[Case] = []
    for at, (question, score) in enumerate(zip(questions, scores, strict=True)):
        others = [other for other in range(len(rows)) if other != at]
        for _ in range(4):
            picks = [(wrong, draw.sample(others, PASSAGES))]
            if at < len(rows):
                picks.append((right, [at, *draw.sample(others, PASSAGES - 1)]))
            for cases, ids in picks:
                draw.shuffle(ids)
                cases.append(
                    Case(
                        question=question,
                        passages=[texts[one] for one in ids],
                        scores=[score[one] for one in ids],
                        gold=[rows[at]["answer"]] if at in ids else [],
                    )
                )
    return right, wrong


def klue(path: Path, similarity: Similarity, *, seed: int = 0) -> tuple[list[Case], list[Case]]:
    """`sentence2` among the most similar others; and sentences of other sources only."""
    rows = json.loads(path.read_text("utf-8"))
    texts = [row["sentence2"] for row in rows]
    alike = [at for at, row in enumerate(rows) if row["labels"]["binary-label"] == 1]
    scores = similarity([rows[at]["sentence1"] for at in alike], texts)
    draw = random.Random(seed)
    right: list[Case] = []
    wrong: list[Case] = []
    for at, score in zip(alike, scores, strict=True):
        kind = rows[at]["source"].split("-")[0]
        others = [one for one in range(len(rows)) if one != at]
        nearest = sorted(others, key=lambda one: (-score[one], draw.random()))[: PASSAGES - 1]
        foreign = [one for one in others if rows[one]["source"].split("-")[0] != kind]
        for cases, ids in ((right, [at, *nearest]), (wrong, draw.sample(foreign, PASSAGES))):
            draw.shuffle(ids)
            cases.append(
                Case(
                    question=rows[at]["sentence1"],
                    passages=[texts[one] for one in ids],
                    scores=[score[one] for one in ids],
                    gold=[" ".join(texts[at].split())] if cases is right else [],
                )
            )
    return right, wrong


def main() -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawTextHelpFormatter
    )
    parser.add_argument("--every", type=int, default=1, help="take every N-th question")
    parser.add_argument("--curve", action="store_true", help="also at other thresholds")
    options = parser.parse_args()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is absent (it holds XQuAD, TyDi QA and KLUE-STS)")
        return 0
    print(f"{'':<59}{'contained':>11}{'in first':>10}{'nothing':>9}{'quotes':>8}")
    for name, file in (
        ("XQuAD en", "xquad.en.json"),
        ("XQuAD zh", "xquad.zh.json"),
        ("TyDi QA ko", "tydiqa.ko.json"),
    ):
        sets = [outcomes(cases) for cases in squad(DATA / file, every=options.every)]
        labels = (
            "right passage among six", "the six best of a search",
            "no answer: six passages at random", "no answer: the six best of a search",
        )  # fmt: skip
        for at, (label, results) in enumerate(zip(labels, sets, strict=True)):
            show(f"{name}, {label}", rates(results), is_answerable=at < 2)
        if options.curve:
            show_curve(sets)
    for name, (right, wrong) in (
        ("Korean of the tests", korean(same_score)),
        ("KLUE-STS", klue(DATA / "klue-sts-v1.1_dev.json", same_score)),
    ):
        show(f"{name}, right passage among six", measure(right), is_answerable=True)
        show(f"{name}, no answer: six others", measure(wrong), is_answerable=False)
    return 0


def show(label: str, rate: Rates, *, is_answerable: bool) -> None:
    contained = f"{rate.contained:.1%}" if is_answerable else "-"
    first = f"{rate.first:.1%}" if is_answerable else "-"
    print(f"{label:<59}{contained:>11}{first:>10}{rate.nothing:>9.1%}{rate.quotes:>8.2f}")


def show_curve(sets: Sequence[Sequence[Outcome]]) -> None:
    right, retrieved, at_random, nearest = sets
    print(
        f"{'':<4}{'threshold':>10} | refused without an answer: {'random':>7}{'nearest':>9} | "
        f"with one: {'among six':>9}{'search':>8} | answer quoted: {'among six':>9}{'search':>8}"
    )
    for enough in THRESHOLDS:
        among, top = rates(right, enough), rates(retrieved, enough)
        print(
            f"{'':<4}{enough:>10.2f} | {'':<26}{rates(at_random, enough).nothing:>8.1%}"
            f"{rates(nearest, enough).nothing:>9.1%} | {'':<10}{among.nothing:>9.1%}"
            f"{top.nothing:>8.1%} | {'':<14}{among.contained:>10.1%}{top.contained:>8.1%}"
        )


if __name__ == "__main__":
    sys.exit(main())
