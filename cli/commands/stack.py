"""`sluice up`, `down`, `status`, `doctor`, `migrate`: the parts rather than the jobs.

What these do is elsewhere (`cli/stack/up.py`, `cli/doctor.py`, `shared/database/engine.py`), and
imported only by the command that needs it: the others start faster without.
"""

import sys
from contextlib import redirect_stdout
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from cli.commands.queues import paused_remark, show_queues, show_workers
from cli.connection import client_settings, connection
from cli.errors import Exit
from cli.options import connection_options, json_option, served_models, target
from cli.terminal.output import print_json, print_json_line, print_table, print_text, say
from shared.config import load_settings
from shared.errors import Unavailable
from shared.providers import SERVED_UNLESS_NAMED
from sluice import ApiError, Client, ConnectionFailed

if TYPE_CHECKING:
    from cli.stack.stackfile import PartStatus, Stack


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

    def tell(stack: "Stack") -> None:
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
        return started(on_ready=tell)


@click.command()
@click.option("--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=60.0,
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
            document = _of_api(client)
    except ConnectionFailed:
        # The parts say why; the error alone would not.
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


def _of_api(client: Client) -> dict[str, Any]:
    ready = client.ready()
    document: dict[str, Any] = {"url": client.url, "ready": ready.ready, "checks": ready.checks}
    try:
        document |= {"queues": client.queues(), "workers": client.workers()}
    except ApiError as error:
        # With the database away there is nothing to count; the checks above say so.
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
