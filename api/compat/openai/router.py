"""The routes of the dialect OpenAI: a line for each module that has some."""

from fastapi import APIRouter

from api.compat.openai import models
from api.compat.openai.dialect import OPENAI, PREFIX

router = APIRouter(prefix=PREFIX, tags=[OPENAI.tag])

for module in (models,):
    router.include_router(module.router)
