"""The commands for running Sluice: `sluice up`, `down`, `status`, `logs`, `doctor`, `migrate`,
`queues`, `workers`.

The work is done elsewhere (`cli/stack/up.py`, `cli/doctor.py`, `shared/database/engine.py`). Each
command imports only the modules that it needs, so that the others start faster.
"""

import os
import sys
import time
from collections import deque
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, redirect_stdout
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO, Self

import click
from click.shell_completion import CompletionItem

from cli.connection import client_settings, connection
from cli.errors import Exit
from cli.options import (
    ListByDefault,
    complete_queues,
    connection_options,
    json_option,
    served_models,
    target,
    with_client,
)
from cli.terminal.output import (
    ago,
    clean,
    print_json,
    print_json_line,
    print_table,
    print_text,
    say,
    write_text,
)
from cli.values import Number
from shared.config import load_settings
from shared.errors import Unavailable
from shared.models.providers import SERVED_UNLESS_NAMED
from sluice import ApiError, Client, ConnectionFailed, NotFound, Queue, Worker

if TYPE_CHECKING:
    from cli.stack.stackfile import PartStatus, Stack


# `sluice queues` and `sluice workers`: how busy the system is; pausing and resuming.


@click.group(cls=ListByDefault)
def queues() -> None:
    """List, pause and resume queues (alone: list)."""


_names = click.argument(
    "names", metavar="QUEUE...", nargs=-1, required=True, shell_complete=complete_queues
)


@queues.command("list")
@with_client
def list_queues(client: Client, *, as_json: bool) -> int:
    """All queues: the steps that wait and run in each, and whether it is paused."""
    items = client.queues()
    if as_json:
        print_json({"items": items})
    else:
        show_queues(items)
    return 0


@queues.command()
@_names
@with_client
def pause(client: Client, *, names: tuple[str, ...], as_json: bool) -> int:
    """Start no more steps of these queues. What runs goes on, and jobs are still taken.

    \b
    Example:
      sluice queues pause generate
    """
    for name in names:
        client.pause(name)
    return _print_states(client, names, as_json)


@queues.command()
@_names
@with_client
def resume(client: Client, *, names: tuple[str, ...], as_json: bool) -> int:
    """Go on with paused queues."""
    for name in names:
        client.resume(name)
    return _print_states(client, names, as_json)


@click.command(short_help="List the workers.")
@with_client
def workers(client: Client, *, as_json: bool) -> int:
    """The workers that were seen lately: their queues and models, and when they were seen."""
    items = client.workers()
    if as_json:
        print_json({"items": items})
        return 0
    show_workers(items)
    if not items:
        say("No workers. `sluice up` starts some; `sluice worker --help` tells of more.")
    return 0


def show_queues(items: list[Queue]) -> None:
    print_table(
        ("queue", "queued", "running", "state"),
        [(q.name, q.queued, q.running, "paused" if q.paused else "") for q in items],
    )


def show_workers(items: list[Worker]) -> None:
    print_table(
        ("worker", "queues", "models", "slots", "last seen"),
        [
            (
                w.name,
                " ".join(w.queues),
                " ".join(w.models),
                w.concurrency,
                ago(w.last_seen_at) if w.alive else f"LOST {ago(w.last_seen_at)}",
            )
            for w in items
        ],
        flexible="models",
    )


def paused_remark(items: list[Queue]) -> str | None:
    """A sentence about paused queues; None if there are none."""
    names = " ".join(queue.name for queue in items if queue.paused)
    return f"Paused: {names}. `sluice queues resume {names}` goes on." if names else None


def _print_states(client: Client, names: tuple[str, ...], as_json: bool) -> int:
    items = [queue for queue in client.queues() if queue.name in names]
    if as_json:
        print_json({"items": items})
    else:
        for queue in items:
            print_text(f"{queue.name} is {'paused' if queue.paused else 'running'}")
    return 0


# `sluice logs`: the log files of the local stack, and new lines in them

FOLLOW_PAUSE_S = 0.25


def _complete_parts(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in _files() if name.startswith(incomplete)]


