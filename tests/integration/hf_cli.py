"""The API, and a folder with files, for tests of `sluice hf`."""

from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.integration.fake_api import State, serving

FLAC = b"fLaC" + bytes(96)


@pytest.fixture(scope="module")
def api() -> Iterator[tuple[str, State]]:
    state = State()
    with serving(state) as url:
        yield url, state


@pytest.fixture(autouse=True)
def state(api: tuple[str, State], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> State:
    """Of the API, as new; with the files in the folder that the tests name."""
    url, state = api
    vars(state).update(vars(State()))
    monkeypatch.setenv("SLUICE_URL", url)
    monkeypatch.setenv("SLUICE_HOME", str(tmp_path / "home"))
    monkeypatch.chdir(tmp_path)
    Path("report.txt").write_text("\ufeffAnn is here and good\n\nBob went to Rome\n", "utf-8")
    Path("call.flac").write_bytes(FLAC)
    return state
