"""OpenDocument texts, EPUB books and RTF: as odfpy and EbookLib write them, and as Word, Hancom and
TextEdit write RTF."""

import io
from typing import Any

import pytest
from ebooklib import epub
from odf import dc, office, text
from odf.draw import Frame, TextBox
from odf.opendocument import OpenDocumentText
from odf.style import Footer, Header, MasterPage, PageLayout
from odf.table import CoveredTableCell, Table, TableCell, TableRow

from tests.unit.documents import read, refusal
from workers.ingest.formats.office.package import archive_of


def passages(data: bytes, name: str) -> list[tuple[str, dict[str, Any]]]:
    return [(p.text, p.metadata) for p in read(data, name).passages]


# OpenDocument


def odt(*elements: Any, **beside: str) -> bytes:
    document = OpenDocumentText()
    document.meta.addElement(dc.Title(text="규정집"))
    document.meta.addElement(dc.Creator(text="김하나"))
    if beside:
        layout = PageLayout(name="L")
        document.automaticstyles.addElement(layout)
        master = MasterPage(name="Standard", pagelayoutname=layout)
        for kind, made in (("header", Header()), ("footer", Footer())):
            made.addElement(text.P(text=beside[kind]))
            master.addElement(made)
        document.masterstyles.addElement(master)
    for element in elements:
        document.text.addElement(element)
    stream = io.BytesIO()
    document.write(stream)
    return stream.getvalue()


def paragraph(*parts: Any, of: Any = text.P, **attributes: Any) -> Any:
    made = of(**attributes)
    for part in parts:
        if isinstance(part, str):
            made.addText(part)
        else:
            made.addElement(part)
    return made


def test_an_opendocument_text_has_sections_notes_and_parts() -> None:
    note = text.Note(noteclass="footnote")
    note.addElement(text.NoteCitation(text="1"))
    note.addElement(paragraph(text.P(text="2024년부터."), of=text.NoteBody))
    comment = office.Annotation()
    comment.addElement(dc.Creator(text="Mina"))
    comment.addElement(text.P(text="Sure?"))
    data = odt(
        paragraph("총칙", of=text.H, outlinelevel=1),
        paragraph("휴가", of=text.H, outlinelevel=2),
        paragraph("연차는", text.S(c=2), "18일이다.", note, comment),
        header="대외비",
        footer="Page",
    )
    own = {"heading": "총칙 > 휴가"}
    assert passages(data, "a.odt") == [
        ("총칙\n\n휴가\n\n연차는  18일이다.[1]", own),
        ("[1] 2024년부터.", {**own, "part": "footnote"}),
        ("Mina: Sure?", {**own, "part": "comment"}),
        ("대외비", {"part": "header"}),
        ("Page", {"part": "footer"}),
    ]
    assert read(data, "a.odt").metadata["title"] == "규정집"
    assert read(data, "a.odt").metadata["author"] == "김하나"


def test_lists_tables_and_boxes_of_an_opendocument_text() -> None:
    inner = paragraph(paragraph(paragraph("deep"), of=text.ListItem), of=text.List)
    list_ = paragraph(
        paragraph(paragraph("one"), of=text.ListItem),
        paragraph(paragraph("two"), inner, of=text.ListItem),
        of=text.List,
    )
    table = Table()
    for cells in (
        [("구분", 1, 1), ("가격", 1, 1)],
        [("과일", 2, 1), ("1,200원", 1, 1)],
        [None, ("900원", 1, 1)],
        [("합계 2,100원", 1, 2), None],
    ):
        row = TableRow()
        for cell in cells:
            if cell is None:
                row.addElement(CoveredTableCell())
            else:
                made = TableCell(numberrowsspanned=cell[1], numbercolumnsspanned=cell[2])
                made.addElement(text.P(text=cell[0]))
                row.addElement(made)
        table.addElement(row)
    frame = paragraph(paragraph(text.P(text="상자 안."), of=TextBox), of=Frame)
    data = odt(paragraph("목록:"), list_, table, paragraph("밖.", frame))
    assert read(data, "a.odt").text == (
        "목록:\n- one\n- two\n- deep\n\n구분 | 가격\n과일 | 1,200원\n과일 | 900원\n합계 2,100원\n\n"
        "밖.\n\n상자 안."
    )


def test_what_is_encrypted_is_refused() -> None:
    manifest = "<m><file-entry><encryption-data/></file-entry></m>"
    data = archive_of({"META-INF/manifest.xml": manifest, "content.xml": "..."})
    assert "is encrypted" in refusal(data, "a.odt")


# EPUB


def book() -> bytes:
    made = epub.EpubBook()
    made.set_identifier("1")
    made.set_title("작은 책")
    made.set_language("ko")
    made.add_author("김하나")
    chapters = []
    for number, (title, body) in enumerate(
        [("시작", "문은 아홉 시에 엽니다."), ("The end", "The doors close at six.")]
    ):
        chapter = epub.EpubHtml(title=title, file_name=f"{9 - number}.xhtml", lang="ko")
        chapter.content = f"<html><body><h1>{title}</h1><p>{body}</p></body></html>"
        made.add_item(chapter)
        chapters.append(chapter)
    made.toc = chapters
    made.add_item(epub.EpubNcx())
    made.add_item(epub.EpubNav())
    made.spine = ["nav", *chapters]
    stream = io.BytesIO()
    epub.write_epub(stream, made)
    return stream.getvalue()


