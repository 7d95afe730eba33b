"""Folders of LangChain's FAISS (`save_local`) as origins: `index.faiss`, and `index.pkl`.

A pickle can run any program. This one is read by an unpickler that knows nothing but LangChain's
docstore and document, of which stand-ins without any behaviour are made, and sets. Everything else
that a pickle may name is refused before it is looked up.
"""

import io
import pickle
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any, Final

from shared.errors import DocumentError, SluiceError, Unavailable
from shared.urls import CollectionUrl
from workers.attempts.context import Context
from workers.ingest.adoption.origin import (
    Copy,
    OriginChunk,
    OriginVector,
    UnnamedCollection,
    copy_file,
    kept_origins,
    require_room,
)

PAGE = 2000


class _StandIn:
    """What becomes of an object of the pickle: the values that it had."""

    def __init__(self) -> None:
        self.values: dict[str, Any] = {}

    def __setstate__(self, state: Any) -> None:
        if not isinstance(state, dict):
            raise pickle.UnpicklingError("an object has a state that is no dictionary")
        # Pydantic's models have their fields one level deeper.
        fields = state.get("__dict__", state)
        self.values = fields if isinstance(fields, dict) else {}


class _Docstore(_StandIn):
    pass


class _Document(_StandIn):
    pass


_ALLOWED: Final[dict[tuple[str, str], type]] = {
    **{
        (module, "InMemoryDocstore"): _Docstore
        for module in (
            "langchain_community.docstore.in_memory",
            "langchain.docstore.in_memory",
            "langchain_classic.docstore.in_memory",
        )
    },
    **{
        (module, "Document"): _Document
        for module in (
            "langchain_core.documents.base",
            "langchain.schema",
            "langchain.schema.document",
            "langchain.docstore.document",
        )
    },
    ("builtins", "set"): set,
}


class _Unpickler(pickle.Unpickler):
    def find_class(self, module_name: str, global_name: str, /) -> Any:
        allowed = _ALLOWED.get((module_name, global_name))
        if allowed is None:
            raise pickle.UnpicklingError(f"it has an object of {module_name}.{global_name}")
        return allowed


class FaissOrigin:
    """The documents of a docstore, in the order of their vectors; those without one come last."""

    def __init__(self, index: Any, chunks: dict[str, OriginChunk], rows: dict[str, int]) -> None:
        self._index = index
        self._chunks = chunks
        self._rows = rows
        self._by_value: dict[str, dict[str, list[str]]] = {}
        self._places = {id_: n for n, id_ in enumerate(chunks)}

    def pages(self) -> Iterator[list[OriginChunk]]:
        yield from _paged(list(self._chunks.values()))

    def having(self, key: str, values: Sequence[str]) -> Iterator[list[OriginChunk]]:
        by_value = self._by_value.get(key)
        if by_value is None:
            by_value = self._by_value[key] = {}
            for id_, chunk in self._chunks.items():
                value = chunk.metadata.get(key)
                if isinstance(value, str):
                    by_value.setdefault(value, []).append(id_)
        ids = {id_ for value in values for id_ in by_value.get(value, ())}
        yield from _paged([self._chunks[id_] for id_ in sorted(ids, key=self._places.__getitem__)])

    def chunks(self, ids: Sequence[str]) -> list[OriginChunk]:
        return [self._chunks[id_] for id_ in ids if id_ in self._chunks]

    def vectors(self, ids: Sequence[str]) -> dict[str, OriginVector]:
        rows = {id_: row for id_ in ids if (row := self._rows.get(id_)) is not None}
        rows = {id_: row for id_, row in rows.items() if 0 <= row < self._index.ntotal}
        if not rows:
            return {}
        try:
            vectors = self._index.reconstruct_batch(list(rows.values()))
        except RuntimeError:
            return {}  # an index of a type that does not give its vectors back
        return {
            id_: OriginVector(text=self._chunks[id_].text, vector=vector)
            for id_, vector in zip(rows, vectors, strict=True)
        }


def _paged(chunks: Sequence[OriginChunk]) -> Iterator[list[OriginChunk]]:
    for first in range(0, len(chunks), PAGE):
        yield list(chunks[first : first + PAGE])


