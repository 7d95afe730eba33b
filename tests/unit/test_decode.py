"""Encodings: wide ones, escapes, labels that lie, and which byte an error names."""

import codecs
import contextlib
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bounds import nfc
from shared.errors import DocumentError
from shared.kinds.ingest import CsvOptions, LoadOptions
from shared.text_encodings import codec_of
from tests.unit.documents import KOREAN, read, refusal
from workers.ingest.formats.texts.text import storable

JAPANESE = "これは日本語の文書です。データベースを使います。検索もできます。"
CHINESE = "这是一个中文文档。数据库支持事务，所以任务的状态不会丢失。我们可以搜索文件的内容。"
TAIWANESE = "這是一份中文文件。資料庫支援交易，所以任務的狀態不會遺失。我們可以搜尋文件的內容。"
ENGLISH = "Nothing but plain letters here."
GERMAN = "Die Größe der Häuser überrascht."
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
NAMES = ["a.txt", "a.md", "a.html", "a.json", "a.jsonl", "a.csv", "a.tsv"]


def written(text: str, name: str) -> str:
    """A document of this format with the text in it."""
    if name.endswith((".csv", ".tsv")):
        return f"column\n{text}\n"
    return f'"{text}"' if ".json" in name else text


RUSSIAN = "Это русский текст, и он достаточно длинный. Каждый понедельник проверяется склад."
GREEK = "Αυτό είναι ένα ελληνικό κείμενο αρκετά μεγάλο. Κάθε Δευτέρα ελέγχεται η αποθήκη."
THAI = "นี่คือเอกสารภาษาไทย ทุกเช้าวันจันทร์จะมีการตรวจสอบสินค้าคงคลัง"
HINDI = "यह एक हिंदी दस्तावेज़ है। हर सोमवार की सुबह स्टॉक की जाँच की जाती है।"
VIETNAMESE = "Đây là một văn bản tiếng Việt. Mỗi sáng thứ Hai kho hàng được kiểm tra."
ARABIC = "هذا نص عربي طويل بما فيه الكفاية. كل صباح يوم الاثنين يتم فحص المخزون."
FRENCH = "L’été, où l’on va à la plage… Très bien, ça coûte 5 € – déjà élève français."
TEXTS = [KOREAN, JAPANESE, CHINESE, TAIWANESE, ENGLISH, GERMAN, RUSSIAN, GREEK, THAI, HINDI]
TEXTS += [VIETNAMESE, ARABIC, FRENCH]


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", TEXTS)
def test_wide_text_without_a_mark_is_read_in_every_language(text: str, encoding: str) -> None:
    loaded = read(text.encode(encoding))
    assert loaded.text == nfc(text)
    assert loaded.metadata["encoding"] == encoding


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("label", ["iso-8859-1", "us-ascii", "utf-8", "euc-kr"])
def test_wide_text_is_read_whatever_its_label(label: str, encoding: str) -> None:
    data = written(KOREAN + " OK", "a.csv").encode(encoding)
    assert KOREAN in read(data, "a.csv", content_type=f"text/csv; charset={label}").text


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", ["안녕하세요", "Hi"])
def test_short_wide_text_is_to_be_named(text: str, encoding: str) -> None:
    message = refusal(text.encode(encoding))
    assert f"{encoding[:6].upper()} without a byte order mark" in message
    assert f"charset={encoding}" in message
    assert f"--encoding {encoding}" in message


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("is_exact", [True, False])
def test_wide_text_is_read_where_its_type_names_the_encoding(
    name: str, encoding: str, is_exact: bool
) -> None:
    for text in (KOREAN, ENGLISH):
        label = encoding.upper() if is_exact else encoding[:6]
        loaded = read(
            written(text, name).encode(encoding), name, content_type=f"x/y; charset={label}"
        )
        assert text in loaded.text
        assert loaded.metadata["encoding"] == encoding


