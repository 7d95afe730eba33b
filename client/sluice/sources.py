"""Which documents a list of paths stands for, and what each is called.

A document's name is its identity within a collection: the path from the working directory on, or
from another root, however the file was named. Of what lies outside of the working directory, and
where no root is chosen, the path as given, and for a file in a folder the path from that folder on,
the folder's own name first. Links to folders are followed, each folder is looked into
once. Nothing here reads the files or talks to the network.
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

# What a multipart header cannot carry, or the server would take out: two names must not become one.
_SHOWN_CHARACTERS = 4
_UNSENDABLE = re.compile(r'[\x00-\x1f\x7f-\x9f\u2028\u2029"]|^\s+|\s+$')

SUPPORTED = frozenset(
    {
        *(".txt", ".text", ".md", ".markdown", ".html", ".htm", ".xhtml", ".xht"),
        *(".csv", ".tsv", ".json", ".jsonl", ".ndjson"),
        *(
            ".rst",
            ".rest",
            ".xml",
            ".yaml",
            ".yml",
            ".toml",
            ".ini",
            ".cfg",
        ),
        *(
            ".conf",
            ".properties",
            ".log",
            ".srt",
            ".vtt",
        ),
        *(
            ".py",
            ".pyi",
            ".js",
            ".mjs",
            ".cjs",
            ".jsx",
            ".ts",
            ".tsx",
        ),
        *(
            ".java",
            ".kt",
            ".kts",
            ".scala",
            ".c",
            ".h",
            ".cc",
            ".cpp",
        ),
        *(
            ".cxx",
            ".hpp",
            ".cs",
            ".go",
            ".rs",
            ".rb",
            ".php",
            ".swift",
        ),
        *(
            ".lua",
            ".hs",
            ".ex",
            ".exs",
            ".r",
            ".ps1",
            ".proto",
            ".sol",
        ),
        *(
            ".cob",
            ".tex",
            ".sh",
            ".bash",
            ".sql",
            ".pl",
            ".css",
            ".vue",
        ),
        *(
            ".svelte",
            ".dart",
            ".groovy",
            ".jl",
            ".zig",
            ".hh",
            ".hxx",
            ".cu",
            ".clj",
            ".erl",
            ".fs",
            ".ml",
            ".vb",
            ".f90",
            ".pm",
            ".psm1",
            ".cbl",
            ".bat",
            ".scss",
            ".less",
            ".graphql",
            ".gradle",
            ".tf",
        ),
        *(".pdf", ".rtf", ".epub", ".hwpx", ".hwp"),
        *(".docx", ".docm", ".dotx", ".dotm", ".odt", ".ott"),
        *(".xlsx", ".xlsm", ".xltx", ".xltm", ".xls", ".xlt", ".ods", ".ots"),
        *(".pptx", ".pptm", ".ppsx", ".ppsm", ".potx", ".potm", ".odp", ".otp"),
        *(".zip", ".tar", ".gz", ".tgz", ".bz2", ".tbz2", ".tbz", ".xz", ".txz", ".zst", ".tzst"),
        *(".7z", ".eml", ".msg"),
    }
)
"""The suffixes of files that servers of this version read; they have the list in
`shared/formats.py`, which a test compares with this one."""


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
    """What the server reads itself: a page, or all documents of a site. `source` is its entry in
    the job's input."""

    name: str
    source: Mapping[str, Any]


LocalDocument = FileDocument | TextDocument | RemoteDocument

_URL = re.compile(r"https?://", re.IGNORECASE)
_FOLDER_URL = re.compile(r"(s3|gs|gcs|az|abfs|file|memory)://", re.IGNORECASE)


def is_url(path: str) -> bool:
    """Whether it names a document of the web, and no file."""
    return _URL.match(path) is not None


def is_folder_url(path: str) -> bool:
    """Whether it names a folder of a bucket, or one that the workers of the server have."""
    return _FOLDER_URL.match(path) is not None


