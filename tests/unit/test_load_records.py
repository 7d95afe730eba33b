"""Loading CSV and JSON: rows and items as passages, and the errors that people see."""

import json

import pytest

from shared.kinds.ingest import CsvOptions
from tests.unit.documents import read, refusal

# CSV


def test_each_row_is_a_passage() -> None:
    loaded = read('이름,설명\r\n김,"여러\r\n줄, 쉼표"\r\n이,""\r\n'.encode("utf-8-sig"), "a.csv")
    assert [passage.text for passage in loaded.passages] == [
        "이름: 김\n설명: 여러\n줄, 쉼표",
        "이름: 이",
    ]
    assert [passage.metadata for passage in loaded.passages] == [{"row": 1}, {"row": 2}]


@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_the_delimiter_is_found(delimiter: str) -> None:
    text = delimiter.join("ab") + "\n" + delimiter.join(("1 2", "3 4"))
    assert read(text, "x.csv").text == "a: 1 2\nb: 3 4"


def test_the_whole_file_decides_about_the_dialect() -> None:
    """Thousands of rows whose only commas are decimal ones, before the first other sign."""
    rows = "".join(f"{number},5;x{number}\n" for number in range(3000))
    loaded = read("price;name\n" + rows + '1,0;"a;b"\n', "a.csv")
    assert len(loaded.passages) == 3001
    assert loaded.passages[-1].text == "price: 1,0\nname: a;b"


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("text\nhello, world\nfoo; bar, baz\n", ["text: hello, world", "text: foo; bar, baz"]),
        ("sep=|\na|b\n1|2\n", ["a: 1\nb: 2"]),
        ('a, b\n1, "x, y"\n', ["a: 1\nb: x, y"]),
        ("\n\na,b\n\n1,2\n\n", ["a: 1\nb: 2"]),
        ("a,b\n1,2,,\n", ["a: 1\nb: 2"]),
        ("a,a,\n1,2,3\n", ["a: 1\na (2): 2\ncolumn 3: 3"]),
        ('a,b\n5" pipe,1\n6" pipe,2\n', ['a: 5" pipe\nb: 1', 'a: 6" pipe\nb: 2']),
        # Without any quoted field, a lone quote is a character like others.
        ('a,b\n"6 inch,1\n7,2\n', ['a: "6 inch\nb: 1', "a: 7\nb: 2"]),
    ],
)
def test_csv_as_people_write_it(text: str, expected: list[str]) -> None:
    assert [passage.text for passage in read(text, "a.csv").passages] == expected


def test_ragged_rows_name_the_line_and_the_counts() -> None:
    message = refusal('a,b,c\n1,"two\nlines",3\n4,5\n6,7,8,9\n', "a.csv")
    assert "line 4 has 2 fields" in message
    assert "line 5 has 4 fields" in message
    assert "header has 3 fields" in message


def test_an_open_quote_names_the_line_it_opens_on() -> None:
    message = refusal('a,b\n1,"x,y"\n3,"open\n4,5\n6,7\n', "a.csv")
    assert "line 3" in message
    assert "never closed" in message


def test_csv_columns_are_chosen_and_checked() -> None:
    options = CsvOptions(content_columns=["body"], metadata_columns=["id", "lang"])
    loaded = read("id,body,lang,x\n7,hello,ko,y\n", "a.csv", csv=options)
    assert loaded.passages[0].text == "body: hello"
    assert loaded.passages[0].metadata == {"row": 1, "id": 7, "lang": "ko"}
    only_metadata = CsvOptions(metadata_columns=["id"])
    assert read("id,b,c\n7,x,y\n", "a.csv", csv=only_metadata).text == "b: x\nc: y"
    for setting in ("content_columns", "metadata_columns"):
        message = refusal("id,body\n1,x\n", "a.csv", csv=CsvOptions(**{setting: ["Body"]}))
        assert setting in message
        assert "'id', 'body'" in message


def test_csv_encodings() -> None:
    data = "이름,나이\n홍길동,서른\n".encode("cp949")
    assert read(data, "a.csv").text == "이름: 홍길동\n나이: 서른"
    assert read(data, "a.csv", csv=CsvOptions(encoding="euc-kr")).text.startswith("이름")
    assert "csv.encoding" in refusal(b"a,b\n\xff\xfe\xfd,1\n", "a.csv")
    assert "csv.encoding" in refusal(data, "a.csv", csv=CsvOptions(encoding="klingon"))
    assert "offset" in refusal(data, "a.csv", csv=CsvOptions(encoding="utf-8"))
    assert "text encoding" in refusal(b"a,b\n1,2", "a.csv", csv=CsvOptions(encoding="hex"))


def test_csv_header_only_and_large_fields() -> None:
    assert "no rows" in refusal("a,b\n", "a.csv")
    assert len(read("a,b\n1," + "x" * 200_000 + "\n", "a.csv").text) > 200_000


# JSON


