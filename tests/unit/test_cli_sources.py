"""Which files a list of paths stands for, and what they are called."""

import os
import unicodedata
from pathlib import Path

import pytest

from sluice import InvalidInput
from sluice.sources import discover, document_name, readable


@pytest.fixture(autouse=True)
def _folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    for name in (
        "docs/guide.md", "docs/deep/er/page.html", "docs/photo.png", "docs/Makefile",
        "docs/.hidden.md", "docs/.git/config.txt", "docs/TABLE.CSV", "notes.xyz",
    ):  # fmt: skip
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("text")


def names(*paths: str) -> list[str]:
    return [document.name for document in discover(paths).documents]


def test_folders_are_searched_for_what_can_be_read() -> None:
    sources = discover(["docs"])
    assert [document.name for document in sources.documents] == [
        "docs/TABLE.CSV", "docs/deep/er/page.html", "docs/guide.md",
    ]  # fmt: skip
    assert sources.left_out == {".png": 1, "no extension": 1}
    with_pictures = discover(["docs"], suffixes=readable(["ocr"]))
    assert "docs/photo.png" in [document.name for document in with_pictures.documents]
    assert with_pictures.left_out == {"no extension": 1}


@pytest.mark.parametrize("spelling", ["docs", "docs/", "./docs", "../{here}/docs", "docs/deep/.."])
def test_a_folder_has_one_name_however_it_is_spelled(spelling: str) -> None:
    assert "docs/guide.md" in names(spelling.format(here=Path.cwd().name))


def test_names_are_paths_from_the_working_directory_on(monkeypatch: pytest.MonkeyPatch) -> None:
    assert names("docs/deep", "docs/guide.md") == ["docs/deep/er/page.html", "docs/guide.md"]
    assert names("docs/deep/er") == ["docs/deep/er/page.html"]
    monkeypatch.chdir("docs")
    assert "guide.md" in names(".")
    assert names("../notes.xyz") == ["../notes.xyz"]
    assert names("../docs/deep") == ["deep/er/page.html"]


