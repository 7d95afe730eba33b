"""The kinds `export` and `import`: a collection goes into a file, a bundle, and comes out of one.

A bundle has the documents, chunks and vectors of a collection (docs/bundles.md), so nothing is
embedded again. It may be sent as several uploads, in their order.
"""

from collections.abc import Mapping, Sequence
from datetime import datetime
from typing import Annotated, Any
from uuid import UUID

from pydantic import Field
from sqlalchemy.orm import Session

from shared import files
from shared.bounds import CollectionName
from shared.documents import imports
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import KeyScope, Lane, Queue, Shape

EXPORT_STEP = "export"
IMPORT_STEP = "import"
IMPORT_PART_STEP = "import.part"
FILES_LIMIT = 10_000


class ExportInput(Shape):
    collection: CollectionName


class ExportResult(Shape):
    """`GET /v1/files/{file_id}/content` has the bundle, until `expires_at`."""

    collection: str
    embedding_model: str
    dimension: int | None
    documents: int
    chunks: int
    file_id: UUID
    size_bytes: int
    expires_at: datetime


class ImportInput(Shape):
    """A bundle, in one upload or in several that are its parts in order. `collection` is the name
    of the new collection, else it is that in the bundle."""

    file_ids: Annotated[list[UUID], Field(fail_fast=True, min_length=1, max_length=FILES_LIMIT)]
    collection: CollectionName | None = None


class ImportResult(Shape):
    collection: str
    embedding_model: str
    dimension: int | None
    documents: int
    chunks: int


def _require_files(session: Session, inputs: Sequence[Mapping[str, Any]]) -> None:
    for input_ in inputs:
        files.require(session, [UUID(id_) for id_ in input_["file_ids"]])


EXPORT = Kind(
    name="export",
    scope=KeyScope.READ,
    summary="a collection with its vectors, as a file",
    input=ExportInput,
    result=ExportResult,
    steps=[
        StepType(
            name=EXPORT_STEP,
            queue=Queue.INGEST,
            handler="workers.ingest.transfer.exports:EXPORT",
        )
    ],
    example={"collection": "handbook"},
    lane=Lane.BULK,
)

IMPORT = Kind(
    name="import",
    scope=KeyScope.WRITE,
    summary="a new collection, from the file of an export",
    input=ImportInput,
    result=ImportResult,
    steps=[
        StepType(
            name=IMPORT_STEP,
            queue=Queue.INGEST,
            handler="workers.ingest.transfer.bundle_imports:IMPORT",
        ),
        StepType(
            name=IMPORT_PART_STEP,
            queue=Queue.INGEST,
            handler="workers.ingest.transfer.bundle_imports:IMPORT_PART",
        ),
    ],
    example={
        "file_ids": ["0198c0de-0000-7000-8000-000000000000"],
        "collection": "handbook-copy",
    },
    find_collection=imports.require_free,
    require=_require_files,
    lane=Lane.BULK,
    file_path="$.file_ids[*]",
)
