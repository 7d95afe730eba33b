"""News of models that load, where Redis does not take or tell them: as if there were none."""

import asyncio
import logging

import pytest
import redis.asyncio
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff

from shared.config import Settings
from shared.redis import events
from shared.redis.bell import make_redis
from shared.redis.events import Loading
from tests.servers import free_port

MODEL = "owner/model"


@pytest.fixture
def port() -> int:
    """Where no Redis is."""
    return free_port()


def test_a_worker_is_not_stopped(port: int, caplog: pytest.LogCaptureFixture) -> None:
    settings = Settings(_env_file=None, redis_url=f"redis://127.0.0.1:{port}/0")
    with (
        make_redis(settings) as client,
        caplog.at_level(logging.WARNING, "shared.redis.events"),
    ):
        events.announce(client, Loading(model=MODEL, estimated_s=20))
        events.done(client, MODEL)
    assert [MODEL in record.getMessage() for record in caplog.records] == [True, True]


async def _loading(port: int) -> Loading | None:
    retry = Retry(NoBackoff(), 0)
    async with redis.asyncio.Redis(host="127.0.0.1", port=port, retry=retry) as client:
        return await events.of(client, MODEL)


def test_no_model_is_announced(port: int) -> None:
    assert asyncio.run(_loading(port)) is None
