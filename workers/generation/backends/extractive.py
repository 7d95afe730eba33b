"""The model reference `extractive`: answers with the sentences that best answer the question.

One to three sentences are quoted from the passages, a line each, followed by the marker of their
passage: `[1]`, `[2]` in the order of first use. A quote is verbatim, but for whitespace, which is
collapsed, for its normal form, which is NFC, and for length: of a sentence longer than about 400
characters the part that matches best is quoted, with an ellipsis where it was cut. Nothing is
written by a language model. Sentences are ranked by the question's informative terms in them and
around them, by the retrieval score of their passage, and by whether they hold a number, a date or a
name where the question is after one. When none shares enough of those terms, the answer says so and
cites nothing.

It matches words, whatever their width, case and normal form, and not meaning: a Korean question
about an English passage finds only the names that both write alike. It reads no settings, loads no
model and keeps no state.
"""

import math
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Final

from shared.bounds import comparable, nfc, nfkc

# Text -> the terms that carry its meaning, for lexical matching in English and Korean.
#
# English words are lower-cased and lightly stemmed; Korean words lose their particles and
# endings and become pairs of syllables, so that compounds match however they are spaced;
# Chinese and Japanese runs become pairs of characters. Width, ligatures and normal forms are
# folded (NFKC). Question words and function words are left out. No dictionary and no
# morphological analysis: two forms that share no letters do not match.

Word = tuple[str, ...]
"""The terms of one word: one in English, the pairs of syllables in Korean."""

_HAN_AND_KANA: Final = (
    "々〆〇぀-ヿ㇀-㇯ㇰ-ㇿ㐀-䶿一-鿿豈-﫿\U0001b000-\U0001b16f\U00020000-\U0003ffff"
)
_IS_HAN_OR_KANA: Final = re.compile(f"[{_HAN_AND_KANA}]")
_WORD: Final = re.compile(
    rf"\d+(?:[.,]\d+)+|[가-힣]+|[{_HAN_AND_KANA}]+|[^\W_가-힣{_HAN_AND_KANA}]+(?:['’][a-z]+)?"
)

