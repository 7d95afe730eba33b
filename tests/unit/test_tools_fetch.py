"""Fetching pages: real servers on the loopback, what is refused, and what comes back."""

import asyncio
import gzip
import http.server
import ssl
import subprocess
import threading
import time
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from shared.config import Settings
from shared.errors import Cancelled, InvalidInput
from workers.tools.addresses import is_allowed, resolve
from workers.tools.fetch import Fetched, fetch

LIMIT_BYTES = 20_000
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site(http.server.ThreadingHTTPServer):
    """A web server of this test: a path is answered by the function under its name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.asked: list[str] = []
        self.hosts: list[str | None] = []
        self.is_over = threading.Event()

    def url(self, path: str = "/", host: str = "127.0.0.1", scheme: str = "http") -> str:
        return f"{scheme}://{host}:{self.server_port}{path}"

    def page(
        self, path: str, body: bytes | str, content_type: str | None, status: int = 200,
        **headers: str,
    ) -> str:  # fmt: skip
        data = body.encode() if isinstance(body, str) else body

        def answer(request: http.server.BaseHTTPRequestHandler) -> None:
            request.send_response(status)
            for name, value in headers.items():
                request.send_header(name.replace("_", "-"), value)
            if content_type is not None:
                request.send_header("content-type", content_type)
            request.send_header("content-length", str(len(data)))
            request.end_headers()
            request.wfile.write(data)

        self.answers[path] = answer
        return self.url(path)

    def redirect(self, path: str, to: str, status: int = 302) -> str:
        return self.page(path, "", "text/plain", status, location=to)


class _Handler(http.server.BaseHTTPRequestHandler):
    server: Site

    def do_GET(self) -> None:
        self.server.asked.append(self.path)
        self.server.hosts.append(self.headers["host"])
        try:
            self.server.answers[self.path](self)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True  # the client has had enough

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()
    if tls is not None:
        site.socket = tls.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    yield site
    site.is_over.set()
    site.shutdown()
    site.server_close()
    thread.join()


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def get(url: str, stop: threading.Event | None = None, **changes: object) -> Fetched:
    limits = {"fetch_limit_bytes": LIMIT_BYTES, "fetch_allow_private": True} | changes
    return fetch(url, Settings(_env_file=None, **limits), stop or threading.Event())


def refusal(url: str, **changes: object) -> str:
    with pytest.raises(InvalidInput) as caught:
        get(url, **changes)
    return caught.value.message


# What comes back


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


def test_an_error_status_is_told(site: Site) -> None:
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
        ("br", b"x", "packed as br"),
        ("gzip", b"not packed", "not packed as it says"),
        ("gzip", gzip.compress(b"word " * 1000)[:-20], "ended in the middle"),
    ],
)
def test_bad_packing_is_told(site: Site, encoding: str, body: bytes, said: str) -> None:
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
    watcher = threading.Thread(target=lambda: (wait_for(lambda: site.asked), stop.set()))
    watcher.start()
    with pytest.raises(Cancelled):
        get(url, stop, fetch_timeout_s=60)
    watcher.join()


def wait_for(condition: Callable[[], object]) -> None:
    while not condition():
        time.sleep(0.01)


@pytest.mark.parametrize(
    "answer", [b"", b"HTTP/1.1 200 OK\r\ncontent-length: 5\r\n\r\nab", b"junk"]
)
def test_a_broken_answer_is_told(site: Site, answer: bytes) -> None:
    def broken(request: http.server.BaseHTTPRequestHandler) -> None:
        request.wfile.write(answer)
        request.close_connection = True

    site.answers["/"] = broken
    assert "could not be read" in refusal(site.url())


def test_a_closed_port_is_told() -> None:
    with serving() as site:
        url = site.url()
    assert "could not be reached" in refusal(url)


# Redirects


def test_redirects_are_followed_to_the_end(site: Site) -> None:
    site.page("/end?a=b", "there", "text/plain")
    site.redirect("/2", site.url("/end?a=b#part"), 308)
    page = get(site.redirect("/1", "2", 301))
    assert (page.text, page.url) == ("there", site.url("/end?a=b"))


def test_at_most_five_redirects_are_followed(site: Site) -> None:
    site.page("/0", "there", "text/plain")
    for n in range(1, 7):
        site.redirect(f"/{n}", f"/{n - 1}")
    assert get(site.url("/5")).text == "there"
    assert "more than 5 times" in refusal(site.url("/6"))
    assert "more than 5 times" in refusal(site.redirect("/loop", "/loop"))


@pytest.mark.parametrize(
    "to",
    ["http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "ftp://127.0.0.1/",
     "gopher://127.0.0.1:6379/_FLUSHALL", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/",
     "http://user:password@127.0.0.1/", "http://[::1"],
)  # fmt: skip
def test_every_hop_is_checked(site: Site, to: str) -> None:
    refusal(site.redirect("/", to))
    assert site.asked == ["/"]


# Addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_asked_under_any_of_its_names(site: Site, host: str) -> None:
    site.page("/", "secret", "text/plain")
    assert "not an address of the public internet" in refusal(
        site.url(host=host), fetch_allow_private=False
    )
    assert site.asked == []


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.255.255.254", "100.64.0.1", "::1",
    "fc00::1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "192.0.2.1",
    "198.18.0.1", "2001:db8::1",
]  # fmt: skip
NEVER = [
    "0.0.0.0", "::", "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "224.0.0.1",
    "239.1.1.1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "2002:a9fe:a9fe::", "nonsense",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC + PRIVATE + NEVER)
def test_which_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, allow_private=False) == (address in PUBLIC)
    assert is_allowed(address, allow_private=True) == (address not in NEVER)


def test_a_name_that_does_not_exist_is_told() -> None:
    with pytest.raises(InvalidInput, match=r"no host 'none-such\.invalid'"):
        asyncio.run(resolve("none-such.invalid", 80, allow_private=False))


@pytest.mark.parametrize(
    "url",
    ["", "not a url", "example.org", "//example.org", "file:///etc/passwd", "javascript:1",
     "http://", "http://a b/", "http://exa\nmple/", "http://a:99999/", "http://" + "a" * 300,
     "http://user@127.0.0.1/", "http://\ud800/"],
)  # fmt: skip
def test_other_addresses_are_errors(url: str) -> None:
    assert refusal(url, fetch_allow_private=False)


# Certificates


@pytest.fixture(scope="module")
def certificate(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Of `localhost`, signed by itself; the file holds the key too."""
    folder = tmp_path_factory.mktemp("certificate")
    key, signed = folder / "key.pem", folder / "signed.pem"
    subprocess.run(
        ["openssl", "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:prime256v1",
         "-nodes", "-keyout", key, "-out", signed, "-days", "2", "-subj", "/CN=localhost",
         "-addext", "subjectAltName=DNS:localhost"],
        check=True, capture_output=True,
    )  # fmt: skip
    signed.write_text(signed.read_text() + key.read_text())
    return signed


def test_the_certificate_must_be_the_hosts_though_its_address_is_asked(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    settings = Settings(_env_file=None, fetch_allow_private=True)
    with serving(tls) as site:
        site.page("/", "secure", "text/plain")
        url = site.url(host="localhost", scheme="https")
        page = fetch(url, settings, threading.Event(), tls=trusting)
        assert (page.text, page.url) == ("secure", url)
        assert site.hosts == [f"localhost:{site.server_port}"]
        assert "certificate" in refusal(url).lower()
        other = site.url(scheme="https")
        with pytest.raises(InvalidInput, match=r"(?i)certificate"):
            fetch(other, settings, threading.Event(), tls=trusting)
