"""Requests to other servers: what their errors mean; and the one guard for addresses that users
name (webhooks, `fetch_url`).

Every hop's host is looked up here, every address of it is checked (`shared/addresses.py`), and the
connection goes to the very address that was checked: a name that answers otherwise the next time
changes nothing. A request has a time in all, stops with its step, and is sent without proxies,
cookies or credentials. Who reads a body reads it piece by piece, to a limit of its own.
"""

import asyncio
import math
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from typing import Final, TypeVar
from urllib.parse import urlsplit, urlunsplit

import httpx

from shared.addresses import is_allowed
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

_STOP_POLL_S: Final = 0.1
PORTS: Final = {"http": 80, "https": 443}


class NotAllowed(InvalidInput):
    """The address is none that may be reached on a user's behalf."""


class Unreachable(InvalidInput):
    """Nothing answers there now."""


def within(
    work: Callable[[], Awaitable[T]], *, timeout_s: float, what: str, stop: threading.Event
) -> T:
    """The result of `work`, for a thread that can wait.

    Raises Unreachable after `timeout_s`, Cancelled soon after `stop` is set, and what `work` does.
    """

    async def watched() -> T:
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

    return asyncio.run(watched())


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
    return target.copy_with(fragment=None)


async def send(
    client: httpx.AsyncClient,
    method: str,
    url: httpx.URL,
    *,
    headers: Mapping[str, str],
    allow_private: bool,
    content: bytes | None = None,
) -> httpx.Response:
    """The answer with its body unread; close it. Redirects are the caller's to follow.

    Sent to a checked address, under the host's name. Raises NotAllowed or Unreachable.
    """
    addresses = await resolve(
        url.raw_host.decode("ascii"), url.port or PORTS[url.scheme], allow_private=allow_private
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
    raise Unreachable(f"{url} could not be reached: {problem}.")


async def resolve(host: str, port: int, *, allow_private: bool) -> list[str]:
    """The addresses of a host. Raises NotAllowed if a single one of them is not allowed, and
    Unreachable where there is none.

    A host with one public and one private name would otherwise be a way around.
    """
    addresses = list(dict.fromkeys(await _lookup(host, port)))
    for address in addresses:
        if not is_allowed(address, allow_private=allow_private):
            raise NotAllowed(
                f"{host} is at {address}, which is not an address of the public internet; it is "
                "not fetched."
            )
    return addresses


def reason(error: httpx.HTTPError) -> str:
    return str(error) or type(error).__name__


async def _lookup(host: str, port: int) -> list[str]:
    """In a thread that nobody waits for: a resolver may take longer than the caller has."""
    loop = asyncio.get_running_loop()
    answer: asyncio.Future[list[str]] = loop.create_future()

    def settle(outcome: list[str] | OSError) -> None:
        if answer.done():
            return
        if isinstance(outcome, OSError):
            answer.set_exception(Unreachable(f"There is no host {host!r}: {outcome.strerror}."))
        else:
            answer.set_result(outcome)

    def look_up() -> None:
        outcome: list[str] | OSError
        try:
            infos = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
            outcome = [str(info[4][0]) for info in infos]
        except UnicodeError:
            outcome = OSError(0, "the name is not valid")
        except OSError as error:
            outcome = error
        with suppress(RuntimeError):  # the loop is closed: the caller had no more time
            loop.call_soon_threadsafe(settle, outcome)

    threading.Thread(target=look_up, name="resolver", daemon=True).start()
    return await answer
