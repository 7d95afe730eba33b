"""`sluice queues` and `sluice workers`: how busy the system is; pausing and resuming."""

import click

from cli.options import ListByDefault, complete_queues, with_client
from cli.terminal.output import ago, print_json, print_table, print_text, say
from sluice import Client, Queue, Worker


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
    """What is paused, and how it goes on; None where nothing is."""
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
