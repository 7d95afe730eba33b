"""Plain text, and decoding for all formats that are text.

`decode` makes text of bytes, or raises a DocumentError that says what is wrong and what to do. The
order: an encoding that the caller requires, byte order mark, the escapes of ISO-2022, HZ and UTF-7,
strict UTF-8, the encodings that the document declares, Korean CP949 (a superset of EUC-KR) and
Johab, Windows-1252, and last `charset-normalizer`. A declared encoding does not count if the bytes
are clearly Korean, Japanese or Chinese text in another encoding, because most encodings fit any
bytes. Encodings that servers and `file` name when they do not know (iso-8859-1, us-ascii,
windows-1252) count only if the decoded text could be one in them. A guess counts only if the result
looks like real text: a damaged file is an error that names the first bad byte in the encoding of
the rest, and never mojibake. UTF-16 and UTF-32 without a byte order mark are read if all of the
text is plausible; otherwise an error asks for the name of the encoding.
"""

import codecs
import contextlib
import re
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Final

from charset_normalizer import from_bytes

from shared.bounds import UNSTORABLE, Metadata, nfc
from shared.errors import DocumentError
from shared.formats import FORMATS
from shared.text_encodings import codec_of
from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument

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
# Plain text may begin like this, too ("BM25 is ..."), so these signatures count only with NULs.
_MAGIC_WITH_NUL = (
    (b"MZ", "a Windows program"),
    (b"BM", "a BMP image"),
    (b"RIFF", "a WAV, AVI or WebP file"),
    (b"OggS", "an Ogg file"),
    (b"ID3", "an MP3 file"),
    (b"fLaC", "a FLAC file"),
    (b"PAR1", "a Parquet file"),
)

# They fit any bytes; servers and `file` name them when they do not know the encoding.
_CATCH_ALL: Final = frozenset(
    {"ascii", "cp1252", "iso8859-1", "iso8859-15", "cp437", "cp850", "mac-roman"}
)
# Single-byte encodings among those that charset-normalizer may return.
_SINGLE_BYTE: Final = _CATCH_ALL | frozenset(
    {"cp1251", "koi8_r", "koi8_u", "cp1253", "cp1255", "cp1256", "cp874", "tis_620"}
)
_WIDE: Final = ("utf-32-le", "utf-32-be", "utf-16-le", "utf-16-be")
# Seven-bit encodings: their bytes are valid UTF-8, but another text.
_ESCAPES: Final = (
    (b"\x1b$)C", ("iso2022_kr",)),
    (b"\x1b$)A", ()),
    (b"\x1b$)G", ()),
    # ISO-2022-JP-2 includes Korean; others include Latin and half-width kana beside Japanese.
    (b"\x1b$(C", ("iso2022_jp_2", "iso2022_jp_ext")),
    *(
        (mark, ("iso2022_jp", "iso2022_jp_2", "iso2022_jp_ext", "iso2022_jp_3", "iso2022_jp_2004"))
        for mark in (b"\x1b$B", b"\x1b$@", b"\x1b$(D", b"\x1b$(O", b"\x1b$(Q", b"\x1b$A", b"\x1b(I")
    ),
)
_SEVEN_BITS: Final = ("iso2022", "iso-2022", "csiso2022", "hz", "utf-7", "utf7")
_SAMPLE_BYTES: Final = 65_536
# Characters of alphabets in use; other bytes decode to others, too.
_EVERYDAY: Final = re.compile(
    "[\t\n\f\r -~\xa0-\u024f\u0300-\u052f\u0531-\u06ff\u0900-\u109f\u10a0-\u10ff\u1780-\u17ff"
    "\u1e00-\u1fff\u2010-\u205e\u20a0-\u20bf\u2190-\u22ff\u2460-\u26ff\u3000-\u30ff\u3130-\u318f"
    "\u4e00-\u9fff\uac00-\ud7a3\uff00-\uffef]"
)
# Text decoded with the wrong byte order, or ASCII decoded in pairs, hardly ever looks like this.
_BLOCK_BITS: Final = 7
_LARGE_SCRIPTS: Final = (("\u3041", "\u30ff"), ("\u3400", "\u9fff"), ("\uac00", "\ud7a3"))
_ACCENTED: Final = range(1, 5)  # blocks of Latin letters, which occur among ASCII
_FEW_UNITS: Final = 8
_SURE_BYTES: Final = 64
_ASIAN: Final = re.compile("[\u3400-\u9fff\uac00-\ud7a3]")
_TELLING: Final = re.compile("[\t\n\r -~\u0370-\u1fff\uac00-\ud7a3\u3001\u3002\uff0c]")
_LIMIT_BAD: Final = 20
_COMMON_CHINESE: Final = frozenset(
    "的一是不了人我在有他这中大来上国个到说们为子和你地出道也时年得就那要下以生会自着去之过家学对可"
    "里后小么心多天而能好都然没日于起还发成事只作当想看文無開手十用主行方又如前所本見經頭面公同三已"
    "老從動兩長來個國們說這時為過會後對學麼發還沒"
)