def test_a_folder_elsewhere_has_its_own_name_first(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir("docs/deep")
    assert "docs/guide.md" in names("..")


def test_named_files_are_always_sent_under_the_path_of_the_argument() -> None:
    assert names("notes.xyz", "./docs//photo.png") == ["docs/photo.png", "notes.xyz"]
    assert names(str(Path("notes.xyz").absolute())) == ["notes.xyz"]
    elsewhere = str(Path(__file__))
    assert names(elsewhere) == [elsewhere]


def test_globs_are_expanded_where_the_shell_did_not() -> None:
    assert names("docs/*.md") == ["docs/guide.md"]
    assert names("docs/**") == names("docs/**/*") == names("docs")
    assert names("*.xyz") == ["notes.xyz"]
    assert names("do*") == names("docs")


def test_a_file_given_twice_is_one_document() -> None:
    assert names("docs", "docs/guide.md", "docs/*.md") == names("docs")


def test_two_files_of_one_name_are_not_mixed_up(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    other = tmp_path / "other" / "docs"
    other.mkdir(parents=True)
    (other / "guide.md").write_text("another")
    assert names("docs", "other/docs")  # from here on they have two
    monkeypatch.chdir("docs/deep")
    with pytest.raises(InvalidInput, match=r"docs/guide\.md would stand for both"):
        discover(["..", "../../other/docs"])


@pytest.mark.parametrize("path", ["nowhere", "nowhere/*.md"])
def test_a_path_that_stands_for_nothing_is_an_error(path: str) -> None:
    with pytest.raises(InvalidInput, match="nowhere"):
        discover([path])


def test_what_looks_like_a_glob_but_exists_is_a_file() -> None:
    Path("a[1].txt").write_text("text")
    assert names("a[1].txt") == ["a[1].txt"]


def test_pipes_in_folders_are_left_out_and_refused_as_arguments() -> None:
    os.mkfifo("docs/pipe.txt")
    assert "docs/pipe.txt" not in names("docs")
    with pytest.raises(InvalidInput, match="no regular file"):
        discover(["docs/pipe.txt"])


def test_broken_links_are_reported_later_and_loops_end() -> None:
    Path("docs/gone.md").symlink_to("nothing")
    Path("docs/loop").symlink_to("..")
    assert "docs/gone.md" in names("docs")
    assert not [name for name in names("docs") if "loop" in name]
    listed = ["docs/TABLE.CSV", "docs/deep/er/page.html", "docs/gone.md", "docs/guide.md"]
    assert names("docs/**") == names("docs/**/*") == names("docs") == listed


def test_links_that_lead_to_themselves_are_no_folders() -> None:
    Path("docs/self.md").symlink_to("self.md")
    Path("docs/self").symlink_to("self")
    discovery = discover(["docs"])
    assert "docs/self.md" in [document.name for document in discovery.documents]  # fails when read
    assert discovery.left_out["no extension"] >= 1


def test_names_are_nfc_and_fit_into_an_upload() -> None:
    decomposed = unicodedata.normalize("NFD", "여권.md")
    assert document_name(decomposed) == "여권.md"
    assert document_name('a"b\n.txt') == "a%22b%0A.txt"
    assert document_name(" a\u2028 b ") == "%20a%E2%80%A8 b%20"
    assert document_name(os.fsdecode(b"caf\xe9.txt")) == "caf\\xe9.txt"


def test_files_whose_names_look_alike_do_not_hold_up_the_others() -> None:
    composed = "출입 규정.md"
    apart = unicodedata.normalize("NFD", composed)
    for name in (composed, apart, "other.md"):
        Path("docs", name).write_text(name)
    sources = discover(["docs"])
    listed = [document.name for document in sources.documents]
    assert "docs/other.md" in listed
    assert "docs/guide.md" in listed
    assert f"docs/{composed}" not in listed
    (error,) = sources.errors
    assert error.source == f"docs/{composed}"
    assert "U+CD9C U+C785 U+0020 U+ADDC …" in error.message
    assert "U+110E U+116E U+11AF U+110B … (as macOS takes letters apart, NFD)" in error.message


@pytest.mark.parametrize(
    ("one", "other", "codes"),
    [('a"b.md', "a%22b.md", "U+0022"), ("é.md", "e\u0301.md", "U+00E9"), ("x .md", "x .md", "")],
)
def test_other_names_that_become_one(one: str, other: str, codes: str) -> None:
    Path("docs", one).write_text("1")
    Path("docs", other).write_text("2")
    sources = discover(["docs"])
    assert [codes in error.message for error in sources.errors] == ([True] if codes else [])
    assert "docs/guide.md" in [document.name for document in sources.documents]


def test_linked_folders_are_followed_once(tmp_path: Path) -> None:
    outside = tmp_path / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "deep" / "note.md").write_text("x")
    (outside / "deep" / "back").symlink_to(tmp_path / "docs")
    (outside / "deep" / "up").symlink_to("..")
    Path("docs/a link").symlink_to(outside)
    Path("docs/second").symlink_to(outside / "deep")
    Path("docs/again").symlink_to("deep")  # which is there under its own name
    Path("docs/all").symlink_to(tmp_path)
    sources = discover(["docs"])
    assert [document.name for document in sources.documents] == [
        "docs/TABLE.CSV", "docs/a link/deep/note.md", "docs/deep/er/page.html", "docs/guide.md",
    ]  # fmt: skip
    assert sources.circular_links == ["docs/all"]  # the others lead to what is there
    assert names("docs/again") == [
        "docs/again/er/page.html"
    ]  # one that is named is a folder like others


def test_a_linked_file_is_read_under_its_own_name() -> None:
    Path("docs/link.md").symlink_to(Path("notes.xyz").absolute())
    assert "docs/link.md" in names("docs")


def test_a_folder_that_cannot_be_read_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    scan = os.scandir

    def refused(path: Path) -> object:
        if Path(path).name == "deep":
            raise PermissionError(13, "Permission denied")
        return scan(path)

    monkeypatch.setattr(os, "scandir", refused)
    sources = discover(["docs"])
    assert [document.name for document in sources.documents] == ["docs/TABLE.CSV", "docs/guide.md"]
    (error,) = sources.errors
    assert error.message == "Cannot read the folder docs/deep: Permission denied."
