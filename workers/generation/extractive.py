"""The model reference `extractive`: answers with the sentences that best answer the question.

One to three sentences are quoted from the passages, a line each, followed by the marker of their
passage: `[1]`, `[2]` in the order of first use. A quote is verbatim, but for whitespace, which is
collapsed, for its normal form, which is NFC, and for length: of a sentence longer than about 400
characters the part that matches best is quoted, with an ellipsis where it was cut. Nothing is
written by a language model. Sentences are ranked by the question's informative terms in them and
around them, by the retrieval score of their passage, and by whether they show what was asked for
(a number, a date, a name). When none shares enough of those terms, the answer says so and cites
nothing.

It matches words, whatever their width, case and normal form, and not meaning: a Korean question
about an English passage finds only the names that both write alike. It reads no settings, loads no
model and keeps no state.
"""

import math
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Final

from shared.normal import comparable, nfc, nfkc
from workers.generation.quoting import expected, sentences, terms
from workers.generation.quoting.sentences import Sentence
from workers.generation.quoting.terms import Word

MOST_QUOTES: Final = 3
QUOTE_CHARS: Final = 400
NOTHING_ENGLISH: Final = "Nothing relevant to this question was found in the collection."
NOTHING_KOREAN: Final = "이 컬렉션에서 질문과 관련된 내용을 찾지 못했습니다."

# Measured with bench/extractive.py; the rates hardly change when one of these is halved or doubled.
_FROM_NEIGHBOURS: Final = 0.3
_FROM_PASSAGE: Final = 0.3
_FROM_RETRIEVAL: Final = 0.4
_EXPECTED_ANSWER: Final = 0.15
_IS_CUT: Final = 0.15
_IS_HEADING: Final = 0.4
_IS_QUESTION: Final = 0.2
_IS_SHORT: Final = 0.15
_SHORT_CHARS: Final = 15
_COMMON_WORD: Final = 0.35
_FIRST_SYLLABLES: Final = 0.6
# A further quote must score this share of the best one.
_NEXT_QUOTE: Final = 0.6
# The share of the question's weighted terms that must be in the best sentence or around it (less
# in Korean, whose words change more), and by how much a retrieval score below the usual one raises
# that. High scores lower nothing: some embedding models find everything similar, and small English
# ones all Korean text.
_ENOUGH_ENGLISH: Final = 0.27
_ENOUGH_KOREAN: Final = 0.18
_USUAL_SCORE: Final = 0.4
_DOUBT: Final = 0.5
_SAME_SENTENCE: Final = 0.85

_HANGUL: Final = re.compile(r"[가-힣]")
_SPACE: Final = re.compile(" ")
_NOT_WORD: Final = re.compile(r"\W+")


@dataclass(frozen=True, kw_only=True)
class Quote:
    text: str
    passage: int
    """Index into the passages."""


@dataclass(frozen=True, kw_only=True)
class ExtractiveAnswer:
    answer: str
    cited: tuple[int, ...]
    """Indices of the cited passages: the first is `[1]` in the answer."""


@dataclass(frozen=True, kw_only=True)
class _Candidate:
    sentence: Sentence
    passage: int
    found: frozenset[str]
    matches: tuple[float, ...]  # of each of the question's words, from 0 to 1


@dataclass(frozen=True, kw_only=True)
class _Ranked:
    candidate: _Candidate
    score: float
    relevance: float  # the weighted share of the question in the sentence and around it


def answer(question: str, passages: Sequence[str], scores: Sequence[float]) -> ExtractiveAnswer:
    """Quote what answers the question. `scores` are the passages' cosine similarities to it."""
    question = nfkc(question)
    chosen = quotes(question, passages, scores)
    if not chosen:
        nothing = NOTHING_KOREAN if _HANGUL.search(question) else NOTHING_ENGLISH
        return ExtractiveAnswer(answer=nothing, cited=())
    cited = tuple(dict.fromkeys(quote.passage for quote in chosen))
    lines = (f"{quote.text} [{cited.index(quote.passage) + 1}]" for quote in chosen)
    return ExtractiveAnswer(answer="\n".join(lines), cited=cited)


def quotes(question: str, passages: Sequence[str], scores: Sequence[float]) -> list[Quote]:
    """At most three quotes, the best one first."""
    if len(passages) != len(scores):
        raise ValueError(f"{len(passages)} passages with {len(scores)} scores")
    question, passages = nfkc(question), [nfc(passage) for passage in passages]
    asked = list(dict.fromkeys(terms.words(question)))
    candidates = _candidates(passages, asked)
    if not asked or not candidates:
        return []
    weights = _weights(asked, candidates)
    ranked = _rank(question, candidates, weights, scores)
    best = ranked[0]
    doubt = max(0.0, _USUAL_SCORE - scores[best.candidate.passage])
    enough = _ENOUGH_KOREAN if _HANGUL.search(question) else _ENOUGH_ENGLISH
    if best.relevance < enough + _DOUBT * doubt:
        return []
    chosen: list[_Candidate] = []
    for other in ranked:
        if len(chosen) == MOST_QUOTES or other.score < _NEXT_QUOTE * best.score:
            break
        if not any(_is_same(other.candidate, taken) for taken in chosen):
            chosen.append(other.candidate)
    return [
        Quote(text=_shortened(candidate.sentence.text, asked, weights), passage=candidate.passage)
        for candidate in chosen
    ]


