"""Presentations as python-pptx and odfpy write them."""

import io
from typing import Any

from odf.draw import Frame, Page, TextBox
from odf.namespaces import PRESENTATIONNS
from odf.opendocument import OpenDocumentPresentation
from odf.presentation import Notes
from odf.style import MasterPage, PageLayout
from odf.text import P
from pptx import Presentation
from pptx.chart.data import CategoryChartData
from pptx.enum.chart import XL_CHART_TYPE
from pptx.util import Inches

from tests.unit.documents import read

BOX = (Inches(1), Inches(1), Inches(4), Inches(1))


def passages(data: bytes, name: str = "a.pptx") -> list[tuple[str, dict[str, Any]]]:
    return [(p.text, p.metadata) for p in read(data, name).passages]


def saved(document: Any) -> bytes:
    stream = io.BytesIO()
    document.save(stream)
    return stream.getvalue()


def test_a_slide_has_number_title_and_notes() -> None:
    deck = Presentation()
    deck.core_properties.title = "분기 보고"
    first = deck.slides.add_slide(deck.slide_layouts[0])
    first.shapes.title.text = "3분기 실적"
    first.placeholders[1].text = "매출은 12% 늘었습니다."
    second = deck.slides.add_slide(deck.slide_layouts[1])
    second.shapes.title.text = "Plan"
    second.placeholders[1].text_frame.text = "Hire two people"
    second.placeholders[1].text_frame.add_paragraph().text = "Open in Busan"
    second.notes_slide.notes_text_frame.text = "여기서 잠시 멈춘다."
    second._element.set("show", "0")

    loaded = read(saved(deck), "a.pptx")

    assert [(p.text, p.metadata) for p in loaded.passages] == [
        ("3분기 실적\n\n매출은 12% 늘었습니다.", {"slide": 1, "heading": "3분기 실적"}),
        (
            "Plan\n\nHire two people\nOpen in Busan",
            {"slide": 2, "heading": "Plan", "hidden": True},
        ),
        ("여기서 잠시 멈춘다.", {"slide": 2, "heading": "Plan", "hidden": True, "part": "notes"}),
    ]
    assert loaded.metadata["title"] == "분기 보고"


def test_tables_groups_and_charts() -> None:
    deck = Presentation()
    slide = deck.slides.add_slide(deck.slide_layouts[6])
    table = slide.shapes.add_table(3, 3, *BOX).table
    rows = [["구분", "품목", "가격"], ["과일", "사과", "1,200"], ["", "배", "900"]]
    for row, cells in enumerate(rows):
        for column, text in enumerate(cells):
            table.cell(row, column).text = text
    table.cell(1, 0).merge(table.cell(2, 0))
    group = slide.shapes.add_group_shape()
    group.shapes.add_textbox(*BOX).text_frame.text = "In a group"
    data: Any = CategoryChartData()  # type: ignore[no-untyped-call]  # it has no types
    data.categories = ["1분기", "2분기"]
    data.add_series("서울", (12, 15))
    slide.shapes.add_chart(XL_CHART_TYPE.COLUMN_CLUSTERED, *BOX, data)

    ((text, metadata),) = passages(saved(deck))

    assert metadata == {"slide": 1}
    assert text == (
        "구분 | 품목 | 가격\n과일 | 사과 | 1,200\n과일 | 배 | 900\n\nIn a group\n\n"
        "서울: 1분기 12, 2분기 15"
    )


def frame(text: str, class_: str) -> Any:
    made, box = Frame(), TextBox()
    made.setAttrNS(PRESENTATIONNS, "class", class_)
    box.addElement(P(text=text))
    made.addElement(box)
    return made


def test_an_opendocument_presentation() -> None:
    document = OpenDocumentPresentation()
    layout = PageLayout(name="L")
    document.automaticstyles.addElement(layout)
    master = MasterPage(name="M", pagelayoutname=layout)
    document.masterstyles.addElement(master)
    for title, body in [("안내", "문은 아홉 시에 엽니다."), ("End", "Thank you.")]:
        page = Page(masterpagename=master)
        page.addElement(frame(title, "title"))
        page.addElement(frame(body, "outline"))
        notes = Notes()
        notes.addElement(frame(f"메모: {title}", "notes"))
        page.addElement(notes)
        document.presentation.addElement(page)
    stream = io.BytesIO()
    document.write(stream)
    assert passages(stream.getvalue(), "a.odp") == [
        ("안내\n\n문은 아홉 시에 엽니다.", {"slide": 1, "heading": "안내"}),
        ("메모: 안내", {"slide": 1, "heading": "안내", "part": "notes"}),
        ("End\n\nThank you.", {"slide": 2, "heading": "End"}),
        ("메모: End", {"slide": 2, "heading": "End", "part": "notes"}),
    ]