@contextmanager
def folder_origin(context: Context, url: CollectionUrl) -> Iterator[FaissOrigin]:
    """Raises DocumentError, Unavailable."""
    names = sorted(
        path.stem
        for path in url.folder.glob("*.faiss")
        if path.with_suffix(".pkl").is_file() and not path.is_symlink()
    )
    name = url.name or (names[0] if len(names) == 1 else "")
    if name not in names:
        raise UnnamedCollection.among(url, [(one, None) for one in names], len(names))
    pickled, index = url.folder / f"{name}.pkl", url.folder / f"{name}.faiss"
    if pickled.is_symlink():
        raise DocumentError(f"{url}: {pickled.name} is a link, which is not followed.")
    key = (context.claim.job_id, str(url))
    make = partial(_open, context, url, pickled, index)
    with kept_origins(context.process).use(key, make, context.check) as origin:
        yield origin


def _open(
    context: Context, url: CollectionUrl, pickled: Path, index: Path
) -> tuple[FaissOrigin, Callable[[], object]]:
    try:
        import faiss
    except ModuleNotFoundError as error:
        raise DocumentError(
            f"{url}: the workers lack the package faiss-cpu. Install the extra faiss (in the "
            "folder of Sluice: pip install ./client '.[faiss]')."
        ) from error
    limit = context.process.settings.adopt_docstore_limit_mib
    if pickled.stat().st_size > limit * 2**20:
        raise DocumentError(
            f"{url}: {pickled.name} has more than {limit:,} MiB, which would be read into memory. "
            "Raise SLUICE_ADOPT_DOCSTORE_LIMIT_MIB."
        )
    chunks, rows = _read_pickle(url, pickled)
    # Vectors are read where they lie in the file, not all into memory. It is a copy, since a
    # program that saves the index again makes the file shorter at first, which ends who reads it.
    copy = Copy()
    flags = faiss.IO_FLAG_MMAP_IFC | faiss.IO_FLAG_READ_ONLY | faiss.IO_FLAG_ONDISK_SAME_DIR
    try:
        size = index.stat().st_size
        require_room(context, url, size, copy.path, otherwise="adopt it in parts")
        copy_file(context, index, copy.path / index.name)
        read = faiss.read_index(str(copy.path / index.name), flags)
    except RuntimeError as error:
        copy.delete()
        raise DocumentError(f"{url}: FAISS cannot read {index.name}: {error}.") from error
    except OSError as error:
        copy.delete()
        raise Unavailable(f"{url}: {index.name} cannot be copied: {error}.") from error
    except BaseException:
        copy.delete()
        raise
    return FaissOrigin(read, chunks, rows), copy.delete


def _read_pickle(url: CollectionUrl, path: Path) -> tuple[dict[str, OriginChunk], dict[str, int]]:
    """The chunks by their ids, in the order of their vectors, and the rows of these."""
    try:
        loaded = _Unpickler(io.BytesIO(path.read_bytes())).load()
        return _chunks_of(loaded)
    except SluiceError:
        raise
    except Exception as error:
        raise DocumentError(
            f"{url}: {path.name} is no docstore as LangChain's FAISS saves it: {error}. A pickle "
            "can run programs, so nothing else is read. Write the documents to a Chroma folder "
            "with a program of your own, and adopt that: Chroma.from_documents(documents, "
            "embeddings, persist_directory=...)."
        ) from error


def _chunks_of(loaded: Any) -> tuple[dict[str, OriginChunk], dict[str, int]]:
    docstore, ids = loaded
    if not isinstance(docstore, _Docstore) or not isinstance(ids, dict):
        raise ValueError("it has no docstore and no list of ids")
    documents = docstore.values["_dict"]
    rows = {str(id_): row for row, id_ in sorted(ids.items()) if isinstance(row, int)}
    by_id = {str(id_): document for id_, document in documents.items()}
    chunks: dict[str, OriginChunk] = {}
    for id_ in [*(id_ for id_ in rows if id_ in by_id), *(id_ for id_ in by_id if id_ not in rows)]:
        values = by_id[id_].values if isinstance(by_id[id_], _Document) else {}
        text, metadata = values.get("page_content"), values.get("metadata")
        chunks[id_] = OriginChunk(
            id=id_,
            text=text if isinstance(text, str) else None,
            metadata=metadata if isinstance(metadata, dict) else {},
        )
    return chunks, rows
