"""CSV and TSV as spreadsheets, databases and offices write them: which record is the header, how
quotes are escaped, what values of a metadata column are, and what the errors name."""

import csv
import io

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.kinds.ingest import CsvOptions
from tests.unit.documents import read, refusal
from workers.ingest.formats.texts.tables import MAX_COLUMNS


def texts(data: bytes | str, name: str = "a.csv", csv: CsvOptions | None = None) -> list[str]:
    return [passage.text for passage in read(data, name, csv=csv).passages]


def column(values: list[str], *, name: str = "n") -> list[object]:
    """The metadata that a column of these values becomes; None where there is none."""
    data = f"text,{name}\n" + "".join(f"t,{value}\n" for value in values)
    loaded = read(data, "a.csv", csv=CsvOptions(metadata_columns=[name]))
    return [passage.metadata.get(name) for passage in loaded.passages]


# The header is the first record


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize("line_end", ["\n", "\r\n", "\r"])
@pytest.mark.parametrize(
    ("header", "names"),
    [
        (['"Full\nname"', "Age", "City"], ["Full name", "Age", "City"]),
        (['"성명\n(한글)"', '"나이"', '"도시"'], ["성명 (한글)", "나이", "도시"]),
        (["id", '"two\n\nlines"', '"says ""x"""'], ["id", "two lines", 'says "x"']),
    ],
)
def test_a_header_cell_may_hold_line_ends(
    delimiter: str, line_end: str, header: list[str], names: list[str]
) -> None:
    rows = [delimiter.join(header), delimiter.join(["Mina", "41", "Seoul"])]
    data = "\ufeff" + "".join(row + "\n" for row in rows).replace("\n", line_end)

    (row,) = texts(data.encode())

    assert row == f"{names[0]}: Mina\n{names[1]}: 41\n{names[2]}: Seoul"


def test_a_wrapped_header_is_chosen_by_its_name_on_one_line() -> None:
    options = CsvOptions(content_columns=["Full name"], metadata_columns=["Home\ncity"])
    loaded = read('"Full\nname","Home\ncity"\nMina,Seoul\n', "a.csv", csv=options)

    assert loaded.text == "Full name: Mina"
    assert loaded.passages[0].metadata == {"row": 1, "Home city": "Seoul"}


@pytest.mark.parametrize(
    ("data", "name"),
    [
        ("\tvalue\n0\tfirst, thing\n1\tsecond\n", "a.tsv"),
        ("\tvalue\n0\tfirst, thing\n1\tsecond\n", "a.csv"),
        (',value\n0,"first, thing"\n1,second\n', "a.csv"),
        (";value\n0;first, thing\n1;second\n", "a.csv"),
    ],
)
def test_an_empty_first_name_is_a_column(data: str, name: str) -> None:
    assert texts(data, name) == [
        "column 1: 0\nvalue: first, thing",
        "column 1: 1\nvalue: second",
    ]


@pytest.mark.parametrize(
    "data",
    ["a,b,\n1,2,\n3,4,\n", "a,b\n1,2,\n3,4,\n", "a,b,\n1,2\n3,4\n", '"a","b"\n"1","2"\n"3","4"\n'],
)
def test_delimiters_at_the_end_are_no_columns(data: str) -> None:
    assert texts(data) == ["a: 1\nb: 2", "a: 3\nb: 4"]


@pytest.mark.parametrize(
    ("first", "delimiter"),
    [("sep=;", ";"), ('"sep=;"', ";"), ("SEP=|", "|"), ("sep=\t", "\t"), ("sep=^", "^")],
)
def test_the_first_line_of_excel_names_the_delimiter(first: str, delimiter: str) -> None:
    rows = f"{first}\r\na{delimiter}b\r\n1,5{delimiter}2\r\n"
    assert texts(rows.encode("utf-16")) == ["a: 1,5\nb: 2"]


