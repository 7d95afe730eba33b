"""The routes of the dialect Ollama: a line for each module that has some."""

from fastapi import APIRouter

from api.compat.ollama import chat, embeddings, models
from api.compat.ollama.dialect import OLLAMA_API, PREFIX

router = APIRouter(prefix=PREFIX, tags=[OLLAMA_API.tag])

router.add_api_route("", models.is_running, methods=["GET", "HEAD"], include_in_schema=False)
for module in (models, chat, embeddings):
    router.include_router(module.router)