_ENGLISH_STOP_WORDS: Final = (
    "a an the this that these those it its it's he him his she her hers they them their theirs "
    "we us our ours you your yours i me my mine who whom whose which what when where why how is "
    "am are was were be been being do does did done doing have has had having can could will "
    "would shall should may might must of in on at by to from for with without into onto about "
    "as than then there here and or but nor not no so if because while during between among "
    "through over under after before up down out off again also just only very too any some "
    "each every all both many much more most other another such own same s t d ll m re ve don't "
    "doesn't didn't isn't aren't wasn't weren't can't won't one ones please tell give name list "
    "explain describe show find mean means called"
)
_ENGLISH_STOP: Final = frozenset(_ENGLISH_STOP_WORDS.split())
# Words so frequent that sharing them says little; they count, but less.
_ENGLISH_COMMON_WORDS: Final = (
    "use used using make made take took get got go went come came see say said know known think "
    "thing way time year day people person place part number number kind type example new old "
    "first last long large great good well high small different important world life work state "
    "become became call include including since until within however often usually still even "
    "several various certain two three 1 2 3 become like need want happen help possible"
)
_ENGLISH_COMMON: Final = frozenset(_ENGLISH_COMMON_WORDS.split())
_KOREAN_COMMON_WORDS: Final = (
    "필요 이상 이하 전체 최소 최대 전 후 이용 가능 사용 방법 시간 사람 제일 정도 많은 많이 많 "
    "생각 지금 정말 여기 기준 종류 처음 사항 내용 문제 부분 현재 모두 다른 같은 바로 우리 사이 "
    "관련 기간"
)
_KOREAN_COMMON: Final = frozenset(_KOREAN_COMMON_WORDS.split())
_KOREAN_STOP_WORDS: Final = (
    "무엇 무엇인가 무엇인가요 무엇입니까 무엇을 뭐 뭔가 뭔가요 뭘 뭐야 뭐예요 뭐죠 무슨 누구 "
    "누가 누구인가 누구인가요 누구입니까 언제 언제인가 언제인가요 언제입니까 어디 어디인가 "
    "어디인가요 어디에 어디에서 어디서 어디입니까 왜 어떻게 어떤 어느 얼마 얼마나 얼마인가요 "
    "얼마입니까 몇 그리고 그러나 하지만 또는 및 이 그 저 것 수 등 때 더 가장 매우 아주 잘 못 "
    "안 좀 알려줘 알려주세요 설명해줘 설명해주세요 있나요 있습니까 있는가 있는 있다 있습니다 "
    "있을까 있을까요 없나요 없다 없습니다 하나요 합니까 하는가 하는 한다 합니다 할까 할까요 "
    "했나요 했습니까 하면 되나요 됩니까 되는 된다 됩니다 되었나요 됐나요 인가 인가요 입니까 "
    "이다 입니다 대해 대한 대하여 관해 관한 위해 위한 통해 따라 경우 무엇이 무엇이며 해야 "
    "해야하나요 하려면 주세요 줘 뭐라고 뭐라 몇몇 개 번 명 살 대 않은 않는 않고 않다 않나요 아닌 "
    "이유 궁금 궁금합니다 궁금해요 가요 나요"
)
_KOREAN_STOP: Final = frozenset(_KOREAN_STOP_WORDS.split())
# What may follow the root of a noun (particles), or of a verb or an adjective (endings).
_KOREAN_ENDING: Final = re.compile(
    "(?:들|님)?(?:"
    "은|는|이|가|을|를|의|에|도|만|로|와|과|나|랑|요|에서|에게|에는|에도|에서는|에서도|에게는|"
    "으로|으로는|으로도|로는|로도|로서|로써|으로서|으로써|까지|부터|까지는|부터는|보다|보다는|"
    "처럼|마다|이나|이며|이고|이란|이라는|라는|이라고|라고|이라|한테|께서|께|이랑|인데|일까|일까요|"
    "인가|인가요|인지|인지요|입니까|입니다|이에요|예요|이야|야|이었다|였다|이었습니다|였습니다|"
    # The stem's own ending (하-, 되-, 시-, past), then the sentence's or the clause's.
    "(?:하|한|할|함|합|해|했|하였|하시|하셨|되|된|될|됨|됩|돼|됐|되었|시|셨|으시|으셨|었|았|였|겠|"
    "시키|시켰|당하|당했)*"
    "(?:습니다|습니까|니다|니까|나요|나|는가|는가요|는지|은지|가요|까|까요|어요|아요|에요|세요|네요|"
    "지요|죠|요|다|고|며|면|으면|려면|으려면|서|여|게|지|는|은|던|도록|려고|으려고|기|니|므로|지만|"
    "는데|거나|음|어|아|어서|아서|어야|아야|야|줘|는거야)?"
    ")$"
)
_KOREAN_PARTICLES: Final = frozenset("은는이가을를의에도만로와과")
_KOREAN_QUESTION_WORD: Final = re.compile(r"(?:무엇|누구|언제|어디|얼마|며칠|몇)")
_NUMBERS: Final = "zero one two three four five six seven eight nine ten eleven twelve"
_NUMBER_WORDS: Final = {word: str(value) for value, word in enumerate(_NUMBERS.split())}


def words(text: str) -> Iterator[Word]:
    """One tuple of terms for each word that means something: several where a word is Korean."""
    text = nfkc(text)
    shouted = text.isupper()
    for match in _WORD.finditer(text):
        word = match[0].casefold()
        if "가" <= word[0] <= "힣":
            if word in _KOREAN_STOP:
                continue
            root = korean_root(word)
            if root not in _KOREAN_STOP and not _KOREAN_QUESTION_WORD.match(root):
                yield _pairs(root)
        elif _IS_HAN_OR_KANA.match(word):
            yield from ((pair,) for pair in _pairs(word))
        else:
            word = word.replace("’", "'").removesuffix("'s").replace(",", "")
            # US, IT and WHO are names, unless all of the text is in capitals.
            is_name = len(word) > 1 and match[0].isupper() and not shouted
            if is_name or word not in _ENGLISH_STOP:
                yield (english_stem(word),)


