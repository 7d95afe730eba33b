"""Paths, globs and URLs -> the documents they stand for, with their names.

A document's name is its identity within a collection: its path relative to the root, or to the
working directory where no root is set. Without a root, a file outside of the working directory has
the path as it was written; one that was met in such a folder has the path below that folder, with
the folder's own name first. Links to folders are followed; each folder is read once. Nothing here
reads files or uses the network.
"""

import glob
import os
import posixpath
import re
import unicodedata
from collections import Counter, deque
from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any
from urllib.parse import quote

from sluice.errors import InvalidInput
from sluice.shapes import SourceError

_SHOWN_CHARACTERS = 4
# Characters that a multipart header cannot carry, or that the server removes. They are escaped, so
# that two names do not become one.
_UNSENDABLE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029"]|^\s+|\s+$')

_SUFFIXES = (
    ".txt .text .md .markdown .html .htm .xhtml .xht .csv .tsv .json .jsonl .ndjson .rst "
    ".rest .xml .yaml .yml .toml .ini .cfg .conf .properties .log .srt .vtt .ass .ssa .py .pyi .js "
    ".mjs .cjs .jsx .ts .tsx .java .kt .kts .scala .c .h .cc .cpp .cxx .hpp .cs .go .rs "
    ".rb .php .swift .lua .hs .ex .exs .r .ps1 .proto .sol .cob .tex .sh .bash .sql .pl "
    ".css .vue .svelte .dart .groovy .jl .zig .hh .hxx .cu .clj .erl .fs .ml .vb .f90 .pm "
    ".psm1 .cbl .bat .scss .less .graphql .gradle .tf .pdf .rtf .epub .hwpx .hwp .docx "
    ".docm .dotx .dotm .odt .ott .xlsx .xlsm .xltx .xltm .xls .xlt .ods .ots .pptx .pptm "
    ".ppsx .ppsm .potx .potm .odp .otp .zip .tar .gz .tgz .bz2 .tbz2 .tbz .xz .txz .zst "
    ".tzst .7z .eml .mht .mhtml .msg"
)
SUPPORTED = frozenset(_SUFFIXES.split())
"""The suffixes of files that servers of this version read. The list of the server is in
`shared/formats.py`; a test compares the two."""

OPTIONAL: Mapping[str, frozenset[str]] = {
    "ocr": frozenset({".png", ".jpg", ".jpeg", ".tif", ".tiff", ".webp"}),
    "speech": frozenset({".wav", ".flac", ".mp3", ".ogg", ".oga", ".opus"}),
}
"""Those of files that they read only where a job has one of these options."""


def readable(options: Collection[str]) -> frozenset[str]:
    """The suffixes of files that servers read for a job with these options, such as `ocr`."""
    return SUPPORTED.union(*(OPTIONAL[name] for name in options))


@dataclass(frozen=True, kw_only=True)
class FileDocument:
    name: str
    path: Path


@dataclass(frozen=True, kw_only=True)
class TextDocument:
    name: str
    text: str


@dataclass(frozen=True, kw_only=True)
class RemoteDocument:
    """A page, site or folder that the server reads itself. `source` is its entry in the job's
    input."""

    name: str
    source: Mapping[str, Any]


LocalDocument = FileDocument | TextDocument | RemoteDocument

