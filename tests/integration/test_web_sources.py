"""Sources of the web: single pages, and whole sites; on a real server of this process."""

import gzip
import http.server
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shared.config import Settings
from shared.documents import collections, documents
from tests.integration.ingestion import (
    counts,
    live_texts,
    new_collection,
    order_sources,
    stores_agree,
)
from tests.integration.job_runner import drain, handlers, job_of, make_due, make_process
from workers.attempts.process import Process
from workers.attempts.runner import run_next
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
        settings, outbound_allowed_hosts=("127.0.0.1",), web_delay_s=0, embed_step_chunks=128
    )
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


# Sites


def build(site: Website) -> set[str]:
    """300 pages in all, and what else sites have; returns the paths that are to be documents."""
    site.page(
        "/robots.txt",
        f"User-agent: *\nDisallow: /private/\nAllow: /private/open\nDisallow: /*?print\n"
        f"Sitemap: {site.root}/maps/index.xml\n",
        "text/plain",
    )
    index = f"<sitemapindex><sitemap><loc>{site.root}/maps/a.xml.gz</loc></sitemap></sitemapindex>"
    site.page("/maps/index.xml", index, "application/xml")
    locations = "".join(
        f"<url><loc> {site.root}/hidden/{n}?utm_source=map </loc></url>" for n in range(20)
    )
    map_ = f'<urlset xmlns="http://www.sitemaps.org/schemas/sitemap/0.9">{locations}</urlset>'
    site.page("/maps/a.xml.gz", gzip.compress(map_.encode()), "application/x-gzip")

    documents: set[str] = set()
    for n in range(20):
        # Only the sitemap knows these.
        site.html(f"/hidden/{n}", f"Hidden page {n} of the site.", etag=f'"h{n}"')
        documents.add(f"/hidden/{n}")
    for n in range(260):
        links = [
            *(f"/page/{m}" for m in (2 * n + 1, 2 * n + 2) if m < 260), f"{n // 2}#part", "/", f"HTTP://127.0.0.1:{site.server_port}/",
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
    extra = [
        "/korean", "/packed", "/notes.txt", "/private/open", "/unwanted", "/unwanted2", "/last",
        "/blind", "/moved/1", "/loop/1", "/out", "/away", "/session?id=1", "/based", "/gone",
        "/picture", "/broken page?a=b c", "/picture",
    ]  # fmt: skip
    body = '<p>Home.</p><a rel="nofollow" href="/no/3">x</a><a href="/page/0">first</a>' + "".join(
        f'<a href="{link}">x</a>' for link in extra
    )
    site.page("/", body, etag='"home"')
    site.html("/broken%20page?a=b%20c", "A page with blanks.", etag='"bl"')
    documents |= {
        "/", "/korean", "/packed", "/notes.txt", "/private/open", "/behind/unwanted", "/last",
        "/blind", "/no/1", "/moved/end", "/session", "/based", "/base/one",
        "/broken%20page?a=b%20c",
    }  # fmt: skip
    return documents


def test_a_site_of_300_pages(process: Process, site: Website) -> None:
    collection = toy_collection(process)
    paths = build(site)
    source = {"type": "site", "url": site.root}
    done, job = run(process, collection, source, splitter={"type": "recursive"})
    assert {error["source"] for error in job.result["errors"]} == {site.root + "/gone"}
    assert done == {"added": len(paths), "failed": 1}
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
    del site.pages["/page/259"], site.pages["/hidden/3"]
    # What has vanished is erased where the source says so.
    erasing = source | {"on_vanished": "erase"}
    done, job = run(process, collection, erasing, splitter={"type": "recursive"})
    failed = {error["source"].removeprefix(site.root) for error in job.result["errors"]}
    assert failed == {"/gone", "/page/259", "/hidden/3"}
    assert done == {"added": 1, "replaced": 1, "skipped": len(paths) - 3, "failed": 3}
    assert {path: n for path, n in site.requests.items() if n > 1} == {}
    without_validators = {
        "/robots.txt", "/maps/index.xml", "/maps/a.xml.gz", "/unwanted", "/unwanted2", "/moved/1",
        "/moved/2", "/loop/1", "/loop/2", "/out", "/away", "/session?id=1", "/gone", "/picture",
    }  # fmt: skip
    assert set(site.sent) - without_validators == {"/page/7", "/new", "/page/259", "/hidden/3"}
    assert job.result["vanished"] == [site.root + "/hidden/3", site.root + "/page/259"]
    paths = paths - {"/hidden/3", "/page/259"} | {"/new"}
    assert set(live_texts(process, collection)) == {site.root + path for path in paths}
    stores_agree(process, collection)
