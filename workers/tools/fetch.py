"""The tool `fetch_url`: a page of the public internet as text.

Of a whole page of HTML its main content is the text, without what stands around it on every page of
a site: that is what a model is to read. Every hop goes through `workers/outbound.py`. The whole
fetch has `fetch_timeout_s`, and reads `fetch_limit_bytes` of the unpacked body: of a longer one
only the beginning is taken, and the text says so.
"""

import ssl
import threading
from dataclasses import dataclass
from typing import Final

from shared.config import Settings
from shared.errors import DocumentError, InvalidInput
from workers import outbound
from workers.ingest.formats.texts.html import declared_charset, render
from workers.ingest.formats.texts.text import decode

_HTML: Final = frozenset({"text/html", "application/xhtml+xml"})
_HEADERS: Final = {
    "user-agent": "Sluice (fetch_url)",
    "accept": "text/html, application/xhtml+xml, application/json, text/*;q=0.9",
    "accept-encoding": outbound.PACKINGS,
}


@dataclass(frozen=True, kw_only=True)
class FetchedPage:
    url: str
    """Where the redirects led to."""
    text: str
    title: str | None
    is_cut: bool


def fetch(
    url: str, settings: Settings, stop: threading.Event, *, tls: ssl.SSLContext | None = None
) -> FetchedPage:
    """Raises InvalidInput, with a message for the model, where there is no text to be had.

    Raises Cancelled soon after `stop` is set. `tls` is for hosts with certificates of one's own.
    """
    return outbound.within(
        lambda: _fetch(url, settings, tls),
        timeout_s=settings.fetch_timeout_s,
        what=url,
        stop=stop,
    )


async def _fetch(url: str, settings: Settings, tls: ssl.SSLContext | None) -> FetchedPage:
    async with outbound.Clients(tls) as clients:
        resource = await outbound.get(
            url,
            guard=settings.guard(allow_private=settings.fetch_allow_private),
            headers=_HEADERS,
            limit_bytes=settings.fetch_limit_bytes,
            clients=clients.of,
            accepts=_check_type,
        )
    if not 200 <= resource.status < 300:
        raise InvalidInput(f"{resource.url} answered with status {resource.status}.")
    body = _whole_words(resource.body) if resource.is_cut else resource.body
    is_html = resource.media_type in _HTML
    try:
        text = decode(
            body,
            name=resource.url,
            declared=[resource.charset, declared_charset(body) if is_html else None],
            hint="It cannot be read.",
        ).text
        page = render(text, name=resource.url, main_content=True) if is_html else None
    except DocumentError as error:
        raise InvalidInput(error.message) from error
    return FetchedPage(
        url=resource.url,
        text=page.text if page else text,
        title=page.title if page else None,
        is_cut=resource.is_cut,
    )


def _check_type(resource: outbound.Resource) -> None:
    media_type = resource.media_type or "text/plain"
    is_json = media_type == "application/json" or media_type.endswith("+json")
    if not (media_type in _HTML or is_json or media_type.startswith("text/")):
        raise InvalidInput(f"{resource.url} is {media_type}; only text, HTML and JSON are fetched.")


def _whole_words(data: bytes) -> bytes:
    """Up to the last white space: a byte that is in no character of several bytes."""
    end = max(data.rfind(b" "), data.rfind(b"\n"))
    return data[:end] if end > 0 else data