@pytest.mark.parametrize(
    ("named", "encoding"),
    [
        ("utf-16-le", "utf-16-le"), ("UTF-16LE", "utf-16-le"), ("utf-16", "utf-16-le"),
        ("utf_16", "utf-16-be"), ("utf-16be", "utf-16-be"), ("utf-32", "utf-32-be"),
    ],
)  # fmt: skip
def test_wide_csv_is_read_where_the_caller_names_the_encoding(named: str, encoding: str) -> None:
    data = "이름,도시\r\n김하나,서울\r\n".encode(encoding)
    loaded = read(data, "a.csv", csv=CsvOptions(encoding=named))
    assert loaded.text == "이름: 김하나\n도시: 서울"


def test_a_mark_wins_over_every_label() -> None:
    marked = codecs.BOM_UTF16_LE + written(KOREAN, "a.csv").encode("utf-16-le")
    for label in ("utf-16be", "utf-8", "euc-kr"):
        assert KOREAN in read(marked, "a.csv", content_type=f"text/csv; charset={label}").text
    marked = codecs.BOM_UTF8 + KOREAN.encode()
    assert read(marked, content_type="text/plain; charset=euc-kr").text == KOREAN


# Encodings that the caller names

FORCED_NAMES = (
    "utf-8 utf-8-sig utf-16-le utf-16-be utf-32-le utf-32-be utf-7 cp949 johab iso2022_kr cp932 "
    "euc_jp iso2022_jp gb18030 big5hkscs hz cp1252 cp1251 koi8-r iso8859-7 cp874 mac-roman cp437"
)
FORCED = FORCED_NAMES.split()


@settings(max_examples=300, deadline=None)
@given(
    st.sampled_from(FORCED),
    st.one_of(
        st.sampled_from(TEXTS),
        st.text("가나다힣ABab一乙你好あアéÿяЯ .\n", min_size=1, max_size=12),
    ),
    st.booleans(),
    st.sampled_from(["", "utf-8", "iso-8859-1", "euc-kr", "utf-16"]),
)
def test_an_encoding_that_is_named_wins(
    encoding: str, text: str, is_marked: bool, label: str
) -> None:
    """Over a mark of UTF-8, over labels, over what the bytes look like."""
    data = text.encode(encoding, "ignore")
    expected = storable(data.decode(encoding))
    if not expected.strip():
        return
    data = codecs.BOM_UTF8 * is_marked + data
    content_type = f"text/plain; charset={label}" if label else None
    loaded = read(data, content_type=content_type, options=LoadOptions(encoding=encoding))
    assert loaded.text == expected


@pytest.mark.parametrize("encoding", WIDE)
def test_marks_of_wide_text_say_the_order_and_are_no_text(encoding: str) -> None:
    mark = "\ufeff".encode(encoding)
    for named in (encoding, encoding[:6]):
        options = LoadOptions(encoding=named)
        for text in ("나", "Hi", KOREAN):
            assert read(mark + text.encode(encoding), options=options).text == text


@pytest.mark.parametrize(
    ("mark", "named"),
    [("utf-16-le", "utf-16-be"), ("utf-16-be", "utf-16-le"), ("utf-32-le", "utf-16"),
     ("utf-16-le", "utf-32"), ("utf-16-le", "utf-8"), ("utf-16-be", "cp949"),
     ("utf-16-le", "cp1252")],
)  # fmt: skip
def test_an_encoding_against_the_mark_is_an_error_that_names_both(mark: str, named: str) -> None:
    data = ("\ufeff" + ENGLISH).encode(mark)
    message = refusal(data, options=LoadOptions(encoding=named))
    assert mark in message
    assert named in message


def test_a_mark_of_utf_8_before_text_in_another_encoding_is_left_out() -> None:
    """As programs write that put it before whatever they have, for Excel."""
    data = codecs.BOM_UTF8 + written(KOREAN, "a.csv").encode("cp949")
    assert read(data, "a.csv", csv=CsvOptions(encoding="euc-kr")).text == f"column: {KOREAN}"
    message = refusal(codecs.BOM_UTF8 + "한글 문서".encode(), options=LoadOptions(encoding="cp949"))
    assert "byte 0x" in message
    assert "begins with the byte order mark of utf-8" in message


