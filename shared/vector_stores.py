"""The types of vector stores, one record each, and the store of this deployment. How to add one:
CONTRIBUTING.md.

SLUICE_VECTORS_URL names the store; its scheme is the type. SLUICE_CHROMA_URL is an older name for
the URL of a Chroma server, `http://host:port`.
"""

import os
import socket
import ssl
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field, replace
from enum import Enum
from functools import cache
from pathlib import Path
from urllib.parse import parse_qsl, unquote, urlsplit

from shared.config import ConnectionSettings
from shared.errors import ConfigurationError

VECTORS_URL = "SLUICE_VECTORS_URL"
CHROMA_URL = "SLUICE_CHROMA_URL"


@dataclass(frozen=True, kw_only=True)
class StoreUrl:
    """The URL of a store. Its `str` and `repr` have no credentials."""

    text: str = field(repr=False, compare=False)
    """As it was written, with credentials."""
    scheme: str
    host: str = ""
    port: int | None = None
    path: str = ""
    user: str = field(default="", repr=False)
    password: str = field(default="", repr=False)
    """The password, or the key, as in `qdrant://:KEY@host`."""
    options: Mapping[str, str] = field(default_factory=dict, repr=False, compare=False)
    """The query of the URL."""

    @classmethod
    def read(cls, text: str) -> "StoreUrl":
        """Parse `scheme://user:password@host:port/path?name=value`, or a scheme alone. Raises
        ValueError, whose message does not show the text."""
        text = text.strip()
        scheme, separator, _ = text.partition("://")
        if not separator:
            return cls(text=text, scheme=text)
        try:
            parts = urlsplit(text)
            port = parts.port
        except ValueError:
            raise ValueError("is no URL") from None
        return cls(
            text=text,
            scheme=scheme.lower(),
            host=parts.hostname or "",
            port=port,
            path=unquote(parts.path),
            user=unquote(parts.username or ""),
            password=unquote(parts.password or ""),
            options=dict(parse_qsl(parts.query, keep_blank_values=True)),
        )

    def __str__(self) -> str:
        """The URL without credentials and options, for people and for the ledger."""
        if not (self.host or self.path):
            return self.scheme
        return f"{self.scheme}://{self.address}{self.path.rstrip('/')}"

    @property
    def is_secure(self) -> bool:
        return self.scheme.endswith("+https")

    @property
    def address(self) -> str:
        """`host:port`; the host alone if the URL has no port."""
        host = f"[{self.host}]" if ":" in self.host else self.host
        return host if self.port is None else f"{host}:{self.port}"

    @property
    def http(self) -> str:
        """The URL for HTTP, without credentials and without a slash at the end."""
        return f"{'https' if self.is_secure else 'http'}://{self.address}"


class Target(Enum):
    """What follows the scheme in a URL; the values are descriptions for messages."""

    SERVER = "a host"
    FOLDER = "a whole path, such as /srv/vectors"
    DATABASE = "nothing"


Check = Callable[[StoreUrl, float], str | None]
"""Whether a store is healthy, from its URL and a time limit in seconds: None if it is, otherwise
the reason, without credentials. The API calls it, so it needs no library of the store."""


_CERTIFICATES = ("SSL_CERT_FILE", "SSL_CERT_DIR")


def http_path(path: str) -> Check:
    """A check of a server that answers 200 at this path below its URL."""

    def check(url: StoreUrl, timeout_s: float) -> str | None:
        import httpx

        auth = (url.user, url.password) if url.user else None
        try:
            # Requests between parts of one network must not go through a proxy; certificates are
            # those that the workers' clients know, of SSL_CERT_FILE, too.
            tls = _tls(*map(os.environ.get, _CERTIFICATES)) if url.is_secure else False
            answer = httpx.get(
                url.http + path, timeout=timeout_s, trust_env=False, auth=auth, verify=tls
            )
        except (httpx.HTTPError, httpx.InvalidURL, OSError) as error:
            return f"{url}: {str(error) or type(error).__name__}"
        return None if answer.status_code == 200 else f"{url} answers {answer.status_code}"

    return check


@cache
def _tls(*_: str | None) -> ssl.SSLContext:
    """By the variables that it goes by. Servers are asked each second, and reading the certificates
    of all authorities takes longer than a request."""
    import httpx

    return httpx.create_ssl_context()


def writable_folder(url: StoreUrl, timeout_s: float) -> str | None:
    """A folder of this machine."""
    del timeout_s
    if not Path(url.path).is_dir():
        return f"{url}: there is no such folder here; make it (mkdir -p), or mount it"
    return None if os.access(url.path, os.W_OK | os.X_OK) else f"{url}: may not be written to"


def postgres_answers(url: StoreUrl, timeout_s: float) -> str | None:
    """A check of a PostgreSQL server; the database of the ledger has one of its own."""
    if not url.host:
        return None
    import psycopg

    text = url.text.replace("postgres://", "postgresql://", 1)
    try:
        with psycopg.connect(text, connect_timeout=max(1, int(timeout_s))) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        lines = str(error).strip().splitlines()
        return f"{url}: {lines[0] if lines else type(error).__name__}"
    return None


