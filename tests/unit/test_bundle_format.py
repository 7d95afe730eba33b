"""The format of bundles: beyond 4 GiB, which needs ZIP64, and from people who mean harm."""

import hashlib
import io
import json
import tracemalloc
import unicodedata
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from zipfile import ZIP_DEFLATED, ZipFile

import numpy as np
import pytest

from shared.config import Settings
from shared.errors import InvalidInput
from workers.ingest.transfer.bundle import (
    PART_LIMIT_CHUNKS,
    PARTS_LIMIT,
    Bundle,
    BundlePart,
    CollectionRecord,
    Manifest,
    Position,
    line_of,
    pack_end,
    pack_part,
    records_of,
)
from workers.ingest.transfer.given import usable_vectors

NOW = datetime(2026, 11, 28, tzinfo=UTC)
FAR = 5 * 2**30


def test_parts_beyond_4_gib_are_read(tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    entries = []
    end = 0
    with file.open("wb") as stream:
        for number, offset in enumerate((0, FAR)):  # with a hole between them
            document = {
                "number": number, "source": f"d{number}", "chunk_count": 2, "sha256": "0" * 64,
                "content_hash": "a", "size_bytes": 9, "created_at": NOW.isoformat(),
                "updated_at": NOW.isoformat(),
            }  # fmt: skip
            chunks = [
                {"document": number, "ordinal": n, "start": n, "text": f"text {number} {n}"}
                for n in range(2)
            ]
            vectors = np.eye(3, dtype=np.float32)[number : number + 2]
            data, written = pack_part(
                number, offset, documents=[line_of(document)],
                chunks=[line_of(chunk) for chunk in chunks], vectors=vectors,
            )  # fmt: skip
            entries += written
            stream.seek(offset)
            stream.write(data)
            end = offset + len(data)
        manifest = Manifest(
            created_at=NOW, collection=CollectionRecord(name="large"), embedding_model="m",
            dimension=3, distance="cosine", documents=2, chunks=4, parts=records_of(entries),
        )  # fmt: skip
        stream.write(pack_end(manifest, entries, end))

    with io.FileIO(file) as stored:
        bundle = Bundle(stored, Settings(_env_file=None))
        assert bundle.manifest == manifest
        position = Position()
        for number in range(2):
            part = bundle.part(number)
            position = position.behind(part, "chunks")
            assert [chunk.text for chunk in part.chunks] == [f"text {number} 0", f"text {number} 1"]
            assert np.array_equal(part.vectors, np.eye(3)[number : number + 2])
            assert bundle.documents(number) == part.documents
        position.require_end(manifest)


DOCUMENT: dict[str, Any] = {
    "number": 0, "source": "d", "chunk_count": 2, "sha256": "0" * 64, "content_hash": "a",
    "size_bytes": 9, "created_at": NOW.isoformat(), "updated_at": NOW.isoformat(),
}  # fmt: skip
CHUNKS: list[dict[str, Any]] = [
    {"document": 0, "ordinal": n, "start": n, "text": f"text {n}"} for n in range(2)
]
NAMES = {
    "documents": "documents/000000.jsonl",
    "chunks": "chunks/000000.jsonl",
    "vectors": "vectors/000000.npy",
}
MIB = 2**20


def npy(vectors: Any) -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, vectors)
    return buffer.getvalue()


def write(
    file: Path,
    *,
    spoil: Callable[[ZipFile], object] = lambda _: None,
    changes: dict[str, bytes] | None = None,
    **manifest: Any,
) -> None:
    """A bundle of one part, but for what is changed."""
    contents = {
        "documents": line_of(DOCUMENT),
        "chunks": b"".join(map(line_of, CHUNKS)),
        "vectors": npy(np.eye(3, dtype=np.float32)[:2]),
    } | (changes or {})
    part = {
        kind: {"sha256": hashlib.sha256(data).hexdigest(), "size_bytes": len(data)}
        for kind, data in contents.items()
    }
    whole = {
        "format": "sluice-bundle", "version": 1, "created_at": NOW.isoformat(),
        "collection": {"name": "c"}, "embedding_model": "m", "dimension": 3, "distance": "cosine",
        "documents": 1, "chunks": 2, "parts": [part],
    }  # fmt: skip
    with ZipFile(file, "w", ZIP_DEFLATED) as archive:
        for kind, data in contents.items():
            archive.writestr(NAMES[kind], data)
        archive.writestr("manifest.json", json.dumps(whole | manifest))
        spoil(archive)


def read(file: Path) -> BundlePart:
    with io.FileIO(file) as stored:
        bundle = Bundle(stored, Settings(_env_file=None))
        return bundle.part(0)


def chunk(**fields: Any) -> dict[str, bytes]:
    return {"chunks": line_of(CHUNKS[0] | fields) + line_of(CHUNKS[1])}


