"""Which documents a list of paths stands for, and what each is called.

A document's name is its identity within a collection: for a file the path as given, for a file
found in a folder the path from that folder on, the folder's own name first; with a root the path
from there, however the file was named. Nothing here reads
the files or talks to the network.
"""

import glob
import os
import posixpath
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from urllib.parse import quote

from shared.errors import InvalidInput

# What a multipart header cannot carry, or the server would take out: two names must not become one.
_UNSENDABLE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029"]|^\s+|\s+$')

SUPPORTED = frozenset(
    {
        *(".txt", ".md", ".markdown", ".html", ".htm", ".xhtml"),
        *(".csv", ".tsv", ".json", ".jsonl", ".ndjson"),
    }
)


@dataclass(frozen=True, kw_only=True)
class FileDocument:
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class TextDocument:
    name: str
    text: str


LocalDocument = FileDocument | TextDocument


@dataclass(frozen=True, kw_only=True)
class Found:
    """`left_out` counts, by extension, the files in folders that Sluice cannot read."""

    documents: Sequence[LocalDocument]
    left_out: Mapping[str, int] = field(default_factory=dict)


def discover(paths: Iterable[str], *, root: str | Path | None = None) -> Found:
    """Expand files, folders and globs. Raises `InvalidInput` where a path stands for nothing.

    With `root`, names are paths from that folder on, in which all files have to be.
    """
    found: dict[str, FileDocument] = {}
    left_out: Counter[str] = Counter()
    for path in paths:
        for named in _of_argument(path, left_out):
            document = named if root is None else _below(Path(root), named)
            other = found.setdefault(document.name, document)
            if other is not document and not _same(other.path, document.path):
                raise InvalidInput(
                    f"{document.name} would stand for both {other.path} and {document.path}. "
                    "Ingest them separately, or give the folder that holds both."
                )
    ordered = sorted(found.values(), key=lambda document: document.name)
    return Found(documents=ordered, left_out=dict(sorted(left_out.items())))


def given(texts: Mapping[str, str]) -> list[TextDocument]:
    """Documents that are no files, by name."""
    return [TextDocument(name=document_name(name), text=text) for name, text in texts.items()]


def document_name(path: str) -> str:
    """The path as an identity that is the same on every system, and valid in a file upload."""
    # Bytes of a file name that are not UTF-8 stay distinct, and become text.
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = posixpath.normpath(text.replace(os.sep, "/"))
    text = _UNSENDABLE.sub(lambda match: quote(match[0], safe=""), text)
    return unicodedata.normalize("NFC", text)


def _of_argument(path: str, left_out: Counter[str]) -> Iterator[FileDocument]:
    if Path(path).exists():
        yield from _of_existing(path, left_out)
    elif not glob.has_magic(path):
        raise InvalidInput(f"{path} does not exist.")
    else:
        # Path.glob would drop a leading `./` and take no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if not matches:
            raise InvalidInput(f"No file matches {path}.")
        asked = SUPPORTED | ({Path(path).suffix.lower()} - {""})
        for match in matches:
            if not Path(match).is_dir():
                # The extension that a pattern names is asked for, whatever it is.
                yield from _if_readable(match, match, left_out, asked)
            elif "**" not in path:
                yield from _of_folder(match, left_out)


def _of_existing(path: str, left_out: Counter[str]) -> Iterator[FileDocument]:
    if Path(path).is_dir():
        yield from _of_folder(path, left_out)
    elif Path(path).is_file():
        yield FileDocument(name=document_name(path), path=Path(path))
    else:
        raise InvalidInput(f"{path} is no regular file; pipe it in and give `-` instead.")


def _of_folder(folder: str, left_out: Counter[str]) -> Iterator[FileDocument]:
    # `.` and `..` have a name too, which only the resolved path knows.
    prefix = Path(folder).resolve().name
    for root, folders, files in os.walk(folder):
        folders[:] = sorted(name for name in folders if not name.startswith("."))
        inner = Path(root).relative_to(folder)
        for file in sorted(files):
            if file.startswith("."):
                continue
            name = posixpath.join(prefix, *inner.parts, file)
            yield from _if_readable(name, str(Path(root, file)), left_out, SUPPORTED)


def _if_readable(
    name: str, path: str, left_out: Counter[str], extensions: Iterable[str]
) -> Iterator[FileDocument]:
    suffix = Path(path).suffix.lower()
    # A link to nothing is sent on, to be reported; pipes and sockets would block.
    if suffix in extensions and (Path(path).is_file() or not Path(path).exists()):
        yield FileDocument(name=document_name(name), path=Path(path))
    else:
        left_out[suffix or "no extension"] += 1


def _below(root: Path, document: FileDocument) -> FileDocument:
    """The document by its path from the root on; links are followed in neither."""
    # Not resolved: a link is named by where it is, not by where it leads.
    path, top = Path(os.path.abspath(document.path)), Path(os.path.abspath(root))  # noqa: PTH100
    if not path.is_relative_to(top):
        raise InvalidInput(f"{document.path} is not below the root {root}.")
    return FileDocument(name=document_name(str(path.relative_to(top))), path=document.path)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