def server_or_folder(server: Check) -> Check:
    """The check of a server, or of a folder if the URL has no host."""

    def check(url: StoreUrl, timeout_s: float) -> str | None:
        return (server if url.host else writable_folder)(url, timeout_s)

    return check


def open_port_or_file(url: StoreUrl, timeout_s: float) -> str | None:
    """A check of a server that accepts connections (nothing is sent), or of a file of this
    machine."""
    if not url.host:
        return writable_folder(replace(url, path=str(Path(url.path).parent)), timeout_s)
    try:
        socket.create_connection((url.host, url.port or 0), timeout=timeout_s).close()
    except (OSError, UnicodeError) as error:  # UnicodeError: the name is no name of a host
        return f"{url}: {error}"
    return None


def with_the_database(url: StoreUrl, timeout_s: float) -> None:
    """No check: the database of the ledger has one of its own."""
    del url, timeout_s


@dataclass(frozen=True, eq=False, kw_only=True)
class StoreType:
    """A type of vector store for all parts of Sluice; only workers import the store itself."""

    name: str
    """For `/readyz` and the doctor."""
    schemes: tuple[str, ...]
    """Schemes of its URLs. A server with HTTP has one that ends in `+https`, too."""
    example: str
    """A URL, for messages."""
    store: str
    """A `VectorStore` (`workers/retrieval/store.py`) as `module:class`, made with the settings and
    the text of a URL. The module imports the library of the store at its top."""
    check: Check
    targets: tuple[Target, ...] = (Target.SERVER,)
    port: int | None = None
    """The default port; of a secure URL it is 443."""
    extra: str | None = None
    """The extra of the distribution with its library; None if all workers have it."""
    has_database: bool = False
    """Whether the URL of a server ends in the name of a database."""
    options: frozenset[str] | None = frozenset()
    """Names that may stand in the query of the URL of a server; None: any, as the library of the
    store has them."""
    has_several_servers: bool = False
    """Whether the setting may list several servers, with commas; each collection is on one of
    them."""


STORES: dict[str, StoreType] = {
    type_.name: type_
    for type_ in (
        StoreType(
            name="chroma",
            schemes=("chroma", "chroma+https"),
            example="chroma://host:8000",
            port=8000,
            check=http_path("/api/v2/heartbeat"),
            has_several_servers=True,
            store="workers.retrieval.stores.chroma:Chroma",
        ),
        StoreType(
            name="pgvector",
            schemes=("postgres", "postgresql"),
            example="postgres",
            targets=(Target.DATABASE, Target.SERVER),
            port=5432,
            has_database=True,
            options=None,
            check=postgres_answers,
            store="workers.retrieval.stores.pgvector:PgVector",
        ),
        StoreType(
            name="faiss",
            schemes=("faiss",),
            example="faiss:///srv/vectors",
            targets=(Target.FOLDER,),
            check=writable_folder,
            extra="faiss",
            store="workers.retrieval.stores.faiss:Faiss",
        ),
        StoreType(
            name="weaviate",
            schemes=("weaviate", "weaviate+https"),
            example="weaviate://host:8080",
            port=8080,
            options=frozenset({"grpc"}),
            check=http_path("/v1/.well-known/ready"),
            store="workers.retrieval.stores.weaviate:Weaviate",
            extra="weaviate",
        ),
        StoreType(
            name="qdrant",
            schemes=("qdrant", "qdrant+https"),
            example="qdrant://host:6333",
            targets=(Target.SERVER, Target.FOLDER),
            port=6333,
            check=server_or_folder(http_path("/readyz")),
            store="workers.retrieval.stores.qdrant:Qdrant",
            extra="qdrant",
        ),
        StoreType(
            name="milvus",
            schemes=("milvus", "milvus+https"),
            example="milvus://host:19530",
            port=19530,
            targets=(Target.SERVER, Target.FOLDER),
            has_database=True,
            check=open_port_or_file,
            store="workers.retrieval.stores.milvus:Milvus",
            extra="milvus",
        ),
    )
}


@dataclass(frozen=True, kw_only=True)
class ConfiguredStore:
    """The store that the settings name."""

    type_: StoreType
    urls: tuple[StoreUrl, ...]
    """One, or several if the type has several servers."""
    setting: str
    """The name of the setting with the URL, for messages."""

    @property
    def text(self) -> str:
        """The value of SLUICE_VECTORS_URL, with credentials."""
        return ",".join(url.text for url in self.urls)

    @property
    def is_ledger(self) -> bool:
        """Whether the vectors lie in the database of the ledger."""
        return not any(url.host or url.path for url in self.urls)

    def problem(self, timeout_s: float) -> str | None:
        """None if the store is healthy, otherwise the reason. Servers are asked at the same time,
        so that the answer takes no longer if several are away."""

        def check(url: StoreUrl) -> str | None:
            return self.type_.check(url, timeout_s)

        if len(self.urls) == 1:  # the end of the process would wait for another thread
            return check(self.urls[0])
        with ThreadPoolExecutor(len(self.urls)) as pool:
            reasons = list(pool.map(check, self.urls))
        return "; ".join(reason for reason in reasons if reason is not None) or None


