"""`python -m workers cpu|generate|beat`: one worker process, or the clock of the sweeper."""

import argparse
import logging
import os
import socket
import sys
import warnings

from celery.platforms import SecurityWarning

from shared.config import Settings, load_settings
from shared.errors import ConfigurationError
from shared.logs import set_up_logging
from workers.app import (
    CPU_QUEUES,
    GENERATE_QUEUES,
    PREFORK,
    THREADS,
    make_beat_app,
    make_worker_app,
)

NO_TELEMETRY = {
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "TOKENIZERS_PARALLELISM": "false",
}


def main() -> int:
    arguments = _parse()
    # Celery warns root because of pickle; messages here are JSON without arguments of weight.
    warnings.simplefilter("ignore", SecurityWarning)
    os.environ.update(NO_TELEMETRY)  # before any library that would phone home is imported
    try:
        settings = load_settings()
        set_up_logging(settings.log_level)
        settings.require_database_url()
        if arguments.role == "beat":
            return _beat(settings)
        return _work(settings, arguments)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("cpu", "generate"):
        worker = roles.add_parser(role)
        worker.add_argument("--name", default=f"{role}@{socket.gethostname()}")
        worker.add_argument("--concurrency", type=int)
    roles.add_parser("beat")
    return parser.parse_args()


def _work(settings: Settings, arguments: argparse.Namespace) -> int:
    # Imported late: the tables decide what a worker has to load, and telemetry is off by now.
    from workers.handlers import cpu_handlers, generate_handlers

    is_cpu = arguments.role == "cpu"
    queues = CPU_QUEUES if is_cpu else GENERATE_QUEUES
    if is_cpu:
        settings.require_chroma_url()
    default = settings.worker_concurrency if is_cpu else settings.generate_concurrency
    app = make_worker_app(
        settings,
        cpu_handlers() if is_cpu else generate_handlers(),
        name=arguments.name,
        queues=queues,
        pool=PREFORK if is_cpu else THREADS,
        concurrency=arguments.concurrency or default,
    )
    logging.getLogger(__name__).info("worker %s: queues %s", arguments.name, ", ".join(queues))
    worker = app.Worker(
        hostname=arguments.name,
        queues=[queue.value for queue in queues],
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _beat(settings: Settings) -> int:
    make_beat_app(settings).Beat(loglevel=settings.log_level, quiet=True).run()
    return 0


if __name__ == "__main__":
    sys.exit(main())
