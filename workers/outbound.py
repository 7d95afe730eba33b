"""Requests to addresses that users name: the one guard for webhooks and for `fetch_url`.

Every hop's host is looked up here, every address of it is checked (`shared/addresses.py`), and the
connection goes to the very address that was checked: a name that answers otherwise the next time
changes nothing. A request has a time in all, stops with its step, and is sent without proxies,
cookies or credentials. Who reads a body reads it piece by piece, to a limit of its own.
"""

import asyncio
import socket
import threading
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Final, TypeVar

import httpx

from shared.addresses import is_allowed
from shared.errors import Cancelled, InvalidInput

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
