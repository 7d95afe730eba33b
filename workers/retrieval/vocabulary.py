"""How much of a text the vocabulary of a tokenizer knows, script by script.

A model has learned little of a script that its tokenizer spells out: in letters, in bytes, in the
parts of syllables, or as pieces of which nothing but "unknown" is left. That is seen from the
tokens of a text, whatever the model is called. What counts are letters; digits, signs and emoji
are spelled out by models of every language.

How well a letter is known, from 0 to 1:

- an ideograph or a Hangul syllable is a unit of meaning: 1 if one token holds it whole, else 0;
- a letter of an alphabet (kana and abugidas too) counts as much as its token says: 1 if the token
  is the whole word or holds `SURE_LETTERS` of its letters, 0 if it holds that one letter alone,
  and in proportion between. Words of a single letter say nothing, and are not counted;
- a letter of which an unknown piece stands, or that several tokens share, counts 0.
"""

import json
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass
from functools import lru_cache
from typing import Final

from tokenizers import Tokenizer

from shared.bounds import nfc, plain_letters

SURE_LETTERS: Final = 4
"""So many letters of a word in one token are a part with a meaning. Words of languages that models
were trained in have between 3.5 and 5 letters a token."""
WHOLE: Final = frozenset({"HANGUL", "CJK"})
"""Scripts each of whose letters means something."""
UNKNOWN_BELOW: Final = 0.3
UNKNOWN_BELOW_OF_WHOLE: Final = 0.5
"""Where the letters of a script are known by less, the vocabulary was not made for it. BERT's own,
which is one of English, gives Korean 0.00, Thai 0.00, Arabic 0.00, Russian 0.04, Greek 0.06, kana
0.00 and Chinese 0.29 (its 350 commonest characters); German 0.66, Finnish 0.58, English 0.97. One
that was made for a script gives an alphabet 0.5 and more, and ideographs and syllables nearly 1."""
LEAST_LETTERS: Final = 5
LEAST_SHARE: Final = 0.2
"""A text is written in scripts that its letters are so many of, and such a part of all."""
_NAMES: Final = {"CJK": "Chinese characters", "HANGUL": "Hangul"}


@dataclass(kw_only=True)
class Knowledge:
    """Of the letters of a script: how many there are, and the sum of how well each is known."""

    letters: int = 0
    known: float = 0.0

    @property
    def share(self) -> float:
        """From 0 (spelled out, unknown) to 1; 1 where there are no letters."""
        return self.known / self.letters if self.letters else 1.0


def is_unknown(script: str, knowledge: Knowledge) -> bool:
    """Whether the vocabulary was not made for the script."""
    least = UNKNOWN_BELOW_OF_WHOLE if script in WHOLE else UNKNOWN_BELOW
    return knowledge.share < least


def unknown_scripts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The scripts that the vocabulary was not made for and that a good part of the text is written
    in, the commonest first; their names as `scripts` has them.

    LATIN is never among them: codes, hashes and base64 are spelled out by all models.
    """
    measured = scripts(tokenizer, [text])
    all_letters = sum(knowledge.letters for knowledge in measured.values())
    least = max(LEAST_LETTERS, LEAST_SHARE * all_letters)
    unknown = {
        script: knowledge.letters
        for script, knowledge in measured.items()
        if script != "LATIN" and is_unknown(script, knowledge)
    }
    if sum(unknown.values()) < least:
        return []
    return sorted(unknown, key=lambda script: -unknown[script])


def script_coverage(tokenizer: Tokenizer, text: str) -> float:
    """How well the tokenizer knows the letters of the text: 0 (not at all) to 1."""
    total = Knowledge()
    for knowledge in scripts(tokenizer, [text]).values():
        total.letters += knowledge.letters
        total.known += knowledge.known
    return total.share


def scripts(tokenizer: Tokenizer, texts: Iterable[str]) -> dict[str, Knowledge]:
    """Script, by the name that Unicode's characters have -> how well its letters are known.

    Takes time linear in the texts: some 4 µs a character, so give long ones in part. The
    tokenizer must not truncate.
    """
    by_script: dict[str, Knowledge] = {}
    unknown = _unknown_id(tokenizer)
    for text in texts:
        _add(by_script, tokenizer, nfc(plain_letters(text)), unknown)
    return by_script


def script_name(script: str) -> str:
    """As users know it."""
    return _NAMES.get(script, script.title())


def _add(
    by_script: dict[str, Knowledge], tokenizer: Tokenizer, text: str, unknown: int | None
) -> None:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = encoding.offsets
    # Of each character: the token that holds it; -1 for none, -2 for an unknown piece or several.
    holder = [-1] * len(text)
    letters_in = [0] * len(spans)
    for n, ((start, end), id_) in enumerate(zip(spans, encoding.ids, strict=True)):
        for at in range(start, end):
            holder[at] = n if holder[at] == -1 and id_ != unknown else -2
    words = list(_words(text))
    for start, end, _ in words:
        for at in range(start, end):
            if holder[at] >= 0 and text[at].isalpha():
                letters_in[holder[at]] += 1
    for start, end, script in words:
        size = sum(map(str.isalpha, text[start:end]))
        knowledge = by_script.setdefault(script, Knowledge())
        if script not in WHOLE and size == 1 and holder[start] != -2:
            continue
        knowledge.letters += size
        for at in range(start, end):
            if not text[at].isalpha() or holder[at] < 0:
                continue
            if script in WHOLE:
                knowledge.known += 1
            else:
                sure = min(size, SURE_LETTERS)
                knowledge.known += min(1.0, (letters_in[holder[at]] - 1) / max(1, sure - 1))


def _words(text: str) -> Iterable[tuple[int, int, str]]:
    """Start, end and script of each run of letters of one script, with the marks on them."""
    first, script = 0, ""
    for at, char in enumerate(text):
        own = _script(char)
        if own == "INHERITED" and script:
            continue
        if own != script:
            if script:
                yield first, at, script
            first, script = at, "" if own == "INHERITED" else own
    if script:
        yield first, len(text), script


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The first word of the letter's name, such as LATIN; empty for what is no letter."""
    if unicodedata.category(char).startswith("M"):
        return "INHERITED"
    if not char.isalpha():
        return ""
    return unicodedata.name(char, "UNNAMED").partition(" ")[0]


@lru_cache(maxsize=4)
def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id that stands for what the vocabulary does not have; None where there is no such id."""
    token = getattr(tokenizer.model, "unk_token", None)
    if token is not None:
        return tokenizer.token_to_id(token)
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")  # of Unigram models, which Python does not show
    return unknown if isinstance(unknown, int) else None
