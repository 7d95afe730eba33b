"""`sluice collections`: list, make, show and delete collections."""

from typing import Any

import click

from cli.commands.jobs import show_job
from cli.errors import Interrupted, exit_of_state
from cli.options import ListByDefault, complete_collections, confirm, with_client
from cli.terminal.output import plural, print_fields, print_json, print_table, print_text, say
from cli.terminal.progress import waiting, watch_job
from sluice import Client, Collection, State


@click.group(cls=ListByDefault)
def collections() -> None:
    """List, create, show and delete collections (alone: list)."""


@collections.command("list")
@with_client
def list_collections(client: Client, *, as_json: bool) -> int:
    """All collections with their counts."""
    items = list(client.collections())
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("name", "documents", "chunks", "model", "store", "created"),
        [
            (c.name, c.documents, c.chunks, c.embedding_model, c.store or "", c.created_at)
            for c in items
        ],
        flexible="model",
    )
    if not items:
        say("No collections. `sluice ingest PATHS --collection NAME` makes one.")
    return 0


@collections.command()
@click.argument("name")
@click.option("--embedding-model", metavar="NAME", help="Else the server's default.")
@click.option("--dimension", type=click.IntRange(min=1), help="Must be the model's own.")
@click.option("--distance", metavar="NAME", help="Such as cosine.")
@with_client
def create(
    client: Client,
    *,
    name: str,
    embedding_model: str | None,
    dimension: int | None,
    distance: str | None,
    as_json: bool,
) -> int:
    """Make a collection. The same again changes nothing; a different one is refused.

    \b
    Example:
      sluice collections create rules-ko \\
        --embedding-model intfloat/multilingual-e5-small
    """
    collection = client.put_collection(
        name, embedding_model=embedding_model, dimension=dimension, distance=distance
    )
    return _print_collection(collection, as_json)


@collections.command()
@click.argument("name", shell_complete=complete_collections)
@with_client
def show(client: Client, *, name: str, as_json: bool) -> int:
    """One collection."""
    return _print_collection(client.collection(name), as_json)


@collections.command()
@click.argument("name", shell_complete=complete_collections)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def delete(client: Client, *, name: str, yes: bool, as_json: bool) -> int:
    """Delete a collection with its documents, their text and their vectors."""
    # Not with --yes: an interrupted deletion has hidden the collection, and may be repeated.
    if not yes:
        count = client.collection(name).documents
        confirm(f"Delete {name} with {plural(count, 'document')}?")
    with waiting(f"Deleting {name}") as show:
        job = client.delete_collection(name, on_waiting=show)
    if as_json:
        print_json(job)
    else:
        removed = job.result or {}
        print_text(
            f"Deleted {name}: {plural(removed.get('documents', 0), 'document')}, "
            f"{plural(removed.get('chunks', 0), 'chunk')}."
        )
    return 0


@collections.command()
@click.argument("name", shell_complete=complete_collections)
@click.option("--model", metavar="NAME", help="Of the new vectors; else the collection's own.")
@click.option("--rollback", is_flag=True, help="Go back to the vectors before, brought up to date.")
@click.option("--min-overlap", type=click.FloatRange(0, 1), metavar="SHARE",
              help="Stop if both models have less in common.")  # fmt: skip
@click.option("--min-recall", type=click.FloatRange(0, 1), metavar="SHARE",
              help="Stop if the new vectors find less.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Follow it to its end; the exit code tells how it did.")
@with_client
def rebuild(
    client: Client,
    *,
    name: str,
    model: str | None,
    rollback: bool,
    min_overlap: float | None,
    min_recall: float | None,
    wait: bool,
    as_json: bool,
) -> int:
    """Make the vectors of a collection anew, while it is searched and filled.

    With another model it changes to that; with its own it repairs a store that was lost.

    \b
    Examples:
      sluice collections rebuild rules-ko --model intfloat/multilingual-e5-small --wait
      sluice collections rebuild rules-ko --rollback --wait
    """
    job = client.rebuild_collection(
        name,
        model=model,
        rollback=rollback,
        min_overlap=min_overlap,
        min_recall=min_recall,
        wait=False,
    )
    if wait:
        try:
            ended = client.wait(job.id) if as_json else watch_job(client, job)
        except KeyboardInterrupt:
            raise Interrupted(
                f"The job goes on. Cancel it with `sluice jobs cancel {job.id}`."
            ) from None
        if as_json:
            print_json(ended)
        elif ended.state == State.SUCCEEDED:
            _print_rebuild(ended.result or {})
        else:
            show_job(ended)
        return exit_of_state(ended.state)
    if as_json:
        print_json(job)
    else:
        print_text(job.id)
        say(f"Submitted. Follow it with `sluice jobs watch {job.id}`.")
    return 0


def _print_rebuild(result: dict[str, Any]) -> None:
    comparison = result.get("comparison") or {}
    k = comparison.get("k")
    print_fields(
        [
            ("name", result["collection"]),
            ("model", f"{result['embedding_model']} ({result['dimension']} dimensions)"),
            ("before", result["embedding_model_before"]),
            ("chunks", result["chunks"]),
            (f"overlap@{k}", comparison.get("overlap")),
            (f"recall@{k}", comparison.get("recall")),
            ("before that", comparison.get("recall_before")),
            ("rollback until", result.get("rollback_until")),
        ]
    )


def _print_collection(collection: Collection, as_json: bool) -> int:
    if as_json:
        print_json(collection)
        return 0
    dimension = collection.dimension or "as yet unknown"  # set by the first document
    print_fields(
        [
            ("name", collection.name),
            ("model", f"{collection.embedding_model} ({dimension} dimensions)"),
            ("distance", collection.distance),
            ("store", collection.store or "as yet unknown"),
            ("documents", collection.documents),
            ("chunks", collection.chunks),
        ]
    )
    return 0
