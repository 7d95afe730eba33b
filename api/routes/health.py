"""Liveness, readiness and metrics; these need no API key."""

from fastapi import APIRouter, Request, Response
from starlette.responses import PlainTextResponse

from api import health
from api.deps import PartsDep
from api.health import Metrics
from api.http.answers import answer, documented
from api.schemas import HealthView, ReadinessView

router = APIRouter(tags=["health"])


@router.get("/healthz")
async def check_health() -> HealthView:
    """Whether this process answers; it says nothing of its servers."""
    return HealthView(status="ok")


@router.get("/readyz", responses=documented({200: ReadinessView, 503: ReadinessView}))
async def check_readiness(request: Request) -> Response:
    """Whether all that jobs need is there, part by part."""
    readiness = request.app.state.readiness
    assert isinstance(readiness, health.Readiness)
    view = await readiness.view()
    return answer(view, 200 if view.status == "ready" else 503)


@router.get(
    "/metrics",
    response_class=PlainTextResponse,
    responses=documented({}),
)
def get_metrics(parts: PartsDep, request: Request) -> Response:
    """For Prometheus."""
    numbers = request.app.state.metrics
    assert isinstance(numbers, Metrics)
    with parts.ledger.read() as session:
        return Response(
            numbers.text(session), media_type="text/plain; version=0.0.4; charset=utf-8"
        )
