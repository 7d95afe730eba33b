"""What `bench/small_jobs.py` compares with: a Celery task that does nothing and keeps nothing.

    python -m bench.support.noop REDIS_URL PROCESSES

runs the worker. When it takes the last message, it notes so in Redis.
"""

import sys

from celery import Celery
from redis import Redis

TASK, END = "noop.run", "noop.end"
QUEUE = "noop"


def make_app(redis_url: str) -> Celery:
    app = Celery("noop", broker=redis_url, set_as_current=False)
    app.conf.update(task_ignore_result=True, task_default_queue=QUEUE)
    return app


def main() -> None:
    redis_url, processes = sys.argv[1:]
    app = make_app(redis_url)

    def run(number: int) -> None:
        """Nothing."""

    def end(number: int) -> None:
        Redis.from_url(redis_url).set(END, number)

    app.task(name=TASK)(run)
    app.task(name=END)(end)
    app.worker_main(
        ["worker", "--pool", "prefork", "--concurrency", processes, "--loglevel", "warning"]
    )


if __name__ == "__main__":
    main()
