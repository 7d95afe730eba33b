"""Bundles beyond 4 GiB, which need ZIP64."""

import io
from datetime import UTC, datetime
from pathlib import Path

import numpy as np

from shared.config import Settings
from workers.ingest.transfer.bundle import (
    Bundle,
    CollectionRecord,
    Manifest,
    Position,
    line_of,
    pack_end,
    pack_part,
    records_of,
)

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