def test_names_that_come_again_get_numbers_that_are_free() -> None:
    assert texts("a,a (2),a,a,,\n1,2,3,4,5,6\n") == [
        "a: 1\na (2): 2\na (3): 3\na (4): 4\ncolumn 5: 5\ncolumn 6: 6"
    ]


def test_a_table_of_too_many_columns_is_refused() -> None:
    wide = ",".join(["0"] * MAX_COLUMNS)
    assert len(read(f"{wide}\n{wide}\n", "a.csv").passages) == 1
    for delimiter in (",", ";", "\t"):
        message = refusal((wide + ",0\n").replace(",", delimiter) * 2, "a.csv")
        assert f"line 1 has {MAX_COLUMNS + 1:,} columns" in message
        assert f"at most {MAX_COLUMNS:,}" in message


# Titles and notes

TITLES = [
    ("Monthly report\nmade on 2024-03-01\n\n", "Monthly report\nmade on 2024-03-01"),
    ("월간 보고서\n", "월간 보고서"),
    ('"A title\nof two lines"\n\n', "A title\nof two lines"),
    ("Report, March 2024\n\n", "Report, March 2024"),
    ("Report{0}{0}\n기준일: 2024{0}{0}\n{0}{0}\n", "Report\n기준일: 2024"),
]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(("above", "title"), TITLES)
def test_titles_above_the_header_are_a_passage_of_their_own(
    above: str, title: str, delimiter: str
) -> None:
    table = "이름,amount,city\nLamp,12,Seoul\nFan,7,Busan\n".replace(",", delimiter)

    loaded = read(above.format(delimiter) + table, "a.csv")

    assert [(p.text, p.metadata) for p in loaded.passages] == [
        (title, {}),
        ("이름: Lamp\namount: 12\ncity: Seoul", {"row": 1}),
        ("이름: Fan\namount: 7\ncity: Busan", {"row": 2}),
    ]


def test_titles_above_a_table_with_a_space_behind_each_comma() -> None:
    assert texts("제목\n\n이름, 도시\n김, 서울\n이, 부산\n") == [
        "제목",
        "이름: 김\n도시: 서울",
        "이름: 이\n도시: 부산",
    ]


def test_years_may_be_names_of_columns() -> None:
    assert texts("인구,,\n지역,2022,2023\n서울,1,2\n") == ["인구", "지역: 서울\n2022: 1\n2023: 2"]


def test_notes_behind_a_blank_line_are_a_passage_of_their_own() -> None:
    assert texts("a,b\n1,2\n\nSource: an office\n") == ["a: 1\nb: 2", "Source: an office"]
    assert "line 3 has 1 fields" in refusal("a,b\n1,2\nSource: an office\n", "a.csv")


@pytest.mark.parametrize(
    ("data", "words"),
    [
        # What is a title, and what a header that is too short or no header at all, is not plain.
        ("a,b\n1,2,3\n4,5,6\n", ["line 1", "has 2 fields", "from line 2 on have 3"]),
        ("name,city\nKim,Seoul,x\nLee,Busan,y\n", ["has 2 fields", "remove it"]),
        ("Created,2024-03-01\nname,n,city\nLamp,12,Seoul\n", ["line 1", "from line 2 on have 3"]),
        ("latlon\n37.5,127.0\n35.1,129.0\n", ["has 1 field", "from line 2 on have 2", "a comma"]),
        ("Title\n\n1;2;3\n4;5;6\n7;8;9\n", ["has 1 field", "from line 3 on have 3", "a semicolon"]),
        # Here the header is plain, and a row is wrong.
        ("Title\n\na,b,c\n1,2,3\n4,5\n6,7,8\n", ["header has 3 fields", "line 5 has 2 fields"]),
    ],
)
def test_titles_that_are_in_doubt_are_an_error(data: str, words: list[str]) -> None:
    message = refusal(data, "a.csv")
    for word in words:
        assert word in message


