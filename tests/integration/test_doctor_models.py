"""`sluice doctor` on the model that generates: here, at a server, or on the hub."""

import socket
from collections.abc import Iterator
from pathlib import Path

import pytest
from pydantic import SecretStr

from cli.doctor import DoctorCheck, embedding_model, generation_model
from shared.config import Settings
from tests.wire.behaviour import Wire
from tests.wire.ollama_server import served_ollama
from tests.wire.openai_server import served_openai


@pytest.fixture
def ollama() -> Iterator[Wire]:
    with served_ollama() as wire:
        yield wire


@pytest.fixture
def openai() -> Iterator[Wire]:
    with served_openai() as wire:
        yield wire


@pytest.fixture(autouse=True)
def _no_hub(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setenv("HF_ENDPOINT", nowhere())
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    for name in ("HF_TOKEN", "HF_HUB_CACHE", "HF_HUB_OFFLINE", "HUGGINGFACE_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)


def nowhere() -> str:
    with socket.socket() as unused:
        unused.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{unused.getsockname()[1]}"


def checks(model: str, **changes: object) -> list[DoctorCheck]:
    settings = Settings(_env_file=None, generation_model=model).model_copy(update=changes)
    rows = list(generation_model(settings))
    assert all(check.fix for check in rows if not check.ok)
    return rows


def check(model: str, **changes: object) -> DoctorCheck:
    [row] = checks(model, **changes)
    return row


def test_what_needs_no_model_and_what_is_none() -> None:
    assert check("extractive").ok
    assert not check("gpt/4").ok


def test_a_model_of_ollama(ollama: Wire) -> None:
    assert check("ollama/tiny", ollama_url=ollama.url).ok
    ollama.models["big:latest"] = {}
    assert check("ollama/big", ollama_url=ollama.url + "/").ok
    missing = check("ollama/other", ollama_url=ollama.url)
    assert not missing.ok
    assert "sluice models pull ollama/other" in missing.fix
    pulled = check("ollama/other", ollama_url=ollama.url, ollama_pull=True)
    assert pulled.ok
    assert "pulled at its first use" in pulled.detail
    away = check("ollama/tiny", ollama_url=nowhere())
    assert not away.ok
    assert "ollama serve" in away.fix


def test_a_model_of_an_openai_compatible_server(openai: Wire) -> None:
    assert check("openai/tiny", openai_base_url=openai.url).ok
    assert not check("openai/tiny").ok
    away = check("openai/tiny", openai_base_url=nowhere(), openai_api_key=SecretStr("s3cret"))
    assert not away.ok
    assert "SLUICE_OPENAI_BASE_URL" in away.fix
    assert "s3cret" not in away.detail + away.fix


def test_a_model_on_this_machine_or_on_the_hub(tmp_path: Path) -> None:
    assert check(f"hf/{tmp_path}").ok
    gone = check(f"hf/{tmp_path}/none")
    assert not gone.ok
    assert "no such folder" in gone.detail
    away = check("hf/org/model")
    assert not away.ok
    assert "hf download org/model" in away.fix
    (tmp_path / "hub" / "hub" / "models--org--model" / "snapshots").mkdir(parents=True)
    assert check("hf/org/model").ok


def test_a_hub_that_hides_the_model_or_is_not_to_be_used(
    ollama: Wire, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_ENDPOINT", ollama.url)  # It answers 404 to what it does not know.
    hidden = check("hf/org/model")
    assert not hidden.ok
    assert "HF_TOKEN" in hidden.fix
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    assert "HF_HUB_OFFLINE" in check("hf/org/model").detail


def test_four_bits_need_their_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = f"hf/{tmp_path}"
    assert [c.name for c in checks(model, generation_precision="nf4")][1:] == ["package of nf4"]
    assert checks(model, generation_precision="bfloat16")[1:] == []
    assert checks(model)[1:] == []
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "0")
    assert [c.name for c in checks(model)][1:] == ["package of nf4"]


def embedding(model: str, **changes: object) -> DoctorCheck:
    return embedding_model(
        Settings(_env_file=None, embedding_model=model).model_copy(update=changes)
    )


def test_embedding_models_of_servers(ollama: Wire, openai: Wire) -> None:
    assert embedding("ollama/tiny", ollama_url=ollama.url).ok
    assert "ollama pull other" in embedding("ollama/other", ollama_url=ollama.url).fix
    assert embedding("openai/tiny", openai_base_url=openai.url).ok
    assert "SLUICE_OPENAI_BASE_URL" in embedding("openai/tiny").fix
    assert not embedding("openai/tiny", openai_base_url=nowhere()).ok


def test_embedding_models_of_this_machine(tmp_path: Path) -> None:
    assert "installed as a package" in embedding("all-MiniLM-L6-v2").detail
    assert "installed as a package" in embedding("hf/all-MiniLM-L6-v2").detail
    assert not embedding("own/model", models_folder=tmp_path).ok
    (tmp_path / "own" / "model").mkdir(parents=True)
    assert embedding("own/model", models_folder=tmp_path).ok
    assert "folder of models" in embedding("fastembed/own/model", models_folder=tmp_path).detail
