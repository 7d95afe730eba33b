# ruff: noqa: E501 (pages stand as sites write them)
"""Pages in the manner of real sites, and of each the lines that a reader would call its text.

What stands around that text, and what no browser shows, has the word OUT in it.
"""

from dataclasses import dataclass
from typing import Final

OUT: Final = "OUT"
P1: Final = "The city council approved a new budget for the library on Monday, after three hours."
P2: Final = "Residents had asked for longer opening hours, and for a second reading room upstairs."
P3: Final = "The mayor said that the work would begin in spring and end before the summer holidays."
P4: Final = "Critics pointed out that the cost has doubled since the plan was presented in 2021."
K1: Final = "시의회는 월요일 세 시간의 토론 끝에 도서관의 새 예산을 승인했다."
K2: Final = "주민들은 더 긴 개관 시간과 1층의 두 번째 열람실을 요청해 왔다."
K3: Final = "시장은 공사가 봄에 시작되어 여름 방학 전에 끝날 것이라고 밝혔다."
K4: Final = "비판하는 사람들은 비용이 2021년 첫 발표 때보다 두 배로 늘었다고 지적했다."


def paragraphs(*texts: str, tag: str = "p") -> str:
    return "".join(f"<{tag}>{text}</{tag}>" for text in texts)


def links(*labels: str, tag: str = "li") -> str:
    return "".join(
        f'<{tag}><a href="/{n}">{label} {OUT}</a></{tag}>' for n, label in enumerate(labels)
    )


ENGLISH: Final = paragraphs(P1, P2, P3, P4)
KOREAN: Final = paragraphs(K1, K2, K3, K4)
EN_LINES: Final = (P1, P2, P3, P4)
KO_LINES: Final = (K1, K2, K3, K4)


@dataclass(frozen=True, kw_only=True)
class SitePage:
    name: str
    html: str
    lines: tuple[str, ...]
    gone: tuple[str, ...] = ()
    """More that is not its text."""


def _page(name: str, html: str, *lines: str, gone: tuple[str, ...] = ()) -> SitePage:
    return SitePage(name=name, html=html, lines=lines, gone=gone)


