"""The URL of the vector store: what is understood, what is refused, and that nothing leaks."""

from dataclasses import replace
from pathlib import Path
from threading import Barrier
from typing import Any

import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.errors import ConfigurationError
from shared.vector_stores import (
    STORES,
    StoreType,
    StoreUrl,
    Target,
    configured_store,
    require_store,
    with_the_database,
    writable_folder,
)

SECRET = "s3cret"


def settings(vectors_url: str | None = None, **fields: Any) -> Settings:
    url = None if vectors_url is None else SecretStr(vectors_url)
    return Settings(_env_file=None, vectors_url=url, **fields)


@pytest.fixture(autouse=True)
def other_types(monkeypatch: pytest.MonkeyPatch) -> None:
    """A type with a folder, and one in the ledger's database."""
    for name, example, target, check in (
        ("folder", "folder:///srv/vectors", Target.FOLDER, writable_folder),
        ("ledger", "ledger", Target.DATABASE, with_the_database),
    ):
        type_ = StoreType(
            name=name, schemes=(name,), example=example, targets=(target,), check=check, store=""
        )
        monkeypatch.setitem(STORES, name, type_)


@pytest.mark.parametrize(
    ("text", "http", "shown"),
    [
        ("chroma://host:81", "http://host:81", "chroma://host:81"),
        ("chroma://host", "http://host:8000", "chroma://host:8000"),
        ("CHROMA://Host/", "http://host:8000", "chroma://host:8000"),
        ("chroma+https://host", "https://host:443", "chroma+https://host:443"),
        ("chroma+https://u:p%40@host:1", "https://host:1", "chroma+https://host:1"),
        ("chroma://[::1]:9", "http://[::1]:9", "chroma://[::1]:9"),
    ],
)
def test_a_url_of_a_server_is_read(text: str, http: str, shown: str) -> None:
    (url,) = require_store(settings(text)).urls
    assert url.http == http
    assert str(url) == shown
    assert StoreUrl.read(url.text) == url


def test_credentials_are_read_and_never_shown() -> None:
    store = require_store(settings(f"weaviate://me:{SECRET}%2C@127.0.0.1:1?grpc={SECRET}"))
    (url,) = store.urls
    assert (url.user, url.password) == ("me", f"{SECRET},")
    assert url.options == {"grpc": SECRET}
    assert SECRET in url.text
    assert SECRET not in f"{url} {url!r} {store!r}"
    problem = store.problem(timeout_s=1)
    assert problem is not None
    assert problem.startswith("weaviate://127.0.0.1:1: ")
    assert SECRET not in problem


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("http://host:8000", "chroma://host:8000"),
        ("http://host", "chroma://host:80"),
        ("https://host/", "chroma+https://host"),
        ("http://HOST:8000/", "chroma://host:8000"),
    ],
)
def test_the_older_name_means_the_same(old: str, new: str) -> None:
    alone = require_store(settings(chroma_url=old))
    assert alone.setting == "SLUICE_CHROMA_URL"
    assert alone.urls == require_store(settings(new)).urls
    both = require_store(settings(new, chroma_url=old))
    assert both.setting == "SLUICE_VECTORS_URL"
    assert both.text == require_store(settings(new)).text


@pytest.mark.parametrize(
    ("vectors_url", "chroma_url", "said"),
    [
        (f"nothing://{SECRET}@host", None, "begins with nothing://"),
        (SECRET, None, "does not begin with a type of store"),
        (f"http://{SECRET}@host", None, "chroma://host:8000"),
        ("chroma://", None, "behind chroma stands a host"),
        (f"chroma://{SECRET}@host:port", None, "is no URL"),
        (f"chroma://host/{SECRET}", None, "and nothing more"),
        ("folder://host/path", None, "a whole path"),
        ("ledger://host", None, "behind ledger stands nothing"),
        (f"ledger://me:{SECRET}@", None, "behind ledger stands nothing"),
        (f"folder://me:{SECRET}@/srv", None, "a whole path"),
        (f"chroma://host?tenant={SECRET}", None, "nothing may stand behind a"),
        (f"chroma://host?{SECRET}", None, "nothing may stand behind a"),
        (f"folder:///srv/a#{SECRET}", None, "are written %3F and %23"),
        (f"folder:///srv/a?{SECRET}", None, "are written %3F and %23"),
        (f"postgresql://me:1#{SECRET}@host/vectors", None, "are written %3F and %23"),
        (f"weaviate://host?key={SECRET}", None, "nothing other than grpc"),
        ("folder:///a,folder:///b", None, "names 2 stores; folder has one"),
        (f"chroma://{SECRET}@a,ledger", None, "must name one type"),
        (",", None, "must name one type"),
        (f"chroma://{SECRET}@a", "http://a:8000", "are both set"),
        (None, f"host:{SECRET}", "must read http://host:8000"),
        (None, None, "is not set"),
    ],
)
def test_what_cannot_be_used_is_refused_without_its_secret(
    vectors_url: str | None, chroma_url: str | None, said: str
) -> None:
    with pytest.raises(ConfigurationError, match=said) as caught:
        require_store(settings(vectors_url, chroma_url=chroma_url))
    assert "_URL" in str(caught.value)
    assert SECRET not in str(caught.value)


@pytest.mark.parametrize("text", ["postgres", "Postgres", "postgresql", "postgres://"])
def test_the_database_of_the_ledger_has_one_name(text: str) -> None:
    (url,) = require_store(settings(text)).urls
    assert (url.text, str(url)) == ("postgres", "postgres")


def test_servers_are_asked_at_the_same_time(monkeypatch: pytest.MonkeyPatch) -> None:
    all_asked = Barrier(2, timeout=60)

    def check(url: StoreUrl, timeout_s: float) -> str:
        del timeout_s
        all_asked.wait()
        return f"{url} is away"

    monkeypatch.setitem(STORES, "chroma", replace(STORES["chroma"], check=check))
    problem = require_store(settings("chroma://one,chroma://two")).problem(timeout_s=1)
    assert problem == "chroma://one:8000 is away; chroma://two:8000 is away"


def test_a_name_that_is_no_host_is_a_problem_and_no_failure() -> None:
    problem = require_store(settings("milvus://a..b:1")).problem(timeout_s=1)
    assert problem is not None
    assert problem.startswith("milvus://a..b:1: ")


def test_no_store_is_no_error_until_one_is_needed() -> None:
    assert configured_store(settings()) is None


def test_a_folder_is_there_and_can_be_written(tmp_path: Path) -> None:
    assert require_store(settings(f"folder://{tmp_path}")).problem(timeout_s=1) is None
    missing = require_store(settings(f"folder://{tmp_path}/missing")).problem(timeout_s=1)
    assert missing is not None
    assert "mkdir -p" in missing


def test_the_database_is_checked_elsewhere() -> None:
    assert require_store(settings("ledger")).problem(timeout_s=1) is None
