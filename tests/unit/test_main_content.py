"""Whole pages: their main content and nothing around it, and what they say of themselves."""

import pytest

from shared.errors import DocumentError
from shared.kinds.ingest import HtmlOptions, LoadOptions
from tests.unit.documents import read, refusal
from workers.ingest.formats.texts.html import iso_date, render

ENGLISH = [
    "The city council approved a new budget for the library on Monday, after three hours.",
    "Residents had asked for longer opening hours, and for a second reading room upstairs.",
    "The mayor said that the work would begin in spring and end before the summer holidays.",
    "Critics pointed out that the cost has doubled since the plan was presented in 2021.",
]
KOREAN = [
    "시의회는 월요일 세 시간의 토론 끝에 도서관의 새 예산을 승인했다.",
    "주민들은 더 긴 개관 시간과 1층의 두 번째 열람실을 요청해 왔다.",
    "시장은 공사가 봄에 시작되어 여름 방학 전에 끝날 것이라고 밝혔다.",
    "비판하는 사람들은 비용이 2021년 첫 발표 때보다 두 배로 늘었다고 지적했다.",
]
TABLE = "<table><tr><th>Year<th>Cost<tr><td>2021<td>1.2 million<tr><td>2024<td></table>"
ROWS = ["Year | Cost", "2021 | 1.2 million", "2024 |"]
AROUND = "앞뒤"  # in all that is not the main content


def paragraphs(texts: list[str]) -> str:
    return "".join(f"<p>{text}</p>" for text in texts)


def links(*labels: str) -> str:
    items = "".join(f"<li><a href='{n}'>{label} {AROUND}</a>" for n, label in enumerate(labels))
    return f"<ul>{items}</ul>"


def news(texts: list[str]) -> str:
    """Of nameless parts; the banner is found by what it says and where it stands."""
    return f"""<!doctype html><html><head><title>Budget approved - The Herald</title></head><body>
      <div class="t">{links("Home", "News", "Sport", "Weather")}</div>
      <div><div><div class="a"><h1>Budget approved</h1>{paragraphs(texts)}{TABLE}
      <h2>What comes next</h2><ul><li>Tender in April<li>Start in May</ul>
      <dl><dt>Tender<dd>An invitation to offer.</dl><pre>a = 1
  b = 2</pre></div>
      <div class="b"><h3>Most read</h3>{links("Dog bites man", "Ten recipes")}</div></div></div>
      <div><a href=i>Imprint</a> <a href=p>Privacy {AROUND}</a></div>
      <div style="position: fixed"><p>We use cookies {AROUND}.</p><button>Accept</button></div>
      </body></html>"""


def semantic(texts: list[str]) -> str:
    return f"""<html lang="ko-KR"><head><title>Budget approved</title></head><body>
      <header><a href=/>Herald {AROUND}</a><nav>{links("정치", "경제")}</nav></header>
      <main><article><h1>Budget approved</h1>{paragraphs(texts[:2])}
      <aside class="related"><h3>관련 기사</h3>{links("다른 기사", "또 다른 기사")}</aside>
      <aside><p>A note that belongs to the article.</p></aside>
      <div style="display:none">{AROUND}</div><noscript>{AROUND}</noscript>
      {TABLE}{paragraphs(texts[2:])}<h2>What comes next</h2>
      <ul><li>Tender in April<li>Start in May</ul><dl><dt>Tender<dd>An invitation to offer.</dl>
      <pre>a = 1\n  b = 2</pre>
      <div class="share-buttons"><a href=f>페이스북 {AROUND}</a><a href=t>트위터</a></div></article>
      <aside><h2>많이 본 뉴스</h2>{links("첫째 소식", "둘째 소식")}</aside></main>
      <footer>주소: 서울시 {AROUND}</footer>
      <div id="cookie-consent">이 사이트는 쿠키를 사용합니다 {AROUND} <button>동의</button></div>
      </body></html>"""


