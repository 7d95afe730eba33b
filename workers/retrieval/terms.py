"""Text -> terms, the units of lexical search. Passages and queries are treated alike.

Compatibility forms, case and spelling variants of characters are folded (NFKC, full case folding).
For scripts without spaces between words (Chinese, Japanese, Thai, ...) and for Hangul, whose words
include particles, the terms are the overlapping bigrams of each run; in addition each Han character
and the first Hangul syllable of a run, because words may be that short. For all other scripts, the
terms are words, and the first letters of longer words, which most inflected forms share. Numbers
and codes are terms, and so are their parts. The time is linear in the length of the text.

A release that changes the terms of a text needs a migration that empties `lexical_segments` and
`lexical_deletions` and sets `versions.lexical_fields` to 0; the sweeper then rebuilds the index.

`Morphemes` optionally makes other terms of Korean text, for a second field of the index.
"""

import re
import sys
import unicodedata
from collections.abc import Iterator
from functools import cache, lru_cache
from itertools import pairwise
from typing import Any

from shared.errors import ConfigurationError
from workers.attempts.process import Process

KEPT_WORDS = 2**15
PREFIX_CHARS = 5
"""The first 5 letters of a longer word are a term as well. For European languages this is nearly as
good as a stemmer for each language (McNamee and Mayfield, "Character n-gram tokenization for
European language text retrieval", 2004, where 5 was the best length)."""
LONG_WORD_CHARS = 64
"""Longer words (hashes, encoded data) are not divided further than at their joints."""

_BIGRAMS = (
    "\u1100-\u11ff\u2e80-\u2fd5\u3005-\u3007\u3021-\u3029\u3038-\u303c"
    "\u3041-\u3096\u3099\u309a\u309d-\u309f\u30a1-\u30fa\u30fc-\u30ff\u3105-\u312f\u3131-\u318e"
    "\u31a0-\u31bf\u31f0-\u31ff\u3400-\u4dbf\u4e00-\u9fff\ua960-\ua97c\uac00-\ud7fb\uf900-\ufaff"
    "\U00016fe0-\U00018dff\U0001aff0-\U0001b16f\U00020000-\U0003ffff"
)
"""Han, Hangul, Kana, Bopomofo and related blocks, as a character class of `re`."""
_HAN = re.compile("[\u3005-\u3007\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff]")
_HANGUL = re.compile("[\u1100-\u11ff\u3131-\u318e\uac00-\ud7a3]")
_CLUSTERS = (
    "\u0e01-\u0e3a\u0e40-\u0e4e\u0e81-\u0ecf\u1000-\u103f\u1050-\u108f\u109a-\u109f\u1780-\u17d3"
    "\u17d7\u17dc\u17dd\ua9e0-\ua9ef\ua9fa-\ua9fe\uaa60-\uaa7f"
)
"""Thai, Lao, Burmese and Khmer: scripts without spaces, whose marks belong to the letter before."""
_JOINTS = r"-./:@&',_"
"""Characters that join the parts of a number, a code, an address or a compound."""


def terms(text: str) -> list[str]:
    """The terms of a text, in their order, with repetitions.

    They do not depend on the text's Unicode normal form, width and case.
    """
    text = _folded(text)
    result: list[str] = []
    for run, clusters, word in _pattern(text.isascii()).findall(text):
        if word:
            result += _word_terms(word) if len(word) <= LONG_WORD_CHARS else _long_word_terms(word)
        elif run:
            result += _bigrams(run)
            if len(run) > 1:
                result += _HAN.findall(run)
                if _HANGUL.match(run):
                    result.append(run[0])
        else:
            result += _bigrams(_clusters().findall(clusters))
    return result


def _bigrams(run: str | list[str]) -> Iterator[str]:
    """The overlapping bigrams of a run; a single character is a term itself."""
    if len(run) == 1:
        return iter(run)
    return (first + second for first, second in pairwise(run))


@cache
def _pattern(only_ascii: bool) -> re.Pattern[str]:
    """A pattern of three groups: a run for bigrams, a run of clusters, a word with its joints."""
    word = "0-9A-Za-z_" if only_ascii else _word_class()
    runs = "(?!)" if only_ascii else f"[{_BIGRAMS}]+"
    clusters = "(?!)" if only_ascii else f"[{_CLUSTERS}]+"
    joints = _JOINTS.replace("_", "")
    return re.compile(f"({runs})|({clusters})|([{word}]+(?:[{joints}][{word}]+)*(?:\\+\\+|#)?)")


