"""Finding models on this machine."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import InvalidInput, ModelNotFound
from workers.models.locate import locate, size_bytes


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
    folder = put(tmp_path / "models" / "deep" / "down" / "model")
    assert locate(str(folder), settings, task=None) == folder


@pytest.mark.parametrize("name", ["embedding_model", "hf_models"])
def test_a_folder_that_a_setting_names_may_lie_anywhere(name: str, tmp_path: Path) -> None:
    folder = put(tmp_path / "elsewhere" / "model")
    value = str(folder) if name == "embedding_model" else {"fill-mask": str(folder)}
    named: dict[str, Any] = {name: value}
    settings = Settings(_env_file=None, home=tmp_path, **named)
    assert locate(str(folder), settings, task=None) == folder
    with pytest.raises(InvalidInput):
        locate(str(folder.parent), settings, task=None)


def test_a_folder_of_a_setting_is_found_from_home(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    folder = put(tmp_path / "mine")
    settings = Settings(_env_file=None, home=tmp_path, embedding_model="~/mine")
    assert locate("~/mine", settings, task=None) == folder


def test_more_folders_of_models_are_a_setting(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("SLUICE_MODELS_EXTRA_FOLDERS", f"{tmp_path}/one, {tmp_path}/two")
    settings = Settings(_env_file=None, home=tmp_path)
    folder = put(tmp_path / "two" / "own" / "model")
    assert locate("own/model", settings, task=None) == folder
    assert locate(str(folder), settings, task=None) == folder
    own = put(tmp_path / "models" / "own" / "model")
    assert locate("own/model", settings, task=None) == own


def test_links_between_folders_of_models_are_followed(settings: Settings, tmp_path: Path) -> None:
    folder = put(tmp_path / "models" / "own" / "model")
    (tmp_path / "models" / "other").symlink_to(folder)
    assert locate("other", settings, task=None).resolve() == folder


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


def refusal(name: str, settings: Settings) -> str:
    """The error message without the name itself."""
    with pytest.raises(InvalidInput) as caught:
        locate(name, settings, task=None)
    assert "SLUICE_MODELS_EXTRA_FOLDERS" in caught.value.message
    return caught.value.message.replace(repr(name[:200]), "NAME")


OUTSIDE = [
    "/etc",
    "/",
    "//etc",
    "/etc/passwd",
    "/no/such/folder",
    "~",
    "~/secret",
    "~root",
    "~nobody-of-that-name/x",
    "..",
    "../secret",
    "../..",
    "./secret",
    "./none",
    ".",
    "own/..",
    "own/../../secret",
    "a/b/c",
    "file:///etc",
    "file:/etc",
    "..\\secret",
    "C:\\secret",
    "\\\\server\\share",
    "%2Fetc",
    "..%2Fsecret",
    "own/a b",
    "own/\0",
    "/etc\0",
    "a" * 300,
    "/" + "a" * 300,
    "-",
    " /etc",
    "/proc/self/cwd",
]


@pytest.mark.parametrize("name", OUTSIDE)
def test_all_that_is_outside_is_refused_alike(
    settings: Settings, tmp_path: Path, name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    put(tmp_path / "secret")
    (tmp_path / "models" / "own").mkdir(parents=True)
    (tmp_path / "here").mkdir()
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert refusal(name, settings) == refusal("/no/such/folder", settings)


@pytest.mark.parametrize("path", ["secret", "models/../secret", "models/own/../../secret", "none"])
def test_so_is_a_path_that_leads_outside(settings: Settings, tmp_path: Path, path: str) -> None:
    put(tmp_path / "secret")
    (tmp_path / "models" / "own").mkdir(parents=True)
    assert refusal(f"{tmp_path}/{path}", settings) == refusal("/no/such/folder", settings)


def test_so_is_a_link_that_leads_outside(settings: Settings, tmp_path: Path) -> None:
    put(tmp_path / "secret" / "model")
    (tmp_path / "models").mkdir()
    (tmp_path / "models" / "own").symlink_to(tmp_path / "secret")
    for name in ("own", "own/model", "own/none", f"{tmp_path}/models/own/model"):
        assert refusal(name, settings) == refusal("/no/such/folder", settings)
    (tmp_path / "models" / "loop").symlink_to(tmp_path / "models" / "loop")
    with pytest.raises(ModelNotFound):
        locate(f"{tmp_path}/models/loop", settings, task=None)


@pytest.mark.parametrize("name", ["none", "own/none", "a" * 300, "own"])
def test_a_folder_without_a_model_is_reported(
    settings: Settings, tmp_path: Path, name: str
) -> None:
    (tmp_path / "models" / "own").mkdir(parents=True)
    with pytest.raises(ModelNotFound, match=r"There is no folder|it has no config\.json"):
        locate(f"{tmp_path}/models/{name}", settings, task=None)


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
