"""Documents that hold others: what a member is, and how much may come out of one.

An archive of some kilobytes may hold petabytes, itself, or the same bytes a million times. So all
that comes out of an upload, archives within archives as well, has one budget, and is refused as a
whole where that is spent: before anything is unpacked wherever sizes are declared, and otherwise as
soon as they are met. What is wrong with a single member is an error of that member alone.
"""

import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Final

from shared.bounds import LINE_LIMIT_CHARS, NAME_LIMIT_BYTES, UNSTORABLE, nfc
from shared.config import IngestSettings
from shared.errors import DocumentError

SEPARATOR: Final = "!/"
"""Between the name of a container and that of a member: `a.zip!/b/c.txt`."""
_GRACE_BYTES: Final = 16 * 2**20
"""So much may come out of anything, however small it is: texts of one word are packed well."""
_DRIVE: Final = re.compile(r"[A-Za-z]:(/|$)")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
# What systems leave behind beside people's files, and nobody means to ingest.
_LITTER: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_LITTER_FOLDER: Final = "__MACOSX/"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A document within another one."""

    name: str
    """Its path within the container, parts separated by slashes."""
    data: bytes = b""
    content_type: str | None = None
    error: str = ""
    """Why it cannot be read; there is no `data` then."""


class Exceeded(DocumentError):
    """More comes out of a container than may."""


class Budget:
    """What may come out of one upload."""

    def __init__(self, *, name: str, size_bytes: int, settings: IngestSettings) -> None:
        self._name = name
        self._size_bytes = max(1, size_bytes)
        self._settings = settings
        self._entries = 0
        self._spent_bytes = 0
        self._names: set[str] = set()

    @property
    def member_bytes(self) -> int:
        return self._settings.archive_limit_member_bytes

    def count(self, entries: int = 1) -> None:
        """There are so many members more. Raises Exceeded."""
        self._entries += entries
        limit = self._settings.archive_limit_entries
        if self._entries > limit:
            raise Exceeded(
                f"{self._name}: has more than {limit:,} entries. Divide it, or raise "
                "SLUICE_ARCHIVE_LIMIT_ENTRIES."
            )

    def spend(self, size_bytes: int) -> None:
        """So many bytes more have come out. Raises Exceeded."""
        self.declare(size_bytes)
        self._spent_bytes += size_bytes

    def declare(self, size_bytes: int) -> None:
        """So many bytes more would come out. Raises Exceeded."""
        total = self._spent_bytes + size_bytes
        limit, ratio = self._settings.archive_limit_bytes, self._settings.archive_limit_ratio
        if total > limit:
            raise Exceeded(
                f"{self._name}: holds more than {limit:,} bytes. Divide it, or raise "
                "SLUICE_ARCHIVE_LIMIT_BYTES."
            )
        if total > max(_GRACE_BYTES, ratio * self._size_bytes):
            raise Exceeded(
                f"{self._name}: holds more than {ratio:,} times as many bytes as it has itself. "
                "If that is right, raise SLUICE_ARCHIVE_LIMIT_RATIO."
            )

    def is_new(self, name: str) -> bool:
        """Whether no member with this whole name was met before."""
        is_new = name not in self._names
        self._names.add(name)
        return is_new

    def too_large(self, name: str, size_bytes: int) -> Member | None:
        """The member that stands for one of too many bytes."""
        if size_bytes <= self.member_bytes:
            return None
        return Member(
            name=name,
            error=f"is larger than {self.member_bytes:,} bytes. Divide it, or raise "
            "SLUICE_ARCHIVE_LIMIT_MEMBER_BYTES.",
        )


def is_litter(name: str) -> bool:
    last = name.rpartition("/")[2].lower()
    return name.startswith(_LITTER_FOLDER) or last in _LITTER or last.startswith("._")


def clean_name(written: str) -> tuple[str, str]:
    """The name of a member as it is shown, and what is wrong with it.

    Names lead nowhere here, for nothing is written to a disk under them. But those that are meant
    to lead out of their archive are no documents that somebody has packed."""
    name = written.replace("\\", "/")
    is_absolute = name.startswith("/") or _DRIVE.match(name) is not None
    parts = [part for part in name.split("/") if part not in ("", ".")]
    shown = UNSTORABLE.sub("\ufffd", "/".join(parts))
    shown = _UNPRINTABLE.sub("\ufffd", nfc(shown)) or "(no name)"
    if is_absolute:
        return shown, "has an absolute name. Pack it with a name from its folder on."
    if ".." in parts:
        return shown, "has a name that leads out of the archive (..). Pack it with a plain name."
    if _UNPRINTABLE.search(name) or not parts:
        return shown, "has a name that cannot be shown. Rename it."
    return shown, ""


def whole_name(container: str, name: str) -> tuple[str, str]:
    """The name of a member's document, and what is wrong with it."""
    whole = f"{container}{SEPARATOR}{name}"
    if len(whole) <= LINE_LIMIT_CHARS and len(whole.encode()) <= NAME_LIMIT_BYTES:
        return whole, ""
    short = whole[:LINE_LIMIT_CHARS].encode()[: NAME_LIMIT_BYTES - 3].decode(errors="ignore")
    return short[:-1] + "…", "has a name that is too long. Rename it, or pack it less deep."


# An encoding; the letters that tell it; a smaller encoding, which has those that people write, for
# bytes of the others make letters, too, but mostly such that nobody writes; and what is seldom or
# never beside them.
_ENCODINGS: Final = (
    ("cp949", re.compile("[가-힣]"), "euc_kr", re.compile("[一-鿿]")),
    ("cp932", re.compile("[ぁ-ヿ一-鿿]"), "shift_jis", re.compile("[｡-ﾟ]")),
    ("gb18030", re.compile("[一-鿿]"), "gb2312", re.compile("[ぁ-ヿ]")),
)


def encoding_of_names(names: Sequence[bytes]) -> str | None:
    """Of short texts that have one encoding, such as all names of an archive: too short for what
    tells the encoding of a document. None where none fits that is plain."""
    joined = b"\n".join(names)
    with suppress(UnicodeDecodeError):
        joined.decode("utf-8")
        return "utf-8"
    for encoding, letters, smaller, strange in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            text = joined.decode(encoding)
            telling = letters.findall(text)
            # EUC-KR writes syllables that it does not have in eight bytes.
            usual = sum(len(char.encode(smaller, "ignore")) == 2 for char in telling)
            if telling and 2 * usual >= len(telling) > 5 * len(strange.findall(text)):
                return encoding
    return None
