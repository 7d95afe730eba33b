"""HTML to text: what is a line, what is a cell, what is seen, and what it costs."""

import sys
from collections.abc import Callable
from types import FrameType
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import DocumentError
from workers.ingest.formats.texts.html import render


def text_of(page: str, name: str = "page.html") -> str:
    return render(page, name=name).text


def table(*rows: str, cell: str = "td") -> str:
    """Rows of cells parted by bars."""
    lines = ("".join(f"<{cell}>{one}</{cell}>" for one in row.split("|")) for row in rows)
    return "<table>" + "".join(f"<tr>{line}</tr>" for line in lines) + "</table>"


# Tables


@pytest.mark.parametrize(
    ("rows", "text"),
    [
        (["부서|이름", "총무|김하나", "|이두리"], "부서 | 이름\n총무 | 김하나\n| 이두리"),
        (["Kind|What", "Tea|Green", "&nbsp;|Black"], "Kind | What\nTea | Green\n| Black"),
        (["|Mon|Tue", "Early|8|9"], "| Mon | Tue\nEarly | 8 | 9"),
        (["| |월", "1||"], "|  | 월\n1 |  |"),
        (["a||c", "||f", "g|h|", "||"], "a |  | c\n|  | f\ng | h |"),
        (["<input type=checkbox>|Hana|Chair"] * 2, "| Hana | Chair\n| Hana | Chair"),
        (["<img src=ok.png>|<svg><path/></svg>|x", "y|<i class=no></i>|"], "|  | x\ny |  |"),
        (["<br>|first", "<p></p>|second"], "| first\n| second"),
        (["<p>one</p><p>two</p>|<div>three</div>"], "one two | three"),
        (["a<br>b|<h4>c</h4>d<hr>e"], "a b | c d e"),
        (["<pre>x = 1\n</pre>|<textarea>\ny</textarea>"], "x = 1 | y"),
        (["준비물|<ul><li>연필</li><li>공책</li></ul>"], "준비물 | - 연필 - 공책"),
        (["Parts|<ol><li></li><li><p>nut</p></ol>", "<li>x|y"], "Parts | - nut\n- x | y"),
        (["Note|<dl><dt>k<dd>v</dl>"], "Note | k v"),
        (["one<select><option>a<option>b</select>|two"], "one a b | two"),
    ],
)
@pytest.mark.parametrize("cell", ["td", "th"])
def test_a_row_is_a_line(rows: list[str], text: str, cell: str) -> None:
    assert text_of("<p>Before</p>" + table(*rows, cell=cell) + "after") == (
        f"Before\n\n{text}\n\nafter"
    )


def test_spans_and_groups_do_not_join_rows() -> None:
    page = """<table><caption>지점</caption><colgroup><col><col></colgroup>
      <thead><tr><th rowspan="2">이름</th><th colspan="2">전화</th></tr>
      <tr><th>낮</th><th>밤</th></tr></thead>
      <tbody><tr><td rowspan="2">북</td><td>1</td><td></td></tr><tr><td></td><td>2</td></tr></tbody>
      <tfoot><tr><td colspan="3">합계 2</td></tr></tfoot></table>"""
    assert text_of(page) == ("지점\n이름 | 전화\n이름 | 낮 | 밤\n북 | 1 |\n북 |  | 2\n합계 2")


@pytest.mark.parametrize(
    ("table_", "text"),
    [
        ("<tr><td rowspan=3>a<td>b<tr><td>c<tr><td>d", "a | b\na | c\na | d"),
        ("<tr><td>a<td rowspan=2>b<td>c<tr><td>d<td>e", "a | b | c\nd | b | e"),
        ("<tr><td>a<td rowspan=2>b<tr><td>d<tr><td>e<td>f", "a | b\nd | b\ne | f"),
        ("<tr><td rowspan=2 colspan=2>a<td>b<tr><td>c<tr><td>1<td>2<td>3",
         "a | b\na | c\n1 | 2 | 3"),
        ("<tr><td rowspan=2>a<td rowspan=2>b<td>c<tr><td>d", "a | b | c\na | b | d"),
        ("<tr><td rowspan=0>a<td>b<tr><td>c<tr><td>d", "a | b\na | c\na | d"),
        ("<tr><td rowspan=2><td>b<tr><td>c", "| b\n| c"),
        ("<tr><td rowspan=2><b>a</b> <i>b</i><p>c<td>d<tr><td>e", "a b c | d\na b c | e"),
        ("<thead><tr><th rowspan=9>a<th>b<tbody><tr><td>c<td>d", "a | b\nc | d"),
        ("<tr><td rowspan=2>a<td>b<tr><td><table><tr><td>c<td>d</table>",
         "a | b\n\nc | d"),
        (f"<tr><td rowspan=2>{'a' * 101}<td>b<tr><td>c", f"{'a' * 101} | b\n| c"),
        ("<tr><td rowspan=x>a<td>b<tr><td rowspan=-1>c<td>d", "a | b\nc | d"),
        ("<tr><td rowspan=2>a<td rowspan=2>b<tr><tr><td>c<td>d", "a | b\nc | d"),
    ],
)  # fmt: skip
def test_a_merged_cell_counts_in_each_row(table_: str, text: str) -> None:
    assert text_of(f"<table>{table_}</table>") == text