def blog(texts: list[str]) -> str:
    return f"""<html><head><title>Budget approved | Blog</title></head>
      <body class="single has-sidebar"><div id="page">
      <div id="header"><h1><a href=/>My blog {AROUND}</a></h1><p>Thoughts {AROUND}</p></div>
      <div id="content"><div class="post"><h2 class="post-title">Budget approved</h2>
      <div class="post-content">{paragraphs(texts)}{TABLE}<h2>What comes next</h2>
      <ul><li>Tender in April<li>Start in May</ul><dl><dt>Tender<dd>An invitation to offer.</dl>
      <pre>a = 1\n  b = 2</pre></div></div></div>
      <div id="sidebar"><h3>Archives</h3>{links("March", "April")}
      <p>I write about things that interest me, and other people too {AROUND}.</p></div>
      <div id="footer">Powered by something {AROUND}</div></div></body></html>"""


def board(texts: list[str]) -> str:
    """Laid out in tables, as boards of Korea were."""
    return f"""<html><head><title>자유게시판</title></head><body><table width=900>
      <tr><td colspan=2>{links("홈", "공지")}</td></tr>
      <tr><td><b>메뉴</b>{links("회원가입", "로그인", "사진첩")}</td><td>
      <table><tr><td>제목<td>Budget approved</tr><tr><td>글쓴이<td>관리자</tr></table>
      {"<br><br>".join(texts)}{TABLE}<h2>What comes next</h2>
      <ul><li>Tender in April<li>Start in May</ul><dl><dt>Tender<dd>An invitation to offer.</dl>
      <pre>a = 1\n  b = 2</pre></td></tr></table></body></html>"""


PAGES = [news, semantic, blog, board]


@pytest.mark.parametrize("texts", [ENGLISH, KOREAN], ids=["en", "ko"])
@pytest.mark.parametrize("page", PAGES)
def test_the_article_is_there_and_nothing_around_it(page, texts) -> None:  # type: ignore[no-untyped-def]
    text = read(page(texts * 2).encode(), "page.html").text
    lines = text.split("\n")
    assert AROUND not in text
    assert any("Budget approved" in line for line in lines)
    rest = [*ROWS, "What comes next", "- Tender in April", "- Start in May", "Tender", "  b = 2"]
    for line in [*texts, *rest, "An invitation to offer."]:
        assert line in lines, f"{line!r} is lost"


def test_all_that_is_seen_is_text_where_the_job_says_so() -> None:
    options = LoadOptions(html=HtmlOptions(main_content=False))
    text = read(semantic(ENGLISH).encode(), "page.html", options=options).text
    assert "Herald 앞뒤" in text
    assert "주소: 서울시 앞뒤" in text


@pytest.mark.parametrize(
    ("body", "text"),
    [
        ("<nav>Home</nav><p>We open at nine.</p><footer>© Shop</footer>", "We open at nine."),
        ("<div class='cookie-banner'>We use cookies <button>OK</button></div><p>x", "x"),
        ("<div><p>We use cookies.<button>Accept</button></div><h1>T</h1><p>x", "T\n\nx"),
        ("<div>쿠키를 씁니다. <input type=button value=동의></div><h1>T</h1><p>x", "T\n\nx"),
        ("<main><p>Accept cookies, by <a href=x>us</a>.</main>", "Accept cookies, by us."),
        ("<p>Cookies: accept <a href=x>this recipe</a>.", "Cookies: accept this recipe."),
        ("<div class=menu><h1>Menu</h1><p>Bibimbap 9,000</div>", "Menu\n\nBibimbap 9,000"),
        ("<header><h1>Title</h1><nav>Home</nav></header><p>x", "Title\n\nx"),
        ("<header>Site</header><h1>Title</h1><p>x", "Title\n\nx"),
        ("<footer>Only this.</footer>", "Only this."),
        ("<div class='sidebar'>Only this.</div>", "Only this."),
        ("<div class='no-sidebar'><p>x</div>y", "x\n\ny"),
        ("a<aside>gone</aside>b", "a\n\nb"),
        ("<div role=dialog>Subscribe!</div><p>x", "x"),
        ("<table><tr class=footer><td>Sum<td>3</table>x", "Sum | 3\n\nx"),
        ("<ul class=breadcrumb><li><a href=x>a</a></ul><p>x", "x"),
        ("<div class=tags>dairy, fish</div><p>x", "dairy, fish\n\nx"),
        ("<article>one</article><article>two</article>", "one\n\ntwo"),
        ("<h1>A<a class=headerlink href=#a>¶</a></h1><p>x", "A\n\nx"),
        ("<h2>A<span class=mw-editsection>[<a href=e>edit</a>]</span></h2><p>x", "A\n\nx"),
    ],
)
def test_small_pages(body: str, text: str) -> None:
    assert render(f"<html><body>{body}</body></html>", name="a", main_content=True).text == text


