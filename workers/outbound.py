"""Requests to other servers: what their errors mean; and the one guard for addresses that users
name (webhooks, `fetch_url`, sources of ingest jobs), or that servers of the deployer lead to.

Every hop's host is looked up here, every address of it is checked (`shared/addresses.py`), and the
connection goes to the very address that was checked: a name that answers otherwise the next time
changes nothing. A request has a time in all, stops with its step, and is sent without proxies,
cookies or credentials. `get` follows redirects, each hop checked anew, and unpacks the body piece
by piece, to a limit.
"""

import asyncio
import math
import socket
import ssl
import threading
import zlib
from collections.abc import (
    AsyncGenerator,
    Awaitable,
    Callable,
    Collection,
    Iterable,
    Iterator,
    Mapping,
)
from contextlib import aclosing, suppress
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import cache
from http.cookiejar import CookieJar, DefaultCookiePolicy
from typing import Final, Protocol, TypeVar
from urllib.parse import urlsplit, urlunsplit

import brotli
import httpx

from shared.addresses import Guard, literal
from shared.errors import (
    Cancelled,
    ConfigurationError,
    InvalidInput,
    Permanent,
    Retryable,
    StepError,
    Unavailable,
)

# What goes wrong with another server, as the errors that the runner's retry policy goes by.
#
# - It does not answer, or answers that it cannot now: `Unavailable`, with the server's Retry-After.
# - Its stream breaks off in the middle: `Retryable`, and the next attempt goes on from there.
# - It says that the request is wrong: `Permanent`, with its own words and what to do.

_TRY_LATER = (408, 425, 429)
_MESSAGE_LIMIT_CHARS = 500


@dataclass(frozen=True, kw_only=True)
class RemoteServer:
    """A server as error messages name it; `url` carries no credentials.

    `remedy` is a sentence that says how to get it running.
    """

    name: str
    url: str
    setting: str
    remedy: str
    key_setting: str
    retry_after_limit_s: float

    def __str__(self) -> str:
        return f"{self.name} at {self.url} ({self.setting})"


def without_credentials(url: str, setting: str) -> str:
    """The URL without user and password. Raises ConfigurationError where it is not one of HTTP."""
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as error:
        raise ConfigurationError(f"{setting} is not a URL: {error}.") from error
    if parts.scheme not in ("http", "https") or not host:
        raise ConfigurationError(f"{setting} must be a URL such as http://127.0.0.1:8080.")
    address = f"[{host}]" if ":" in host else host
    return urlunsplit(
        (parts.scheme, address if port is None else f"{address}:{port}", parts.path, "", "")
    )


def unreachable(server: RemoteServer, why: str) -> Unavailable:
    return Unavailable(f"{server} does not answer: {why}. {server.remedy}")


def broken_off(server: RemoteServer, why: str) -> Retryable:
    return Retryable(f"{server} broke off its answer: {why}.")


def refused(server: RemoteServer, status: int, message: str, retry_after: str | None) -> StepError:
    """For an answer with a status from 300."""
    if status < 400:
        return Permanent(
            f"{server} answered {status}: it sends its callers to another address, where nobody "
            f"follows. Set {server.setting} to where it is."
        )
    words = as_sentence(message)
    if status in _TRY_LATER or status >= 500:
        delay_s = retry_after_s(retry_after)
        capped = None if delay_s is None else min(delay_s, server.retry_after_limit_s)
        return Unavailable(f"{server} answered {status}: {words}", retry_after_s=capped)
    if status in (401, 403):
        return Permanent(
            f"{server} answered {status}: {words} Set {server.key_setting} to a key that it takes."
        )
    return Permanent(f"{server} answered {status}: {words}")


def retry_after_s(header: str | None) -> float | None:
    """Seconds from a Retry-After header, which has seconds or a date; None if it has neither."""
    if not header:
        return None
    try:
        seconds = float(header)
    except ValueError:
        try:
            moment = parsedate_to_datetime(header)
        except ValueError:
            return None
        if moment.tzinfo is None:
            moment = moment.replace(tzinfo=UTC)
        seconds = (moment - datetime.now(UTC)).total_seconds()
    return None if math.isnan(seconds) else max(0.0, seconds)


def as_sentence(message: str) -> str:
    """A server's own words as one sentence."""
    words = " ".join(message.split()) or "(no message)"
    words = words if len(words) <= _MESSAGE_LIMIT_CHARS else words[:_MESSAGE_LIMIT_CHARS] + "…"
    return words if words.endswith((".", "!", "?", "…", ")")) else words + "."


T = TypeVar("T")

# Addresses that users name

_STOP_POLL_S: Final = 0.1
PORTS: Final = {"http": 80, "https": 443}


