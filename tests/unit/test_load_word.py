"""Word documents as python-docx writes them, with what Word itself adds as XML: which text is read,
in which order, and under which heading."""

import io
from collections.abc import Callable
from typing import Any

import docx
import pytest
from docx.document import Document
from docx.oxml import parse_xml
from docx.oxml.ns import nsdecls

from tests.unit.documents import read, refusal

NAMESPACES = nsdecls("w", "r", "wp", "a") + (
    ' xmlns:mc="http://schemas.openxmlformats.org/markup-compatibility/2006"'
    ' xmlns:wps="http://schemas.microsoft.com/office/word/2010/wordprocessingShape"'
    ' xmlns:v="urn:schemas-microsoft-com:vml"'
)


def saved(document: Document) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def built(build: Callable[[Document], object]) -> bytes:
    document = docx.Document()
    build(document)
    return saved(document)


def add(document: Document, xml: str) -> None:
    """Markup before the end of the body."""
    element = parse_xml(xml.replace(">", f" {NAMESPACES}>", 1))
    document.element.body.insert(len(document.element.body) - 1, element)


def of_xml(*blocks: str) -> bytes:
    document = docx.Document()
    for xml in blocks:
        add(document, xml)
    return saved(document)


def passages(data: bytes, name: str = "a.docx") -> list[tuple[str, dict[str, Any]]]:
    return [(passage.text, passage.metadata) for passage in read(data, name).passages]


def test_sections_have_the_path_of_their_headings() -> None:
    def build(document: Document) -> None:
        document.core_properties.title = "안내서"
        document.core_properties.author = "김하나"
        document.add_paragraph("머리말입니다.")
        document.add_heading("설치", 1)
        document.add_heading("서버", 2)
        document.add_paragraph("서버를 먼저 켭니다.")
        document.add_paragraph("Then the workers.")
        document.add_heading("Use", 1)
        document.add_paragraph("Send a job.")

    loaded = read(built(build), "a.docx")

    assert [(p.text, p.metadata) for p in loaded.passages] == [
        ("머리말입니다.", {}),
        ("설치\n\n서버\n\n서버를 먼저 켭니다.\n\nThen the workers.", {"heading": "설치 > 서버"}),
        ("Use\n\nSend a job.", {"heading": "Use"}),
    ]
    assert loaded.metadata["title"] == "안내서"
    assert loaded.metadata["author"] == "김하나"
    assert str(loaded.metadata["date"]).startswith("20")


def test_a_title_is_above_all_headings() -> None:
    def build(document: Document) -> None:
        document.core_properties.title = ""
        document.add_heading("업무 규정", 0)
        document.add_heading("총칙", 1)
        document.add_paragraph("이 규정은 모두에게 적용한다.")

    loaded = read(built(build), "a.docx")
    assert loaded.passages[0].metadata == {"heading": "업무 규정 > 총칙"}
    assert loaded.metadata["title"] == "업무 규정"


def test_rows_of_tables_are_lines_and_merged_cells_count_in_each_row() -> None:
    def build(document: Document) -> None:
        table = document.add_table(rows=4, cols=3)
        rows = [
            ["구분", "품목", "가격"],
            ["과일", "사과", "1,200원"],
            ["", "배", "900원"],
            ["합계", "", "2,100원"],
        ]
        for row, cells in enumerate(rows):
            for column, text in enumerate(cells):
                table.cell(row, column).text = text
        table.cell(1, 0).merge(table.cell(2, 0))
        table.cell(3, 0).merge(table.cell(3, 1))
        document.add_paragraph("끝.")

    assert read(built(build), "a.docx").text == (
        "구분 | 품목 | 가격\n과일 | 사과 | 1,200원\n과일 | 배 | 900원\n합계 | 2,100원\n\n끝."
    )