def configured_store(settings: ConnectionSettings) -> ConfiguredStore | None:
    """The store of this deployment, None if the settings name none. Raises ConfigurationError for
    a URL that cannot be used; no message has credentials."""
    old = None if settings.chroma_url is None else _of_chroma_url(settings.chroma_url)
    if settings.vectors_url is None:
        return old
    new = store_of_urls(settings.vectors_url.get_secret_value())
    if old is not None and old.urls != new.urls:
        raise ConfigurationError(
            f"{VECTORS_URL} and {CHROMA_URL} are both set and name different stores. Unset "
            f"{CHROMA_URL}: it is the older name."
        )
    return new


def require_store(settings: ConnectionSettings) -> ConfiguredStore:
    """As `configured_store`. Raises ConfigurationError if the settings name none."""
    store = configured_store(settings)
    if store is None:
        raise ConfigurationError(
            f"{VECTORS_URL} is not set. Set it to a store, as one of {_examples()}; or start "
            "everything on this machine with `sluice up`."
        )
    return store


def store_of_urls(text: str) -> ConfiguredStore:
    """The store of a value of SLUICE_VECTORS_URL. Raises ConfigurationError."""
    items = [item.strip() for item in text.split(",") if item.strip()]
    types = [_type(item) for item in items]
    if not types or any(type_ is not types[0] for type_ in types):
        raise ConfigurationError(
            f"{VECTORS_URL} must name one type of store, as one of {_examples()}."
        )
    if items[1:] and not types[0].has_several_servers:
        raise ConfigurationError(
            f"{VECTORS_URL} names {len(items)} stores; {types[0].name} has one, such as "
            f"{types[0].example} (a comma in a password is written %2C)."
        )
    urls = tuple(_url(item, types[0]) for item in items)
    if len({str(url) for url in urls}) < len(urls):
        raise ConfigurationError(f"{VECTORS_URL} names a server twice; name it once.")
    return ConfiguredStore(type_=types[0], urls=urls, setting=VECTORS_URL)


def _of_chroma_url(text: str) -> ConfiguredStore:
    type_ = STORES["chroma"]
    scheme, _, rest = text.strip().partition("://")
    new = {"http": "chroma", "https": "chroma+https"}.get(scheme.lower())
    if new is None or not rest:
        raise ConfigurationError(
            f"{CHROMA_URL} must read http://host:8000 or https://host. For another store set "
            f"{VECTORS_URL}."
        )
    url = _url(f"{new}://{rest}", type_, setting=CHROMA_URL, port=80)
    return ConfiguredStore(type_=type_, urls=(url,), setting=CHROMA_URL)


def _type(item: str) -> StoreType:
    scheme, separator, _ = item.partition("://")
    for type_ in STORES.values():
        if scheme.lower() in type_.schemes:
            return type_
    # A text without a scheme may be a secret as a whole.
    what = f"begins with {scheme[:20]}://, which is no" if separator else "does not begin with a"
    raise ConfigurationError(f"{VECTORS_URL} {what} type of store; write one of {_examples()}.")


def _url(
    text: str, type_: StoreType, *, setting: str = VECTORS_URL, port: int | None = None
) -> StoreUrl:
    """A URL of this type. That of a server has its port in the text, and no slash at the end."""
    like = f"it must read like {type_.example}"
    try:
        url = StoreUrl.read(text)
    except ValueError as error:
        raise ConfigurationError(f"{setting} {error}: {like}.") from None
    path = url.path.rstrip("/")
    target = Target.SERVER if url.host else Target.FOLDER if path else Target.DATABASE
    has_path = target is Target.SERVER and path != ""
    has_credentials = target is not Target.SERVER and (url.user or url.password)
    if target not in type_.targets or (has_path and not type_.has_database) or has_credentials:
        forms = " or ".join(one.value for one in type_.targets)
        raise ConfigurationError(
            f"{setting}: behind {url.scheme} stands {forms}, and nothing more: {like}."
        )
    known = type_.options if target is Target.SERVER else frozenset()
    if "#" in text or (known is not None and url.options.keys() - known):
        what = f" other than {' and '.join(sorted(known))}" if known else ""
        raise ConfigurationError(
            f"{setting}: nothing{what} may stand behind a ? or a #: {like}. In a name or a "
            "password they are written %3F and %23."
        )
    if target is Target.DATABASE:
        return StoreUrl.read(type_.schemes[0])
    if target is Target.FOLDER:
        return url
    port = url.port or (443 if url.is_secure else port or type_.port)
    credentials, at, _ = urlsplit(text).netloc.rpartition("@")
    _, question, options = text.partition("?")
    host = StoreUrl(text="", scheme="", host=url.host, port=port).address
    path = urlsplit(text).path.rstrip("/")
    return StoreUrl.read(f"{url.scheme}://{credentials}{at}{host}{path}{question}{options}")


def _examples() -> str:
    return ", ".join(type_.example for type_ in STORES.values())
