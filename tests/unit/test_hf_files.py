"""Finding models on this machine."""

import json
from pathlib import Path

import pytest

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import InvalidInput, ModelNotFound
from workers.hf.files import locate, size_bytes


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(_env_file=None, home=tmp_path)


def put(folder: Path, **files: str) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text("{}")
    for name, text in files.items():
        (folder / name).write_text(text)
    return folder


def test_a_folder_is_found_by_its_path(settings: Settings, tmp_path: Path) -> None:
    folder = put(tmp_path / "elsewhere" / "model")
    assert locate(str(folder), settings, task=None) == folder


def test_a_folder_is_found_from_home(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = put(tmp_path / "mine")
    assert locate("~/mine", settings, task=None) == folder


def test_a_folder_is_found_where_models_lie(settings: Settings, tmp_path: Path) -> None:
    folder = put(tmp_path / "models" / "own" / "model")
    assert locate("own/model", settings, task=None) == folder


def test_the_folder_of_models_is_a_setting(tmp_path: Path) -> None:
    settings = Settings(_env_file=None, home=tmp_path, models_folder=tmp_path / "other")
    folder = put(tmp_path / "other" / "own" / "model")
    assert locate("own/model", settings, task=None) == folder


def test_own_models_go_before_the_bundled_one(settings: Settings, tmp_path: Path) -> None:
    bundled = locate(DEFAULT_EMBEDDING_MODEL, settings, task=None)
    assert (bundled / "model.safetensors").is_file()
    own = put(tmp_path / "models" / DEFAULT_EMBEDDING_MODEL)
    assert locate(DEFAULT_EMBEDDING_MODEL, settings, task=None) == own


@pytest.mark.parametrize(
    "name",
    ["../secret", "own/../../secret", "..", "own/..", "a/b/c", "own/a b", "own/\0", "a" * 300, "-"],
)
def test_what_is_no_name_is_refused(settings: Settings, tmp_path: Path, name: str) -> None:
    put(tmp_path / "secret")
    (tmp_path / "models" / "own").mkdir(parents=True)
    with pytest.raises(InvalidInput, match="no name of a model"):
        locate(name, settings, task=None)


def test_no_name_leads_out_of_the_folder_of_models(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "secret")
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    with pytest.raises(InvalidInput):
        locate("../secret", settings, task=None)


@pytest.mark.parametrize("name", ["/no/such/folder", "~nobody-of-that-name/x", "./none"])
def test_a_missing_folder_is_told(settings: Settings, name: str) -> None:
    with pytest.raises((ModelNotFound, InvalidInput)):
        locate(name, settings, task=None)


def test_a_folder_without_a_model_is_told(settings: Settings, tmp_path: Path) -> None:
    with pytest.raises(ModelNotFound, match=r"holds no model: it has no config\.json"):
        locate(str(tmp_path), settings, task=None)


def test_the_size_is_of_what_would_be_loaded(tmp_path: Path) -> None:
    module = {"idx": 0, "name": "0", "type": "sentence_transformers.models.Dense"}
    listed = [module | {"path": path} for path in ("", "2_Dense", "../elsewhere")]
    folder = put(tmp_path / "model", **{"modules.json": json.dumps(listed)})
    (folder / "model.safetensors").write_bytes(bytes(100))
    (folder / "pytorch_model.bin").write_bytes(bytes(1000))
    (folder / "2_Dense").mkdir()
    (folder / "2_Dense" / "pytorch_model.bin").write_bytes(bytes(20))
    put(tmp_path / "elsewhere", **{"model.safetensors": "x" * 7})
    assert size_bytes(folder) == 120
    assert size_bytes(tmp_path) == 0
