"""Inputs from public bug reports of comparable systems, as they lie beside the repository: each is
read right, or refused with a message that says what is wrong. (Kinds of them have tests elsewhere.)
"""

from pathlib import Path

import pytest

from shared.kinds.ingest import CsvOptions, LoadOptions
from tests.unit.documents import read, refusal

CASES = Path(__file__).resolve().parents[3] / "shared" / "cases"
pytestmark = pytest.mark.skipif(not CASES.is_dir(), reason="needs ../shared/cases")


@pytest.mark.parametrize(
    ("case", "expected"),
    [
        ("C04b/wrapped_first.csv", ["Full name: Mina\nAge: 41\nCity: Seoul"]),
        ("C04c/wrapped_first_semicolon.csv", ["성명 (한글): 김하나\n나이: 41\n도시: 서울"]),
        ("C11b/pandas_index.tsv", ["column 1: 0\nvalue: first thing"]),
        ("C17/preamble.csv", ["Monthly report", "name: Lamp\namount: 12\ncity: Seoul"]),
        ("C19/hash_header.csv", ["#: 1\ntext: The kite is red.\n$price: 300"]),
        ("C24/backslash_quote.csv", ['text: he said "hi" to me']),
        ("C26/spark_escape.csv", ['text: she said "wait, please" and left']),
        ("E03a/utf16le_nobom_ko.txt", ["나: 원격 화면이 끊겼어요. 먼저 나갈게요."]),
        ("E03c/utf16le_nobom.csv", [": "]),
        ("E09/iso2022kr.txt", ["이 문서는 창고 관리 규정입니다."]),
        ("H05/hidden.html", ["Distance | 27,994"]),
        ("H06/svg_noscript.html", ["Only this."]),
        ("H07/nested.html", ["Basic\n\nday | 3\nnight | 2\n\nPro | 9"]),
        ("H09d/cdata.xhtml", ["One two < three & four five."]),
        (
            "H19a/empty_first_cell.html",
            ["Fruit | Apple | 100\n| Pear | 200\n| Plum | 300\nNuts |  | 400"],
        ),
        ("H19b/empty_corner.html", ["| Mon | Tue\nOpen | 9 | 10"]),
        ("H20a/layout_table.html", ["공지사항 | 2024-03-01"]),
        ("H25a/list_in_cell.html", ["Contents | - lamp - cable\nSize | - ten"]),
        ("H25e/empty_cells_mid.html", ["a |  | c\n|  | f\ng | h |"]),
        ("H25g/checkbox_first.html", ["| Name | Role\n| Mina | Lead\n| Joon | Staff"]),
        ("M10/html_comment.md", ["# A"]),
        ("M11/toml_front.md", ["# Real\n\nbody"]),
    ],
)  # fmt: skip
def test_it_is_read(case: str, expected: list[str]) -> None:
    path = CASES / case
    text = read(path.read_bytes(), path.name).text
    for part in expected:
        assert part in text


@pytest.mark.parametrize(
    ("case", "message"),
    [
        ("E02a/cp949_bad_late.txt", "byte 0xff at offset 4,280 is damaged"),
        ("J03/array_in_jsonl.jsonl", "Name it .json."),
    ],
)
def test_it_is_refused(case: str, message: str) -> None:
    path = CASES / case
    assert message in refusal(path.read_bytes(), path.name)


def test_columns_of_metadata_have_types() -> None:
    path = CASES / "C22" / "metadata_year.csv"
    options = LoadOptions(csv=CsvOptions(metadata_columns=["year", "open"]))
    (first, *_) = read(path.read_bytes(), path.name, options=options).passages
    assert first.metadata == {"row": 1, "year": 2024, "open": True}


def test_the_page_whose_only_title_is_that_of_an_image_has_none() -> None:
    path = CASES / "H06" / "svg_noscript.html"
    assert "title" not in read(path.read_bytes(), path.name).metadata
