"""When `sluice watch` synchronizes again, with a real folder and in the place of each
synchronization a function."""

from collections.abc import Callable
from pathlib import Path

import pytest

from cli.commands import sync
from sluice import ConnectionFailed, InvalidInput


def runs(path: Path, *steps: Callable[[], object]) -> list[bool]:
    """Do one step each time; the last one is to end it. Whether each time was the first."""
    firsts: list[bool] = []

    def once(*, is_first: bool) -> None:
        firsts.append(is_first)
        steps[len(firsts) - 1]()

    with pytest.raises(KeyboardInterrupt):
        sync._repeat_at_changes(once, [str(path)])
    return firsts


def raising(error: BaseException) -> Callable[[], object]:
    def step() -> None:
        raise error

    return step


END = raising(KeyboardInterrupt())
AWAY = raising(ConnectionFailed("The API is away."))


@pytest.fixture(autouse=True)
def _no_pauses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sync, "RETRY_BASE_S", 0.0)


def test_what_changes_during_the_first_time_is_not_missed(tmp_path: Path) -> None:
    assert runs(tmp_path, lambda: (tmp_path / "a").write_text("a"), END) == [True, False]


def test_it_is_tried_again_until_the_api_is_back(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def change() -> None:
        (tmp_path / "a").write_text("a")

    assert runs(tmp_path, change, AWAY, AWAY, change, END) == [True, *[False] * 4]
    assert capsys.readouterr().err.count("The API is away. Trying again.") == 1


def test_what_cannot_be_done_waits_for_a_change(tmp_path: Path) -> None:
    def change() -> None:
        (tmp_path / "a").write_text("a")

    def refuse() -> None:
        (tmp_path / "b").write_text("b")
        raise InvalidInput("Too much has vanished.")

    assert runs(tmp_path, change, refuse, END) == [True, False, False]


def test_a_folder_that_is_gone_is_seen_again_when_it_is_back(tmp_path: Path) -> None:
    folder = tmp_path / "docs"
    folder.mkdir()

    def refuse() -> None:
        folder.mkdir()
        raise InvalidInput("It does not exist.")

    assert runs(folder, folder.rmdir, refuse, END) == [True, False, False]


@pytest.mark.parametrize("error", [InvalidInput("Nothing there."), ConnectionFailed("Away.")])
def test_what_the_first_time_raises_ends_it(tmp_path: Path, error: Exception) -> None:
    with pytest.raises(type(error)):
        runs(tmp_path, raising(error))


def test_hidden_files_are_not_looked_at(tmp_path: Path) -> None:
    is_seen = sync._is_seen([str(tmp_path / "docs"), str(tmp_path / ".notes")])
    seen = ["docs/a.md", "docs/node_modules/a.md", "docs", ".notes/a.md", ".notes"]
    unseen = ["docs/.git/index", "docs/deep/.a.md.swp", ".notes/.x"]
    assert all(is_seen(str(tmp_path / path)) for path in seen)
    assert not any(is_seen(str(tmp_path / path)) for path in unseen)
