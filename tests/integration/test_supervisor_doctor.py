"""`sluice doctor` on a machine where nothing runs yet."""

import subprocess
import sys
from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.doctor import DoctorCheck, check
from cli.stack.ports import free_ports
from shared.config import Settings
from tests.integration.fake_api import State, answering, listening, serving


def checks(home: Path, **changes: object) -> dict[str, DoctorCheck]:
    settings = Settings(_env_file=None, home=home).model_copy(update=changes)
    report = check(settings)
    assert all(one.fix for one in report if not one.ok), "each failed check says what to do"
    return {one.name: one for one in report}


def test_a_machine_that_is_ready_for_up_lacks_only_the_stack(tmp_path: Path) -> None:
    report = checks(tmp_path / "not made yet")
    assert [name for name, one in report.items() if not one.ok] == ["local stack"]
    assert not (tmp_path / "not made yet").exists()


def test_what_is_wrong_is_named_with_its_setting(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    report = checks(
        tmp_path / "file" / "home",
        embedding_model="nobody/has-this",
        generation_model="ollama/tiny",
        ollama_url="http://127.0.0.1:1",
        api_host="0.0.0.0",
        api_port=free_ports(1)[0],
        redis_url=SecretStr("redis://127.0.0.1:1/0"),
        chroma_url="http://127.0.0.1:1",
        database_url=SecretStr("postgresql+psycopg://u:p@127.0.0.1:1/d"),
    )
    for name, setting in {
        "home": "SLUICE_HOME",
        "embedding model": "SLUICE_EMBEDDING_MODEL",
        "generation model": "SLUICE_OLLAMA_URL",
        "API keys": "SLUICE_API_KEYS",
        "redis": "SLUICE_REDIS_URL",
        "chroma": "SLUICE_CHROMA_URL",
        "database": "SLUICE_DATABASE_URL",
        "API": "SLUICE_URL",
    }.items():
        assert not report[name].ok, name
        assert setting in report[name].fix


def test_a_model_in_a_folder_is_no_fault(tmp_path: Path) -> None:
    assert checks(tmp_path, embedding_model=str(tmp_path))["embedding model"].ok


def test_the_doctor_imports_nothing_heavy(tmp_path: Path) -> None:
    script = (
        "import sys\n"
        "from cli.doctor import check\n"
        "from shared.config import Settings\n"
        "check(Settings(_env_file=None, home=sys.argv[1]))\n"
        "print({'torch', 'transformers', 'chromadb', 'langchain'} & set(sys.modules))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(tmp_path)], capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "set()"


@pytest.mark.parametrize("has_keys", [True, False])
@pytest.mark.parametrize("here", [{}, {"api_keys": {"me": SecretStr("mine")}}])
def test_the_api_that_answers_says_whether_it_requires_keys(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, has_keys: bool, here: dict[str, object]
) -> None:
    """Whatever the settings of this machine say, which are those of another API."""
    state = State(api_key="s3cret" if has_keys else None)
    with serving(state) as url:
        monkeypatch.setenv("SLUICE_URL", url)
        monkeypatch.setenv("SLUICE_API_KEY", "s3cret")
        report = checks(tmp_path, **here)
    keys = report["API keys"]
    assert keys.ok
    assert keys.detail == (
        f"{url} asks for a key" if has_keys else "none: whoever reaches 127.0.0.1 may use the API"
    )


def test_the_api_that_is_named_gets_its_own_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not with the keys of this machine's API, which are no other server's business."""
    here = Settings(_env_file=None, home=tmp_path).model_copy(
        update={"api_keys": {"me": SecretStr("mine")}}
    )
    monkeypatch.setenv("SLUICE_URL", "http://127.0.0.1:1")
    with serving(State(api_key="mine")) as url:
        without = {one.name: one for one in check(here, url=url)}
        with_key = {one.name: one for one in check(here, url=url, api_key="mine")}
    assert without["API"].detail == with_key["API"].detail == url
    assert not without["API key"].ok
    assert "workers" not in without
    assert with_key["workers"].ok


@pytest.mark.parametrize(
    "answers",
    [
        {"/v1/workers": {"items": [{"name": "a"}]}, "/v1/queues": {}, "/readyz": {"checks": []}},
        {"/v1/workers": [], "/v1/queues": 7, "/readyz": {"checks": {"database": "ok"}}},
    ],
)
def test_an_api_of_another_version_is_said_to_be_one(
    tmp_path: Path, answers: dict[str, object]
) -> None:
    with listening(answering({"/healthz": {"status": "ok"}} | answers)) as url:
        report = {one.name: one for one in check(Settings(_env_file=None, home=tmp_path), url=url)}
    assert report["API"].ok
    for path in answers:
        one = report[f"API: {path}"]
        assert not one.ok
        assert "otherwise than Sluice" in one.detail
        assert "version of Sluice" in one.fix


def test_nothing_is_said_of_the_keys_of_a_server_that_is_no_api(tmp_path: Path) -> None:
    with listening(answering({"/healthz": "ok"})) as url:
        report = {one.name: one for one in check(Settings(_env_file=None, home=tmp_path), url=url)}
    assert not report["API"].ok
    assert "API keys" not in report


def test_without_an_api_its_settings_are_looked_at(tmp_path: Path) -> None:
    assert checks(tmp_path)["API keys"].detail.startswith("none")
    keys = {"one": SecretStr("a"), "two": SecretStr("b")}
    assert checks(tmp_path, api_keys=keys)["API keys"].detail == "2 set for the API of this machine"


def test_paused_queues_and_the_last_sweep_are_reported(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = State()
    with serving(state) as url:
        monkeypatch.setenv("SLUICE_URL", url)
        paused = checks(tmp_path)
        state.paused = False
        running = checks(tmp_path)
    assert paused["queues"].ok
    assert paused["queues"].detail == "paused: ingest; `sluice queues resume ingest` goes on"
    assert running["queues"].detail == "none is paused"
    assert running["API: sweeper"].detail == "ran 0.4 s ago"