def test_a_table_within_a_cell_keeps_its_rows() -> None:
    def build(document: Document) -> None:
        outer = document.add_table(rows=1, cols=2)
        outer.cell(0, 0).text = "Fees"
        inner = outer.cell(0, 1).add_table(rows=2, cols=2)
        for at, text in enumerate(["Adult", "9", "Child", "5"]):
            inner.cell(at // 2, at % 2).text = text

    assert read(built(build), "a.docx").text == "Fees\n\nAdult | 9\nChild | 5"


def test_a_table_of_one_cell_is_layout() -> None:
    def build(document: Document) -> None:
        cell = document.add_table(rows=1, cols=1).cell(0, 0)
        cell.text = "First paragraph."
        cell.add_paragraph("Second paragraph.")

    assert read(built(build), "a.docx").text == "First paragraph.\n\nSecond paragraph."


def test_changes_are_read_as_accepted() -> None:
    data = of_xml(
        '<w:p><w:r><w:t xml:space="preserve">The fee is </w:t></w:r>'
        '<w:del w:id="1" w:author="a"><w:r><w:delText>ten</w:delText></w:r></w:del>'
        '<w:ins w:id="2" w:author="a"><w:r><w:t>twelve</w:t></w:r></w:ins>'
        "<w:r><w:t>.</w:t></w:r></w:p>",
        '<w:p><w:moveFrom w:id="3" w:author="a"><w:r><w:t>old place</w:t></w:r></w:moveFrom>'
        '<w:moveTo w:id="4" w:author="a"><w:r><w:t>new place</w:t></w:r></w:moveTo></w:p>',
        "<w:p><w:r><w:rPr><w:vanish/></w:rPr><w:t>hidden</w:t></w:r><w:r><w:t>seen</w:t></w:r></w:p>",
    )
    assert read(data, "a.docx").text == "The fee is twelve.\n\nnew place\n\nseen"


def test_content_controls_links_fields_and_breaks() -> None:
    data = of_xml(
        "<w:sdt><w:sdtPr/><w:sdtContent><w:p><w:r><w:t>In a control.</w:t></w:r></w:p>"
        "</w:sdtContent></w:sdt>",
        '<w:p><w:hyperlink r:id="x"><w:r><w:t>A link</w:t></w:r></w:hyperlink><w:r><w:tab/>'
        "<w:t>and</w:t><w:br/><w:t>lines</w:t></w:r></w:p>",
        '<w:p><w:r><w:fldChar w:fldCharType="begin"/></w:r><w:r><w:instrText> DATE </w:instrText>'
        '</w:r><w:r><w:fldChar w:fldCharType="separate"/></w:r><w:r><w:t>2024-03-01</w:t></w:r>'
        '<w:r><w:fldChar w:fldCharType="end"/></w:r></w:p>',
        "<w:p><w:r><w:ruby><w:rt><w:r><w:t>한자</w:t></w:r></w:rt><w:rubyBase><w:r><w:t>漢字</w:t>"
        "</w:r></w:rubyBase></w:ruby></w:r></w:p>",
    )
    assert read(data, "a.docx").text == (
        "In a control.\n\nA link\tand\nlines\n\n2024-03-01\n\n漢字(한자)"
    )


BOX = "<w:txbxContent><w:p><w:r><w:t>상자 안의 문장.</w:t></w:r></w:p></w:txbxContent>"


def test_a_text_box_is_read_once() -> None:
    data = of_xml(
        "<w:p><w:r><w:t>Beside it.</w:t></w:r><w:r><mc:AlternateContent><mc:Choice Requires='wps'>"
        f"<w:drawing><wp:inline><a:graphic><a:graphicData><wps:wsp><wps:txbx>{BOX}</wps:txbx>"
        "</wps:wsp></a:graphicData></a:graphic></wp:inline></w:drawing></mc:Choice><mc:Fallback>"
        f"<w:pict><v:shape><v:textbox>{BOX}</v:textbox></v:shape></w:pict></mc:Fallback>"
        "</mc:AlternateContent></w:r></w:p>"
    )
    assert read(data, "a.docx").text == "Beside it.\n\n상자 안의 문장."


def test_headers_footers_and_comments_are_parts() -> None:
    def build(document: Document) -> None:
        document.add_heading("Rules", 1)
        run = document.add_paragraph("Nobody sleeps here.").runs[0]
        document.add_comment(run, text="Really?", author="Mina")
        document.sections[0].header.paragraphs[0].text = "대외비"
        document.sections[0].footer.paragraphs[0].text = "Page"

    assert passages(built(build)) == [
        ("Rules\n\nNobody sleeps here.", {"heading": "Rules"}),
        ("Mina: Really?", {"heading": "Rules", "part": "comment"}),
        ("대외비", {"part": "header"}),
        ("Page", {"part": "footer"}),
    ]


LEVELS = (
    '<w:lvl w:ilvl="0"><w:start w:val="1"/><w:numFmt w:val="decimal"/><w:lvlText w:val="제%1조"/>'
    '</w:lvl><w:lvl w:ilvl="1"><w:start w:val="1"/><w:numFmt w:val="ganada"/>'
    '<w:lvlText w:val="%2."/></w:lvl><w:lvl w:ilvl="2"><w:start w:val="1"/>'
    '<w:numFmt w:val="decimal"/><w:lvlText w:val="%1.%2.%3"/>'
    "<w:isLgl/></w:lvl>"
)


def test_automatic_numbers_are_text() -> None:
    document = docx.Document()
    numbering = document.part.numbering_part.element
    numbering.insert(
        0, parse_xml(f'<w:abstractNum {NAMESPACES} w:abstractNumId="77">{LEVELS}</w:abstractNum>')
    )
    numbering.append(
        parse_xml(f'<w:num {NAMESPACES} w:numId="77"><w:abstractNumId w:val="77"/></w:num>')
    )
    for level, text in [
        (0, "목적"),
        (1, "첫째"),
        (1, "둘째"),
        (2, "깊이"),
        (0, "정의"),
        (1, "처음"),
    ]:
        add(
            document,
            f'<w:p><w:pPr><w:numPr><w:ilvl w:val="{level}"/><w:numId w:val="77"/></w:numPr></w:pPr>'
            f"<w:r><w:t>{text}</w:t></w:r></w:p>",
        )
    document.add_paragraph("점", style="List Bullet")
    assert read(saved(document), "a.docx").text == (
        "제1조 목적\n가. 첫째\n나. 둘째\n1.2.1 깊이\n제2조 정의\n가. 처음\n- 점"
    )


@pytest.mark.parametrize("kind", ["footnote", "endnote"])
def test_notes_follow_their_section(kind: str) -> None:
    document = docx.Document()
    add(
        document,
        "<w:p><w:r><w:t>연차는 18일이다.</w:t></w:r>"
        f'<w:r><w:{kind}Reference w:id="2"/></w:r></w:p>',
    )
    xml = (
        f"<w:{kind}s {NAMESPACES}><w:{kind} w:id='0'><w:p/></w:{kind}><w:{kind} w:id='2'><w:p><w:r>"
        f"<w:t>2024년부터.</w:t></w:r></w:p></w:{kind}></w:{kind}s>"
    )
    from docx.opc.packuri import PackURI
    from docx.opc.part import Part

    part = Part(
        PackURI(f"/word/{kind}s.xml"), "application/xml", xml.encode(), document.part.package
    )
    document.part.relate_to(
        part, f"http://schemas.openxmlformats.org/officeDocument/2006/relationships/{kind}s"
    )
    mark = "[1]" if kind == "footnote" else "[i]"
    assert passages(saved(document)) == [
        (f"연차는 18일이다.{mark}", {}),
        (f"{mark} 2024년부터.", {"part": kind}),
    ]


def test_a_document_without_text_and_one_that_is_none() -> None:
    assert "has no text" in refusal(built(lambda _: None), "a.docx")
    assert "damaged" in refusal(built(lambda d: d.add_paragraph("x"))[:-40], "a.docx")