@pytest.mark.parametrize(
    ("data", "named", "text"),
    [
        (b"\x93a\x94", "latin-1", "“a”"),
        (b"\x93a\x81", "latin-1", "\x93a\x81"),
        (KOREAN.encode("cp949"), "iso-8859-1", KOREAN.encode("cp949").decode("cp1252")),
        ("é".encode(), "cp1252", "Ã©"),
        ("你好".encode("utf-16-le"), "utf-16-le", "你好"),
        ("一".encode("utf-16-be"), "utf-16-be", "一"),
    ],
)
def test_an_encoding_that_is_named_is_believed(data: bytes, named: str, text: str) -> None:
    assert read(data, options=LoadOptions(encoding=named)).text == text


@pytest.mark.parametrize(
    ("data", "named", "words"),
    [
        ("é".encode(), "ascii", "byte 0xc3 at offset 0"),
        (b"ab\xffcd", "utf-8", "byte 0xff at offset 2"),
        (codecs.BOM_UTF8 + b"ab\xffcd", "cp949", "byte 0xff at offset 5"),
        (KOREAN.encode(), "utf-16", "is UTF-8, not utf-16-le"),
        (b"nothing but letters", "utf-16-be", "is UTF-8, not utf-16-be"),
        (KOREAN.encode("utf-16-be"), "utf-16-le", "is utf-16-be, not utf-16-le"),
        (b"a", "klingon", "no text encoding called 'klingon'"),
        (b"6161", "hex", "no text encoding called 'hex'"),
        (b"a", "unicode_escape", "no text encoding"),
    ],
)
def test_an_encoding_that_does_not_fit_is_an_error(data: bytes, named: str, words: str) -> None:
    assert words in refusal(data, options=LoadOptions(encoding=named))


def test_names_of_encodings() -> None:
    for label, codec in [
        ("EUC-KR", "cp949"), (" ks_c_5601-1987 ", "cp949"), ("UTF8", "utf-8"),
        ("latin1", "cp1252"), ("utf-16LE", "utf-16-le"), ("x-sjis", "cp932"),
    ]:  # fmt: skip
        assert codec_of(label) == codec
    for label in ("한글", "", "base64", "a" * 5000, "os.path", "aliases", "punycode"):
        assert codec_of(label) is None
    assert codec_of("latin1", is_exact=True) == "iso8859-1"


def test_a_page_in_ascii_that_says_utf16_is_utf8() -> None:
    page = f'<meta charset="utf-16"><p>{KOREAN}</p>'
    assert read(page.encode(), "a.html").text == KOREAN


@pytest.mark.parametrize(
    "data", [b"some text\x00and more", b"\x00" * 100, "이름\x00 하나".encode(), bytes(range(256))]
)
def test_bytes_that_are_no_text_are_not_taken_for_wide_text(data: bytes) -> None:
    assert f"NUL byte at offset {data.index(0)}" in refusal(data)


# Seven bits


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (KOREAN, "iso2022_kr"),
        (JAPANESE, "iso2022_jp"),
        ("半角ｱｲｳと漢字です", "iso2022_jp_ext"),
        ("ｱｲｳ", "iso2022_jp_ext"),
        (KOREAN, "iso2022_jp_2"),
    ],
)
@pytest.mark.parametrize("label", ["", "; charset=us-ascii"])
def test_iso_2022_is_known_by_its_escapes(name: str, text: str, encoding: str, label: str) -> None:
    data = written(text, name).encode(encoding)
    loaded = read(data, name, content_type=f"x/y{label}")
    assert text in loaded.text
    assert "\x1b" not in loaded.text


