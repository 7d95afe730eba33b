"""HTTP with a timeout for the whole answer."""

import time
from collections.abc import Iterator

import httpx


class TimedTransport(httpx.HTTPTransport):
    """A transport with a timeout for the whole answer: httpx has one for each read only, so an
    answer that arrives byte by byte would never end."""

    def __init__(self, timeout_s: float) -> None:
        super().__init__()
        self._timeout_s = timeout_s

    def handle_request(self, request: httpx.Request) -> httpx.Response:
        ends = time.monotonic() + self._timeout_s
        response = super().handle_request(request)
        stream = response.stream
        assert isinstance(stream, httpx.SyncByteStream)
        response.stream = _TimedStream(stream, ends, self._timeout_s)
        return response


class _TimedStream(httpx.SyncByteStream):
    def __init__(self, stream: httpx.SyncByteStream, ends: float, timeout_s: float) -> None:
        self._stream = stream
        self._ends = ends
        self._timeout_s = timeout_s

    def __iter__(self) -> Iterator[bytes]:
        for piece in self._stream:
            if time.monotonic() > self._ends:
                raise httpx.ReadTimeout(
                    f"the answer was not there within {self._timeout_s:g} s "
                    "(SLUICE_REQUEST_TIMEOUT_S)"
                )
            yield piece

    def close(self) -> None:
        self._stream.close()
