"""Text -> the terms that carry its meaning, for lexical matching in English and Korean.

English words are lower-cased and lightly stemmed; Korean words lose their particles and endings
and become pairs of syllables, so that compounds match however they are spaced; Chinese and
Japanese runs become pairs of characters. Width, ligatures and normal forms are folded (NFKC).
Question words and function words are left out. No dictionary and no morphological analysis: two
forms that share no letters do not match.
"""

import re
from collections.abc import Iterator
from typing import Final

from shared.normal import nfkc

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
_KOREAN_ASKING: Final = re.compile(r"(?:무엇|누구|언제|어디|얼마|며칠|몇)")
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
            if root not in _KOREAN_STOP and not _KOREAN_ASKING.match(root):
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
