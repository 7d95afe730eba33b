"""Fetches documents of the web: with pauses at each host, guarded, and only if they have changed.

Each request waits until its host may be asked (`shared/documents/remote.py`), goes through
`workers/outbound.py`, and has the validators of the last answer. A document that cannot be fetched
is a `DocumentError` with the URL; one that may be fetched later is `NotNow`.
"""

import asyncio
import contextlib
import threading
from collections.abc import Callable, Collection, Coroutine
from concurrent.futures import Future
from dataclasses import dataclass
from functools import partial
from pathlib import PurePosixPath
from types import TracebackType
from typing import Any, Final, TypedDict, TypeVar, Unpack
from urllib.parse import unquote

from shared.addresses import Guard
from shared.documents import remote
from shared.documents.remote import RemoteOrigin
from shared.errors import Cancelled, DocumentError, InvalidInput
from shared.formats import FORMATS
from shared.urls import normal_url, origin_of, path_of
from workers import outbound
from workers.attempts.context import Context
from workers.outbound import Resource

T = TypeVar("T")

_PATIENCE_S: Final = 2.0
"""If the next request may be sent only later than this, it is not waited for: the step does other
work."""
_LATER: Final = frozenset({429, 503})
_GONE: Final = frozenset({404, 410})
VAGUE_TYPES: Final = frozenset(
    {"", "text/plain", "application/octet-stream", "binary/octet-stream", "application/zip"}
)
_ACCEPT: Final = "text/html,application/xhtml+xml,text/*;q=0.9,*/*;q=0.5"
# Types of no format of documents, whose bodies are not read.
_NO_DOCUMENTS: Final = ("image/", "audio/", "video/", "font/", "model/", "multipart/")


class NotNow(Exception):
    """The host may be asked later. `reason` has its answer, if it was asked."""

    def __init__(self, wait_s: float, reason: str = "") -> None:
        super().__init__(reason)
        self.wait_s = wait_s
        self.reason = reason


class Gone(DocumentError):
    """The server answers that there is no such document."""


class NoDocument(DocumentError):
    """The type of the document is not ingested."""

    def __init__(self, message: str, media_type: str) -> None:
        super().__init__(message)
        self.media_type = media_type


@dataclass(frozen=True, kw_only=True)
class Page:
    """An answer. `is_same`: the document has not changed since the last time, and has no data."""

    url: str
    """The URL behind all redirects, in normal form."""
    resource: Resource
    is_same: bool

    @property
    def data(self) -> bytes:
        return self.resource.body

    @property
    def content_type(self) -> str | None:
        value: str | None = self.resource.headers.get("content-type")
        return value

    @property
    def etag(self) -> str | None:
        return _header(self.resource, "etag")

    @property
    def modified(self) -> str | None:
        return _header(self.resource, "last-modified")

    @property
    def file_name(self) -> str:
        """A name with a suffix only if the media type does not say the format."""
        last = unquote(path_of(self.url).rsplit("/", 1)[-1]) or "page"
        is_said = self.resource.media_type not in VAGUE_TYPES and any(
            self.resource.media_type in format_.media_types for format_ in FORMATS.values()
        )
        return PurePosixPath(last).stem if is_said else last


class RequestOptions(TypedDict, total=False):
    """How a document is asked for, where not as the settings say."""

    delay_s: float | None
    may_go: Callable[[str], None] | None
    """Sees each URL that a redirect leads to. Called in another thread, as `accepts` is."""
    accepts: Callable[[Resource], None] | None
    """Sees what a success says of itself before its body is read."""


class FetchOptions(RequestOptions, total=False):
    known: RemoteOrigin | None
    """Then it is asked for only if it has changed since."""
    limit_bytes: int | None


def _header(resource: Resource, name: str) -> str | None:
    """A header that can be stored and sent back."""
    value: str | None = resource.headers.get(name)
    return value if value and len(value) <= 1024 and value.isascii() else None