def is_common(term: str) -> bool:
    """Whether sharing the term says little, though it is no function word."""
    return term in _COMMON_STEMS or term in _KOREAN_COMMON


def english_stem(word: str) -> str:
    """A light stem: plurals, -ed, -ing, -ly, -er, -ion; close enough to match, not a word."""
    word = _NUMBER_WORDS.get(word, word)
    if len(word) <= 3 or not word.isascii() or word.isdigit():
        return word
    if word.endswith("ies") and len(word) > 4:
        word = word[:-3] + "y"
    elif word.endswith("sses"):
        word = word[:-2]
    elif word.endswith("s") and word[-2] not in "su":
        word = word[:-1]
    for ending in _ENGLISH_ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            word = word[: -len(ending)]
            if len(word) > 3 and word[-1] == word[-2] and word[-1] not in "lsz":
                word = word[:-1]
            break
    if len(word) > 3 and word[-1] == "e":
        word = word[:-1]
    if word[-1] == "y":
        word = word[:-1] + "i"
    return word


_ENGLISH_ENDINGS: Final = (
    "ization", "isation", "ational", "fulness", "iveness", "ingly", "ation", "ition", "ment",
    "ness", "able", "ible", "ally", "edly", "ance", "ence", "ing", "ion", "ive", "ity", "ous",
    "ful", "est", "ed", "er", "or", "ly", "al",
)  # fmt: skip
_COMMON_STEMS: Final = frozenset(english_stem(word) for word in _ENGLISH_COMMON)


def korean_root(word: str) -> str:
    """The word without its particle or ending, as long as two syllables of it are left."""
    for end in range(2, len(word)):
        if _KOREAN_ENDING.match(word, end):
            return word[:end]
    return word


def _pairs(run: str) -> tuple[str, ...]:
    if len(run) == 1:
        return (run,)
    if len(run) == 2 and run[1] in _KOREAN_PARTICLES:
        # "집이" may be "집" with a particle, and "나이" is a word: half a match is left for both.
        return (run, run[0])
    return tuple(run[at : at + 2] for at in range(len(run) - 1))


# A passage -> its sentences, for English and Korean prose and for the lines of documents.
#
# Headings, list items, table rows and code lines are sentences of their own; a hard-wrapped
# paragraph is joined first; the "column: value" lines of a record stay together. A sentence
# knows whether the edge of the passage cut it. No model and no language data beyond the lists
# below.


@dataclass(frozen=True, kw_only=True)
class Sentence:
    """`text` is a slice of the passage, with runs of whitespace collapsed to one space."""

    text: str
    is_heading: bool
    is_cut: bool  # it begins before the passage, or ends after it


