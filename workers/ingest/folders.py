"""Folders of buckets and of disks, read through fsspec.

With the credentials that the workers' environment has, and only where the deployer permits it
(SLUICE_SOURCE_FOLDERS): otherwise every key could read whatever the workers can. Links that lead
out of a folder are not followed.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from shared.config import Settings
from shared.errors import DocumentError, Unavailable
from shared.formats import suffixes

NAME_CHARS: Final = 1024
_SHOWN: Final = 5
_EXTRAS: Final = {"s3": "s3", "gs": "gcs", "az": "abfs"}
"""Of fsspec, by scheme."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in a folder."""

    url: str
    validator: str
    """What changes with its bytes."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    entries: list[Entry]
    """By their URLs."""
    is_whole: bool
    """Whether there are no more of them than there may be."""
    left_out: Counter[str]
    """Files that cannot be read, by their suffixes."""

    def warnings(self, url: str, limit: int) -> list[str]:
        warnings = []
        if not self.is_whole:
            warnings.append(
                f"{url}: has more files than max_documents, which is {limit:,}; the others were "
                "not read."
            )
        if self.left_out:
            most = self.left_out.most_common(_SHOWN)
            named = ", ".join(f"{what} {count:,}" for what, count in most)
            total = sum(self.left_out.values())
            files = "1 file is" if total == 1 else f"{total:,} files are"
            warnings.append(f"{url}: {files} of types that are not ingested ({named}).")
        return warnings


# Folders through fsspec


def file_system(url: str, settings: Settings) -> AbstractFileSystem:
    """Raises DocumentError where it may not be read, or a package is missing."""
    scheme = url.partition("://")[0]
    if not settings.permits_folder(url):
        raise DocumentError(
            f"{url}: is not in a folder that sources may read. SLUICE_SOURCE_FOLDERS names those."
        )
    try:
        # What was listed is not kept: others change it, and a worker lives long.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise DocumentError(
            f"{url}: the workers lack a package ({error}). Install fsspec[{_EXTRAS[scheme]}] where "
            "they run."
        ) from error


def list_files(url: str, limit: int, settings: Settings, check: Callable[[], None]) -> Listing:
    """The files below a folder that can be read. Raises DocumentError, Unavailable."""
    system = file_system(url, settings)
    system.invalidate_cache()
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    readable = suffixes()
    try:
        for path, info in _files(system, url, check):
            suffix = PurePosixPath(path).suffix.lower()
            name = f"{url.partition('://')[0]}://{path}"
            if suffix not in readable:
                left_out[suffix or "no suffix"] += 1
            elif len(name) > NAME_CHARS:
                left_out["names of more than 1,024 characters"] += 1
            elif len(entries) == limit:
                return Listing(entries=_sorted(entries), is_whole=False, left_out=left_out)
            else:
                entries.append(Entry(url=name, validator=_validator(info)))
    except FileNotFoundError as error:
        raise DocumentError(f"{url}: there is no such folder. Correct its URL.") from error
    except PermissionError as error:
        raise DocumentError(
            f"{url}: the workers may not read it ({error}). Give them the right to."
        ) from error
    except OSError as error:
        raise Unavailable(f"{url} does not answer: {error}.") from error
    return Listing(entries=_sorted(entries), is_whole=True, left_out=left_out)


def _sorted(entries: list[Entry]) -> list[Entry]:
    return sorted(entries, key=lambda entry: entry.url)


def _files(
    system: AbstractFileSystem, url: str, check: Callable[[], None]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """The files below a folder; without hidden ones, and without links that leave the folder."""
    top = system._strip_protocol(url)
    if not system.isdir(top):
        raise FileNotFoundError(url)
    is_local = url.startswith("file://")
    for folder, folders, files in system.walk(top, detail=True):
        check()
        for name in [name for name in folders if name.startswith(".")]:
            del folders[name]  # which is then not walked through
        for name, info in sorted(files.items()):
            path = f"{folder.rstrip('/')}/{name}"
            is_file = _is_below(path, top) if is_local else info.get("type") == "file"
            if is_file and not name.startswith("."):
                yield path, info


def _is_below(path: str, top: str) -> bool:
    """Whether a file of a disk lies where its path says, links followed, and is an ordinary one."""
    real = Path(path).resolve()
    return real.is_relative_to(Path(top).resolve()) and real.is_file()


def _validator(info: Mapping[str, Any]) -> str:
    for key in ("ETag", "etag", "md5Hash", "content_md5"):
        if info.get(key):
            return str(info[key])
    moment = next(
        (info[key] for key in ("LastModified", "last_modified", "updated", "mtime", "created")
         if info.get(key)), "",
    )  # fmt: skip
    return f"{moment}/{info.get('size')}"


def read_object(source: Mapping[str, Any], settings: Settings) -> bytes:
    """Raises DocumentError, Unavailable."""
    url: str = source["url"]
    folder, limit = str(source["folder"]), settings.web_limit_bytes
    system = file_system(folder, settings)
    path = system._strip_protocol(url)
    if folder.startswith("file://") and not _is_below(path, system._strip_protocol(folder)):
        raise DocumentError(f"{url}: is a link that leads out of its folder.")
    try:
        with system.open(path, "rb") as stream:
            data: bytes = stream.read(limit + 1)
    except FileNotFoundError as error:
        raise DocumentError(f"{url}: is no longer there.") from error
    except PermissionError as error:
        raise DocumentError(f"{url}: the workers may not read it: {error}.") from error
    except OSError as error:
        raise Unavailable(f"{url} does not answer: {error}.") from error
    if len(data) > limit:
        raise DocumentError(
            f"{url}: has more than {limit:,} bytes. Upload it, or raise SLUICE_WEB_LIMIT_BYTES."
        )
    return data
