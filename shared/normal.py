"""Normal forms of text: what is stored is NFC, what is compared is NFKC without case.

The same letters can be written in several ways: macOS takes Hangul and accents apart (NFD), East
Asian input methods write Latin letters and digits in full width. Texts, names, and the keys and
values of metadata are kept in NFC, so that two that are canonically the same are equal; offsets
count its characters. Comparing folds more (NFKC, case), and is never stored.

Python reorders combining marks by insertion, in quadratic time: a run of them is put in order
here first.
"""

import re
import unicodedata
from collections.abc import Mapping
from functools import cache
from typing import Any, Final, Literal

_LONG_RUN: Final = 30
"""No language writes more marks on one letter (UAX 15, stream-safe text)."""
_NONSTARTERS: Final = range(0x300, 0x1F000)


def nfc(text: str) -> str:
    """Canonically the same text, composed."""
    return _normalized(text, "NFC")


def comparable(text: str) -> str:
    """The same for texts that differ in width, case, ligatures and the like."""
    return _normalized(text, "NFKC").casefold()


def nfkc(text: str) -> str:
    """Full width, ligatures and the like become plain; case stays."""
    return _normalized(text, "NFKC")


def nfc_metadata(metadata: Mapping[str, Any]) -> dict[str, Any]:
    """Keys and texts in NFC. Raises ValueError where two keys become one."""
    normal: dict[str, Any] = {}
    for written, value in metadata.items():
        key = nfc(written)
        if key in normal:
            raise ValueError(
                f"{key[:100]!r} is there twice, in two Unicode normal forms; send it once"
            )
        normal[key] = nfc(value) if isinstance(value, str) else value
    return normal


def _normalized(text: str, form: Literal["NFC", "NFKC"]) -> str:
    if text.isascii():
        return text
    apart: Literal["NFD", "NFKD"] = "NFD" if form == "NFC" else "NFKD"

    def in_order(run: re.Match[str]) -> str:
        marks = "".join(unicodedata.normalize(apart, mark) for mark in run[0])
        return "".join(sorted(marks, key=unicodedata.combining))

    return unicodedata.normalize(form, _long_runs(apart).sub(in_order, text))


@cache
def _long_runs(apart: Literal["NFD", "NFKD"]) -> re.Pattern[str]:
    """Long runs of what is, or begins with, a combining mark once it is taken apart."""
    marks: list[list[int]] = []
    for code in _NONSTARTERS:
        if not unicodedata.combining(unicodedata.normalize(apart, chr(code))[0]):
            continue
        if marks and marks[-1][1] == code - 1:
            marks[-1][1] = code
        else:
            marks.append([code, code])
    spans = "".join(f"{chr(first)}-{chr(last)}" for first, last in marks)
    return re.compile(f"[{spans}]{{{_LONG_RUN},}}")