@pytest.mark.parametrize(
    ("data", "expected"),
    [
        ("text\nhello, world\nfoo; bar, baz\n", ["text: hello, world", "text: foo; bar, baz"]),
        ("text\nOne, two\nthree\nfour, five, six\n", None),
        ("Preis\n1,5\n2,7\n", ["Preis: 1,5", "Preis: 2,7"]),
        ("인구\n9,411,000\n3,350,000\n", ["인구: 9,411,000", "인구: 3,350,000"]),
        ('text\n"hello,world"\n"a;b"\n', ["text: hello,world", "text: a;b"]),
    ],
)
def test_a_file_of_one_column(data: str, expected: list[str] | None) -> None:
    rows = [f"text: {line}" for line in data.splitlines()[1:]]
    assert texts(data) == (expected or rows)


def test_headers_of_which_only_one_is_named_are_no_titles() -> None:
    assert texts("a,,\n1,2,3\n4,5,6\n") == [
        "a: 1\ncolumn 2: 2\ncolumn 3: 3",
        "a: 4\ncolumn 2: 5\ncolumn 3: 6",
    ]


# Backslashes


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("written", "value"),
    [
        (r'"he said \"hi\" to me"', 'he said "hi" to me'),
        (r'"그가 \"안녕\"이라 했다"', '그가 "안녕"이라 했다'),
        (r'"she said \"wait{0} please\" and left"', 'she said "wait{0} please" and left'),
        (r'"\"all of it\""', '"all of it"'),
        (r'"ends with \""', 'ends with "'),
        (r'"both \"kinds\" and ""kinds"""', 'both "kinds" and "kinds"'),
        (r'"a \"b\" in C:\\"', 'a "b" in C:\\'),
        (r'"a \"b\" keeps \n and \t and \d"', r'a "b" keeps \n and \t and \d'),
        (r"one \{0} field", "one {0} field"),
        # Nothing is escaped here: the file is a table as it is.
        (r'"C:\dir\"', "C:\\dir\\"),
        (r"C:\new\table", r"C:\new\table"),
        (r'"a\\b"', r"a\\b"),
    ],
)
def test_backslashes_are_read_as_they_are_meant(written: str, value: str, delimiter: str) -> None:
    data = f'id{delimiter}text\n1{delimiter}{written}\n2{delimiter}"next{delimiter} row"\n'
    assert texts(data.format(delimiter)) == [
        f"id: 1\ntext: {value.format(delimiter)}",
        f"id: 2\ntext: next{delimiter} row",
    ]


def test_a_dump_of_mysql() -> None:
    dump = "id\ttext\tn\n1\ta\\\tb\\\nc\t\\N\n2\t\\N\t7\n"
    loaded = read(dump, "a.tsv", csv=CsvOptions(metadata_columns=["n"]))

    assert [passage.text for passage in loaded.passages] == ["id: 1\ntext: a\tb\nc", "id: 2"]
    assert [passage.metadata.get("n") for passage in loaded.passages] == [None, 7]


@pytest.mark.parametrize(
    ("data", "words"),
    [
        ('a,b\n"Smith, J" Jr.,5\n', ["line 2", "text follows the quote"]),
        ('name;city\n"Kim";"Seoul"\n"Lee;"Busan"\n', ["line 3", "text follows the quote"]),
        ('a,b\n1,"x"\n2,"y\n3,"z"\n', ["line 3", "quote"]),
        ('a,b\n1,"two\nlines"\n\n2,"x\n3,4\n5,6\n', ["line 5", "never closed"]),
        ('a,b\n1,"x \\"y, z"\n2,"v"\n3,4,5\n', ["line 4 has 3 fields"]),
    ],
)
def test_quotes_that_are_wrong_are_named_with_their_line(data: str, words: list[str]) -> None:
    message = refusal(data, "a.csv")
    for word in words:
        assert word in message


def test_spaces_beside_quotes_are_no_text() -> None:
    data = 'a, b, c\n1, "x, y" ,"z"\n2,"v" , "w"\n'
    assert texts(data) == ["a: 1\nb: x, y\nc: z", "a: 2\nb: v\nc: w"]