def header(head: str) -> dict[str, bytes]:
    """An array with this description of itself."""
    data = head.encode() + b"\n"
    return {"vectors": b"\x93NUMPY\x01\x00" + len(data).to_bytes(2, "little") + data}


def forge(name: str, **fields: int) -> Callable[[ZipFile], None]:
    """Let the list of entries say something else of one."""

    def change(archive: ZipFile) -> None:
        for field, value in fields.items():
            setattr(archive.getinfo(name), field, value)

    return change


def test_bad_bundles_are_refused_by_name(tmp_path: Path) -> None:
    file = tmp_path / "bundle.zip"
    chunks = NAMES["chunks"]
    entry = {"sha256": "0" * 64, "size_bytes": 9}
    flat = "metadata: 'a' must be"
    wide = "{'descr': '<f4', 'fortran_order': False, 'shape': (0, 9)}"
    bad: list[tuple[str, dict[str, Any]]] = [
        # PostgreSQL cannot add so many days to a date, and would refuse it for all collections.
        ("expires_after_days", {"collection": {"name": "c", "expires_after_days": 2**31 - 1}}),
        ("display_name", {"collection": {"name": "c", "display_name": "x" * 2000}}),
        (r"collection\.name", {"collection": {"name": "a/b"}}),
        ("parts", {"parts": [0] * 100_000}),
        (f"at most {PARTS_LIMIT}", {"parts": [dict.fromkeys(NAMES, entry)] * (PARTS_LIMIT + 1)}),
        (flat, {"changes": chunk(metadata={"a": {"b": 1}})}),
        (flat, {"changes": chunk(metadata={"a": [[1]]})}),
        (flat, {"changes": chunk(metadata={"a": None})}),
        (flat, {"changes": chunk(metadata={"a": float("nan")})}),
        (flat, {"changes": chunk(metadata={"a": 2**63})}),
        (r"metadata: .*x00", {"changes": chunk(metadata={"\x00": 1})}),
        ("no JSON", {"changes": {"chunks": b'{"text": ' + b"[" * 100_000}}),
        ("more than .* lines", {"changes": {"documents": b"\n" * (PART_LIMIT_CHUNKS + 1)}}),
        (r"line 1: x+ \.\.\. \(", {"changes": chunk(**{"x" * 100_000: 1})}),
        ("no array of numpy", {"changes": header("-" * 9000 + "1")}),
        ("no array of numpy", {"changes": header("(" * 9000)}),
        ("no array of numpy", {"changes": header('"' * 3)}),
        ("has the shape", {"changes": header(wide)}),
        ("only zeros", {"changes": {"vectors": npy(np.zeros((2, 3), np.float32))}}),
        ("no finite", {"changes": {"vectors": npy(np.full((2, 3), np.inf, np.float32))}}),
        (chunks, {"spoil": forge(chunks, header_offset=2**63)}),
        (chunks, {"spoil": forge(chunks, header_offset=0)}),
        (chunks, {"spoil": forge(chunks, file_size=3)}),
        ("SLUICE_BUNDLE_PART_LIMIT_MIB", {"spoil": forge(chunks, file_size=2**40)}),
    ]
    for message, fields in bad:
        write(file, **fields)
        with pytest.raises(InvalidInput, match=message) as error:
            read(file)
        assert len(error.value.message) < 1000


@pytest.mark.parametrize("bomb", ["an entry", "the list of entries"])
def test_bombs_take_little_memory(tmp_path: Path, bomb: str) -> None:
    file = tmp_path / "bundle.zip"
    if bomb == "an entry":
        write(file, changes={"chunks": bytes(48 * MIB)}, spoil=forge(NAMES["chunks"], file_size=9))
    else:
        end = b"PK\x05\x06" + bytes(8) + (48 * MIB).to_bytes(4, "little") + bytes(6)
        with file.open("wb") as stream:
            stream.truncate(48 * MIB)
            stream.seek(0, io.SEEK_END)
            stream.write(end)
    tracemalloc.start()
    try:
        with pytest.raises(InvalidInput, match="damaged"):
            read(file)
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert peak < 16 * MIB


def test_what_others_write_becomes_what_ingestion_writes(tmp_path: Path) -> None:
    apart = unicodedata.normalize("NFD", "한글.md")
    whole = unicodedata.normalize("NFC", apart)
    assert apart != whole
    file = tmp_path / "bundle.zip"
    far = np.array([[1e30, 0, 0], [0, 1e-30, 0]], dtype=np.float32)
    changes = chunk(text=apart, metadata={apart: [apart]}) | {
        "documents": line_of(DOCUMENT | {"source": apart}),
        "vectors": npy(far),
    }
    write(file, changes=changes)

    part = read(file)

    assert [document.source for document in part.documents] == [whole]
    assert (part.chunks[0].text, part.chunks[0].metadata) == (whole, {whole: [whole]})
    assert np.array_equal(usable_vectors(part.vectors, 2, 3), np.eye(3)[:2])