def test_escapes_that_cannot_be_read_are_an_error() -> None:
    assert "ISO-2022-CN" in refusal(b"\x1b$)A\x0eVPND\x0f")
    assert "offset" in refusal(b"\x1b$B\x7f\x7f\x1b(B text")
    assert read(b"\x1b[31mred\x1b[0m is a color").text == "\x1b[31mred\x1b[0m is a color"


def test_hz_is_read_where_it_is_declared() -> None:
    assert read(CHINESE.encode("hz"), content_type="x/y; charset=hz-gb-2312").text == CHINESE


# Labels that lie

CATCH_ALLS = ["iso-8859-1", "us-ascii", "windows-1252", "latin1", "ISO-8859-15", "ascii", "cp850"]


@pytest.mark.parametrize("label", CATCH_ALLS)
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (KOREAN, "cp949"),
        (KOREAN, "utf-8"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
    ],
)
@pytest.mark.parametrize("name", ["a.txt", "a.csv", "a.html"])
def test_a_label_that_fits_any_bytes_gives_way_to_the_bytes(
    label: str, text: str, encoding: str, name: str
) -> None:
    data = written(text * 2, name).encode(encoding)
    assert text in read(data, name, content_type=f"text/x; charset={label}").text


OTHER_LABELS = ["euc-kr", "shift_jis", "euc-jp", "gbk", "big5", "windows-1250", "windows-1251"]
OTHER_LABELS += ["iso-8859-2", "iso-8859-9", "iso-8859-15", "koi8-r", "macintosh", "utf-8", "cp437"]


@pytest.mark.parametrize("label", OTHER_LABELS)
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (KOREAN, "cp949"),
        (JAPANESE, "cp932"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (TAIWANESE, "big5"),
    ],
)
def test_text_that_is_plainly_asian_is_read_whatever_its_label(
    label: str, text: str, encoding: str
) -> None:
    data = (text * 2).encode(encoding)
    assert read(data, content_type=f"text/plain; charset={label}").text == text * 2


@pytest.mark.parametrize("label", CATCH_ALLS)
@pytest.mark.parametrize("encoding", ["koi8-r", "cp1251"])
def test_russian_is_read_whatever_label_it_has(label: str, encoding: str) -> None:
    text = "Все люди рождаются свободными и равными в своем достоинстве и правах. " * 3
    assert read(text.encode(encoding), content_type=f"text/plain; charset={label}").text == text


@pytest.mark.parametrize("label", ["iso-8859-1", "us-ascii", "windows-1252"])
@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Minden emberi lény szabadon születik, árvíztűrő tükörfúrógéppel. ", "mac-roman"),
        ("Die Prüfung der Größe ist für Müller mühsam. Über die Straße führt es. ", "mac-roman"),
        ("Το κείμενο που γράφτηκε εδώ είναι ελληνικό. ", "cp737"),
    ],
)
def test_bytes_that_are_no_latin_text_never_become_one(
    label: str, text: str, encoding: str
) -> None:
    data = (text * 3).encode(encoding, "ignore")
    assert "fit" in refusal(data, content_type=f"text/plain; charset={label}")


def test_utf_8_with_damage_is_not_read_as_what_the_label_says() -> None:
    data = ("Die Prüfung der Größe. " * 9).encode() + b"\xff" + KOREAN.encode()
    with pytest.raises(DocumentError, match=r"byte 0xff at offset 234 is not valid UTF-8"):
        read(data, content_type="text/plain; charset=iso-8859-1")


@pytest.mark.parametrize("label", ["utf-16", "utf-16le", "utf-16be", "utf-32", "utf-32le"])
@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"])
def test_width_and_order_of_wide_text_are_seen_from_it(label: str, encoding: str) -> None:
    data = (KOREAN * 2).encode(encoding)
    assert read(data, content_type=f"text/plain; charset={label}").text == KOREAN * 2


