"""HTTP to the API: one request with retries, or one stream; errors become exceptions.

A request is repeated after a broken connection only where that cannot do harm (`safe=True`), or
where it was never sent; after 429 it is repeated when `Retry-After` is over. An answer of 502 to
504 that is a problem is the API's own: it is repeated where its `Retry-After` is short, and told
in its own words; any other is a gateway's, behind which the API is away. Before the first answer it
gives up soon ("is it running?"), after it the API is known to exist and is given the time of a
restart. This module knows nothing of jobs.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import IO, Any
from urllib.parse import urlsplit

import httpx

from cli.errors import ApiError, ConnectionBroken, ConnectionFailed
from shared.errors import ConfigurationError

Params = Mapping[str, str | int | bool | Sequence[str] | None]
Upload = tuple[str, IO[bytes], str]
"""Name, open file, content type."""

_LOOPBACK = {"127.0.0.1", "localhost", "::1"}
_PASSING = {502, 503, 504}
_TELL_FAILURES = 4
_PROBLEM = "application/problem+json"
_SHORT_S = 10.0
"""A longer `Retry-After` of an API that lacks a server of its own is left to the caller."""


@dataclass(frozen=True, kw_only=True)
class Retries:
    """How long to go on trying; pauses double from `base_s` up to `cap_s`, with jitter."""

    connect_for_s: float = 2.0
    """before the first answer of the API"""
    retry_for_s: float = 60.0
    """after it, when the connection breaks or a gateway answers for the API"""
    busy_for_s: float = 120.0
    """while the API answers 429"""
    base_s: float = 0.2
    cap_s: float = 2.0


class Transport:
    """A connection pool to one API. Threads may share it."""

    def __init__(
        self,
        url: str,
        *,
        api_key: str | None,
        timeout_s: float,
        retries: Retries,
        notify: Callable[[str], None],
    ) -> None:
        parts = urlsplit(url)
        if parts.scheme not in {"http", "https"} or not parts.hostname:
            raise ConfigurationError(
                f"{url!r} is not a URL of the API; it must read like http://127.0.0.1:8000."
            )
        self.url = url.rstrip("/")
        self.timeout_s = timeout_s
        self._retries = retries
        self._notify = notify
        self._answered = False
        self._told_away = False
        self._closed = threading.Event()
        headers = {"Accept": "application/json", "User-Agent": "sluice-client"}
        if api_key:
            headers["Authorization"] = f"Bearer {api_key}"
        # A proxy from the environment must not get the calls to this very machine.
        self._http = httpx.Client(
            base_url=self.url,
            headers=headers,
            timeout=timeout_s,
            trust_env=parts.hostname not in _LOOPBACK,
            follow_redirects=True,
        )

    def close(self) -> None:
        """Also ends the retries of other threads."""
        self._closed.set()
        self._http.close()

    def request(
        self,
        method: str,
        path: str,
        *,
        params: Params | None = None,
        body: Any = None,
        upload: Upload | None = None,
        headers: Mapping[str, str] | None = None,
        safe: bool = True,
        wait_s: float = 0.0,
        accept_status: Sequence[int] = (),
        tries: int | None = None,
        retry: bool = True,
    ) -> httpx.Response:
        """One answer below 400 (or in `accept_status`).

        Raises `ApiError` or `ConnectionFailed`. `wait_s` is how long the server may hold the
        answer back; `tries` bounds how often a connection may break in the middle; `retry=False`
        gives up at the first failure.
        """
        patience = _Patience(self._retries, known=self._answered, tries=tries)
        while True:
            try:
                response = self._http.request(
                    method,
                    path,
                    params=_clean(params),
                    json=body,
                    files={"file": _rewound(upload)} if upload else None,
                    headers=headers,
                    timeout=httpx.Timeout(self.timeout_s, read=self.timeout_s + wait_s),
                )
            except httpx.TransportError as error:
                unsent = isinstance(error, httpx.ConnectError | httpx.ConnectTimeout)
                pause_s = patience.away() if unsent else patience.broken() if safe else None
                if pause_s is None or not retry:
                    raise self._failure(error, sent=not unsent) from error
                self._tell_away(patience, f"The API at {self.url} does not answer")
                self._pause(pause_s)
                continue
            except RuntimeError as error:
                # What httpx says to a thread that is late to hear of close().
                if self._closed.is_set():
                    raise ConnectionFailed("The client was closed.") from error
                raise
            self._answered = True
            if response.status_code < 400 or response.status_code in accept_status:
                self._told_away = False
                return response
            problem = problem_of(response)
            if not retry:
                raise problem
            if problem.status == 429:
                pause_s = patience.busy(problem.retry_after_s)
                if pause_s is None:
                    raise problem
                self._notify(f"{problem.message} Trying again in {pause_s:.0f} s.")
            elif not safe or problem.status not in _PASSING:
                raise problem
            elif _is_problem(response):
                if problem.retry_after_s is None or problem.retry_after_s > _SHORT_S:
                    raise problem
                pause_s = patience.away(at_least_s=problem.retry_after_s)
                if pause_s is None:
                    raise problem
                self._tell_away(patience, problem.message.rstrip("."))
            else:
                pause_s = patience.away()
                if pause_s is None:
                    raise problem
                self._tell_away(patience, f"The API at {self.url} does not answer")
            self._pause(pause_s)

    def json(self, method: str, path: str, **options: Any) -> Any:
        """The body of `request(...)`, which must be JSON."""
        response = self.request(method, path, **options)
        try:
            return response.json()
        except ValueError as error:
            raise self._foreign() from error

    def listed(self, method: str, path: str, *, name: str = "items", **options: Any) -> list[Any]:
        """The list that an answer has under this name."""
        answer = self.json(method, path, **options)
        items = answer.get(name) if isinstance(answer, dict) else None
        if not isinstance(items, list):
            raise self._foreign()
        return items

    @contextmanager
    def stream(
        self, path: str, *, headers: Mapping[str, str], silence_s: float
    ) -> Iterator[httpx.Response]:
        """One streamed GET, no retries; `httpx.TransportError` is left to the caller."""
        timeout = httpx.Timeout(self.timeout_s, read=silence_s)
        with self._http.stream("GET", path, headers=headers, timeout=timeout) as response:
            self._answered = True
            if response.status_code >= 400:
                response.read()
                raise problem_of(response)
            yield response

    def _foreign(self) -> ConnectionFailed:
        return ConnectionFailed(
            f"{self.url} answered, but not as this version of Sluice does. Is SLUICE_URL right?"
        )

    def _failure(self, error: Exception, *, sent: bool) -> ConnectionFailed:
        reason = str(error).strip() or type(error).__name__
        if sent:
            return ConnectionBroken(
                f"The connection to the API at {self.url} broke ({reason}). "
                "The request may or may not have been carried out."
            )
        return ConnectionFailed(
            f"Cannot reach the API at {self.url} ({reason}). "
            "Is it running? Start it with `sluice up`, or set SLUICE_URL."
        )

    def _tell_away(self, patience: "_Patience", reason: str) -> None:
        """Once, however many threads wait, and not for a hiccup."""
        if self._answered and not self._told_away and patience.failures == _TELL_FAILURES:
            self._told_away = True
            self._notify(f"{reason}; trying again for up to {self._retries.retry_for_s:g} s.")

    def _pause(self, seconds: float) -> None:
        if self._closed.wait(seconds):
            raise ConnectionFailed("The client was closed.")


class _Patience:
    """How long one request has been failing, and how long to pause before the next try."""

    def __init__(self, retries: Retries, *, known: bool, tries: int | None) -> None:
        self._retries = retries
        self._tries = tries
        self.failures = 0
        self._breaks = 0
        started = time.monotonic()
        self._away_until = started + (retries.retry_for_s if known else retries.connect_for_s)
        self._busy_until = started + retries.busy_for_s

    def away(self, *, at_least_s: float = 0.0) -> float | None:
        """Nothing was sent, or the API or a gateway before it said that it is not there yet."""
        pause_s = min(self._retries.cap_s, self._retries.base_s * 2 ** min(self.failures, 10))
        self.failures += 1
        return _within(self._away_until, max(at_least_s, pause_s * random.uniform(0.5, 1.0)))

    def broken(self) -> float | None:
        """The connection was there, and broke."""
        self._breaks += 1
        return None if self._breaks == self._tries else self.away()

    def busy(self, retry_after_s: float | None) -> float | None:
        wanted_s = self._retries.cap_s if retry_after_s is None else retry_after_s
        return _within(self._busy_until, wanted_s)


def problem_of(response: httpx.Response) -> ApiError:
    """The exception for an answer of 400 and above, whatever its body looks like."""
    try:
        body = response.json()
    except ValueError:
        body = {}
    if not isinstance(body, dict):
        body = {}
    errors = body.get("errors")
    detail = body.get("detail")
    title = str(body.get("title") or response.reason_phrase)
    text = detail if isinstance(detail, str) else ""
    if response.status_code == 401:
        text = f"{text or 'The API wants a key.'} Set SLUICE_API_KEY, or give --api-key."
    elif response.status_code == 404 and not _is_problem(response):
        text = (
            f"{response.url.copy_with(query=None)} answers 404, and not as Sluice does. "
            "Is SLUICE_URL right?"
        )
    elif response.status_code >= 500 and not (text and _is_problem(response)):
        text = f"The API failed with status {response.status_code}: {text or title}"
    return ApiError(
        status=response.status_code,
        title=title,
        detail=text,
        errors=[e for e in errors if isinstance(e, dict)] if isinstance(errors, list) else [],
        retry_after_s=_seconds(response.headers.get("Retry-After")),
    )


def _is_problem(response: httpx.Response) -> bool:
    """Whether the API itself has said this, rather than what stands before it."""
    content_type = str(response.headers.get("Content-Type", ""))
    return content_type.partition(";")[0].strip().lower() == _PROBLEM


def _within(until: float, pause_s: float) -> float | None:
    return pause_s if time.monotonic() + pause_s <= until else None


def _seconds(value: str | None) -> float | None:
    return float(value) if value is not None and value.strip().isdigit() else None


def _rewound(upload: Upload) -> Upload:
    """A repeated request must send the file from its start again."""
    upload[1].seek(0)
    return upload


def _clean(params: Params | None) -> dict[str, Any] | None:
    """Without those that are not set, which httpx would send as empty."""
    return {k: v for k, v in params.items() if v is not None} if params else None
