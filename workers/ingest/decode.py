"""Bytes of a document -> text, or a `DocumentError` that says what is wrong and what to do.

The order: byte order mark, an encoding the caller names, strict UTF-8, the encoding the document
declares, Korean CP949 (a superset of EUC-KR), Windows-1252, and last `charset-normalizer`. A guess
is taken only when the result looks like real text: a UTF-8 file with damaged bytes is an error
that names the first bad offset, and never mojibake.
"""

import codecs
import re
from collections.abc import Callable
from dataclasses import dataclass

from charset_normalizer import from_bytes

from shared.errors import DocumentError

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    # UTF-32 first: its little-endian mark begins with the one of UTF-16.
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)

_MAGIC = (
    (b"%PDF-", "a PDF"),
    (b"PK\x03\x04", "a ZIP archive or an Office document (.docx, .xlsx, .pptx, .hwpx)"),
    (b"PK\x05\x06", "an empty ZIP archive"),
    (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "an old Office or HWP document (.doc, .xls, .hwp)"),
    (b"HWP Document File", "an HWP document"),
    (b"{\\rtf", "an RTF document"),
    (b"%!PS", "a PostScript document"),
    (b"\x89PNG\r\n", "a PNG image"),
    (b"\xff\xd8\xff", "a JPEG image"),
    (b"GIF87a", "a GIF image"),
    (b"GIF89a", "a GIF image"),
    (b"II*\x00", "a TIFF image"),
    (b"MM\x00*", "a TIFF image"),
    (b"\x7fELF", "a Linux program (ELF)"),
    (b"\xcf\xfa\xed\xfe", "a macOS program"),
    (b"\xca\xfe\xba\xbe", "a Java class or a macOS program"),
    (b"\x1f\x8b", "a gzip archive"),
    (b"BZh", "a bzip2 archive"),
    (b"\xfd7zXZ\x00", "an xz archive"),
    (b"\x28\xb5\x2f\xfd", "a Zstandard archive"),
    (b"7z\xbc\xaf\x27\x1c", "a 7-Zip archive"),
    (b"Rar!\x1a\x07", "a RAR archive"),
    (b"SQLite format 3\x00", "an SQLite database"),
    (b"\x00asm", "a WebAssembly program"),
)
# These marks are also how plain text may begin ("BM25 is ..."), so they count only beside NULs.
_MAGIC_WITH_NUL = (
    (b"MZ", "a Windows program"),
    (b"BM", "a BMP image"),
    (b"RIFF", "a WAV, AVI or WebP file"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"PAR1", "a Parquet file"),
)
SUPPORTED = "text, Markdown, HTML, CSV/TSV, JSON and JSON Lines"

# What people and pages call an encoding, and the codec that reads what they mean by it.
_ALIASES = {
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
    # A page whose bytes say "utf-16" in ASCII is not UTF-16 (the HTML standard says the same).
    "utf-16": "utf-8",
}