def folder_documents(urls: Iterable[str]) -> list[RemoteDocument]:
    return [RemoteDocument(name=url, source={"type": "folder", "url": url}) for url in urls]


def url_documents(urls: Iterable[str]) -> list[RemoteDocument]:
    return [RemoteDocument(name=url, source={"type": "url", "url": url}) for url in urls]


def site_documents(urls: Iterable[str], **options: Any) -> list[RemoteDocument]:
    """`options` are those of the source, such as `max_pages`; None is left to the server."""
    chosen = {name: value for name, value in options.items() if value is not None}
    return [RemoteDocument(name=url, source={"type": "site", "url": url, **chosen}) for url in urls]


@dataclass(frozen=True, kw_only=True)
class Discovery:
    documents: Sequence[LocalDocument]
    left_out: Mapping[str, int] = field(default_factory=dict)
    """How many files in folders Sluice cannot read, by extension."""
    circular_links: Sequence[str] = ()
    """Links to a folder that they lie in, which were not followed."""
    errors: Sequence[SourceError] = ()
    """Files of one name, and folders that cannot be read; the others are not held up by them."""


@dataclass(frozen=True, kw_only=True)
class _File:
    written: str
    """Its name before it is made fit to be one (`document_name`)."""
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
    """Expand files, folders and globs. Raises `InvalidInput` where a path stands for nothing.

    In folders, and for globs that name no suffix, files are looked for that end with `suffixes`.

    With `root`, names are paths from that folder on, in which all files have to be; without, from
    the working directory on, where they lie in it.
    """
    files: dict[str, _File] = {}
    search = _Search(suffixes=frozenset(suffixes))
    for path in paths:
        for named in _of_argument(path, search):
            file = _here(named) if root is None else _below(Path(root), named)
            name = document_name(file.written)
            other = files.setdefault(name, file)
            if other is file or _same(other.path, file.path):
                continue
            if other.written == file.written:
                raise InvalidInput(
                    f"{name} would stand for both {other.path} and {file.path}. "
                    "Ingest them separately, or give the folder that holds both."
                )
            # Nothing that the user could see or change in the command: only this name fails.
            search.errors.setdefault(name, _clash(name, other.written, file.written))
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
    """Documents that are no files, by name."""
    return [TextDocument(name=document_name(name), text=text) for name, text in texts.items()]


def document_name(path: str) -> str:
    """The path as an identity that is the same on every system, and valid in a file upload."""
    # Bytes of a file name that are not UTF-8 stay distinct, and become text.
    text = path.encode("utf-8", "surrogateescape").decode("utf-8", "backslashreplace")
    text = posixpath.normpath(text.replace(os.sep, "/"))
    text = _UNSENDABLE.sub(lambda match: quote(match[0], safe=""), text)
    return _nfc(text)


def _nfc(text: str) -> str:
    """The names of the server's documents are NFC; macOS takes letters apart."""
    return unicodedata.normalize("NFC", text)


def _clash(name: str, one: str, other: str) -> SourceError:
    return SourceError(
        source=name,
        message=f"{name} stands for two files, whose names look alike and differ in their "
        f"characters: {_characters(one, other)} and {_characters(other, one)}. Neither was "
        "ingested; rename or delete one of them.",
    )


def _characters(name: str, other: str) -> str:
    """Where the name differs from the other, and whether macOS wrote it."""
    start = _common(name, other)
    end = _common(name[start:][::-1], other[start:][::-1])
    part = name[start : len(name) - end][:_SHOWN_CHARACTERS]
    codes = " ".join(f"U+{ord(char):04X}" for char in part) or "nothing"
    more = " …" if len(name) - end - start > _SHOWN_CHARACTERS else ""
    form = "" if _nfc(name) == name else " (as macOS takes letters apart, NFD)"
    return f"{codes}{more}{form}"


