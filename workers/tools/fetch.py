"""The tool `fetch_url`: a page of the public internet as text.

Every hop is checked (`addresses.py`), and the connection goes to the very address that was
checked. The whole fetch has `fetch_timeout_s`, and reads `fetch_limit_bytes` of the unpacked
body: of a longer one only the beginning is taken, and the text says so. No proxies, no cookies,
no credentials.
"""

import asyncio
import ssl
import threading
import zlib
from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass
from typing import Final

import httpx

from shared.config import Settings
from shared.errors import Cancelled, DocumentError, InvalidInput
from workers.ingest.decode import decode
from workers.ingest.html import declared_charset, render
from workers.tools.addresses import resolve

MOST_REDIRECTS: Final = 5
_STOP_POLL_S: Final = 0.1
_PORTS: Final = {"http": 80, "https": 443}
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
    return asyncio.run(_watched(url, settings, stop, tls))


async def _watched(
    url: str, settings: Settings, stop: threading.Event, tls: ssl.SSLContext | None
) -> Fetched:
    task = asyncio.create_task(_fetch(url, settings, tls))
    loop = asyncio.get_running_loop()
    deadline = loop.time() + settings.fetch_timeout_s
    try:
        while not task.done():
            if stop.is_set():
                raise Cancelled("The fetch was stopped.")
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise InvalidInput(f"{url} took longer than {settings.fetch_timeout_s:g} s.")
            await asyncio.wait({task}, timeout=min(_STOP_POLL_S, left_s))
        return task.result()
    finally:
        task.cancel()


async def _fetch(url: str, settings: Settings, tls: ssl.SSLContext | None) -> Fetched:
    async with httpx.AsyncClient(
        verify=tls or True, trust_env=False, follow_redirects=False, timeout=None
    ) as client:
        at = _parsed(url)
        for _ in range(MOST_REDIRECTS + 1):
            addresses = await resolve(
                at.raw_host.decode("ascii"),
                at.port or _PORTS[at.scheme],
                allow_private=settings.fetch_allow_private,
            )
            response = await _connect(client, at, addresses)
            try:
                location = response.headers.get("location")
                if response.status_code not in _REDIRECTS or location is None:
                    return await _read(at, response, settings.fetch_limit_bytes)
                at = _parsed(location, base=at)
            except httpx.HTTPError as error:
                raise InvalidInput(f"{at} could not be read: {_reason(error)}.") from error
            finally:
                await response.aclose()
    raise InvalidInput(f"{url} redirects more than {MOST_REDIRECTS} times.")


def _parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    try:
        parsed = base.join(url) if base is not None else httpx.URL(url.strip())
        is_web = parsed.scheme in _PORTS and bool(parsed.host)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidInput(f"{url!r} is no URL: {error}.") from error
    if not is_web:
        raise InvalidInput(f"{url!r} cannot be fetched; give a URL with http:// or https://.")
    if parsed.userinfo:
        raise InvalidInput("URLs with a user name or password are not fetched.")
    return parsed.copy_with(fragment=None)


async def _connect(
    client: httpx.AsyncClient, url: httpx.URL, addresses: list[str]
) -> httpx.Response:
    """To the checked address, under the host's name: the name is not looked up a second time."""
    problem = "it has no address"
    for address in addresses:
        request = client.build_request(
            "GET",
            url.copy_with(host=address),
            headers=_HEADERS | {"host": url.netloc.decode("ascii")},
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        try:
            return await client.send(request, stream=True)
        except httpx.ConnectError as error:
            problem = _reason(error)
        except httpx.HTTPError as error:
            raise InvalidInput(f"{url} could not be read: {_reason(error)}.") from error
    raise InvalidInput(f"{url} could not be reached: {problem}.")


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
            declared=response.charset_encoding or (declared_charset(body) if is_html else None),
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


def _reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__
