"""Logging: one line an event on standard error, with time, level and origin."""

import logging
import sys

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
QUIET = (
    "alembic.runtime",
    "celery.app.trace",  # a line for each ring
    "celery.beat",
    "celery.worker.request",
    "celery.worker.strategy",
    "chromadb",
    "filelock",
    "httpcore",
    "httpx",
    "sentence_transformers",
    "urllib3",
)


def set_up_logging(level: str) -> None:
    """Set up the root logger; libraries that log each request speak from WARNING up."""
    logging.basicConfig(level=level, format=FORMAT, stream=sys.stderr, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)