@cache
def _clusters() -> re.Pattern[str]:
    marks = _ranges(lambda c: unicodedata.category(c)[0] == "M", 0x0E00, 0xAA80)
    return re.compile(f"[{_CLUSTERS}][{marks}\u0e33\u0eb3]*")


@cache
def _word_class() -> str:
    """Letters, marks and numbers of all scripts that separate words, and the underscore.

    `\\w` of `re` does not include marks, and so would split words of most Indian scripts at each
    vowel.
    """
    other = re.compile(f"[{_BIGRAMS}{_CLUSTERS}]")
    return _ranges(
        lambda c: unicodedata.category(c)[0] in "LMN" and not other.match(c), 0, 0x1FFFF
    ) + "_"  # fmt: skip


def _ranges(holds: Any, first: int, last: int) -> str:
    """The characters for which a condition holds, as ranges for a character class of `re`."""
    ranges: list[str] = []
    start: int | None = None
    for code in range(first, last + 2):
        is_in = code <= last and holds(chr(code))
        if is_in and start is None:
            start = code
        elif not is_in and start is not None:
            ranges.append(f"{chr(start)}-{chr(code - 1)}")
            start = None
    return "".join(ranges)


# Folding: characters that readers take for the same become the same.


def _folded(text: str) -> str:
    """The text in NFKC, with one form for variants: digits, hyphens, and the vowel signs of Arabic
    and Hebrew, which are optional. Case is kept, because it divides names such as `getUserName`."""
    if text.isascii():
        return text
    pattern, table = _variants()
    return pattern.sub(lambda match: table[match[0]], unicodedata.normalize("NFKC", text))


@cache
def _variants() -> tuple[re.Pattern[str], dict[str, str]]:
    """Variants and their folded forms: as in Lucene's ArabicNormalizer, PersianNormalizer and
    DecimalDigitFilter; and the characters that Unicode calls default ignorable, except the
    zero-width space, which separates words."""
    table = dict.fromkeys("\u00ad\u034f\u061c\u0640\u200c\u200d\u2060\ufeff", "")
    table |= {chr(code): "" for code in range(0xFE00, 0xFE10)}  # variation selectors
    table |= {chr(code): "" for code in [*range(0x64B, 0x653), 0x670]}  # harakat
    table |= {chr(code): "" for code in [*range(0x591, 0x5BE), 0x5BF, 0x5C1, 0x5C2, 0x5C7]}
    table |= dict.fromkeys("\u2010\u2012\u2013\u2212\u05be", "-")
    table |= dict.fromkeys("\u2018\u2019\u02bc", "'")
    table |= dict.fromkeys("أإآٱ", "ا") | {"ى": "ي", "ی": "ي", "ک": "ك", "ة": "ه", "ہ": "ه"}
    table |= {"ё": "е", "Ё": "Е", "ı": "i", "İ": "I"}
    table |= dict(zip("άέήίόύώΐΰΆΈΉΊΌΎΏ", "αεηιουωϊϋΑΕΗΙΟΥΩ", strict=True))
    table |= {
        chr(code): str(unicodedata.decimal(chr(code)))
        for code in range(0x80, 0x1FFFF)
        if unicodedata.category(chr(code)) == "Nd"
    }
    return re.compile(f"[{''.join(map(re.escape, table))}]"), table


# Words, numbers and codes.

_GROUPED = re.compile(r"[0-9]{1,3}(?:,[0-9]{3})+(?:\.[0-9]+)?")
_HUMPS = re.compile(r"(?<=[^\W\d_A-Z])(?=[A-Z])")
_LETTERS_OR_DIGITS = re.compile(r"[0-9]+|[^0-9]+")


def _long_word_terms(word: str) -> list[str]:
    """An address, a path, encoded data: the whole word, and its parts between joints."""
    word = _cased(word)
    parts = [part for part in re.split(f"[{re.escape(_JOINTS)}]", word) if part]
    return parts if len(parts) == 1 else [word, *parts]


