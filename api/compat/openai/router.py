"""The routes of the dialect OpenAI: a line for each module that has some."""

from fastapi import APIRouter

from api.compat.openai import files, models, vector_stores
from api.compat.openai.dialect import OPENAI, PREFIX

router = APIRouter(prefix=PREFIX, tags=[OPENAI.tag])

for module in (models, files, vector_stores):
    router.include_router(module.router)
