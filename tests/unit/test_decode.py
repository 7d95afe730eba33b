"""Encodings: wide ones, escapes, labels that lie, and which byte an error names."""

import codecs

import pytest

from shared.payloads import CsvOptions
from tests.unit.loading import KOREAN, read, refusal

JAPANESE = "これは日本語の文書です。データベースを使います。検索もできます。"
CHINESE = "这是一个中文文档。数据库支持事务，所以任务的状态不会丢失。我们可以搜索文件的内容。"
ENGLISH = "Nothing but plain letters here."
GERMAN = "Die Größe der Häuser überrascht."
WIDE = ["utf-16-le", "utf-16-be", "utf-32-le", "utf-32-be"]
NAMES = ["a.txt", "a.md", "a.html", "a.json", "a.jsonl", "a.csv", "a.tsv"]


def written(text: str, name: str) -> str:
    """A document of this format with the text in it."""
    if name.endswith((".csv", ".tsv")):
        return f"column\n{text}\n"
    return f'"{text}"' if ".json" in name else text


@pytest.mark.parametrize("encoding", WIDE)
@pytest.mark.parametrize("text", [KOREAN, JAPANESE, CHINESE, ENGLISH, GERMAN, "안녕하세요"])
def test_wide_text_without_a_mark_is_recognized_in_every_language(text: str, encoding: str) -> None:
    message = refusal(text.encode(encoding))
    assert f"{encoding[:6].upper()} without a byte order mark" in message
    assert f"charset={encoding}" in message
    assert f"--csv-encoding {encoding}" in message


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
    for named in ("utf-16-be", "utf-8", "cp949"):
        assert KOREAN in read(marked, "a.csv", csv=CsvOptions(encoding=named)).text
    marked = codecs.BOM_UTF8 + KOREAN.encode()
    assert read(marked, content_type="text/plain; charset=euc-kr").text == KOREAN


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
    [(KOREAN, "iso2022_kr"), (JAPANESE, "iso2022_jp"), ("半角ｱｲｳと漢字です", "iso2022_jp_ext")],
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