# The most frequent syllables of Korean texts and names: nearly all of any real text, and about a
# fifth of what text in other encodings looks like when it is read as CP949.
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
# Encodings that charset-normalizer may return. Other Latin alphabets are left out, because they fit
# too much.
_GUESSED = frozenset(
    {"cp932", "shift_jis", "shift_jis_2004", "euc_jp", "euc_jis_2004", "iso2022_jp"}
    | {"gb18030", "gb2312", "gbk", "big5", "big5hkscs", "cp950"}
    | {"cp1251", "koi8_r", "koi8_u", "cp1253", "cp1255", "cp1256", "cp874", "tis_620", "johab"}
)
_HANGUL = re.compile(r"[가-힣]")
_KANA = re.compile(r"[぀-ヿ]")
NO_CP932: Final = re.compile("[\uf8f0-\uf8f3]")
"""What the codec returns for bytes that are no characters of CP932."""
_PRIVATE = re.compile("[\ue000-\uf8ff]")
_HIGH = re.compile(r"[^\x00-\x7f]")
# More in a row than in a Latin word; signs among them reduce the limit.
_HIGH_RUN = re.compile(r"[^\x00-\x7f]{3,}")
_LETTERS = re.compile(r"[^\W\d_]+")
_LETTERS_IN_A_ROW = 5
# A capital inside a word in lower case, and a sign inside a word.
_MISPLACED = re.compile(
    r"(?<=[A-Za-zß-öø-ÿ])[À-ÖØ-ÞŠŽŸ](?=[a-zß-öø-ÿ])"
    r"|(?<=[^\W\d_])[¡-©«¬®-´¶¸¹»-¿†‡ˆ‰‹›„“”•˜™](?=[^\W\d_])"
)
# Characters of Windows-1252 at plausible positions: accented letters beside letters (no capital
# inside a word in lower case), typographic marks, signs before or after a number. Characters that
# do not match show another encoding, or damage.
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

_SURROGATE_PAIR: Final = re.compile("[\ud800-\udbff][\udc00-\udfff]")


def text_of(
    document: RawDocument,
    *,
    encoding: str | None = None,
    declared: Sequence[str | None] = (),
    hint: str = "Save it as UTF-8.",
) -> tuple[str, Metadata]:
    """The text of a document in storable form, and its encoding as metadata. Raises DocumentError.

    Text that was sent in the request is not decoded. The charset of the content type precedes
    `declared`; `decode` describes the rest.
    """
    if isinstance(document.data, str):
        return storable(document.data.removeprefix("\ufeff")), {}
    decoded = decode(
        document.data,
        name=document.name,
        encoding=encoding or document.options.encoding,
        option="csv.encoding" if encoding else "encoding",
        declared=[document.charset, *declared],
        hint=hint,
    )
    return storable(decoded.text.removeprefix("\ufeff")), {"encoding": decoded.encoding}


