"""Loading text and HTML: types, every encoding, and the errors that people see."""

import codecs
import contextlib

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import DocumentError
from tests.unit.documents import KOREAN, read, refusal

CHINESE = (
    "这是一个中文文档。数据库支持事务，所以任务的状态不会丢失。我们可以搜索文件的内容，也可以在以后"
    "查看结果。如果通知消失了，清理程序会再次发出通知，这样所有的工作都会完成。"
)


def first_bad_offset(data: bytes) -> int | None:
    try:
        data.decode()
    except UnicodeDecodeError as broken:
        return broken.start
    return None


# Types


def test_the_extension_decides_before_the_content_type() -> None:
    assert read(b"<b>x</b>", "a.txt", content_type="text/html").text == "<b>x</b>"
    assert read(b"<b>x</b>", "a", content_type="text/html; charset=utf-8").text == "x"
    assert read(b"<b>x</b>", "a.xyz").metadata["media_type"] == "text/plain"


@pytest.mark.parametrize("name", ["a.exe", "b.MKV", "folder/c.parquet", "d.gif"])
def test_an_unsupported_extension_lists_the_supported_ones(name: str) -> None:
    message = refusal(b"anything", name)
    assert "not supported" in message
    assert ".md" in message
    assert ".jsonl" in message


def test_an_unsupported_content_type_is_refused() -> None:
    assert "video/mp4" in refusal(b"x", "file", content_type="video/mp4")


def test_inline_text_is_taken_as_it_is() -> None:
    loaded = read("첫 줄\r\n둘째 줄", "report.pdf")
    assert loaded.text == "첫 줄\n둘째 줄"
    assert "encoding" not in loaded.metadata


@pytest.mark.parametrize("data", [b"", b" \n\t ", "\ufeff".encode(), "\u3000\n".encode()])
def test_a_document_without_text_is_refused(data: bytes) -> None:
    assert "nothing to ingest" in refusal(data)


@pytest.mark.parametrize("name", ["a.pdf", "b.docx", "c.hwp", "d.zip", "e.png"])
def test_an_empty_file_is_empty_whatever_it_is_called(name: str) -> None:
    assert "is empty" in refusal(b"", name)


def test_too_many_characters_name_the_setting() -> None:
    assert read("가".encode() * 10, max_chars=10).text == "가" * 10
    assert "SLUICE_MAX_DOCUMENT_CHARS" in refusal("가".encode() * 11, max_chars=10)
    rows = b"column\n" + b"value\n" * 10
    assert "SLUICE_MAX_DOCUMENT_CHARS" in refusal(rows, "a.csv", max_chars=50)


# Encodings


@pytest.mark.parametrize(
    ("mark", "encoding"),
    [
        (codecs.BOM_UTF8, "utf-8"),
        (codecs.BOM_UTF16_LE, "utf-16-le"),
        (codecs.BOM_UTF16_BE, "utf-16-be"),
        (codecs.BOM_UTF32_LE, "utf-32-le"),
        (codecs.BOM_UTF32_BE, "utf-32-be"),
    ],
)
def test_byte_order_marks(mark: bytes, encoding: str) -> None:
    loaded = read(mark + KOREAN.encode(encoding))
    assert loaded.text == KOREAN
    assert loaded.metadata["encoding"] == encoding


@pytest.mark.parametrize(
    ("text", "encoding"),
    [
        (KOREAN, "cp949"),
        (KOREAN, "euc-kr"),
        ("이름: 홍길동", "cp949"),
        ("가나다 hello world 안녕하세요", "cp949"),
        ("똠방각하와 펲시콜라를 찾았다고 합니다.", "cp949"),
        ("Le café est très agréable à l’été, où la façade est naïve.", "cp1252"),
        ("Über die Größe der Häuser und die schönen Straßen.", "cp1252"),
        ("It costs £5 – don’t wait… “Buy now”, he said.", "cp1252"),
        ("El niño comió piñas y tomó café. ¿Qué más?", "cp1252"),
        ("これは日本語の文書です。データベースを使います。検索もできます。", "cp932"),
        (CHINESE, "gb18030"),
        ("Это русский текст, база данных поддерживает транзакции.", "cp1251"),
    ],
)
def test_legacy_encodings_are_read(text: str, encoding: str) -> None:
    assert read(text.encode(encoding)).text == text


@pytest.mark.parametrize(
    "data",
    [
        # Sound UTF-8 with one bad byte, or cut in the middle of a character.
        KOREAN.encode()[:31] + b"\xff" + KOREAN.encode()[31:],
        KOREAN.encode()[:30] + b"\xb0\xa1" + KOREAN.encode()[30:],
        KOREAN.encode()[:31],
        KOREAN.encode()[1:],
        "café crème".encode() + b"\xe9",
        # ASCII with something that no encoding makes sense of.
        b"hello \xff\xfe world",
        b"hello \x80\x99 world",
        b"hello \xc3( world",
        b"plain text and \xed\x95",
        b"a \xe2\x28\xa1 b",
        bytes(range(1, 256)),
    ],
)
def test_broken_utf8_is_an_error_that_names_the_offset(data: bytes) -> None:
    message = refusal(data)
    assert f"at offset {first_bad_offset(data):,}" in message
    assert "UTF-8" in message


