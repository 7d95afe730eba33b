"""The normal form of URLs of the web and of folders, so that a document has one name.

By RFC 3986 (6.2.2 and 6.2.3): scheme and host in small letters, the host in ASCII, no default port,
no fragment, no `.` and `..`, escapes in capitals and only where they are needed. Queries are not
changed, but for parameters that are to be ignored.
"""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Final
from urllib.parse import parse_qsl, quote, unquote, urljoin, urlsplit

import httpx

from shared.addresses import Guard, literal

URL_LIMIT_BYTES: Final = 2048
TRACKING: Final = (
    "utm_*", "gclid", "gclsrc", "dclid", "gbraid", "wbraid", "fbclid", "msclkid", "yclid", "ttclid",
    "twclid", "igshid", "mc_cid", "mc_eid", "_hsenc", "_hsmi", "mkt_tok", "li_fat_id", "srsltid",
)  # fmt: skip
"""Parameters that say where a reader came from and do not change the page. A name with `*` stands
for all names with this beginning."""

_ESCAPE: Final = re.compile(r"%([0-9A-Fa-f]{2})")
_UNRESERVED: Final = frozenset("ABCDEFGHIJKLMNOPQRSTUVWXYZabcdefghijklmnopqrstuvwxyz0123456789-._~")
# Browsers remove these characters from URLs in pages (WHATWG, "URL parsing").
_REMOVED: Final = re.compile(r"[\t\n\r]")
_EDGES: Final = "".join(map(chr, range(33)))


def normal_url(url: str, *, base: str | None = None, ignored: Sequence[str] = ()) -> str:
    """The normal form of a URL of the web, relative to `base`, without the ignored parameters.
    Raises ValueError."""
    text = _REMOVED.sub("", url.strip(_EDGES))
    if len(text) > URL_LIMIT_BYTES:
        raise ValueError(f"a URL has at most {URL_LIMIT_BYTES:,} characters")
    try:
        parsed = httpx.URL(text if base is None else urljoin(base, text))
    except (httpx.InvalidURL, ValueError) as error:
        raise ValueError(f"{text!r} is no URL: {error}") from None
    if parsed.scheme not in ("http", "https") or not parsed.host:
        raise ValueError(f"{text!r} is no URL of the web, which begins with http:// or https://")
    if parsed.userinfo:
        raise ValueError("a URL with a user name or a password is not fetched")
    if parsed.port is not None and not 0 < parsed.port < 65536:
        raise ValueError(f"{text!r} has no port behind its colon")
    path, question, query = parsed.raw_path.decode("ascii").partition("?")
    if question and ignored:
        query = "&".join(_without_ignored(query.split("&"), ignored))
    normal = f"{parsed.scheme}://{_host_of(parsed)}{_without_dots(_least_escaped(path))}"
    normal += f"?{_least_escaped(query)}" if query else ""
    if len(normal) > URL_LIMIT_BYTES:
        raise ValueError(f"a URL has at most {URL_LIMIT_BYTES:,} characters, escapes included")
    return normal


FOLDER_SCHEMES: Final = {
    "s3": "s3", "gs": "gs", "gcs": "gs", "az": "az", "abfs": "az", "file": "file",
    "memory": "memory",
}  # fmt: skip
"""Schemes of folders, and the normal form of each."""


def folder_url(url: str) -> str:
    """The normal form of the URL of a folder of a bucket or disk, which ends with a slash. Raises
    ValueError."""
    scheme, separator, path = url.strip().partition("://")
    normal_scheme = FOLDER_SCHEMES.get(scheme.lower())
    if not separator or normal_scheme is None:
        raise ValueError(
            f"{url!r} is no folder; give a URL such as s3://bucket/folder, gs://, az:// or file:///"
        )
    if any(ord(char) < 32 or char in "\\?#*[]" for char in path):
        raise ValueError(f"{url!r} has characters that no folder's URL has: \\ ? # * [ ]")
    segments = [segment for segment in path.split("/") if segment not in ("", ".")]
    if ".." in segments:
        raise ValueError(f"{url!r} has `..` in it; give the folder itself")
    is_local = normal_scheme in ("file", "memory")
    if is_local != path.startswith("/") or not (segments or is_local):
        raise ValueError(
            f"{url!r} is no folder; a bucket stands behind s3://, and a whole path behind file://"
        )
    return (
        f"{normal_scheme}://{'/' if is_local else ''}{'/'.join(segments)}{'/' if segments else ''}"
    )