def storable(text: str) -> str:
    """The text in NFC, with `\\n` as line ends, without characters that PostgreSQL refuses."""
    text = nfc(text.replace("\r\n", "\n").replace("\r", "\n"))
    if UNSTORABLE.search(text) is None:
        return text
    # Two JSON escapes of a surrogate pair may follow each other; together they are one character.
    text = _SURROGATE_PAIR.sub(
        lambda pair: pair[0].encode("utf-16", "surrogatepass").decode("utf-16"), text
    )
    return UNSTORABLE.sub("\ufffd", text)


def load_whole(document: RawDocument) -> DocumentParts:
    """The document as one passage, its text unchanged."""
    text, metadata = text_of(document)
    return DocumentParts(passages=[(text, {})], metadata=metadata)


TEXT = Loader(load=load_whole, example="Grüße\r\n".encode(), example_text="Grüße\n")


@dataclass(frozen=True, kw_only=True)
class Decoded:
    text: str
    encoding: str


def decode(
    data: bytes,
    *,
    name: str,
    encoding: str | None = None,
    option: str = "encoding",
    declared: Sequence[str | None] = (),
    hint: str,
) -> Decoded:
    """Bytes -> text. Raises DocumentError, whose text ends with `hint`, if no encoding fits.

    `encoding` is binding; `option` is the name of the option that has it. The encodings `declared`,
    the most reliable first, are tried after UTF-8.
    """
    if encoding is not None:
        return _forced(data, encoding, name=name, why=f"{option} is {encoding!r}")
    if (marked := _by_mark(data)) is not None:
        return _strict(data, marked, name=name, why="its byte order mark says so")
    _refuse_known_binary(data, name, may_be_wide=False)
    labels = [label for label in declared if label]
    for label in labels:
        # A page that declares "utf-16" in ASCII is not UTF-16 (as in the HTML standard).
        if _is_wide(label) and (b"\x00" in data or _wide_without_mark(data) is not None):
            return _strict(data, label, name=name, why=f"the document declares {label!r}")
    if b"\x00" in data and (unmarked := _without_mark(data, name)) is not None:
        return unmarked
    _refuse_nul(data, name)
    if (escaped := _by_escapes(data, labels, name)) is not None:
        return escaped
    try:
        return Decoded(text=data.decode("utf-8"), encoding="utf-8")
    except UnicodeDecodeError as cause:
        bad = f"byte 0x{data[cause.start]:02x} at offset {cause.start:,} is not valid UTF-8"
        broken = DocumentError(f"{name}: {bad}, and no other encoding fits. {hint}")
        broken.__cause__ = cause
    with contextlib.suppress(DocumentError):
        if (unmarked := _without_mark(data, name)) is not None:
            return unmarked
    # Many programs declare utf-8 for anything they send; if it is not UTF-8, the bytes decide.
    known = [
        (label, codec)
        for label in labels
        if (codec := codec_of(label)) and codec != "utf-8" and not _is_wide(label)
    ]
    decoded = _by_labels(data, known, name) or _guess(data)
    if decoded is None and not _is_damaged_utf8(data):
        decoded = _plainly(data)
    if decoded is not None:
        return decoded
    if (nearest := nearest_encoding(data)) is not None:
        codec, offset = nearest
        raise DocumentError(
            f"{name}: byte 0x{data[offset]:02x} at offset {offset:,} is damaged: the rest reads as "
            f"{codec}, and it does not fit. {hint}"
        ) from broken
    if not _is_damaged_utf8(data) and (unmarked := _without_mark(data, name)) is not None:
        return unmarked
    raise broken


