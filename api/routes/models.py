"""The models that can run here."""

from fastapi import APIRouter, Response

from api.answers import answer, documented
from api.deps import PartsDep
from api.schemas import Items, ModelView
from shared.config import EXTRACTIVE
from shared.payloads import Kind

router = APIRouter(prefix="/v1/models", tags=["models"])


@router.get("", responses=documented({200: Items[ModelView]}))
async def list_models(parts: PartsDep) -> Response:
    """The embedding model of the server, and what answers questions."""
    settings = parts.settings
    embedding = ModelView(
        reference=settings.embedding_model,
        kinds=[Kind.INGEST, Kind.EMBED, Kind.SEARCH],
        default=True,
    )
    extractive = ModelView(
        reference=EXTRACTIVE, kinds=[Kind.RAG], default=settings.generation_model == EXTRACTIVE
    )
    return answer(Items[ModelView](items=[embedding, extractive]))
