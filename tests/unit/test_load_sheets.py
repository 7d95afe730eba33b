"""Workbooks as openpyxl, odfpy and xlwt write them: rows, headers, numbers as people see them."""

import io
from collections.abc import Callable
from datetime import date, datetime, time
from typing import Any

import openpyxl
import pytest
import xlwt
from odf.opendocument import OpenDocumentSpreadsheet
from odf.style import Style, TableProperties
from odf.table import CoveredTableCell, Table, TableCell, TableRow
from odf.text import P
from openpyxl.comments import Comment
from openpyxl.worksheet.worksheet import Worksheet

from shared.kinds.ingest import CsvOptions, LoadOptions
from tests.unit.documents import read, refusal
from workers.ingest.formats.office.package import archive_of


def saved(book: openpyxl.Workbook) -> bytes:
    stream = io.BytesIO()
    book.save(stream)
    return stream.getvalue()


def sheet(*rows: list[Any], build: Callable[[Worksheet], object] | None = None) -> bytes:
    book = openpyxl.Workbook()
    active = book.active
    assert isinstance(active, Worksheet)
    active.title = "매출"
    for row in rows:
        active.append(row)
    if build is not None:
        build(active)
    return saved(book)


def texts(data: bytes, name: str = "a.xlsx", **options: Any) -> list[str]:
    return [p.text for p in read(data, name, **options).passages]


def passages(data: bytes, name: str = "a.xlsx", **options: Any) -> list[tuple[str, dict[str, Any]]]:
    return [(p.text, p.metadata) for p in read(data, name, **options).passages]


def csv(**options: Any) -> LoadOptions:
    return LoadOptions(csv=CsvOptions(**options))


def test_a_row_is_a_passage_with_sheet_and_row() -> None:
    data = sheet(["이름", "도시"], ["김하나", "서울"], ["Mina", "Busan"])
    assert passages(data) == [
        ("이름: 김하나\n도시: 서울", {"sheet": "매출", "row": 2}),
        ("이름: Mina\n도시: Busan", {"sheet": "매출", "row": 3}),
    ]


def test_numbers_read_as_people_see_them() -> None:
    def build(active: Worksheet) -> None:
        formats = [
            '"₩"#,##0',
            "0.0%",
            "yyyy-mm-dd",
            'yyyy"년" m"월" d"일"',
            "h:mm AM/PM",
            "#,##0.00;(#,##0.00)",
        ]
        values = [12000, 0.256, date(2024, 3, 1), datetime(2024, 3, 1, 9, 30), time(9, 30), -1234.5]
        for column, (code, value) in enumerate(zip(formats, values, strict=True), start=2):
            active.cell(2, column, value).number_format = code

    data = sheet(["name", "price", "share", "day", "날짜", "time", "change"], ["Lamp"], build=build)
    assert texts(data) == [
        "name: Lamp\nprice: ₩12,000\nshare: 25.6%\nday: 2024-03-01\n날짜: 2024년 3월 1일\n"
        "time: 9:30 AM\nchange: (1,234.50)"
    ]


def test_metadata_columns_have_types() -> None:
    def build(active: Worksheet) -> None:
        for row in (2, 3):
            active.cell(row, 2).number_format = '"₩"#,##0'
            active.cell(row, 5).number_format = "000"

    data = sheet(
        ["text", "price", "open", "since", "code", "mixed"],
        ["Lamp", 12000, True, datetime(2024, 3, 1), 7, 1],
        ["Fan", 9000.5, False, datetime(2024, 3, 1, 9, 30), 12, "x"],
        build=build,
    )
    options = csv(
        content_columns=["text"], metadata_columns=["price", "open", "since", "code", "mixed"]
    )
    assert passages(data, options=options) == [
        (
            "text: Lamp",
            {"sheet": "매출", "row": 2, "price": 12000, "open": True, "since": "2024-03-01",
             "code": "007", "mixed": "1"},
        ),
        (
            "text: Fan",
            {"sheet": "매출", "row": 3, "price": 9000.5, "open": False,
             "since": "2024-03-01T09:30:00", "code": "012", "mixed": "x"},
        ),
    ]  # fmt: skip


def test_a_column_that_no_sheet_has_is_an_error() -> None:
    message = refusal(sheet(["a", "b"], ["x", "y"]), "a.xlsx", options=csv(content_columns=["c"]))
    assert "'c'" in message
    assert "'a', 'b'" in message


def test_titles_above_the_header_are_a_passage() -> None:
    def build(active: Worksheet) -> None:
        active.merge_cells("A1:C1")

    data = sheet(
        ["2024년 매출 현황"],
        ["단위: 천원"],
        [],
        ["지역", "상반기", "하반기"],
        ["서울", 1, 2],
        ["부산", 3, 4],
        build=build,
    )
    assert passages(data) == [
        ("2024년 매출 현황\n단위: 천원", {"sheet": "매출"}),
        ("지역: 서울\n상반기: 1\n하반기: 2", {"sheet": "매출", "row": 5}),
        ("지역: 부산\n상반기: 3\n하반기: 4", {"sheet": "매출", "row": 6}),
    ]


