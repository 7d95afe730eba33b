"""How much of a text the vocabulary of a tokenizer covers, script by script.

If a tokenizer spells a script out (in letters, in bytes, in parts of syllables, or as unknown
tokens), the model has learned little of that script. The tokens of a text show this without knowing
the model. Only letters count: all models spell out digits, signs and emoji.

How well a letter is known, from 0 to 1:

- an ideograph or a Hangul syllable is a unit of meaning: 1 if one token holds it whole, else 0;
- a letter of an alphabet (also kana and abugidas) depends on its token: 1 if the token is the whole
  word or holds `SURE_LETTERS` of its letters, 0 if it holds this letter alone, and in proportion
  between these. Words of a single letter are not counted;
- a letter in an unknown token, or one that is divided between several tokens, counts 0.
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
"""A token with this many letters of a word has a meaning. In languages that a model was trained on,
a token has between 3.5 and 5 letters."""
WHOLE: Final = frozenset({"HANGUL", "CJK"})
"""Scripts in which each letter has a meaning."""
UNKNOWN_BELOW: Final = 0.3
UNKNOWN_BELOW_OF_WHOLE: Final = 0.5
"""Below this share the vocabulary was not made for the script; the second is for `WHOLE` scripts.
BERT's English vocabulary has 0.00 for Korean, Thai, Arabic and kana, 0.04 for Russian, 0.06 for
Greek, 0.29 for Chinese (the 350 commonest characters); 0.58 for Finnish, 0.66 for German, 0.97 for
English. A vocabulary that was made for a script has at least 0.5 for an alphabet, and nearly 1 for
ideographs and syllables."""
LEAST_LETTERS: Final = 5
LEAST_SHARE: Final = 0.2
"""Scripts that have fewer letters in a text, or a smaller share of its letters, are ignored."""
_NAMES: Final = {"CJK": "Chinese characters", "HANGUL": "Hangul"}


@dataclass(kw_only=True)
class Knowledge:
    """How many letters of a script a text has, and the sum of how well each is known."""

    letters: int = 0
    known: float = 0.0

    @property
    def share(self) -> float:
        """From 0 (spelled out or unknown) to 1; 1 if there are no letters."""
        return self.known / self.letters if self.letters else 1.0


def is_unknown(script: str, knowledge: Knowledge) -> bool:
    """Whether the vocabulary was not made for the script."""
    least = UNKNOWN_BELOW_OF_WHOLE if script in WHOLE else UNKNOWN_BELOW
    return knowledge.share < least


def unknown_scripts(tokenizer: Tokenizer, text: str) -> list[str]:
    """The scripts of a good part of the text for which the vocabulary was not made, the commonest
    first; names as in `scripts`.

    LATIN is never among them, because all models spell out codes, hashes and base64.
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
    """Script, named as in Unicode's names of characters -> how well its letters are known.

    Takes about 4 µs for each character, so pass only a part of long texts. The tokenizer must not
    truncate.
    """
    by_script: dict[str, Knowledge] = {}
    unknown = _unknown_id(tokenizer)
    for text in texts:
        _add(by_script, tokenizer, nfc(plain_letters(text)), unknown)
    return by_script


def script_name(script: str) -> str:
    """The name of a script for users."""
    return _NAMES.get(script, script.title())


def _add(
    by_script: dict[str, Knowledge], tokenizer: Tokenizer, text: str, unknown: int | None
) -> None:
    encoding = tokenizer.encode(text, add_special_tokens=False)
    spans = encoding.offsets
    # For each character, its token; -1 for none, -2 if it is unknown or has several tokens.
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
    """Start, end and script of each run of letters of one script, including their marks."""
    first, script = 0, ""
    for at, char in enumerate(text):
        char_script = _script(char)
        if char_script == "INHERITED" and script:
            continue
        if char_script != script:
            if script:
                yield first, at, script
            first, script = at, "" if char_script == "INHERITED" else char_script
    if script:
        yield first, len(text), script


@lru_cache(maxsize=8192)
def _script(char: str) -> str:
    """The first word of the letter's Unicode name, such as LATIN; INHERITED for marks, and "" for
    all other characters."""
    if unicodedata.category(char).startswith("M"):
        return "INHERITED"
    if not char.isalpha():
        return ""
    return unicodedata.name(char, "UNNAMED").partition(" ")[0]


@lru_cache(maxsize=4)
def _unknown_id(tokenizer: Tokenizer) -> int | None:
    """The id of the token for unknown text; None if there is no such token."""
    token = getattr(tokenizer.model, "unk_token", None)
    if token is not None:
        return tokenizer.token_to_id(token)
    model = json.loads(tokenizer.to_str())["model"]
    unknown = model.get("unk_id")  # Unigram models have it here, and in no attribute
    return unknown if isinstance(unknown, int) else None
