"""Whatever the bytes of a document of any format are, it is read, or refused as a document.

The same examples each time; SLUICE_FUZZ_EXAMPLES=2000 tries more of each format (`make fuzz`).
"""

import io
import os
import random
import zipfile
from contextlib import suppress
from functools import cache
from math import isfinite
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.bounds import is_storable_text, nfc
from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.formats import FORMATS, Format
from shared.kinds.ingest import LoadOptions, Splitter, SplitterType
from tests.unit.compound_file import outlook_message
from tests.unit.documents import read
from tests.unit.test_members import sevenzipped, tarred, zipped
from workers.ingest.formats.office.package import archive_of
from workers.ingest.load import LoadedText, loader_of, members, split

EXAMPLES = int(os.environ.get("SLUICE_FUZZ_EXAMPLES", "30"))
LIMITS = IngestSettings.model_construct(
    max_unpacked_mib=1, max_document_chunks=1000, max_document_chars=1_000_000
)
CONTENT = {"a.txt": b"one", "폴더/b.txt": b"two" * 50, "in.zip": zipped({"c.txt": b"three"})}
LARGER = {
    "ZIP": zipped(CONTENT),
    "TAR": tarred(CONTENT),
    "7-Zip": sevenzipped(CONTENT),
    "MSG": outlook_message(
        subject="x", body="body", attachments=[{"name": "a.txt", "data": b"attached"}]
    ),
}
"""What has more in it than the example of the loader."""
HOSTILE = [
    b"\0", b"\xff\xff\xff\xff", b"<" * 50, b"{" * 50, b"[" * 200, b"(" * 50, b"&x;", b"&#0;", b'"',
    b"'", b"\\", b"%", b"-1", b"99999999999999999999", b"1e999", b"NaN", b"\r", b"\xed\xa0\x80",
    b"\xef\xbb\xbf", b"]]>", b"<!--", b"<!DOCTYPE a [<!ENTITY b 'c'>]>", b"\x1b$B", b"PK\x03\x04",
    b"\xd0\xcf\x11\xe0", b"endstream", b"{\\rtf", b"\\bin9", b"\\u-1?", b"=?utf-8?B?", b"boundary=",
]  # fmt: skip


@cache
def example(name: str) -> bytes:
    return LARGER.get(name) or loader_of(FORMATS[name]).example


def try_to_read(data: bytes, format_: Format) -> None:
    """Anything but a `DocumentError` fails the test, and so does what cannot be stored."""
    name = f"a{format_.suffixes[0]}"
    if format_.holds_documents:
        with suppress(DocumentError):
            options = LoadOptions()
            for member in members(
                data, name=name, content_type=None, options=options, settings=LIMITS
            ):
                assert member.name.startswith(f"{name}!/")
    if format_.is_document:
        with suppress(DocumentError):
            check(read(data, name, settings=LIMITS))


def check(loaded: LoadedText) -> None:
    assert loaded.text.strip()
    assert is_storable_text(loaded.text)
    assert nfc(loaded.text) == loaded.text
    for metadata in (loaded.metadata, *(passage.metadata for passage in loaded.passages)):
        assert all(is_plain(value) for value in metadata.values()), metadata


def is_plain(value: Any) -> bool:
    if isinstance(value, list):
        return all(map(is_plain, value))
    if isinstance(value, str):
        return is_storable_text(value)
    return type(value) in (bool, int) or (type(value) is float and isfinite(value))


def damaged(content: bytes, chance: random.Random) -> bytes:
    """With one to four changes."""
    for _ in range(chance.randint(1, 4)):
        at = chance.randrange(len(content) + 1)
        end = min(len(content), at + chance.choice([1, 8, 100, len(content)]))
        match chance.randrange(6):
            case 0:
                content = content[:at] + content[end:]
            case 1:
                content = content[:end] + content[at:]
            case 2:
                content = content[:at] + chance.choice(HOSTILE) + content[at:]
            case 3:
                content = content[:at] + chance.randbytes(chance.randint(1, 16)) + content[at:]
            case 4 if content:
                place = chance.randrange(len(content))
                bit = bytes([content[place] ^ (1 << chance.randrange(8))])
                content = content[:place] + bit + content[place + 1 :]
            case _:
                other = chance.randrange(len(content) + 1)
                content = content[:at] + content[other : other + 40] + content[at:]
    return content