PAGES = [
    # News
    _page(
        "news with comments",
        f"""<!doctype html><html lang="en"><head><title>Budget approved | The Herald</title></head>
        <body><a class="skip-link" href="#main">Skip to content {OUT}</a>
        <header class="site-header"><a href="/">The Herald {OUT}</a>
        <nav><ul>{links("World", "Sport")}</ul></nav></header>
        <main id="main"><article><header><p class="kicker">Local</p><h1>Budget approved</h1>
        <p class="byline">By <a rel="author" href="/mina">Mina Kim</a></p>
        <time datetime="2026-03-01">1 March 2026</time></header>
        <figure><img src="a.jpg" alt="The library"><figcaption>The library in 2020. Photo: A. Lee
        </figcaption></figure>{paragraphs(P1, P2)}
        <div class="ad-slot" aria-label="Advertisement"><p>Advertisement {OUT}</p></div>
        {paragraphs(P3, P4)}
        <div class="newsletter-signup"><h3>Our newsletter {OUT}</h3><input type="email">
        <button>Subscribe</button></div></article>
        <section id="comments" class="comments"><h2>Comments (2) {OUT}</h2>
        <div class="comment"><b>joe</b><p>I have waited for this for a long time, thank you. {OUT}</p>
        <a href="#r">Reply</a></div><div class="comment"><b>ann</b><p>And who is to pay for it? {OUT}
        </p><a href="#r">Reply</a></div></section></main>
        <aside><h2>Most read {OUT}</h2><ol>{links("Dog bites man", "Ten recipes")}</ol></aside>
        <footer><p>© The Herald {OUT}</p></footer></body></html>""",
        "Budget approved",
        "The library in 2020. Photo: A. Lee",
        *EN_LINES,
    ),
    _page(
        "news of Korea",
        f"""<!doctype html><html lang="ko"><head><title>도서관 예산 승인 - 한빛일보</title></head><body>
        <div id="header"><div class="gnb"><ul>{links("정치", "경제", "사회")}</ul></div></div>
        <div id="container"><div class="article_head"><h1 class="headline">도서관 예산 승인</h1>
        <div class="info"><span>입력 2026.03.01 09:00</span> <span>김민아 기자</span></div>
        <div class="sns_share"><a href="#f">페이스북 {OUT}</a><a href="#t">트위터 {OUT}</a></div></div>
        <div id="articleBodyContents" itemprop="articleBody">{K1}<br><br>{K2}<br><br>
        <span class="end_photo_org"><img src="a.jpg"><em class="img_desc">2020년의 도서관</em></span>
        <br><br>{K3}<br><br>{K4}</div>
        <div class="reporter_area"><p>김민아 기자 mina@example.com</p></div>
        <div class="relation_news related"><h3>관련기사 {OUT}</h3><ul>{links("다른 예산", "새 열람실")}</ul>
        </div><div id="reply" class="reply_area"><h3>댓글 2 {OUT}</h3><ul><li>오래 기다렸습니다. {OUT}</li>
        <li>누가 돈을 냅니까? {OUT}</li></ul></div></div>
        <div class="ranking_news"><h3>많이 본 뉴스 {OUT}</h3><ol>{links("첫째", "둘째", "셋째")}</ol></div>
        <div id="footer">저작권자 © 한빛일보 {OUT}</div></body></html>""",
        "도서관 예산 승인",
        "2020년의 도서관",
        *KO_LINES,
    ),
    _page(
        "AMP",
        f"""<!doctype html><html amp lang="en"><head><title>Budget approved</title>
        <style amp-boilerplate>body{{-webkit-animation:none}}</style></head><body>
        <amp-sidebar id="s" layout="nodisplay"><ul>{links("Home", "World")}</ul></amp-sidebar>
        <header class="headerbar"><div role="button">☰</div><a href="/">Herald {OUT}</a></header>
        <amp-consent id="c" layout="nodisplay"><div>We use cookies {OUT}<button>Accept</button></div>
        </amp-consent><article class="amp-wp-article"><h1>Budget approved</h1>
        <amp-img src="a.jpg" alt="x"><noscript>{OUT}</noscript></amp-img>{ENGLISH}
        <amp-ad type="x"><div placeholder>Ad {OUT}</div></amp-ad></article>
        <amp-social-share type="x"></amp-social-share>
        <footer>© Herald {OUT}</footer></body></html>""",
        "Budget approved",
        *EN_LINES,
    ),
    # Portals of Korea
    _page(
        "Naver blog",
        f"""<html><head><title>도서관 이야기 : 네이버 블로그</title></head><body>
        <div id="blog-menu"><ul>{links("프롤로그", "블로그")}</ul></div>
        <div id="postListBody"><div class="se-viewer"><div class="se-component se-documentTitle">
        <div class="se-module se-title-text"><p class="se-text-paragraph"><span>도서관 이야기</span></p>
        </div></div><div class="se-main-container"><div class="se-component se-text">
        <div class="se-module se-module-text">
        <p class="se-text-paragraph"><span class="se-fs-">{K1}</span></p>
        <p class="se-text-paragraph"><span>\u200b</span></p>
        <p class="se-text-paragraph"><span>{K2}</span></p></div></div>
        <div class="se-component se-image"><img src="a.jpg"><p class="se-image-caption">열람실 사진</p>
        </div><div class="se-component se-table"><table><tbody><tr><td><p><span>요일</span></p></td>
        <td><p><span>시간</span></p></td></tr><tr><td><p><span>월</span></p></td>
        <td><p><span>9시</span></p></td></tr></tbody></table></div>
        <div class="se-component se-text"><p class="se-text-paragraph"><span>{K3}</span></p>
        <p class="se-text-paragraph"><span>{K4}</span></p></div></div></div>
        <div class="post_footer_contents"><div class="share_area"><a href="#s">공유하기 {OUT}</a></div>
        </div></div><div id="sidebar" class="blog-sidebar"><h3>카테고리 {OUT}</h3><ul>{links("일상", "책")}
        </ul></div></body></html>""",
        "도서관 이야기",
        "열람실 사진",
        "요일 | 시간",
        "월 | 9시",
        *KO_LINES,
    ),
    _page(
        "Tistory",
        f"""<html lang="ko"><head><title>도서관 이야기</title></head><body id="tt-body-page">
        <div id="wrap"><header id="header"><h1 class="logo"><a href="/">나의 블로그 {OUT}</a></h1>
        <nav id="gnb"><ul>{links("홈", "태그", "방명록")}</ul></nav></header>
        <section class="container"><article id="content"><div class="inner"><div class="hgroup">
        <div class="category">일상</div><h1>도서관 이야기</h1>
        <div class="post-meta"><span class="author">민아</span> <span class="date">2026. 3. 1.</span></div>
        </div><div class="entry-content" id="article-view"><div class="tt_article_useless_p_margin
        contents_style">{KOREAN}<ul><li>월요일</li><li>화요일</li></ul></div>
        <div class="container_postbtn"><button>공감 {OUT}</button>
        <div class="postbtn_sns"><a href="#f">페이스북 {OUT}</a></div></div></div>
        <div class="related-articles"><h2>관련글 {OUT}</h2><ul>{links("책 이야기", "카페 이야기")}</ul></div>
        <div class="comments"><h2>댓글 {OUT}</h2><form><textarea placeholder="댓글"></textarea>
        <button>등록</button></form></div></div></article>
        <aside id="aside" class="sidebar"><h3>최근글 {OUT}</h3><ul>{links("하나", "둘")}</ul></aside>
        </section><footer id="footer"><p>DESIGN BY TISTORY {OUT}</p></footer></div></body></html>""",
        "도서관 이야기",
        "- 월요일",
        "- 화요일",
        *KO_LINES,
    ),
    _page(
        "board of a community",
        f"""<html><head><title>자유게시판 - 우리 동네</title></head><body>
        <div id="hd"><div id="gnb"><ul>{links("공지", "자유게시판")}</ul></div></div>
        <div id="container"><article id="bo_v"><header><h2 id="bo_v_title">
        <span class="bo_v_cate">질문</span> <span class="bo_v_tit">도서관은 언제 여나요?</span></h2></header>
        <section id="bo_v_info"><h2>페이지 정보</h2><strong>민아</strong> <strong>댓글 2건</strong>
        </section><section id="bo_v_atc"><h2 id="bo_v_atc_title">본문</h2>
        <div id="bo_v_con">{KOREAN}</div></section></article></div>
        <div id="ft"><p>Copyright © 우리 동네 {OUT}</p></div></body></html>""",
        *KO_LINES,
    ),
    # Documentation
    _page(
        "Sphinx",
        f"""<!DOCTYPE html><html lang="en"><head><title>Budgets — Library 1.0 documentation</title>
        </head><body class="wy-body-for-nav"><nav data-toggle="wy-nav-shift" class="wy-nav-side">
        <ul>{links("Install", "API")}</ul></nav><section class="wy-nav-content-wrap">
        <div role="navigation" aria-label="Page navigation"><ul class="wy-breadcrumbs">{links("Docs")}
        </ul></div><div role="main" class="document"><div itemprop="articleBody">
        <section id="budgets"><h1>Budgets<a class="headerlink" href="#budgets"
        title="Link to this heading">¶</a></h1>{paragraphs(P1, P2)}
        <dl class="py function"><dt class="sig sig-object py" id="b"><span
        class="sig-prename descclassname"><span class="pre">library.</span></span><span
        class="sig-name descname"><span class="pre">budget</span></span><span
        class="sig-paren">(</span><em class="sig-param"><span class="n"><span class="pre">year</span>
        </span></em><span class="sig-paren">)</span><a class="headerlink" href="#b">¶</a></dt>
        <dd><p>The budget of a year.</p></dd></dl>
        <div class="highlight-python notranslate"><div class="highlight"><pre><span></span><span
        class="kn">import</span> <span class="nn">library</span>
<span class="n">library</span><span class="o">.</span><span class="n">budget</span></pre></div></div>
        <div class="admonition note"><p class="admonition-title">Note</p><p>{P3}</p></div><p>{P4}</p>
        </section></div></div><footer><div class="rst-footer-buttons" role="navigation"><a
        href="p">Previous {OUT}</a></div><p>Built with Sphinx {OUT}.</p></footer></section></body>
        </html>""",
        "Budgets",
        "The budget of a year.",
        "import library",
        "library.budget",
        "Note",
        *EN_LINES,
        gone=("¶",),
    ),
    _page(
        "MkDocs Material",
        f"""<!doctype html><html lang="en" class="no-js"><head><title>Budgets - Library</title></head>
        <body><header class="md-header"><nav class="md-header__inner"><a href="/">Library {OUT}</a>
        <div class="md-search" role="dialog"><input placeholder="Search"> {OUT}</div></nav></header>
        <div class="md-container"><main class="md-main"><div class="md-main__inner md-grid">
        <div class="md-sidebar md-sidebar--primary"><nav class="md-nav"><ul>{links("Home", "API")}</ul>
        </nav></div><div class="md-sidebar md-sidebar--secondary"><nav class="md-nav"
        aria-label="Table of contents"><ul>{links("Rules")}</ul></nav></div>
        <div class="md-content"><article class="md-content__inner md-typeset">
        <a href="edit" title="Edit this page" class="md-content__button md-icon"></a>
        <h1 id="budgets">Budgets<a class="headerlink" href="#budgets" title="Permanent link">&para;</a>
        </h1>{paragraphs(P1, P2)}<h2 id="rules">Rules<a class="headerlink" href="#rules">&para;</a></h2>
        <div class="tabbed-set"><input checked type="radio"><div class="tabbed-labels"><label>Linux
        </label><label>Windows</label></div><div class="tabbed-content"><div class="tabbed-block">
        <p>{P3}</p></div><div class="tabbed-block"><p>{P4}</p></div></div></div>
        <details class="note"><summary>More</summary><p>What is folded up.</p></details></article>
        </div></div></main><footer class="md-footer"><p>Made with Material {OUT}</p></footer></div>
        </body></html>""",
        "Budgets",
        "Rules",
        "More",
        "What is folded up.",
        *EN_LINES,
        gone=("¶",),
    ),
    _page(
        "Docusaurus",
        f"""<!doctype html><html lang="en"><head><title>Budgets | Library</title></head>
        <body class="navigation-with-keyboard"><div id="__docusaurus"><div role="region"
        aria-label="Skip to main content"><a class="skipToContent_fXgn" href="#c">Skip {OUT}</a></div>
        <nav class="navbar navbar--fixed-top"><div class="navbar__inner"><a href="/">Library {OUT}</a>
        </div></nav><div class="main-wrapper"><div class="docsWrapper_hBAB"><aside
        class="theme-doc-sidebar-container"><nav><ul>{links("Intro", "API")}</ul></nav></aside>
        <main class="docMainContainer_TBSr"><div class="container"><div class="row"><div class="col">
        <div class="docItemContainer_Djhp"><article><nav class="theme-doc-breadcrumbs"><ul>
        {links("Docs")}</ul></nav><div class="theme-doc-markdown markdown"><header><h1>Budgets</h1>
        </header>{paragraphs(P1, P2)}<h2 class="anchor" id="rules">Rules<a href="#rules"
        class="hash-link" aria-label="Direct link to Rules" title="Direct link to Rules">​</a></h2>
        <div class="theme-admonition"><div class="admonitionHeading_Gvgb"><span><svg
        viewBox="0 0 14 16"><title>x {OUT}</title></svg></span>tip</div><p>{P3}</p></div><p>{P4}</p>
        </div><footer class="theme-doc-footer"><a href="e">Edit this page {OUT}</a></footer></article>
        <nav class="pagination-nav"><a href="n"><div>Next {OUT}</div></a></nav></div></div>
        <div class="col col--3"><div class="tableOfContents_bqdL thin-scrollbar"><ul
        class="table-of-contents"><li><a href="#rules">Rules {OUT}</a></li></ul></div></div></div>
        </div></main></div></div><footer class="footer"><p>Built with Docusaurus {OUT}</p></footer>
        </div></body></html>""",
        "Budgets",
        "Rules",
        "tip",
        *EN_LINES,
    ),
    _page(
        "Javadoc",
        f"""<!DOCTYPE HTML><html lang="en"><head><title>Budget (Library 1.0)</title></head>
        <body class="class-declaration-page"><div class="flex-box"><header role="banner">
        <nav role="navigation"><ul class="nav-bar-list">{links("Overview", "Package")}</ul></nav>
        </header><main role="main"><div class="header"><div class="sub-title"><span>Package</span>
        library</div><h1 title="Class Budget" class="title">Class Budget</h1></div>
        <section class="class-description"><div class="type-signature">public class <span
        class="element-name">Budget</span></div><div class="block">{P1} {P2}</div></section>
        <section class="method-summary"><h2>Method Summary</h2><div class="summary-table three-column">
        <div class="table-header col-first">Type</div><div class="table-header">Method</div>
        <div class="col-first"><code>int</code></div><div><code>total</code>()</div></div></section>
        <p>{P3}</p><p>{P4}</p></main><footer role="contentinfo"><p>© {OUT}</p></footer></div></body>
        </html>""",
        "Class Budget",
        f"{P1} {P2}",
        P3,
        P4,
        "Method Summary",
    ),
    _page(
        "GitBook-like documentation of nameless parts",
        f"""<!doctype html><html><head><title>Budgets · Library</title></head><body><div id="root">
        <div class="css-1"><div class="css-2"><a class="css-3" href="/">Library {OUT}</a></div>
        <div class="css-4">{links("Intro", "Install", "API", "FAQ", tag="div")}</div></div>
        <div class="css-5"><div class="css-6"><h1 class="css-7">Budgets</h1>
        <div class="css-8">{ENGLISH}</div></div><div class="css-9">{links("Next page", tag="div")}
        </div></div></div></body></html>""",
        "Budgets",
        *EN_LINES,
    ),
    # Wikis
    _page(
        "MediaWiki",
        f"""<!DOCTYPE html><html lang="en"><head><title>Library - Wikipedia</title></head>
        <body class="mediawiki ltr"><header class="vector-header"><nav>{links("Main page", tag="p")}
        </nav></header><div class="mw-page-container"><main id="content" class="mw-body">
        <header class="mw-body-header"><h1 id="firstHeading">Library</h1>
        <div id="p-lang-btn" class="vector-dropdown"><ul>{links("한국어", "Deutsch")}</ul></div></header>
        <div id="bodyContent"><div id="siteSub" class="noprint">From Wikipedia {OUT}</div>
        <div class="mw-content-ltr mw-parser-output"><div class="shortdescription nomobile noexcerpt
        noprint searchaux" style="display:none">House of books {OUT}</div>
        <div role="note" class="hatnote navigation-not-searchable">For other uses, see <a
        href="d">Library (disambiguation)</a>.</div>
        <table class="infobox vcard"><tbody><tr><th colspan="2" class="infobox-above">Library</th></tr>
        <tr><th scope="row">Opened</th><td>1902</td></tr><tr><th scope="row">Books</th><td>120,000</td>
        </tr></tbody></table><p>{P1}<sup id="r1" class="reference"><a href="#n1"><span
        class="cite-bracket">[</span>1<span class="cite-bracket">]</span></a></sup></p><p>{P2}</p>
        <div id="toc" class="toc" role="navigation"><h2>Contents {OUT}</h2><ul>{links("History")}</ul>
        </div><div class="mw-heading mw-heading2"><h2 id="History">History</h2><span
        class="mw-editsection"><span>[</span><a href="e">edit {OUT}</a><span>]</span></span></div>
        <p>{P3}</p><p>{P4}</p><div class="mw-heading"><h2 id="References">References</h2></div>
        <ol class="references"><li id="n1"><span class="mw-cite-backlink"><b><a href="#r1">^</a></b>
        </span> <span class="reference-text"><cite>Lee, A. (1990). A history.</cite></span></li></ol>
        <div role="navigation" class="navbox"><table><tr><th>Libraries {OUT}</th><td><ul>
        {links("Seoul", "Busan")}</ul></td></tr></table></div></div>
        <div id="catlinks" class="catlinks"><ul>{links("Libraries")}</ul></div></div></main>
        <footer id="footer" class="mw-footer"><ul><li>Text is available {OUT}</li></ul></footer></div>
        </body></html>""",
        "Library",
        "Opened | 1902",
        "Books | 120,000",
        f"{P1}[1]",
        P2,
        "History",
        P3,
        P4,
        "References",
        "- ^ Lee, A. (1990). A history.",
    ),
    _page(
        "namu-like wiki",
        f"""<!doctype html><html lang="ko"><head><title>도서관 - 나무</title></head><body><div id="app">
        <div class="topbar"><a href="/">나무 {OUT}</a></div><div><h1><a href="/w/x"><span>도서관</span></a>
        </h1><div><p>최근 수정 시각: 2026-03-01</p><div><h2><a id="s-1" href="#toc">1.</a> <span>개요</span>
        </h2><div>{K1}<br>{K2}</div><h2><a id="s-2" href="#toc">2.</a> <span>역사</span></h2>
        <div>{K3}<br>{K4}</div><table><tr><td colspan="2"><b>도서관</b></td></tr><tr><td>개관</td>
        <td>1902년</td></tr></table></div></div></div><aside><h5>최근 변경 {OUT}</h5>{links("책", tag="p")}
        </aside><footer>콘텐츠 이용 {OUT}</footer></div></body></html>""",
        *KO_LINES,
        "개관 | 1902년",
    ),
    # Forums, questions and answers
    _page(
        "forum",
        f"""<!doctype html><html><head><title>When does it open? - Forum</title></head><body>
        <div id="wrap"><div id="page-header"><div class="navbar" role="navigation"><ul>
        {links("Board index", "FAQ")}</ul></div></div><div id="page-body"><h2
        class="topic-title"><a href="t">When does it open?</a></h2>
        <div class="action-bar bar-top"><a href="r" class="button">Reply {OUT}</a></div>
        <div id="p1" class="post has-profile bg2"><div class="inner"><dl class="postprofile"><dt>joe
        </dt><dd>Posts: 12</dd></dl><div class="postbody"><h3>When does it open?</h3><p
        class="author">by joe » Mon</p><div class="content">{P1} {P2}</div></div></div></div>
        <div id="p2" class="post has-profile bg1"><div class="inner"><div class="postbody"><p
        class="author">by ann » Tue</p><div class="content"><blockquote><div><cite>joe wrote:</cite>
        {P2}</div></blockquote>{P3}</div></div></div></div>
        <div id="p3" class="post bg2"><div class="postbody"><div class="content">{P4}</div></div></div>
        <div class="action-bar bar-bottom"><a href="r">Reply {OUT}</a></div></div>
        <div id="page-footer"><div class="copyright">Powered by phpBB {OUT}</div></div></div></body>
        </html>""",
        "When does it open?",
        f"{P1} {P2}",
        f"joe wrote: {P2}",
        P3,
        P4,
    ),
    _page(
        "question and answers",
        f"""<!DOCTYPE html><html><head><title>python - How to read a budget? - Stack</title></head>
        <body><header class="s-topbar"><a href="/">Stack {OUT}</a></header><div class="container">
        <div id="left-sidebar"><ul>{links("Questions", "Tags")}</ul></div><div id="content">
        <div id="question-header"><h1><a href="q">How to read a budget?</a></h1></div>
        <div id="mainbar"><div class="question"><div class="votecell">5</div><div class="s-prose
        js-post-body"><p>{P1}</p><pre class="lang-py"><code>budget = read()
print(budget)
</code></pre></div></div><div id="answers"><h2>1 Answer</h2><div class="answer accepted-answer">
        <div class="s-prose js-post-body"><p>{P2}</p><p>{P3} {P4}</p></div></div></div></div>
        <div id="sidebar"><h4>Hot Network Questions {OUT}</h4><ul>{links("Why?")}</ul></div></div></div>
        <footer id="footer">{OUT}</footer></body></html>""",
        "How to read a budget?",
        P1,
        "budget = read()",
        "print(budget)",
        "1 Answer",
        P2,
        f"{P3} {P4}",
    ),
    _page(
        "README of GitHub",
        f"""<!DOCTYPE html><html lang="en"><head><title>GitHub - mina/library: budgets</title></head>
        <body><div class="position-relative header-wrapper"><header class="HeaderMktg" role="banner">
        <nav>{links("Product", tag="p")}</nav></header></div><div class="application-main"><main>
        <div id="repository-container-header"><nav aria-label="Repository">{links("Code", tag="p")}
        </nav></div><div class="Layout"><div class="Layout-main"><article class="markdown-body
        entry-content container-lg" itemprop="text"><div class="markdown-heading"><h1
        class="heading-element">library</h1><a id="a" class="anchor" aria-label="Permalink: library"
        href="#library"><svg class="octicon octicon-link"><path d="m7"></path></svg></a></div>
        <p><a href="b"><img alt="build" src="b.svg"></a></p>{paragraphs(P1, P2)}
        <div class="highlight highlight-source-shell notranslate position-relative"><pre>pip install
library</pre><div class="zeroclipboard-container"><clipboard-copy aria-label="Copy" value="x"><svg
        ></svg></clipboard-copy></div></div><table><thead><tr><th>name</th><th>what</th></tr></thead>
        <tbody><tr><td>a</td><td></td></tr></tbody></table><ul class="contains-task-list"><li
        class="task-list-item"><input type="checkbox" checked> Done</li></ul>
        {paragraphs(P3, P4)}</article></div><div class="Layout-sidebar"><h2>About {OUT}</h2>
        <p>budgets {OUT}</p></div></div></main></div><footer class="footer" role="contentinfo">© {OUT}
        </footer></body></html>""",
        "library",
        *EN_LINES,
        "name | what",
        "a |",
        "- Done",
    ),
    # Shops
    _page(
        "product of a shop",
        f"""<!doctype html><html><head><title>Green Tea 100 g | Tea House</title></head><body>
        <div class="announcement-bar">Free shipping {OUT} <a href="s">more</a></div>
        <header class="header"><nav>{links("Tea", "Cups", tag="p")}</nav></header>
        <main id="MainContent"><section class="product"><h1>Green Tea 100 g</h1><div class="price">
        <s>12,000</s> <span>9,900 won</span></div><form><label>Size</label><select><option>100 g
        </option><option>200 g</option></select><button>Add to cart</button></form>
        <div class="product__description rte">{paragraphs(P1, P2)}<table><tr><th>Origin</th><td>Boseong
        </td></tr><tr><th>Harvest</th><td>April</td></tr></table>{paragraphs(P3, P4)}</div></section>
        <section class="product-recommendations"><h2>You may also like {OUT}</h2><ul>
        {links("Black Tea", "White Tea")}</ul></section></main><footer class="footer">© {OUT}</footer>
        <div id="CookieBanner" role="dialog">Cookies {OUT}</div></body></html>""",
        "Green Tea 100 g",
        "12,000 9,900 won",
        "Origin | Boseong",
        "Harvest | April",
        *EN_LINES,
    ),
    # Notices of administrations
    _page(
        "notice in nested tables",
        f"""<html><head><title>공고 - 한빛시</title></head><body><table width="900"><tr><td colspan="2">
        <table><tr><td><a href="/">한빛시청 {OUT}</a></td><td><a href="/m">민원 {OUT}</a></td>
        <td><a href="/n">소식 {OUT}</a></td></tr></table></td></tr><tr><td width="180"><table><tr><td><a
        href="1">공고 {OUT}</a></td></tr><tr><td><a href="2">채용 {OUT}</a></td></tr></table></td><td>
        <table class="view"><tr><th>제목</th><td colspan="3">도서관 예산 공고</td></tr><tr><th>담당</th>
        <td>문화과</td><th>전화</th><td>02-123-4567</td></tr><tr><td colspan="4"><p>{K1}</p><p>{K2}</p>
        <table border="1"><tr><th rowspan="2">구분</th><th colspan="2">예산</th></tr><tr><th>2025</th>
        <th>2026</th></tr><tr><td>도서</td><td>10</td><td>20</td></tr><tr><td>인건비</td><td></td>
        <td>5</td></tr></table><p>{K3}</p><p>{K4}</p></td></tr></table></td></tr></table>
        </body></html>""",
        "제목 | 도서관 예산 공고",
        "담당 | 문화과 | 전화 | 02-123-4567",
        "도서 | 10 | 20",
        "인건비 |  | 5",
        *KO_LINES,
    ),
    _page(
        "notice with attachments",
        f"""<!doctype html><html lang="ko"><head><title>도서관 예산 공고 | 한빛시</title></head><body>
        <div id="skipNavigation" class="skip_nav"><a href="#c">본문 바로가기 {OUT}</a></div>
        <div id="lnb" class="lnb"><ul>{links("공지사항", "보도자료")}</ul></div>
        <div id="contents"><div class="location"><a href="/">홈 {OUT}</a> &gt; <a href="/n">소식 {OUT}</a>
        </div><div class="board_view"><h3 class="title">도서관 예산 공고</h3><dl><dt>작성일</dt>
        <dd>2026-03-01</dd><dt>첨부</dt><dd><a href="a.hwp">공고문.hwp</a></dd></dl>
        <div class="board_cont">{KOREAN}</div></div><div class="satisfaction"><form><p>이 페이지의 내용에
        만족하십니까? {OUT}</p><label><input type="radio" name="s">매우만족</label><button>평가하기</button>
        </form></div></div><div id="footer"><address>한빛시 중앙로 1 {OUT}</address></div></body></html>""",
        "도서관 예산 공고",
        "작성일",
        "2026-03-01",
        "공고문.hwp",
        *KO_LINES,
    ),
]

