"""Files: uploaded to the storage, listed by hash, downloaded, deleted.

The name of a file becomes the identity of a document (`docs/documents.md`). So slashes and all
scripts stay; only control characters are removed, and the name is put into Unicode's normal form C,
which macOS does not use. A name is never used as a path.
"""

import re
from contextlib import suppress
from datetime import datetime
from typing import Annotated
from urllib.parse import quote

from fastapi import APIRouter, File, Query, Response, UploadFile
from starlette.responses import StreamingResponse

from api.deps import FileId, Parts, PartsDep
from api.http.answers import answer, chain
from api.openapi import documented
from api.schemas import SHA256, FileView, Items
from shared import files, tables
from shared.bounds import NAME_LIMIT_BYTES, nfc
from shared.errors import InvalidInput
from shared.files import Purpose, Readable, StoredPath

CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\u2028\u2029\ud800-\udfff]")
CONTENT_TYPE = re.compile(
    r"[\w.+-]{1,64}/[\w.+-]{1,64}(\s*;\s*[\w.-]{1,64}=[\w.\"-]{1,64}){0,4}", re.A
)
NAME_CHARS = 1024
DEFAULT_TYPE = "application/octet-stream"

router = APIRouter(prefix="/v1/files", tags=["files"])

CONTENT_RESPONSES = documented({}, 404) | {
    200: {
        "description": "The bytes, with the content type that they were uploaded with",
        "content": {
            type_: {"schema": {"type": "string", "format": "binary"}}
            for type_ in (DEFAULT_TYPE, "*/*")
        },
    }
}
Sha256 = Annotated[str, Query(pattern=SHA256, max_length=64)]


def keep(
    parts: Parts,
    source: Readable,
    *,
    name: str,
    content_type: str | None,
    purpose: Purpose = Purpose.USER_DATA,
    expires_at: datetime | None = None,
) -> tables.File:
    """Store a stream and record it. Raises what `Storage.store` raises."""
    stored = parts.storage.store(source, name=name, limit_bytes=parts.settings.max_file_bytes)
    try:
        with parts.ledger.begin() as session:
            return files.record(
                session,
                stored,
                name=name,
                content_type=clean_content_type(content_type),
                purpose=purpose,
                expires_at=expires_at,
            )
    except BaseException:
        forget(parts, StoredPath(path=stored.path, is_folder=False))
        raise


def forget(parts: Parts, stored: StoredPath) -> None:
    """Delete bytes from the storage. A failure is ignored: bytes without a row do no harm."""
    if stored.is_folder:
        forget_folder(parts, stored.path)
        return
    with suppress(OSError):
        parts.storage.delete(stored.path)


def forget_folder(parts: Parts, path: str) -> None:
    """As `forget`, for a folder with all its contents."""
    with suppress(OSError):
        parts.storage.delete_folder(path)


def clean_name(name: str | None) -> str:
    """Raises InvalidInput where nothing is left, or too much."""
    # Browsers, curl and httpx write a quotation mark so, and nothing else but line breaks.
    cleaned = nfc(CONTROL.sub("", (name or "").replace("%22", '"')).strip())
    if not cleaned:
        raise InvalidInput("The part `file` has no file name; give it one (`filename=`).")
    if len(cleaned) > NAME_CHARS:
        raise InvalidInput(f"The file name is longer than {NAME_CHARS} characters; shorten it.")
    if len(cleaned.encode()) > NAME_LIMIT_BYTES:
        raise InvalidInput(f"The file name is longer than {NAME_LIMIT_BYTES:,} bytes; shorten it.")
    return cleaned


def clean_content_type(value: str | None) -> str | None:
    return value if value and CONTENT_TYPE.fullmatch(value) else None


def disposition(name: str) -> str:
    """`attachment`, so that an uploaded page never runs as one of the API's own."""
    return f"attachment; filename*=UTF-8''{quote(name, safe='')}"


@router.post("", status_code=201, responses=documented({201: FileView}, 413, 415, 422))
def upload_file(parts: PartsDep, file: Annotated[UploadFile, File()]) -> Response:
    """Upload one file as the multipart part `file`; its name becomes the document's source."""
    name = clean_name(file.filename)
    row = keep(parts, file.file, name=name, content_type=file.content_type)
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
    """A file: its name, size, hash and type."""
    with parts.ledger.read() as session:
        return answer(FileView.of(files.get(session, file_id)))


@router.get("/{file_id}/content", response_class=Response, responses=CONTENT_RESPONSES)
def get_file_content(parts: PartsDep, file_id: FileId) -> Response:
    """The bytes, as an attachment."""
    with parts.ledger.read() as session:
        file = files.get(session, file_id)
    return content_response(parts, file)


def content_response(parts: Parts, file: tables.File) -> Response:
    """The present bytes of a file, as an attachment. Blocks: call it in a thread."""
    blocks = files.blocks(parts.storage, file)
    # The first block is read now, so that a lost file is an error instead of a truncated answer.
    first = next(blocks, b"")
    return StreamingResponse(
        chain(first, blocks),
        headers={
            # Not as `media_type`, to which Starlette would add a charset that may be wrong.
            "Content-Type": file.content_type or DEFAULT_TYPE,
            "Content-Length": str(file.size_bytes),
            "Content-Disposition": disposition(file.name),
            "X-Content-Type-Options": "nosniff",
            "ETag": f'"{file.sha256 or f"{file.id}-{file.size_bytes}"}"',
        },
    )


@router.delete("/{file_id}", status_code=204, responses=documented({}, 404))
def delete_file(parts: PartsDep, file_id: FileId) -> Response:
    """Delete a file. Documents that were made of it stay."""
    with parts.ledger.begin() as session:
        stored = files.delete(session, file_id)
    forget(parts, stored)
    return Response(status_code=204)
