"""The health check of a container: ends with 0 when its process does its work, else says why not.

`health.py api` asks the API; `health.py worker` looks whether a worker of this host has reported
lately; `health.py beat` whether the sweeper has run or its bell at least waits to be heard. It
changes nothing.
"""

import socket
import sys
import urllib.request
from datetime import timedelta

TIMEOUT_S = 4
SWEEPS_MISSED = 30


def api() -> str | None:
    from shared.config import load_settings

    port = load_settings().api_port
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/healthz", timeout=TIMEOUT_S):
        return None  # urlopen raises for any status that is not a success


def worker() -> str | None:
    from sqlalchemy import select

    from shared.config import load_settings
    from shared.db import make_engine
    from shared.estimates import alive
    from shared.models import Worker

    settings = load_settings()
    living = select(Worker.name).where(
        Worker.hostname == socket.gethostname(), alive(settings.worker_heartbeat_s)
    )
    with make_engine(settings).connect() as connection:
        if connection.execute(living).first() is None:
            return "no worker of this host has reported lately"
    return None


def beat() -> str | None:
    from sqlalchemy import func, select

    from shared.config import load_settings
    from shared.db import make_engine
    from shared.models import QueueState
    from shared.queue import Queue, make_redis

    settings = load_settings()
    # The bell waits where all CPU workers are busy or gone, which is not beat's fault.
    if make_redis(settings).llen(Queue.CONTROL):
        return None
    limit = timedelta(seconds=SWEEPS_MISSED * settings.sweep_interval_s)
    lately = select(QueueState.name).where(QueueState.swept_at > func.now() - limit)
    with make_engine(settings).connect() as connection:
        if connection.execute(lately).first() is None:
            return f"the sweeper has not run within {limit}, and no bell waits"
    return None


CHECKS = {"api": api, "worker": worker, "beat": beat}


def main(arguments: list[str]) -> int:
    if len(arguments) != 1 or arguments[0] not in CHECKS:
        print(f"usage: health.py {'|'.join(CHECKS)}", file=sys.stderr)
        return 2
    try:
        reason = CHECKS[arguments[0]]()
    except Exception as error:  # Whatever it is, the container is not healthy.
        reason = f"{type(error).__name__}: {error}"
    if reason is not None:
        print(reason, file=sys.stderr)
    return 0 if reason is None else 1


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
