"""What `sync` does with a folder, seen from its files and the documents of a collection."""

import hashlib
import os
import time
import unicodedata
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

from sluice import InvalidInput
from sluice.ingest import FileHashes
from sluice.shapes import Document
from sluice.sources import FileDocument, discover
from sluice.sync import Disk, Scope, SyncReport, make_plan, require_few_erased


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def document(name: str, text: str, **fields: Any) -> Document:
    values = {"id": f"id of {name}", "collection": "c", "source": name, "sha256": digest(text)}
    return Document.model_validate(values | fields)


def stored(texts: Mapping[str, str]) -> dict[str, Document]:
    return {name: document(name, text) for name, text in texts.items()}


def member(archive: str, name: str, archive_text: str | None) -> Document:
    """A document of an archive with these bytes; None where not all of it has been read."""
    sha256 = None if archive_text is None else digest(archive_text)
    return document(
        f"{archive}!/{name}", name, container=archive, container_sha256=sha256,
        is_whole=sha256 is not None,
    )  # fmt: skip


def changes(root: Path, documents: Mapping[str, Document], folder: str = ".") -> tuple[object, ...]:
    """The names that are added, replaced and erased, and the number of unchanged ones."""
    discovery = discover([str(root / folder)], root=root)
    files = [file for file in discovery.documents if isinstance(file, FileDocument)]
    hashes = {file.name: digest(file.path.read_text()) for file in files}
    scope = Scope.of_path(str(root / folder), root)
    inside = {name: document for name, document in documents.items() if scope.holds(document)}
    plan = make_plan("c", files, hashes, inside, [], exists=Disk(root).has)
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
    assert changes(tmp_path, documents) == ((), (), (), 2000)
    changed = tuple(sorted(f"{n % 20}/{n}.md" for n in range(0, 1000, 100)))
    removed = tuple(sorted(f"{n % 20}/{n}.md" for n in range(1001, 1006)))
    added = tuple(f"new-{n}.md" for n in range(5))
    for name in changed:
        (tmp_path / name).write_text("another")
    for name in removed:
        (tmp_path / name).unlink()
    for name in added:
        (tmp_path / name).write_text(name)
    assert changes(tmp_path, documents) == (added, changed, removed, 1985)


def test_only_what_belongs_to_the_folder_is_erased(tmp_path: Path) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    (tmp_path / "a" / "b" / "here.md").write_text("x")
    documents = stored(
        {"a/b/gone.md": "x", "a/gone.md": "x", "ab/gone.md": "x", "https://a/b/gone.md": "x"}
    )
    assert changes(tmp_path, documents, "a/b")[2] == ("a/b/gone.md",)
    assert changes(tmp_path, documents, "a")[2] == ("a/b/gone.md", "a/gone.md")
    assert changes(tmp_path, documents)[2] == ("a/b/gone.md", "a/gone.md", "ab/gone.md")


def report_of(
    files: Mapping[str, str], documents: list[Document], *, exists: bool = False, **options: Any
) -> SyncReport:
    """The plan for files with these contents."""
    plan = make_plan(
        "c",
        [FileDocument(name=name, path=Path(name)) for name in files],
        {name: digest(text) for name, text in files.items()},
        {document.source: document for document in documents},
        [],
        exists=lambda _: exists,
        **options,
    )
    return plan.report


def test_an_archive_is_unchanged_where_all_of_it_was_read() -> None:
    files = {"a.zip": "1", "b.zip": "1", "c.zip": "1", "new.zip": "1"}
    report = report_of(files, [
        member("a.zip", "x.md", "1"), member("a.zip", "y.md", "1"),
        member("b.zip", "x.md", "2"),
        member("c.zip", "x.md", None),
        member("gone.zip", "x.md", "1"),
    ])  # fmt: skip
    assert report.unchanged == 1
    assert (report.added, report.replaced) == (("new.zip",), ("b.zip", "c.zip"))
    assert report.erased == ("gone.zip!/x.md",)


def test_a_mail_is_unchanged_where_its_attachments_were_read() -> None:
    whole = [document("a.eml", "1"), member("a.eml", "x.md", "1")]
    report = report_of({"a.eml": "1"}, whole)
    assert (report.unchanged, report.added, report.replaced) == (1, (), ())
    report = report_of({"a.eml": "1"}, [document("a.eml", "1", is_whole=False)])
    assert report.replaced == ("a.eml",)
    assert report_of({}, whole).erased == ("a.eml", "a.eml!/x.md")


def test_files_whose_folder_ends_with_an_exclamation_mark_lie_in_no_archive() -> None:
    report = report_of({"a": "1"}, [document("a", "1"), document("a!/b.md", "1")])
    assert report.erased == ("a!/b.md",)


