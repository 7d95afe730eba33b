"""The tool `fetch_url`: a page of the public internet as text.

Every hop goes through `workers/outbound.py`. The whole fetch has `fetch_timeout_s`, and reads
`fetch_limit_bytes` of the unpacked body: of a longer one only the beginning is taken, and the text
says so.
"""

import ssl
import threading
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import httpx

from shared.config import Settings
from shared.errors import DocumentError, InvalidInput
from workers import outbound
from workers.ingest.formats.html import declared_charset, render
from workers.ingest.formats.text import decode

MOST_REDIRECTS: Final = 5
_REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_HEADERS: Final = {
    "user-agent": "Sluice (fetch_url)",
    "accept": "text/html, application/xhtml+xml, application/json, text/*;q=0.9",
    "accept-encoding": "gzip",
}
_ANY_PACKED: Final = 32 + zlib.MAX_WBITS  # gzip or zlib, by the header


@dataclass(frozen=True, kw_only=True)
class Fetched:
    url: str
    """Where the redirects led to."""
    text: str
    title: str | None
    is_cut: bool


def fetch(
    url: str, settings: Settings, stop: threading.Event, *, tls: ssl.SSLContext | None = None
) -> Fetched:
    """Raises InvalidInput, with a message for the model, where there is no text to be had.

    Raises Cancelled soon after `stop` is set. `tls` is for hosts with certificates of one's own.
    """
    return outbound.within(
        lambda: _fetch(url, settings, tls),
        timeout_s=settings.fetch_timeout_s,
        what=url,
        stop=stop,
    )


async def _fetch(url: str, settings: Settings, tls: ssl.SSLContext | None) -> Fetched:
    async with httpx.AsyncClient(
        verify=tls or True, trust_env=False, follow_redirects=False, timeout=None
    ) as client:
        at = outbound.parsed(url)
        for _ in range(MOST_REDIRECTS + 1):
            response = await outbound.send(
                client, "GET", at, headers=_HEADERS, allow_private=settings.fetch_allow_private
            )
            try:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    return await _read(at, response, settings.fetch_limit_bytes)
                at = outbound.parsed(location, base=at)
            except httpx.HTTPError as error:
                raise InvalidInput(f"{at} could not be read: {outbound.reason(error)}.") from error
            finally:
                await response.aclose()
    raise InvalidInput(f"{url} redirects more than {MOST_REDIRECTS} times.")


async def _read(url: httpx.URL, response: httpx.Response, limit_bytes: int) -> Fetched:
    if not response.is_success:
        raise InvalidInput(f"{url} answered with status {response.status_code}.")
    media_type = (
        response.headers.get("content-type", "text/plain").partition(";")[0].strip().lower()
    )
    is_html = media_type in _HTML
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if not (is_html or is_json or media_type.startswith("text/")):
        raise InvalidInput(f"{url} is {media_type}; only text, HTML and JSON are fetched.")
    data = bytearray()
    async with aclosing(_unpacked(url, response, limit_bytes + 1)) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > limit_bytes:
                break
    is_cut = len(data) > limit_bytes
    body = _whole_words(bytes(data[:limit_bytes])) if is_cut else bytes(data)
    try:
        text = decode(
            body,
            name=str(url),
            declared=[response.charset_encoding, declared_charset(body) if is_html else None],
            hint="It cannot be read.",
        ).text
        page = render(text, name=str(url)) if is_html else None
    except DocumentError as error:
        raise InvalidInput(error.message) from error
    return Fetched(
        url=str(url),
        text=page.text if page else text,
        title=page.title if page else None,
        is_cut=is_cut,
    )


async def _unpacked(
    url: httpx.URL, response: httpx.Response, limit_bytes: int
) -> AsyncGenerator[bytes, None]:
    """The body piece by piece; no piece is longer than the limit, however tightly it was packed."""
    encoding = response.headers.get("content-encoding", "identity").strip().lower()
    if encoding == "identity":
        async for piece in response.aiter_raw():
            yield piece
        return
    if encoding not in ("gzip", "x-gzip", "deflate"):
        raise InvalidInput(f"{url} is packed as {encoding}, which was not asked for.")
    unpacker = zlib.decompressobj(_ANY_PACKED)
    try:
        async for piece in response.aiter_raw():
            yield unpacker.decompress(piece, limit_bytes)
    except zlib.error as error:
        raise InvalidInput(f"{url} is not packed as it says: {error}.") from error
    if not unpacker.eof:
        raise InvalidInput(f"{url} ended in the middle.")


def _whole_words(data: bytes) -> bytes:
    """Up to the last white space: a byte that is in no character of several bytes."""
    end = max(data.rfind(b" "), data.rfind(b"\n"))
    return data[:end] if end > 0 else data