_ABBREVIATED: Final = (
    "mr mrs ms dr prof st sr jr vs etc eg ie e.g i.e cf al fig figs eq no nos vol pp p ch sec "
    "inc ltd co corp dept est approx ca gen col lt sgt capt rev hon gov sen rep pres mt ft ave "
    "blvd rd u.s u.k u.n a.m p.m ph.d b.c a.d jan feb mar apr jun jul aug sep sept oct nov dec "
    "resp incl excl max min viz esp"
)
_ABBREVIATIONS: Final = frozenset(_ABBREVIATED.split())
# An end mark with what closes after it. Whitespace must follow, except after Korean and CJK ends.
_END: Final = re.compile(
    r"[.!?…]+[\"'”’)\]»*_]*(?=\s)"
    r"|(?<=[다요죠까네오])[.!?]+(?=[가-힣])"
    r"|[。！？]+[」』”’）)]*"
)
# After a closed quotation, a particle goes on with the sentence: "갑니다." 라고 말했다.
_GOES_ON: Final = re.compile(r"\s*(?:이?라고|이?라는|하고|고|며|라며|는|란)(?![가-힣]{3})")
_STARTS: Final = re.compile(r"\s+[\"'“‘(\[«*_`]*[A-Z0-9À-ÖØ-Þ가-힣぀-ヿ一-鿿]")
_LAST_WORD: Final = re.compile(r"([\w.]+)$")
_BLANK_LINES: Final = re.compile(r"\n[ \t]*\n\s*")
_LIST_ITEM: Final = re.compile(r"\s*(?:[-*+•·▪◦‣○●□■▶※]|\(?\d{1,3}[.)]|[가-하a-z][.)])\s+\S")
_HEADING_MARK: Final = re.compile(r"\s*#{1,6}\s+\S")
_TABLE_ROW: Final = re.compile(r".*\S\s*\|\s*\S|\s*\|")
_RECORD_LINE: Final = re.compile(r"[^\s:.?!|#-][^:.?!|]{0,39}: \S")
_ENDED: Final = re.compile(r"[.!?。！？…:;][\"'”’)\]」』»*_`]*$")
_WRAPPED_FROM_CHARS: Final = 40
_HEADING_UP_TO_CHARS: Final = 80


def split(passage: str) -> list[Sentence]:
    """All sentences in order; none is empty."""
    sentences: list[Sentence] = []
    blocks = [block for block in _BLANK_LINES.split(passage) if block.strip()]
    for number, block in enumerate(blocks):
        is_last_block = number == len(blocks) - 1
        units = list(_units(block))
        for at, unit in enumerate(units):
            parts = [" ".join(part.split()) for part in _prose(unit)]
            for index, text in enumerate(part for part in parts if part):
                first = not sentences
                last = is_last_block and at == len(units) - 1 and index == len(parts) - 1
                is_heading = bool(_HEADING_MARK.match(text)) or (
                    len(parts) == 1 and len(units) == 1 and not last and _is_title(text)
                )
                is_cut = not is_heading and (
                    (first and _begins_midway(text)) or (last and _ends_midway(text))
                )
                sentences.append(Sentence(text=text, is_heading=is_heading, is_cut=is_cut))
    return sentences


def _units(block: str) -> Iterator[str]:
    """The lines of a block, with wrapped lines and records put together."""
    lines = block.split("\n")
    records = sum(bool(_RECORD_LINE.match(line)) for line in lines)
    if len(lines) > 1 and records >= 0.7 * len(lines) and records >= 2:
        yield block
        return
    unit = ""
    for line in lines:
        if unit and _is_wrapped(unit.rsplit("\n", 1)[-1], line):
            unit += "\n" + line
            continue
        if unit:
            yield unit
        unit = line
    if unit:
        yield unit


def _is_wrapped(above: str, line: str) -> bool:
    """Whether `line` continues the paragraph that the line above belongs to."""
    if any(mark.match(line) for mark in (_LIST_ITEM, _HEADING_MARK, _TABLE_ROW)):
        return False
    if _HEADING_MARK.match(above) or _TABLE_ROW.match(above):
        return False
    return len(above.strip()) >= _WRAPPED_FROM_CHARS


def _prose(unit: str) -> Iterator[str]:
    start = 0
    for end in _END.finditer(unit):
        if _is_end(unit, start, end):
            yield unit[start : end.end()]
            start = end.end()
    yield unit[start:]


def _is_end(unit: str, start: int, end: re.Match[str]) -> bool:
    mark, after = end[0], end.end()
    if mark[0] in "。！？":
        return True
    if len(mark) > 1 and mark[-1] in "\"'”’" and _GOES_ON.match(unit, after):
        return False
    if after < len(unit) and not unit[after].isspace():
        return True  # a Korean ending straight before the next sentence
    if not _STARTS.match(unit, after):
        return False
    if mark[0] != ".":
        return True
    before = _LAST_WORD.search(unit, start, end.start())
    word = before[1] if before else ""
    if word.lower() in _ABBREVIATIONS:
        return False
    # Initials ("J. Smith") and the numbers of list items and sections ("1. Install").
    is_initial = len(word) == 1 and (word.isupper() or (before and before.start() == start))
    is_number = word.replace(".", "").isdigit() and unit[start : end.start()].strip() == word
    return not (is_initial or is_number)


