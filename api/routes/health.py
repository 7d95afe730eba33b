"""Liveness, readiness and metrics; these need no API key."""

from fastapi import APIRouter, Request, Response

from api import health
from api.answers import answer, documented
from api.deps import PartsDep
from api.metrics import Metrics
from api.schemas import ReadinessView

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def healthz() -> dict[str, str]:
    """Whether this process answers; it says nothing of its servers."""
    return {"status": "ok"}


@router.get("/readyz", responses=documented({200: ReadinessView, 503: ReadinessView}))
async def readyz(parts: PartsDep) -> Response:
    """Whether all that jobs need is there, part by part."""
    view = await health.readiness(parts)
    return answer(view, 200 if view.status == "ready" else 503)


@router.get("/metrics")
def metrics(parts: PartsDep, request: Request) -> Response:
    """For Prometheus."""
    numbers = request.app.state.metrics
    assert isinstance(numbers, Metrics)
    with parts.ledger.read() as session:
        return Response(
            numbers.text(session), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