def test_a_header_of_several_rows_and_merged_cells() -> None:
    def build(active: Worksheet) -> None:
        for range_ in ("A1:A2", "B1:C1", "D1:E1", "A3:A4"):
            active.merge_cells(range_)

    data = sheet(
        ["지역", "2023년", None, "2024년", None],
        [None, "상반기", "하반기", "상반기", "하반기"],
        ["서울", 1, 2, 3, 4],
        [None, 5, 6, 7, 8],
        build=build,
    )
    assert texts(data) == [
        f"지역: 서울\n2023년 상반기: {a}\n2023년 하반기: {a + 1}\n2024년 상반기: {a + 2}\n"
        f"2024년 하반기: {a + 3}"
        for a in (1, 5)
    ]


def test_a_sheet_without_a_header_is_its_values() -> None:
    assert texts(sheet([1, 2, 3], [4, None, 6])) == ["1 | 2 | 3", "4 |  | 6"]


def test_sheets_hidden_ones_comments_and_formulas() -> None:
    book = openpyxl.Workbook()
    first = book.active
    assert isinstance(first, Worksheet)
    first.title = "One"
    first.append(["a", "b"])
    first.append(["x", "=1+1"])
    first["A2"].comment = Comment("확인 필요", "김하나")
    second = book.create_sheet("둘")
    second.append(["c", "d"])
    second.append(["y", "z"])
    second.sheet_state = "hidden"
    assert passages(saved(book)) == [
        ("a: x\nb: =1+1", {"sheet": "One", "row": 2}),
        ("c: y\nd: z", {"sheet": "둘", "hidden": True, "row": 2}),
        ("A2: 확인 필요", {"sheet": "One", "part": "comment"}),
    ]


MAIN = (
    '<workbook xmlns:r="r"><workbookPr date1904="{}"/><sheets><sheet name="S" r:id="1"/></sheets>'
    "</workbook>"
)
RELATIONS = (
    '<R><R Id="1" Type="x/worksheet" Target="1.xml"/><R Id="2" Type="x/styles" Target="s.xml"/></R>'
)


def raw(rows: str, *, styles: str = "<s/>", is_1904: bool = False, behind: str = "") -> bytes:
    return archive_of(
        {
            "xl/workbook.xml": MAIN.format(int(is_1904)),
            "xl/_rels/workbook.xml.rels": RELATIONS,
            "xl/s.xml": styles,
            "xl/1.xml": f"<worksheet><sheetData>{rows}</sheetData>{behind}</worksheet>",
        }
    )


def test_cached_values_errors_and_text_of_formulas() -> None:
    rows = (
        '<row><c t="str"><f>A</f><v>seen</v></c><c><f>1+1</f><v>2</v></c>'
        '<c t="e"><v>#DIV/0!</v></c><c t="b"><v>1</v></c><c t="d"><v>2024-03-01</v></c></row>'
    )
    assert texts(raw(rows)) == ["seen | 2 | #DIV/0! | TRUE | 2024-03-01"]


def test_dates_of_the_other_calendar() -> None:
    styles = '<s><cellXfs><xf numFmtId="14"/></cellXfs></s>'
    rows = '<row><c s="0"><v>43890</v></c></row>'
    assert texts(raw(rows, styles=styles, is_1904=True)) == ["2024-03-01"]
    assert texts(raw(rows, styles=styles)) == ["2020-02-29"]


ONE = '<row r="1"><c r="A1"><v>1</v></c></row>'


@pytest.mark.parametrize(
    ("rows", "behind"),
    [
        ('<row r="1048576"><c r="XFD1048576"><v>1</v></c></row>', ""),
        (ONE, '<mergeCells><mergeCell ref="A1:XFD1048576"/></mergeCells>'),
        (ONE, '<dimension ref="A1:XFD1048576"/>'),
    ],
)  # fmt: skip
def test_only_cells_that_are_there_cost_anything(rows: str, behind: str) -> None:
    assert texts(raw(rows, behind=behind)) == ["1"]


def ods(*rows: list[Any], hidden: bool = False) -> bytes:
    document = OpenDocumentSpreadsheet()
    style = Style(name="t", family="table")
    style.addElement(TableProperties(display=str(not hidden).lower()))
    document.automaticstyles.addElement(style)
    table = Table(name="표", stylename=style)
    for cells in rows:
        row = TableRow()
        for cell in cells:
            row.addElement(cell)
        table.addElement(row)
    document.spreadsheet.addElement(table)
    stream = io.BytesIO()
    document.write(stream)
    return stream.getvalue()