_BANNERS: Final = {
    "OneTrust": f"""<div id="onetrust-consent-sdk"><div class="onetrust-pc-dark-filter"></div>
        <div id="onetrust-banner-sdk" role="region" aria-label="Cookie banner"><h2>Your privacy {OUT}
        </h2><p>We and our 800 partners store information. {OUT}</p><button>Accept All</button></div>
        </div>""",
    "Cookiebot": f"""<div id="CybotCookiebotDialog" role="dialog"><h2>This website uses cookies {OUT}
        </h2><p>We use cookies to personalise content and ads. {OUT}</p><table><tr><th>Name</th>
        <td>Purpose {OUT}</td></tr></table></div>""",
    "Didomi": f"""<div id="didomi-host" class="didomi-host"><div class="didomi-popup-container"><p>
        With your agreement, we and our partners store data. {OUT}</p><button>Agree</button></div></div>
        """,
    "Quantcast": f"""<div class="qc-cmp2-container" id="qc-cmp2-container"><div><p>We value your
        privacy {OUT}</p><button>AGREE</button></div></div>""",
    "Usercentrics": f"""<div id="usercentrics-root"><p>Privacy settings {OUT}</p></div>
        <aside id="usercentrics-cmp-ui"><p>We need your consent. {OUT}</p></aside>""",
    "TrustArc": f"""<div id="truste-consent-track"><div id="truste-consent-text">Cookies help us {OUT}
        </div><button>Agree</button></div>""",
    "Complianz": f"""<div id="cmplz-cookiebanner-container"><div class="cmplz-cookiebanner"><p>To
        provide the best experiences {OUT}</p><button>Accept</button></div></div>""",
    "Osano": f"""<div class="osano-cm-window"><div role="dialog" class="osano-cm-dialog"><span>This
        website stores data {OUT}</span><button>Accept</button></div></div>""",
    "Sourcepoint": f"""<div id="sp_message_container_1" style="position:fixed"><p>Consent {OUT}</p>
        <button>Accept</button></div>""",
    "Iubenda": f"""<div id="iubenda-cs-banner"><p>Notice: we use technologies {OUT}</p>
        <button>Accept</button></div>""",
    "of Korea": f"""<div class="layer_cookie"><p>이 사이트는 쿠키를 사용합니다. {OUT}</p><button>동의</button>
        </div>""",
    "nameless": f"""<div class="x1"><div><p>We use cookies to improve the site. {OUT}</p>
        <button>Accept all</button><button>Reject</button></div></div>""",
}
PAGES += [
    _page(
        f"cookie banner: {name}",
        f"""<!doctype html><html><head><title>Budget approved</title></head><body>{banner}
        <div class="c1"><h1>Budget approved</h1>{ENGLISH}</div></body></html>""",
        "Budget approved", *EN_LINES,
    )
    for name, banner in _BANNERS.items()
]  # fmt: skip