def test_metadata_that_is_not_noted_yet_is_a_change() -> None:
    noted = {"team": "ops", "tags": ["a"], "page": 1}
    documents = [
        document("a", "1", metadata=noted), document("b", "1", metadata={"team": "desk"}),
        document("c", "1"),
    ]  # fmt: skip
    files = dict.fromkeys("abc", "1")
    assert report_of(files, documents).unchanged == 3
    report = report_of(files, documents, metadata={"team": "ops", "tags": ["a"]})
    assert (report.unchanged, report.replaced) == (1, ("b", "c"))
    decomposed = unicodedata.normalize("NFD", "한글")
    hangul = document("a", "1", metadata={"한글": ["한글"]})
    assert report_of({"a": "1"}, [hangul], metadata={decomposed: [decomposed]}).unchanged == 1


def test_what_is_there_and_cannot_be_read_is_kept(tmp_path: Path) -> None:
    (tmp_path / "picture.png").write_text("x")
    (tmp_path / ".hidden.md").write_text("x")
    (tmp_path / "dangling.md").symlink_to("nowhere")
    (tmp_path / "all.zip").write_text("x")
    names = ["picture.png", ".hidden.md", "dangling.md", "gone.md"]
    documents = stored(dict.fromkeys(names, "x")) | {
        one.source: one for one in (member("all.zip", "a", "x"), member("gone.zip", "a", "x"))
    }
    files = [FileDocument(name="all.zip", path=tmp_path / "all.zip")]
    exists = Disk(tmp_path).has
    plan = make_plan("c", files, {"all.zip": "1"}, documents, [], exists=exists)
    assert plan.report.erased == ("gone.md", "gone.zip!/a")
    # Neither added nor replaced, where it could not be hashed.
    plan = make_plan("c", files, {}, stored({"all.zip": "x"}), [], exists=exists)
    assert (plan.report.erased, plan.report.unchanged, plan.documents) == ((), 0, [])


def test_files_are_looked_for_by_the_names_of_their_documents(tmp_path: Path) -> None:
    decomposed = unicodedata.normalize("NFD", "한글")
    written = [
        f"{decomposed}/{decomposed}.md", "two\nlines.md", "two\nlines/ a .md", " a/b .md",
        'quoted "/"c".md', "a/x/.md", "100%/%0A.md", "!/a!.md", os.fsdecode(b"\xb0\xa1.md"),
    ]  # fmt: skip
    for name in written:
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text("x")
    names = [one.name for one in discover([str(tmp_path)], root=tmp_path).documents]
    assert len(names) == len(written) - 1  # one is hidden
    disk = Disk(tmp_path)
    for name in names:
        assert disk.has(name), name
    for name in ("한글/다른.md", "한글/한글.md/more", "x" * 5000, f"../{tmp_path.name}", "two"):
        assert not disk.has(name), name


def test_what_lies_in_a_folder_that_cannot_be_read_may_be_there(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "closed").mkdir()
    iterdir = Path.iterdir

    def refusing(path: Path) -> Iterator[Path]:  # a mode keeps nobody out who is root
        if path == tmp_path / "closed":
            raise PermissionError
        return iterdir(path)

    monkeypatch.setattr(Path, "iterdir", refusing)
    assert Disk(tmp_path).has("closed/a.md")
    assert not Disk(tmp_path).has("open/a.md")


def test_a_folder_outside_of_the_root_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(InvalidInput, match="--root"):
        Scope.of_path(str(tmp_path), tmp_path / "a")


@pytest.mark.parametrize(
    ("erased", "scope", "share", "is_refused"),
    [(0, 0, 0.5, False), (1, 1, 0.5, False), (1, 2, 0, False), (2, 2, 0.5, True),
     (5, 10, 0.5, False), (6, 10, 0.5, True), (10, 10, 1, False), (2, 100, 0.01, True)],
)  # fmt: skip
def test_too_much_is_not_erased(erased: int, scope: int, share: float, is_refused: bool) -> None:
    if not is_refused:
        require_few_erased(erased, scope, share)
        return
    with pytest.raises(InvalidInput, match="--yes"):
        require_few_erased(erased, scope, share)


def test_hashes_are_kept_until_a_file_changes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, hashes = tmp_path / "a", FileHashes()
    read, now_ns, read_digest = [], time.time_ns, hashlib.file_digest

    def file_digest(stream: Any, name: str) -> Any:
        read.append(name)
        return read_digest(stream, name)

    monkeypatch.setattr(hashlib, "file_digest", file_digest)
    for text in ("one", "two", "six"):  # of the same length, perhaps within one tick of the clock
        path.write_text(text)
        assert hashes.sha256(path) == digest(text)
    assert len(read) == 3
    monkeypatch.setattr(time, "time_ns", lambda: now_ns() + 10**10)  # it has settled
    assert {hashes.sha256(path) for _ in range(3)} == {digest("six")}
    assert len(read) == 4
    path.write_text("another")
    assert hashes.sha256(path) == digest("another")
    path.unlink()
    with pytest.raises(FileNotFoundError):
        hashes.sha256(path)
