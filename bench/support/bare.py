"""What `bench/submit.py` compares with: the thinnest API over Celery, which keeps no record.

`uvicorn --factory bench.support.bare:create_app`, with SLUICE_REDIS_URL set.
"""

from typing import Any

from celery import Celery
from fastapi import FastAPI
from pydantic import BaseModel

from shared.config import load_settings


class Job(BaseModel):
    kind: str
    input: dict[str, Any]


def create_app() -> FastAPI:
    celery = Celery("bare", broker=load_settings().require_redis_url(), set_as_current=False)
    celery.conf.task_ignore_result = True

    def run(kind: str, input: dict[str, Any]) -> None:
        """Nobody runs it; only submitting is measured."""

    task = celery.task(name="bare.run")(run)
    app = FastAPI()

    @app.post("/v1/jobs", status_code=202)
    def submit(job: Job) -> dict[str, str]:
        return {"id": task.apply_async(args=(job.kind, job.input)).id}

    return app
