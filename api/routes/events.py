"""The events of a job, as a stream."""

from typing import Annotated

from fastapi import APIRouter, Header, Response
from starlette.concurrency import run_in_threadpool
from starlette.responses import StreamingResponse

from api import sse, streams
from api.answers import documented
from api.deps import FairKey, JobId, PartsDep
from shared.events import EventType

router = APIRouter(prefix="/v1/jobs", tags=["jobs"])

RESPONSES = documented({}, 404) | {
    200: {
        "description": "`state`, `progress`, `token`, `tool`, `end`; the last carries the job",
        "content": {
            "text/event-stream": {
                "schema": {
                    "description": "An event: `data` is JSON, `id` is for `Last-Event-ID`",
                    "properties": {
                        "id": {"type": "string"},
                        "event": {"enum": [type_.value for type_ in EventType]},
                        "data": {"type": "string"},
                    },
                }
            }
        },
    },
    204: {"description": "The client has had the `end` already"},
}


@router.get("/{job_id}/events", responses=RESPONSES)
async def stream_job_events(
    parts: PartsDep,
    fair_key: FairKey,
    job_id: JobId,
    last_event_id: Annotated[str | None, Header()] = None,
) -> Response:
    """Server-Sent Events; resumes after `Last-Event-ID`."""
    job = await run_in_threadpool(streams.outline, parts, job_id, fair_key)
    if sse.is_over(job, last_event_id):
        return Response(status_code=204)
    parts.news.check_room()
    return StreamingResponse(
        sse.events(parts, job, last_event_id, fair_key),
        media_type="text/event-stream",
        headers=sse.HEADERS,
    )
