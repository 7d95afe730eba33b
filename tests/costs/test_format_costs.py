"""Reading a document of any format takes time in proportion to its size, whatever is in it: the
binary formats, mail and archives; those that are text are in `test_ingest_costs.py`.

Measured as there: by how much more processor time four or eight times the document takes.
"""

import contextlib
import gzip
import io
import struct
from collections.abc import Callable

import pytest
import xlwt

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.formats import FORMATS
from shared.kinds.ingest import LoadOptions
from tests.costs.test_ingest_costs import COSTS_OF_TEXTS, assert_linear
from tests.unit.compound_file import compound_file, outlook_message
from tests.unit.test_members import sevenzipped, tarred, zipped
from workers.ingest.formats.office.package import archive_of
from workers.ingest.load import load, members

LARGE = IngestSettings.model_construct(
    max_document_chars=10**8, max_document_chunks=10**8, max_unpacked_ratio=10**6,
    archive_limit_ratio=10**6, archive_limit_entries=10**6,
)  # fmt: skip
SIZE = 20_000
LEAST = 2_500

Make = Callable[[int], bytes]
"""The hostile document of about so many bytes, once it is unpacked."""


def times(form: str, size: int) -> str:
    return form * (size // len(form))


def numbered(form: str, size: int) -> str:
    return "".join(form.format(n) for n in range(size // len(form)))


def nested(opening: str, closing: str, size: int, *, depth: int) -> str:
    """To a fixed depth, as often as the size allows."""
    return times(opening * depth + "a" + closing * depth, size)


# Packages of XML


def word(body: str, **parts: str) -> bytes:
    document = f'<w:document xmlns:w="w"><w:body>{body}</w:body></w:document>'
    return archive_of({"word/document.xml": document, **parts})


def runs(form: str, size: int) -> bytes:
    return word(f"<w:p>{times(form, size)}</w:p>")


CELL = "<w:tc><w:p><w:r><w:t>a</w:t></w:r></w:p></w:tc>"
WORD: dict[str, Make] = {
    "paragraphs": lambda size: word(times("<w:p><w:r><w:t>a</w:t></w:r></w:p>", size)),
    "runs": lambda size: runs("<w:r><w:t>a</w:t></w:r>", size),
    "breaks": lambda size: runs("<w:r><w:br/><w:tab/></w:r>", size),
    "one long text": lambda size: word(f"<w:p><w:r><w:t>{'a ' * (size // 2)}</w:t></w:r></w:p>"),
    "headings": lambda size: word(
        times(
            '<w:p><w:pPr><w:outlineLvl w:val="0"/></w:pPr><w:r><w:t>a</w:t></w:r></w:p>'
            "<w:p><w:r><w:t>b</w:t></w:r></w:p>",
            size,
        )
    ),
    "columns": lambda size: word(f"<w:tbl><w:tr>{times(CELL, size)}</w:tr></w:tbl>"),
    "rows": lambda size: word(f"<w:tbl>{times(f'<w:tr>{CELL}{CELL}</w:tr>', size)}</w:tbl>"),
    "nested tables": lambda size: word(
        nested("<w:tbl><w:tr><w:tc><w:p/>", "</w:tc></w:tr></w:tbl>", size, depth=12)
    ),
    "nested boxes": lambda size: word(
        nested("<w:p><w:r><w:txbxContent>", "</w:txbxContent></w:r></w:p>", size, depth=12)
    ),
    "cells that span": lambda size: word(
        "<w:tbl>"
        + times(
            '<w:tr><w:tc><w:tcPr><w:gridSpan w:val="99"/><w:vMerge/></w:tcPr><w:p/></w:tc>'
            f"{CELL}</w:tr>",
            size,
        )
        + "</w:tbl>"
    ),
    "styles": lambda size: word(
        "<w:p><w:pPr><w:pStyle w:val='s1'/></w:pPr><w:r><w:t>a</w:t></w:r></w:p>",
        **{
            "word/styles.xml": "<w:styles xmlns:w='w'>"
            + numbered("<w:style w:styleId='s{0}'><w:basedOn w:val='s{0}1'/></w:style>", size)
            + "</w:styles>"
        },
    ),
}


def workbook(rows: str, **parts: str) -> bytes:
    return archive_of(
        {
            "xl/workbook.xml": '<workbook xmlns:r="r"><sheets><sheet name="Hours" r:id="1"/>'
            "</sheets></workbook>",
            "xl/_rels/workbook.xml.rels": '<R><R Id="1" Type="x/worksheet" Target="1.xml"/>'
            '<R Id="2" Type="x/sharedStrings" Target="s.xml"/>'
            '<R Id="3" Type="x/styles" Target="styles.xml"/></R>',
            "xl/1.xml": f"<worksheet><sheetData>{rows}</sheetData></worksheet>",
            **parts,
        }
    )


TEXT_CELL = '<c t="inlineStr"><is><t>a</t></is></c>'
EXCEL: dict[str, Make] = {
    "columns": lambda size: workbook(f"<row>{times(TEXT_CELL, size)}</row>" * 2),
    "rows": lambda size: workbook(times(f"<row>{TEXT_CELL}<c><v>1</v></c></row>", size)),
    "a huge cell": lambda size: workbook(
        f'<row><c t="inlineStr"><is><t>{"a" * size}</t></is></c></row>'
    ),
    "runs in a cell": lambda size: workbook(
        f'<row><c t="inlineStr"><is>{times("<r><t>a</t></r>", size)}</is></c></row>'
    ),
    "shared strings": lambda size: workbook(
        numbered('<row><c t="s"><v>{0}</v></c></row>', size),
        **{"xl/s.xml": f"<sst>{times('<si><t>a</t></si>', size)}</sst>"},
    ),
    "references far away": lambda size: workbook(
        times('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', size)
    ),
    "rows that are not there": lambda size: workbook(
        numbered('<row r="{0}00"><c><v>1</v></c></row>', size)
    ),
    "number formats": lambda size: workbook(
        times('<row><c s="1"><v>1.5</v></c></row>', size),
        **{
            "xl/styles.xml": "<styleSheet><numFmts>"
            + numbered('<numFmt numFmtId="{0}" formatCode="{0}[h]:mm;@"/>', size)
            + "</numFmts><cellXfs>"
            + numbered('<xf numFmtId="{0}"/>', size)
            + "</cellXfs></styleSheet>"
        },
    ),
    "a long number format": lambda size: workbook(
        '<row><c s="0"><v>1.5</v></c></row>',
        **{
            "xl/styles.xml": "<styleSheet><numFmts><numFmt numFmtId='200' formatCode='"
            + times("[h]#,##0.0_(;", size)
            + "'/></numFmts><cellXfs><xf numFmtId='200'/></cellXfs></styleSheet>"
        },
    ),
    "merged cells": lambda size: archive_of(
        {
            "xl/workbook.xml": '<workbook xmlns:r="r"><sheets><sheet name="a" r:id="1"/></sheets>'
            "</workbook>",
            "xl/_rels/workbook.xml.rels": '<R><R Id="1" Type="x/worksheet" Target="1.xml"/></R>',
            "xl/1.xml": "<worksheet><sheetData><row>" + TEXT_CELL + "</row></sheetData>"
            "<mergeCells>" + times('<mergeCell ref="A1:XFD1048576"/>', size) + "</mergeCells>"
            "</worksheet>",
        }
    ),
}


def slides(shapes: str, count: int = 1) -> bytes:
    ids = "".join(f'<sldId id="{256 + n}" r:id="r{n}"/>' for n in range(count))
    relations = "".join(f'<R Id="r{n}" Type="x/slide" Target="{n}.xml"/>' for n in range(count))
    slide = f"<sld><cSld><spTree>{shapes}</spTree></cSld></sld>"
    return archive_of(
        {
            "ppt/presentation.xml": f'<presentation xmlns:r="r"><sldIdLst>{ids}</sldIdLst>'
            "</presentation>",
            "ppt/_rels/presentation.xml.rels": f"<R>{relations}</R>",
            **{f"ppt/{n}.xml": slide for n in range(count)},
        }
    )


SHAPE = "<sp><txBody><p><r><t>a</t></r></p></txBody></sp>"
POWERPOINT: dict[str, Make] = {
    "slides": lambda size: slides(SHAPE, size // 200),
    "shapes": lambda size: slides(times(SHAPE, size)),
    "shapes in order of place": lambda size: slides(
        numbered(
            "<sp><spPr><xfrm><off x='{0}' y='1'/><ext cx='9' cy='9'/></xfrm></spPr><txBody><p>"
            "<r><t>a</t></r></p></txBody></sp>",
            size,
        )
    ),
    "paragraphs": lambda size: slides(
        f"<sp><txBody>{times('<p><r><t>a</t></r></p>', size)}</txBody></sp>"
    ),
    "nested groups": lambda size: slides(nested("<grpSp>", SHAPE + "</grpSp>", size, depth=12)),
}


def opendocument(kind: str, body: str) -> bytes:
    return archive_of(
        {
            "mimetype": f"application/vnd.oasis.opendocument.{kind}",
            "content.xml": '<o:c xmlns:o="o" xmlns:t="t" xmlns:b="b" xmlns:d="d"><o:body>'
            f"<o:{kind}>{body}</o:{kind}></o:body></o:c>",
        }
    )


def table(rows: str) -> bytes:
    return opendocument("spreadsheet", f'<b:table b:name="a">{rows}</b:table>')


OPENDOCUMENT_TEXT: dict[str, Make] = {
    "paragraphs": lambda size: opendocument("text", times("<t:p>a</t:p>", size)),
    "spans": lambda size: opendocument(
        "text", f"<t:p>{times('<t:span>a</t:span><t:s/>', size)}</t:p>"
    ),
    "many spaces": lambda size: opendocument(
        "text", times('<t:p>a<t:s t:c="999999999"/></t:p>', size)
    ),
    "nested lists": lambda size: opendocument(
        "text",
        nested("<t:list><t:list-item>", "<t:p>a</t:p></t:list-item></t:list>", size, depth=9),
    ),
    "nested tables": lambda size: opendocument(
        "text",
        nested(
            "<b:table><b:table-row><b:table-cell>",
            "<t:p>a</t:p></b:table-cell></b:table-row></b:table>", size, depth=9,
        ),
    ),
    "headings": lambda size: opendocument("text", times("<t:h>a</t:h><t:p>b</t:p>", size)),
}  # fmt: skip
ODS_CELL = "<b:table-cell><t:p>a</t:p></b:table-cell>"
OPENDOCUMENT_SHEET: dict[str, Make] = {
    "columns": lambda size: table(f"<b:table-row>{times(ODS_CELL, size)}</b:table-row>" * 2),
    "rows": lambda size: table(times(f"<b:table-row>{ODS_CELL}</b:table-row>", size)),
    "repeated columns": lambda size: table(
        times('<b:table-row><b:table-cell b:number-columns-repeated="16384"/></b:table-row>', size)
    ),
    "repeated rows": lambda size: table(
        times(f'<b:table-row b:number-rows-repeated="9">{ODS_CELL}</b:table-row>', size)
    ),
}
OPENDOCUMENT_SLIDES: dict[str, Make] = {
    "pages": lambda size: opendocument(
        "presentation",
        times("<d:page><d:frame><d:text-box><t:p>a</t:p></d:text-box></d:frame></d:page>", size),
    ),
    "nested groups": lambda size: opendocument(
        "presentation",
        "<d:page>" + nested("<d:g>", "<t:p>a</t:p></d:g>", size, depth=9) + "</d:page>",
    ),
}  # fmt: skip


def hwpx(runs: str) -> bytes:
    return archive_of(
        {
            "mimetype": "application/hwp+zip",
            "Contents/section0.xml": f'<s xmlns:hp="p"><hp:p>{runs}</hp:p></s>',
        }
    )


HWPX_CELL = "<hp:tc><hp:subList><hp:p><hp:run><hp:t>a</hp:t></hp:run></hp:p></hp:subList>{}</hp:tc>"
HWPX: dict[str, Make] = {
    "runs": lambda size: hwpx(times("<hp:run><hp:t>a</hp:t></hp:run>", size)),
    "columns": lambda size: hwpx(
        "<hp:run><hp:tbl><hp:tr>"
        + numbered(HWPX_CELL.format('<hp:cellAddr colAddr="{0}" rowAddr="0"/>'), size)
        + "</hp:tr></hp:tbl></hp:run>"
    ),
    "cells that span": lambda size: hwpx(
        "<hp:run><hp:tbl>"
        + times(
            "<hp:tr>"
            + HWPX_CELL.format('<hp:cellSpan colSpan="9999" rowSpan="9999"/>')
            + "</hp:tr>",
            size,
        )
        + "</hp:tbl></hp:run>"
    ),
    "nested tables": lambda size: hwpx(
        nested(
            "<hp:run><hp:tbl><hp:tr><hp:tc><hp:subList><hp:p>",
            "</hp:p></hp:subList></hp:tc></hp:tr></hp:tbl></hp:run>", size, depth=9,
        )
    ),
}  # fmt: skip


def epub(chapter: str, count: int = 1, navigation: str = "") -> bytes:
    items = "".join(
        f'<item id="{n}" href="{n}.xhtml" media-type="application/xhtml+xml"/>'
        for n in range(count)
    )
    spine = "".join(f'<itemref idref="{n}"/>' for n in range(count))
    return archive_of(
        {
            "mimetype": "application/epub+zip",
            "META-INF/container.xml": '<c><rootfile full-path="a.opf"/></c>',
            "a.opf": f'<package><manifest>{items}<item id="n" href="n.xhtml" properties="nav" '
            f'media-type="application/xhtml+xml"/></manifest><spine>{spine}</spine></package>',
            "n.xhtml": f"<html><body><nav><ol>{navigation}</ol></nav></body></html>",
            **{f"{n}.xhtml": chapter for n in range(count)},
        }
    )


EPUB: dict[str, Make] = {
    "chapters": lambda size: epub("<html><body><p>a</p></body></html>", size // 200),
    "paragraphs": lambda size: epub(
        f"<html><body>{times('<h2>a</h2><p>b</p>', size)}</body></html>"
    ),
    "a table of contents": lambda size: epub(
        "<html><body><p>a</p></body></html>", 9,
        numbered("<li><a href='1.xhtml#{0}'>a</a></li>", size),
    ),
}  # fmt: skip


# Others


def pdf(*contents: str) -> bytes:
    count = len(contents)
    kids = " ".join(f"{4 + 2 * n} 0 R" for n in range(count))
    objects = [
        "<</Type/Catalog/Pages 2 0 R>>",
        f"<</Type/Pages/Kids[{kids}]/Count {count}>>",
        "<</Type/Font/Subtype/Type1/BaseFont/Helvetica>>",
    ]
    for n, content in enumerate(contents):
        objects.append(
            f"<</Type/Page/Parent 2 0 R/MediaBox[0 0 612 792]/Contents {5 + 2 * n} 0 R"
            "/Resources<</Font<</F1 3 0 R>>>>>>"
        )
        stream = f"BT /F1 12 Tf {content} ET"
        objects.append(f"<</Length {len(stream)}>>stream\n{stream}\nendstream")
    body = "%PDF-1.4\n"
    offsets = []
    for number, written in enumerate(objects, start=1):
        offsets.append(len(body))
        body += f"{number} 0 obj\n{written}\nendobj\n"
    entries = "".join(f"{offset:010} 00000 n \n" for offset in offsets)
    return (
        f"{body}xref\n0 {len(objects) + 1}\n0000000000 65535 f \n{entries}"
        f"trailer<</Size {len(objects) + 1}/Root 1 0 R>>\nstartxref\n{len(body)}\n%%EOF"
    ).encode()


PDF: dict[str, Make] = {
    "pages": lambda size: pdf(*["72 720 Td (a b c) Tj"] * (size // 200)),
    "words in a line": lambda size: pdf("72 720 Td " + times("(a ) Tj ", size)),
    "words at one place": lambda size: pdf(times("1 0 0 1 72 720 Tm (a) Tj ", size)),
    "lines": lambda size: pdf("72 720 Td " + times("0 -9 Td (a) Tj ", size)),
    "columns": lambda size: pdf(
        "".join(
            f"1 0 0 1 {20 + 60 * (n % 10)} {780 - 10 * (n // 10 % 75)} Tm (a) Tj "
            for n in range(size // 28)
        )
    ),
    "a long text": lambda size: pdf(f"72 720 Td ({'a' * size}) Tj"),
    "turned words": lambda size: pdf(times("0 1 -1 0 72 720 Tm (a) Tj ", size)),
    "objects": lambda size: (
        pdf("72 720 Td (a) Tj") + numbered("{0} 0 obj\n<<>>\nendobj\n", size).encode()
    ),
}  # fmt: skip


def rtf(body: str) -> bytes:
    return f"{{\\rtf1\\ansi {body}}}".encode()


RTF: dict[str, Make] = {
    "paragraphs": lambda size: rtf(times("\\pard a\\par\n", size)),
    "groups": lambda size: rtf(times("{\\b a}", size)),
    "nested groups": lambda size: rtf("{" * (size // 2) + "a" + "}" * (size // 2)),
    "open groups": lambda size: rtf(times("{\\b a", size)),
    "ends of groups": lambda size: rtf("a" + "}" * size),
    "escapes": lambda size: rtf(times("\\'b0\\'a1", size)),
    "characters": lambda size: rtf(times("\\u44032?", size)),
    "words": lambda size: rtf(times("\\x", size)),
    "a long word": lambda size: rtf("\\" + "a" * size),
    "a long number": lambda size: rtf("\\b" + "1" * size),
    "data": lambda size: rtf(times("\\bin2 ab", size)),
    "fonts": lambda size: rtf("{\\fonttbl" + numbered("{{\\f{0} a;}}", size) + "}a"),
    "cells": lambda size: rtf("\\trowd " + times("\\intbl a\\cell ", size) + "\\row"),
    "notes": lambda size: rtf(times("a{\\footnote b}", size)),
}


def xls(size: int, columns: int) -> bytes:
    book = xlwt.Workbook()
    sheet = book.add_sheet("a")
    for n in range(size // 20):
        sheet.write(n // columns, n % columns, f"a{n}")
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


EXCEL_97: dict[str, Make] = {
    "rows": lambda size: xls(size, 2),
    "columns": lambda size: xls(size, 250),
}


def record(tag: int, level: int, data: bytes = b"") -> bytes:
    return struct.pack("<I", tag | level << 10 | len(data) << 20) + data


PARAGRAPH = record(66, 0, bytes(22)) + record(67, 1, "a".encode("utf-16-le"))


def hwp(section: bytes) -> bytes:
    head = b"HWP Document File".ljust(40, b"\0")
    return compound_file(
        {
            "FileHeader": head.ljust(256, b"\0"),
            "DocInfo": b"",
            "BodyText": {"Section0": section.ljust(5000, b"\0")},
        }
    )


HWP: dict[str, Make] = {
    "paragraphs": lambda size: hwp(PARAGRAPH * (size // len(PARAGRAPH))),
    "controls": lambda size: hwp(
        record(66, 0, bytes(22)) + record(71, 1, b" lbt" + bytes(20)) * (size // 28)
    ),
    "levels": lambda size: hwp(
        b"".join(record(66 + 5 * (n % 2), n % 40) for n in range(size // 4)) + PARAGRAPH
    ),
    "lists": lambda size: hwp(
        record(66, 0, bytes(22)) + record(71, 1, b" lbt" + bytes(20))
        + (record(72, 2, bytes(40)) + record(66, 2, bytes(22))) * (size // 70)
    ),
}  # fmt: skip


# Mail and archives


def mail(headers: str, body: str = "a") -> bytes:
    return f"From: a@example.org\nSubject: a\n{headers}\n\n{body}".encode()


EML: dict[str, Make] = {
    "headers": lambda size: mail(numbered("X-{0}: a\n", size)[:-1]),
    "a header": lambda size: mail("Subject: " + times("a ", size)),
    "a folded header": lambda size: mail("X-A: a\n" + times(" a\n", size)[:-1]),
    "encoded words": lambda size: mail("X-B: " + times("=?utf-8?B?YQ==?= ", size)),
    "addresses": lambda size: mail("To: " + numbered("a{0}@example.org, ", size) + "b@example.org"),
    "comments in an address": lambda size: mail("To: " + "(" * size),
    "parameters": lambda size: mail("Content-Type: text/plain" + numbered("; a{0}=b", size)),
    "parts": lambda size: mail(
        "Content-Type: multipart/mixed; boundary=b",
        times("--b\nContent-Type: text/plain\n\na\n", size) + "--b--",
    ),
    "nested parts": lambda size: mail(
        "Content-Type: multipart/mixed; boundary=b0",
        "".join(
            f"--b{n}\nContent-Type: multipart/mixed; boundary=b{n + 1}\n\n"
            for n in range(min(50, size // 60))
        )
        + times("a\n", size),
    ),
    "boundaries": lambda size: mail(
        "Content-Type: multipart/mixed; boundary=b", times("--b\n", size)
    ),
    "a long line": lambda size: mail("Content-Type: text/html", "<p>" + "a" * size),
}  # fmt: skip

MSG: dict[str, Make] = {
    "attachments": lambda size: outlook_message(
        subject="a",
        body="a",
        attachments=[{"name": f"{n}.txt", "data": b"a"} for n in range(min(size // 100, 1000))],
    ),
    "a long body": lambda size: outlook_message(subject="a", body="a " * (size // 2)),
}


def names(size: int) -> dict[str, bytes]:
    return {f"{n}.txt": b"a" for n in range(size // 50)}


def many(size: int) -> bytes:
    return b"a line of text\n" * (size // 15)


ARCHIVES: dict[str, dict[str, Make]] = {
    "ZIP": {
        "members": lambda size: zipped(names(size)),
        "long names": lambda size: zipped(
            {"/".join("a" * (size // 20)) + f"{n}": b"a" for n in range(9)}
        ),
        "archives within": lambda size: zipped(
            {f"{n}.zip": zipped({"a.txt": b"a"}) for n in range(size // 200)}
        ),
    },
    "TAR": {
        "members": lambda size: tarred(names(size)),
        "long names": lambda size: tarred({"a" * (size // 20) + f"{n}": b"a" for n in range(9)}),
    },
    "7-Zip": {"members": lambda size: sevenzipped(names(size))},
    "gzip": {"parts": lambda size: gzip.compress(b"a") * (size // 20)},
    **{name: {} for name in ("bzip2", "xz", "Zstandard")},
}  # fmt: skip
"""The last three are one stream, as gzip is."""

BINARY: dict[str, dict[str, Make]] = {
    "Word": WORD, "Excel": EXCEL, "PowerPoint": POWERPOINT, "Excel 97": EXCEL_97,
    "OpenDocument text": OPENDOCUMENT_TEXT, "OpenDocument spreadsheet": OPENDOCUMENT_SHEET,
    "OpenDocument presentation": OPENDOCUMENT_SLIDES, "HWPX": HWPX, "HWP 5": HWP, "EPUB": EPUB,
    "PDF": PDF, "RTF": RTF, "EML": EML, "MSG": MSG, **ARCHIVES,
}  # fmt: skip
CASES = [(name, case) for name, cases in BINARY.items() for case in cases]


def test_every_format_has_its_cases() -> None:
    """But those that a job has to ask for: programs of their own read pictures and recordings."""
    asked_for = {name for name, format_ in FORMATS.items() if format_.option}
    assert BINARY.keys() | COSTS_OF_TEXTS.keys() == FORMATS.keys() - asked_for


def reading(name: str, make: Make) -> Callable[[int], Callable[[], object]]:
    format_ = FORMATS[name]
    file = f"a{format_.suffixes[0]}"
    options = LoadOptions()

    def action_of(size: int) -> Callable[[], object]:
        data = make(size)

        def action() -> None:
            with contextlib.suppress(DocumentError):
                if format_.is_document:
                    load(data, name=file, content_type=None, options=options, settings=LARGE)
            with contextlib.suppress(DocumentError):
                if format_.holds_documents:
                    for _ in members(
                        data, name=file, content_type=None, options=options, settings=LARGE
                    ):
                        pass

        return action

    return action_of


@pytest.mark.parametrize(("name", "case"), CASES, ids=[f"{name}-{case}" for name, case in CASES])
def test_reading(name: str, case: str) -> None:
    assert_linear(reading(name, BINARY[name][case]), SIZE, LEAST)
