"""Numbers as automatic numbering writes them: "iii", "다", "③".

The names of the forms are those of Office Open XML (ST_NumberFormat, ISO/IEC 29500-1, 17.18.59); an
unknown form counts as decimal.
"""

from typing import Final

_ROMAN: Final = (
    (1000, "m"), (900, "cm"), (500, "d"), (400, "cd"), (100, "c"), (90, "xc"), (50, "l"),
    (40, "xl"), (10, "x"), (9, "ix"), (5, "v"), (4, "iv"), (1, "i"),
)  # fmt: skip
_LETTERS: Final = "abcdefghijklmnopqrstuvwxyz"
_GANADA: Final = "가나다라마바사아자차카타파하"
_JAMO: Final = "ㄱㄴㄷㄹㅁㅂㅅㅇㅈㅊㅋㅌㅍㅎ"
_HANJA: Final = "一二三四五六七八九"
_HANGUL: Final = "일이삼사오육칠팔구"
_SINO_UNITS: Final = {"一": "十百千", "일": "십백천"}
_ORDINALS: Final = {1: "st", 2: "nd", 3: "rd"}
_ENCLOSED: Final = {
    "decimalEnclosedCircle": (0x2460, 20),
    "decimalEnclosedCircleChinese": (0x2460, 20),
    "decimalEnclosedParen": (0x2474, 20),
    "decimalEnclosedFullstop": (0x2488, 20),
}
_LARGEST: Final = 9999
LABEL_CHARS: Final = 100
"""Limit for the text around an automatic number, since each paragraph of a list repeats it."""


def numeral(number: int, form: str) -> str:
    if form == "none":
        return ""
    if form in ("lowerRoman", "upperRoman") and 0 < number <= _LARGEST:
        roman = _roman(number)
        return roman if form == "lowerRoman" else roman.upper()
    if form in ("lowerLetter", "upperLetter") and 0 < number <= _LARGEST:
        letter = _LETTERS[(number - 1) % 26] * ((number - 1) // 26 + 1)
        return letter if form == "lowerLetter" else letter.upper()
    if form in ("ganada", "chosung") and number > 0:
        signs = _GANADA if form == "ganada" else _JAMO
        return signs[(number - 1) % len(signs)]
    if form in _ENCLOSED:
        first, count = _ENCLOSED[form]
        return chr(first + number - 1) if 0 < number <= count else str(number)
    if form in ("koreanDigital", "koreanCounting", "koreanLegal") and 0 < number <= _LARGEST:
        return _sino(number, _HANGUL)
    if form.startswith(("ideograph", "chinese", "japaneseCounting")) and 0 < number <= _LARGEST:
        return _sino(number, _HANJA)
    if form == "decimalZero":
        return f"{number:02d}"
    if form == "ordinal":
        tens = number % 100
        return f"{number}{'th' if 10 < tens < 14 else _ORDINALS.get(number % 10, 'th')}"
    return str(number)


def _roman(number: int) -> str:
    parts: list[str] = []
    for value, sign in _ROMAN:
        count, number = divmod(number, value)
        parts.append(sign * count)
    return "".join(parts)


def _sino(number: int, digits: str) -> str:
    units = _SINO_UNITS[digits[0]]
    written = ""
    for power, digit in enumerate(reversed(str(number))):
        if digit == "0":
            continue
        sign = digits[int(digit) - 1]
        if power:
            sign = ("" if digit == "1" else sign) + units[power - 1]
        written = sign + written
    return written