@lru_cache(KEPT_WORDS)
def _word_terms(word: str) -> tuple[str, ...]:
    """The terms of a word with its joints, in the case in which it was written."""
    if word.isalpha():
        return (*_with_prefix(word), *_humps(word))
    if _GROUPED.fullmatch(word):
        word = word.replace(",", "")
    result: list[str] = []
    if word[-1] in "+#":  # C++, C#, F#; other words lose the sign
        stem = word.rstrip("+#")
        if len(stem) == 1:
            result.append(_cased(word))
        word = stem
    if not any(character.isalpha() for character in word):
        # 3.14, 10:30, 2024-03-01, 192.168.0.1: as written, and the parts.
        parts = _split(word)
        return (*result, *dict.fromkeys([word.strip("_"), *parts])) if parts else ()
    # An apostrophe separates an article, a case ending or a possessive (l'eau, Ankara'da, model's);
    # a single letter that is separated means nothing.
    between = re.split("[',/:]", word)
    pieces = [piece for piece in between if len(piece) > 1 or piece.isdigit()] or between
    for piece in pieces:
        result += _code_terms(piece)
    return tuple(result)


def _code_terms(piece: str) -> Iterator[str]:
    """For KX-2000b: kx2000b, kx, 2000b, 2000, b; so it shares terms with KX2000B and KX 2000b."""
    parts = _split(piece)
    if len(parts) > 1:
        yield _whole(piece, parts)
    for part in parts:
        some = _LETTERS_OR_DIGITS.findall(part)
        if len(some) > 1:
            yield _cased(part)
            yield from map(_cased, some)
        else:
            yield from _with_prefix(part)
            yield from _humps(part)


def _with_prefix(word: str) -> list[str]:
    word = _cased(word)
    if len(word) > PREFIX_CHARS and not word[0].isdigit():
        return [word, word[:PREFIX_CHARS]]
    return [word]


def _whole(piece: str, parts: list[str]) -> str:
    """A compound without its hyphens, so that e-mail and email, KX-2000 and KX2000, U.S.A. and USA
    are the same term."""
    if all(len(part) == 1 for part in parts):
        return _cased("".join(parts))
    return _cased(re.sub("[-_]", "", piece))


def _split(word: str) -> list[str]:
    return [part for part in re.split(f"[{re.escape(_JOINTS)}]", word) if part]


def _humps(word: str) -> list[str]:
    """For getUserName: get, user, name. Nothing for a word in one case, or capitalized."""
    if word.islower() or word.isupper() or word[1:].islower():
        return []
    parts = _HUMPS.split(word)
    return [_cased(part) for part in parts] if len(parts) > 1 else []


def _cased(word: str) -> str:
    """The word without case, in NFKC again: case folding may leave that form."""
    folded = word.casefold()
    return folded if folded.isascii() else unicodedata.normalize("NFKC", folded)


# Morphemes of Korean text, without particles and endings, by the analyser Kiwi.

_TAGS = ("N", "VV", "VA", "XR", "SL", "SH", "SN")
"""Tags of the Sejong tag set: nouns, verbs, adjectives, roots, foreign words, Han, numbers."""
_AT_ONCE_CHARS = 4096


def has_hangul(text: str) -> bool:
    return _HANGUL.search(unicodedata.normalize("NFKC", text)) is not None


class Morphemes:
    """The Korean analyser, for one thread at a time; it takes about 150 MiB of memory."""

    def __init__(self) -> None:
        """Raises ConfigurationError if the package is missing."""
        try:
            from kiwipiepy import Kiwi
        except ImportError as error:
            raise ConfigurationError(
                "SLUICE_MORPHEMES is kiwi, and the package kiwipiepy is not installed here. "
                "Install it with `pip install kiwipiepy` (the extra kiwi), or set "
                "SLUICE_MORPHEMES=off."
            ) from error
        self._kiwi: Any = Kiwi(num_workers=1)

    def terms(self, text: str) -> list[str]:
        """Nouns, stems of verbs, numbers and foreign words, in their order. Nothing for a text
        without Hangul, for which the function `terms` is as good."""
        if not has_hangul(text):
            return []
        result: list[str] = []
        for part in _parts(_folded(text)):
            for token in self._kiwi.tokenize(part):
                if token.tag.startswith(_TAGS):
                    result.append(sys.intern(_cased(token.form)))
        return result


def _parts(text: str) -> Iterator[str]:
    """The text in parts of bounded length for the analyser, divided at spaces where possible."""
    start = 0
    while start < len(text):
        end = start + _AT_ONCE_CHARS
        if end < len(text):
            end = max(text.rfind(" ", start + _AT_ONCE_CHARS // 2, end), 0) or end
        yield text[start:end]
        start = end


def morphemes_of(process: Process) -> Morphemes:
    """The analyser of this process, loaded at first use. Raises ConfigurationError."""
    return process.held(_morphemes)


def _morphemes(_process: Process) -> Morphemes:
    return Morphemes()