# Types


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (["2024", "2023", "", "-5", "0"], [2024, 2023, None, -5, 0]),
        (["true", "False", "TRUE"], [True, False, True]),
        (["1.5", "2", "0.25"], [1.5, 2.0, 0.25]),
        (["12.50", "3.10", "7.00"], [12.5, 3.1, 7.0]),
        (["9223372036854775807", "1"], [2**63 - 1, 1]),
    ],
)
def test_a_column_of_one_type_is_stored_as_that(values: list[str], stored: list[object]) -> None:
    cells = column(values)
    assert cells == stored
    assert [type(value) for value in cells] == [type(value) for value in stored]


@pytest.mark.parametrize(
    "values",
    [
        ["007", "123"],
        ["010-1234-5678"],
        ["02139", "94103"],
        ["1e5", "2e7"],
        ["9223372036854775808", "1"],
        ["123456789012345678901234567890"],
        ["1" * 5000],
        ["2024", "n/a"],
        ["true", "1"],
        ["yes", "no"],
        ["+5", "6"],
        ["-0", "1"],
        ["1.1", "1.10", "1.2"],
        ["0.1234567890123456789"],
        ["1.", "2."],
        [".5"],
        ["١٢", "٣"],
        ["2024-03-01", "2024-02-30"],
        ["2024.3.1", "2024.12.2"],
        ["3/1/2024", "3/2/2024"],
        ["2024-03-01T09:00:00Z", "2024-03-01T09:00:00+09:00"],
        ["2024-03-01 24:00"],
        ["2024-03", "2024-04"],
        ["NaN", "1"],
        ["Infinity"],
        ["0x10"],
        ["1_000"],
    ],
)
def test_what_a_number_would_lose_is_text(values: list[str]) -> None:
    assert column(values) == values


@pytest.mark.parametrize(
    ("values", "stored"),
    [
        (["2024-3-1", "2024-12-02", ""], ["2024-03-01", "2024-12-02", None]),
        (["2024/3/1", "2024/12/02"], ["2024-03-01", "2024-12-02"]),
        (["2024.03.01", "2024.12.02."], ["2024-03-01", "2024-12-02"]),
        (["2024. 3. 1.", "2024. 12. 2."], ["2024-03-01", "2024-12-02"]),
        (["2024년 3월 1일", "2024년12월2일"], ["2024-03-01", "2024-12-02"]),
        (["2024-03-01 9:05", "2024/03/02"], ["2024-03-01T09:05", "2024-03-02"]),
        (["2024-03-01 09:00:05.25", "2024-03-01T08:00:00"],
         ["2024-03-01T09:00:05.25", "2024-03-01T08:00:00"]),
        (["2024-03-01 09:00:00+0900", "2024-03-01T08:00:00 +09:00"],
         ["2024-03-01T09:00:00+0900"[:-2] + ":00", "2024-03-01T08:00:00+09:00"]),
    ],
)  # fmt: skip
def test_dates_are_stored_as_filters_compare_them(values: list[str], stored: list[str]) -> None:
    assert column(values) == stored


def test_text_keeps_how_values_are_written() -> None:
    assert texts("code,price\n007,12.50\n") == ["code: 007\nprice: 12.50"]


def test_a_choice_of_columns_that_are_not_there_lists_some() -> None:
    header = ",".join(f"c{n}" for n in range(500))
    message = refusal(f"{header}\n{header}\n", "a.csv", csv=CsvOptions(content_columns=["x"]))
    assert "'c0', 'c1'" in message
    assert "and 480 more" in message


# Comments


