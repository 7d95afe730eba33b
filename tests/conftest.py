"""Fixtures of all tiers: real servers, a database built by the migrations, a real API.

Servers start once a session, on first use. Each test module has a database of its own; `ledger`
(and what is built on it) empties tables and Redis before each test. Where a server cannot start,
the test is skipped with the reason on a desk and fails in CI (variable `CI` set).
"""

import asyncio
import gc
import inspect
import os
import shutil
import signal
import sys
import tempfile
from collections.abc import Callable, Iterator
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

import httpx
import hypothesis
import psycopg
import pytest
from httpx._config import DEFAULT_TIMEOUT_CONFIG
from hypothesis.internal.conjecture import providers
from hypothesis.internal.constants_ast import Constants
from redis import Redis

from shared.config import Settings
from shared.database.engine import upgrade
from shared.database.transaction import Ledger
from tests.ledgers import kept_ledger
from tests.servers import Server, start_chroma, start_postgres, start_redis

if TYPE_CHECKING:
    from tests.tiny_models import Answerer

# A shell starts what runs in its background with SIGINT ignored, and processes inherit that.
signal.signal(signal.SIGINT, signal.default_int_handler)

# Four processes share two cores: threads of theirs that wait for each other only take time.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# A client that names no timeout waits as long as a busy machine may take; five seconds are too few.
DEFAULT_TIMEOUT_CONFIG.read = DEFAULT_TIMEOUT_CONFIG.connect = DEFAULT_TIMEOUT_CONFIG.pool = 60

# The same examples each time, however slow the machine is, and whatever ran before: Hypothesis also
# tries constants of the modules that happen to be imported. `make fuzz` looks for new ones.
providers._get_local_constants = Constants
hypothesis.settings.register_profile(
    "same",
    deadline=None,
    derandomize=True,
    suppress_health_check=[hypothesis.HealthCheck.too_slow],
)
hypothesis.settings.load_profile("same")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Unit tests come last: they are short, so that no process is alone with a long file then."""
    items.sort(key=lambda item: item.path.parent.name == "unit")


@pytest.fixture(scope="module", autouse=True)
def _small_heap() -> None:
    """What modules and tests before have made is not looked at by each collection of garbage."""
    gc.collect()
    gc.freeze()


@pytest.fixture(autouse=True)
def _hub_released() -> None:
    """A worker that runs in this process guards the connections of huggingface_hub, whose clients
    tests use, too."""
    hub_session = sys.modules.get("workers.models.hub_session")
    if hub_session is not None:
        hub_session.release_hub()


@pytest.hookimpl(tryfirst=True)
def pytest_pyfunc_call(pyfuncitem: pytest.Function) -> bool | None:
    """Tests that are coroutines, as those of langchain-tests, run on a loop of their own."""
    if not inspect.iscoroutinefunction(pyfuncitem.obj):
        return None
    names = inspect.signature(pyfuncitem.obj).parameters
    asyncio.run(pyfuncitem.obj(**{name: pyfuncitem.funcargs[name] for name in names}))
    return True


@pytest.fixture(scope="session", autouse=True)
def _own_environment() -> Iterator[None]:
    """No setting of the desk's own environment reaches a test."""
    with pytest.MonkeyPatch.context() as patch:
        for name in os.environ:
            if name.startswith("SLUICE_"):
                patch.delenv(name)
        yield


@pytest.fixture(scope="session", autouse=True)
def _readers_ended() -> Iterator[None]:
    """The programs that read documents for the processes of tests."""
    yield
    job_runner = sys.modules.get("tests.integration.job_runner")
    if job_runner is not None:
        job_runner.reader_children().close()


@pytest.fixture(scope="session", autouse=True)
def _certificates_once() -> Iterator[None]:
    """Each client of httpx reads the certificates of all authorities, which takes 25 ms."""
    with pytest.MonkeyPatch.context() as patch:
        create = cache(httpx.create_ssl_context)
        patch.setattr("httpx._transports.default.create_ssl_context", create)
        yield


@pytest.fixture(scope="session")
def server_home() -> Iterator[Path]:
    """A folder that PostgreSQL's system user can reach, which pytest's own folders are not."""
    folder = Path(tempfile.mkdtemp(prefix="sluice-test-"))
    folder.chmod(0o755)
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


def _started(start: Callable[[Path], Server], folder: Path) -> Iterator[Server]:
    try:
        server = start(folder)
    except Exception as error:
        if os.environ.get("CI"):
            raise
        pytest.skip(f"{folder.name} cannot start here: {error}")
    yield server
    server.stop()


@pytest.fixture(scope="session")
def postgres_server(server_home: Path) -> Iterator[Server]:
    yield from _started(start_postgres, server_home / "postgres")


@pytest.fixture(scope="session")
def redis_server(server_home: Path) -> Iterator[Server]:
    yield from _started(start_redis, server_home / "redis")


