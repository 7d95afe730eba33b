"""Each parser and each splitter takes time in proportion to its input, whatever that input is.

Measured is the growth of the processor time of this thread over two doublings, and over three where
two leave a doubt: the least of several runs, and never a number of seconds. Linear work grows 4
and 8 times, quadratic work 16 and 64 times. A case is measured again before it fails, for others
use the same caches. Documents that are no text are in `test_format_costs.py`.
"""

import contextlib
import gc
import time
from collections.abc import Callable, Sequence
from functools import cache

import pytest
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.formats import FORMATS
from shared.kinds.ingest import CsvOptions, LoadOptions, Splitter, SplitterType
from workers.ingest.load import LoadedText, TextPassage, Window, load, split

DOUBLINGS = 3
PER_DOUBLING = 3.2
RUNS = 2
TRIES = 4
MEASURABLE_S = 0.001  # below it, the cost of one call hides how the rest grows
CHARS = 10_000
LEAST_CHARS = 2_500  # for what takes longer; beyond the few hundred that parsers look at first

Make = Callable[[int], str]
"""The hostile text of about so many characters."""


def seconds(action: Callable[[], object]) -> float:
    gc.disable()
    start = time.thread_time()
    try:
        action()
        return time.thread_time() - start
    finally:
        gc.enable()


def assert_linear(
    action_of: Callable[[int], Callable[[], object]],
    size: int = CHARS,
    least: int = LEAST_CHARS,
    doublings: int = DOUBLINGS,
) -> None:
    action = action_of(size)
    action()  # what is made once, such as compiled patterns
    while size // 2 >= least and seconds(action) > 2 * MEASURABLE_S:
        size //= 2
        action = action_of(size)
    for doubled in range(2, doublings + 1):  # the third is for those of whom two leave a doubt
        larger = action_of(size * 2**doubled)
        small, large = float("inf"), float("inf")
        for _ in range(TRIES):
            small = min(small, *(seconds(action) for _ in range(RUNS)))
            large = min(large, seconds(larger))
            if large < max(small, MEASURABLE_S) * PER_DOUBLING**doubled:
                return
    raise AssertionError(f"{2**doubled} times the input takes {large / small:.0f} times the work")


LARGE = IngestSettings.model_construct(max_document_chars=10**8, max_document_chunks=10**8)


def load_all(data: bytes, name: str, options: CsvOptions | None = None) -> Callable[[], object]:
    def action() -> None:
        with contextlib.suppress(DocumentError):
            load(
                data,
                name=name,
                content_type=None,
                options=LoadOptions(csv=options or CsvOptions()),
                settings=LARGE,
            )

    return action


def loading(make: Make, name: str, **csv: list[str]) -> Callable[[int], Callable[[], object]]:
    options = CsvOptions(**csv)
    return lambda size: load_all(make(size).encode(), name, options)