class NotAllowed(InvalidInput):
    """The address is none that may be reached on a user's behalf."""


class Unreachable(InvalidInput):
    """Nothing answers there now."""


def within(
    work: Callable[[], Awaitable[T]], *, timeout_s: float, what: str, stop: threading.Event
) -> T:
    """The result of `work`, for a thread that can wait, as `limited` has it."""
    return asyncio.run(limited(work, timeout_s=timeout_s, what=what, stop=stop))


async def limited(
    work: Callable[[], Awaitable[T]], *, timeout_s: float, what: str, stop: threading.Event
) -> T:
    """The result of `work`.

    Raises Unreachable after `timeout_s`, Cancelled soon after `stop` is set, and what `work` does.
    """
    task = asyncio.ensure_future(work())
    loop = asyncio.get_running_loop()
    deadline = loop.time() + timeout_s
    try:
        while not task.done():
            if stop.is_set():
                raise Cancelled("The request was stopped.")
            left_s = deadline - loop.time()
            if left_s <= 0:
                raise Unreachable(f"{what} took longer than {timeout_s:g} s.")
            await asyncio.wait({task}, timeout=min(_STOP_POLL_S, left_s))
        return task.result()
    finally:
        task.cancel()


@cache
def _usual_tls() -> ssl.SSLContext:
    """Reading all certificates takes longer than most requests; each client would do it again."""
    return httpx.create_ssl_context(trust_env=False)


class Clients:
    """Connections for `send` and `get`: of each host its own, for one to an address would be used
    again for whatever host is there. `tls` is for hosts with certificates of one's own."""

    def __init__(self, tls: ssl.SSLContext | None = None) -> None:
        self._tls = tls
        self._clients: dict[bytes, httpx.AsyncClient] = {}

    def of(self, url: httpx.URL) -> httpx.AsyncClient:
        key = url.raw_scheme + b"://" + url.netloc
        if key not in self._clients:
            self._clients[key] = httpx.AsyncClient(
                verify=self._tls or _usual_tls(),
                trust_env=False,
                follow_redirects=False,
                timeout=None,
                cookies=CookieJar(DefaultCookiePolicy(allowed_domains=())),  # none are kept
            )
        return self._clients[key]

    async def __aenter__(self) -> "Clients":
        return self

    async def __aexit__(self, *_: object) -> None:
        for client in self._clients.values():
            await client.aclose()
        self._clients.clear()


def parsed(url: str, base: httpx.URL | None = None) -> httpx.URL:
    """The URL without its fragment, seen from `base`. Raises InvalidInput."""
    try:
        target = base.join(url) if base is not None else httpx.URL(url.strip())
        is_web = target.scheme in PORTS and bool(target.host)
    except (httpx.InvalidURL, ValueError, TypeError) as error:
        raise InvalidInput(f"{url!r} is no URL: {error}.") from error
    if not is_web:
        raise InvalidInput(f"{url!r} cannot be fetched; give a URL with http:// or https://.")
    if target.userinfo:
        raise InvalidInput("URLs with a user name or password are not fetched.")
    if target.port is not None and not 0 < target.port < 65536:
        raise InvalidInput(f"{url!r} is no URL: it has no port behind its colon.")
    return target.copy_with(fragment=None)


async def send(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    *,
    headers: Mapping[str, str],
    guard: Guard,
    content: bytes | None = None,
) -> httpx.Response:
    """The answer with its body unread; close it. Redirects are the caller's to follow.

    Sent to a checked address, under the host's name. Raises NotAllowed or Unreachable.
    """
    addresses = await resolve(
        url.raw_host.decode("ascii"), url.port or PORTS[url.scheme], guard=guard
    )
    problem = "it has no address"
    for address in addresses:
        request = client.build_request(
            method,
            url.copy_with(host=address),
            headers={**headers, "host": url.netloc.decode("ascii")},
            content=content,
            extensions={"sni_hostname": url.raw_host.decode("ascii")},
        )
        try:
            return await client.send(request, stream=True)
        except httpx.ConnectError as error:
            problem = reason(error)
        except httpx.HTTPError as error:
            raise Unreachable(f"{url} could not be read: {reason(error)}.") from error
        except (httpx.InvalidURL, ValueError) as error:
            # The client reads where a redirect leads to, though it does not follow it.
            raise InvalidInput(f"{url} redirects to what is no URL: {error}.") from error
    raise Unreachable(f"{url} could not be reached: {problem}.")


async def resolve(host: str, port: int, *, guard: Guard) -> list[str]:
    """The addresses of a host. Raises NotAllowed if a single one of them is not allowed, and
    Unreachable where there is none.

    A host with one public and one private name would otherwise be a way around.
    """
    addresses = list(dict.fromkeys(await _lookup(host, port)))
    _check_addresses(host, port, addresses, guard)
    return addresses


