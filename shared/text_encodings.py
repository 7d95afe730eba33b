"""Names of text encodings, as people, web pages and programs write them -> Python's codecs."""

import codecs
import encodings
import pkgutil
from encodings.aliases import aliases
from functools import cache
from typing import Final

# Names that usually mean a larger encoding than their own, as in browsers
# (https://encoding.spec.whatwg.org/#names-and-labels), and names that Python does not know.
_CODECS: Final = {
    "euc-kr": "cp949",
    "euc_kr": "cp949",
    "ks_c_5601-1987": "cp949",
    "ksc5601": "cp949",
    "ks_c_5601": "cp949",
    "windows-949": "cp949",
    "x-windows-949": "cp949",
    "gb2312": "gb18030",
    "gbk": "gb18030",
    "shift_jis": "cp932",
    "shift-jis": "cp932",
    "sjis": "cp932",
    "x-sjis": "cp932",
    "iso-8859-1": "cp1252",
    "latin-1": "cp1252",
    "latin1": "cp1252",
    "us-ascii": "cp1252",
    "ascii": "cp1252",
    "hz-gb-2312": "hz",
    "x-johab": "johab",
    "ks_c_5601-1992": "johab",
    "ksc5601-1992": "johab",
}
# Codecs of Python that no file is written in.
_NO_ENCODINGS: Final = frozenset(
    {"idna", "punycode", "raw-unicode-escape", "unicode-escape", "undefined"}
)


def codec_of(label: str, *, is_exact: bool = False) -> str | None:
    """Python's name for an encoding; None if there is no encoding with that name.

    `iso-8859-1` usually means Windows-1252. With `is_exact`, the codec is that of the name itself.
    """
    label = label.strip().lower()
    if not is_exact:
        label = _CODECS.get(label, label)
    if not label.isascii() or encodings.normalize_encoding(label) not in _known():
        return None
    try:
        codec = codecs.lookup(label)
    except (LookupError, ValueError):
        return None
    is_text = getattr(codec, "_is_text_encoding", True)
    return codec.name if is_text and codec.name not in _NO_ENCODINGS else None


@cache
def _known() -> frozenset[str]:
    """Only known names: Python caches every other name without limit, and names come from
    outside."""
    modules = {module.name for module in pkgutil.iter_modules(encodings.__path__)}
    return frozenset({*aliases, *aliases.values(), *modules})
