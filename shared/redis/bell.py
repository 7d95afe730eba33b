"""The doorbell: how work is announced, never where it is kept.

A message says "there is work in this queue" and nothing else; Postgres says which. Losing or
doubling messages is therefore harmless. This module never touches the database.
"""

import json
from collections.abc import Sequence
from typing import Any
from uuid import uuid4

from celery import Celery
from kombu.connection import Connection
from kombu.entity import Queue as KombuQueue
from kombu.messaging import Producer
from redis import Redis
from redis.backoff import NoBackoff
from redis.exceptions import ConnectionError as RedisConnectionError
from redis.retry import Retry

from shared.config import ConnectionSettings
from shared.vocabulary import Queue

RING = "sluice.ring"


def list_of(queue: str, route: str = "") -> str:
    """The Redis list in which messages for a queue wait; each route of a queue has one."""
    return f"{queue}.{route}" if route else queue


def queue_of(list_: str) -> Queue:
    return Queue(list_.partition(".")[0])


def route_in(list_: str) -> str:
    """The route whose list it is; empty for that of a whole queue."""
    return list_.partition(".")[2]


def make_celery(settings: ConnectionSettings, lists: Sequence[str] = ()) -> Celery:
    """The Celery application of publishers and workers alike: JSON only, no result backend.

    Early acknowledgement and no retries of Celery's own: recovery is the ledger's (leases), so
    that there is one retry policy. `lists` are those of routes, for workers that listen at them.
    """
    app = Celery("sluice", broker=settings.require_redis_url(), set_as_current=False)
    app.conf.update(
        accept_content=["json"],
        task_serializer="json",
        task_ignore_result=True,
        task_acks_late=False,
        task_create_missing_queues=False,
        task_queues=[KombuQueue(name) for name in (*(queue.value for queue in Queue), *lists)],
        task_default_queue=Queue.CONTROL.value,
        task_publish_retry=False,
        worker_prefetch_multiplier=1,
        worker_send_task_events=False,
        worker_enable_remote_control=False,
        worker_hijack_root_logger=False,
        # Concerns late acknowledgement only, which is off; unset, it warns at each lost connection.
        worker_cancel_long_running_tasks_on_connection_loss=True,
        broker_connection_timeout=settings.connect_timeout_s,
        broker_connection_retry_on_startup=True,
        broker_connection_max_retries=None,
        broker_transport_options={
            "socket_timeout": settings.request_timeout_s,
            "socket_connect_timeout": settings.connect_timeout_s,
            "socket_keepalive": True,
            "health_check_interval": 10,
            "global_keyprefix": "",
            # Messages are not noted in Redis as unacknowledged: they may be lost, the sweeper rings
            # again. With notes, a worker that has fetched all it may when Redis goes away cannot
            # acknowledge, never fetches again, and so never notices that it must reconnect.
            "ack_emulation": False,
        },
    )
    return app


class Bell:
    """Rings for work and counts the messages that still wait.

    A ring is one LPUSH: kombu's own way takes twenty times as long, and tries for minutes to
    reach a Redis that is down. The messages are nevertheless Celery's own (`_caught`).
    """

    def __init__(self, celery: Celery, redis: Redis, *, limit_messages: int, keep_s: int) -> None:
        self._celery = celery
        self._limit_messages = limit_messages
        self._keep_s = keep_s
        self._redis = redis
        self._templates: dict[str, dict[str, Any]] = {}

    def ring(self, list_: str, times: int = 1) -> None:
        """Publish `times` messages. Raises redis' errors.

        A list is cut to the newest `limit_messages`, which all workers together do not use up
        before the sweeper rings again. That of a route expires, for its workers may be gone for
        good.
        """
        if times < 1:
            return
        times = min(times, self._limit_messages)
        length = self._redis.lpush(list_, *(self._message(list_) for _ in range(times)))
        assert isinstance(length, int)
        if length > self._limit_messages:
            self._redis.ltrim(list_, 0, self._limit_messages - 1)
        if length == times and route_in(list_):  # it is new
            self._redis.expire(list_, self._keep_s)

    def take(self, list_: str, limit: int) -> int:
        """Take up to so many messages off the list, the newest; how many there were.

        Raises redis' errors.
        """
        with self._redis.pipeline() as pipe:
            pipe.llen(list_)
            pipe.ltrim(list_, limit, -1)
            length, _ = pipe.execute()
        return min(int(length), limit)

    def _message(self, queue: str) -> str:
        if queue not in self._templates:
            self._templates[queue] = _caught(self._celery, queue)
        template, task_id = self._templates[queue], str(uuid4())
        new_headers = {"id": task_id, "root_id": task_id}
        new_properties = {"correlation_id": task_id, "delivery_tag": str(uuid4())}
        return json.dumps(
            template
            | {"headers": template["headers"] | new_headers}
            | {"properties": template["properties"] | new_properties}
        )

    def close(self) -> None:
        self._celery.close()
        self._redis.close()

    def waiting(self, list_: str) -> int:
        """How many messages lie in the list."""
        return self.lengths([list_])[list_]

    def lengths(self, lists: Sequence[str]) -> dict[str, int]:
        """How many messages lie in each list, by one request."""
        with self._redis.pipeline(transaction=False) as pipe:
            for name in lists:
                pipe.llen(name)
            return dict(zip(lists, pipe.execute(), strict=True))


def _caught(celery: Celery, queue: str) -> dict[str, Any]:
    """A message as Celery publishes it, caught in kombu's in-memory broker."""
    with Connection("memory://") as connection, connection.channel() as channel:
        producer = Producer(channel, serializer="json")
        bare = queue_of(queue).value  # the worker claims from the queue, whatever route it rang at
        celery.send_task(RING, args=(bare,), queue=bare, producer=producer)
        message = channel._get(bare)
    assert isinstance(message, dict)
    return message


def make_redis(settings: ConnectionSettings) -> Redis:
    """A client that soon gives up: what it carries is no truth, and nobody may wait for it."""
    return Redis.from_url(
        settings.require_redis_url(),
        socket_timeout=settings.connect_timeout_s,
        socket_connect_timeout=settings.connect_timeout_s,
        health_check_interval=10,
        decode_responses=True,
        # Once more, for a pooled connection that a restart of Redis has broken.
        retry=Retry(NoBackoff(), 1, supported_errors=(RedisConnectionError,)),
    )