def _common(one: str, other: str) -> int:
    """How many characters at their beginnings are the same."""
    pairs = zip(one, other, strict=False)
    return next((n for n, (a, b) in enumerate(pairs) if a != b), min(len(one), len(other)))


def _of_argument(path: str, search: _Search) -> Iterator[_File]:
    if Path(path).exists():
        yield from _of_existing(path, search)
    elif not glob.has_magic(path):
        raise InvalidInput(f"{path} does not exist.")
    else:
        # Path.glob would drop a leading `./` and take no absolute pattern.
        matches = sorted(glob.glob(path, recursive=True))  # noqa: PTH207
        if "**" in path:
            matches = _once(matches)
        if not matches:
            raise InvalidInput(f"No file matches {path}.")
        extensions = search.suffixes | ({Path(path).suffix.lower()} - {""})
        for match in matches:
            if not Path(match).is_dir():
                # The extension that a pattern names is asked for, whatever it is.
                yield from _if_readable(match, match, search, extensions)
            elif "**" not in path:
                yield from _of_folder(match, search)


def _once(matches: Iterable[str]) -> list[str]:
    """Each file by its shortest path: links that lead back would give it forty more."""
    shortest: dict[str, str] = {}
    for match in sorted(matches, key=lambda match: (match.count(os.sep), match)):
        shortest.setdefault(os.path.realpath(match), match)
    return sorted(shortest.values())


def _of_existing(path: str, search: _Search) -> Iterator[_File]:
    if Path(path).is_dir():
        yield from _of_folder(path, search)
    elif Path(path).is_file():
        yield _File(written=path, path=Path(path))
    else:
        raise InvalidInput(f"{path} is no regular file; pipe it in and give `-` instead.")


def _of_folder(folder: str, search: _Search) -> Iterator[_File]:
    # `.` and `..` have a name too, which only the resolved path knows.
    top = Path(folder).resolve()
    seen: set[Path] = set()
    folders, links = deque([(Path(folder), top.name)]), deque[tuple[Path, str]]()
    # What is reached without links goes before, so that it has its own name and not a link's.
    while folders or links:
        path, name = folders.popleft() if folders else links.popleft()
        real = path.resolve()
        if real in seen:
            continue
        if path != Path(folder) and path.is_symlink() and _holds(real, path, top):
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
            if entry.is_dir():
                (links if entry.is_symlink() else folders).append((Path(entry.path), inner))
            else:
                yield from _if_readable(inner, entry.path, search, search.suffixes)


def _holds(folder: Path, link: Path, top: Path) -> bool:
    """Whether the link leads to a folder that it lies in itself, or that all of this lies in."""
    return link.parent.resolve().is_relative_to(folder) or top.is_relative_to(folder)


def _if_readable(
    name: str, path: str, search: _Search, extensions: Iterable[str]
) -> Iterator[_File]:
    suffix = Path(path).suffix.lower()
    # A link to nothing is sent on, to be reported; pipes and sockets would block.
    if suffix in extensions and (Path(path).is_file() or not Path(path).exists()):
        yield _File(written=name, path=Path(path))
    else:
        search.left_out[suffix or "no extension"] += 1


def _here(file: _File) -> _File:
    """The file by its path from the working directory on, if it lies there by that path."""
    path, top = Path(os.path.abspath(file.path)), Path.cwd()  # noqa: PTH100
    return (
        _File(written=str(path.relative_to(top)), path=file.path)
        if path.is_relative_to(top)
        else file
    )


def _below(root: Path, file: _File) -> _File:
    """The file by its path from the root on; links are followed in neither."""
    # Not resolved: a link is named by where it is, not by where it leads.
    path, top = Path(os.path.abspath(file.path)), Path(os.path.abspath(root))  # noqa: PTH100
    if not path.is_relative_to(top):
        raise InvalidInput(f"{file.path} is not below the root {root}.")
    return _File(written=str(path.relative_to(top)), path=file.path)


def _same(one: Path, other: Path) -> bool:
    return one.resolve() == other.resolve()
