"""Documents that are ZIP archives of XML: Office Open XML, OpenDocument, EPUB, HWPX.

A `Package` reads members by name and parses XML safely: entities of a document are not expanded
into the tree, no DTD is loaded, nothing is fetched, and libxml2's own limits stay on: for depth
(256), for the length of a text (10 MB) and for the amplification by entities. The bytes that all
members unpack to are limited, in total and relative to the archive, so that a bomb is refused while
it unpacks. Members that no loader reads (pictures, fonts) cost nothing.
"""

import lzma
import zipfile
import zlib
from collections.abc import Callable, Iterator, Mapping
from io import BytesIO
from posixpath import join, normpath
from typing import IO, Final
from urllib.parse import unquote, urlsplit

from lxml import etree

from shared.errors import DocumentError
from workers.ingest.formats.loader import RawDocument

_RATIO_FROM_BYTES: Final = 16 * 1024 * 1024
"""The limit relative to the archive counts from here on: small repetitive documents compress well.
"""

_AGAIN: Final = 8

_OLE: Final = b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1"
_ENCRYPTED: Final = "EncryptedPackage".encode("utf-16-le")
_DAMAGE: Final = (
    zipfile.BadZipFile, zlib.error, lzma.LZMAError, EOFError, OSError, ValueError, KeyError,
    NotImplementedError, RuntimeError, OverflowError, MemoryError,
)  # fmt: skip


class Package:
    """Raises DocumentError if the document is not an archive, is damaged or encrypted, or unpacks
    to too much."""

    def __init__(self, document: RawDocument, *, kind: str) -> None:
        """`kind` is the name of the format with its article: `a Word document`."""
        self.name = document.name
        self.kind = kind
        content = document.content
        if content.startswith(_OLE):
            raise self._ole_error(content)
        try:
            self._archive = zipfile.ZipFile(BytesIO(content))
        except _DAMAGE as wrong:
            raise self.damage(wrong) from wrong
        # Names are compared without case, as OPC requires; some writers use backslashes.
        self._members: dict[str, zipfile.ZipInfo] = {
            _key(member.filename): member for member in self._archive.infolist()
        }
        self._unpacked = UnpackedBytes(document)

    def names(self) -> list[str]:
        """Names of all members, in lower case."""
        return list(self._members)

    def __contains__(self, name: str) -> bool:
        return _key(name) in self._members

    def read(self, name: str) -> bytes:
        """The bytes of a member; empty if there is none of this name."""
        if name not in self:
            return b""
        stream = self.open(name)
        blocks: list[bytes] = []
        while block := stream.read(1 << 20):
            blocks.append(block)
        return b"".join(blocks)

    def open(self, name: str) -> "_Limited":
        """A stream of a member, which must exist, for parsers that read it in parts."""
        member = self._members[_key(name)]
        if member.flag_bits & 0x1:
            raise self.encryption()
        try:
            stream = self._archive.open(member)
        except _DAMAGE as wrong:
            raise self.damage(wrong) from wrong
        return _Limited(stream, member.filename, self._unpacked, self.damage)

    def xml(self, name: str) -> etree._Element | None:
        """The root element of a member; None if there is none of this name."""
        data = self.read(name)
        if not data.strip():
            return None
        try:
            return etree.fromstring(data, xml_parser())
        except (etree.XMLSyntaxError, ValueError) as wrong:
            raise DocumentError(
                f"{self.name}: is damaged: {name} in it is no sound XML ({_one_line(wrong)}). Open "
                "it in the program that it comes from and save it again."
            ) from wrong

    def events(self, name: str, tags: tuple[str, ...]) -> Iterator[etree._Element]:
        """Elements with these names as they end, for members too large for a tree.

        After its use, each is emptied with all that precedes it.
        """
        if name not in self:
            return
        stream = self.open(name)
        try:
            for _, element in etree.iterparse(
                stream, events=("end",), tag=tags, resolve_entities=False, no_network=True,
                load_dtd=False, remove_comments=True, remove_pis=True,
            ):  # fmt: skip
                yield element
                element.clear()
                while element.getprevious() is not None:
                    del element.getparent()[0]
        except (etree.XMLSyntaxError, ValueError) as wrong:
            raise DocumentError(
                f"{self.name}: is damaged: {name} in it is no sound XML ({_one_line(wrong)}). Open "
                "it in the program that it comes from and save it again."
            ) from wrong

    def relations(self, name: str) -> dict[str, "Relation"]:
        """Id -> what a part of an Office Open XML package refers to."""
        folder, _, base = name.rpartition("/")
        root = self.xml(join(folder, "_rels", base + ".rels"))
        relations: dict[str, Relation] = {}
        for node in () if root is None else root:
            if not isinstance(node.tag, str) or node.get("TargetMode") == "External":
                continue
            id_, target = node.get("Id"), node.get("Target")
            if id_ and target:
                type_ = node.get("Type", "").rpartition("/")[2]
                relations[id_] = Relation(type_, resolve(folder, target))
        return relations

    def damage(self, wrong: object) -> DocumentError:
        return DocumentError(
            f"{self.name}: cannot be read as {self.kind}: {_one_line(wrong)}. The file is damaged "
            "or not what its name says; open it in the program that it comes from and save it "
            "again."
        )

    def encryption(self) -> DocumentError:
        return DocumentError(
            f"{self.name}: is encrypted with a password. Save it without one and ingest that."
        )

    def lacks(self, part: str) -> DocumentError:
        return DocumentError(
            f"{self.name}: is not {self.kind}: there is no {part} in it. Check what it is, and "
            "give it the ending that it should have."
        )

    def _ole_error(self, content: bytes) -> DocumentError:
        if _ENCRYPTED in content:
            return self.encryption()
        return DocumentError(
            f"{self.name}: is not {self.kind} but a file of an older program (.doc, .xls, .ppt, "
            ".hwp). Give it the ending that it should have, or save it in the newer format."
        )