def _check_addresses(host: str, port: int, addresses: Iterable[str], guard: Guard) -> None:
    for address in addresses:
        if not guard.allows(host, address, port):
            raise NotAllowed(
                f"{host} is at {address} and port {port}, which is not an address of the public "
                "internet, or no port of web sites; it is not fetched. "
                "SLUICE_OUTBOUND_ALLOWED_HOSTS names what may be reached beside it."
            )


def check_hop(
    request: httpx.Request, *, named: Collection[str], guard: Guard, is_proxied: bool
) -> None:
    """Before each request of a library that follows the redirects of a deployer's server by
    itself: what goes to none of the URLs that the deployer has `named` may only read, and only
    where `guard` lets it. Raises NotAllowed.

    Behind a proxy of the environment it is the proxy that looks names up.
    """
    url = request.url
    if _origin(url) in {_origin(httpx.URL(name)) for name in named}:
        return
    scheme, host, port = _origin(url)
    if request.method not in ("GET", "HEAD"):
        raise NotAllowed(
            f"A server sends a {request.method} on to {scheme}://{host}, where nobody follows. Set "
            "its URL to where it is."
        )
    address = literal(host)
    if address is not None:
        _check_addresses(host, port, [address], guard)
    elif not is_proxied:
        with suppress(Unreachable):  # which connecting will show
            _check_addresses(host, port, _looked_up(host, port), guard)


def _origin(url: httpx.URL) -> tuple[str, str, int]:
    return url.scheme, url.raw_host.decode("ascii"), url.port or PORTS.get(url.scheme, 0)


# Resources of the web: redirects, statuses, types, packed bodies.

MOST_REDIRECTS: Final = 5
REDIRECTS: Final = frozenset({301, 302, 303, 307, 308})
PACKINGS: Final = "gzip, deflate, br"
"""For `accept-encoding`."""
_ANY_PACKED: Final = 32 + zlib.MAX_WBITS  # gzip or zlib, by the header
_MOST_PACKINGS: Final = 3
_PIECE_BYTES: Final = 65_536


@dataclass(frozen=True, kw_only=True)
class Resource:
    """What a server sent for a URL. The body of anything but a success is not read."""

    url: str
    """Where the redirects led to."""
    status: int
    headers: httpx.Headers
    body: bytes
    is_cut: bool
    """Whether the body goes on beyond the limit."""
    hops: tuple[str, ...] = ()
    """The URLs that redirected, in order."""
    is_moved: bool = False
    """Whether all redirects are permanent ones, and there is one."""

    @property
    def media_type(self) -> str:
        """In small letters, without parameters; empty where the server says none."""
        content_type: str = self.headers.get("content-type", "")
        return content_type.partition(";")[0].strip().lower()

    @property
    def charset(self) -> str | None:
        return httpx.Response(200, headers=self.headers).charset_encoding


async def get(
    url: str,
    *,
    guard: Guard,
    headers: Mapping[str, str],
    limit_bytes: int,
    clients: Callable[[httpx.URL], httpx.AsyncClient],
    accepts: Callable[[Resource], None] | None = None,
    may_go: Callable[[str], None] | None = None,
) -> Resource:
    """The resource at the end of all redirects, at most MOST_REDIRECTS of them.

    `clients` has the client of each host. `accepts` sees a success before its body is read, and
    `may_go` each URL that a redirect leads to, before it is followed: they raise what is to be
    raised. Raises InvalidInput: NotAllowed, Unreachable, or for a body that is not packed as it
    says.
    """
    at = parsed(url)
    hops: list[str] = []
    is_moved = True
    for _ in range(MOST_REDIRECTS + 1):
        response = await send(clients(at), "GET", at, headers=headers, guard=guard)
        try:
            location = response.headers.get("location")
            if response.status_code not in REDIRECTS or location is None:
                return await _read(at, response, limit_bytes, accepts, tuple(hops), is_moved)
            hops.append(str(at))
            is_moved = is_moved and response.status_code in (301, 308)
            at = parsed(location, base=at)
            if may_go is not None:
                may_go(str(at))
        except httpx.HTTPError as error:
            raise Unreachable(f"{at} could not be read: {reason(error)}.") from error
        finally:
            await response.aclose()
    raise InvalidInput(f"{url} redirects more than {MOST_REDIRECTS} times.")


