"""The routes of the dialect OpenAI: a line for each module that has some."""

from fastapi import APIRouter

from api.compat.openai import (
    audio,
    batches,
    chat,
    completions,
    conversations,
    embeddings,
    files,
    models,
    rerank,
    responses,
    vector_stores,
)
from api.compat.openai.dialect import OPENAI, PREFIX

router = APIRouter(prefix=PREFIX, tags=[OPENAI.tag])

for module in (
    models,
    chat,
    completions,
    embeddings,
    audio,
    rerank,
    files,
    batches,
    vector_stores,
    responses,
    conversations,
):
    router.include_router(module.router)
