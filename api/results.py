"""A job's bare result: as JSON, from its row, or streamed from the storage where it is large."""

import json
from collections.abc import Iterator, Mapping

from starlette.responses import Response, StreamingResponse

from api.deps import Parts
from shared.models import Job

MEDIA_TYPE = "application/json"


def result_response(
    parts: Parts, job: Job, headers: Mapping[str, str] | None = None, status: int = 200
) -> Response:
    """The result of a job that has succeeded. Blocks: call it in a thread.

    Raises NotFound or Unavailable where the storage does not have it.
    """
    found = dict(headers or {})
    if job.result_path is None:
        data = json.dumps(job.result, ensure_ascii=False, separators=(",", ":"))
        return Response(data.encode(), status, found, MEDIA_TYPE)
    blocks = parts.storage.blocks(job.result_path)
    # The first is read here, so that a lost file is an error and not a cut answer.
    first = next(blocks, b"")
    if job.result_bytes is not None:
        found["Content-Length"] = str(job.result_bytes)
    return StreamingResponse(chain(first, blocks), status, found, MEDIA_TYPE)


def chain(first: bytes, rest: Iterator[bytes]) -> Iterator[bytes]:
    yield first
    yield from rest
