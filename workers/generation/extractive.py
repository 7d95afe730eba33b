"""The model reference `extractive`: answers with the sentences that best answer the question.

One to three sentences are quoted from the passages, each followed by its marker: `[1]`, `[2]` in
the order of first use. A quote is verbatim, but for whitespace, which is collapsed, and length:
past about 400 characters it ends in an ellipsis. Nothing is written by a language model. Sentences
are chosen by the question's informative terms in them and beside them, by the retrieval score of
their passage and by whether they hold what was asked for (a number, a date, a name). When no
sentence shares enough of those terms, the answer says so and cites nothing.

It matches words, not meaning: a Korean question about an English passage finds only the names
that both spell alike. It reads no settings and loads no model.
"""

import math
import re
from dataclasses import dataclass
from typing import Final

from workers.generation import sentences, terms
from workers.generation.sentences import Sentence

MOST_QUOTES: Final = 3
QUOTE_CHARS: Final = 400
NOTHING_ENGLISH: Final = "Nothing relevant to this question was found in the collection."
NOTHING_KOREAN: Final = "이 컬렉션에서 질문과 관련된 내용을 찾지 못했습니다."

W = dict(
    ctx=0.3,
    pas=0.3,
    score=0.3,
    typ=0.12,
    cut=0.15,
    head=0.4,
    q=0.2,
    second=0.5,
    common=0.35,
    short=0.15,
    first=0.6,
)
ENOUGH = 0.45

_HANGUL: Final = re.compile(r"[가-힣]")
_NUMBER: Final = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|"
    r"million|billion|dozen|half|third|once|twice|first|second)\b|[한두세네다섯여섯일곱여덟아홉열]\s?(?:개|명|번|가지|시간|달)",
    re.I,
)
_DATE: Final = re.compile(
    r"\b1\d{3}\b|\b20\d\d\b|\b\d{1,2}:\d\d\b|\b(?:January|February|March|April|May|June|July|August|"
    r"September|October|November|December|Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b|century|\b\d+s\b"
    r"|\d+\s?(?:년|월|일|시|분|세기)|오전|오후|매[일주월년]|[월화수목금토일]요일|정오|자정"
)
_NAME: Final = re.compile(
    r"(?<=[a-z,;)] )[A-Z][\w.'’-]+|^[A-Z][\w'’-]+ [A-Z]|[가-힣]{2,4}(?:\s?(?:씨|님|교수|박사|대표|팀장|과장|부장|사장|감독|장관|대통령|담당자|관리자))"
)
_ASKS = (
    (
        re.compile(
            r"\b(?:how (?:many|much|long|far|old|tall|large|big|high|often|fast)|what (?:percent\w*|number|amount|age)|how\s\w+)\b|몇|얼마",
            re.I,
        ),
        _NUMBER,
    ),
    (
        re.compile(
            r"\b(?:when|what (?:year|date|day|month|time|century|decade)|which year)\b|언제|몇\s?(?:년|월|일|시)",
            re.I,
        ),
        _DATE,
    ),
    (re.compile(r"\b(?:who|whom|whose)\b|누구|누가", re.I), _NAME),
)


@dataclass(frozen=True, kw_only=True)
class Quote:
    text: str
    passage: int


@dataclass(frozen=True, kw_only=True)
class ExtractiveAnswer:
    answer: str
    cited: tuple[int, ...]


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    passage: int
    at: int
    sentence: Sentence
    terms: frozenset[str]


def match(word, found):
    hit = sum(t in found for t in word) / len(word)
    if len(word) > 1 and word[0] in found:
        hit = max(hit, W["first"])
    return hit if hit >= 0.5 else 0.0


def rank(question, passages, scores):
    asked = list(dict.fromkeys(terms.words(question)))
    cands = []
    for p, passage in enumerate(passages):
        for at, s in enumerate(sentences.split(passage)):
            cands.append(
                _Candidate(
                    passage=p,
                    at=at,
                    sentence=s,
                    terms=frozenset(t for w in terms.words(s.text) for t in w),
                )
            )
    if not asked or not cands:
        return [], 0.0, []
    M = [[match(w, c.terms) for w in asked] for c in cands]
    N = len(cands)
    wt = []
    for j, w in enumerate(asked):
        df = sum(m[j] > 0 for m in M)
        idf = math.log(1 + (N - df + 0.5) / (df + 0.5))
        wt.append(idf * (W["common"] if all(terms.is_common(t) for t in w) else 1))
    tot = sum(wt) or 1
    types = [a for q, a in _ASKS if q.search(question)]
    by = {}
    for c, m in zip(cands, M):
        by.setdefault(c.passage, []).append((c, m))
    best = max(scores) if len(scores) else 0
    low = min(scores) if len(scores) else 0
    out = []
    pmax = {p: [max(col) for col in zip(*(m for _, m in ms))] for p, ms in by.items()}
    for p, ms in by.items():
        pas = sum(w * x for w, x in zip(wt, pmax[p])) / tot
        head = [0.0] * len(asked)
        for i, (c, m) in enumerate(ms):
            if c.sentence.is_heading:
                head = m
            ctx = [
                max(a, b * 0.7, h)
                for a, b, h in zip(
                    ms[i - 1][1] if i else [0] * len(asked),
                    ms[i + 1][1] if i + 1 < len(ms) else [0] * len(asked),
                    head,
                )
            ]
            direct = sum(w * x for w, x in zip(wt, m)) / tot
            both = sum(w * max(x, y) for w, x, y in zip(wt, m, ctx)) / tot
            s = direct + W["ctx"] * (both - direct) + W["pas"] * pas
            if best > 0:
                s += W["score"] * (scores[p] - best) / max(best, 0.3)
            if types:
                s += W["typ"] * any(t.search(c.sentence.text) for t in types[-1:])
            if c.sentence.is_cut:
                s -= W["cut"]
            if c.sentence.is_heading:
                s -= W["head"]
            if c.sentence.text.endswith("?"):
                s -= W["q"]
            if len(c.sentence.text.split()) < 4:
                s -= W["short"]
            out.append((s, c, direct, both, pas))
    out.sort(key=lambda x: -x[0])
    return out, tot, list(zip(asked, wt))