def test_a_json_object_is_written_out() -> None:
    value = {"name": "Kim", "address": {"city": "Seoul", "zip": None}, "tags": ["a", 1, True]}
    value["items"] = [{"x": 1.5}, {"x": 2}]
    assert read(json.dumps(value), "a.json").text == (
        "name: Kim\naddress.city: Seoul\ntags: a, 1, true\nitems[1].x: 1.5\nitems[2].x: 2"
    )


def test_array_elements_and_lines_are_passages() -> None:
    objects = [
        {"text": "one", "id": 7, "ok": True, "none": None, "tags": ["x", "y"], "deep": {"a": 1}},
        {"content": "two", "title": "T", "big": 10**30},
        "three",
        {},
    ]
    loaded = read(json.dumps(objects), "a.json")
    assert [passage.text for passage in loaded.passages] == ["one", "two", "three"]
    assert loaded.passages[0].metadata == {
        "item": 1, "id": 7, "ok": True, "tags": ["x", "y"], "deep": '{"a": 1}'
    }  # fmt: skip
    assert loaded.passages[1].metadata == {"item": 2, "title": "T", "big": str(10**30)}
    lines = "\n\n".join(json.dumps(one, ensure_ascii=False) for one in objects)
    loaded = read(lines, "a.jsonl")
    assert [passage.metadata["line"] for passage in loaded.passages] == [1, 3, 5]


def test_line_separators_inside_strings_do_not_end_a_json_line() -> None:
    assert read('{"text": "a\u2028b"}\n{"text": "c"}', "a.ndjson").text == "a\u2028b\n\nc"


def test_numbers_that_are_none() -> None:
    (passage,) = read('{"text": "x", "a": NaN, "b": 1e999, "c": -Infinity}', "a.jsonl").passages
    assert passage.metadata == {"line": 1, "a": "NaN", "b": "1e999", "c": "-Infinity"}


@pytest.mark.parametrize(
    ("text", "name", "words"),
    [
        ('{"a": 1,\n "b" 2}', "a.json", "line 2 column 6"),
        ('{"a": 1}\n{"a": 2}', "a.json", ".jsonl"),
        ('{"a": 1}\n{"a": }\n', "a.jsonl", "line 2 column 7"),
        ("[" * 100_000, "a.json", "too deeply"),
        ('{"a":' * 100_000, "a.jsonl", "too deeply at line 1"),
        ("[" * 300 + "[1],2" + "]" * 300, "a.json", "too deeply"),
        ('{"a":' * 300 + "1" + "}" * 300, "a.jsonl", "too deeply"),
        ('[\n{"text": "a"},\n{"text": "b"}\n]\n', "a.jsonl", "Name it .json."),
        ('{\n  "이름": "가",\n  "b": [1]\n}', "a.ndjson", "Name it .json."),
        ('[{"text": "a"}, {"text": "b"}]\n', "a.jsonl", "Name it .json, so that"),
        ('\n  [{"text": "가"}]', "a.ndjson", "Name it .json, so that"),
        ('{\n"text": "a"\n}\n{\n"text": "b"\n}\n', "a.jsonl", "one whole JSON value"),
        ('{"text": "a"},\n{"text": "b"}\n', "a.jsonl", "without a comma behind it"),
        ('[{"a": 1},\n{"b": }]', "a.jsonl", "line 1 column 11"),
        ('{"a": 1}\n\n{"b": 2,}\n', "a.jsonl", "line 3 column 9"),
        ("9" * 5000, "a.json", "cannot be read"),
        ("[]", "a.json", "nothing to ingest"),
        ("null", "a.json", "nothing to ingest"),
    ],
)
def test_bad_json_says_where(text: str, name: str, words: str) -> None:
    assert words in refusal(text, name)


def test_keys_that_come_again_lose_nothing() -> None:
    line = '{"a": 1, "a": 2, "a (2)": 3, "b": {"c": 4, "c": 5}, "a": 6}'
    assert read(line, "a.json").text == ("a: 1\na (3): 2\na (2): 3\nb.c: 4\nb.c (2): 5\na (4): 6")
    (passage,) = read('{"text": "x", "n": 1, "n": 2}', "a.jsonl").passages
    assert passage.metadata == {"line": 1, "n": 1, "n (2)": 2}


def test_nesting_within_the_limit_is_read_wherever_it_is_read_from() -> None:
    assert read('{"a":[' * 99 + "1" + "]}" * 99, "a.json").text.endswith("a: 1")
    deep = "[" * 100 + "{}" + "]" * 100
    (passage,) = read(f'{{"text": "x", "d": {deep}}}', "a.jsonl").passages
    assert str(passage.metadata["d"]).replace(" ", "") == deep


def test_paths_that_repeat_are_bounded_while_they_are_written() -> None:
    """10 kB that would be 5 MB of lines: it is refused before these are made."""
    text = '{"' + "k" * 5000 + '": {' + ",".join(f'"{n}": 1' for n in range(1000)) + "}}"
    assert "SLUICE_MAX_DOCUMENT_CHARS" in refusal(text, "a.json", max_chars=1_000_000)
    assert len(read(text, "a.json", max_chars=10_000_000).text) > 5_000_000