@click.command(short_help="Show the logs of the stack on this machine.")
@click.argument("names", nargs=-1, metavar="[PART]...", shell_complete=_complete_parts)
@click.option("--follow", "-f", is_flag=True, help="Go on with what is written, until Ctrl-C.")
@click.option(
    "--lines", "-n", type=click.IntRange(min=0), default=20, show_default=True, metavar="N",
    help="How many of the last lines of each part.",
)  # fmt: skip
@json_option
def logs(*, names: tuple[str, ...], follow: bool, lines: int, as_json: bool) -> int:
    """Show the logs of the stack on this machine: of each PART named, else of all.

    `sluice status` names the parts. With --json each line is a document.

    \b
    Examples:
      sluice logs api -n 100
      sluice logs -f generate-1 cpu-1
    """
    files = _files()
    if unknown := [name for name in names if name not in files]:
        parts = ", ".join(files) or "none; nothing has run there yet"
        raise NotFound(
            f"There is no log of {', '.join(unknown)} under {_log_folder()}. "
            f"Parts with one: {parts}."
        )
    if not files:
        raise NotFound(f"There are no logs under {_log_folder()}: no stack has run there.")
    shown = names or tuple(files)
    prefix_cells = max(map(len, shown)) if len(shown) > 1 else 0
    with ExitStack() as stack:
        tails = {name: stack.enter_context(_Tail(files[name])) for name in shown}
        for name, tail in tails.items():
            for line in tail.last(lines):
                _show(name, line, prefix_cells, as_json)
        while follow:
            fresh = [(name, line) for name, tail in tails.items() for line in tail.new()]
            for name, line in fresh:
                _show(name, line, prefix_cells, as_json)
            if not fresh:
                time.sleep(FOLLOW_PAUSE_S)
    return 0


class _Tail:
    """A growing log file. A full one is renamed, and a new one begins."""

    def __init__(self, path: Path) -> None:
        self._path = path
        self._file: BinaryIO = path.open("rb")
        self._rest = b""

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def last(self, number: int) -> Sequence[str]:
        return list(deque(self._whole_lines(), maxlen=number))

    def new(self) -> Sequence[str]:
        lines = list(self._whole_lines())
        if not lines and self._is_replaced():
            self._file.close()
            self._file, self._rest = self._path.open("rb"), b""
            lines = list(self._whole_lines())
        return lines

    def _is_replaced(self) -> bool:
        try:
            return self._path.stat().st_ino != os.fstat(self._file.fileno()).st_ino
        except OSError:
            return False  # between the renaming and the new file

    def _whole_lines(self) -> Iterator[str]:
        while data := self._file.readline():
            self._rest += data
            if self._rest.endswith(b"\n"):
                yield self._rest[:-1].decode("utf-8", "replace")
                self._rest = b""


def _show(name: str, line: str, prefix_cells: int, as_json: bool) -> None:
    if as_json:
        print_json_line({"part": name, "line": line})
    elif prefix_cells:
        write_text(f"{name:<{prefix_cells}} | {clean(line)}\n")
    else:
        write_text(f"{clean(line)}\n")


def _log_folder() -> Path:
    return client_settings().home_path / "logs"


def _files() -> dict[str, Path]:
    """The current log file of each part, by the part's name."""
    return {path.stem: path for path in sorted(_log_folder().glob("*.log"))}


@click.command()
@click.option("--cpu-workers", type=click.IntRange(min=0), default=1, show_default=True)
@click.option("--gpu-workers", type=click.IntRange(min=0), default=1, show_default=True,
              help="Generation workers; they run without a GPU, too.")  # fmt: skip
@click.option("--model", "models", multiple=True, metavar="REFERENCE", callback=served_models,
              help=f"What these serve; may be repeated. Else {SERVED_UNLESS_NAMED}.")  # fmt: skip
@click.option("--device", metavar="DEVICE", help="auto, cpu, cuda, cuda:1, …; with auto several "
              "workers share out the GPUs.")  # fmt: skip
@click.option("--detach", "-d", is_flag=True, help="Leave it running in the background.")
@json_option
def up(
    *,
    cpu_workers: int,
    gpu_workers: int,
    models: tuple[str, ...],
    device: str | None,
    detach: bool,
    as_json: bool,
) -> int:
    """Start everything on this machine, and stay until Ctrl-C.

    With --json stdout gets one document, as soon as all is ready; the log goes to stderr.

    \b
    Examples:
      sluice up --detach
      sluice up --model hf/Qwen/Qwen3-4B-Instruct-2507 --gpu-workers 2
    """
    from cli.stack.up import run_stack

    results = sys.stdout

    def print_stack(stack: "Stack") -> None:
        with redirect_stdout(results):
            print_json_line({"url": stack.api_url, "home": str(stack.home), "pid": stack.pid})

    started = partial(
        run_stack,
        load_settings(),
        cpu_workers=cpu_workers,
        gpu_workers=gpu_workers,
        models=models,
        device=device,
        detach=detach,
    )
    if not as_json:
        return started()
    with redirect_stdout(sys.stderr):
        return started(on_ready=print_stack)


@click.command()
@click.option("--timeout", "timeout_s", type=Number(min=0, min_open=True), default=60.0,
              show_default=True, metavar="SECONDS", help="Then kill what is left.")  # fmt: skip
