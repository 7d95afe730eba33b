"""The health check of a container: ends with 0 when its process does its work, else says why not.

`health.py api` asks the API; `health.py worker` looks whether a worker of this host has reported
lately; `health.py beat` that, and whether the sweeper has run. It changes nothing.
"""

import socket
import sys
import urllib.request

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
    from shared.database.engine import make_engine
    from shared.jobs.queues import alive
    from shared.tables import Worker

    settings = load_settings()
    living = select(Worker.name).where(
        Worker.hostname == socket.gethostname(), alive(settings.worker_heartbeat_s)
    )
    with make_engine(settings).connect() as connection:
        if connection.execute(living).first() is None:
            return "no worker of this host has reported lately"
    return None


def beat() -> str | None:
    from shared.config import load_settings
    from shared.database.engine import make_engine
    from shared.database.transaction import make_sessions
    from shared.jobs.sweeps import age_s

    settings = load_settings()
    with make_sessions(make_engine(settings))() as session:
        age = age_s(session)
    limit_s = SWEEPS_MISSED * settings.sweep_interval_s
    if age is None or age > limit_s:
        return f"the sweeper has not run within {limit_s:g} s"
    return worker()


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