@pytest.fixture(scope="session")
def chroma_server(server_home: Path) -> Iterator[Server]:
    yield from _started(start_chroma, server_home / "chroma")


@pytest.fixture(scope="session")
def migrated(postgres_server: Server) -> str:
    """The name of a database that the migrations have made."""
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute("CREATE DATABASE migrated")
    upgrade(_database_url(postgres_server, "migrated"))
    return "migrated"


@pytest.fixture(scope="module")
def postgres_url(postgres_server: Server, migrated: str) -> Iterator[str]:
    """A new database of this test module, at the newest revision. Its name is that of the last
    module's, so that engines can be used again (`tests/ledgers.py`)."""
    name = "test"
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name} TEMPLATE {migrated} STRATEGY FILE_COPY")
    yield _database_url(postgres_server, name)
    with psycopg.connect(postgres_server.url, autocommit=True) as connection:
        connection.execute(f"DROP DATABASE {name} WITH (FORCE)")


def _database_url(server: Server, name: str) -> str:
    return server.url.rpartition("/")[0] + f"/{name}"


@pytest.fixture(scope="session")
def redis_url(redis_server: Server) -> str:
    return redis_server.url


@pytest.fixture(scope="session")
def chroma_url(chroma_server: Server) -> str:
    return chroma_server.url


@pytest.fixture(scope="module")
def settings(
    postgres_url: str,
    redis_url: str,
    chroma_url: str,
    tmp_path_factory: pytest.TempPathFactory,
) -> Settings:
    """Of this module: its database, the session's Redis and Chroma, a home of its own."""
    return Settings(
        _env_file=None,
        home=tmp_path_factory.mktemp("home"),
        database_url=postgres_url,
        redis_url=redis_url,
        chroma_url=chroma_url,
        readiness_keep_s=0.001,  # each test asks of its own state
    )


EMPTY_TABLES = """
    DO $$
    DECLARE
        name text;
        names text;
        large text;
        number regclass;
    BEGIN
        SELECT string_agg(quote_ident(tablename), ', ') INTO names FROM pg_tables
            WHERE schemaname = 'public' AND tablename <> 'alembic_version';
        -- Who still writes is waited for.
        EXECUTE 'LOCK TABLE ' || names || ' IN EXCLUSIVE MODE';
        SET LOCAL session_replication_role = replica;  -- no foreign keys, no triggers
        FOREACH name IN ARRAY string_to_array(names, ', ') LOOP
            IF pg_relation_size(name) > 4194304 THEN
                large := concat_ws(', ', large, name);
            ELSE
                EXECUTE 'DELETE FROM ' || name;
            END IF;
        END LOOP;
        IF large IS NOT NULL THEN EXECUTE 'TRUNCATE ' || large || ' CASCADE'; END IF;
        FOR number IN
            SELECT (quote_ident(schemaname) || '.' || quote_ident(sequencename))::regclass
            FROM pg_sequences WHERE last_value IS NOT NULL
        LOOP
            PERFORM setval(number, 1, false);
        END LOOP;
    END $$
"""
"""To truncate tables costs ten times as much as to delete the rows that a test leaves."""


@pytest.fixture(scope="module")
def cleaner(postgres_url: str) -> Iterator[psycopg.Connection]:
    with psycopg.connect(postgres_url, autocommit=True) as connection:
        yield connection


@pytest.fixture
def clean(cleaner: psycopg.Connection, redis_url: str) -> None:
    """Empty tables and an empty Redis."""
    cleaner.execute(EMPTY_TABLES)
    with Redis.from_url(redis_url) as redis:
        redis.flushall()


@pytest.fixture
def ledger(settings: Settings, clean: None) -> Iterator[Ledger]:  # noqa: ARG001 (order)
    ledger = kept_ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture(scope="module")
def api_url(settings: Settings) -> Iterator[str]:
    """The API in this process, behind a real port; once a module."""
    from tests.api_server import served

    with served(settings) as url:
        yield url


@pytest.fixture
def api(api_url: str, ledger: Ledger) -> Iterator[httpx.Client]:  # noqa: ARG001 (empty tables)
    """A client of the API, with empty tables behind it."""
    with httpx.Client(base_url=api_url, timeout=30, trust_env=False) as client:
        yield client


@pytest.fixture(scope="session")
def answerer() -> "Answerer":
    """A tiny model that answers exactly."""
    from tests.tiny_models import load_answerer  # imports torch

    return load_answerer()


@pytest.fixture
def live_api(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    tmp_path: Path,
) -> Iterator[Server]:
    """The API as a process of its own."""
    from tests.api_server import start_api

    server = start_api(settings, tmp_path / "api")
    yield server
    server.stop()


# What LangChain's own suites ask for.


@pytest.fixture
def benchmark() -> Callable[..., Any]:
    """Runs once, and measures nothing."""
    return lambda function, *arguments: function(*arguments)


@pytest.fixture
def vcr() -> SimpleNamespace:
    """Nothing is recorded."""
    return SimpleNamespace(responses=[])