def cell(text: str, **attributes: Any) -> Any:
    made = TableCell(**attributes)
    made.addElement(P(text=text))
    return made


def test_an_opendocument_sheet() -> None:
    data = ods(
        [cell("품목"), cell("가격"), cell("날짜")],
        [
            cell("사과", numberrowsspanned=2),
            cell("₩1,200", valuetype="currency", currency="KRW", value="1200"),
            cell("2024. 3. 1.", valuetype="date", datevalue="2024-03-01"),
        ],
        [CoveredTableCell(), cell("900", valuetype="float", value="900"), TableCell()],
        [TableCell(numbercolumnsrepeated=16384)],
        hidden=True,
    )
    options = csv(metadata_columns=["가격", "날짜"])
    own = {"sheet": "표", "hidden": True}
    assert passages(data, "a.ods", options=options) == [
        ("품목: 사과", {**own, "row": 2, "가격": 1200, "날짜": "2024-03-01"}),
        ("품목: 사과", {**own, "row": 3, "가격": 900}),
    ]
    assert texts(data, "a.ods")[0] == "품목: 사과\n가격: ₩1,200\n날짜: 2024. 3. 1."


def test_repeated_rows_that_are_empty_count_and_cost_nothing() -> None:
    empty = [TableCell(numbercolumnsrepeated=16384)]
    document = ods([cell("a"), cell("b")], empty, [cell("x"), cell("y")])
    assert passages(document, "a.ods")[0][1]["row"] == 3


def test_what_web_sites_call_a_workbook_is_read_as_what_it_is() -> None:
    page = "<meta charset=euc-kr><table><tr><th>이름<th>도시<tr><td>김하나<td>서울</table>"
    assert texts(page.encode("cp949"), "a.xls") == ["이름 | 도시\n김하나 | 서울"]
    assert texts("이름\t도시\n김하나\t서울\n".encode(), "a.xls") == ["이름: 김하나\n도시: 서울"]


def test_an_old_workbook() -> None:
    book = xlwt.Workbook(encoding="utf-8")
    made = book.add_sheet("매출")
    for column, name in enumerate(["이름", "가격", "날짜"]):
        made.write(0, column, name)
    made.write(1, 0, "사과")
    made.write(1, 1, 1200, xlwt.easyxf(num_format_str='"₩"#,##0'))
    made.write(1, 2, date(2024, 3, 1), xlwt.easyxf(num_format_str="YYYY-MM-DD"))
    stream = io.BytesIO()
    book.save(stream)
    data = stream.getvalue()
    assert passages(data, "a.xls") == [
        ("이름: 사과\n가격: ₩1,200\n날짜: 2024-03-01", {"sheet": "매출", "row": 2})
    ]
    assert "cannot be read" in refusal(data[:1500], "a.xls")


SPREADSHEET_ML = """<?xml version="1.0" encoding="UTF-8"?><?mso-application progid="Excel.Sheet"?>
<Workbook xmlns="urn:schemas-microsoft-com:office:spreadsheet"
 xmlns:ss="urn:schemas-microsoft-com:office:spreadsheet">
<Styles><Style ss:ID="w"><NumberFormat ss:Format="#,##0"/></Style>
<Style ss:ID="f"><NumberFormat ss:Format="Fixed"/></Style></Styles>
<Worksheet ss:Name="매출"><Table>
<Row><Cell><Data ss:Type="String">이름</Data></Cell><Cell><Data ss:Type="String">금액</Data></Cell>
<Cell><Data ss:Type="String">날짜</Data></Cell></Row>
<Row ss:Index="4"><Cell ss:MergeDown="1"><Data ss:Type="String">김</Data></Cell>
<Cell ss:StyleID="w"><Data ss:Type="Number">1200</Data></Cell>
<Cell><Data ss:Type="DateTime">2024-03-01T00:00:00.000</Data></Cell></Row>
<Row><Cell ss:Index="2" ss:StyleID="f"><Data ss:Type="Number">2.5</Data></Cell></Row>
</Table></Worksheet></Workbook>"""


def test_a_workbook_in_xml_is_read_by_rows() -> None:
    own = {"sheet": "매출"}
    assert passages(SPREADSHEET_ML.encode(), "a.xls") == [
        ("이름: 김\n금액: 1,200\n날짜: 2024-03-01", {**own, "row": 4}),
        ("이름: 김\n금액: 2.5", {**own, "row": 5}),
    ]
    assert "in XML" in refusal(SPREADSHEET_ML.encode()[:-20], "a.xls")


def test_a_cell_without_any_below_it_is_no_name_of_a_column() -> None:
    def far(active: Worksheet) -> None:
        active["A1"], active["E9"] = "corner", "far"

    own = {"sheet": "매출"}
    assert passages(sheet(build=far)) == [("corner", {**own, "row": 1}), ("far", {**own, "row": 9})]