def test_a_fragment_has_nothing_around_it() -> None:
    page = "<div class='sidebar'>one</div><footer>two</footer>"
    assert render(page, name="a", main_content=True).text == "one\n\ntwo"


def test_pages_that_are_no_article_are_kept_whole() -> None:
    index = "".join(f"<li><a href={n}>A page about topic {n}</a>" for n in range(40))
    text = read(f"<html><body><h1>Pages</h1><ul>{index}</ul>".encode(), "a.html").text
    assert text.count("A page about") == 40
    terms = "".join(f"<dt>Term {n}<dd>What the term {n} is, in a sentence." for n in range(40))
    text = read(f"<html><body><h1>Terms</h1><dl>{terms}</dl>".encode(), "a.html").text
    assert text.count("What the term") == 40
    toc = "".join(f"<dt><a href={n}>{n}. Part {n}</a>" for n in range(9))
    page = f"<html><body><div class=toc><dl>{toc}</dl></div><div>{paragraphs(ENGLISH)}</div>"
    text = read(page.encode(), "a.html").text
    assert text.count("Part ") == 9
    references = "".join(f"<li><a href={n}>Author {n}: a title.</a>" for n in range(9))
    page = (
        f"<html><body>{paragraphs(ENGLISH * 2)}<div><h2>References</h2><ol>{references}</ol></div>"
    )
    assert read(page.encode(), "a.html").text.count("Author ") == 9


def test_the_heading_of_an_article_is_kept_where_the_page_has_no_title() -> None:
    text = paragraphs(ENGLISH * 2)
    around = f"<div><h1><a href=/>A site {AROUND}</a></h1></div>"
    for body in (
        f"{around}<main><article><header><h1>Budget</h1></header><div>{text}</div></article></main>",
        f"{around}<div><h2>Budget</h2><div class=contents>{text}</div></div>",
    ):
        page = f"<html><body>{body}<div>{links('One', 'Two')}</div></body></html>"
        loaded = read(page.encode(), "a.html")
        assert loaded.text.startswith("Budget\n\nThe city council")
        assert AROUND not in loaded.text


# Classes, as in LangChain's tutorial


def test_elements_of_certain_classes_are_all_of_the_text() -> None:
    page = f"""<html><body><nav class="top">no</nav><div class="main post"><header
      class="post-header"><h1 class="post-title">Title</h1><span class="post-meta">by me</span>
      </header><div class="toc">no</div><div class="wide post-content"><p>One.</p>{TABLE}
      <p hidden>no</p><div class="post-content">Two.</div></div></div></body></html>"""
    options = LoadOptions(
        html=HtmlOptions(css_classes=["post-title", "post-header", "post-content"])
    )
    text = read(page.encode(), "a.html", options=options).text
    assert text == "Title\n\nby me\n\nOne.\n\n" + "\n".join(ROWS) + "\n\nTwo."


@pytest.mark.parametrize("selected", ["a", "b", "a b"])
def test_a_class_is_one_of_the_attribute_or_all_of_it(selected: str) -> None:
    options = LoadOptions(html=HtmlOptions(css_classes=[selected]))
    assert read(b"<p class='a b'>x</p><p class='c'>y</p>", "a.html", options=options).text == "x"


