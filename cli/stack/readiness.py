"""Whether a server of the stack is ready: None if it is, else the reason in words.

A check makes a real request (a query, a PING, a heartbeat), since an open port proves nothing. It
takes 5 s at most.
"""

from typing import TYPE_CHECKING, Any

from shared.vector_stores import ConfiguredStore

if TYPE_CHECKING:
    import httpx

TIMEOUT_S = 2.0


def database_ready(url: str) -> str | None:
    import psycopg

    # libpq does not know SQLAlchemy's `postgresql+driver://`.
    scheme, separator, rest = url.partition("://")
    url = scheme.partition("+")[0] + separator + rest
    try:
        with psycopg.connect(url, connect_timeout=int(TIMEOUT_S), autocommit=True) as connection:
            connection.execute("SELECT 1")
    except psycopg.Error as error:
        return _reason(error)
    return None


def redis_ready(url: str) -> str | None:
    from redis import Redis, RedisError

    try:
        with Redis.from_url(
            url, socket_timeout=TIMEOUT_S, socket_connect_timeout=TIMEOUT_S
        ) as client:
            client.ping()
    except (RedisError, OSError) as error:
        return _reason(error)
    return None


def http_ready(url: str) -> str | None:
    """For the API's /healthz, which answers 200."""
    answer = fetch(url)
    return answer if isinstance(answer, str) else None


def store_ready(store: ConfiguredStore) -> str | None:
    return store.problem(TIMEOUT_S)


def worker_ready(api_url: str, name: str, pid: int, key: str | None) -> str | None:
    """Whether the API knows this process as alive, and not an earlier one of the same name."""
    answer = fetch(f"{api_url}/v1/workers", key)
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    for worker in answer["items"]:
        if worker["name"] == name and worker["pid"] == pid and worker["alive"]:
            return None
    return "has not reported to the API yet"


def sweeper_ready(api_url: str, key: str | None) -> str | None:
    """Whether the sweeper has run lately, which shows that beat is alive."""
    answer = fetch(f"{api_url}/readyz", key, accept=(200, 503))
    if isinstance(answer, str):
        return f"the API cannot say ({answer})"
    sweeper = answer["checks"]["sweeper"]
    return None if sweeper["ok"] else str(sweeper["detail"])


def fetch(url: str, key: str | None = None, accept: tuple[int, ...] = (200,)) -> Any:
    """The decoded JSON of the answer; or a string with the reason why there is none."""
    import httpx

    headers = {"Authorization": f"Bearer {key}"} if key else {}
    try:
        with _client(url, headers) as client:
            answer = client.get(url)
        if answer.status_code not in accept:
            return f"{url} answers {answer.status_code}"
        document = answer.json()
        # A JSON string would be taken for a reason.
        return f"{url} answers with a text" if isinstance(document, str) else document
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return f"{url}: {_reason(error)}"
    except ValueError:
        return f"{url} does not answer with JSON"


def status_of(url: str) -> int | str:
    """The status of the answer to a call without a key; or the reason why there is none."""
    import httpx

    try:
        with _client(url, {}) as client:
            return client.get(url).status_code
    except (httpx.HTTPError, httpx.InvalidURL) as error:
        return _reason(error)


def _client(url: str, headers: dict[str, str]) -> "httpx.Client":
    import httpx

    # Requests between parts of one machine must not go through a proxy. To read the certificates
    # of all authorities takes 25 ms, at each look of a start.
    needs_tls = url.startswith("https:")
    return httpx.Client(timeout=TIMEOUT_S, trust_env=False, headers=headers, verify=needs_tls)


def _reason(error: Exception) -> str:
    """The last line of a message, where libpq has the reason."""
    lines = str(error).strip().splitlines()
    return lines[-1].strip(" .") if lines else type(error).__name__