@pytest.mark.parametrize("text", ["Это русский текст. ", "Größe und Länge. ", "Ελληνικό. "])
def test_utf_8_with_damage_is_not_called_wide(text: str) -> None:
    """A byte replaced, so that the length stays even where the letters are pairs."""
    data = text.encode() * 40
    at = next(at for at in range(len(data) // 2, len(data)) if data[at] > 0x7F)
    data = data[:at] + b"\xff" + data[at + 1 :]
    assert f"byte 0xff at offset {at:,} is not valid UTF-8" in refusal(data)


def test_the_byte_that_windows_1252_does_not_have_is_named() -> None:
    data = (GERMAN + " ").encode("cp1252") * 20
    damaged = data[:300] + b"\x81" + data[300:]
    assert "byte 0x81 at offset 300 is damaged: the rest reads as cp1252" in refusal(damaged)


def test_utf_8_that_is_called_wide_is_refused() -> None:
    data = "이름,도시\n김하나,서울 \n".encode()
    with pytest.raises(DocumentError, match="is UTF-8, not utf-16-le"):
        read(data, "a.csv", csv=CsvOptions(encoding="utf-16-le"))


def test_a_wide_text_that_is_cut_off_names_its_end() -> None:
    data = (KOREAN + " OK\n").encode("utf-16-le") * 3
    assert f"offset {len(data) - 2:,}" in refusal(data[:-1])
    damaged = data[:100] + b"\x00\xd8" + data[100:]
    assert "byte 0x00 at offset 100 " in refusal(damaged)


def test_numbers_are_no_wide_text() -> None:
    for form, values in [("<32H", range(32)), (">16I", range(16)), ("<64H", range(190, 254))]:
        assert "NUL byte" in refusal(struct.pack(form, *values))


ENCODINGS = (
    "utf-8 utf-8-sig utf-16 utf-32 utf-7 cp949 euc_kr johab iso2022_kr cp932 shift_jis euc_jp "
    "iso2022_jp iso2022_jp_2 iso2022_jp_ext gb18030 gbk big5 big5hkscs cp1252 iso8859-1 iso8859-15 "
    "iso8859-2 cp1250 cp1251 koi8_r cp866 iso8859-5 cp1253 iso8859-7 cp874 cp1256 cp1255 cp1258 "
    "utf-16-le utf-16-be utf-32-le utf-32-be"
)


@settings(max_examples=200, deadline=None)
@given(
    st.sampled_from(TEXTS),
    st.sampled_from(ENCODINGS.split()),
    st.integers(1, 6),
    st.integers(0, 10),
    st.sampled_from(["", "us-ascii", "iso-8859-1", "utf-8"]),
)
def test_a_text_comes_back_or_is_refused(
    text: str, encoding: str, times: int, start: int, label: str
) -> None:
    """Never another text, whatever the encoding and whatever its label."""
    text = (text * times)[start:]
    if encoding == "utf-7" and sum(not char.isascii() for char in text) < 10:
        return  # ASCII that may as well be meant as it is
    try:
        data = text.encode(encoding)
    except UnicodeEncodeError:
        return
    with contextlib.suppress(DocumentError):
        content_type = f"text/plain; charset={label}" if label else None
        assert read(data, content_type=content_type).text == storable(text)


def test_utf_7_is_known_by_its_escapes() -> None:
    assert read(KOREAN.encode("utf-7")).text == KOREAN
    for text in ("1 + 2 +3", "a+b-c", "+82-10-1234-5678", "C++ and a+=1", "q=a+b+c&x=%2B"):
        assert read(text.encode()).text == text


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("label", ["", "; charset=iso-8859-1", "; charset=euc-kr"])
def test_johab_is_read(name: str, label: str) -> None:
    data = written(KOREAN, name).encode("johab")
    loaded = read(data, name, content_type=f"x/y{label}")
    assert KOREAN in loaded.text
    assert loaded.metadata["encoding"] == "johab"


def test_hz_is_known_by_its_escapes() -> None:
    assert read((CHINESE * 2).encode("hz")).text == CHINESE * 2
    code = "io:format(~{1}~), a ~{ b ~} c, and so on ~{ x ~}."
    assert read(code.encode()).text == code


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        ("Hver maður er borinn frjáls. Það er æðið þægilegt, ýmsir þræðir.", "cp1252"),
        ("A informação e as ações não são exceções; ção, ções, mãe, pão.", "cp1252"),
        ("±5 µm, 20 °C, 3×4, ¼ ½ ¾, §5, £5 ¥6 €7 «x» “y” — – … • ² ³ ·", "cp1252"),
        ("MÜLLER & SÖHNE, räksmörgås ÅÄÖ, åäö", "cp1252"),
        ("«\xa0Déjà créée à l’été\xa0», où ça ? 20\xa0°C", "cp1252"),
        ("Wszyscy ludzie rodzą się wolni, źdźbło łąka żółć", "cp1250"),
        ("כל בני האדם נולדו בני חורין ושווים בערכם", "cp1255"),
        ("มนุษย์ทั้งหลายเกิดมามีอิสระและเสมอภาคกัน", "cp874"),
        ("يولد جميع الناس أحرارا متساوين في الكرامة", "cp1256"),
    ],
)
def test_labels_of_other_alphabets_are_believed(text: str, encoding: str) -> None:
    for label in (encoding, "iso-8859-1") if encoding == "cp1252" else (encoding,):
        data = (text + "\n").encode(encoding)
        assert read(data, content_type=f"text/plain; charset={label}").text == text + "\n"


