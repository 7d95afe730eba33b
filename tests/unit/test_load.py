"""Loading: every type, every encoding, and the errors that people see."""

import codecs
import contextlib
import json
import zipfile
from io import BytesIO

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from shared.errors import DocumentError
from shared.payloads import CsvOptions
from workers.ingest.load import LoadedText, load

KOREAN = (
    "작업 큐는 알림만 보내고 작업의 상태는 모두 데이터베이스에 저장합니다. 그래서 알림이 사라져도 "
    "작업은 잃지 않습니다. 정리 프로그램이 밀린 작업을 다시 알립니다."
)
CHINESE = (
    "这是一个中文文档。数据库支持事务，所以任务的状态不会丢失。我们可以搜索文件的内容，也可以在以后"
    "查看结果。如果通知消失了，清理程序会再次发出通知，这样所有的工作都会完成。"
)
LIMIT_CHARS = 1_000_000


def read(
    data: bytes | str,
    name: str = "note.txt",
    *,
    content_type: str | None = None,
    csv: CsvOptions | None = None,
    max_chars: int = LIMIT_CHARS,
) -> LoadedText:
    loaded = load(
        data, name=name, content_type=content_type, csv=csv or CsvOptions(), max_chars=max_chars
    )
    for passage in loaded.passages:
        end = passage.start + len(passage.text)
        assert loaded.text[passage.start : end] == passage.text
    return loaded


def refusal(data: bytes | str, name: str = "note.txt", **options: object) -> str:
    with pytest.raises(DocumentError) as caught:
        read(data, name, **options)  # type: ignore[arg-type]  # passed through as they are
    assert name in caught.value.message
    return caught.value.message


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
    assert read(b"<b>x</b>", "a.log").metadata["media_type"] == "text/plain"


@pytest.mark.parametrize("name", ["a.pdf", "b.DOCX", "folder/c.hwp", "d.png"])
def test_an_unsupported_extension_lists_the_supported_ones(name: str) -> None:
    message = refusal(b"anything", name)
    assert "not supported" in message
    assert ".md" in message
    assert ".jsonl" in message


def test_an_unsupported_content_type_is_refused() -> None:
    assert "application/pdf" in refusal(b"x", "file", content_type="application/pdf")


def test_inline_text_is_taken_as_it_is() -> None:
    loaded = read("첫 줄\r\n둘째 줄", "report.pdf")
    assert loaded.text == "첫 줄\n둘째 줄"
    assert "encoding" not in loaded.metadata


@pytest.mark.parametrize("data", [b"", b" \n\t ", "\ufeff".encode(), "\u3000\n".encode()])
def test_a_document_without_text_is_refused(data: bytes) -> None:
    assert "nothing to ingest" in refusal(data)


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
def test_utf16_needs_its_mark(encoding: str) -> None:
    assert "UTF-16 without a byte order mark" in refusal("No mark here".encode(encoding))


def test_text_that_begins_like_a_binary_is_text() -> None:
    assert read(b"BM25 ranks documents.").text == "BM25 ranks documents."
    assert read(b"MZ is a country code.").text == "MZ is a country code."


def test_a_docx_is_named_as_such() -> None:
    buffer = BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("word/document.xml", "<w/>")
    assert "Office" in refusal(buffer.getvalue())


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
        "Name | Age\n\nKim |  | 3\n\ndef f():\n    return 1\n\ntail"
    )


def test_html_charset_declarations() -> None:
    page = f'<html><head><meta charset="euc-kr"></head><body>{KOREAN}</body></html>'
    assert read(page.encode("cp949"), "a.html").text == KOREAN
    # UTF-8 that claims to be something else is UTF-8.
    assert read(page.encode(), "a.html").text == KOREAN
    xhtml = '<?xml version="1.0" encoding="Shift_JIS"?><html><body>日本語の文書</body></html>'
    assert read(xhtml.encode("cp932"), "a.xhtml").text == "日本語の文書"
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


# CSV


def test_each_row_is_a_passage() -> None:
    loaded = read('이름,설명\r\n김,"여러\r\n줄, 쉼표"\r\n이,""\r\n'.encode("utf-8-sig"), "a.csv")
    assert [passage.text for passage in loaded.passages] == [
        "이름: 김\n설명: 여러\n줄, 쉼표",
        "이름: 이",
    ]
    assert [passage.metadata for passage in loaded.passages] == [{"row": 1}, {"row": 2}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str) -> None:
    text = delimiter.join("ab") + "\n" + delimiter.join(("1 2", "3 4"))
    assert read(text, "x.csv").text == "a: 1 2\nb: 3 4"


def test_the_whole_file_decides_about_the_dialect() -> None:
    """Thousands of rows whose only commas are decimal ones, before the first other sign."""
    rows = "".join(f"{number},5;x{number}\n" for number in range(3000))
    loaded = read("price;name\n" + rows + '1,0;"a;b"\n', "a.csv")
    assert len(loaded.passages) == 3001
    assert loaded.passages[-1].text == "price: 1,0\nname: a;b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\nhello, world\nfoo; bar, baz\n", ["text: hello, world", "text: foo; bar, baz"]),
        ("sep=|\na|b\n1|2\n", ["a: 1\nb: 2"]),
        ('a, b\n1, "x, y"\n', ["a: 1\nb: x, y"]),
        ("\n\na,b\n\n1,2\n\n", ["a: 1\nb: 2"]),
        ("a,b\n1,2,,\n", ["a: 1\nb: 2"]),
        ("a,a,\n1,2,3\n", ["a: 1\na (2): 2\ncolumn 3: 3"]),
        ('a,b\n5" pipe,1\n6" pipe,2\n', ['a: 5" pipe\nb: 1', 'a: 6" pipe\nb: 2']),
        # Without any quoted field, a lone quote is a character like others.
        ('a,b\n"6 inch,1\n7,2\n', ['a: "6 inch\nb: 1', "a: 7\nb: 2"]),
    ],
)
def test_csv_as_people_write_it(text: str, expected: list[str]) -> None:
    assert [passage.text for passage in read(text, "a.csv").passages] == expected