def _is_title(text: str) -> bool:
    if _RECORD_LINE.match(text):
        return False
    return len(text) <= _HEADING_UP_TO_CHARS and not _ENDED.search(text) and "|" not in text


def _begins_midway(text: str) -> bool:
    return text[0].islower() or text[0] in ",.;:)]}%!?" or text[0] in "、。"


def _ends_midway(text: str) -> bool:
    return len(text) > _WRAPPED_FROM_CHARS and not _ENDED.search(text) and "|" not in text


# A question -> the pattern that a sentence holding its answer is likely to show.
#
# "How many" and 몇 expect a number, "when" and 언제 a date, "who" and 누구 a name, "where" and 어디
# a place, "why" and 왜 a reason. Only a preference: a sentence without the pattern may still
# be the answer, and most questions expect nothing in particular.

_NUMBER: Final = re.compile(
    r"\d|\b(?:one|two|three|four|five|six|seven|eight|nine|ten|eleven|twelve|hundred|thousand|"
    r"million|billion|dozen|half|third|quarter|once|twice|first|second)\b|"
    r"(?:한|두|세|네|다섯|여섯|일곱|여덟|아홉|열|스무|서른|하루|이틀|사흘|나흘|열흘)\s?[가-힣]",
    re.IGNORECASE,
)
_DATE: Final = re.compile(
    r"\b1\d{3}\b|\b20\d\d\b|\b\d{1,2}:\d\d\b|\b\d{2,4}s\b|\bcentur(?:y|ies)\b|"
    r"\b(?:January|February|March|April|May|June|July|August|September|October|November|December|"
    r"Monday|Tuesday|Wednesday|Thursday|Friday|Saturday|Sunday)\b|"
    r"\d+\s?(?:년|월|일|시|분|세기|주)|오전|오후|새벽|정오|자정|매(?:일|주|달|월|년)|[월화수목금토일]요일"
)
_NAME: Final = re.compile(
    r"(?<=[a-z,;)] )[A-Z][\w.'’-]+|^[A-Z][\w'’-]+ [A-Z]|"
    r"[가-힣]{2,4}\s?(?:씨|님|교수|박사|대표|팀장|과장|부장|사장|감독|장관|대통령|담당자|관리자|대왕)|"
    r"[가-힣]{2,4}(?:이|가|은|는)\s"
)
_PLACE: Final = re.compile(
    r"\b(?:in|at|on|near|from|to|of) (?:the )?[A-Z]|"
    r"[가-힣](?:에서|에 있|층|역|시|도|군|구|동|읍|면)(?![가-힣])|메뉴|위치|저장"
)
_REASON: Final = re.compile(
    r"\b(?:because|due to|since|in order|so that|therefore|result|reason|caused?)\b|"
    r"때문|위해|위하여|덕분|므로|까닭|이유",
    re.IGNORECASE,
)
# The later of two that fit says more: "몇 년" asks for a date, not for any number.
_ANSWER_PATTERNS: Final = tuple(
    (re.compile(question, re.IGNORECASE), answer)
    for question, answer in (
        (
            r"\bhow\s(?!(?:do|does|did|to|can|is|are|was|were|would|should)\b)\w+|몇|얼마|며칠",
            _NUMBER,
        ),
        (r"\bwhat (?:percent\w*|number|amount|age)\b", _NUMBER),
        (r"\b(?:when|(?:what|which) (?:year|date|day|month|time|century|decade))\b", _DATE),
        (r"언제|몇\s?(?:년|월|일|시(?!간)|요일)", _DATE),
        (r"\b(?:who|whom|whose)\b|누구|누가", _NAME),
        (r"\b(?:where|(?:what|which) (?:city|country|place|location|town|state|region))\b", _PLACE),
        (r"어디|어느 (?:곳|도시|나라|지역)", _PLACE),
        (r"\bwhy\b|왜|이유|까닭", _REASON),
    )
)