@pytest.mark.parametrize(
    ("data", "comment", "row"),
    [
        ("# by Mina\na,b\nx,1\n", "# by Mina", "a: x\nb: 1"),
        ("# by Mina\n# on Monday\na,b,c\nx,y,z\n", "# by Mina\n# on Monday", "a: x\nb: y\nc: z"),
        ("# by Mina, for Joon\na,b\nx,1\n", "# by Mina, for Joon", "a: x\nb: 1"),
        ("# by Mina, for Joon\na,b\nx,y\n", "# by Mina, for Joon", "a: x\nb: y"),
        ("# 부서; 총무\n이름;나이\n김하나;41\n", "# 부서; 총무", "이름: 김하나\n나이: 41"),
        ("a,b\n# a remark\nx,1\n", "# a remark", "a: x\nb: 1"),
        ("a,b\n# one, two, three\nx,1\n", "# one, two, three", "a: x\nb: 1"),
        ('a,b\n# an "open, "quote, here\nx,1\n', '# an "open, "quote, here', "a: x\nb: 1"),
        ("a\tb\nx\t1\n# the end\n", "# the end", "a: x\nb: 1"),
        ("a,b\n#\nx,1\n#end\n", "#\n#end", "a: x\nb: 1"),
        ('a,b\n# x\n"p\n# q",1\n', "# x", "a: p\n# q\nb: 1"),
    ],
)
def test_comments_are_a_passage_of_their_own(data: str, comment: str, row: str) -> None:
    assert texts(data) == [comment, row]


@pytest.mark.parametrize(
    ("data", "row"),
    [
        ("#,name\n1,Mina\n2,Joon\n", "#: 1\nname: Mina"),
        ("#name,age\nMina,41\nJoon,35\n", "#name: Mina\nage: 41"),
        ("# id, name\n1, Mina\n2, Joon\n", "# id: 1\nname: Mina"),
        ("#name,city\nMina,Seoul\nJoon,Busan\n", "#name: Mina\ncity: Seoul"),
        ("tag,n\n#red,1\n#blue,2\n", "tag: #red\nn: 1"),
        ('text,n\n"# A\n# B",1\n', "text: # A\n# B\nn: 1"),
        ("text\n# A\nB\n", "text: # A"),
    ],
)
def test_a_hash_is_also_a_name_and_a_value(data: str, row: str) -> None:
    assert texts(data)[0] == row


@pytest.mark.parametrize(
    ("data", "rows"),
    [
        (",,\n1,2,3\n4,5,6\n", ["column 1: 1\ncolumn 2: 2\ncolumn 3: 3"]),
        (";;\nLamp;12;x\nFan;7;y\n", ["column 1: Lamp\ncolumn 2: 12\ncolumn 3: x"]),
        (",,\nname,2023,2024\nLamp,1,2\n", ["name: Lamp\n2023: 1\n2024: 2"]),
        (",,\nReport,,\nname,n,city\nLamp,1,x\n", ["Report", "name: Lamp\nn: 1\ncity: x"]),
    ],
)
def test_a_header_without_any_name(data: str, rows: list[str]) -> None:
    assert texts(data)[: len(rows)] == rows


def test_the_end_of_a_dos_file_is_no_row() -> None:
    assert texts(b"a,b\r\n1,2\r\n\x1a") == ["a: 1\nb: 2"]


# Several tables


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
@pytest.mark.parametrize(
    ("data", "expected"),
    [
        (
            "name,age\nMina,41\n\ncity,mayor,area\nSeoul,Oh,600\nBusan,Park,700\n",
            ["name: Mina\nage: 41", "city: Seoul\nmayor: Oh\narea: 600",
             "city: Busan\nmayor: Park\narea: 700"],
        ),
        (
            "name,age\nMina,41\nJoon,35\n\n\ncity,area\nSeoul,600\n",
            ["name: Mina\nage: 41", "name: Joon\nage: 35", "city: Seoul\narea: 600"],
        ),
        (
            "Sales\n\nname,amount,city\nLamp,12,Seoul\nFan,1,Busan\n\n"
            "Costs\nitem,cost,date,of\nRent,500,2024,Mina\nTea,2,2024,Joon\n",
            ["Sales", "name: Lamp\namount: 12\ncity: Seoul", "name: Fan\namount: 1\ncity: Busan",
             "Costs", "item: Rent\ncost: 500\ndate: 2024\nof: Mina",
             "item: Tea\ncost: 2\ndate: 2024\nof: Joon"],
        ),
        (
            "name,age,,\nMina,41,,\n,,,\ncity,mayor,area,of\nSeoul,Oh,600,x\n",
            ["name: Mina\nage: 41", "city: Seoul\nmayor: Oh\narea: 600\nof: x"],
        ),
        (
            "name,age\nMina,41\n\nname,age\nJoon,35\n",
            ["name: Mina\nage: 41", "name: Joon\nage: 35"],
        ),
    ],
)  # fmt: skip
def test_a_further_table_has_its_own_header(data: str, expected: list[str], delimiter: str) -> None:
    loaded = read(data.replace(",", delimiter), "a.csv")
    assert [passage.text for passage in loaded.passages] == expected
    rows = [p.metadata["row"] for p in loaded.passages if "row" in p.metadata]
    assert rows == list(range(1, len(rows) + 1))