def _by_labels(data: bytes, known: Sequence[tuple[str, str]], name: str) -> Decoded | None:
    """Decoded as declared, unless the bytes clearly show another encoding; None: guess."""
    if not known:
        return None
    plain = _plainly(data)
    believable: list[tuple[str, str]] = []
    for label, codec in known:
        if codec in _CATCH_ALL:
            continue
        is_plausible = _PLAUSIBLE.get(codec)
        try:
            text = _text(data, codec)
        except UnicodeDecodeError:
            believable.append((label, codec))
            continue
        if is_plausible is not None and is_plausible(text):
            return Decoded(text=text, encoding=codec)
        if is_plausible is None or not _is_mixed(text):
            if plain is None:
                return Decoded(text=text, encoding=codec)
            believable.append((label, codec))
    if plain is not None:
        return plain
    guess = _guess(data)
    if guess is not None and guess.encoding == "cp949":
        return guess  # whatever is declared: this is clearly Korean text
    catch_all = next((pair for pair in known if pair[1] in _CATCH_ALL), None)
    if believable:
        label, codec = believable[0]
    elif catch_all is not None:
        label, codec = catch_all
        if guess is not None and guess.encoding not in _SINGLE_BYTE:
            return guess
        with contextlib.suppress(UnicodeDecodeError):
            if _is_damaged_utf8(data) or _is_no_latin(data.decode(codec)):
                return guess
    else:
        return guess
    return _strict(data, codec, name=name, why=f"the document declares {label!r}")


def _is_mixed(text: str) -> bool:
    """Whether no script has most of the characters, as if bytes of another encoding were read in
    pairs."""
    high: list[str] = _HIGH.findall(text)
    scripts = Counter(map(_script, high))
    return len(high) >= _SOME_CHARS and 2 * max(scripts.values()) < len(high)


def _script(char: str) -> int:
    """A number for the script of a character; the large scripts have one each."""
    for first, last in _LARGE_SCRIPTS:
        if first <= char <= last:
            return -ord(first)
    return ord(char) >> _BLOCK_BITS


def _plainly(data: bytes) -> Decoded | None:
    """Korean, Japanese or Chinese text of some length in the encoding that its bytes show; else
    None."""
    for codec, is_plausible in _SEVERAL_BYTES:
        with contextlib.suppress(UnicodeDecodeError):
            text = _text(data, codec)
            if len(_HIGH.findall(text)) >= _SOME_CHARS and is_plausible(text):
                return Decoded(text=text, encoding=codec)
    return None


def _by_mark(data: bytes) -> str | None:
    return next((codec for mark, codec in _BOMS if data.startswith(mark)), None)


def _forced(data: bytes, encoding: str, *, name: str, why: str) -> Decoded:
    """Decoded as the caller requires, whatever the bytes look like. Raises DocumentError.

    The byte order mark of UTF-8 is removed in any encoding, since it is text in none. The marks of
    UTF-16 and UTF-32 set the byte order if `encoding` does not, and are an error if it is another.
    """
    codec = codec_of(encoding)
    if codec is None:
        raise _no_encoding(encoding, name, why)
    marked = _by_mark(data)
    mark = next((mark for mark, marked_codec in _BOMS if marked_codec == marked), b"")
    if _is_wide(codec):
        _refuse_known_binary(data, name, may_be_wide=True)
        if marked is not None and not marked.startswith((codec, "utf-8")):
            raise _contradicted(marked, name, why)
        if marked is not None and marked.startswith(codec):
            codec = marked
        else:
            mark = mark if marked == "utf-8" else b""
            codec = _forced_wide(data[len(mark) :], codec, name=name, why=why)
        return _whole(data, codec, start=len(mark), name=name, why=why)
    if marked != "utf-8":
        mark = b""
        if marked is None:
            _refuse_known_binary(data, name, may_be_wide=False)
            _refuse_nul(data, name)
        elif b"\x00" in data:
            raise _contradicted(marked, name, why)
    exact = codec_of(encoding, is_exact=True)
    if exact == "ascii":
        codec = exact
    try:
        return _whole(data, codec, start=len(mark), name=name, why=why)
    except DocumentError as error:
        if codec == "cp1252" and exact == "iso8859-1":  # which has a character for each byte
            return _whole(data, exact, start=len(mark), name=name, why=why)
        if marked is not None and not marked.startswith(codec):
            raise DocumentError(
                f"{error.message} It begins with the byte order mark of {marked}."
            ) from error
        raise