def damaged_within(content: bytes, chance: random.Random) -> bytes:
    """A ZIP archive that is sound, with damage in one of its members."""
    with zipfile.ZipFile(io.BytesIO(content)) as archive:
        parts = {name: archive.read(name) for name in archive.namelist()}
    victim = chance.choice(list(parts))
    match chance.randrange(4):
        case 0:
            del parts[victim]
        case 1:
            parts[victim] = parts[chance.choice(list(parts))]
        case 2:
            # Attributes get values of others, so that references lead anywhere.
            values = parts[victim].split(b'"')
            chance.shuffle(values)
            parts[victim] = b'"'.join(values)
        case _:
            parts[victim] = damaged(parts[victim], chance)
    if all(part.isascii() for part in parts.values()):
        return archive_of({name: part.decode() for name, part in parts.items()})
    return zipped(parts)


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=EXAMPLES)
@given(seed=st.integers(0, 2**32 - 1))
def test_a_damaged_document_is_read_or_refused(name: str, seed: int) -> None:
    content, chance = example(name), random.Random(seed)
    if content.startswith(b"PK") and chance.random() < 0.7:
        try_to_read(damaged_within(content, chance), FORMATS[name])
    else:
        try_to_read(damaged(content, chance), FORMATS[name])


@pytest.mark.parametrize("name", FORMATS)
@settings(max_examples=max(5, EXAMPLES // 4))
@given(seed=st.integers(0, 2**32 - 1))
def test_a_document_of_another_format_is_read_or_refused(name: str, seed: int) -> None:
    """Under the name of this one; also halves of two."""
    chance = random.Random(seed)
    other, half = (example(chance.choice(list(FORMATS))) for _ in range(2))
    cut = chance.choice([0, len(other) // 2, chance.randrange(len(other) + 1)])
    try_to_read(other[cut:] + half * chance.randrange(2), FORMATS[name])


# Texts, of what their formats are made of

TEXT_FORMATS = [format_ for format_ in FORMATS.values() if format_.is_text]
PIECES = [
    "\n", " ", "  ", "\t", ":", "-", "=", "==\n", "--\n", "*", "`", "``", "|", "+", "#", ".", "<",
    "..", ">", "</", "<a>", "</a>", "<![CDATA[", "]]>", "&", "&amp;", "&#0;", "<?xml", "?>", "_",
    "<!--", "-->", "<table>", "<tr>", "<td rowspan=2>", "<h1>", "<html>", "{", "}", "[", "]", '"',
    "'", "\\", ",", "1", "00:00:01,000 --> 00:00:02,000\n", "WEBVTT\n", "2024-03-01 10:00:00 ",
    "::\n\n  ", ".. note:: ", "---\n", "+++\n", "a: b\n", "[x]\n", "한", "\u0301", "😀", "\x00",
    "\x1b[", "null", "def f():\n", "+---+\n", "* a\n", "1. a\n", ".. [1] x\n", "|x|_ ", ":a:`b`",
]  # fmt: skip


@settings(max_examples=4 * EXAMPLES)
@given(
    st.sampled_from(TEXT_FORMATS),
    st.lists(st.sampled_from(PIECES), max_size=30).map("".join),
    st.integers(0, 50),
)
def test_a_text_is_read_or_refused_by_its_own_loader(format_: Format, made: str, at: int) -> None:
    content = loader_of(format_).example.decode()
    text = content[:at] + made + content[at:]
    try:
        loaded = read(text.encode(), f"a{format_.suffixes[0]}")
    except DocumentError as error:
        if "It may be damaged" in error.message:  # something else that `load` has caught
            raise
        return
    for type_ in (SplitterType.HTML, SplitterType.SENTENCE, SplitterType.RECURSIVE):
        list(split(loaded, Splitter(type=type_, chunk_size=20, chunk_overlap=5)))
