"""Real web servers on the loopback, for the tests of `fetch_url` and of all that goes outside."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import InvalidInput
from workers.tools.fetch import FetchedPage, fetch

LIMIT_BYTES = 20_000
Answer = Callable[[http.server.BaseHTTPRequestHandler], None]


class Site(http.server.ThreadingHTTPServer):
    """A web server of this test: a path is answered by the function under its name."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.answers: dict[str, Answer] = {}
        self.paths: list[str] = []
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
        self.server.paths.append(self.path)
        self.server.hosts.append(self.headers["host"])
        try:
            self.server.answers[self.path](self)
        except (ConnectionError, ssl.SSLError):
            self.close_connection = True  # the client has had enough

    do_HEAD = do_POST = do_GET

    def log_message(self, *_: object) -> None:
        pass


@contextmanager
def serving(tls: ssl.SSLContext | None = None) -> Iterator[Site]:
    site = Site()
    if tls is not None:
        site.socket = tls.wrap_socket(site.socket, server_side=True, do_handshake_on_connect=False)
    thread = threading.Thread(target=site.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield site
    finally:  # else a test that fails keeps the process from its end
        site.is_over.set()
        site.shutdown()
        site.server_close()
        thread.join()


def get(url: str, stop: threading.Event | None = None, **changes: Any) -> FetchedPage:
    limits: dict[str, Any] = {
        "fetch_limit_bytes": LIMIT_BYTES,
        "fetch_allow_private": True,
    } | changes
    return fetch(url, Settings(_env_file=None, **limits), stop or threading.Event())


def refusal(url: str, **changes: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        get(url, **changes)
    return caught.value.message


# Tricks to reach what is private, one a line: the host of a URL, with its port as {port}.
HOSTS = {
    "loopback": "127.0.0.1:{port}",
    "another address of the loopback": "127.255.255.254:{port}",
    "a short address": "127.1:{port}",
    "three parts": "127.0.1:{port}",
    "a decimal number": "2130706433:{port}",
    "a hexadecimal number": "0x7f000001:{port}",
    "hexadecimal parts": "0x7f.0x0.0x0.0x1:{port}",
    "octal parts": "0177.0.0.01:{port}",
    "octal parts with zeros": "00000177.0.0.1:{port}",
    "mixed notations": "0x7f.0.1:{port}",
    "the name of this machine": "localhost:{port}",
    "in capitals": "LOCALHOST:{port}",
    "with a dot behind": "localhost.:{port}",
    "a name below it": "any.localhost:{port}",
    "an address with a dot behind": "127.0.0.1.:{port}",
    "zero": "0:{port}",
    "nowhere": "0.0.0.0:{port}",
    "this network": "0.1.2.3:{port}",
    "IPv6 loopback": "[::1]:{port}",
    "IPv6 loopback at length": "[0000:0000:0000:0000:0000:0000:0000:0001]:{port}",
    "IPv6 nowhere": "[::]:{port}",
    "IPv4 mapped": "[::ffff:127.0.0.1]:{port}",
    "IPv4 mapped in hexadecimal": "[::ffff:7f00:1]:{port}",
    "IPv4 compatible": "[::127.0.0.1]:{port}",
    "NAT64": "[64:ff9b::7f00:1]:{port}",
    "NAT64 of a network": "[64:ff9b:1::7f00:1]:{port}",
    "6to4": "[2002:7f00:1::]:{port}",
    "Teredo": "[2001:0:808:808:0:0:80ff:fffe]:{port}",
    "ISATAP": "[2606:4700::5efe:7f00:1]:{port}",
    "a zone": "[fe80::1%25lo]:{port}",
    "link-local IPv6": "[fe80::1]",
    "site-local": "[fec0::1]",
    "unique local": "[fd00::1]",
    "private A": "10.0.0.1",
    "private B": "172.16.0.1",
    "private C": "192.168.0.1",
    "shared space of providers": "100.64.0.1",
    "link-local": "169.254.0.1",
    "metadata of Amazon, Google, Azure": "169.254.169.254",
    "metadata as a number": "2852039166",
    "metadata in octal": "0251.0376.0251.0376",
    "metadata, mapped": "[::ffff:a9fe:a9fe]",
    "metadata by NAT64": "[64:ff9b::a9fe:a9fe]",
    "metadata of Amazon on IPv6": "[fd00:ec2::254]",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "Azure's host": "168.63.129.16",
    "multicast": "224.0.0.1",
    "multicast IPv6": "[ff02::1]",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1",
    "documentation": "192.0.2.1",
    "benchmarks": "198.18.0.1",
    "full-width digits": "１２７.０.０.１:{port}",
    "an ideographic dot": "127。0。0。1:{port}",
    "letters in circles": "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}",
    "a soft hyphen": "local\u00adhost:{port}",
    "a zero-width space": "local\u200bhost:{port}",
    "an escaped host": "%6c%6f%63%61%6c%68%6f%73%74:{port}",
    "a user name": "user@127.0.0.1:{port}",
    "a public host as user name": "example.org@127.0.0.1:{port}",
    "a public host as user name and password": "example.org:80@127.0.0.1:{port}",
    "a backslash": "example.org:80\\@127.0.0.1:{port}",
    "two at signs": "a@example.org@127.0.0.1:{port}",
    "a blank": "127.0.0.1 example.org:{port}",
    "a line end": "127.0.0.1\r\nx:{port}",
    "a tab": "127.0\t.0.1:{port}",
    "a NUL": "127.0.0.1\0.example.org:{port}",
    "no host": ":{port}",
    "a port that wraps around": "127.0.0.1:{wrapped}",
    "the port 0": "8.8.8.8:0",
    "a port of mail": "8.8.8.8:25",
    "a port of a shell": "8.8.8.8:22",
    "a port of Redis": "8.8.8.8:6379",
    "a port of PostgreSQL": "8.8.8.8:5432",
}
