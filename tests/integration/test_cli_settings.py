"""Where a client sends its key: never where a folder of others says."""

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from cli.connection import client_settings
from cli.main import run
from cli.stack.stackfile import Stack, StackState, find_process, machine, write_stack
from sluice import ApiError, Client, ConfigurationError, ConnectionFailed
from tests.integration.fake_api import State, serving

KEY = "s3cret"


@pytest.fixture
def theirs() -> State:
    """The API of whoever wrote the folder."""
    return State(api_key=KEY)


@pytest.fixture
def their_url(theirs: State) -> Iterator[str]:
    with serving(theirs) as url:
        yield url


@pytest.fixture(autouse=True)
def home(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Of the person; the folder that the client runs in is another one."""
    for name in ("SLUICE_URL", "SLUICE_API_KEY", "SLUICE_HOME"):
        monkeypatch.delenv(name, raising=False)
    folder = tmp_path / "folder"
    folder.mkdir()
    monkeypatch.chdir(folder)
    monkeypatch.setenv("HOME", str(tmp_path))
    home = tmp_path / ".sluice"
    home.mkdir()
    return home


def leave_stack(home: Path, url: str) -> None:
    """A stack file that this very process seems to have written."""
    (home / "run").mkdir(parents=True)
    own = find_process(os.getpid())
    assert own is not None
    write_stack(
        Stack(
            pid=own.pid, started_ticks=own.started_ticks, machine=machine(),
            state=StackState.READY, home=home, api_url=url, database_url="", redis_url="",
            vectors_url="", parts=(),
        )
    )  # fmt: skip


def test_a_stray_file_does_not_redirect_the_key(
    theirs: State, their_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"SLUICE_URL={their_url}\nSLUICE_API_KEY={KEY}\n")
    with pytest.raises(ConnectionFailed, match="No API to talk to"):
        Client()
    monkeypatch.setenv("SLUICE_API_KEY", KEY)
    assert run(["jobs"]) == 3
    assert run(["status"]) == 3
    assert theirs.requests == []


def test_a_stray_file_gives_no_key_to_the_url_that_is_set(
    their_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    Path(".env").write_text(f"SLUICE_API_KEY={KEY}\n")
    monkeypatch.setenv("SLUICE_URL", their_url)
    with Client() as client, pytest.raises(ApiError) as caught:
        client.queues()
    assert caught.value.status == 401


def test_the_file_of_the_home_has_url_and_key(home: Path, their_url: str) -> None:
    (home / "client.env").write_text(f"SLUICE_URL={their_url}\nSLUICE_API_KEY={KEY}\n")
    with Client() as client:
        assert client.queues()
    assert run(["queues"]) == 0


def test_the_key_of_that_file_is_for_its_url_only(
    home: Path, their_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    (home / "client.env").write_text(f"SLUICE_URL=http://127.0.0.1:9\nSLUICE_API_KEY={KEY}\n")
    assert run(["--url", their_url, "queues"]) == 5
    with Client(their_url) as client, pytest.raises(ApiError):
        client.queues()
    monkeypatch.setenv("SLUICE_URL", their_url)
    assert run(["queues"]) == 5
    monkeypatch.setenv("SLUICE_API_KEY", KEY)
    assert run(["queues"]) == 0


def test_the_home_of_a_stray_file_has_no_say(
    theirs: State, their_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = Path("other")
    other.mkdir()
    (other / "client.env").write_text(f"SLUICE_URL={their_url}\n")
    Path(".env").write_text("SLUICE_HOME=other\n")
    monkeypatch.setenv("SLUICE_API_KEY", KEY)
    with pytest.raises(ConnectionFailed):
        Client()
    assert theirs.requests == []


def test_a_stack_of_a_stray_file_may_only_be_of_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    Path(".env").write_text("SLUICE_HOME=other\n")
    leave_stack(Path("other"), "http://192.0.2.1:8000")
    with pytest.raises(ConfigurationError, match=r"192\.0\.2\.1.*SLUICE_URL"):
        Client()
    leave_stack(Path("mine"), "http://192.0.2.1:8000")
    monkeypatch.setenv("SLUICE_HOME", "mine")
    with Client() as client:
        assert client.url == "http://192.0.2.1:8000"


def test_the_stack_that_up_started_with_a_file_is_found(their_url: str) -> None:
    Path(".env").write_text("SLUICE_HOME=other\n")
    leave_stack(Path("other"), their_url)
    with Client() as client:
        assert client.url == their_url
    assert client_settings().home_path == Path("other").resolve()


def test_an_empty_variable_is_none(their_url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_URL", "")
    monkeypatch.setenv("SLUICE_API_KEY", "")
    assert client_settings().url is None
    assert client_settings(url=their_url).api_key is None