def test_a_book_is_read_in_the_order_of_its_spine() -> None:
    data = book()
    assert passages(data, "a.epub") == [
        ("시작\n\n문은 아홉 시에 엽니다.", {"part": "시작", "heading": "시작"}),
        ("The end\n\nThe doors close at six.", {"part": "The end", "heading": "The end"}),
    ]
    metadata = read(data, "a.epub").metadata
    assert (metadata["title"], metadata["author"], metadata["language"]) == (
        "작은 책", "김하나", "ko",
    )  # fmt: skip


@pytest.mark.parametrize(
    ("algorithm", "is_refused"),
    [
        ("http://www.idpf.org/2008/embedding", False),
        ("http://www.w3.org/2001/04/xmlenc#aes256-cbc", True),
    ],
)
def test_a_protected_book_is_refused(algorithm: str, is_refused: bool) -> None:
    data = archive_of(
        {
            "META-INF/encryption.xml": f'<e><EncryptionMethod Algorithm="{algorithm}"/></e>',
            "META-INF/container.xml": '<c><rootfile full-path="a.opf"/></c>',
            "a.opf": "<package/>",
        }
    )
    assert ("DRM" in refusal(data, "a.epub")) is is_refused


# RTF

KOREAN_FONTS = (
    rb"{\fonttbl{\f0\fnil\fcharset129 \'b8\'bc\'c0\'ba \'b0\'ed\'b5\'f1;}{\f1\fcharset0 Arial;}}"
)


def rtf(body: bytes, *, head: bytes = b"\\ansi\\ansicpg949\\uc1") -> bytes:
    return b"{\\rtf1" + head + KOREAN_FONTS + body + b"}"


def test_korean_of_a_code_page_and_of_escapes() -> None:
    escaped = "".join(f"\\'{byte:02x}" for byte in "안녕하세요".encode("cp949")).encode()
    unicode_ = "".join(f"\\u{ord(char) - 65536}?" for char in "한글").encode()
    data = rtf(
        b"\\f0 "
        + escaped
        + b"\\par \\f1 caf\\'e9 \\f0 "
        + unicode_
        + b"\\par\\u-10179 ?\\u-8704 ?",
    )
    assert read(data, "a.rtf").text == "안녕하세요\n\ncafé 한글\n\n😀"


def test_raw_bytes_and_fallbacks_of_several_characters() -> None:
    data = rtf(
        b"\\f0 " + "문서".encode("cp949") + b" {\\uc2\\u54620\\'c7\\'d1}\\'b1\\'db\\uc0\\u47196 ."
    )
    assert read(data, "a.rtf").text == "문서 한글로."


def test_headings_lists_tables_notes_and_parts() -> None:
    style = b"{\\stylesheet{\\s1\\outlinelevel0 heading 1;}{\\s2\\sbasedon1 other;}}"
    data = rtf(
        style
        + b"{\\info{\\title Rules}{\\author Mina}{\\creatim\\yr2024\\mo3\\dy1}}"
        + b"{\\header\\pard Secret\\par}{\\footerr\\pard Page\\par}"
        + b"\\pard\\s1 Leave\\par\\pard\\plain Eighteen days{\\super\\chftn{\\footnote\\pard From "
        b"2024.}} a year.\\par{\\listtext\\pard 1.\\tab}First\\par"
        b"{\\pntext\\f1\\'b7\\tab}Second\\par"
        b'{\\field{\\*\\fldinst HYPERLINK "http://x"}{\\fldrslt A link}}'
        b"{\\*\\generator Riched20;}{\\v hidden}{\\deleted gone}{\\pict\\bin4 }}}}}\\par"
        b"\\trowd\\clvmgf\\cellx100\\cellx200\\pard\\intbl Fruit\\cell Apple\\cell\\row"
        b"\\trowd\\clvmrg\\cellx100\\cellx200\\pard\\intbl\\cell Pear\\cell\\row\\pard After.\\par",
        head=b"\\ansi",
    )
    loaded = read(data, "a.rtf")
    assert [(p.text, p.metadata) for p in loaded.passages] == [
        (
            "Leave\n\nEighteen days[1] a year.\n\n1. First\n\n· Second\n\nA link\n\n"
            "Fruit | Apple\nFruit | Pear\n\nAfter.",
            {"heading": "Leave"},
        ),
        ("[1] From 2024.", {"heading": "Leave", "part": "footnote"}),
        ("Secret", {"part": "header"}),
        ("Page", {"part": "footer"}),
    ]
    assert loaded.metadata["title"] == "Rules"
    assert loaded.metadata["author"] == "Mina"
    assert loaded.metadata["date"] == "2024-03-01"


def test_a_box_within_a_shape_is_read() -> None:
    data = rtf(
        b"Before.\\par{\\shp{\\*\\shpinst{\\sp{\\sn a}{\\sv b}}{\\shptxt\\pard In the box.\\par}}}"
        b"After.\\par"
    )
    assert read(data, "a.rtf").text == "Before.\n\nIn the box.\n\nAfter."


def test_what_is_cut_off_is_read_as_far_as_it_goes() -> None:
    assert read(b"{\\rtf1\\ansi{\\b one} two {\\i thr", "a.rtf").text == "one two thr"