@json_option
def down(*, timeout_s: float, as_json: bool) -> int:
    """Stop the stack on this machine. Its data stays."""
    from cli.stack.up import stop_stack

    home = client_settings().home_path
    stopped = stop_stack(home, timeout_s)
    if as_json:
        print_json({"stopped": stopped, "home": str(home)})
    else:
        say("Stopped." if stopped else f"Nothing runs under {home}.")
    return Exit.OK


@click.command()
@connection_options
@json_option
def status(*, url: str | None, api_key: str | None, as_json: bool) -> int:
    """What runs, and whether it is ready for work."""
    url, api_key = target(url, api_key)
    parts = [] if url or client_settings().url else _parts()
    try:
        with Client(*connection(url, api_key), notify=say) as client:
            document = _api_status(client)
    except ConnectionFailed:
        # The states of the parts say why the API does not answer.
        if as_json and parts:
            print_json({"ready": False, "parts": _part_rows(parts)})
        elif parts:
            _show_parts(parts)
        raise
    document["parts"] = _part_rows(parts)
    if as_json:
        print_json(document)
    else:
        _show_status(document)
        _show_parts(parts)
    return Exit.OK if document["ready"] else Exit.FAILED


@click.command()
@connection_options
@json_option
def doctor(*, url: str | None, api_key: str | None, as_json: bool) -> int:
    """Check every part, and say what to do about what is wrong."""
    from cli.doctor import check

    url, api_key = target(url, api_key)
    checks = check(load_settings(), url=url, api_key=api_key)
    if as_json:
        print_json(
            {
                "ok": all(c.ok for c in checks),
                "checks": [
                    {"name": c.name, "ok": c.ok, "detail": c.detail, "fix": c.fix} for c in checks
                ],
            }
        )
    else:
        for c in checks:
            print_text(f"{'ok ' if c.ok else 'BAD'}  {c.name}: {c.detail}")
            if not c.ok and c.fix:
                print_text(f"     -> {c.fix}")
    return Exit.OK if all(c.ok for c in checks) else Exit.FAILED


@click.command()
@json_option
def migrate(*, as_json: bool) -> int:
    """Bring the database at SLUICE_DATABASE_URL up to date."""
    from sqlalchemy.exc import OperationalError

    from shared.database.engine import upgrade

    url = load_settings().require_database_url()
    try:
        with redirect_stdout(sys.stderr):
            upgrade(url)
    except OperationalError as error:
        reason = str(error.orig).strip().splitlines()[0]
        raise Unavailable(f"Cannot reach the database at SLUICE_DATABASE_URL: {reason}") from error
    if as_json:
        print_json({"migrated": True})
    else:
        say("The database is up to date.")
    return Exit.OK


def _parts() -> "list[PartStatus]":
    if sys.platform != "linux":
        return []
    from cli.stack.stackfile import find_stack, stack_status

    stack = find_stack(client_settings().home_path)
    return [] if stack is None else stack_status(stack)


def _api_status(client: Client) -> dict[str, Any]:
    ready = client.ready()
    document: dict[str, Any] = {"url": client.url, "ready": ready.ready, "checks": ready.checks}
    try:
        document |= {"queues": client.queues(), "workers": client.workers()}
    except ApiError as error:
        # Without the database there are no counts; the checks above say so.
        if error.status < 500 or ready.ready:
            raise
        document |= {"queues": [], "workers": []}
    return document


def _show_status(document: dict[str, Any]) -> None:
    print_text(f"{document['url']} is {'ready' if document['ready'] else 'NOT ready'}")
    for name, check in document["checks"].items():
        detail = check.detail or ("ready" if check.ok else "not ready")
        print_text(f"  {'ok ' if check.ok else 'BAD'}  {name}: {detail}")
    if remark := paused_remark(document["queues"]):
        print_text(remark)
    print_text()
    show_queues(document["queues"])
    if document["workers"]:
        print_text()
    show_workers(document["workers"])


def _show_parts(parts: "list[PartStatus]") -> None:
    if not parts:
        return
    print_text()
    print_table(
        ("part", "state", "pid", "restarts", "log"),
        [
            (p.name, f"{p.state} {p.detail}".strip(), str(p.pid or ""), p.restarts, p.log)
            for p in parts
        ],
        flexible="log",
    )


def _part_rows(parts: "list[PartStatus]") -> list[dict[str, Any]]:
    return [
        {
            "name": p.name,
            "state": p.state,
            "pid": p.pid,
            "port": p.port,
            "restarts": p.restarts,
            "ready": p.ready,
            "detail": p.detail,
            "log": str(p.log),
        }
        for p in parts
    ]