def test_merged_cells_add_no_more_than_some_times_the_page() -> None:
    head = "<td rowspan=1000>" + "</td><td rowspan=1000>".join(["x" * 99] * 20)
    page = f"<table><tr>{head}" + "<tr><td>y" * 900
    assert len(text_of(page)) < 40 * len(page)


def test_a_calendar() -> None:
    week = "".join(f"<td>{day or ''}</td>" for day in (0, 0, 0, 1, 2, 3, 4))
    days = "".join(f"<th>{day}</th>" for day in "일월화수목금토")
    assert text_of(f"<table><tr>{days}</tr><tr>{week}</tr></table>") == (
        "일 | 월 | 화 | 수 | 목 | 금 | 토\n|  |  | 1 | 2 | 3 | 4"
    )


@pytest.mark.parametrize(
    ("inner", "text"),
    [
        (table("day|3", "night|2"), "Basic\n\nday | 3\nnight | 2\n\nPro | 9"),
        (table("day|3"), "Basic\n\nday | 3\n\nPro | 9"),
        (table("day"), "Basic | day\nPro | 9"),
        (table("day", "night"), "Basic | day night\nPro | 9"),
        ("see:" + table("day|3"), "Basic\n\nsee:\n\nday | 3\n\nPro | 9"),
        (f"<div>{table(table('day|3'))}</div>", "Basic\n\nday | 3\n\nPro | 9"),
    ],
)
def test_a_table_in_a_cell(inner: str, text: str) -> None:
    assert text_of(f"<table><tr><td>Basic<td>{inner}<tr><td>Pro<td>9</table>") == text


def test_tables_for_layout_keep_their_blocks() -> None:
    article = "<h2>제목</h2>" + "<p>본문입니다. 아주 긴 글입니다.</p>" * 80
    page = f"<table><tr><td>메뉴<br>소개</td><td>{article}</td></tr></table>"
    assert text_of(page).startswith("메뉴\n소개\n\n제목\n\n본문입니다. 아주 긴 글입니다.\n\n본문")
    mail = "<table><tr><td><p>안녕하세요.</p><p>회의는 두 시입니다.</p></td></tr></table>"
    assert text_of(f"<table><tr><td>{mail}</td></tr></table>") == (
        "안녕하세요.\n\n회의는 두 시입니다."
    )


def test_code_in_a_cell_keeps_its_lines() -> None:
    code = "def f():\n<b>    return</b> 1\n"
    page = f"<table><tr><td><pre>1\n2\n</pre></td><td><pre>{code}</pre></td></tr></table>"
    assert text_of(page) == "1\n2\n\ndef f():\n    return 1"


@pytest.mark.parametrize(
    "page",
    [
        "<table><td>a<td>b<tr><td>c<td>d</table>",
        "<table><tbody><td>a</td><td>b</td><tr><td>c<td>d",
        "<tr><td>a</td><td>b</td></tr><tr><td>c</td><td>d</td></tr>",
        "<table><tr><form><td>a</td><td>b</td></form></tr><tr><td>c<td>d</tr></table>",
        "<table><tr><td>a<td>b</tr></tr></td><tr><th>c<th>d",
        "<table><tr>\n<td> a \n</td>\n\n<td>\tb</td></tr> <tr><td>c<td>d</table>",
    ],
)
def test_untidy_tables(page: str) -> None:
    assert text_of(page) == "a | b\nc | d"


NOTHING = ["", "&nbsp;", "<br>", "<img src=x>", "<p></p>", "<span hidden>gone</span>", "<ul></ul>"]
WRAPPED = [
    "{}", "<p>{}</p>", "<div>{}</div>", "<ul><li>{}</li></ul>", "<h3>{}</h3>", "<b>{}</b>",
    "<a href=x>{}</a><br>", "\n{}\n", "<center>{}", "<table><tr><td>{}</td></tr></table>",
    "<span style='display: none'>gone</span>{}", "<form>{}</form>", "<dl><dd>{}</dl>",
]  # fmt: skip