_URL = re.compile(r"https?://", re.IGNORECASE)
_FOLDER_URL = re.compile(r"(s3|gs|gcs|az|abfs|file|memory)://", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether it is the URL of a document of the web."""
    return _URL.match(path) is not None


def is_folder_url(path: str) -> bool:
    """Whether it is the URL of a folder of a bucket, or of the disks of the server's workers."""
    return _FOLDER_URL.match(path) is not None


def folder_documents(urls: Iterable[str]) -> list[RemoteDocument]:
    return [RemoteDocument(name=url, source={"type": "folder", "url": url}) for url in urls]


def url_documents(urls: Iterable[str]) -> list[RemoteDocument]:
    return [RemoteDocument(name=url, source={"type": "url", "url": url}) for url in urls]


def site_documents(urls: Iterable[str], **options: Any) -> list[RemoteDocument]:
    """`options` are fields of the source, such as `max_pages`. None means the server's default."""
    fields = {name: value for name, value in options.items() if value is not None}
    return [RemoteDocument(name=url, source={"type": "site", "url": url, **fields}) for url in urls]


@dataclass(frozen=True, kw_only=True)
class Discovery:
    documents: Sequence[LocalDocument]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """The number of files in folders that Sluice cannot read, by extension."""
    circular_links: Sequence[str] = ()
    """Links to a folder that contains them, which were not followed."""
    errors: Sequence[SourceError] = ()
    """Files with the same name, and folders that cannot be read. Other documents are not
    affected."""


@dataclass(frozen=True, kw_only=True)
class _File:
    raw_name: str
    """The name before `document_name` has normalized it."""
    path: Path


@dataclass(kw_only=True)
class _Search:
    suffixes: frozenset[str]
    left_out: Counter[str] = field(default_factory=Counter)
    circular_links: list[str] = field(default_factory=list)
    errors: dict[str, SourceError] = field(default_factory=dict)


def discover(
    paths: Iterable[str],
    *,
    root: str | Path | None = None,
    suffixes: Collection[str] = SUPPORTED,
) -> Discovery:
    """Expand files, folders and globs. Raises `InvalidInput` for a path that does not exist.

    In folders, and for globs without a suffix, only files with one of `suffixes` are taken.

    With `root`, all files must be below that folder, and names are relative to it.
    """
    files: dict[str, _File] = {}
    search = _Search(suffixes=frozenset(suffixes))
    for path in paths:
        for entry in _expand_argument(path, search):
            file = _relative_to_cwd(entry) if root is None else _relative_to(Path(root), entry)
            name = document_name(file.raw_name)
            other = files.setdefault(name, file)
            if other is file or _is_same_file(other.path, file.path):
                continue
            if other.raw_name == file.raw_name:
                raise InvalidInput(
                    f"{name} would stand for both {other.path} and {file.path}. "
                    "Ingest them separately, or give the folder that holds both."
                )
            # The user cannot see or change this in the command, so only this name fails.
            search.errors.setdefault(name, _clash(name, other.raw_name, file.raw_name))
    return Discovery(
        documents=[
            FileDocument(name=name, path=file.path)
            for name, file in sorted(files.items())
            if name not in search.errors
        ],
        left_out=dict(sorted(search.left_out.items())),
        circular_links=sorted(search.circular_links),
        errors=list(search.errors.values()),
    )


def text_documents(texts: Mapping[str, str]) -> list[TextDocument]:
    """Documents from texts by name."""
    return [TextDocument(name=document_name(name), text=text) for name, text in texts.items()]


def document_name(path: str) -> str:
    """The path as a name that is the same on every system, and valid in a file upload."""
    # Bytes of a file name that are not UTF-8 become distinct escapes.
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = posixpath.normpath(text.replace(os.sep, "/"))
    text = _UNSENDABLE.sub(lambda match: quote(match[0], safe=""), text)
    return _nfc(text)


def _nfc(text: str) -> str:
    """Normal form C, as the server has it. macOS writes file names in normal form D."""
    return unicodedata.normalize("NFC", text)


def _clash(name: str, one: str, other: str) -> SourceError:
    return SourceError(
        source=name,
        message=f"{name} stands for two files, whose names look alike and differ in their "
        f"characters: {_characters(one, other)} and {_characters(other, one)}. Neither was "
        "ingested; rename or delete one of them.",
    )


def _characters(name: str, other: str) -> str:
    """The characters of the name that differ from the other, and whether it is in NFD."""
    start = _common_prefix_chars(name, other)
    end = _common_prefix_chars(name[start:][::-1], other[start:][::-1])
    part = name[start : len(name) - end][:_SHOWN_CHARACTERS]
    codes = " ".join(f"U+{ord(char):04X}" for char in part) or "nothing"
    more = " …" if len(name) - end - start > _SHOWN_CHARACTERS else ""
    form = "" if _nfc(name) == name else " (as macOS takes letters apart, NFD)"
    return f"{codes}{more}{form}"


def _common_prefix_chars(one: str, other: str) -> int:
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _expand_argument(path: str, search: _Search) -> Iterator[_File]:
    if Path(path).exists():
        yield from _expand_path(path, search)
    elif not glob.has_magic(path):
        raise InvalidInput(f"{path} does not exist.")
    else:
        # Path.glob would drop a leading `./` and take no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if "**" in path:
            matches = _without_repeats(matches)
        if not matches:
            raise InvalidInput(f"No file matches {path}.")
        extensions = search.suffixes | ({Path(path).suffix.lower()} - {""})
        for match in matches:
            if not Path(match).is_dir():
                # A suffix in the pattern is taken, even if Sluice cannot read such files.
                yield from _if_readable(match, match, search, extensions)
            elif "**" not in path:
                yield from _walk_folder(match, search)


def _without_repeats(matches: Iterable[str]) -> list[str]:
    """Each file by its shortest path. Circular links give a file up to 40 more paths."""
    shortest: dict[str, str] = {}
    for match in sorted(matches, key=lambda match: (match.count(os.sep), match)):
        shortest.setdefault(os.path.realpath(match), match)
    return sorted(shortest.values())


def _expand_path(path: str, search: _Search) -> Iterator[_File]:
    if Path(path).is_dir():
        yield from _walk_folder(path, search)
    elif Path(path).is_file():
        yield _File(raw_name=path, path=Path(path))
    else:
        raise InvalidInput(f"{path} is no regular file; pipe it in and give `-` instead.")


def _walk_folder(folder: str, search: _Search) -> Iterator[_File]:
    # The name of `.` or `..` is only in the resolved path.
    top = Path(folder).resolve()
    seen: set[Path] = set()
    folders, links = deque([(Path(folder), top.name)]), deque[tuple[Path, str]]()
    # Folders that are reached without links come first, so that they do not get a link's name.
    while folders or links:
        path, name = folders.popleft() if folders else links.popleft()
        real = path.resolve()
        if real in seen:
            continue
        if path != Path(folder) and path.is_symlink() and _is_circular(path, real, top):
            search.circular_links.append(document_name(name))
            continue
        seen.add(real)
        try:
            entries = sorted(os.scandir(path), key=lambda entry: entry.name)
        except OSError as error:
            message = f"Cannot read the folder {path}: {error.strerror or error}."
            shown = document_name(name)
            search.errors.setdefault(shown, SourceError(source=shown, message=message))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            inner = posixpath.join(name, entry.name)
            if _is_folder(entry):
                (links if entry.is_symlink() else folders).append((Path(entry.path), inner))
            else:
                yield from _if_readable(inner, entry.path, search, search.suffixes)


def _is_folder(entry: "os.DirEntry[str]") -> bool:
    try:
        return entry.is_dir()
    except OSError:  # a link that leads to itself
        return False


def _is_circular(link: Path, target: Path, top: Path) -> bool:
    """Whether the target of the link contains the link itself, or the folder `top`."""
    return link.parent.resolve().is_relative_to(target) or top.is_relative_to(target)


def _if_readable(
    name: str, path: str, search: _Search, extensions: Iterable[str]
) -> Iterator[_File]:
    suffix = Path(path).suffix.lower()
    # A broken link is kept, so that it is reported. Pipes and sockets would block.
    if suffix in extensions and (Path(path).is_file() or not Path(path).exists()):
        yield _File(raw_name=name, path=Path(path))
    else:
        search.left_out[suffix or "no extension"] += 1


def _relative_to_cwd(file: _File) -> _File:
    """The file with its path below the working directory as name, if it is there."""
    path, top = Path(os.path.abspath(file.path)), Path.cwd()  # noqa: PTH100
    if not path.is_relative_to(top):
        return file
    return _File(raw_name=str(path.relative_to(top)), path=file.path)


def _relative_to(root: Path, file: _File) -> _File:
    """The file with its path below the root as name. Raises InvalidInput if it is not there."""
    # Not resolved: the name of a link is its own path, not that of its target.
    path, top = Path(os.path.abspath(file.path)), Path(os.path.abspath(root))  # noqa: PTH100
    if not path.is_relative_to(top):
        raise InvalidInput(f"{file.path} is not below the root {root}.")
    return _File(raw_name=str(path.relative_to(top)), path=file.path)


def _is_same_file(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
