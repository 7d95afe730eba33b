"""HWPX and HWP 5 as python-hwpx writes them, which has both of one document."""

import io
from pathlib import Path
from typing import Any

import pytest
from hwpx import HwpxDocument

from tests.unit.documents import read, refusal
from workers.ingest.formats.office.package import archive_of

TABLE = [
    ["구분", "품목", "가격"],
    ["과일", "사과", "1,200원"],
    ["", "배", "900원"],
    ["합계", "", "2,100원"],
]


def document() -> HwpxDocument:
    made = HwpxDocument.new()
    made.add_heading("총칙", 1)
    made.add_paragraph("이 규정은 모두에게 적용한다.", inherit_style=False)
    made.add_heading("휴가", 2)
    made.add_paragraph("연차는 18일이다.", inherit_style=False)
    table = made.add_table(4, 3)
    for row, cells in enumerate(TABLE):
        for column, text in enumerate(cells):
            table.set_cell_text(row, column, text)
    table.merge_cells(1, 0, 2, 0)
    table.merge_cells(3, 0, 3, 1)
    made.add_heading("부칙", 1)
    note = made.add_paragraph("The rules hold from today on.", inherit_style=False)
    made.notes.add_footnote("2024년 3월 1일.", note)
    made.page.set_header(text="대외비")
    return made


PASSAGES: list[tuple[str, dict[str, Any]]] = [
    ("1. 총칙\n\n이 규정은 모두에게 적용한다.", {"heading": "총칙"}),
    (
        "가. 휴가\n\n연차는 18일이다.\n\n구분 | 품목 | 가격\n과일 | 사과 | 1,200원\n"
        "과일 | 배 | 900원\n합계 | 2,100원",
        {"heading": "총칙 > 휴가"},
    ),
    ("2. 부칙\n\nThe rules hold from today on.[1]", {"heading": "부칙"}),
    ("[1] 2024년 3월 1일.", {"heading": "부칙", "part": "footnote"}),
    ("대외비", {"part": "header"}),
]


@pytest.mark.parametrize("suffix", [".hwpx", ".hwp"])
def test_sections_tables_notes_and_parts(suffix: str, tmp_path: Path) -> None:
    path = tmp_path / f"a{suffix}"
    document().save_to_path(path)
    loaded = read(path.read_bytes(), path.name)
    assert [(p.text, p.metadata) for p in loaded.passages] == PASSAGES


def hwpx(*runs: str) -> bytes:
    body = "".join(f"<hp:p><hp:run>{run}</hp:run></hp:p>" for run in runs)
    return archive_of(
        {"Contents/section0.xml": f'<hs:sec xmlns:hs="s" xmlns:hp="p">{body}</hs:sec>'}
    )


BOX = (
    "<hp:drawText><hp:subList><hp:p><hp:run><hp:t>상자 안.</hp:t></hp:run></hp:p></hp:subList>"
    "</hp:drawText>"
)


@pytest.mark.parametrize(
    ("run", "text"),
    [
        ("<hp:t>a<hp:lineBreak/>b<hp:tab/>c<hp:fwSpace/>d<hp:hyphen/>e</hp:t>", "a\nb\tc d-e"),
        ("<hp:t>new<hp:deleteBegin/>old<hp:deleteEnd/> text</hp:t>", "new text"),
        (f"<hp:t>Before.</hp:t><hp:rect>{BOX}</hp:rect>", "Before.\n\n상자 안."),
        (f"<hp:container><hp:ellipse>{BOX}</hp:ellipse></hp:container>", "상자 안."),
        ("<hp:equation><hp:script>a over b</hp:script></hp:equation>", "a over b"),
        (
            "<hp:dutmal><hp:mainText>漢字</hp:mainText><hp:subText>한자</hp:subText></hp:dutmal>",
            "漢字(한자)",
        ),
        ('<hp:compose composeText="①②"/>', "①②"),
        (
            f"<hp:switch><hp:case/><hp:default><hp:rect>{BOX}</hp:rect></hp:default></hp:switch>",
            "상자 안.",
        ),
    ],
)
def test_what_a_run_may_hold(run: str, text: str) -> None:
    assert read(hwpx(run), "a.hwpx").text == text


def test_sections_are_read_in_the_order_of_their_numbers() -> None:
    names = ["Contents/section10.xml", "Contents/section9.xml", "Contents/section0.xml"]
    data = archive_of(
        {
            name: f'<s xmlns:hp="p"><hp:p><hp:run><hp:t>{name[16:-4]}</hp:t></hp:run></hp:p></s>'
            for name in names
        }
    )
    assert read(data, "a.hwpx").text == "0\n\n9\n\n10"


def hwp(flags: int) -> bytes:
    from hwpx.hwp5.cfb import build_compound_file

    head = b"HWP Document File".ljust(36, b"\0") + flags.to_bytes(4, "little")
    return build_compound_file(
        [("FileHeader", head.ljust(256, b"\0")), ("DocInfo", b""), ("BodyText/Section0", b"")]
    )


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (hwp(2), "is encrypted"),
        (hwp(4), "for distribution"),
        (hwp(0), "has no text"),
        (b"HWP Document File V3.00 \x1a\1\2\3\4\5", "HWP 3"),
        (hwp(0)[:700], "cannot be read"),
    ],
)
def test_what_cannot_be_read_says_why(data: bytes, words: str) -> None:
    assert words in refusal(data, "a.hwp")


def test_an_encrypted_hwpx_is_refused() -> None:
    stream = io.BytesIO(
        archive_of(
            {
                "META-INF/manifest.xml": "<m><file-entry><encryption-data/></file-entry></m>",
                "Contents/section0.xml": "?",
            }
        )
    )
    assert "is encrypted" in refusal(stream.getvalue(), "a.hwpx")
