"""Documents that contain others (archives, mail): their members, and how much one upload may
unpack.

An archive of some kilobytes may contain petabytes, itself, or the same bytes a million times. So
one budget limits what is unpacked from an upload, including archives within archives. An upload
beyond the budget is refused as a whole: before unpacking where the archive declares its sizes, and
otherwise as soon as the limit is passed. An error of a single member concerns that member only.
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
"""Separates the name of a container from that of a member: `a.zip!/b/c.txt`."""
_GRACE_BYTES: Final = 16 * 2**20
"""As much may be unpacked from any upload, however small: a text that repeats one word compresses
well."""
_DRIVE: Final = re.compile(r"[A-Za-z]:(/|$)")
_UNPRINTABLE: Final = re.compile(r"[\x00-\x1f\x7f]")
# Files that operating systems leave beside those of users.
_LITTER: Final = frozenset({".ds_store", "thumbs.db", "desktop.ini"})
_LITTER_FOLDER: Final = "__MACOSX/"


@dataclass(frozen=True, kw_only=True)
class Member:
    """A document within another one."""

    name: str
    """Its path within the container, with slashes."""
    data: bytes = b""
    content_type: str | None = None
    error: str = ""
    """Why it cannot be read; `data` is empty then."""


class Exceeded(DocumentError):
    """A container unpacks to more than the limits allow."""


class Budget:
    """How many members, and bytes, may still come from one upload."""

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
        """Count members. Raises Exceeded above SLUICE_ARCHIVE_LIMIT_ENTRIES."""
        self._entries += entries
        limit = self._settings.archive_limit_entries
        if self._entries > limit:
            raise Exceeded(
                f"{self._name}: has more than {limit:,} entries. Divide it, or raise "
                "SLUICE_ARCHIVE_LIMIT_ENTRIES."
            )

    def spend(self, size_bytes: int) -> None:
        """Count unpacked bytes. Raises Exceeded above the limits."""
        self.declare(size_bytes)
        self._spent_bytes += size_bytes

    def declare(self, size_bytes: int) -> None:
        """Raise Exceeded if as many more bytes would pass the limits; nothing is counted."""
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
        """Whether this is the first member with this full name; the name counts as seen from now
        on."""
        is_new = name not in self._names
        self._names.add(name)
        return is_new

    def too_large(self, name: str, size_bytes: int) -> Member | None:
        """A member with an error if it has more bytes than a member may have, else None."""
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
    """The name of a member as it is shown, and what is wrong with it (empty: nothing).

    Names are not used as paths on a disk. A name that leads out of the archive is an error all the
    same: no honest program writes one.
    """
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
    """The full name of a member's document, and what is wrong with it (empty: nothing)."""
    whole = f"{container}{SEPARATOR}{name}"
    if len(whole) <= LINE_LIMIT_CHARS and len(whole.encode()) <= NAME_LIMIT_BYTES:
        return whole, ""
    short = whole[:LINE_LIMIT_CHARS].encode()[: NAME_LIMIT_BYTES - 3].decode(errors="ignore")
    return short[:-1] + "…", "has a name that is too long. Rename it, or pack it less deep."


# An encoding; the letters that it is for; a smaller encoding with the letters in common use; and
# letters that are rare beside these. The bytes of other encodings are letters, too, but mostly of
# those that nobody uses.
_ENCODINGS: Final = (
    ("cp949", re.compile("[가-힣]"), "euc_kr", re.compile("[一-鿿]")),
    ("cp932", re.compile("[ぁ-ヿ一-鿿]"), "shift_jis", re.compile("[｡-ﾟ]")),
    ("gb18030", re.compile("[一-鿿]"), "gb2312", re.compile("[ぁ-ヿ]")),
)


def encoding_of_names(names: Sequence[bytes]) -> str | None:
    """The encoding of short texts that share one, such as all names of an archive; None if unclear.

    They are too short for the method that detects the encoding of a document (`text.py`).
    """
    joined = b"\n".join(names)
    with suppress(UnicodeDecodeError):
        joined.decode("utf-8")
        return "utf-8"
    for encoding, letters, smaller, strange in _ENCODINGS:
        with suppress(UnicodeDecodeError):
            text = joined.decode(encoding)
            telling = letters.findall(text)
            # EUC-KR encodes a syllable that it lacks in eight bytes.
            usual = sum(len(char.encode(smaller, "ignore")) == 2 for char in telling)
            if telling and 2 * usual >= len(telling) > 5 * len(strange.findall(text)):
                return encoding
    return None