# The most frequent syllables of Korean text and names: nearly all of any real text, and about a
# fifth of what other encodings look like when they are read as CP949.
_COMMON_HANGUL = frozenset(
    "가각간갈감강같개거건걸검것게겠격결경계고곳공과곽관광교구국권규그근글금급기긴길김까깨께꽃끗"
    "나난날남내너네년노느는능니님다단달담답당대더덕던데도동되된될됩두드든들등디따때떻또라람랑래량"
    "러레려력령로록론료루류르른를름리립마만많말망매맹머먼메며면명모목무문물뭐미민및바박반받발밝"
    "방배백버번법베벽변별보복본봉부분불비빈빛사산살상새생서석선설성세센소속손송수숙술숲스습시식"
    "신실심십싶쓰아안않알았앤야약양어억언얼엄업없었엇에엘여역연열염였영예오옥온올와완왕외요욕용"
    "우운울워원월웠위유육윤으은을음응의이인일임입있자작잘장재저적전절점접정제조족좀종좋죠주준줄중"
    "줘증지직진집짜차참채책처천철청체최총추축출츠층치친침카커컨코크큰키타탁태택터테토통트특티파페"
    "편평포표품프플피필하학한할함합해했행허험현형혜호홍화확환활황회획훈희히"
)
# With fewer characters beyond ASCII, damage and another encoding look alike.
_FEW_CHARS = 3
_SOME_CHARS = 10
# What charset-normalizer may find. Other Latin alphabets are left out: too much fits into them.
_GUESSED = frozenset(
    {"cp932", "shift_jis", "shift_jis_2004", "euc_jp", "euc_jis_2004", "iso2022_jp"}
    | {"gb18030", "gb2312", "gbk", "big5", "big5hkscs", "cp950"}
    | {"cp1251", "koi8_r", "koi8_u", "cp1253", "cp1255", "cp1256", "cp874", "tis_620", "johab"}
)
_HANGUL = re.compile(r"[가-힣]")
_KANA = re.compile(r"[぀-ヿ]")
_HIGH = re.compile(r"[^\x00-\x7f]")
# Characters of Windows-1252 text where they belong: accented letters beside letters (no capital
# inside a lower-case word), typographic marks, signs before or after a number. What is left over
# after these is a sign of another encoding or of damage.
_LATIN = re.compile(
    r"(?:"
    r"(?<![À-ÿœŒšŠžŽ])[à-öø-üœšž](?=[A-Za-zß\W_]|$)"
    r"|(?<![À-ÖØ-ÞŒŠŽ])ß(?=[a-z\W]|$)"
    r"|(?<![a-zÀ-ÿœŒšŠžŽ])[À-ÖØ-ÜŒŠŽ](?=[A-Za-z])"
    r"|(?<=[A-Z])[À-ÖØ-ÜŒŠŽ](?![a-zÀ-ÿ])"
    r"|(?<=\w)[’‘](?=\w|\s|[.,;:!?)]|$)"
    r"|(?<!\w)‘(?=\w)"
    r"|(?<![^\s(\[])[“„«](?=\S)|[“„«](?=\s?\w)"
    r"|(?<=[\w.,;:!?)\s])[”»](?!\w)"
    r"|[–—](?=[\w\s])|…|•(?=\s)|\xa0(?=[\w\s:;!?])"
    r"|[€£¥](?=\s?\d)|(?<=\d)[€£¥°½¼¾²³](?!\w)|(?<=\d )[€£](?!\w)"
    r"|[§©®](?=[\s\d])|(?<=\w)[®™©](?!\w)|[¿¡](?=\w)"
    r")"
)


@dataclass(frozen=True, kw_only=True)
class Decoded:
    text: str
    encoding: str


def decode(
    data: bytes, *, name: str, encoding: str | None = None, declared: str | None = None, hint: str
) -> Decoded:
    """`encoding` is binding, `declared` is believed after UTF-8; `hint` ends the error's remedy."""
    marked = _by_mark(data)
    if marked is None:
        _refuse_binary(data, name)
    if encoding is not None:
        return _strict(data, encoding, name=name, why=f"csv.encoding is {encoding!r}")
    if marked is not None:
        return _strict(data, marked, name=name, why="its byte order mark says so")
    if declared and declared.lower().startswith("iso-2022"):
        # A seven-bit encoding: its bytes are all valid UTF-8, and not what is meant.
        return _strict(data, declared, name=name, why="the document declares it")
    try:
        return Decoded(text=data.decode("utf-8"), encoding="utf-8")
    except UnicodeDecodeError as broken:
        bad = f"byte 0x{data[broken.start]:02x} at offset {broken.start:,} is not valid UTF-8"
        cause = broken
    codec = _codec(declared)
    if codec is not None and codec != "utf-8":
        return _strict(data, codec, name=name, why=f"the document declares {declared!r}")
    guess = None if codec == "utf-8" else _guess(data)
    if guess is None:
        raise DocumentError(f"{name}: {bad}, and no other encoding fits. {hint}") from cause
    return guess


def _by_mark(data: bytes) -> str | None:
    return next((codec for mark, codec in _BOMS if data.startswith(mark)), None)


