"""`python -m workers cpu|hf|generate|beat`: one worker process; beat sweeps and sends webhooks."""

import argparse
import ctypes
import logging
import os
import signal
import socket
import sys
import threading
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress

from celery import Celery, signals
from celery.platforms import SecurityWarning

from shared.config import Settings, load_settings, set_up_logging
from shared.errors import ConfigurationError, SluiceError
from shared.models.providers import (
    REFERENCE_FORMS,
    SERVED_UNLESS_NAMED,
    is_servable,
    route_of,
    served_unless_named,
)
from shared.redis.bell import list_of
from shared.vector_stores import configured_store, require_store
from shared.vocabulary import Queue
from workers.app import (
    CPU_QUEUES,
    GENERATE_QUEUES,
    HF_QUEUES,
    PREFORK,
    THREADS,
    WEBHOOK_QUEUES,
    failure_handlers,
    handlers_of,
    make_worker_app,
)
from workers.attempts.process import Process
from workers.generation.backends.interface import generators_of

NO_TELEMETRY = {
    "ANONYMIZED_TELEMETRY": "False",
    "HF_HUB_DISABLE_TELEMETRY": "1",
    "DO_NOT_TRACK": "1",
    "LANGSMITH_TRACING": "false",
    "LANGCHAIN_TRACING_V2": "false",
    "TOKENIZERS_PARALLELISM": "false",
}
FATAL = 70
"""The exit code of a worker whose device is broken, or whose part has died: whoever keeps it up
starts it anew."""
PR_SET_PDEATHSIG = 1


def main() -> int:
    arguments = _parse()
    # Celery warns root because of pickle; messages here are JSON without arguments of weight.
    warnings.simplefilter("ignore", SecurityWarning)
    os.environ.update(NO_TELEMETRY)  # before any library that would phone home is imported
    try:
        settings = load_settings()
        set_up_logging(settings.log_level)
        settings.require_database_url()
        configured_store(settings)
        if arguments.role == "beat":
            return _beat(settings, arguments)
        if arguments.role == "cpu":
            return _retrieve(settings, arguments)
        if arguments.role == "hf":
            return _run_tasks(settings, arguments)
        return _generate(settings, arguments)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    except SluiceError as error:
        print(f"error: {error}", file=sys.stderr)
        return 1


def _parse() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="python -m workers", description=__doc__)
    roles = parser.add_subparsers(dest="role", required=True)
    for role in ("cpu", "hf", "generate", "beat"):
        worker = roles.add_parser(role)
        worker.add_argument("--name", default=f"{role}@{socket.gethostname()}")
        worker.add_argument("--concurrency", type=int)
        if role == "generate":
            worker.add_argument(
                "--model", action="append", metavar="REFERENCE",
                help="serve this model reference, or all models of a provider (repeatable); "
                f"without any: {SERVED_UNLESS_NAMED}",
            )  # fmt: skip
        if role in ("hf", "generate"):
            worker.add_argument("--device", help="auto, cpu, cuda, cuda:1, ...")
    return parser.parse_args()


def _retrieve(settings: Settings, arguments: argparse.Namespace) -> int:
    from workers.retrieval.embed import import_embedder
    from workers.retrieval.servers import import_store

    store = require_store(settings)
    # Before the fork, so that the children share the libraries.
    import_store(store.type_)
    import_embedder(settings.embedding_model)
    # A GPU is for the workers that are started for it.
    concurrency = arguments.concurrency or settings.worker_concurrency
    settings = settings.model_copy(update={"hf_device": "cpu", "worker_concurrency": concurrency})
    handlers = handlers_of(CPU_QUEUES)
    queues: list[Queue] = [queue for queue in CPU_QUEUES if queue is not Queue.QUERY]

    def answer_queries() -> int:
        own = settings.model_copy(update={"worker_concurrency": settings.query_concurrency})
        app = make_worker_app(
            own,
            handlers,
            name=arguments.name,
            queues=[Queue.QUERY],
            announced=(),
            pool=PREFORK,
            concurrency=settings.query_concurrency,
        )
        return _run(app, own, arguments.name, [Queue.QUERY.value])

    with _beside(answer_queries) as has_died:
        app = make_worker_app(
            settings,
            handlers,
            name=arguments.name,
            queues=queues,
            announced=CPU_QUEUES,
            pool=PREFORK,
            concurrency=concurrency,
        )
        code = _run(app, settings, arguments.name, [queue.value for queue in queues])
    return FATAL if has_died.is_set() else code