def _forced_wide(data: bytes, codec: str, *, name: str, why: str) -> str:
    """The codec with its byte order. Raises DocumentError if all is clearly text in another codec,
    and nothing in this one."""
    seen = _wide_without_mark(data)
    if codec in ("utf-16", "utf-32"):
        if seen is not None and seen.startswith(codec):
            return seen
        codec += "-le"
    if seen == codec or _reads(data, codec):
        return codec
    other = seen if seen is not None and _reads(data, seen) else None
    if len(data) >= 2 * _FEW_UNITS and b"\x00" not in data and _is_utf8(data):
        other = "UTF-8"
    if other is not None:
        raise DocumentError(f"{name}: is {other}, not {codec} ({why}). Leave that out.")
    return codec


def _reads(data: bytes, codec: str) -> bool:
    """Whether the bytes are plausible text of some length in the codec."""
    try:
        text = data.decode(codec)
    except UnicodeDecodeError:
        return False
    return len(text) >= _FEW_UNITS and _is_plain(text)


def _contradicted(marked: str, name: str, why: str) -> DocumentError:
    return DocumentError(
        f"{name}: begins with the byte order mark of {marked}, and {why}. Leave that out."
    )


def _no_encoding(encoding: str, name: str, why: str) -> DocumentError:
    return DocumentError(
        f"{name}: there is no text encoding called {encoding!r} ({why}). Names are such as "
        "utf-8, cp949 and utf-16-le."
    )


def _strict(data: bytes, encoding: str, *, name: str, why: str) -> Decoded:
    codec = codec_of(encoding)
    if codec is None:
        raise _no_encoding(encoding, name, why)
    if _is_wide(codec) and _by_mark(data) is None:
        # The bytes show their order and width; declared encodings often have the wrong ones.
        if (wide := _wide_without_mark(data)) is not None:
            codec = wide
        elif codec in ("utf-16", "utf-32"):
            codec += "-le"
    return _whole(data, codec, name=name, why=why)


def _whole(data: bytes, codec: str, *, start: int = 0, name: str, why: str) -> Decoded:
    """All of the data from `start` on, which is behind a byte order mark."""
    try:
        text = _text(data[start:], codec)
    except UnicodeDecodeError as broken:
        at = start + broken.start
        raise DocumentError(
            f"{name}: cannot be read as {codec} ({why}): byte 0x{data[at]:02x} at offset {at:,} "
            "does not fit. Save the file as UTF-8."
        ) from broken
    return Decoded(text=text.removeprefix("\ufeff"), encoding=codec.removesuffix("-sig"))


def _text(data: bytes, codec: str) -> str:
    """Raises UnicodeDecodeError, also for bytes that CP932 decodes to private characters."""
    text = data.decode(codec)
    if codec == "cp932" and (private := NO_CP932.search(text)) is not None:
        at = len(text[: private.start()].encode(codec))
        raise UnicodeDecodeError(codec, data, at, at + 1, "no character")
    return text


def _is_utf8(data: bytes) -> bool:
    try:
        data.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True


def _is_wide(label: str) -> bool:
    codec = codec_of(label)
    return codec is not None and codec.startswith(("utf-16", "utf-32"))


def _refuse_known_binary(data: bytes, name: str, *, may_be_wide: bool) -> None:
    known = _MAGIC if may_be_wide or b"\x00" not in data else _MAGIC + _MAGIC_WITH_NUL
    for mark, what in known:
        if data.startswith(mark):
            raise DocumentError(
                f"{name}: looks like {what}, not text. Supported are {_supported()}; "
                "convert it first."
            )


def _supported() -> str:
    *first, last = FORMATS
    return f"{', '.join(first)} and {last}"


def _refuse_nul(data: bytes, name: str) -> None:
    nul = data.find(b"\x00")
    if nul < 0:
        return
    if (wide := _wide_without_mark(data)) is not None:
        raise _unmarked(name, wide)
    raise DocumentError(
        f"{name}: looks like binary data, not text: there is a NUL byte at offset {nul:,}. "
        f"Supported are {_supported()}."
    )


