"""Sources of the web: single pages, and whole sites; on a real server of this process."""

import contextlib
import gzip
import http.server
import re
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from uuid import UUID

import pytest
from bs4.filter import SoupStrainer
from pydantic import ValidationError

from shared.config import Settings
from shared.documents import collections, documents
from shared.errors import Cancelled, InvalidInput
from shared.kinds.ingest import INGEST, IngestInput, UrlSource
from shared.vocabulary import Queue, State
from tests.integration.ingestion import (
    counts,
    live_texts,
    new_collection,
    order_sources,
    stores_agree,
)
from tests.integration.job_runner import (
    cancel,
    claimed,
    drain,
    handlers,
    job_of,
    lose_workers,
    make_due,
    make_process,
)
from tests.integration.websites import HOSTS
from workers.attempts.context import Context
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest.crawl import crawl
from workers.retrieval.embed import EMBEDDERS


class Website(http.server.ThreadingHTTPServer):
    """A site whose pages have `ETag` or `Last-Modified`; it counts what it sends."""

    daemon_threads = True
    request_queue_size = 64

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.pages: dict[str, dict[str, Any]] = {}
        self.requests: Counter[str] = Counter()
        self.sent: Counter[str] = Counter()
        self.agents: set[str | None] = set()
        self.answers: dict[str, Callable[[http.server.BaseHTTPRequestHandler], object]] = {}
        """What is no usual answer, by its path."""
        self.is_over = threading.Event()

    @property
    def root(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def page(self, path: str, body: str | bytes = "", type_: str = "text/html; charset=utf-8",
             status: int = 200, **headers: str) -> str:  # fmt: skip
        data = body.encode() if isinstance(body, str) else body
        self.pages[path] = {"data": data, "type": type_, "status": status, "headers": headers}
        return self.root + path

    def html(self, path: str, text: str, *links: str, head: str = "", **options: Any) -> str:
        anchors = " ".join(f'<a href="{link}">there</a>' for link in links)
        body = f"<html><head><title>{path}</title>{head}</head><body><p>{text}</p>{anchors}</body>"
        return self.page(path, body, **options)

    def clear(self) -> None:
        self.requests.clear()
        self.sent.clear()

    def handle_error(self, *_: object) -> None:
        """A client that has had enough of a connection is no error."""


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Website
    protocol_version = "HTTP/1.1"

    def do_GET(self) -> None:
        site = self.server
        site.requests[self.path] += 1
        site.agents.add(self.headers["user-agent"])
        if (answer := site.answers.get(self.path)) is not None:
            try:
                answer(self)
            except ConnectionError:
                self.close_connection = True
            return
        page = site.pages.get(self.path)
        if page is None:
            page = {"data": b"nothing", "type": "text/plain", "status": 404, "headers": {}}
        headers = {name.replace("_", "-"): value for name, value in page["headers"].items()}
        is_same = (
            headers.get("etag", "") == self.headers["if-none-match"]
            or headers.get("last-modified", "") == self.headers["if-modified-since"]
        )
        if is_same:
            self.send_response(304)
            self.end_headers()
            return
        site.sent[self.path] += 1
        self.send_response(page["status"])
        for name, value in {"content-type": page["type"], **headers}.items():
            self.send_header(name, value)
        self.send_header("content-length", str(len(page["data"])))
        self.end_headers()
        self.wfile.write(page["data"])

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving() -> Iterator[Website]:
    site = Website()
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.is_over.set()
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.fixture
def site() -> Iterator[Website]:
    with serving() as site:
        yield site


@pytest.fixture
def process(settings: Settings) -> Iterator[Process]:
    process = make_process(
        settings, outbound_allowed_hosts=("127.0.0.1",), web_delay_s=0, embed_step_chunks=48,
        web_limit_bytes=100_000,
    )  # fmt: skip
    yield process
    process.close()


def run(process: Process, collection: str, *sources: dict[str, Any], **options: Any) -> Any:
    """The counts of documents by outcome (zeros left out), and the job."""
    job_id = order_sources(process, collection, list(sources), **options)
    drain(process)
    return counts(process, job_id), job_of(process, job_id)


def metadata_of(process: Process, collection: str) -> dict[str, dict[str, Any]]:
    with process.ledger.read() as session:
        owner = collections.get(session, collection)
        listed = documents.page(session, owner.id, limit=1000, after=None)
        return {document.source: document.metadata for document in listed}


@pytest.fixture(autouse=True)
def _quick_model(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(EMBEDDERS, "toy", "tests.integration.toy_embedder:load")


def toy_collection(process: Process) -> str:
    return new_collection(process, embedding_model="toy/letters")


# Single pages


def test_a_url_is_a_document_called_by_it(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    url = site.html("/hours", "We open at nine.")
    done, _ = run(process, collection, {"type": "url", "url": f"{url}#part"})
    assert done == {"added": 1}
    assert "We open at nine." in live_texts(process, collection)[url][0]
    metadata = metadata_of(process, collection)[url]
    assert metadata["url"] == metadata["fetched_url"] == url
    assert metadata["title"] == "/hours"
    assert metadata["media_type"] == "text/html"
    named = {"type": "url", "url": url, "name": "hours", "metadata": {"team": "desk"}}
    assert run(process, collection, named)[0] == {"added": 1}
    assert metadata_of(process, collection)["hours"]["team"] == "desk"
    assert site.agents == {"Sluice"}


@pytest.mark.parametrize(
    "headers", [{"etag": '"1"'}, {"last_modified": "Fri, 27 Nov 2026 10:00:00 GMT"}]
)
def test_only_what_has_changed_is_sent_again(
    process: Process, site: Website, headers: dict[str, str]
) -> None:
    collection = toy_collection(process)
    source = {"type": "url", "url": site.html("/a", "one", **headers)}
    assert run(process, collection, source)[0] == {"added": 1}
    assert run(process, collection, source)[0] == {"skipped": 1}
    assert (site.requests["/a"], site.sent["/a"]) == (2, 1)
    # With other options the text has to be read again.
    assert run(process, collection, source, metadata={"team": "desk"})[0] == {"replaced": 1}
    assert site.sent["/a"] == 2
    site.html("/a", "two", **{name: f"{value}2" for name, value in headers.items()})
    assert run(process, collection, source, metadata={"team": "desk"})[0] == {"replaced": 1}
    assert "two" in live_texts(process, collection)[site.root + "/a"][0]
    stores_agree(process, collection)


def test_a_page_without_validators_is_compared_by_its_bytes(
    process: Process, site: Website
) -> None:
    collection = toy_collection(process)
    source = {"type": "url", "url": site.html("/a", "one")}
    assert run(process, collection, source)[0] == {"added": 1}
    assert run(process, collection, source)[0] == {"skipped": 1}
    assert site.sent["/a"] == 2


def test_redirects_types_and_encodings(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    korean = "서울에서 부산까지 가는 기차는 아홉 시에 출발합니다."
    site.page("/end", gzip.compress(korean.encode("cp949")), "text/html; charset=iso-8859-1",
              content_encoding="gzip")  # fmt: skip
    site.page("/moved", status=301, location="/again")
    site.page("/again", status=302, location="/end")
    site.page("/notes.md", "# One\n\nfirst\n\n# Two\n\nsecond", "text/plain")
    site.page("/table.php?x=1.pdf", "name,city\nKim,Seoul\n", "text/csv")
    sources = [
        {"type": "url", "url": site.root + path}
        for path in ("/moved", "/notes.md", "/table.php?x=1.pdf")
    ]
    assert run(process, collection, *sources)[0] == {"added": 3}
    texts, metadata = live_texts(process, collection), metadata_of(process, collection)
    assert texts[site.root + "/moved"] == [korean]
    assert metadata[site.root + "/moved"]["fetched_url"] == site.root + "/end"
    assert metadata[site.root + "/notes.md"]["media_type"] == "text/markdown"
    assert metadata[site.root + "/table.php?x=1.pdf"]["media_type"] == "text/csv"


def test_each_failure_is_that_of_its_document(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    site.page("/image", b"\x89PNG", "image/png")
    site.page("/large", b"a " * 6000, "text/plain")
    site.page("/empty", b"", "text/html")
    site.page("/secret", "x", status=403)
    site.page("/loop", status=302, location="/loop")
    site.page("/out", status=302, location="http://169.254.169.254/latest/")
    site.html("/fine", "fine")
    paths = ["/image", "/large", "/empty", "/secret", "/loop", "/out", "/none", "/fine"]
    urls = [site.root + path for path in paths] + ["http://no-such-host.invalid/"]
    limited = make_process(process.settings, outbound_allowed_hosts=("127.0.0.1",), web_delay_s=0,
                           web_limit_bytes=10_000)  # fmt: skip
    done, job = run(limited, collection, *({"type": "url", "url": url} for url in urls))
    limited.close()
    assert done == {"added": 1, "failed": 8}
    errors = {
        error["source"].removeprefix(site.root): error["message"] for error in job.result["errors"]
    }
    assert "image/png, which is only ingested with the option ocr" in errors["/image"]
    assert "SLUICE_WEB_LIMIT_BYTES" in errors["/large"]
    assert "empty" in errors["/empty"]
    assert "403" in errors["/secret"]
    assert "more than 5 times" in errors["/loop"]
    assert "169.254.169.254" in errors["/out"]
    assert "404" in errors["/none"]
    assert "no host" in errors["http://no-such-host.invalid/"]
    assert all(source in message for source, message in errors.items())


def test_a_host_that_wants_time_gets_it(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    site.page("/busy", status=503, retry_after="0")
    site.html("/other", "other")
    sources = [{"type": "url", "url": site.root + path} for path in ("/busy", "/other")]
    order_sources(process, collection, sources)
    drain_until(process, lambda: site.requests["/busy"] >= 2)
    site.html("/busy", "at last")
    drain(process)
    assert set(live_texts(process, collection)) == {site.root + "/busy", site.root + "/other"}
    site.page("/never", status=429, retry_after="0")
    done, job = run(process, collection, {"type": "url", "url": site.root + "/never"})
    assert done == {"failed": 1}
    assert "429" in job.result["errors"][0]["message"]
    assert site.requests["/never"] == 1 + process.settings.web_retries


def drain_until(process: Process, look: Callable[[], bool]) -> None:
    while not look():
        make_due(process)
        assert run_next(process, handlers(), "ingest")


def test_a_page_that_does_not_come_fails(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    site.answers["/silent"] = lambda _request: site.is_over.wait()
    hurried = make_process(process.settings, outbound_allowed_hosts=("127.0.0.1",), web_delay_s=0,
                           web_timeout_s=0.3)  # fmt: skip
    done, job = run(hurried, collection, {"type": "url", "url": f"{site.root}/silent"})
    hurried.close()
    assert done == {"failed": 1}
    assert "longer than 0.3 s" in job.result["errors"][0]["message"]


def test_no_spelling_of_an_address_is_a_source(process: Process, site: Website) -> None:
    """The list of test_outbound.py; spelled-out ones the API refuses before."""
    guarded = make_process(process.settings, outbound_allowed_hosts=(), web_delay_s=0)
    collection = toy_collection(process)
    port, urls = site.server_port, []
    for host in HOSTS.values():
        url = f"http://{host.format(port=port, wrapped=port + 65536)}/"
        with contextlib.suppress(ValidationError):
            urls.append(UrlSource(type="url", url=url).url)
    assert len(urls) > 50
    done, _ = run(guarded, collection, *({"type": "url", "url": url} for url in urls))
    guarded.close()
    assert set(done) == {"failed"}
    for type_ in ("url", "site"):
        input_ = IngestInput.model_validate(
            {"collection": "a", "sources": [{"type": type_, "url": site.root}]}
        )
        with pytest.raises(InvalidInput, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
            INGEST.check(input_, guarded.settings)
    assert not site.requests


# LangChain's tutorial: WebBaseLoader with a SoupStrainer, of this blog

CLASSES = ("post-title", "post-header", "post-content")
WHOLE = {"type": "recursive", "chunk_size": 20_000, "chunk_overlap": 0}


def blog(content: str, *, title: str = "post-title entry-hint-parent") -> str:
    """As the theme PaperMod of Hugo writes it."""
    return f"""<!DOCTYPE html><html lang="en" dir="auto"><head><meta charset="utf-8">
<title>LLM Powered Autonomous Agents | Lil&#39;Log</title>
<meta name="author" content="Lilian Weng">
<link rel="canonical" href="https://lilianweng.github.io/posts/2023-06-23-agent/">
<script>let theme = "post-content";</script></head><body class="" id="top">
<header class="header"><nav class="nav"><div class="logo"><a href="/">Lil'Log</a></div>
<ul id="menu"><li><a href="/archives"><span>Archive</span></a></li></ul></nav></header>
<main class="main"><article class="post-single"><header class="post-header">
<h1 class="{title}">LLM Powered Autonomous Agents</h1>
<div class="post-meta"><span title='2023-06-23'>Date: June 23, 2023</span>&nbsp;|&nbsp;Estimated
Reading Time: 31 min&nbsp;|&nbsp;Author: Lilian Weng</div></header>
<div class="toc"><details><summary accesskey="c"><span class="details">Table of Contents</span>
</summary><div class="inner"><ul><li><a href="#a">Agent System Overview</a></li></ul></div>
</details></div><div class="post-content">{content}</div>
<footer class="post-footer"><ul class="post-tags"><li><a href="/tags/nlp/">nlp</a></li></ul>
<nav class="paginav"><a class="prev" href="/p"><span class="title">« Prev</span></a></nav></footer>
</article></main><footer class="footer"><span>&copy; 2023 <a href="/">Lil'Log</a></span></footer>
<a href="#top" class="top-link" id="top-link"><svg viewBox="0 0 12 6"></svg></a>
<script>document.getElementById("x")</script></body></html>"""


ARTICLE = """<p>Building agents with LLM as its core controller is a cool concept.</p>
<h1 id="a">Agent System Overview<a hidden class="anchor" aria-hidden="true" href="#a">#</a></h1>
<p>In a LLM-powered autonomous agent system, <strong>LLM</strong> functions as the
<em>agent&rsquo;s brain</em>:</p><ul><li><strong>Planning</strong><ul><li>Subgoals: 3 &lt; 4 &amp;
so on</li><li>Reflection</li></ul></li><li><strong>Memory</strong></li></ul>
<img src="overview.png" style="width: 100%;" class="center" />
<figcaption>Fig. 1. Overview of the system.</figcaption>
<div class="highlight"><pre tabindex="0"><code class="language-fallback"><span><span>Question: ...
</span></span><span><span>Thought:  ...
</span></span></code></pre></div><table><thead><tr><th>Memory</th><th>Example</th></tr></thead>
<tbody><tr><td>Sensory</td><td>Image</td></tr></tbody></table>
<p>$$\\text{MIPS} = x_1 \\cdot y$$ Inline <code>a_b</code>, a<br>break, H<sub>t</sub>.</p>
<blockquote>Quoted<p>twice.</p></blockquote><script>var unseen = 1;</script>
<ol><li>One</li><li>Two</li></ol>"""
TUTORIAL_PAGES = {
    "the post": blog(ARTICLE),
    "one within another": blog(
        f'{ARTICLE}<div class="post-content"><p>Inner</p></div><p>After</p>'
    ),
    "several of a kind": blog(ARTICLE) + '<div class="post-content">More</div>'
    '<h2 class="post-title">Another post</h2><div class="other">Not this</div>',
    "the title alone": '<body><p>no</p><h1 class="post-title">Only a title</h1><p>no</p>',
    "without a header": '<body><div class="post-content">Text<p>and more</p></div>no',
    "small and capital letters": '<body><p class="Post-Title">no</p><p class="post-title">yes</p>',
    "parts of names": '<body><p class="post-content-2">no</p><p class="my-post-title">no'
    '</p><p class="post-title">yes</p>',
}
TOKEN_PAGES = {
    # A SoupStrainer that parses compares the whole attribute, one that searches each class too.
    "more classes": '<body><p class="wide post-content">One</p><p class="post-content wide">Two</p>'
    '<p class="a  post-title\tb">Three</p><p class="other">no</p>',
    "all three": '<body><div class="post-title post-header post-content">One</div><div>no</div>',
}


def dense(text: str) -> str:
    """Without white space, the marks of links to headings, which are hidden, and the marks of items
    and cells, which are ours."""
    return re.sub(r"[\s#|]|^- ", "", text, flags=re.M)


@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
def test_the_tutorials_page_has_the_text_that_its_loader_finds(
    process: Process, site: Website, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("USER_AGENT", "test")
    from langchain_community.document_loaders import WebBaseLoader

    pages = TUTORIAL_PAGES | TOKEN_PAGES
    urls = {site.page(f"/{n}", page): name for n, (name, page) in enumerate(pages.items())}
    collection = toy_collection(process)
    sources = [{"type": "url", "url": url, "css_classes": list(CLASSES)} for url in urls]
    done, _ = run(process, collection, *sources, splitter=WHOLE)
    assert done == {"added": len(pages)}
    texts = live_texts(process, collection)
    for url, name in urls.items():
        searched = WebBaseLoader(web_paths=(url,)).scrape().find_all(class_=list(CLASSES))
        outermost = [tag for tag in searched if not any(up in searched for up in tag.parents)]
        expected = "".join(tag.get_text() for tag in outermost)
        assert dense(texts[url][0]) == dense(expected), name
        if name in TUTORIAL_PAGES:
            strainer = SoupStrainer(class_=CLASSES)
            loader = WebBaseLoader(web_paths=(url,), bs_kwargs={"parse_only": strainer})
            assert dense(texts[url][0]) == dense(loader.load()[0].page_content), name
    [post] = [url for url, name in urls.items() if name == "the post"]
    metadata = metadata_of(process, collection)[post]
    assert metadata["title"] == "LLM Powered Autonomous Agents | Lil'Log"
    assert metadata["language"] == "en"
    assert metadata["author"] == "Lilian Weng"
    assert metadata["url"] == "https://lilianweng.github.io/posts/2023-06-23-agent/"
    assert metadata["fetched_url"] == post


def test_a_class_that_the_page_lacks_is_named(process: Process, site: Website) -> None:
    url = site.page("/", '<body><p class="entry">text')
    source = {"type": "url", "url": url, "css_classes": ["post-content"]}
    done, job = run(process, toy_collection(process), source)
    assert done == {"failed": 1}
    assert "'post-content'" in job.result["errors"][0]["message"]
    assert "'entry'" in job.result["errors"][0]["message"]


# Sites


def in_pieces(request: http.server.BaseHTTPRequestHandler) -> None:
    """A page that comes slowly, and without saying how long it is."""
    request.send_response(200)
    request.send_header("content-type", "text/html")
    request.send_header("transfer-encoding", "chunked")
    request.end_headers()
    for word in ["<p>A ", "page ", "that ", "comes ", "in pieces.", ""]:
        request.wfile.write(f"{len(word):x}\r\n{word}\r\n".encode())
        request.wfile.flush()


def broken_off(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("content-type", "text/html")
    request.send_header("content-length", "1000")
    request.end_headers()
    request.wfile.write(b"<p>Half a page")
    request.close_connection = True


def endless(request: http.server.BaseHTTPRequestHandler) -> None:
    request.send_response(200)
    request.send_header("content-type", "text/html")
    request.end_headers()
    request.close_connection = True
    while True:
        request.wfile.write(b"<p>more " * 2000)


def build(site: Website) -> set[str]:
    """100 pages, and what else sites have; returns the paths that are to be documents."""
    site.page(
        "/robots.txt",
        f"User-agent: *\nDisallow: /private/\nAllow: /private/open\nDisallow: /*?print\n"
        f"Sitemap: {site.root}/maps/index.xml\n",
        "text/plain",
    )
    index = f"<sitemapindex><sitemap><loc>{site.root}/maps/a.xml.gz</loc></sitemap></sitemapindex>"
    site.page("/maps/index.xml", index, "application/xml")
    locations = "".join(
        f"<url><loc> {site.root}/hidden/{n}?utm_source=map </loc></url>" for n in range(8)
    )
    map_ = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}</urlset>'
    site.page("/maps/a.xml.gz", gzip.compress(map_.encode()), "application/x-gzip")

    documents: set[str] = set()
    for n in range(8):
        # Only the sitemap knows these.
        site.html(f"/hidden/{n}", f"Hidden page {n} of the site.", etag=f'"h{n}"')
        documents.add(f"/hidden/{n}")
    for n in range(80):
        links = [
            *(f"/page/{m}" for m in (2 * n + 1, 2 * n + 2) if m < 80), f"{n // 2}#part", "/", f"HTTP://127.0.0.1:{site.server_port}/",
            f"./../page/{n}?utm_source=here", "?print=1", "/image.png", "mailto:a@example.org",
            "javascript:void(0)", "tel:123", "http://other.example/", "//other.example/x",
            "/private/secret", "http://[broken", "data:text/plain,x",
        ]  # fmt: skip
        etag = (
            {"etag": f'"p{n}"'}
            if n % 2
            else {"last_modified": f"Fri, 27 Nov 2026 10:00:{n % 60:02} GMT"}
        )
        site.html(f"/page/{n}", f"Page {n} speaks of matter {n}.", *links, **etag)
        documents.add(f"/page/{n}")
    korean = "<p>기차는 아홉 시에 출발합니다. 서울에서 부산까지 가는 표를 삽니다.</p>"
    site.page("/korean", korean.encode("cp949"), "text/html; charset=iso-8859-1", etag='"k"')
    packed = gzip.compress(b"<p>A packed page of the site.</p>")
    site.page("/packed", packed, content_encoding="gzip", etag='"z"')
    site.page("/notes.txt", "Plain notes of the site.", "text/plain", etag='"n"')
    site.page("/private/open", "<p>An open page below a closed one.</p>", etag='"o"')
    site.page("/private/secret", "<p>secret</p>")
    site.html(
        "/unwanted", "secret", "/behind/unwanted", head='<meta name="robots" content="noindex">'
    )
    site.html("/behind/unwanted", "Behind a page that is no document.", etag='"b"')
    site.page("/unwanted2", "<p>secret</p>", x_robots_tag="noindex")
    site.page("/last", '<p>The last page.</p><a href="/no/1">a</a>', etag='"l"',
              x_robots_tag="googlebot: noindex, nofollow")  # fmt: skip
    site.html("/blind", "It leads nowhere.", "/no/2", head='<meta name=robots content="nofollow">',
              etag='"f"')  # fmt: skip
    site.html("/no/1", "Behind the last page.", etag='"n1"')
    site.html("/no/2", "secret")
    site.html("/no/3", "secret")
    site.page("/moved/1", status=301, location="/moved/2")
    site.page("/moved/2", status=302, location="../moved/end")
    site.html("/moved/end", "Where the redirects end.", "/moved/1", etag='"m"')
    site.page("/loop/1", status=302, location="/loop/2")
    site.page("/loop/2", status=302, location="/loop/1")
    site.page("/out", status=302, location="http://169.254.169.254/latest/")
    site.page("/away", status=302, location="http://other.example/")
    site.html("/session?id=1", "Twice the same.", etag='"s1"',
              head='<link rel="canonical" href="/session">')  # fmt: skip
    site.html("/session", "Twice the same.", etag='"s"')
    site.page(
        "/based", '<base href="/base/"><p>Links with a base.</p><a href="one">one</a>', etag='"ba"'
    )
    site.html("/base/one", "Behind a base.", etag='"b1"')
    site.page("/picture", b"\x89PNG", "image/png")
    site.answers |= {"/pieces": in_pieces, "/half": broken_off, "/endless": endless}
    extra = [
        "/korean", "/packed", "/notes.txt", "/private/open", "/unwanted", "/unwanted2", "/last",
        "/blind", "/moved/1", "/loop/1", "/out", "/away", "/session?id=1", "/based", "/gone",
        "/picture", "/broken page?a=b c", "/picture", "/pieces", "/half", "/endless",
    ]  # fmt: skip
    body = '<p>Home.</p><a rel="nofollow" href="/no/3">x</a><a href="/page/0">first</a>' + "".join(
        f'<a href="{link}">x</a>' for link in extra
    )
    site.page("/", body, etag='"home"')
    site.html("/broken%20page?a=b%20c", "A page with blanks.", etag='"bl"')
    documents |= {
        "/", "/korean", "/packed", "/notes.txt", "/private/open", "/behind/unwanted", "/last",
        "/blind", "/no/1", "/moved/end", "/session", "/based", "/base/one",
        "/broken%20page?a=b%20c", "/pieces",
    }  # fmt: skip
    return documents


def test_several_pages_of_a_site_are_on_their_way_at_a_time(
    process: Process, site: Website
) -> None:
    """Each of them is answered once all of them have been asked for."""
    paths = [f"/{n}" for n in range(process.settings.web_parallel_requests)]
    together = threading.Barrier(len(paths), timeout=30)

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        together.wait()
        in_pieces(request)

    site.answers |= dict.fromkeys(paths, answer)
    site.html("/", "Home.", *paths)
    done, _ = run(process, toy_collection(process), {"type": "site", "url": site.root})
    assert done == {"added": 1 + len(paths)}


def test_a_robots_txt_that_wants_time_gets_one_request_at_a_time(
    process: Process, site: Website
) -> None:
    under_way, most = [], []

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        under_way.append(request.path)
        most.append(len(under_way))
        in_pieces(request)
        under_way.remove(request.path)

    paths = [f"/{n}" for n in range(5)]
    site.page("/robots.txt", "User-agent: *\nCrawl-delay: 0.01\n", "text/plain")
    site.answers |= dict.fromkeys(paths, answer)
    site.html("/", "Home.", *paths)
    done, _ = run(process, toy_collection(process), {"type": "site", "url": site.root})
    assert done == {"added": 1 + len(paths)}
    assert set(most) == {1}


def crawl_step(process: Process, job_id: UUID) -> Context:
    """The first step of a crawl, claimed."""
    assert run_next(process, handlers(), Queue.INGEST.value)  # the plan
    claim = claimed(process, Queue.INGEST)
    assert (claim.job_id, claim.name) == (job_id, "ingest.crawl")
    return Context(process, claim)


def test_a_crawl_stops_in_the_middle(process: Process, site: Website) -> None:
    """Also while a page does not come."""
    collection = toy_collection(process)
    site.html("/", "Home.", "/silent", "/b")
    site.html("/b", "Another.", "/c")
    job_id = order_sources(process, collection, [{"type": "site", "url": site.root}])
    context = crawl_step(process, job_id)

    def silent(_request: object) -> None:
        context.must_stop("cancelled")
        site.is_over.wait()

    site.answers["/silent"] = silent
    with pytest.raises(Cancelled):
        crawl(context)
    assert "/c" not in site.requests
    cancel(process, job_id)
    lose_workers(process)
    drain(process)
    assert job_of(process, job_id).state == State.CANCELLED


def test_a_crawl_goes_on_where_a_lost_worker_was(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    for n in range(20):
        site.html(f"/{n}", f"Page {n}.", f"/{n + 1}", f"/{n + 2}")
    site.html("/", "Home.", "/0")
    short = make_process(process.settings, outbound_allowed_hosts=("127.0.0.1",), web_delay_s=0,
                         web_step_s=0.001)  # fmt: skip
    job_id = order_sources(short, collection, [{"type": "site", "url": site.root, "max_pages": 15}])
    context = crawl_step(short, job_id)
    crawl(context)  # and the worker is gone
    assert 0 < len(site.requests) < 15
    lose_workers(short)
    drain(short)
    short.close()
    assert counts(process, job_id) == {"added": 15}
    pages = {path: n for path, n in site.requests.items() if path not in ("/robots.txt",)}
    assert max(pages.values()) <= 2
    stores_agree(process, collection)


def test_a_site_of_100_pages(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    paths = build(site)
    source = {"type": "site", "url": site.root}
    done, job = run(process, collection, source, splitter={"type": "recursive"})
    errors = {
        error["source"].removeprefix(site.root): error["message"] for error in job.result["errors"]
    }
    assert set(errors) == {"/gone", "/half", "/endless"}
    assert "404" in errors["/gone"]
    assert "SLUICE_WEB_LIMIT_BYTES" in errors["/endless"]
    assert done == {"added": len(paths), "failed": 3}
    texts = live_texts(process, collection)
    assert set(texts) == {site.root + path for path in paths}
    assert "기차는 아홉 시에" in texts[site.root + "/korean"][0]
    assert texts[site.root + "/packed"] == ["A packed page of the site."]
    # Each URL once, and nothing that robots may not have.
    assert {path: n for path, n in site.requests.items() if n > 1} == {}
    asked = set(site.requests)
    assert not asked & {"/private/secret", "/no/2", "/no/3", "/image.png"}
    assert not any("print" in path or "utm_" in path for path in asked)
    assert "image/png 1" in job.warnings[0]
    assert ".png 1" in job.warnings[0]

    # The second run is sent what has changed, and what has no validators.
    site.clear()
    site.html("/page/7", "Page 7 is another one.", "/page/15", "/page/16", "/new", etag='"new"')
    site.html("/new", "A new page.", etag='"n"')
    del site.pages["/page/79"], site.pages["/hidden/3"]
    # What has vanished is erased where the source says so.
    erasing = source | {"on_vanished": "erase"}
    done, job = run(process, collection, erasing, splitter={"type": "recursive"})
    failed = {error["source"].removeprefix(site.root) for error in job.result["errors"]}
    assert failed == {"/gone", "/half", "/endless", "/page/79", "/hidden/3"}
    assert done == {"added": 1, "replaced": 1, "skipped": len(paths) - 3, "failed": 5}
    assert {path: n for path, n in site.requests.items() if n > 1} == {}
    without_validators = {
        "/robots.txt", "/maps/index.xml", "/maps/a.xml.gz", "/unwanted", "/unwanted2", "/moved/1",
        "/moved/2", "/loop/1", "/loop/2", "/out", "/away", "/session?id=1", "/gone", "/picture",
    }  # fmt: skip
    assert set(site.sent) - without_validators == {"/page/7", "/new", "/page/79", "/hidden/3"}
    assert job.result["vanished"] == [site.root + "/hidden/3", site.root + "/page/79"]
    paths = paths - {"/hidden/3", "/page/79"} | {"/new"}
    assert set(live_texts(process, collection)) == {site.root + path for path in paths}
    stores_agree(process, collection)