class Fetcher:
    """Fetches documents over connections that stay open; several at a time, if more are started
    before the first is waited for."""

    def __init__(self, context: Context, *, patience_s: float = _PATIENCE_S) -> None:
        self._context = context
        self._settings = context.process.settings
        self._guard: Guard = self._settings.guard()
        self._patience_s = patience_s

    def __enter__(self) -> "Fetcher":
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(
            target=self._loop.run_forever, name="web fetcher", daemon=True
        )
        self._thread.start()
        self._clients = outbound.Clients()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        with contextlib.suppress(Exception):
            self._run(self._end()).result()
        self._loop.call_soon_threadsafe(self._loop.stop)
        self._thread.join()
        self._loop.close()

    async def _end(self) -> None:
        """What is still under way is given up."""
        others = asyncio.all_tasks() - {asyncio.current_task()}
        for task in others:
            task.cancel()
        await asyncio.gather(*others, return_exceptions=True)
        await self._clients.__aexit__(None, None, None)

    def _run(self, work: Coroutine[Any, Any, T]) -> "Future[T]":
        return asyncio.run_coroutine_threadsafe(work, self._loop)

    def fetch(self, url: str, **options: Unpack[FetchOptions]) -> Page:
        """Fetch a URL. Raises the errors of `start` and of the function that it returns."""
        return self.start(url, **options)()

    def start(self, url: str, **options: Unpack[FetchOptions]) -> Callable[[], Page]:
        """Request a URL, once the host may be asked. Raises NotNow, Cancelled.

        The returned function waits for the document. It raises DocumentError, NotNow, Cancelled,
        and the errors of `may_go` and `accepts`. A status of an error is not raised
        (`Page.resource`).
        """
        known, delay_s = options.get("known"), options.get("delay_s")
        self._wait(origin_of(url), self._settings.web_delay_s if delay_s is None else delay_s)
        headers = {
            "user-agent": self._settings.web_user_agent,
            "accept": _ACCEPT,
            "accept-encoding": outbound.PACKINGS,
        }
        if known is not None and known.etag:
            headers["if-none-match"] = known.etag
        if known is not None and known.modified:
            headers["if-modified-since"] = known.modified
        limit = options.get("limit_bytes")

        def get() -> Coroutine[Any, Any, Resource]:
            return outbound.get(
                url,
                guard=self._guard,
                headers=headers,
                limit_bytes=self._settings.web_limit_bytes if limit is None else limit,
                clients=self._clients.of,
                accepts=options.get("accepts"),
                may_go=options.get("may_go"),
            )

        answer = self._run(
            outbound.limited(
                get, timeout_s=self._settings.web_timeout_s, what=url, stop=self._context.stop
            )
        )
        return partial(self._page, url, known, answer)

    def _page(self, url: str, known: RemoteOrigin | None, answer: "Future[Resource]") -> Page:
        try:
            resource = answer.result()
        except InvalidInput as error:
            named = url in error.message
            raise DocumentError(error.message if named else f"{url}: {error.message}") from error
        if resource.status in _LATER:
            self._postpone(url, resource)
        return Page(
            url=normal_url(resource.url),
            resource=resource,
            is_same=resource.status == 304 and known is not None,
        )

    def _wait(self, origin: str, delay_s: float) -> None:
        with self._context.process.ledger.begin() as session:
            wait_s = remote.reserve_request(
                session, origin, delay_s=delay_s, patience_s=self._patience_s
            )
            left_s = remote.seconds_until_request(session, origin) if wait_s is None else 0.0
        if wait_s is None:
            raise NotNow(left_s)
        if wait_s and self._context.stop.wait(wait_s):
            raise Cancelled(self._context.stop_reason)
        self._context.check()

    def _postpone(self, url: str, resource: Resource) -> None:
        """Let the host rest for its `Retry-After`. Raises NotNow."""
        header_s = outbound.retry_after_s(resource.headers.get("retry-after"))
        wait_s = min(5.0 if header_s is None else header_s, self._settings.web_delay_limit_s)
        with self._context.process.ledger.begin() as session:
            remote.pause_requests(session, origin_of(normal_url(resource.url)), wait_s)
        raise NotNow(wait_s, f"{url}: the server answered with status {resource.status}.")


def check_status(page: Page, url: str) -> None:
    """Raises DocumentError for the status of an error, Gone if the document was removed."""
    status = page.resource.status
    if 200 <= status < 300 or page.is_same:
        return
    at = "" if page.url == url else f" at {page.url}"
    if status in _GONE:
        raise Gone(
            f"{url}: there is nothing{at} (status {status}). Correct the URL, or leave it out."
        )
    if status in (401, 403):
        raise DocumentError(
            f"{url}: the server does not let us read it{at} (status {status}). Save the page, and "
            "ingest the file."
        )
    raise DocumentError(f"{url}: the server answered with status {status}{at}. Try again later.")


def check_type(url: str, resource: Resource, *, requested: Collection[str] = ()) -> None:
    """Raises NoDocument for a type of no format, or of one whose option is not `requested`, before
    the body is read."""
    media_type = resource.media_type
    known = next((f for f in FORMATS.values() if media_type in f.media_types), None)
    if known is None and media_type.startswith(_NO_DOCUMENTS):
        raise NoDocument(
            f"{url}: is {media_type}, which is not ingested. Leave it out.", media_type
        )
    if known is not None and known.option and known.option not in requested:
        raise NoDocument(
            f"{url}: is {media_type}, which is only ingested with the option {known.option}. Add "
            "it to the source, or leave it out.",
            media_type,
        )


def check_whole(page: Page, url: str, limit_bytes: int) -> None:
    """Raises DocumentError if the document is longer than the limit."""
    if page.resource.is_cut:
        raise DocumentError(
            f"{url}: has more than {limit_bytes:,} bytes. Ingest it as a file, or raise "
            "SLUICE_WEB_LIMIT_BYTES."
        )
