"""What goes wrong with another server, as the errors that the runner's retry policy goes by.

- It does not answer, or answers that it cannot now: `Unavailable`, with the server's Retry-After.
- Its stream breaks off in the middle: `Retryable`, and the next attempt goes on from there.
- It says that the request is wrong: `Permanent`, with its own words and what to do.
"""

import math
from dataclasses import dataclass
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from urllib.parse import urlsplit, urlunsplit

from shared.errors import ConfigurationError, Permanent, Retryable, StepError, Unavailable

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
