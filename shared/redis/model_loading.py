"""Which models are being loaded at this moment, for callers who do not want to wait for one.

A worker announces a model when it begins to load it, tells the jobs that wait for it (an event
`state` with `Loading.event`), and takes the announcement back when the model is loaded. The API
looks for one before it submits and at each update of a job. It is never the truth: what Redis
does not take or return is as if no model were loading, and what a worker that died has
announced ends by itself.
"""

import json
import logging
from dataclasses import dataclass
from typing import Any

import redis.asyncio
from redis import Redis
from redis.exceptions import RedisError

log = logging.getLogger(__name__)

KEEP_FACTOR = 2
KEEP_S = 30
"""An announcement ends this long after the estimate, times the factor: loading may be slower."""
LEAST_S = 1.0
"""What is left where the estimate is over and the model still loads."""


@dataclass(frozen=True, kw_only=True)
class Loading:
    """A model that is being loaded, and how long that takes by estimate."""

    model: str
    estimated_s: float

    def event(self) -> dict[str, Any]:
        """The data of the event `state` that jobs get which wait for the model."""
        return {"state": "running", "loading_model": self.model, "estimated_s": self.estimated_s}


def key(model: str) -> str:
    return f"sluice:hf:loading:{model}"


def announce(redis: Redis, loading: Loading) -> None:
    """Called by a worker that begins to load."""
    keep_s = int(KEEP_FACTOR * loading.estimated_s) + KEEP_S
    # What has passed of it tells the age: clocks of different machines are not compared.
    value = {"estimated_s": loading.estimated_s, "keep_s": keep_s}
    try:
        redis.set(key(loading.model), json.dumps(value), ex=keep_s)
    except (RedisError, OSError) as error:
        log.warning("could not announce that %s is loading: %s", loading.model, error)


def done(redis: Redis, model: str) -> None:
    """Called when the model is loaded, or cannot be."""
    try:
        redis.delete(key(model))
    except (RedisError, OSError) as error:
        log.warning("could not announce that %s is loaded: %s", model, error)


async def of(redis: redis.asyncio.Redis, model: str) -> Loading | None:
    """Whether a worker is loading the model, with the seconds that are left by its estimate."""
    try:
        async with redis.pipeline() as pipe:
            pipe.get(key(model))
            pipe.pttl(key(model))
            value, left_ms = await pipe.execute()
    except (RedisError, OSError):
        return None
    if value is None:
        return None
    announced = json.loads(value)
    left_s = announced["estimated_s"] - (announced["keep_s"] - left_ms / 1000)
    return Loading(model=model, estimated_s=round(max(LEAST_S, left_s), 1))