@pytest.mark.parametrize("label", [*CATCH_ALLS, "utf-8", "shift_jis", "unknown-8bit"])
def test_what_the_page_declares_is_tried_beside_the_label(label: str) -> None:
    page = f'<html><meta charset="euc-kr"><p>{KOREAN}</p></html>'.encode("euc-kr")
    assert read(page, "a.html", content_type=f"text/html; charset={label}").text == KOREAN


@pytest.mark.parametrize(
    ("text", "encoding", "label"),
    [
        (GERMAN, "latin-1", "iso-8859-1"),
        ("caf\xe9", "latin-1", "iso-8859-1"),
        ("Это русский текст, и он длинный.", "cp1251", "windows-1251"),
        ("Ελληνικό κείμενο εδώ.", "cp1253", "windows-1253"),
        (KOREAN, "cp949", "ks_c_5601-1987"),
    ],
)
def test_a_label_that_tells_the_truth_is_believed(text: str, encoding: str, label: str) -> None:
    assert read(text.encode(encoding), content_type=f"text/plain; charset={label}").text == text


# Which byte is wrong


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (KOREAN, "cp949"),
        (KOREAN, "utf-8"),
        (JAPANESE, "shift_jis"),
        (JAPANESE, "euc_jp"),
        (CHINESE, "gb18030"),
        (CHINESE, "utf-8"),
    ],
)
@pytest.mark.parametrize("part", [0.1, 0.9])
def test_the_byte_that_is_wrong_is_named(text: str, encoding: str, part: float) -> None:
    lines = [(text + "\n").encode(encoding)] * 30
    before = b"".join(lines[: int(30 * part)])
    data = before + b"\xff" + b"".join(lines)

    message = refusal(data)

    assert f"byte 0xff at offset {len(before):,}" in message
    assert (encoding if encoding != "utf-8" else "UTF-8") in message
    message = refusal(data, content_type=f"text/plain; charset={encoding}")
    assert f"offset {len(before):,}" in message


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ("안녕하세요".encode("cp949") + b"\xff", "byte 0xff at offset 10 is damaged"),
        ("이름,도시\n김".encode("cp949") + b"\xff\n", "byte 0xff at offset 12 is damaged"),
        (b"caf\xe9 cr\xe8me br\xfbl\xe9e \x81", "byte 0x81 at offset 18 is damaged"),
        ("これは".encode("cp932") + b"\xff", "byte 0xff at offset 6 is damaged"),
    ],
)
def test_the_byte_that_is_wrong_is_named_in_short_texts_too(data: bytes, words: str) -> None:
    assert words in refusal(data)