@given(st.data())
def test_any_table_has_a_line_a_row_and_a_place_a_cell(data: st.DataObject) -> None:
    width = data.draw(st.integers(2, 5))
    expected: list[list[list[str]]] = []
    page, count = "", 0
    for _ in range(data.draw(st.integers(1, 5))):
        cells: list[list[str]] = []
        page += "<tr>"
        for _ in range(width):
            words = [f"단어{count + n}w" for n in range(data.draw(st.integers(0, 3)))]
            count += len(words)
            blocks = [data.draw(st.sampled_from(WRAPPED[1:4])).format(word) for word in words[1:]]
            first = data.draw(st.sampled_from(WRAPPED)).format(words[0]) if words else ""
            content = first + "".join(blocks)
            page += f"<td>{content or data.draw(st.sampled_from(NOTHING))}</td>"
            cells.append(words)
        page += "</tr>"
        if any(cells):
            expected.append(cells)
    lines = text_of(f"<h1>top</h1><table>{page}</table><p>end").split("\n")
    assert (lines[0], lines[-1]) == ("top", "end")
    rows = [
        [[word for word in cell.split() if word != "-"] for cell in line.split("|")]
        for line in lines[1:-1]
        if line
    ]
    assert rows == expected


BLOCKS = ["p", "div", "li", "td", "tr", "table", "h2", "pre", "dd", "blockquote", "th", "section"]
INLINE = ["b", "a", "span", "code", "em", "font"]


@st.composite
def trees(draw: st.DrawFn, depth: int = 4) -> tuple[str, list[str]]:
    """A page, and its words in order; each in an element of its own, nested as it comes."""
    page, words = "", []
    for _ in range(draw(st.integers(1, 4))):
        tag = draw(st.sampled_from(BLOCKS))
        inner, below = draw(trees(depth - 1)) if depth and draw(st.booleans()) else ("", [])
        word = f"w{draw(st.integers(0, 999))}e"
        inline = draw(st.sampled_from(INLINE))
        close = f"</{tag}>" if draw(st.booleans()) else f"</{tag}><div></div>"
        page += f"<{tag}><{inline}>{word}</{inline}>{inner}{close}"
        words += [word, *below]
    return page, words


@given(trees())
def test_every_word_is_there_and_stands_alone(tree: tuple[str, list[str]]) -> None:
    page, words = tree
    text_words = [word for word in text_of(page).split() if word not in ("|", "-")]
    assert text_words == words


# What is seen


@pytest.mark.parametrize(
    "hidden",
    [
        '<span style="display:none">{}</span>',
        '<span style="color:red; DISPLAY : None">{}</span>',
        '<i style="display:none !important; display:inline">{}</i>',
        '<i style="display:block; display:none">{}</i>',
        '<i style="/* a:b; */display/**/:none">{}</i>',
        '<div style="visibility:hidden">{}</div>',
        '<div style="Visibility: COLLAPSE;">{}</div>',
        "<p hidden>{}</p>",
        '<p hidden="hidden"><b>{}</b></p>',
        '<i aria-hidden="true">{}</i>',
        "<template><p>{}</p></template>",
        "<noscript><p>{}</p></noscript>",
        "<noframes><p>{}</p></noframes>",
        "<iframe src=x>{}</iframe>",
        "<object data=x>{}</object>",
        "<video src=x>{}</video>",
        "<canvas>{}</canvas>",
        "<svg><title>{}</title><text>{}</text></svg>",
        "<dialog>{}</dialog>",
        "<datalist><option>{}</datalist>",
        "<style>{}</style>",
        "<script>'{}'</script>",
        "<!-- {} -->",
        "<nav>{}</nav>",
        "<math><semantics><mn></mn><annotation>{}</annotation></semantics></math>",
    ],
)
def test_what_no_browser_shows_is_no_text(hidden: str) -> None:
    page = (
        f"<table><tr><td>거리</td><td>{hidden.replace('{}', '감춘 7004')}27,994</td></tr></table>"
    )
    rendered = render(page, name="page.html")
    assert rendered.text == "거리 | 27,994"
    assert rendered.title is None