_HIDDEN: Final = {
    "noscript": f"<noscript>Enable JavaScript {OUT}</noscript>",
    "template": f"<template><p>Row {OUT}</p></template>",
    "closed dialog": f"<dialog><p>Sign in {OUT}</p></dialog>",
    "aria-hidden": f"<span aria-hidden='true'>★★★ {OUT}</span>",
    "hidden": f"<p hidden>Later {OUT}</p><p hidden=''>Later {OUT}</p>",
    "display: none": f"<p style='color: red; DISPLAY : none !important'>Later {OUT}</p>",
    "visibility": f"<p style='visibility:hidden'>Later {OUT}</p>",
    "off-screen by its style": f"<p style='position:absolute; left:-9999px'>Later {OUT}</p>"
    f"<p style='position: fixed; top: -1000em'>Later {OUT}</p>"
    f"<p style='text-indent:-9999px'>Later {OUT}</p>"
    f"<p style='position:absolute;clip:rect(0 0 0 0)'>Later {OUT}</p>"
    f"<p style='position:absolute;clip-path:inset(50%)'>Later {OUT}</p>",
    "of one pixel": f"<p style='width:1px;height:1px;overflow:hidden;position:absolute'>Later {OUT}</p>",
    "for screen readers alone": f"<a class='sr-only' href='#x'>Skip {OUT}</a>"
    f"<span class='visually-hidden'>Opens in a new tab {OUT}</span>"
    f"<span class='screen-reader-text'>Menu {OUT}</span><span class='a11y_hidden'>메뉴 {OUT}</span>"
    f"<h2 class='blind'>본문 영역 {OUT}</h2>",
    "inputs and scripts": f"<input type='hidden' value='{OUT}'><script>var a='{OUT}'</script>"
    f"<style>p:after{{content:'{OUT}'}}</style><svg><text>{OUT}</text></svg><!-- {OUT} -->"
    f"<iframe>{OUT}</iframe><object>{OUT}</object><video>{OUT}</video><canvas>{OUT}</canvas>",
}
PAGES += [
    _page(
        f"hidden: {name}",
        f"""<!doctype html><html><head><title>Budget approved</title></head><body>
        <main><h1>Budget approved</h1><p>{P1}</p>{hidden}{paragraphs(P2, P3, P4)}</main></body>
        </html>""",
        "Budget approved", *EN_LINES,
    )
    for name, hidden in _HIDDEN.items()
]  # fmt: skip

