"""Documents that are damaged, hostile or huge: each is refused as a document, or read as far as it
goes, and costs no more than its size allows."""

import io
import zipfile
from collections.abc import Callable
from functools import cache

import pytest

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.formats import FORMATS
from tests.unit.documents import read, refusal
from workers.ingest.formats.office.package import archive_of
from workers.ingest.load import loader_of

PACKAGED = ["Word", "Excel", "PowerPoint", "OpenDocument text", "EPUB", "HWPX"]
LIMITS = IngestSettings.model_construct(max_unpacked_mib=1, max_document_chunks=1000)


@cache
def example(name: str) -> tuple[bytes, str]:
    format_ = FORMATS[name]
    return loader_of(format_).example, f"a{format_.suffixes[0]}"


def members_of(content: bytes) -> dict[str, str]:
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        return {name: archive.read(name).decode() for name in archive.namelist()}


def padded(name: str, count: int) -> tuple[bytes, str]:
    """With so many megabytes of nothing in the member that is read last."""
    content, file = example(name)
    members = members_of(content)
    members[list(members)[-1]] += count * f"<!--{' ' * 1_000_000}-->"
    return archive_of(members), file


@pytest.mark.parametrize("name", PACKAGED)
def test_what_unpacks_to_too_much_is_refused(name: str) -> None:
    assert "SLUICE_MAX_UNPACKED_MIB" in refusal(*padded(name, 2), settings=LIMITS)


def test_a_bomb_is_refused_while_it_unpacks() -> None:
    assert "SLUICE_MAX_UNPACKED_RATIO" in refusal(*padded("Word", 17))


ENTITIES = "<!DOCTYPE x [" + '<!ENTITY a0 "aaaaaaaaaa">' + "".join(
    f'<!ENTITY a{n} "{f"&a{n - 1};" * 10}">' for n in range(1, 10)
) + '<!ENTITY file SYSTEM "file:///etc/passwd">]>'  # fmt: skip


@pytest.mark.parametrize("name", PACKAGED)
@pytest.mark.parametrize("use", ["&a9;", "&file;", '<x y="&a9;"/>'])
def test_entities_are_not_expanded(name: str, use: str) -> None:
    content, file = example(name)
    members = members_of(content)
    for member, text in members.items():
        if text.startswith("<"):
            members[member] = ENTITIES + text.replace("nine", "nine" + use)
    data = archive_of(members)
    try:
        text = read(data, file).text
    except DocumentError:
        return
    assert "aaaaaaaaaaaa" not in text
    assert "root:" not in text


def test_what_is_encrypted_says_so() -> None:
    """Office encrypts into a compound file, whatever the name."""
    data = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1" + bytes(600) + "EncryptedPackage".encode("utf-16-le")
    for file in ("a.docx", "a.xlsx", "a.pptx"):
        assert "is encrypted with a password" in refusal(data, file)
    stream = io.BytesIO()
    with zipfile.ZipFile(stream, "w") as archive:
        archive.writestr("word/document.xml", "<x/>")
    locked = stream.getvalue().replace(
        b"PK\x01\x02\x14\x03\x14\x00\x00", b"PK\x01\x02\x14\x03\x14\x00\x01"
    )
    assert "is encrypted" in refusal(locked, "a.docx")


# What a few bytes may become


def rows_of_merged_cells(columns: int, rows: int) -> str:
    """Of HWPX, where covered cells are not there: the first row has cells that all others are
    covered by, but for one."""
    cell = (
        "<hp:tc><hp:subList><hp:p><hp:run><hp:t>{text}</hp:t></hp:run></hp:p></hp:subList>"
        '<hp:cellAddr colAddr="{column}" rowAddr="{row}"/><hp:cellSpan rowSpan="{span}"/></hp:tc>'
    )
    first = "".join(
        cell.format(text="merged" * 20, column=at, row=0, span=rows) for at in range(columns)
    )
    others = "".join(
        f"<hp:tr>{cell.format(text='own', column=columns, row=at, span=1)}</hp:tr>"
        for at in range(1, rows)
    )
    return f"<hp:tbl><hp:tr>{first}</hp:tr>{others}</hp:tbl>"


def word_of(*blocks: str) -> bytes:
    body = "".join(blocks)
    return archive_of(
        {"word/document.xml": f'<w:document xmlns:w="w"><w:body>{body}</w:body></w:document>'}
    )


def hwpx_of(*runs: str) -> bytes:
    body = "".join(f"<hp:p><hp:run>{run}</hp:run></hp:p>" for run in runs)
    return archive_of({"Contents/section0.xml": f'<s xmlns:hp="p">{body}</s>'})


def merged_downwards(chars: int, rows: int) -> bytes:
    row = (
        "<w:tr><w:tc><w:tcPr><w:vMerge{}/></w:tcPr><w:p><w:r><w:t>{}</w:t></w:r></w:p></w:tc>{}"
        "</w:tr>"
    )
    beside = "<w:tc><w:p><w:r><w:t>x</w:t></w:r></w:p></w:tc>"
    first = row.format(' w:val="restart"', "m" * chars, beside)
    return word_of("<w:tbl>", first, row.format("", "", beside) * rows, "</w:tbl>")


def spine(times: int) -> bytes:
    references = "<itemref idref='1'/>" * times
    return archive_of(
        {
            "META-INF/container.xml": '<c><rootfile full-path="a.opf"/></c>',
            "a.opf": '<package><manifest><item id="1" href="1.xhtml" '
            f'media-type="application/xhtml+xml"/></manifest><spine>{references}</spine></package>',
            "1.xhtml": f"<html><body><p>{'word ' * times}</p></body></html>",
        }
    )


def workbook(times: int) -> bytes:
    sheets = "".join(f'<sheet name="{at}" r:id="1"/>' for at in range(times))
    rows = "<row><c><v>1</v></c></row>" * times
    return archive_of(
        {
            "xl/workbook.xml": f'<workbook xmlns:r="r"><sheets>{sheets}</sheets></workbook>',
            "xl/_rels/workbook.xml.rels": '<R><R Id="1" Type="x/worksheet" Target="1.xml"/></R>',
            "xl/1.xml": f"<worksheet><sheetData>{rows}</sheetData></worksheet>",
        }
    )


@pytest.mark.parametrize(
    ("name", "build"),
    [
        ("a.hwpx", lambda size: hwpx_of(rows_of_merged_cells(size, size))),
        ("a.docx", lambda size: merged_downwards(20 * size, size)),
        ("a.epub", spine),
        ("a.xlsx", workbook),
    ],
)
def test_what_becomes_of_a_document_grows_as_it_does(
    name: str, build: Callable[[int], bytes]
) -> None:
    """Twice the document gives at most about twice the text, not four times."""
    once, twice = (len(read(build(size), name).text) for size in (100, 200))
    assert twice < 2.5 * once


def test_a_document_of_too_much_text_or_too_many_sections_is_refused_early() -> None:
    few = IngestSettings.model_construct(max_document_chars=1000, max_document_chunks=10)
    paragraph = "<w:p><w:r><w:t>word word word word</w:t></w:r></w:p>"
    assert "SLUICE_MAX_DOCUMENT_CHARS" in refusal(word_of(paragraph * 100), "a.docx", settings=few)
    heading = (
        '<w:p><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>a</w:t></w:r></w:p>'
        "<w:p><w:r><w:t>b</w:t></w:r></w:p>"
    )
    assert "SLUICE_MAX_DOCUMENT_CHUNKS" in refusal(word_of(heading * 20), "a.docx", settings=few)