def lines(line: str, *, first: str = "", last: str = "") -> Make:
    return lambda size: first + line * (size // len(line)) + last


def numbered(form: str, *, first: str = "", last: str = "") -> Make:
    """`form` with a number in it, again and again."""

    def make(size: int) -> str:
        return first + "".join(form.format(n) for n in range(size // (len(form) + 2))) + last

    return make


TABLES: dict[str, Make] = {
    "equal names": lambda size: ("a," * (size // 8))[:-1] + "\n" + "1," * (size // 8),
    "names of copies": lambda size: "a,a," + ",".join(f"a (2),a ({n})" for n in range(size // 60)),
    "no names": lambda size: "," * (size // 10) + "x\n" + "1," * (size // 10),
    "long names": lambda size: ("n" * 50 + ",") * (size // 400) + "\n" + "1," * (size // 400),
    "quotes": lines('"'),
    "doubled quotes": lines('""', first='a,b\n1,"'),
    "a quote in each row": lines('1,"x\n', first="a,b\n"),
    "an open quote": lines("1,2\n", first='a,b\n1,"'),
    "text after quotes": lines('"x" y,2\n', first="a,b\n"),
    "spaces after a quote": lines(" ", first='a,b\n"x"', last="y"),
    "spaces before a quote": lines(" ", first="a,b\n1,", last='"x"'),
    "quotes and spaces": lines('" ', first="a,b\n"),
    "commas and quotes": lines(',"', first="a,b\n"),
    "backslashes": lines("\\", first="a,b\n1,"),
    "escaped quotes": lines('\\"', first='a,b\n1,"', last='"'),
    "escaped line ends": lines("\\\n", first="a\tb\n1\t"),
    "escapes in rows": lines('1,"x \\"y, z\\""\n', first="a,b\n"),
    "blank lines": lines("\n", first="a,b"),
    "blank rows": lines(",,,\n", first="a,b\n1,2\n"),
    "commas": lines(",", first="a,b\n1"),
    "rows of other lengths": lines("1,2,3\n1\n1,2\n", first="a,b\n"),
    "titles": lines("A title\n", last="a,b,c\n1,2,3\n"),
    "padded titles": lines("A title,,\n", last="a,b,c\n1,2,3\n"),
    "notes": lines("A note\n", first="a,b,c\n1,2,3\n\n"),
    "prose": lines("Well, yes; or no, perhaps.\n", first="text\n"),
    "decimal commas": lines("1,5\n", first="price\n"),
    "all delimiters": lines("a,b;c\td|e\n"),
    "one delimiter in each row": lines("a,b\na;b\na\tb\na|b\n"),
    "equal signs": lines("=", first="sep"),
    "comments": lines("# x\n", first="a,b\n"),
    "blank lines between rows": lines("1,2\n\n", first="a,b\n"),
    "several tables": lambda size: (
        "a,b\n1,2\n" + "\n".join("c,d,e\n" + "1,2,3\n" * (size // 300) for _ in range(50))
    ),
    "comments with delimiters": lines("# x, y\n1,2\n", first="# a, b\n"),
    "comments with quotes": lines('# "x, y\n1,"2"\n', first="a,b\n"),
}


@pytest.mark.parametrize("make", TABLES.values(), ids=TABLES)
def test_tables(make: Make) -> None:
    assert_linear(loading(make, "a.csv"))


@pytest.mark.parametrize("make", list(TABLES.values())[:12], ids=list(TABLES)[:12])
def test_tables_of_tabs(make: Make) -> None:
    assert_linear(loading(lambda size: make(size).replace(",", "\t"), "a.tsv"))


COLUMN = {
    "integers": "12345\n",
    "long integers": "1234567890123456789012345678901234567890\n",
    "decimals": "1.25\n",
    "decimals of other scales": "1.25\n1.5\n1.10\n",
    "digits and a letter": "1" * 500 + "x\n",
}


@pytest.mark.parametrize("line", COLUMN.values(), ids=COLUMN)
def test_typed_columns(line: str) -> None:
    assert_linear(loading(lines(line, first="n\n"), "a.csv", metadata_columns=["n"]))


def test_columns_that_are_named_one_by_one() -> None:
    def action_of(columns: int) -> Callable[[], object]:
        names = [f"c{n}" for n in range(columns)]
        data = ",".join(names) + "\n" + "1," * (columns - 1) + "1\n"
        options = CsvOptions(content_columns=names, metadata_columns=names)
        return load_all(data.encode(), "a.csv", options)

    assert_linear(action_of, size=1250)


def test_a_cubic_table_would_fail_here() -> None:
    """What this file is for: the very way in which columns were named before."""

    def action_of(size: int) -> Callable[[], object]:
        def action() -> None:
            names: list[str] = []
            for _ in range(size):
                name, copy = "a", 2
                while name in names:
                    name, copy = f"a ({copy})", copy + 1
                names.append(name)

        return action

    with pytest.raises(AssertionError, match="8 times the input"):
        assert_linear(action_of, size=60)


JSON: dict[str, Make] = {
    "numbers": lambda size: "[" + "1," * (size // 2) + "1]",
    "lists": lambda size: "[" + "[]," * (size // 3) + "[1]]",
    "pairs": lambda size: "[" + '{"a":1},' * (size // 8) + "1]",
    "nested lists": lambda size: "[" * (size // 40) + "]" * (size // 40),
    "nested objects": lambda size: '{"a":' * (size // 100) + "1" + "}" * (size // 100),
    "leaves in the depth": lambda size: (
        "[[" + "[" * (size // 120) + '{"a":1},' * (size // 10) + "1" + "]" * (size // 120) + ",1]]"
    ),
    "lists in lists": lambda size: "[[" * (size // 150) + "1" + ",[1]],1]" * (size // 150),
    "equal keys": lambda size: "{" + '"a":1,' * (size // 6) + '"a":1}',
    "keys": numbered('"k{}":1,', first="{{".replace("{{", "{"), last='"k":1}'),
    "a long key over many": lambda size: (
        '{"' + "k" * 500 + '":{' + ",".join(f'"{n}":1' for n in range(size // 10)) + "}}"
    ),
    "escapes": lines("\\u0041\\n", first='"', last='"'),
    "halves of characters": lines("\\ud83d", first='"', last='"'),
    "an open string": lines("a", first='["'),
    "digits": lines("1", first="1."),
    "exponents": lines("1", first="1e"),
    "metadata": numbered('"k{}":[1,2],', first='{"text":"x",', last='"k":1}'),
    "spaces": lines(" ", first="[1", last="]"),
    "lines": lines("{}\n"),
}


@pytest.mark.parametrize("name", ["a.json", "a.jsonl"])
@pytest.mark.parametrize("make", JSON.values(), ids=JSON)
def test_json(make: Make, name: str) -> None:
    assert_linear(loading(make, name))


@pytest.mark.parametrize("line", ["[1]\n", '{"text":"x","n":1}\n', "\n", "[\n", '{"a":\n1}\n'])
def test_json_lines(line: str) -> None:
    assert_linear(loading(lines(line), "a.jsonl"))


BYTES: dict[str, Callable[[int], bytes]] = {
    "korean": lambda size: "가나다라 마바사 안녕하세요. ".encode("cp949") * (size // 27),
    "korean with bad bytes": lambda size: (
        ("가나다라 마바사 안녕하세요. ".encode("cp949") * 5 + b"\xff ") * (size // 137)
    ),
    "japanese": lambda size: "これは日本語の文書です。".encode("cp932") * (size // 24),
    "chinese": lambda size: "这是一个中文文档。".encode("gb18030") * (size // 18),
    "cyrillic": lambda size: "Это русский текст, и он длинный. ".encode("cp1251") * (size // 33),
    "latin": lambda size: "L’été, où “ça” va… – à 5 €. ".encode("cp1252") * (size // 28),
    "quotes of Windows": lambda size: b"\x93" * size,
    "high bytes": lambda size: bytes(range(128, 256)) * (size // 128),
    "half characters": lambda size: b"\xed\x95" * (size // 2),
    "zeros": lambda size: b"a\x00\x00" * (size // 3),
    "wide": lambda size: "가나 abc\n".encode("utf-16-le") * (size // 14),
    "wider": lambda size: "가나 abc\n".encode("utf-32-be") * (size // 28),
    "escapes": lambda size: b"\x1b$)C" * (size // 4),
    "shifts": lambda size: b"\x1b$)C\n" + b"\x0e0!\x0f " * (size // 5),
    "japanese escapes": lambda size: b"\x1b$B" * (size // 3),
    "declarations": lambda size: b"<meta " * (size // 6),
    "a long declaration": lambda size: b"<meta " + b"a" * size + b" charset",
    "spaces": lambda size: b" " * size,
    "a long space": lambda size: b"a" + "\u3000".encode() * (size // 3),
    "halves": lambda size: "\ud83d".encode("utf-8", "surrogatepass") * (size // 3),
    "returns": lambda size: b"a" + b"\r" * size,
}


@pytest.mark.parametrize("make", BYTES.values(), ids=BYTES)
def test_bytes(make: Callable[[int], bytes]) -> None:
    assert_linear(lambda size: load_all(make(size), "a.txt"))


@pytest.mark.parametrize("make", list(BYTES.values())[-10:], ids=list(BYTES)[-10:])
def test_bytes_of_pages(make: Callable[[int], bytes]) -> None:
    assert_linear(lambda size: load_all(make(size), "a.html"))


HTML: dict[str, Make] = {
    "open tags": lines("<b>"),
    "nested blocks": lambda size: "<div>" * min(size // 5, 1500) + "x" * (size // 2),
    "paragraphs": lines("<p>a"),
    "cells": lines("<td>a", first="<table><tr>"),
    "rows": lines("<tr><td><td>", first="<table>", last="a"),
    "tables": lambda size: "<table><tr><td>a" * min(size // 16, 300) + "b" * size,
    "items": lines("<li>", first="<ul>", last="a"),
    "breaks": lines("<br>", last="a"),
    "ends": lines("</b></p></td>", first="a"),
    "less-than signs": lines("<", last="a"),
    "comments": lines("<!--", last="a"),
    "entities": lines("&amp;&"),
    "spaces": lines(" <i> </i>", last="a"),
    "verbatim": lines("<pre>\n\n</pre>", last="a"),
    "hidden": lines("<p hidden>x</p>", last="a"),
    "classes": lambda size: '<p class="' + "c " * (size // 2) + '">a',
    "attributes": lines("<p a=1 b='2' c=\"3\" d e>x"),
    "attributes of one element": lambda size: "<p " + "a='b' " * min(size // 6, 9000) + ">a",
    "titles": lines("<title>x</title>", last="a"),
    "CDATA": lines("<![CDATA[x]]>", last="a"),
}


@pytest.mark.parametrize("make", HTML.values(), ids=HTML)
def test_html(make: Make) -> None:
    assert_linear(loading(make, "a.html"), doublings=2)


SENTENCE = "<p>A sentence that is long enough to be taken for one of an article, and no link.</p>"
PAGES: dict[str, Make] = {
    "nested articles": lambda size: ("<div>" + SENTENCE) * min(size // 90, 80) + "x" * size,
    "nested lists": lambda size: "<ul><li>a" * min(size // 9, 900) + "b" * size,
    "nested quotes": lambda size: ("<blockquote>" + SENTENCE) * (size // 90),
    "bars": lines("<div class='share sidebar menu'><a href=x>a</a></div>", last=SENTENCE * 9),
    "nested bars": lambda size: "<div class=menu>" * min(size // 20, 900) + SENTENCE * (size // 80),
    "banners": lines("<div>cookie <button>accept</button></div>", last=SENTENCE * 9),
    "nested banners": lambda size: (
        "<div>cookie <button>accept</button>" * min(size // 40, 900) + SENTENCE * (size // 80)
    ),
    "headings": lines("<h1>a</h1>", first="<title>aaaa</title>", last=SENTENCE * 9),
    "merged cells": lines("<tr><td rowspan=99>a<td rowspan=99 colspan=9>b", first="<table>"),
    "JSON of dates": lambda size: (
        "<script type='application/ld+json'>" + '"datePublished":' * (size // 16) + "</script>x"
    ),
    "definitions": lines("<dl><dt>a<dd>b</dl>", last=SENTENCE),
}


@pytest.mark.parametrize("make", PAGES.values(), ids=PAGES)
def test_main_content(make: Make) -> None:
    """The library takes milliseconds for each kilobyte."""
    page = loading(lambda size: f"<html><body>{make(size)}</body></html>", "a.html")
    assert_linear(page, size=LEAST_CHARS, doublings=2)


def deep(opening: str, closing: str, depth: int) -> Make:
    """Nested to a fixed depth, as often as the size allows."""
    return lines(opening * depth + "a" + closing * depth)


PLAIN_FORMATS: dict[str, dict[str, Make]] = {
    "reStructuredText": {
        "sections": numbered("a{}\n=======\n\nb\n\n"),
        "paragraphs": lines("a *b* ``c`` `d`_\n\n"),
        "items": lines("* a\n\n"),
        "references": numbered(".. _a{}: b\n\n"),
        "directives": lines(".. note:: a\n\n"),
        "signs": lines("* ` | _ \n\n"),
    },
    "XML": {
        "elements": lines('<i a="1"><b>x</b></i>', first="<r>", last="</r>"),
        "mixed text": lines("<p>x <b>y</b></p>", first="<r>", last="</r>"),
        "nested elements": lambda size: f"<r>{deep('<a>', '</a>', 60)(size)}</r>",
        "attributes": lambda size: "<r " + numbered("a{}='1' ")(min(size, 40_000)) + ">x</r>",
        "entities": lines("&amp;", first="<r>", last="</r>"),
        "comments": lines("<!-- -->", first="<r>", last="x</r>"),
        "CDATA": lines("<![CDATA[x]]>", first="<r>", last="</r>"),
        "names": numbered("<a{0}>x</a{0}>", first="<r>", last="</r>"),
    },
    "YAML": {
        "keys": numbered("a{}: b\n"),
        "items": lines("- a\n"),
        "documents": lines("---\na: b\n"),
        "nested lists": lines("- " + "[" * 15 + "a" + "]" * 15 + "\n"),
        "a long string": lines("a ", first='a: "', last='"'),
        "escapes": lines("\\u0041", first='a: "', last='"'),
        "a folded text": lines("  a\n", first="a: >\n"),
        "comments": lines("# a\n", last="a: b"),
        "anchors": numbered("- &a{} b\n"),
    },
    "TOML": {
        "open strings": lines("[a]\n" + 3 * "'" + "\n"),
        "keys": numbered("a{} = 1\n"),
        "tables": numbered("[a{}]\nb = 1\n"),
        "arrays of tables": lines("[[a]]\nb = 1\n"),
        "arrays": lines("1,", first="a = [", last="]"),
        "a long string": lines("a ", first='a = """', last='"""'),
    },
    "INI": {
        "sections": numbered("[a{}]\nb = 1\n"),
        "keys": numbered("a{} = 1\n", first="[a]\n"),
        "continued lines": lines("  a\n", first="[a]\nb = 1\n"),
        "comments": lines("; a\n", last="[a]\nb = 1"),
    },
    "log": {
        "entries": lines("2024-03-01 10:00:00 x\n"),
        "colors": lines("[ \x1b[\n"),
        "a long line": lines("2024-03-01 10:00:00 "),
        "traces": lines("  at a\n", first="2024-03-01 10:00:00 ERROR x\n"),
    },
    "SubRip": {
        "cues": lines("1\n00:00:01,000 --> 00:00:02,000\na\n\n"),
        "a long cue": lines("- a <v x\n1\n", first="00:00:01,000 --> 00:00:02,000\n"),
        "tags": lines("<i>", first="1\n00:00:01,000 --> 00:00:02,000\n", last="a"),
    },
    "WebVTT": {
        "cues": lines("00:01.000 --> 00:02.000\na\n\n", first="WEBVTT\n\n"),
        "notes": lines("NOTE a\n\n", first="WEBVTT\n\n", last="00:01.000 --> 00:02.000\na"),
        "settings": lines(" a:b", first="WEBVTT\n\n00:01.000 --> 00:02.000", last="\na"),
    },
    "SubStation Alpha": {
        "lines": lines(
            "Dialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,a\n",
            first="[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, "
            "Effect, Text\n",
        ),
        "overrides": lines(
            "{\\i1}a",
            first="[Events]\nFormat: Layer, Start, End, Style, Name, MarginL, MarginR, MarginV, "
            "Effect, Text\nDialogue: 0,0:00:01.00,0:00:02.00,Default,,0,0,0,,",
        ),
    },
    "source code": {
        "functions": lines("def f():\n    pass\n\n"),
        "a long line": lines("a + "),
    },
    "Markdown": {
        "front matter": lambda size: "---\n" + "a: b\n" * min(size // 5, 12_000) + "---\n# x",
    },
}  # fmt: skip
PLAIN_CASES = [(name, case) for name, cases in PLAIN_FORMATS.items() for case in cases]
COSTS_OF_TEXTS: dict[str, object] = {
    "text": BYTES, "HTML": HTML, "CSV": TABLES, "TSV": TABLES, "JSON": JSON, "JSON Lines": JSON,
    **PLAIN_FORMATS,
}  # fmt: skip
"""Which documents are tried, by the formats that are text."""


@pytest.mark.parametrize(
    ("name", "case"), PLAIN_CASES, ids=[f"{name}-{case}" for name, case in PLAIN_CASES]
)
def test_plain_formats(name: str, case: str) -> None:
    assert_linear(loading(PLAIN_FORMATS[name][case], f"a{FORMATS[name].suffixes[0]}"))


# Splitters


@cache
def tokenizer() -> Tokenizer:
    letters = [*"abcdefghijklmnopqrstuvwxyz#-=`.한글"]
    vocabulary = ["[UNK]", *letters, *("##" + letter for letter in letters)]
    made = Tokenizer(
        models.WordPiece(
            {term: at for at, term in enumerate(vocabulary)},
            unk_token="[UNK]",
            max_input_chars_per_word=100,
        )
    )
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    return made


TEXTS: dict[str, Make] = {
    "letters": lines("a"),
    "words": lines("a "),
    "two words": lines("ab b "),
    "spaces": lines(" ", last="a"),
    "wide spaces": lines("\u3000", last="a"),
    "lines": lines("a\n"),
    "line ends": lines("\n", last="a"),
    "paragraphs": lines("a\n\n"),
    "long and short paragraphs": lines("a\n\n" * 20 + "b" * 300 + "\n\n"),
    "gaps": lines("a\n\n\n\n\n"),
    "all separators": lines("a\n\nb\nc d"),
    "one letter in a space": lines(" " * 99 + "a"),
    "long words": lines("a " * 300 + "b" * 700 + " "),
    "hangul": lines("한글"),
    "one long word behind short ones": lines("a " * 600 + "b" * 900 + " "),
    "marks": lines("e\u0301"),
    "flags": lines("🇰🇷"),
    "headings": lines("# a\n"),
    "spaces in a heading": lines(" ", first="# a", last="b"),
    "signs at the end of a heading": lines("#", first="# a ", last="b"),
    "signs and spaces in a heading": lines(" #", first="# a", last="b"),
    "headings of all levels": lines("# a\n## b\n### c\n#### d\n##### e\n###### f\n"),
    "underlines": lines("a\n=\n"),
    "an underline": lines("-", first="a\n"),
    "an underline with an end": lines("=", first="a\n", last="x"),
    "many lines above an underline": lines("a\n", last="==="),
    "fences": lines("```\n"),
    "open fences": lines("```a\n"),
    "a fence": lines("`", last="\na\n"),
    "a fence with an end": lines("`", last="a`\n# b"),
    "tildes": lines("~", last="\na\n"),
    "longer and longer fences": lambda size: "".join(
        "`" * n + "\n" for n in range(3, int((2 * size) ** 0.5))
    ),
    "quotes": lines("> ", last="a"),
    "nested quotes": lines("> > > # a\n"),
    "items": lines("- "),
    "nested items": lambda size: "".join(" " * (2 * n) + "- a\n" for n in range(int(size**0.5))),
    "deep items": lines("- a\n  - b\n    - c\n"),
    "numbers": lines("1. a\n"),
    "digits": lines("1", last=". a"),
    "comments": lines("<!--\n"),
    "comments that end": lines("<!-- -->\n"),
    "html": lines("<div>\n\n"),
    "scripts": lines("<script>\n"),
    "instructions": lines("<?\n"),
    "less-than signs": lines("<"),
    "an attribute": lines("a", first="<a ", last=">\n# b"),
    "attributes": lines(' a="b"', first="<a", last="\n# b"),
    "spaces in a tag": lines(" ", first="<a", last="\n# b"),
    "rules": lines("---\n"),
    "a long rule": lines("- ", last="a\n"),
    "stars": lines("* * *\n"),
    "front matter": lines("a: b\n", first="---\n"),
    "front matter that ends": lines("a: b\n", first="---\n", last="---\n# a"),
    "front matter in TOML": lines("# a\n", first="+++\n"),
    "front matter in JSON": lines('"a": 1,\n', first="{\n"),
    "brackets": lines("[", last="\n# b"),
    "references": lines("[a]: b\n"),
    "tabs": lines("\t", last="# a"),
    "tables": lines("|a|b|\n|-|-|\n"),
}
PLAIN = list(TEXTS)[: list(TEXTS).index("headings")]


def fitting(limit: int) -> Window:
    """Of a model that reads so many tokens."""

    def overlong(texts: Sequence[str]) -> dict[int, int]:
        encodings = tokenizer().encode_batch_fast(list(texts), add_special_tokens=False)
        sizes = [len(encoding) for encoding in encodings]
        return {n: size for n, size in enumerate(sizes) if size > limit}

    return Window(tokens=limit, tokenizer=tokenizer(), overlong=overlong)


def splitting(
    make: Make, splitter_of: Callable[[int], Splitter], window: Window | None = None
) -> Callable[[int], Callable[[], object]]:
    def action_of(size: int) -> Callable[[], object]:
        text = make(size)
        passages = (TextPassage(text=text, start=0, metadata={}),)
        loaded = LoadedText(text=text, passages=passages, metadata={})
        splitter = splitter_of(size)

        def action() -> None:
            for _ in split(loaded, splitter, tokenizer=tokenizer(), window=window):
                pass

        return action

    return action_of


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS)
def test_markdown(make: Make) -> None:
    splitter = Splitter(type=SplitterType.MARKDOWN, chunk_size=100, chunk_overlap=50)
    assert_linear(splitting(make, lambda _: splitter))


@pytest.mark.parametrize("type_", list(SplitterType)[:3])
@pytest.mark.parametrize("name", PLAIN)
def test_splitters(name: str, type_: SplitterType) -> None:
    small = Splitter(type=type_, chunk_size=16, chunk_overlap=8)
    assert_linear(splitting(TEXTS[name], lambda _: small))


SENTENCES: dict[str, Make] = {
    **{name: TEXTS[name] for name in ("letters", "words", "lines", "line ends", "numbers")},
    "full stops": lines("."),
    "sentences": lines("Dr. A b. "),
    "asian sentences": lines("行く。」と"),
    "abbreviations": lines("e.g. "),
}


@pytest.mark.parametrize("make", SENTENCES.values(), ids=SENTENCES)
def test_sentences(make: Make) -> None:
    splitter = Splitter(type=SplitterType.SENTENCE, chunk_size=100, chunk_overlap=50)
    assert_linear(splitting(make, lambda _: splitter))


@pytest.mark.parametrize("name", PLAIN)
def test_pieces_that_fit(name: str) -> None:
    """All of the text is divided anew; nearly all where half of each piece overlaps."""
    overlapping = Splitter(chunk_overlap=500)
    assert_linear(splitting(TEXTS[name], lambda _: overlapping, fitting(20)))


@pytest.mark.parametrize("type_", list(SplitterType)[:3])
@pytest.mark.parametrize("name", PLAIN)
def test_splitters_whose_chunks_grow_with_the_text(name: str, type_: SplitterType) -> None:
    """A window of half of the text: what each step does must not depend on the window."""

    def splitter(size: int) -> Splitter:
        return Splitter(type=type_, chunk_size=size // 2, chunk_overlap=size // 4)

    assert_linear(splitting(TEXTS[name], splitter))