@pytest.mark.parametrize(
    "shown",
    [
        "<details><summary>제목</summary>{}</details>",
        '<div style="visibility:hidden">x<p style="visibility:visible">{}</p></div>',
        '<div hidden="until-found">{}</div>',
        '<div hidden style="display:block">{}</div>',
        '<div style="display:none; display:block">{}</div>',
        '<div style="background:url(display:none.png)">{}</div>',
        '<div class="display:none">{}</div>',
        "<dialog open>{}</dialog>",
        '<div aria-hidden="false">{}</div>',
        '<div aria-hidden="true"><main>{}</main></div>',
        '<body aria-hidden="true"><p>{}</p></body>',
        '<div aria-hidden="true"><div><h1>{}</h1></div></div>',
        '<body style="display:none">{}</body>',
        '<body style="visibility:hidden">{}</body>',
        "<div><span hidden>x</span>{}</div>",
        '<div style="display:none"></div>{}',
        "<textarea>{}</textarea>",
        "<select><option>{}</option></select>",
        "<header>{}</header>",
        "<button>{}</button>",
        "<unknown-element>{}</unknown-element>",
        "<![if !mso]>{}<![endif]>",
        "<s>{}</s>",
    ],
)
def test_what_a_browser_shows_is_text(shown: str) -> None:
    assert "보이는 글" in text_of(shown.replace("{}", "보이는 글"))


@pytest.mark.parametrize(
    "page",
    [
        "<html><body><p>one</p></body></html><p>two</p>three",
        "<html><body><p>one</p></body><p>two</p>three</html>",
        "<html><body><p>one</p></BODY ></HTML\n><p>two</p></body></html>three</html>",
        "<html><body><p>one</p></body></html><!doctype html><html><head><title>x</title></head>"
        "<body><p>two</p>three</body></html>",
        "<p>one</p><html><body><p>two</p>three</body></html>",
        "<p>one</p><head><title>x</title></head><body><p>two</p>three",
        "<p>one</p></div></span></td></p></br>two<p>three",
    ],
)
def test_what_stands_outside_of_the_page_is_text(page: str) -> None:
    assert text_of(page).split() == ["one", "two", "three"]


def test_only_the_pages_own_title_is_its_title() -> None:
    icon = "<svg><title>icon</title></svg>"
    assert render(f"{icon}<p>x", name="a").title is None
    assert render(f"<body>{icon}<p>x<title>late</title>", name="a").title == "late"
    page = render(f"<head><title> 제목\n &amp; more</title></head>{icon}x", name="a")
    assert (page.title, page.text) == ("제목 & more", "x")


def test_a_page_of_frames_says_so() -> None:
    with pytest.raises(DocumentError, match="only frames"):
        text_of("<frameset><frame src=a><noframes>Use another browser.</noframes></frameset>")


# Words


@pytest.mark.parametrize(
    ("page", "text"),
    [
        ("very<wbr>long Kranken&shy;haus a&#8203;b", "verylong Krankenhaus ab"),
        ("미리보기 &zwnj;&nbsp;&zwnj;&nbsp;&zwnj; 본문", "미리보기 본문"),
        ("can\u200ct", "can\u200ct"),
        ("a<b>b</b>c<script>x</script>d", "abcd"),
        ("one<img>two<button>three</button>four", "one two three four"),
        ("one<span style='display:block'>two</span>three", "one\ntwo\nthree"),
        ("<span style='display:inline-block'>one</span><i>two</i>", "one two"),
        ("10<sup>6</sup> 1<sup>st</sup> m<sup>2</sup> H<sub>2</sub>O 11<sub>2</sub>",
         "10^6 1st m2 H2O 11_2"),
        ("<ruby>漢<rp>(</rp><rt>かん</rt><rp>)</rp>字<rt>じ</rt></ruby>を", "漢字(かんじ)を"),
        ("<ruby>北京<rt>Běi</rt><rt>jīng</rt></ruby>", "北京(Běi jīng)"),
        ("<math><mfrac><mn>1</mn><mn>2</mn></mfrac></math>", "1 2"),
        ("a<br>b<br><br>c<br/><br/><br/>d", "a\nb\n\nc\n\nd"),
        ("<pre>\na\n\n\n  b</pre>", "a\n\n\n  b"),
        ("<div style='white-space: pre-wrap'>a\n  b</div>c\nd", "a\n  b\nc d"),
        ("<pre>a\n<span style='white-space:normal'>b\nc</span></pre>", "a\nb c"),
        ("<dl><dt>말<dd>뜻</dl>", "말\n뜻"),
        ("<ul><li></li><li><ul><li>a</ul></ul>b", "- a\n\nb"),
    ],
)  # fmt: skip
def test_what_stands_between_words(page: str, text: str) -> None:
    assert text_of(page) == text