@pytest.mark.parametrize(
    ("data", "last"),
    [
        ("name,age\nMina,41\n\nJoon,35\n\n\nLee,3\n", "name: Lee\nage: 3"),
        ("name,age\nMina,41\n\nJoon,unknown\nLee,3\n", "name: Lee\nage: 3"),
        ("region,sales\nSeoul,5\n\nBusan,n/a\nKim,5\n", "region: Kim\nsales: 5"),
        ("name,city\nMina,Seoul\n\nJoon,Busan\nLee,Jeju\n", "name: Lee\ncity: Jeju"),
    ],
)
def test_rows_behind_a_blank_line_belong_to_the_table(data: str, last: str) -> None:
    assert texts(data)[-1] == last


def test_sentences_below_a_table_are_none_of_it() -> None:
    table = "name,age,city\nMina,41,Seoul\nJoon,35,Busan\n"
    notes = "\nNote: prices, without tax\nSee also, the annex\n"
    assert "line 5 has 2 fields" in refusal(table + notes, "a.csv")


def test_a_choice_of_columns_is_of_every_table() -> None:
    data = "name,age\nMina,41\n\ncity,age,area\nSeoul,600,1\n"
    assert texts(data, csv=CsvOptions(content_columns=["age"])) == ["age: 41", "age: 600"]
    message = refusal(data, "a.csv", csv=CsvOptions(content_columns=["name"]))
    assert "columns are 'city', 'age', 'area'" in message


# Whatever programs write


@st.composite
def written_tables(draw: st.DrawFn) -> tuple[list[list[str]], str]:
    """Records of a header and rows, and what `csv.writer` makes of them."""
    letters = "abc가나 ,;\t|\"'\n\\-1"
    cell = st.text(letters, max_size=8)
    width = draw(st.integers(2, 5))
    cells = st.lists(cell, min_size=width, max_size=width)
    header = [f"{name}{at}" for at, name in enumerate(draw(cells))]
    # Full rows below the header, so that there is no doubt which record it is.
    rows = [[f"x{at}" for at in range(width)]]
    rows += [[f"r{first}", *rest] for first, *rest in draw(st.lists(cells, max_size=6))]
    made = io.StringIO()
    writer = csv.writer(
        made,
        delimiter=draw(st.sampled_from([",", ";", "\t", "|"])),
        quoting=draw(st.sampled_from([csv.QUOTE_MINIMAL, csv.QUOTE_ALL])),
        lineterminator=draw(st.sampled_from(["\n", "\r\n"])),
    )
    writer.writerows([header, *rows])
    return [header, *rows], made.getvalue()


@settings(max_examples=200, deadline=None)
@given(written_tables())
def test_what_a_program_writes_comes_back(made: tuple[list[list[str]], str]) -> None:
    (header, *rows), data = made
    names = [" ".join(cell.split()) for cell in header]
    expected = [
        "\n".join(
            f"{name}: {cell.strip()}" for name, cell in zip(names, row, strict=True) if cell.strip()
        )
        for row in rows
    ]
    assert texts(data) == expected
