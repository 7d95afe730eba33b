"""`sluice collections`: list, make, show and delete collections."""

import click

from cli.options import ListByDefault, complete_collections, confirm, with_client
from cli.terminal.output import plural, print_fields, print_json, print_table, print_text, say
from cli.terminal.progress import waiting
from sluice import Client, Collection


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
        ("name", "documents", "chunks", "model", "created"),
        [(c.name, c.documents, c.chunks, c.embedding_model, c.created_at) for c in items],
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
            ("documents", collection.documents),
            ("chunks", collection.chunks),
        ]
    )
    return 0