# XHTML

XHTML = (
    '<html xmlns="http://www.w3.org/1999/xhtml"><head><title>t</title></head><body>{}</body></html>'
)


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<p>하나 <![CDATA[둘 < 셋 & 넷]]> 다섯.</p>", "하나 둘 < 셋 & 넷 다섯."),
        ("<div/><p>a</p><script src='x'/><p>b</p>", "a\n\nb"),
        ("<p>caf&eacute;&nbsp;&lt;b&gt; <![CDATA[&nbsp;]]></p>", "café <b> &nbsp;"),
        ("<svg xmlns='urn:x'><title>no</title></svg><p hidden='hidden'>no</p>a", "a"),
        # Not well-formed: read as HTML, without losing the section.
        ("<p>하나 <![CDATA[둘 < 셋 & 넷]]> 다섯.<br></p>", "하나 둘 < 셋 & 넷 다섯."),
        ("<p>a &undeclared; <![CDATA[b]]></p>", "a &undeclared; b"),
    ],
)  # fmt: skip
def test_xhtml(body: str, text: str) -> None:
    for name, head in (("a.xhtml", ""), ("a.html", ""), ("a", '<?xml version="1.0"?>\n')):
        page = render(head + XHTML.format(body), name=name)
        assert page.text == text
        assert page.title == "t"


def test_an_entity_of_its_own_is_never_expanded() -> None:
    entities = '<!ENTITY a "aaaa"><!ENTITY b "&a;&a;&a;"><!ENTITY f SYSTEM "/etc/passwd">'
    declared = f"<!DOCTYPE html [{entities}]>"
    text = text_of(declared + XHTML.format("<p>x &b; &f; y</p>"), "a.xhtml")
    assert "aaaa" not in text.replace('"aaaa"', "")
    assert "root:" not in text
    assert text.split()[-1] == "y"


# Costs


def work(run: Callable[[], Any]) -> int:
    """How many functions are called, those in C too."""
    calls = 0

    def count(_frame: FrameType, event: str, _arg: object) -> None:
        nonlocal calls
        calls += event in ("call", "c_call")

    sys.setprofile(count)
    try:
        run()
    finally:
        sys.setprofile(None)
    return calls


@pytest.mark.parametrize(
    ("head", "unit"),
    [
        ("<table>", "<tr><td>a</td><td></td></tr>"),
        ("<table><tr>", "<td>a"),
        ("<table><tr><td>a<td>" * 400, "<p>x<br>"),
        ("<table><tr><td>" * 400, "x<br>"),
        ("<div aria-hidden=true>" * 400, "<p aria-hidden=true><h1>x</h1>"),
        ("", "<b style='visibility:hidden'>x</b>"),
        ("<ruby>", "<rt>x"),
        ("", "<li>"),
        ("<pre>", "<b>\n</b>"),
        ("", "<svg><title>x</title></svg>y"),
    ],
)
def test_the_work_grows_with_the_page(head: str, unit: str) -> None:
    def cost(units: int) -> int:
        return work(lambda: render(f"y{head}{unit * units}", name="a"))

    fixed, once, twice = cost(0), cost(1000), cost(2000)
    assert twice - fixed < 2.2 * (once - fixed) + 1000


MANY = " ".join(f"a{n}" for n in range(20_000))


@pytest.mark.parametrize(
    "page",
    [
        f"<p {MANY}>text",
        f"<p {MANY.replace(' ', '/')}>text",
        "<p " + " ".join(f"a{n}='>'" for n in range(20_000)) + ">text",
        f'<p b=">" {MANY}>text',
        f"<p b='x\">' {MANY}>text",
        f'<p b=x"y {MANY} z=">text',
        f'<script><i a="</script><p {MANY}>text',
        f"<!-- <i a=' --><p {MANY}>text",
        f"{MANY.replace('a', '<a ')}>text",
    ],
)
def test_an_element_of_very_many_attributes_is_refused_before_it_is_parsed(page: str) -> None:
    """The parser compares each with all before it."""
    with pytest.raises(DocumentError, match="attributes"):
        render(page, name="a.html")


def test_many_attributes_on_many_elements_are_fine() -> None:
    page = "".join(f"<p {' '.join(f'a{n}=1' for n in range(50))}>word{i}</p>" for i in range(2000))
    assert render(page, name="a.html").text.count("word") == 2000
    long = f"<p title='{MANY}'>text"
    assert render(long, name="a.html").text == "text"
