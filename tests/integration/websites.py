"""Real web servers on the loopback, for the tests of `fetch_url`."""

import http.server
import ssl
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import InvalidInput
from workers.tools.fetch import Fetched, fetch

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


def get(url: str, stop: threading.Event | None = None, **changes: Any) -> Fetched:
    limits: dict[str, Any] = {
        "fetch_limit_bytes": LIMIT_BYTES,
        "fetch_allow_private": True,
    } | changes
    return fetch(url, Settings(_env_file=None, **limits), stop or threading.Event())


def refusal(url: str, **changes: Any) -> str:
    with pytest.raises(InvalidInput) as caught:
        get(url, **changes)
    return caught.value.message


# What comes back