@contextmanager
def _beside(run: Callable[[], int]) -> Iterator[threading.Event]:
    """Run it in a process of its own, which shares the libraries of this one, until the block ends.

    So searches do not wait until what takes seconds has ended. The event is set where that process
    ended before it was told to; then this one ends, too. Neither outlives the other.
    """
    parent, pid = os.getpid(), os.fork()
    if not pid:
        code = 1
        try:
            if sys.platform == "linux":
                ctypes.CDLL(None).prctl(PR_SET_PDEATHSIG, int(signal.SIGTERM), 0, 0, 0)
            if os.getppid() == parent:
                code = run()
        except BaseException:
            logging.getLogger(__name__).exception("the worker of queries failed")
        finally:
            os._exit(code)
    stopping, has_died = threading.Event(), threading.Event()

    def stop(**_: object) -> None:
        if not stopping.is_set():
            stopping.set()
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGTERM)

    def watch() -> None:
        _, status = os.waitpid(pid, 0)
        if not stopping.is_set():
            has_died.set()
            code = os.waitstatus_to_exitcode(status)
            logging.getLogger(__name__).error("the worker of queries ended (%s)", code)
            os.kill(parent, signal.SIGTERM)

    signals.worker_shutting_down.connect(stop, weak=False)
    watcher = threading.Thread(target=watch, name="queries", daemon=True)
    watcher.start()
    try:
        yield has_died
    finally:
        if not has_died.is_set():
            stop()
        watcher.join()


def _run_tasks(settings: Settings, arguments: argparse.Namespace) -> int:
    """Hugging Face tasks only. Models are loaded by the children, which alone touch the device."""
    concurrency = arguments.concurrency or 1
    changes = {
        "worker_concurrency": concurrency,
        "hf_device": arguments.device or settings.hf_device,
    }
    settings = settings.model_copy(update=changes)
    app = make_worker_app(
        settings,
        handlers_of(HF_QUEUES),
        name=arguments.name,
        queues=HF_QUEUES,
        pool=PREFORK,
        concurrency=concurrency,
    )
    return _run(app, settings, arguments.name, [queue.value for queue in HF_QUEUES])


def _generate(settings: Settings, arguments: argparse.Namespace) -> int:
    if arguments.device:
        settings = settings.model_copy(update={"generation_device": arguments.device})
    models = _models(settings, arguments.model)
    routes = list(dict.fromkeys(map(route_of, models)))
    fatal = threading.Event()

    def give_up() -> None:
        """The requests are handed back by now. Celery's own way out first, the hard one behind."""
        fatal.set()
        os.kill(os.getpid(), signal.SIGTERM)
        threading.Timer(settings.step_lease_s, os._exit, [FATAL]).start()

    process = Process(settings, arguments.name, routes=routes, on_fatal=give_up)
    for model in models:
        generators_of(process).prepare(model)  # a worker that is ready has its models loaded
    app = make_worker_app(
        settings,
        handlers_of(GENERATE_QUEUES),
        name=arguments.name,
        queues=GENERATE_QUEUES,
        pool=THREADS,
        concurrency=arguments.concurrency or settings.generate_concurrency,
        routes=routes,
        process=process,
    )
    lists = [list_of(queue, route) for queue in GENERATE_QUEUES for route in routes]
    code = _run(app, settings, arguments.name, lists)
    process.close()
    if fatal.is_set():
        os._exit(FATAL)  # what a broken device left behind must not delay the end
    return code


def _models(settings: Settings, references: Sequence[str] | None) -> list[str]:
    """The model references that a worker serves; a provider's name is all of its models."""
    for model in references or ():
        if not is_servable(model):
            raise ConfigurationError(f"--model {model}: a model reference is {REFERENCE_FORMS}.")
    return list(references or served_unless_named(settings))


def _run(app: Celery, settings: Settings, name: str, lists: list[str]) -> int:
    logging.getLogger(__name__).info("worker %s: queues %s", name, ", ".join(lists))
    worker = app.Worker(
        hostname=name,
        queues=lists,
        loglevel=settings.log_level,
        quiet=True,
        without_gossip=True,
        without_mingle=True,
        without_heartbeat=True,
    )
    worker.start()
    return int(worker.exitcode or 0)


def _beat(settings: Settings, arguments: argparse.Namespace) -> int:
    """The sweeper, in threads of its own; and beside it webhooks, in the threads of a worker."""
    from workers.sweep import Sweeper

    patience = {"database_lock_timeout_s": settings.sweep_lock_timeout_s}
    slow = Process(settings.model_copy(update=patience), arguments.name)
    limit_s = min(settings.sweep_limit_s, settings.database_statement_timeout_s)
    patience["database_statement_timeout_s"] = limit_s
    quick = Process(settings.model_copy(update=patience), arguments.name)
    sweeper = Sweeper(slow, failure_handlers(), quick=quick)
    process = Process(settings, arguments.name)
    concurrency = arguments.concurrency or settings.webhook_concurrency
    app = make_worker_app(
        settings,
        handlers_of(WEBHOOK_QUEUES),
        name=arguments.name,
        queues=WEBHOOK_QUEUES,
        pool=THREADS,
        concurrency=concurrency,
        process=process,
    )
    sweeper.start()  # it needs no Redis, and so does not wait for the worker
    try:
        return _run(app, settings, arguments.name, [queue.value for queue in WEBHOOK_QUEUES])
    finally:
        sweeper.stop()


if __name__ == "__main__":
    sys.exit(main())
