"""The calls about what is stored: collections, documents, files."""

from collections.abc import Iterator, Sequence
from pathlib import Path

from cli.caller import PAGE_ITEMS, part
from cli.calls_jobs import JobCalls
from cli.uploads import upload
from cli.waits import Tell
from cli.wire import Chunk, Collection, Document, Job, StoredFile

_ERASE_WAIT_S = 2
"""What a deletion waits for is not known before its first answer."""


class DocumentCalls(JobCalls):
    """Deletions wait until text and vectors are gone."""

    # Collections and documents

    def put_collection(
        self,
        name: str,
        *,
        embedding_model: str | None = None,
        dimension: int | None = None,
        distance: str | None = None,
    ) -> Collection:
        """Create a collection; the same again changes nothing, a different one is refused."""
        body = {
            "embedding_model": embedding_model,
            "dimension": dimension,
            "distance": distance,
        }
        answer = self.transport.json(
            "PUT",
            f"/v1/collections/{part(name)}",
            body={key: value for key, value in body.items() if value is not None},
        )
        return Collection.model_validate(answer)

    def collection(self, name: str) -> Collection:
        return self._get(Collection, f"/v1/collections/{part(name)}")

    def collections(self, *, page_items: int = PAGE_ITEMS) -> Iterator[Collection]:
        return self._pages(Collection, "/v1/collections", {}, page_items)

    def delete_collection(
        self, name: str, *, timeout_s: float | None = None, on_waiting: Tell | None = None
    ) -> Job:
        """The `erase` job, succeeded: the documents, their text and their vectors are gone."""
        return self._erase(f"/v1/collections/{part(name)}", timeout_s, on_waiting)

    def documents(self, collection: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Document]:
        path = f"/v1/collections/{part(collection)}/documents"
        return self._pages(Document, path, {}, page_items)

    def document(self, document_id: str) -> Document:
        return self._get(Document, f"/v1/documents/{part(document_id)}")

    def chunks(self, document_id: str, *, page_items: int = PAGE_ITEMS) -> Iterator[Chunk]:
        return self._pages(Chunk, f"/v1/documents/{part(document_id)}/chunks", {}, page_items)

    def delete_document(
        self, document_id: str, *, timeout_s: float | None = None, on_waiting: Tell | None = None
    ) -> Job:
        return self._erase(f"/v1/documents/{part(document_id)}", timeout_s, on_waiting)

    # Files

    def upload(self, source: str | Path | bytes, *, name: str | None = None) -> StoredFile:
        """Store a file; `name` becomes the document's `source` when it is ingested."""
        return upload(self.transport, source, name=name)

    def file(self, file_id: str) -> StoredFile:
        return self._get(StoredFile, f"/v1/files/{part(file_id)}")

    def delete_file(self, file_id: str) -> None:
        self.transport.request("DELETE", f"/v1/files/{part(file_id)}")

    def files_by_hash(self, sha256: Sequence[str]) -> list[StoredFile]:
        """The stored files with one of these hashes (hexadecimal), in any order."""
        found: list[StoredFile] = []
        # Fifty hashes make a URL of 4 KB, which also proxies with small buffers let through.
        for start in range(0, len(sha256), 50):
            params = {"sha256": list(sha256[start : start + 50])}
            items = self.transport.listed("GET", "/v1/files", params=params)
            found += [StoredFile.model_validate(item) for item in items]
        return found

    def _erase(self, path: str, timeout_s: float | None, on_waiting: Tell | None) -> Job:
        headers = {"Prefer": f"wait={_ERASE_WAIT_S}"}
        answer = self.transport.json("DELETE", path, headers=headers, wait_s=_ERASE_WAIT_S)
        job = Job.model_validate(answer)
        if not job.ended:
            job = self.wait(job.id, timeout_s=timeout_s, on_waiting=on_waiting)
        return job.require_success()