def _unmarked(name: str, codec: str) -> DocumentError:
    kind = codec[: len("utf-16")].upper()
    return DocumentError(
        f"{name}: looks like {kind} without a byte order mark ({codec}). Save the file as UTF-8, "
        f"or name the encoding: `encoding` of the job or of the source (--encoding {codec}), or "
        f"charset={codec} in the content type of the upload."
    )


def _without_mark(data: bytes, name: str) -> Decoded | None:
    """Text in units of two or four bytes; None if it is none. Raises DocumentError if it seems to
    be such text but is not plausible."""
    codec = _wide_without_mark(data)
    if codec is None:
        return None
    decoded = _strict(data, codec, name=name, why="it looks like that, without a byte order mark")
    if len(decoded.text) < _FEW_UNITS or not _is_plain(decoded.text):
        raise _unmarked(name, codec)
    return decoded


def _is_plain(text: str) -> bool:
    """Whether all characters are of alphabets in use. Of Asian scripts, which any two bytes may be,
    only frequent characters count."""
    if len(_EVERYDAY.findall(text)) < 0.99 * len(text):
        return False
    if _ASIAN.search(text) is not None:
        return _is_korean(text) or _is_japanese(text) or _is_chinese(text)
    # Numbers in pairs of bytes look like letters of all alphabets; texts are mostly in one.
    blocks = Counter(ord(char) >> _BLOCK_BITS for char in text if char.isalpha())
    most = max((n for block, n in blocks.items() if block not in _ACCENTED), default=0)
    return 2 * most >= blocks.total() > 0


def _wide_without_mark(data: bytes) -> str | None:
    """The codec of text in units of two or four bytes without a byte order mark; None if it is
    none."""
    sample = data[:_SAMPLE_BYTES]
    plain = len(sample) - len(sample.translate(None, bytes(range(32, 127))))
    if plain > 0.8 * len(sample) and sample.count(0) < 0.2 * len(sample):
        return None  # ASCII with some NULs; its pairs would look like Chinese
    best: tuple[float, str] | None = None
    for codec in _WIDE:
        is_cut_off = b"\x00" in sample and len(data) >= _SURE_BYTES
        if not is_cut_off and len(data) % (4 if codec.startswith("utf-32") else 2):
            continue
        text = codecs.getincrementaldecoder(codec)("replace").decode(sample)
        telling = len(_TELLING.findall(text))
        if (
            not text
            or len(_EVERYDAY.findall(text)) < 0.95 * len(text)
            or telling < 0.05 * len(text)
        ):
            continue
        if best is None or telling / len(text) > best[0]:
            best = telling / len(text), codec
    return best[1] if best else None


def _by_escapes(data: bytes, labels: Sequence[str], name: str) -> Decoded | None:
    """Text in ISO-2022 or another seven-bit encoding, by its declaration or its escapes; else
    None."""
    for label in labels:
        if label.lower().startswith(_SEVEN_BITS):
            return _strict(data, label, name=name, why="the document declares it")
    if not data.isascii():
        return None
    if b"~{" in data and b"~}" in data:
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode("hz")
            if len(_HIGH.findall(text)) >= _SOME_CHARS and _is_chinese(text):
                return Decoded(text=text, encoding="hz")
    if b"+" in data:
        with contextlib.suppress(UnicodeDecodeError):
            text = data.decode("utf-7")
            if len(_HIGH.findall(text)) >= _SOME_CHARS and _is_plain(text):
                return Decoded(text=text, encoding="utf-7")
    if b"\x1b$" not in data and b"\x1b(I" not in data:
        return None
    codecs_ = next((codecs_ for mark, codecs_ in _ESCAPES if mark in data), None)
    if codecs_ is None:
        return None
    for codec in codecs_:
        with contextlib.suppress(UnicodeDecodeError):
            return Decoded(text=data.decode(codec), encoding=codec)
    if not codecs_:
        raise DocumentError(
            f"{name}: looks like ISO-2022-CN, which cannot be read. Save the file as UTF-8."
        )
    return _strict(data, codecs_[0], name=name, why="its escapes say so")