def answer_pattern(question: str) -> re.Pattern[str] | None:
    """What to look for in a sentence; None where the question expects nothing in particular."""
    fitting = [answer for cue, answer in _ANSWER_PATTERNS if cue.search(question)]
    return fitting[-1] if fitting else None


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
    terms: frozenset[str]
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
    keywords = list(dict.fromkeys(words(question)))
    candidates = _candidates(passages, keywords)
    if not keywords or not candidates:
        return []
    weights = _weights(keywords, candidates)
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
        Quote(
            text=_shortened(candidate.sentence.text, keywords, weights), passage=candidate.passage
        )
        for candidate in chosen
    ]


def _candidates(passages: Sequence[str], keywords: Sequence[Word]) -> list[_Candidate]:
    candidates = []
    for passage, text in enumerate(passages):
        for sentence in split(text):
            terms = _terms_in(sentence.text)
            matches = tuple(_match(word, terms) for word in keywords)
            candidates.append(
                _Candidate(
                    sentence=sentence,
                    passage=passage,
                    terms=terms,
                    matches=matches,
                )
            )
    return candidates


def _terms_in(text: str) -> frozenset[str]:
    return frozenset(term for word in words(text) for term in word)


def _match(word: Word, terms: frozenset[str]) -> float:
    """How much of the word is there. Korean ones match in part, first of all by their beginning."""
    share = sum(term in terms for term in word) / len(word)
    if len(word) > 1 and word[0] in terms:
        share = max(share, _FIRST_SYLLABLES)
    return share if share >= 0.5 else 0.0


def _weights(keywords: Sequence[Word], candidates: Sequence[_Candidate]) -> list[float]:
    """What each word of the question is worth, together 1: more where fewer sentences have it."""
    raw = []
    for at, word in enumerate(keywords):
        having = sum(candidate.matches[at] > 0 for candidate in candidates)
        rarity = math.log(1 + (len(candidates) - having + 0.5) / (having + 0.5))
        raw.append(rarity * (_COMMON_WORD if all(map(is_common, word)) else 1))
    total = sum(raw)
    return [weight / total for weight in raw]


def _rank(
    question: str,
    candidates: Sequence[_Candidate],
    weights: Sequence[float],
    scores: Sequence[float],
) -> list[_Ranked]:
    pattern = answer_pattern(question)
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
    bare, other_bare = (
        _NOT_WORD.sub("", comparable(candidate.sentence.text)) for candidate in (one, other)
    )
    if bare in other_bare or other_bare in bare:
        return True
    different = one.terms ^ other.terms
    if any(char.isdigit() for term in different for char in term):
        return False  # two rows of a table, or two versions: all is the same but the figures
    return len(different) <= (1 - _SAME_SENTENCE) * len(one.terms | other.terms)


def _shortened(text: str, keywords: Sequence[Word], weights: Sequence[float]) -> str:
    """The text, or the part of at most about 400 characters that holds most of the question."""
    if len(text) <= QUOTE_CHARS:
        return text
    last = len(text) - QUOTE_CHARS // 2  # a part that begins later would be needlessly short
    starts = [0, *(space.end() for space in _SPACE.finditer(text) if space.end() < last)]

    def worth(start: int) -> float:
        terms = _terms_in(text[start : start + QUOTE_CHARS])
        return _weighted([_match(word, terms) for word in keywords], weights)

    # One window every hundred characters is enough; the earliest of the equal ones is taken.
    apart = QUOTE_CHARS // 4
    tried = {start // apart: start for start in reversed(starts)}
    start = max(sorted(tried.values()), key=worth)
    part = text[start : start + QUOTE_CHARS]
    if start + QUOTE_CHARS < len(text):
        part = (part.rsplit(" ", 1)[0] if " " in part[QUOTE_CHARS // 2 :] else part) + " …"
    return ("… " if start else "") + part
