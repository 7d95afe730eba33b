"""What `sync` does with a folder, seen from its files and the documents of a collection."""

import hashlib
from collections.abc import Mapping
from pathlib import Path

import pytest

from sluice import InvalidInput
from sluice.shapes import Document
from sluice.sources import FileDocument, discover
from sluice.sync import _brake, _exists_in, _is_in, _scope, make_plan


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def stored(texts: Mapping[str, str]) -> dict[str, Document]:
    return {
        name: Document.model_validate(
            {"id": f"id of {name}", "collection": "c", "source": name, "sha256": digest(text)}
        )
        for name, text in texts.items()
    }


def planned(root: Path, documents: Mapping[str, Document], folder: str = ".") -> tuple[object, ...]:
    """Names that are added, replaced, erased; and how many stay."""
    discovery = discover([str(root / folder)], root=root)
    files = [file for file in discovery.documents if isinstance(file, FileDocument)]
    hashes = {file.name: digest(file.path.read_text()) for file in files}
    scope = _scope(str(root / folder), root)
    here = {name: document for name, document in documents.items() if _is_in(name, scope)}
    plan = make_plan("c", files, hashes, here, [], exists=_exists_in(root))
    report = plan.report
    assert [file.name for file in plan.documents] == sorted([*report.added, *report.replaced])
    assert plan.erased_ids == [f"id of {name}" for name in report.erased]
    return report.added, report.replaced, report.erased, report.unchanged


def test_of_2000_files_only_those_that_differ_are_touched(tmp_path: Path) -> None:
    texts = {f"{n % 20}/{n}.md": f"text {n}" for n in range(2000)}
    for n in range(20):
        (tmp_path / str(n)).mkdir()
    for name, text in texts.items():
        (tmp_path / name).write_text(text)
    documents = stored(texts)
    assert planned(tmp_path, documents) == ((), (), (), 2000)
    changed = tuple(sorted(f"{n % 20}/{n}.md" for n in range(0, 1000, 100)))
    removed = tuple(sorted(f"{n % 20}/{n}.md" for n in range(1001, 1006)))
    added = tuple(f"new-{n}.md" for n in range(5))
    for name in changed:
        (tmp_path / name).write_text("another")
    for name in removed:
        (tmp_path / name).unlink()
    for name in added:
        (tmp_path / name).write_text(name)
    assert planned(tmp_path, documents) == (added, changed, removed, 1985)


def test_only_what_belongs_to_the_folder_is_erased(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "here.md").write_text("x")
    documents = stored(
        {"a/b/gone.md": "x", "a/gone.md": "x", "ab/gone.md": "x", "https://a/b/gone.md": "x"}
    )
    assert planned(tmp_path, documents, "a/b")[2] == ("a/b/gone.md",)
    assert planned(tmp_path, documents, "a")[2] == ("a/b/gone.md", "a/gone.md")
    assert planned(tmp_path, documents)[2] == ("a/b/gone.md", "a/gone.md", "ab/gone.md")


def test_what_is_there_and_cannot_be_read_is_kept(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("x")
    (tmp_path / ".hidden.md").write_text("x")
    (tmp_path / "dangling.md").symlink_to("nowhere")
    (tmp_path / "all.zip").write_text("x")
    names = ["picture.png", ".hidden.md", "all.zip!/a.md", "gone.zip!/a.md", "gone.md"]
    documents = stored(dict.fromkeys(names, "x"))
    files = [FileDocument(name="all.zip", path=tmp_path / "all.zip")]
    plan = make_plan("c", files, {"all.zip": "1"}, documents, [], exists=_exists_in(tmp_path))
    assert plan.report.erased == ("gone.md", "gone.zip!/a.md")
    assert _exists_in(tmp_path)("dangling.md")
    assert _exists_in(tmp_path)("x" * 5000)
    # Neither added nor replaced, where it could not be hashed.
    plan = make_plan("c", files, {}, stored({"all.zip": "x"}), [], exists=_exists_in(tmp_path))
    assert (plan.report.erased, plan.report.unchanged, plan.documents) == ((), 0, [])


def test_a_folder_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InvalidInput, match="--root"):
        _scope(str(tmp_path), tmp_path / "a")


@pytest.mark.parametrize(
    ("erased", "scope", "share", "is_refused"),
    [(0, 0, 0.5, False), (1, 1, 0.5, False), (1, 2, 0, False), (2, 2, 0.5, True),
     (5, 10, 0.5, False), (6, 10, 0.5, True), (10, 10, 1, False), (2, 100, 0.01, True)],
)  # fmt: skip
def test_too_much_is_not_erased(erased: int, scope: int, share: float, is_refused: bool) -> None:
    if not is_refused:
        _brake(erased, scope, share)
        return
    with pytest.raises(InvalidInput, match="--yes"):
        _brake(erased, scope, share)