class UnpackedBytes:
    """Counts and limits the bytes that are unpacked from a document."""

    def __init__(self, document: RawDocument) -> None:
        self._name = document.name
        self._settings = document.settings
        self._bytes = 0
        self._again = 0
        self._reached: dict[str, int] = {}
        self._most = max(
            _RATIO_FROM_BYTES, document.settings.max_unpacked_ratio * len(document.content)
        )

    def add_member(self, name: str, end: int, count: int) -> None:
        """Count `count` bytes of a member, up to its byte `end`.

        A member that is read again costs time but no memory, so its limit is higher.
        """
        reached = self._reached.get(name, 0)
        if end > reached:
            self._reached[name] = end
            self.add(min(count, end - reached))
        else:
            self._again += count
            if self._again > _AGAIN * self._most:
                raise DocumentError(
                    f"{self._name}: parts of it refer to the same part again and again. It is "
                    "damaged; open it in the program that it comes from and save it again."
                )

    @property
    def left(self) -> int:
        """How many more bytes may be unpacked."""
        return min(self._settings.max_unpacked_mib * 2**20, self._most) - self._bytes

    def add(self, count: int) -> None:
        """Count bytes. Raises DocumentError above the limits."""
        self._bytes += count
        if self._bytes > self._settings.max_unpacked_mib * 2**20:
            raise DocumentError(
                f"{self._name}: unpacks to more than {self._settings.max_unpacked_mib:,} MiB. "
                "Divide it, or raise SLUICE_MAX_UNPACKED_MIB."
            )
        if self._bytes > self._most:
            raise DocumentError(
                f"{self._name}: unpacks to more than {self._settings.max_unpacked_ratio:,} times "
                "its size, as a ZIP bomb does. If it is sound, divide it, or raise "
                "SLUICE_MAX_UNPACKED_RATIO."
            )


class Relation:
    """A reference from one part of an Office Open XML package to another."""

    __slots__ = ("target", "type")

    def __init__(self, type_: str, target: str) -> None:
        self.type = type_
        """The last word of its type, such as `footnotes`."""
        self.target = target
        """The name of the member."""