async def _read(
    url: httpx.URL,
    response: httpx.Response,
    limit_bytes: int,
    accepts: Callable[[Resource], None] | None,
    hops: tuple[str, ...],
    is_moved: bool,
) -> Resource:
    head = Resource(
        url=str(url),
        status=response.status_code,
        headers=response.headers,
        body=b"",
        is_cut=False,
        hops=hops,
        is_moved=is_moved and bool(hops),
    )
    if not response.is_success:
        return head
    if accepts is not None:
        accepts(head)
    data = bytearray()
    async with aclosing(_unpacked(url, response)) as pieces:
        async for piece in pieces:
            data += piece
            if len(data) > limit_bytes:
                break
    return replace(head, body=bytes(data[:limit_bytes]), is_cut=len(data) > limit_bytes)


async def _unpacked(url: httpx.URL, response: httpx.Response) -> AsyncGenerator[bytes, None]:
    """The body in small pieces, however tightly it was packed."""
    named = response.headers.get("content-encoding", "").lower().split(",")
    packings = [name.strip() for name in named if name.strip() not in ("", "identity")]
    if len(packings) > _MOST_PACKINGS:
        raise InvalidInput(f"{url} is packed {len(packings)} times.")
    unpackers: list[_Unpacker] = []
    for packing in reversed(packings):
        if packing not in _UNPACKERS:
            raise InvalidInput(f"{url} is packed as {packing}, which was not asked for.")
        unpackers.append(_UNPACKERS[packing]())
    try:
        async for raw in response.aiter_raw():
            for piece in _through(unpackers, raw):
                yield piece
    except (zlib.error, brotli.error) as error:
        raise InvalidInput(f"{url} is not packed as it says: {error}.") from error
    if not all(unpacker.is_whole for unpacker in unpackers):
        raise InvalidInput(f"{url} ended in the middle.")


def _through(unpackers: "list[_Unpacker]", data: bytes) -> Iterator[bytes]:
    if not unpackers:
        yield data
        return
    for piece in unpackers[0].unpack(data):
        yield from _through(unpackers[1:], piece)


class _Unpacker(Protocol):
    def unpack(self, data: bytes) -> Iterator[bytes]:
        """Pieces of _PIECE_BYTES at most."""

    @property
    def is_whole(self) -> bool:
        """Whether the end has come, or nothing at all."""


class _Deflate:
    """gzip of one or more members, zlib, and the bare stream that some servers send for it."""

    def __init__(self) -> None:
        self._unpacker = zlib.decompressobj(_ANY_PACKED)
        self._is_fresh = self.is_whole = True

    def unpack(self, data: bytes) -> Iterator[bytes]:
        while data:
            self.is_whole = False
            try:
                piece = self._unpacker.decompress(data, _PIECE_BYTES)
            except zlib.error:
                if not self._is_fresh:
                    raise
                self._unpacker = zlib.decompressobj(-zlib.MAX_WBITS)
                piece = self._unpacker.decompress(data, _PIECE_BYTES)
            self._is_fresh = False
            if piece:
                yield piece
            data = self._unpacker.unconsumed_tail
            if self._unpacker.eof:
                self.is_whole = True
                data = self._unpacker.unused_data
                if not data.startswith(b"\x1f\x8b"):
                    return  # what stands behind the end is padding
                self._unpacker = zlib.decompressobj(_ANY_PACKED)


class _Brotli:
    def __init__(self) -> None:
        self._unpacker = brotli.Decompressor()
        self._is_fresh = True

    def unpack(self, data: bytes) -> Iterator[bytes]:
        self._is_fresh = self._is_fresh and not data
        while True:
            piece = self._unpacker.process(data, output_buffer_limit=_PIECE_BYTES)
            if piece:
                yield piece
            data = b""
            if self._unpacker.can_accept_more_data() or not piece:
                return

    @property
    def is_whole(self) -> bool:
        return self._is_fresh or self._unpacker.is_finished()


_UNPACKERS: Final[Mapping[str, Callable[[], _Unpacker]]] = {
    "gzip": _Deflate, "x-gzip": _Deflate, "deflate": _Deflate, "br": _Brotli,
}  # fmt: skip


def reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


async def _lookup(host: str, port: int) -> list[str]:
    """In a thread that nobody waits for: a resolver may take longer than the caller has."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(outcome: list[str] | Unreachable) -> None:
        if answer.done():
            return
        if isinstance(outcome, Unreachable):
            answer.set_exception(outcome)
        else:
            answer.set_result(outcome)

    def look_up() -> None:
        outcome: list[str] | Unreachable
        try:
            outcome = _looked_up(host, port)
        except Unreachable as error:
            outcome = error
        with suppress(RuntimeError):  # the loop is closed: the caller had no more time
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await answer


def _looked_up(host: str, port: int) -> list[str]:
    """Raises Unreachable."""
    try:
        infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
    except UnicodeError as error:
        raise Unreachable(f"There is no host {host!r}: the name is not valid.") from error
    except OSError as error:
        raise Unreachable(f"There is no host {host!r}: {error.strerror}.") from error
    return [str(info[4][0]) for info in infos]