def test_ragged_rows_name_the_line_and_the_counts() -> None:
    message = refusal('a,b,c\n1,"two\nlines",3\n4,5\n6,7,8,9\n', "a.csv")
    assert "line 4 has 2 fields" in message
    assert "line 5 has 4 fields" in message
    assert "header has 3 fields" in message


def test_an_open_quote_names_the_line_it_opens_on() -> None:
    message = refusal('a,b\n1,"x,y"\n3,"open\n4,5\n6,7\n', "a.csv")
    assert "line 3" in message
    assert "never closed" in message


def test_csv_columns_are_chosen_and_checked() -> None:
    options = CsvOptions(content_columns=["body"], metadata_columns=["id", "lang"])
    loaded = read("id,body,lang,x\n7,hello,ko,y\n", "a.csv", csv=options)
    assert loaded.passages[0].text == "body: hello"
    assert loaded.passages[0].metadata == {"row": 1, "id": "7", "lang": "ko"}
    only_metadata = CsvOptions(metadata_columns=["id"])
    assert read("id,b,c\n7,x,y\n", "a.csv", csv=only_metadata).text == "b: x\nc: y"
    for setting in ("content_columns", "metadata_columns"):
        message = refusal("id,body\n1,x\n", "a.csv", csv=CsvOptions(**{setting: ["Body"]}))
        assert setting in message
        assert "'id', 'body'" in message


def test_csv_encodings() -> None:
    data = "이름,나이\n홍길동,서른\n".encode("cp949")
    assert read(data, "a.csv").text == "이름: 홍길동\n나이: 서른"
    assert read(data, "a.csv", csv=CsvOptions(encoding="euc-kr")).text.startswith("이름")
    assert "csv.encoding" in refusal(b"a,b\n\xff\xfe\xfd,1\n", "a.csv")
    assert "csv.encoding" in refusal(data, "a.csv", csv=CsvOptions(encoding="klingon"))
    assert "offset" in refusal(data, "a.csv", csv=CsvOptions(encoding="utf-8"))
    assert "text encoding" in refusal(b"a,b\n1,2", "a.csv", csv=CsvOptions(encoding="hex"))


def test_csv_header_only_and_large_fields() -> None:
    assert "no rows" in refusal("a,b\n", "a.csv")
    assert len(read("a,b\n1," + "x" * 200_000 + "\n", "a.csv").text) > 200_000


# JSON


def test_a_json_object_is_written_out() -> None:
    value = {"name": "Kim", "address": {"city": "Seoul", "zip": None}, "tags": ["a", 1, True]}
    value["items"] = [{"x": 1.5}, {"x": 2}]
    assert read(json.dumps(value), "a.json").text == (
        "name: Kim\naddress.city: Seoul\ntags: a, 1, true\nitems[1].x: 1.5\nitems[2].x: 2"
    )


def test_array_elements_and_lines_are_passages() -> None:
    objects = [
        {"text": "one", "id": 7, "ok": True, "none": None, "tags": ["x", "y"], "deep": {"a": 1}},
        {"content": "two", "title": "T", "big": 10**30},
        "three",
        {},
    ]
    loaded = read(json.dumps(objects), "a.json")
    assert [passage.text for passage in loaded.passages] == ["one", "two", "three"]
    assert loaded.passages[0].metadata == {
        "item": 1, "id": 7, "ok": True, "tags": "x, y", "deep": '{"a": 1}'
    }  # fmt: skip
    assert loaded.passages[1].metadata == {"item": 2, "title": "T", "big": str(10**30)}
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in objects)
    loaded = read(lines, "a.jsonl")
    assert [passage.metadata["line"] for passage in loaded.passages] == [1, 3, 5]


def test_line_separators_inside_strings_do_not_end_a_json_line() -> None:
    assert read('{"text": "a\u2028b"}\n{"text": "c"}', "a.ndjson").text == "a\u2028b\n\nc"


def test_numbers_that_are_none() -> None:
    (passage,) = read('{"text": "x", "a": NaN, "b": 1e999, "c": -Infinity}', "a.jsonl").passages
    assert passage.metadata == {"line": 1, "a": "NaN", "b": "1e999", "c": "-Infinity"}


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ('{"a": 1,\n "b" 2}', "a.json", "line 2 column 6"),
        ('{"a": 1}\n{"a": 2}', "a.json", ".jsonl"),
        ('{"a": 1}\n{"a": }\n', "a.jsonl", "line 2 column 7"),
        ("[" * 100_000, "a.json", "too deeply"),
        ('{"a":' * 100_000, "a.jsonl", "too deeply at line 1"),
        ("[" * 990 + "[1],2" + "]" * 990, "a.json", "too deeply"),
        ("9" * 5000, "a.json", "cannot be read"),
        ("[]", "a.json", "nothing to ingest"),
        ("null", "a.json", "nothing to ingest"),
    ],
)
def test_bad_json_says_where(text: str, name: str, words: str) -> None:
    assert words in refusal(text, name)
