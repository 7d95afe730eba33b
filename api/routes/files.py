"""Files: streamed into the storage, listed by hash, streamed back, forgotten."""

from typing import Annotated

from fastapi import APIRouter, File, Query, Response, UploadFile
from starlette.responses import StreamingResponse

from api.deps import FileId, PartsDep
from api.http.answers import answer, chain, documented
from api.jobs import uploads
from api.schemas import SHA256, FileView, Items
from shared import files

router = APIRouter(prefix="/v1/files", tags=["files"])

CONTENT_RESPONSES = documented({}, 404) | {
    200: {
        "description": "The bytes, with the content type that they were uploaded with",
        "content": {
            type_: {"schema": {"type": "string", "format": "binary"}}
            for type_ in (uploads.DEFAULT_TYPE, "*/*")
        },
    }
}
Sha256 = Annotated[str, Query(pattern=SHA256, max_length=64)]


@router.post("", status_code=201, responses=documented({201: FileView}, 413, 415, 422))
def upload_file(parts: PartsDep, file: Annotated[UploadFile, File()]) -> Response:
    """Upload one file as the multipart part `file`; its name becomes the document's source."""
    name = uploads.clean_name(file.filename)
    row = uploads.keep(parts, file.file, name=name, content_type=file.content_type)
    view = FileView.of(row)
    return answer(view, 201, {"Location": f"/v1/files/{view.id}"})


@router.get("", responses=documented({200: Items[FileView]}, 422))
def find_files(
    parts: PartsDep,
    sha256: Annotated[list[Sha256], Query(min_length=1, max_length=200, fail_fast=True)],
) -> Response:
    """The stored files with these hashes: what need not be uploaded again."""
    with parts.ledger.read() as session:
        rows = files.with_hashes(session, [value.lower() for value in sha256])
    return answer(Items[FileView](items=[FileView.of(file) for file in rows]))


@router.get("/{file_id}", responses=documented({200: FileView}, 404))
def get_file(parts: PartsDep, file_id: FileId) -> Response:
    """What is known of a file."""
    with parts.ledger.read() as session:
        return answer(FileView.of(files.get(session, file_id)))


@router.get("/{file_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
def get_file_content(parts: PartsDep, file_id: FileId) -> Response:
    """The bytes, as an attachment."""
    with parts.ledger.read() as session:
        file = files.get(session, file_id)
    blocks = parts.storage.blocks(file.path)
    # The first is read here, so that a lost file is an error and not a cut answer.
    first = next(blocks, b"")
    return StreamingResponse(
        chain(first, blocks),
        headers={
            # Not as `media_type`, to which a charset would be added that may be wrong.
            "Content-Type": file.content_type or uploads.DEFAULT_TYPE,
            "Content-Length": str(file.size_bytes),
            "Content-Disposition": uploads.disposition(file.name),
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{file.sha256}"',
        },
    )


@router.delete("/{file_id}", status_code=204, responses=documented({}, 404))
def delete_file(parts: PartsDep, file_id: FileId) -> Response:
    """Forget a file. Documents that were made of it stay."""
    with parts.ledger.begin() as session:
        path = files.delete(session, file_id)
    uploads.forget(parts, path)
    return Response(status_code=204)
