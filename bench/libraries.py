"""Our quoting and reading of JSON against the libraries that could do it.

    pip install bm25s pysbd kiwipiepy json-repair
    python -m bench.libraries

Quotes: the cases of `bench/extractive.py`, without a model. The library's answer is the best three
sentences (pysbd or Kiwi) by BM25 (bm25s; words, in Korean Kiwi's morphemes), or nothing below a
score, set so that it says nothing on as many of the unanswerable cases as ours does. JSON: every
beginning of three answers, as `max_tokens` cuts them off.
Reads `../shared/data`. Decisions 0016 and 0017 have the figures.
"""

import json
import re
import sys
import time
from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import bm25s  # type: ignore[import-not-found,unused-ignore]  # no dependency of Sluice
import pysbd  # type: ignore[import-not-found,unused-ignore]  # no dependency of Sluice
from json_repair import loads  # type: ignore[import-not-found,unused-ignore]  # no dependency
from kiwipiepy import Kiwi  # type: ignore[import-not-found,unused-ignore]  # no dependency

from bench.extractive import DATA, Case, klue, korean, measure, same_score, xquad
from workers.generation.answers.structured import NotJson, parse

QUOTES = 3
ANSWERS: list[Any] = [
    {"name": "Kim", "ages": [31, 4], "city": {"name": "부산", "zip": "48058"}},
    {"items": [{"id": 1, "price": 12.5}, {"id": 2, "price": 700}], "total": 712.5},
    [["a", True], ["b", False], ["c", None]],
]

kiwi = Kiwi()
english = pysbd.Segmenter(language="en", clean=False)


@lru_cache(100_000)
def sentences(passage: str, is_korean: bool) -> tuple[str, ...]:
    if is_korean:
        return tuple(sentence.text for sentence in kiwi.split_into_sents(passage))
    return tuple(text for part in english.segment(passage) if (text := part.strip()))


@lru_cache(100_000)
def tokens(text: str, is_korean: bool) -> tuple[str, ...]:
    if is_korean:
        return tuple(
            token.form
            for token in kiwi.tokenize(text)
            if token.tag[0] in "NVM" or token.tag == "SL"
        )
    return tuple(re.findall(r"\w+", text.lower()))


def ranked(case: Case, is_korean: bool) -> list[tuple[float, str]]:
    texts = [text for passage in case.passages for text in sentences(passage, is_korean)]
    corpus = [list(tokens(text, is_korean)) or ["-"] for text in texts]
    index = bm25s.BM25()
    index.index(corpus, show_progress=False)
    scores = index.get_scores(list(tokens(case.question, is_korean)) or ["-"])
    return sorted(zip(scores.tolist(), texts, strict=True), reverse=True)[:QUOTES]


def compare(label: str, right: Sequence[Case], wrong: Sequence[Case], *, is_korean: bool) -> None:
    started = time.perf_counter()
    ours, nothing = measure(right), measure(wrong).nothing
    ours_s = time.perf_counter() - started
    started = time.perf_counter()
    answers = [ranked(case, is_korean) for case in right]
    best = sorted(ranked(case, is_korean)[0][0] for case in wrong)
    theirs_s = time.perf_counter() - started
    enough = best[min(len(best) - 1, round(nothing * len(best)))]
    shown = [[text for _, text in answer] if answer[0][0] >= enough else [] for answer in answers]
    held = sum(
        any(gold in text for text in texts for gold in case.gold)
        for case, texts in zip(right, shown, strict=True)
    )
    first = sum(
        bool(texts) and any(gold in texts[0] for gold in case.gold)
        for case, texts in zip(right, shown, strict=True)
    )
    total = len(right)
    print(
        f"{label:<12} {total:>5} cases, nothing on {nothing:.1%} of the unanswerable; "
        f"contained, in first: ours {ours.contained:.1%}, {ours.first:.1%} ({ours_s:.1f} s); "
        f"libraries {held / total:.1%}, {first / total:.1%} ({theirs_s:.1f} s)"
    )


def cut_off() -> None:
    ours = theirs = total = 0
    for value in ANSWERS:
        text = json.dumps(value, ensure_ascii=False)
        for end in range(1, len(text)):
            total += 1
            theirs += bool(loads(text[:end]))
            try:
                parse(text[:end])
                ours += 1
            except NotJson:
                pass
    print(f"{total} answers that were cut off; taken for whole: ours {ours}, json-repair {theirs}")


def main() -> int:
    cut_off()
    if not DATA.is_dir():
        print(f"skipped: {DATA} is absent")
        return 0
    right, wrong, _ = xquad(DATA / "xquad.en.json", same_score)
    compare("XQuAD", right, wrong, is_korean=False)
    compare("Korean", *korean(same_score), is_korean=True)
    compare("KLUE-STS", *klue(DATA / "klue-sts-v1.1_dev.json", same_score), is_korean=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