def test_a_class_that_no_element_has_is_refused() -> None:
    options = LoadOptions(html=HtmlOptions(css_classes=["post"]))
    message = refusal(b"<p class='entry main'>x", "a.html", options=options)
    assert "no element has the class 'post' (html.css_classes)" in message
    assert "'entry', 'main'" in message


# What pages say of themselves


@pytest.mark.parametrize(
    ("written", "iso"),
    [
        ("2024-03-01", "2024-03-01"),
        ("2024-03-01T10:00:00+09:00", "2024-03-01T10:00:00+09:00"),
        ("2024-03-01 10:00", "2024-03-01T10:00"),
        ("2024/03/01", "2024-03-01"),
        ("2024/3/1 10:00", "2024-03-01"),
        ("2024.03.01", "2024-03-01"),
        ("2024. 3. 1. 오전 9:00", "2024-03-01"),
        ("2024년 3월 1일", "2024-03-01"),
        ("2024年3月1日", "2024-03-01"),
        ("20240301", "2024-03-01"),
        ("20240301T100000Z", "2024-03-01"),
        ("Fri, 01 Mar 2024 10:00:00 GMT", "2024-03-01"),
        ("1 March 2024", "2024-03-01"),
        ("March 1, 2024", "2024-03-01"),
        ("Friday, March 1st, 2024", "2024-03-01"),
        ("Sept. 1, 2024", "2024-09-01"),
        ("2024-02-30", None),
        ("2024/13/01", None),
        ("2024", None),
        ("2024-03", None),
        ("202403011", None),
        ("01/03/2024", None),
        ("Foo 1, 2024", None),
        ("yesterday", None),
        ("", None),
    ],
)
def test_dates_as_pages_write_them(written: str, iso: str | None) -> None:
    assert iso_date(written) == iso


@pytest.mark.parametrize(
    ("markup", "key", "value"),
    [
        ("<html lang=ko><p>x", "language", "ko"),
        ("<html xml:lang='ja'><p>x", "language", "ja"),
        ("<html lang='not a language'><p>x", "language", None),
        ("<meta property='og:locale' content='ko_KR'><p>x", "language", "ko-KR"),
        ("<meta http-equiv='Content-Language' content='de'><p>x", "language", "de"),
        ("<link rel='canonical' href='https://a.example/x'><p>x", "url", "https://a.example/x"),
        ("<meta property='og:url' content='http://a.example/y'><p>x", "url", "http://a.example/y"),
        ("<link rel=canonical href='/x'><p>x", "url", None),
        ("<link rel=canonical href='javascript:x'><p>x", "url", None),
        ("<meta name=author content='Mina Kim'><p>x", "author", "Mina Kim"),
        ("<meta property='og:title' content='T'><p>x", "title", "T"),
        ("<title>A</title><meta property='og:title' content='T'><p>x", "title", "A"),
        (
            "<meta property='article:published_time' content='2024-03-01T10:00:00+09:00'><p>x",
            "date",
            "2024-03-01T10:00:00+09:00",
        ),
        ("<meta name=date content='2024-03-01'><p>x", "date", "2024-03-01"),
        ("<meta name=date content='2024-13-01'><p>x", "date", None),
        ("<article><time datetime='2024-03-02'>yesterday</time>x", "date", "2024-03-02"),
        (
            '<script type=\'application/ld+json\'>{"datePublished": "2024-03-03"}</script><p>x',
            "date",
            "2024-03-03",
        ),
    ],
)
def test_what_a_page_says_of_itself_is_metadata(markup: str, key: str, value: str | None) -> None:
    assert read(markup.encode(), "a.html").metadata.get(key) == value


def test_a_page_that_only_frames_fill_is_still_refused() -> None:
    with pytest.raises(DocumentError, match="only frames"):
        render("<html><frameset><frame src=a></frameset></html>", name="a", main_content=True)