@dataclass(frozen=True, kw_only=True)
class CollectionUrl:
    """Where a collection of another program is: on a Chroma server, or in a folder that Chroma or
    LangChain's FAISS wrote.

    `chroma://host:8000/NAME`, `chroma+https://host/NAME?tenant=T&database=D`,
    `file:///srv/chroma_db#NAME`, `file:///srv/chroma_db?database=D#NAME`. Without NAME it stands
    for all that are there.
    """

    place: str
    """The server as a URL of the web without a path, or the folder as `folder_url` writes it."""
    name: str
    """Empty if none is named."""
    tenant: str = "default_tenant"
    database: str = "default_database"

    @property
    def is_folder(self) -> bool:
        return self.place.startswith("file://")

    @property
    def folder(self) -> Path:
        """Of a URL that is a folder."""
        return Path(self.place.removeprefix("file://"))

    @classmethod
    def read(cls, text: str) -> "CollectionUrl":
        """Raises ValueError, whose message shows no credentials."""
        scheme, _, rest = text.strip().partition("://")
        scheme = scheme.lower()
        if scheme == "file":
            rest, _, name = rest.partition("#")
            path, _, query = rest.partition("?")
            place = folder_url(f"file://{path}")
            return cls(place=place, name=unquote(name), **_tenant_options(query))
        web = {"chroma": "http", "chroma+https": "https"}.get(scheme)
        if web is None:
            raise ValueError(
                "is no collection to adopt; give chroma://host:8000/NAME, chroma+https://host/NAME "
                "or file:///folder#NAME"
            )
        try:
            parts = urlsplit(f"{web}://{rest}")
            port = parts.port or (443 if web == "https" else 8000)
        except ValueError:
            raise ValueError("has no port behind its colon, or no host") from None
        if parts.username is not None or parts.password is not None:
            raise ValueError("has a user name or a password, which jobs do not keep; leave it out")
        name = unquote(parts.path.strip("/"))
        if "/" in name or parts.fragment:
            raise ValueError("has more behind its host than the name of one collection")
        host = f"[{parts.hostname}]" if ":" in (parts.hostname or "") else parts.hostname or ""
        place = normal_url(f"{web}://{host}:{port}").rstrip("/")
        return cls(place=place, name=name, **_tenant_options(parts.query))

    def with_name(self, name: str) -> str:
        """The URL of a collection that is at the same place."""
        given = {"tenant": self.tenant, "database": self.database}
        options = "&".join(
            f"{key}={quote(value)}" for key, value in given.items() if value != f"default_{key}"
        )
        options = f"?{options}" if options else ""
        if self.is_folder:
            return f"{self.place.rstrip('/')}{options}#{quote(name)}"
        scheme, _, host = self.place.partition("://")
        return (
            f"{'chroma+https' if scheme == 'https' else 'chroma'}://{host}/{quote(name)}{options}"
        )

    def __str__(self) -> str:
        return self.with_name(self.name).rstrip("#/")


def _tenant_options(query: str) -> dict[str, str]:
    options = dict(parse_qsl(query))
    if options.keys() - {"tenant", "database"}:
        raise ValueError("has other options than tenant and database")
    return options


def collection_url(text: str) -> str:
    """The normal form of the URL of a collection of another program. Raises ValueError."""
    return str(CollectionUrl.read(text))


def check_literal(url: str, guard: Guard) -> None:
    """Raises ValueError for a URL whose host is an address that may not be reached. Names are
    checked when they are resolved."""
    parsed = httpx.URL(normal_url(url))
    host, port = parsed.host, parsed.port or (443 if parsed.scheme == "https" else 80)
    address = literal(host)
    if address is not None and not guard.allows(host, address, port):
        raise ValueError(
            f"is at {address} and port {port}, which is not an address of the public internet, or "
            "no port of web sites. SLUICE_OUTBOUND_ALLOWED_HOSTS names what may be reached beside "
            "it."
        )


def origin_of(url: str) -> str:
    """Scheme, host and port of a URL in normal form, without a slash at the end."""
    scheme, _, rest = url.partition("://")
    return f"{scheme}://{re.split('[/?#]', rest, maxsplit=1)[0]}"


def path_of(url: str) -> str:
    """The path of a URL in normal form, without the query."""
    return url.removeprefix(origin_of(url)).partition("?")[0] or "/"


def _host_of(parsed: httpx.URL) -> str:
    host = parsed.raw_host.decode("ascii").rstrip(".")
    host = f"[{host}]" if ":" in host else host
    return host if parsed.port is None else f"{host}:{parsed.port}"


def _least_escaped(text: str) -> str:
    def escape(match: re.Match[str]) -> str:
        char = chr(int(match[1], 16))
        return char if char in _UNRESERVED else match[0].upper()

    return _ESCAPE.sub(escape, text)


def _without_dots(path: str) -> str:
    """The path without dot segments (RFC 3986, 5.2.4)."""
    result: list[str] = []
    segments = path.split("/")[1:]
    for n, segment in enumerate(segments):
        is_last = n == len(segments) - 1
        if segment == "..":
            result = result[:-1]
        elif segment != ".":
            result.append(segment)
        if segment in (".", "..") and is_last:
            result.append("")
    return "/" + "/".join(result)


def _without_ignored(parameters: Iterable[str], ignored: Sequence[str]) -> list[str]:
    whole = {name.lower() for name in ignored if not name.endswith("*")}
    prefixes = tuple(name[:-1].lower() for name in ignored if name.endswith("*"))
    result = []
    for parameter in parameters:
        name = parameter.partition("=")[0].lower()
        if name not in whole and not (prefixes and name.startswith(prefixes)):
            result.append(parameter)
    return result
