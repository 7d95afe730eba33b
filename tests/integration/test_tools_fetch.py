"""Fetching pages: what comes back, and what is refused of it."""

import gzip
import http.server
import threading
import zlib
from collections.abc import Iterator

import pytest

from shared.errors import Cancelled
from tests.integration.websites import LIMIT_BYTES, Site, get, refusal, serving
from tests.waits import until


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def test_a_page_becomes_text_with_its_title(site: Site) -> None:
    html = "<title>News</title><script>x()</script><h1>Hello</h1><p>one <b>two</b>"
    page = get(site.page("/", html, "text/html; charset=utf-8"))
    assert (page.text, page.title, page.is_cut) == ("Hello\n\none two", "News", False)
    assert site.hosts == [f"127.0.0.1:{site.server_port}"]


@pytest.mark.parametrize(
    ("body", "content_type", "text"),
    [
        ("plain <b>text</b>", "text/plain", "plain <b>text</b>"),
        ("a,b\n1,2\n", "text/csv", "a,b\n1,2\n"),
        ('{"a": 1}', "application/json", '{"a": 1}'),
        ('{"a": 1}', "application/ld+json", '{"a": 1}'),
        ("no type", None, "no type"),
        ("한글".encode("cp949"), "text/plain; charset=euc-kr", "한글"),
        ('<meta charset="euc-kr"><p>한글'.encode("cp949"), "text/html", "한글"),
        ("한글", "text/plain; charset=none-such", "한글"),
    ],
)
def test_texts_come_as_they_are(
    site: Site, body: bytes | str, content_type: str | None, text: str
) -> None:
    assert get(site.page("/", body, content_type)).text == text


def test_a_packed_page_is_unpacked(site: Site) -> None:
    text = "word " * 1000
    packed = site.page("/a", gzip.compress(text.encode()), "text/plain", content_encoding="gzip")
    assert get(packed).text == text
    packed = site.page("/b", zlib.compress(text.encode()), "text/plain", content_encoding="deflate")
    assert get(packed).text == text


@pytest.mark.parametrize(
    ("content_type", "body"),
    [("application/pdf", b"%PDF-1.7"), ("image/png", b"\x89PNG"), ("text/plain", b"%PDF-1.7 x"),
     ("text/plain", b"\x00\x01\x02"), ("application/octet-stream", b"text"),
     ("text/html", b"<script>x()</script>")],
)  # fmt: skip
def test_what_is_no_text_is_refused(site: Site, content_type: str, body: bytes) -> None:
    assert site.url("/") in refusal(site.page("/", body, content_type))


def test_an_error_status_is_reported(site: Site) -> None:
    assert "status 404" in refusal(site.page("/", "gone", "text/plain", 404))
    assert "status 304" in refusal(site.page("/b", "", "text/plain", 304))


# Limits


def test_of_a_huge_page_the_beginning_is_read(site: Site) -> None:
    sent = []

    def endless(request: http.server.BaseHTTPRequestHandler) -> None:
        request.send_response(200)
        request.send_header("content-type", "text/plain; charset=utf-8")
        request.end_headers()
        while not site.is_over.is_set():
            request.wfile.write("한글 낱말 ".encode() * 1000)
            sent.append(1)

    site.answers["/"] = endless
    page = get(site.url())
    assert page.is_cut
    assert LIMIT_BYTES - 20 < len(page.text.encode()) <= LIMIT_BYTES
    assert set(page.text.split()) == {"한글", "낱말"}


def test_a_bomb_is_not_unpacked_beyond_the_limit(site: Site) -> None:
    packer = zlib.compressobj(wbits=31)
    piece = b"a " * 500_000
    bomb = b"".join([*(packer.compress(piece) for _ in range(50)), packer.flush()])
    page = get(site.page("/", bomb, "text/plain", content_encoding="gzip"))
    assert page.is_cut
    assert len(page.text) <= LIMIT_BYTES


@pytest.mark.parametrize(
    ("encoding", "body", "said"),
    [
        ("zstd", b"x", "packed as zstd"),
        ("br", b"not packed", "not packed as it says"),
        ("gzip", b"not packed", "not packed as it says"),
        ("gzip", gzip.compress(b"word " * 1000, mtime=0)[:-20], "ended in the middle"),
    ],
)
def test_bad_packing_is_reported(site: Site, encoding: str, body: bytes, said: str) -> None:
    assert said in refusal(site.page("/", body, "text/plain", content_encoding=encoding))


def slowly(site: Site, path: str, head: bytes, drip: bytes) -> str:
    """Answers with a beginning, and then with a drop at a time, without end."""

    def answer(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(head)
        while not site.is_over.wait(0.02):
            request.wfile.write(drip)

    site.answers[path] = answer
    return site.url(path)


HEAD = b"HTTP/1.1 200 OK\r\ncontent-type: text/plain\r\n"


@pytest.mark.parametrize(
    ("head", "drip"),
    [(HEAD + b"\r\n", b"a "), (HEAD + b"\r\n", b""), (HEAD + b"x: ", b"y"), (b"", b"")],
    ids=["body", "silence", "headers", "nothing"],
)
def test_slow_servers_have_the_whole_fetch_to_answer(site: Site, head: bytes, drip: bytes) -> None:
    url = slowly(site, "/", head, drip)
    assert "longer than 0.3 s" in refusal(url, fetch_timeout_s=0.3)


def test_a_fetch_stops_with_its_step(site: Site) -> None:
    stop = threading.Event()
    url = slowly(site, "/", HEAD + b"\r\n", b"a ")

    def stop_once_requested() -> None:
        until(lambda: site.paths, "a request")
        stop.set()

    watcher = threading.Thread(target=stop_once_requested)
    watcher.start()
    with pytest.raises(Cancelled):
        get(url, stop, fetch_timeout_s=60)
    watcher.join()


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", b"junk"]
)
def test_a_broken_answer_is_reported(site: Site, answer: bytes) -> None:
    def broken(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(answer)
        request.close_connection = True

    site.answers["/"] = broken
    assert "could not be read" in refusal(site.url())


def test_a_closed_port_is_reported() -> None:
    with serving() as site:
        url = site.url()
    assert "could not be reached" in refusal(url)


# Redirects