class _Limited:
    """The stream of a member, which counts the bytes that it unpacks to."""

    def __init__(
        self,
        stream: IO[bytes],
        name: str,
        unpacked: UnpackedBytes,
        damage: Callable[[object], DocumentError],
    ) -> None:
        self._stream = stream
        self._name = name
        self._unpacked = unpacked
        self._damage = damage
        self._at = 0

    def read(self, size: int = 1 << 20) -> bytes:
        try:
            block = self._stream.read(size if size >= 0 else 1 << 20)
        except _DAMAGE as wrong:
            raise self._damage(wrong) from wrong
        self._at += len(block)
        self._unpacked.add_member(self._name, self._at, len(block))
        return block


def xml_parser() -> etree.XMLParser:
    return etree.XMLParser(
        resolve_entities=False, no_network=True, load_dtd=False, remove_comments=True,
        remove_pis=True,
    )  # fmt: skip


def resolve(folder: str, target: str) -> str:
    """The name of the member at a relative address, resolved against a folder."""
    path = unquote(urlsplit(target).path) if ":" not in target.split("/")[0] else target
    if path.startswith("/"):
        return normpath(path).lstrip("/")
    return normpath(join(folder, path)).lstrip("/")


def local(node: etree._Element) -> str:
    """The name of an element without its namespace, which differs between versions of a format;
    empty if the node is not an element."""
    tag = node.tag
    return tag.rpartition("}")[2] if isinstance(tag, str) else ""


def attribute(node: etree._Element, name: str) -> str | None:
    """The value of an attribute in any namespace."""
    value = node.get(name)
    if value is None:
        for key, other in node.attrib.items():
            if str(key).endswith("}" + name):
                return str(other)
    return value


def children(node: etree._Element | None, *names: str) -> Iterator[etree._Element]:
    for child in () if node is None else node:
        if local(child) in names:
            yield child


def child(node: etree._Element | None, *path: str) -> etree._Element | None:
    """The first child with the first name, then its first child with the next name, and so on."""
    for name in path:
        node = next(children(node, name), None)
    return node


def descendants(node: etree._Element | None, *names: str) -> Iterator[etree._Element]:
    if node is not None:
        yield from node.iter(*(f"{{*}}{name}" for name in names))


def text_within(node: etree._Element) -> str:
    return "".join(map(str, node.itertext()))


def alternative(node: etree._Element) -> etree._Element | None:
    """The first of several forms of the same content that has text."""
    first: etree._Element | None = None
    for branch in children(node, "Choice", "Fallback"):
        if first is None:
            first = branch
        if next(descendants(branch, "t"), None) is not None:
            return branch
    return first


def _key(name: str) -> str:
    return name.replace("\\", "/").lstrip("/").lower()


def _one_line(wrong: object) -> str:
    text = " ".join(str(wrong).split()).rstrip(".")
    return text[:200] or type(wrong).__name__


def archive_of(members: Mapping[str, str]) -> bytes:
    """A ZIP archive of these texts, always with the same bytes: an example of a format."""
    stream = BytesIO()
    with zipfile.ZipFile(stream, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, text in members.items():
            archive.writestr(zipfile.ZipInfo(name), text, zipfile.ZIP_DEFLATED)
    return stream.getvalue()


def core_properties(package: Package) -> dict[str, str]:
    """Title, author, language and date of an Office Open XML package."""
    target = next(
        (r.target for r in package.relations("").values() if r.type == "core-properties"),
        "docProps/core.xml",
    )
    return dublin_core(package.xml(target))


_TERMS: Final = {
    "title": "title", "creator": "author", "initial-creator": "author", "language": "language",
    "created": "date", "creation-date": "date", "modified": "date", "date": "date",
}  # fmt: skip
_PREFERENCE: Final = ("created", "creation-date", "initial-creator", "title", "creator", "language")


def dublin_core(root: etree._Element | None) -> dict[str, str]:
    """Metadata of Dublin Core, and similar terms of OpenDocument, under our keys. Of several dates,
    the creation date counts."""
    terms: dict[str, str] = {}
    for node in () if root is None else root.iter():
        name = local(node)
        key = _TERMS.get(name)
        value = " ".join((node.text or "").split()) if key else ""
        if key and value and (key not in terms or name in _PREFERENCE[:3]):
            terms[key] = value
    return terms