def _codec(label: str | None) -> str | None:
    """The codec for a declared encoding; None when there is none of that name."""
    if not label:
        return None
    label = label.strip().lower()
    try:
        return codecs.lookup(_ALIASES.get(label, label)).name
    except (LookupError, ValueError):
        return None


def _strict(data: bytes, encoding: str, *, name: str, why: str) -> Decoded:
    # "utf-16" named by the caller is meant: without its mark it needs an order, with it none.
    label = encoding.strip().lower()
    codec = label if label == "utf-16" else _codec(label)
    if codec is None:
        raise DocumentError(f"{name}: there is no encoding called {encoding!r} ({why}).")
    try:
        text = data.decode(codec)
    except UnicodeDecodeError as broken:
        raise DocumentError(
            f"{name}: cannot be read as {codec} ({why}): byte 0x{data[broken.start]:02x} at "
            f"offset {broken.start:,} does not fit. Save the file as UTF-8."
        ) from broken
    except ValueError as wrong:  # codecs that are not text encodings, such as "hex"
        raise DocumentError(f"{name}: {encoding!r} is not a text encoding ({why}).") from wrong
    except LookupError as wrong:
        raise DocumentError(f"{name}: {encoding!r} is not a text encoding ({why}).") from wrong
    return Decoded(text=text.removeprefix("\ufeff"), encoding=codec)


def _refuse_binary(data: bytes, name: str) -> None:
    nul = data.find(b"\x00")
    known = _MAGIC if nul < 0 else _MAGIC + _MAGIC_WITH_NUL
    for mark, what in known:
        if data.startswith(mark):
            raise DocumentError(
                f"{name}: looks like {what}, not text. Supported are {SUPPORTED}; convert it first."
            )
    if nul < 0:
        return
    pairs = data[: 4096 & ~1]
    zeros = max(pairs[0::2].count(0), pairs[1::2].count(0))
    if zeros > 0.8 * (len(pairs) // 2):
        raise DocumentError(
            f"{name}: looks like UTF-16 without a byte order mark. Save the file as UTF-8."
        )
    raise DocumentError(
        f"{name}: looks like binary data, not text: there is a NUL byte at offset {nul:,}. "
        f"Supported are {SUPPORTED}."
    )


def _guess(data: bytes) -> Decoded | None:
    high: list[str] = _HIGH.findall(data.decode("utf-8", "surrogateescape"))
    bad = sum("\udc80" <= char <= "\udcff" for char in high)
    sound = len(high) - bad
    # In text of another encoding few byte pairs happen to be valid UTF-8, and in a UTF-8 file with
    # damage most are. Short Korean words can come out even, but then they read as Korean.
    if sound > 2 * bad:
        return None
    korean = _if(_is_korean, data, "cp949")
    if korean is not None and (sound < bad or bad >= _FEW_CHARS):
        return korean
    if sound >= bad:
        return None
    if (latin := _if(_is_latin, data, "cp1252")) is not None:
        return latin
    best = from_bytes(data).best()
    if best is None or best.encoding not in _GUESSED:
        return None
    # No recognized language means a guess from byte statistics alone: that is how mojibake starts.
    # (Japanese it never recognizes; syllable letters among the characters tell it well enough.)
    text = str(best)
    many = len(_HIGH.findall(text))
    is_known = best.percent_coherence >= 20 or len(_KANA.findall(text)) >= 0.2 * many
    if many < _SOME_CHARS or best.percent_chaos > 10 or not is_known:
        return None
    return Decoded(text=text, encoding=best.encoding)


def _if(is_plausible: Callable[[str], bool], data: bytes, codec: str) -> Decoded | None:
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return None
    return Decoded(text=text, encoding=codec) if is_plausible(text) else None


def _is_korean(text: str) -> bool:
    hangul = _HANGUL.findall(text)
    common = sum(char in _COMMON_HANGUL for char in hangul)
    return len(hangul) >= 0.6 * len(_HIGH.findall(text)) and common >= 0.6 * len(hangul)


def _is_latin(text: str) -> bool:
    high = len(_HIGH.findall(text))
    return high >= _FEW_CHARS and len(_LATIN.findall(text)) >= 0.95 * high