def nearest_encoding(data: bytes) -> tuple[str, int] | None:
    """The encoding in which all but a few bytes are plausible text, and the offset of the first of
    these bytes; None if there is none."""
    bad = sum("\udc80" <= char <= "\udcff" for char in data.decode("utf-8", "surrogateescape"))
    if _is_damaged_utf8(data):
        return None
    for codec, is_plausible in (
        ("cp949", _is_korean),
        ("shift_jis", _is_japanese),
        ("euc_jp", _is_japanese),
        ("gb18030", _is_chinese),
        ("big5hkscs", _is_chinese),
        ("cp1252", _is_latin),
    ):
        positions: list[int] = []
        parts: list[str] = []
        start = 0
        while start < len(data) and len(positions) <= _LIMIT_BAD:
            try:
                parts.append(data[start:].decode(codec))
                break
            except UnicodeDecodeError as broken:
                position = start + broken.start
                parts.append(data[start:position].decode(codec))
                positions.append(position)
                start = position + 1
        text = "".join(parts)
        is_rare = len(positions) <= min(_LIMIT_BAD, 1 + bad // 100)
        if positions and is_rare and len(_HIGH.findall(text)) >= _FEW_CHARS and is_plausible(text):
            return codec, positions[0]
    return None


def _is_damaged_utf8(data: bytes) -> bool:
    bad = sum("\udc80" <= char <= "\udcff" for char in data.decode("utf-8", "surrogateescape"))
    return 2 * len(_HIGH.findall(data.decode("utf-8", "ignore"))) > bad


def _is_japanese(text: str) -> bool:
    return len(_KANA.findall(text)) >= 0.3 * len(_HIGH.findall(text))


def _is_chinese(text: str) -> bool:
    high: list[str] = _HIGH.findall(text)
    return sum(char in _COMMON_CHINESE for char in high) >= 0.15 * len(high)


def _guess(data: bytes) -> Decoded | None:
    high: list[str] = _HIGH.findall(data.decode("utf-8", "surrogateescape"))
    bad = sum("\udc80" <= char <= "\udcff" for char in high)
    sound = len(high) - bad
    # In text of another encoding few byte pairs happen to be valid UTF-8; in a damaged UTF-8 file
    # most are. Short Korean words may be valid by chance, but then they read as Korean.
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
    # Without a recognized language, the guess rests on byte statistics alone, and often gives
    # mojibake. (It never recognizes Japanese; kana among the characters show it well enough.)
    text = str(best)
    if _PRIVATE.search(text):  # where CP932 puts bytes that it does not know
        return None
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


def _is_no_latin(text: str) -> bool:
    """Whether hardly any accented letter or sign is at a position plausible in Latin text."""
    high = len(_HIGH.findall(text))
    odd = len(_MISPLACED.findall(_HIGH_RUN.sub(" ", text)))
    for run in _HIGH_RUN.findall(text):
        letters = sum(map(len, _LETTERS.findall(run)))
        is_word = run.islower() or run.isupper() or run.istitle()
        if letters >= _LETTERS_IN_A_ROW or 0 < letters < len(run) or not is_word:
            odd += len(run)
    return odd >= _FEW_CHARS and odd > 0.4 * high


_SEVERAL_BYTES: Final[tuple[tuple[str, Callable[[str], bool]], ...]] = (
    ("cp949", _is_korean),
    ("cp932", _is_japanese),
    ("euc_jp", _is_japanese),
    ("gb18030", _is_chinese),
    ("big5hkscs", _is_chinese),
    ("johab", _is_korean),
)
_PLAUSIBLE: Final[dict[str, Callable[[str], bool]]] = {
    **dict(_SEVERAL_BYTES),
    **dict.fromkeys(("johab", "euc_kr"), _is_korean),
    **dict.fromkeys(("shift_jis", "shift_jis_2004", "shift_jisx0213"), _is_japanese),
    **dict.fromkeys(("euc_jis_2004", "euc_jisx0213"), _is_japanese),
    **dict.fromkeys(("big5", "cp950"), _is_chinese),
}