@given(st.integers(0, len(KOREAN.encode()) - 1), st.integers(0x80, 0xFF))
@example(at=0, bad=0xFF)
def test_one_bad_byte_never_makes_mojibake(at: int, bad: int) -> None:
    """Whatever byte is damaged, and however: an error, or valid UTF-8 after all."""
    data = bytearray(KOREAN.encode())
    data[at] = bad
    offset = first_bad_offset(bytes(data))
    if offset is None:
        assert read(bytes(data)).metadata["encoding"] == "utf-8"
    else:
        assert f"at offset {offset:,}" in refusal(bytes(data))


@pytest.mark.parametrize(
    ("head", "what"),
    [
        (b"%PDF-1.7\n%\xe2\xe3", "PDF"),
        (b"PK\x03\x04\x14\x00", "ZIP"),
        (b"\x89PNG\r\n\x1a\n\x00", "PNG"),
        (b"\x7fELF\x02\x01\x00", "ELF"),
        (b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", "HWP"),
        (b"\x1f\x8b\x08\x00", "gzip"),
        (b"MZ\x90\x00\x03", "Windows program"),
        (b"some text\x00and more", "NUL byte at offset 9"),
    ],
)
def test_binary_with_a_text_name_says_what_it_is(head: bytes, what: str) -> None:
    assert what in refusal(head + b"\x01\x02\x03 rest")


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be"])
def test_utf16_needs_no_mark(encoding: str) -> None:
    assert read("No mark here".encode(encoding)).text == "No mark here"


def test_text_that_begins_like_a_binary_is_text() -> None:
    assert read(b"BM25 ranks documents.").text == "BM25 ranks documents."
    assert read(b"MZ is a country code.").text == "MZ is a country code."


@pytest.mark.parametrize(
    ("name", "successor"), [("a.doc", ".docx"), ("b.PPT", ".pptx"), ("c.xlsb", ".xlsx")]
)
def test_old_formats_are_to_be_saved_as_newer_ones(name: str, successor: str) -> None:
    assert f"Save it as {successor}" in refusal(b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1\0", name)


def test_what_postgres_refuses_is_replaced_everywhere() -> None:
    line = r'{"text": "a\u0000b\ud800c\ud83d\ude00", "k\u0000": "v\udfff"}'
    (passage,) = read(line.encode(), "a.jsonl").passages
    assert passage.text == "a\ufffdb\ufffdc😀"
    assert passage.metadata == {"line": 1, "k\ufffd": "v\ufffd"}
    for text in (read("a\x00b\ud800", "x").text, read(b"a&#0;b&#xD800;", "x.html").text):
        assert "\x00" not in text
        text.encode()


# HTML


def test_html_becomes_readable_text() -> None:
    page = """<!DOCTYPE html><html><head><title> A  page
      </title><style>p {}</style><script>var x = "<p>no</p>";</script></head><body>
      <nav>Home | Next</nav><div class="navheader">Prev</div>
      <h1>Top &amp; first</h1><p>One <b>bold</b>
      line.<br>After a break.</p><ul><li>first</li><li><p>second</p></li></ul>
      <table><tr><th>Name</th><th>Age</th></tr><tr><td><p>Kim</p></td><td></td><td>3</td></tr>
      </table><pre>
def f():
    return 1
</pre><noscript>no</noscript><template>no</template><p hidden>no</p><!-- no -->tail</body></html>"""
    loaded = read(page.encode(), "a.html")
    assert loaded.metadata["title"] == "A page"
    assert loaded.text == (
        "Top & first\n\nOne bold line.\nAfter a break.\n\n- first\n- second\n\n"
        "Name | Age\nKim |  | 3\n\ndef f():\n    return 1\n\ntail"
    )


def test_html_charset_declarations() -> None:
    page = f'<html><head><meta charset="euc-kr"></head><body>{KOREAN}</body></html>'
    assert read(page.encode("cp949"), "a.html").text == KOREAN
    # UTF-8 that claims to be something else is UTF-8.
    assert read(page.encode(), "a.html").text == KOREAN
    xhtml = '<?xml version="1.0" encoding="Shift_JIS"?><html><body>日本語の文書</body></html>'
    assert read(xhtml.encode("cp932"), "a.xhtml").text == "日本語の文書"
    assert read(xhtml.encode("cp932"), "a.xht").text == "日本語の文書"
    by_header = "<p>Größe</p>".encode("latin-1")
    header = "text/html; charset=ISO-8859-1"
    assert read(by_header, "a.html", content_type=header).text == "Größe"


def test_declared_encoding_that_does_not_fit_is_an_error() -> None:
    page = b'<meta charset="euc-kr"><p>\xff\xff</p>'
    assert "offset 26" in refusal(page, "a.html")
    page = b'<meta charset="utf-8"><p>caf\xe9 noir</p>'
    assert "offset 28" in refusal(page, "a.html")


@pytest.mark.parametrize(
    "page", [b"<html><body><script>x</script></body></html>", b"<title>t</title>", b"<!-- x -->"]
)
def test_html_without_text(page: bytes) -> None:
    assert "no text" in refusal(page, "a.html")


def test_html_that_nests_too_deep_is_an_error_and_no_crash() -> None:
    deep = b"<div>" * 500 + b"found" + b"</div>" * 500
    assert read(deep, "a.html").text == "found"
    assert "deep" in refusal(b"<div>" * 100_000 + b"lost", "a.html")


@given(st.text(st.sampled_from("<>/ab &;!-'\"=\n가ptdrli"), max_size=60))
def test_malformed_html_never_crashes(text: str) -> None:
    with contextlib.suppress(DocumentError):
        assert read(text, "a.html").text
