"""A vector store as CONTRIBUTING.md has one added: in memory, for one process."""

from collections.abc import Sequence

import numpy as np

from shared.bounds import Metadata, nfc, nfc_value
from shared.config import Settings
from shared.filters import MetadataFilter
from workers.models.devices import Vectors
from workers.retrieval.store import Match, MissingCollection, VectorEntry


class Memory:
    def __init__(self, settings: Settings, url: str) -> None:
        del settings, url
        self._collections: dict[str, dict[str, tuple[VectorEntry, Vectors]]] = {}

    def make(self, name: str, distance: str) -> None:
        del distance
        self._collections.setdefault(name, {})

    def upsert(self, name: str, entries: Sequence[VectorEntry], vectors: Vectors) -> None:
        chunks = self._chunks(name)
        for entry, vector in zip(entries, vectors, strict=True):
            chunks[entry.id] = (entry, vector)

    def query(
        self,
        name: str,
        vectors: Vectors,
        *,
        limit: int,
        where: MetadataFilter | None,
        ids: Sequence[str] | None = None,
    ) -> list[list[Match]]:
        fitting = [
            (entry.id, other)
            for entry, other in list(self._chunks(name).values())
            if (where is None or where.matches(_normal(entry.metadata), entry.own))
            and (ids is None or entry.id in ids)
        ]
        matches = [
            [Match(id=id_, score=float(np.dot(vector, other))) for id_, other in fitting]
            for vector in vectors
        ]
        return [sorted(row, key=lambda match: -match.score)[:limit] for row in matches]

    def vectors(self, name: str, ids: Sequence[str]) -> dict[str, Vectors]:
        chunks = self._chunks(name)
        return {id_: chunks[id_][1] for id_ in ids if id_ in chunks}

    def compare(self, name: str, entries: Sequence[VectorEntry]) -> dict[str, bool]:
        chunks = self._chunks(name)
        return {entry.id: chunks[entry.id][0] == entry for entry in entries if entry.id in chunks}

    def is_exact(self, where: MetadataFilter) -> bool:
        del where
        return True

    def delete(self, name: str, ids: Sequence[str]) -> int:
        chunks = self._collections.get(name, {})
        return sum(chunks.pop(id_, None) is not None for id_ in ids)

    def drop(self, name: str) -> int:
        return len(self._collections.pop(name, {}))

    def id_page(self, name: str, *, limit: int, offset: int) -> list[str]:
        return list(self._collections.get(name, {}))[offset : offset + limit]

    def close(self) -> None:
        pass

    def _chunks(self, name: str) -> dict[str, tuple[VectorEntry, Vectors]]:
        if name not in self._collections:
            raise MissingCollection(f"There is no collection {name!r} in memory.")
        return self._collections[name]


def _normal(metadata: Metadata) -> Metadata:
    return {nfc(key): nfc_value(value) for key, value in metadata.items()}
