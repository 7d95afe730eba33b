"""Folders in buckets and on disks, read through fsspec.

fsspec uses the credentials in the environment of the workers. Only folders in SLUICE_SOURCE_FOLDERS
are read: otherwise every API key could read whatever the workers can. Links that lead out of a
folder are not followed.
"""

from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, Final

import fsspec
from fsspec.spec import AbstractFileSystem

from shared.config import Settings
from shared.errors import DocumentError, Unavailable
from shared.formats import FORMATS, suffixes

NAME_CHARS: Final = 1024
_SHOWN: Final = 5
_EXTRAS: Final = {"s3": "s3", "gs": "gcs", "az": "abfs"}
"""Scheme -> the extra of fsspec that it needs."""


@dataclass(frozen=True, kw_only=True)
class Entry:
    """A file in a folder."""

    url: str
    validator: str
    """A text that changes if the bytes of the file change."""


@dataclass(frozen=True, kw_only=True)
class Listing:
    entries: list[Entry]
    """Sorted by URL."""
    is_whole: bool
    """False if there were more files than the limit."""
    left_out: Counter[str]
    """Numbers of files that cannot be read, by suffix."""
    closed: list[str]
    """Folders that the workers may not read."""

    @property
    def has_all(self) -> bool:
        """Whether files that are not among the entries do not exist."""
        return self.is_whole and not self.closed

    def warnings(self, url: str, limit: int) -> list[str]:
        warnings = []
        if not self.is_whole:
            warnings.append(
                f"{url}: has more files than max_documents, which is {limit:,}; the others were "
                "not read."
            )
        if self.closed:
            count = len(self.closed)
            folders = "1 folder in it" if count == 1 else f"{count:,} folders in it"
            warnings.append(
                f"{url}: the workers may not read {folders} ({', '.join(self.closed[:_SHOWN])}). "
                "What is in there is left as it is here, and so is what has vanished elsewhere. "
                "Give them the right to."
            )
        if self.left_out:
            most = self.left_out.most_common(_SHOWN)
            named = ", ".join(f"{what} {count:,}" for what, count in most)
            total = sum(self.left_out.values())
            files = "1 file is" if total == 1 else f"{total:,} files are"
            warnings.append(
                f"{url}: {files} of types that are not ingested ({named}).{self._hint()}"
            )
        return warnings

    def _hint(self) -> str:
        """The options of a job with which the files left out would be read."""
        options = sorted(
            {
                f.option
                for f in FORMATS.values()
                if f.option and set(f.suffixes) & set(self.left_out)
            }
        )
        return f" With {' and '.join(options)} some of them are." if options else ""


# Folders through fsspec


def file_system(url: str, settings: Settings) -> AbstractFileSystem:
    """The file system of a folder's URL. Raises DocumentError if the folder is not permitted, or if
    a package is missing."""
    scheme = url.partition("://")[0]
    if not settings.permits_folder(url):
        raise DocumentError(
            f"{url}: is not in a folder that sources may read. SLUICE_SOURCE_FOLDERS names those."
        )
    try:
        # Without a cache of listings: others change the files, and a worker runs for long.
        return fsspec.filesystem(scheme, use_listings_cache=False)
    except ImportError as error:
        raise DocumentError(
            f"{url}: the workers lack a package ({error}). Install fsspec[{_EXTRAS[scheme]}] where "
            "they run."
        ) from error


def list_files(
    url: str,
    limit: int,
    settings: Settings,
    check: Callable[[], None],
    *,
    requested: Collection[str] = (),
) -> Listing:
    """The files below a folder that can be read with the options of the job, at most `limit`.

    `check` is called for each folder. Raises DocumentError, and Unavailable if the storage does not
    answer.
    """
    system = file_system(url, settings)
    system.invalidate_cache()
    entries: list[Entry] = []
    left_out: Counter[str] = Counter()
    closed: list[str] = []
    readable = suffixes(requested)

    def listing(*, is_whole: bool) -> Listing:
        return Listing(
            entries=sorted(entries, key=lambda entry: entry.url),
            is_whole=is_whole,
            left_out=left_out,
            closed=closed,
        )

    try:
        for path, info in _files(system, url, check, closed):
            suffix = PurePosixPath(path).suffix.lower()
            name = f"{url.partition('://')[0]}://{path}"
            if suffix not in readable:
                left_out[suffix or "no suffix"] += 1
            elif not _is_text(name):
                left_out["names that are not UTF-8"] += 1
            elif len(name) > NAME_CHARS:
                left_out["names of more than 1,024 characters"] += 1
            elif len(entries) == limit:
                return listing(is_whole=False)
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
    return listing(is_whole=True)


def _is_text(name: str) -> bool:
    """False for file names with bytes that are not UTF-8."""
    try:
        name.encode()
    except UnicodeEncodeError:
        return False
    return "\0" not in name


def _files(
    system: AbstractFileSystem, url: str, check: Callable[[], None], closed: list[str]
) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Paths and properties of the files below a folder, without hidden ones and links that leave
    the folder. Adds folders that may not be read to `closed`."""
    top = system._strip_protocol(url)
    if not system.isdir(top):
        raise FileNotFoundError(url)
    is_local = url.startswith("file://")
    # Not `system.walk`: it leaves out folders that it cannot list, as if their files did not exist.
    folders = [top]
    while folders:
        folder = folders.pop()
        check()
        try:
            entries = system.ls(folder, detail=True)
        except (FileNotFoundError, PermissionError) as error:
            if folder == top:
                raise
            if isinstance(error, PermissionError):
                closed.append(folder)
            continue
        for info in sorted(entries, key=lambda info: str(info["name"]), reverse=True):
            path = str(info["name"]).rstrip("/")
            name = path.rpartition("/")[2]
            if name.startswith(".") or path == folder.rstrip("/"):  # the entry of the folder itself
                continue
            if info.get("type") == "directory":
                folders.append(path)
            elif _is_below(path, top) if is_local else info.get("type") == "file":
                yield path, info


def _is_below(path: str, top: str) -> bool:
    """Whether a path, with links followed, is an ordinary file below `top`."""
    try:
        real = Path(path).resolve()
    except (OSError, RuntimeError):  # a link to itself
        return False
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
    """The bytes of a file of a folder. Raises DocumentError, and Unavailable if the storage does
    not answer."""
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