_FORMS: Final[dict[str, tuple[str, tuple[str, ...]]]] = {
    "a folded part": (
        "<details><summary>Why?</summary>Because of this.</details>", ("Why?", "Because of this."),
    ),
    "what a script shows": (
        "<p style='opacity:0'>Faded in.</p><div style='height: 0; overflow: hidden'>Folded.</div>"
        "<p style='transform:translateX(-100px);opacity:0'>Moved in.</p>",
        ("Faded in.", "Folded.", "Moved in."),
    ),
    "an open dialog": ("<dialog open><p>Read this.</p></dialog>", ("Read this.",)),
    "merged and empty cells": (
        "<table><tr><th rowspan=2>Room<th colspan=2>Hours<tr><th>Mon<th>Tue<tr><td>A<td>9<td>10"
        "<tr><td>B<td><td>11<tr><td rowspan=2>C<td>1<td>2<tr><td>3<td>4</table>",
        ("Room | Mon | Tue", "A | 9 | 10", "B |  | 11", "C | 1 | 2", "C | 3 | 4"),
    ),
    "a table in a cell": (
        "<table><tr><td>Outer<td><table><tr><td>a<td>b<tr><td>c<td>d</table></table>",
        ("Outer", "a | b", "c | d"),
    ),
    "a list in a cell": (
        "<table><tr><th>Day<th>Tasks<tr><td>Mon<td><ul><li>open<li>close</ul></table>",
        ("Day | Tasks", "Mon | - open - close"),
    ),
    "lists in lists": (
        "<ul><li>One<ul><li>One a<li>One b</ul><li>Two<ol><li><p>Two a</p><p>more</p></ol></ul>",
        ("- One", "- One a", "- One b", "- Two", "- Two a", "more"),
    ),
    "definitions": (
        "<dl><dt>Loan<dd>What is lent.<dt>Fine<dt>Fee<dd>What is paid.<dd>In won.</dl>",
        ("Loan", "What is lent.", "Fine", "Fee", "What is paid.", "In won."),
    ),
    "ruby": (
        "<p><ruby>図書館<rp>(</rp><rt>としょかん</rt><rp>)</rp></ruby>は開く。</p>",
        ("図書館(としょかん)は開く。",),
    ),
    "an address with line ends": (
        "<address>Library<br>1 Main Street<br/>Seoul</address>",
        ("Library", "1 Main Street", "Seoul"),
    ),
    "code": ("<pre>if a:\n    b()\n\n    c()</pre>", ("if a:", "    b()", "    c()")),
    "code of one line an element": (
        "<pre><code><span class=line>a = 1</span>\n<span class=line>b = 2</span></code></pre>",
        ("a = 1", "b = 2"),
    ),
    "formulas": (
        "<p>So <math><mi>E</mi><mo>=</mo><mi>m</mi><msup><mi>c</mi><mn>2</mn></msup>"
        "<annotation encoding='application/x-tex'>E=mc^2</annotation></math> holds.</p>",
        ("So E = m c 2 holds.",),
    ),
    "a figure": (
        "<figure><img src=a alt=b><figcaption>Fig. 1. The <em>new</em> room.</figcaption></figure>",
        ("Fig. 1. The new room.",),
    ),
    "inline elements within a word": (
        "<p>H<sub>2</sub>O, <b>b</b>old, 10<sup>6</sup>, don<wbr>'t, co\u00adop, a&nbsp;b</p>",
        ("H2O, bold, 10^6, don't, coop, a b",),
    ),
    "blocks without white space": (
        "<div>One</div><div>Two</div><p>Three</p>Four<h2>Five</h2><span>Six</span>",
        ("One", "Two", "Three", "Four", "Five", "Six"),
    ),
    "buttons and labels": (
        "<label>Name</label><input value=x><label>City</label><select><option>Seoul<option>Busan"
        "</select>",
        ("Name City", "Seoul", "Busan"),
    ),
}  # fmt: skip
PAGES += [
    _page(
        f"form: {name}",
        f"""<!doctype html><html><head><title>Budget approved</title></head><body>
        <nav>{links("Home", tag="p")}</nav><article><h1>Budget approved</h1>{paragraphs(P1, P2)}
        {form}{paragraphs(P3, P4)}</article><footer>{OUT}</footer></body></html>""",
        "Budget approved", *EN_LINES, *lines,
    )
    for name, (form, lines) in _FORMS.items()
]  # fmt: skip
