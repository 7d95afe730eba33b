"""What a document is: by its bytes where they are no text, else by name, type and beginning."""

import io
import zipfile

import pytest

from shared.errors import DocumentError
from shared.formats import FORMATS, Format
from tests.unit.compound_file import compound_file
from workers.ingest.formats.sniffing import format_of

ENTRY = "workers.ingest.formats.texts.text:TEXT"
DOCX = "application/vnd.openxmlformats-officedocument.wordprocessingml.document"
ODT = "application/vnd.oasis.opendocument.text"
PDF = b"%PDF-1.7\n1 0 obj\n<< /Type /Catalog >>\nendobj\n"
_NAME = "FileHeader\0".encode("utf-16-le")
# Of a compound file, its mark and an entry of its directory.
HWP = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(504) + _NAME.ljust(64, b"\0") + b"\x16\0"


@pytest.fixture(autouse=True)
def formats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Formats of every kind, whichever of them there already are."""
    for format_ in (
        Format("x-pdf", [".x-pdf"], ["x/pdf"], ENTRY, is_text=False, signatures=[b"%PDF-"]),
        Format("x-docx", [".x-docx"], ["x/docx"], ENTRY, is_text=False, zip_members=["word/"]),
        Format("x-odt", [".x-odt"], ["x/odt"], ENTRY, is_text=False),
        Format("x-hwp", [".x-hwp"], ["x/hwp"], ENTRY, is_text=False, ole_streams=["FileHeader"]),
        Format("x-zip", [".x-zip"], ["application/zip"], ENTRY, is_text=False),
        Format("x-flac", [".x-flac"], ["audio/flac"], ENTRY, is_text=False),
        Format("x-page", [".x-page"], ["x/page"], ENTRY, signatures=[b"<!DOCTYPE x"]),
    ):
        monkeypatch.setitem(FORMATS, format_.name, format_)
    for name, format_ in list(FORMATS.items()):
        if not name.startswith("x-") and not format_.is_text:
            monkeypatch.delitem(FORMATS, name)


def archive(*members: tuple[str, str]) -> bytes:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w", zipfile.ZIP_DEFLATED) as target:
        for name, text in members:
            target.writestr(name, text)
    return buffer.getvalue()


@pytest.mark.parametrize("name", ["upload", "a.txt", "b.x-docx", "c.md", "d.png", "e.exe"])
@pytest.mark.parametrize("content_type", [None, "text/plain; charset=utf-8", "image/png"])
def test_bytes_say_what_they_are_whatever_they_are_called(
    name: str, content_type: str | None
) -> None:
    for data, expected in (
        (PDF, "x-pdf"),
        (archive(("[Content_Types].xml", ""), ("word/document.xml", "")), "x-docx"),
        (archive(("mimetype", "x/odt"), ("content.xml", "")), "x-odt"),
        (archive(("content.xml", ""), ("mimetype", "x/odt\n")), "x-odt"),
        (archive(("notes/word.txt", "word/")), "x-zip"),
        (archive(), "x-zip"),
        (HWP, "x-hwp"),
        (b"fLaC\x00\x00\x00\x22" + bytes(100), "x-flac"),
    ):
        assert format_of(name, content_type, data).name == expected


def test_a_compound_file_is_no_other_for_a_word_in_it() -> None:
    words = HWP[:512] + b"the words " + _NAME + bytes(128)
    assert format_of("upload", None, words) is FORMATS["text"]


def test_something_may_stand_before_a_zip_archive() -> None:
    data = archive(("word/document.xml", "x"))
    assert format_of("a", None, data[:4] + b"\0" * 7 + data).name == "x-docx"


@pytest.mark.parametrize("cut", [30, 60, 80])
def test_an_archive_that_was_cut_off_goes_by_its_name(cut: int) -> None:
    data = archive(("word/document.xml", "x" * 50))[:cut]
    assert format_of("a.x-docx", None, data).name in ("x-docx", "x-zip")


def test_of_texts_the_name_counts_before_the_type_and_the_beginning() -> None:
    page = b"\xef\xbb\xbf \n<!doctype X><x>"
    assert format_of("a.md", "x/page", page).name == "Markdown"
    assert format_of("a.xyz", "text/markdown", page).name == "Markdown"
    assert format_of("a.xyz", "text/html; charset=x", b"x").name == "HTML"
    assert format_of("a", None, page).name == "x-page"
    assert format_of("a", "application/octet-stream", page).name == "x-page"
    assert format_of("a", None, b"x").name == "text"


def test_a_text_under_the_name_of_another_format_is_what_it_begins_like() -> None:
    assert format_of("report.x-docx", None, b"<!doctype x>").name == "x-page"
    assert format_of("report.pdf", "application/pdf", b"<!doctype x>").name == "x-page"
    with pytest.raises(DocumentError, match=r"a\.x-docx: is plain text, and no x-docx"):
        format_of("a.x-docx", None, "한글".encode())


@pytest.mark.parametrize(
    "text",
    [
        b"BM25 ranks documents.",
        b"MZ is a country code.",
        "ID3 결정 트리".encode(),
        "GIF89a 형식".encode("cp949"),
        "첫 줄".encode("utf-16"),
        "\x1b[31m빨강\x1b[0m\x0c".encode(),
        "日本語".encode("iso-2022-jp"),
    ],
)
def test_texts_are_no_binaries(text: bytes) -> None:
    assert format_of("a.txt", None, text).name == "text"
    assert format_of("a", None, text).name == "text"


@pytest.mark.parametrize("encoding", ["utf-16-le", "utf-16-be", "utf-32-le"])
@pytest.mark.parametrize("text", ["한국어 문장입니다.", "Plain English.", "\u3042\u3044 日本"])
def test_a_text_of_wide_characters_is_no_recording(text: str, encoding: str) -> None:
    assert format_of("a.md", None, text.encode(encoding)).name == "Markdown"


def test_what_was_sent_as_text_is_text() -> None:
    assert format_of("a.x-docx", None, "PK\x03\x04").name == "text"
    assert format_of("a.html", None, "\x00").name == "HTML"


def test_a_name_or_type_that_is_not_supported_lists_what_is() -> None:
    for name, content_type in (("a.png", None), ("a", "image/png")):
        for data in (b"\x89PNG\r\n\x1a\n\0", b"letters"):
            with pytest.raises(DocumentError, match=r"not supported.*\.md"):
                format_of(name, content_type, data)


def test_a_compound_file_is_what_lies_at_its_top() -> None:
    attached = compound_file({"FileHeader": b"x" * 5000})
    message = compound_file({"__attach": {"data": attached, "FileHeader": b"x"}, "other": b"x"})
    assert format_of("a", None, attached).name == "x-hwp"
    assert format_of("a.txt", None, message).name == "text"


def test_what_programs_call_by_the_name_of_word_is_what_it_begins_like() -> None:
    page = b"<html xmlns:o='urn:schemas-microsoft-com:office:office'><body>x</body></html>"
    assert format_of("report.doc", "application/msword", page).name == "HTML"
    assert format_of("report.doc", None, b"<?xml version='1.0'?><w:wordDocument/>").name == "XML"
    with pytest.raises(DocumentError, match=r"Save it as \.docx"):
        format_of("report.doc", None, b"just letters")
    with pytest.raises(DocumentError, match=r"Save it as \.zip"):
        format_of("all.rar", None, b"Rar!\x1a\x07\x01\0")