def _candidates(passages: Sequence[str], asked: Sequence[Word]) -> list[_Candidate]:
    candidates = []
    for passage, text in enumerate(passages):
        for sentence in sentences.split(text):
            found = _terms_in(sentence.text)
            matches = tuple(_match(word, found) for word in asked)
            candidates.append(
                _Candidate(
                    sentence=sentence,
                    passage=passage,
                    found=found,
                    matches=matches,
                )
            )
    return candidates


def _terms_in(text: str) -> frozenset[str]:
    return frozenset(term for word in terms.words(text) for term in word)


def _match(word: Word, found: frozenset[str]) -> float:
    """How much of the word is there. Korean ones match in part; their first syllables tell most."""
    share = sum(term in found for term in word) / len(word)
    if len(word) > 1 and word[0] in found:
        share = max(share, _FIRST_SYLLABLES)
    return share if share >= 0.5 else 0.0


def _weights(asked: Sequence[Word], candidates: Sequence[_Candidate]) -> list[float]:
    """What each word of the question is worth, together 1: more where fewer sentences have it."""
    raw = []
    for at, word in enumerate(asked):
        having = sum(candidate.matches[at] > 0 for candidate in candidates)
        rarity = math.log(1 + (len(candidates) - having + 0.5) / (having + 0.5))
        raw.append(rarity * (_COMMON_WORD if all(map(terms.is_common, word)) else 1))
    total = sum(raw)
    return [weight / total for weight in raw]


def _rank(
    question: str,
    candidates: Sequence[_Candidate],
    weights: Sequence[float],
    scores: Sequence[float],
) -> list[_Ranked]:
    pattern = expected.answer_pattern(question)
    best_score = max(scores)
    ranked = []
    for passage in dict.fromkeys(candidate.passage for candidate in candidates):
        own = [candidate for candidate in candidates if candidate.passage == passage]
        whole = [max(column) for column in zip(*(one.matches for one in own), strict=True)]
        base = _FROM_PASSAGE * _weighted(whole, weights)
        if best_score > 0:
            base -= _FROM_RETRIEVAL * (best_score - scores[passage]) / max(best_score, 0.3)
        nothing = (0.0,) * len(weights)
        heading = nothing
        for at, candidate in enumerate(own):
            if candidate.sentence.is_heading:
                heading = candidate.matches
            before = own[at - 1].matches if at else nothing
            after = own[at + 1].matches if at + 1 < len(own) else nothing
            around = [
                max(here, above, earlier, 0.7 * later)
                for here, above, earlier, later in zip(
                    candidate.matches, heading, before, after, strict=True
                )
            ]
            direct = _weighted(candidate.matches, weights)
            relevance = _weighted(around, weights)
            score = base + direct + _FROM_NEIGHBOURS * (relevance - direct)
            if pattern is not None and pattern.search(candidate.sentence.text):
                score += _EXPECTED_ANSWER
            score -= _penalty(candidate.sentence)
            ranked.append(_Ranked(candidate=candidate, score=score, relevance=relevance))
    return sorted(ranked, key=lambda one: -one.score)


def _weighted(matches: Sequence[float], weights: Sequence[float]) -> float:
    return sum(match * weight for match, weight in zip(matches, weights, strict=True))


def _penalty(sentence: Sentence) -> float:
    return (
        _IS_CUT * sentence.is_cut
        + _IS_HEADING * sentence.is_heading
        + _IS_QUESTION * sentence.text.endswith(("?", "？"))
        + _IS_SHORT * (len(sentence.text) < _SHORT_CHARS)
    )


def _is_same(one: _Candidate, other: _Candidate) -> bool:
    """Whether two sentences are one: overlapping chunks repeat them, whole or cut."""
    bare, other_bare = (_NOT_WORD.sub("", comparable(each.sentence.text)) for each in (one, other))
    if bare in other_bare or other_bare in bare:
        return True
    different = one.found ^ other.found
    if any(char.isdigit() for term in different for char in term):
        return False  # two rows of a table, or two versions: all is the same but the figures
    return len(different) <= (1 - _SAME_SENTENCE) * len(one.found | other.found)


def _shortened(text: str, asked: Sequence[Word], weights: Sequence[float]) -> str:
    """The text, or the part of at most about 400 characters that holds most of the question."""
    if len(text) <= QUOTE_CHARS:
        return text
    last = len(text) - QUOTE_CHARS // 2  # a part that begins later would be needlessly short
    starts = [0, *(space.end() for space in _SPACE.finditer(text) if space.end() < last)]

    def worth(start: int) -> float:
        found = _terms_in(text[start : start + QUOTE_CHARS])
        return _weighted([_match(word, found) for word in asked], weights)

    # One window every hundred characters is enough; the earliest of the equal ones is taken.
    apart = QUOTE_CHARS // 4
    tried = {start // apart: start for start in reversed(starts)}
    start = max(sorted(tried.values()), key=worth)
    part = text[start : start + QUOTE_CHARS]
    if start + QUOTE_CHARS < len(text):
        part = (part.rsplit(" ", 1)[0] if " " in part[QUOTE_CHARS // 2 :] else part) + " …"
    return ("… " if start else "") + part
