"""`sluice documents`: list, show and delete the documents of a collection."""

import itertools

import click

from cli.options import (
    ListByDefault,
    complete_collections,
    complete_documents,
    confirm,
    with_client,
)
from cli.terminal.output import print_fields, print_json, print_table, print_text, say
from cli.terminal.progress import waiting
from sluice import Client, Document, NotFound


@click.group(cls=ListByDefault)
def documents() -> None:
    """List, show and delete documents (alone: list).

    An ID may be shortened to its first digits, as long as they fit one document only.
    """


_collection = click.option(
    "--collection",
    "-c",
    metavar="NAME",
    shell_complete=complete_collections,
    help="With it, documents may be given by their source.",
)


@documents.command("list")
@click.option(
    "--collection", "-c", required=True, metavar="NAME", shell_complete=complete_collections
)
@click.option("--limit", type=click.IntRange(min=1), help="Else all.")
@with_client
def list_documents(client: Client, *, collection: str, limit: int | None, as_json: bool) -> int:
    """The documents of a collection."""
    items = list(itertools.islice(client.documents(collection), limit))
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("id", "source", "chunks", "bytes", "updated"),
        [(d.id, d.source, d.chunks, d.size_bytes, d.updated_at or d.created_at) for d in items],
        flexible="source",
    )
    if not items:
        say(f"No documents in {collection}.")
    return 0


@documents.command()
@click.argument("document", metavar="ID|SOURCE", shell_complete=complete_documents)
@_collection
@click.option("--chunks", "with_chunks", is_flag=True, help="Show its text, chunk by chunk.")
@with_client
def show(
    client: Client, *, document: str, collection: str | None, with_chunks: bool, as_json: bool
) -> int:
    """One document."""
    record = _find(client, document, collection)
    chunks = list(client.chunks(record.id)) if with_chunks else []
    if as_json:
        print_json({"document": record, "chunks": chunks} if with_chunks else record)
        return 0
    print_fields(
        [
            ("id", record.id),
            ("source", record.source),
            ("collection", record.collection),
            ("sha256", record.sha256),
            ("bytes", record.size_bytes),
            ("chunks", record.chunks),
            *(("metadata", f"{key}={value}") for key, value in record.metadata.items()),
        ]
    )
    for chunk in chunks:
        print_text()
        print_text(f"{chunk.ordinal}, from character {chunk.start}", style="bold")
        print_text(chunk.text)
    return 0


@documents.command()
@click.argument("document", metavar="ID|SOURCE", shell_complete=complete_documents)
@_collection
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def delete(
    client: Client, *, document: str, collection: str | None, yes: bool, as_json: bool
) -> int:
    """Delete a document, its text and its vectors."""
    document_id = document if collection else client.whole_id("document", document)
    # Not with --yes: an interrupted deletion has hidden the document, and may be repeated.
    if collection is not None or not yes:
        record = _find(client, document_id, collection)
        document_id = record.id
        if not yes:
            confirm(f"Delete {record.source} from {record.collection}?")
    with waiting(f"Deleting {document}") as show:
        job = client.delete_document(document_id, on_waiting=show)
    if as_json:
        print_json(job)
    else:
        print_text(f"Deleted {document}.")
    return 0


def _find(client: Client, document: str, collection: str | None) -> Document:
    if collection is None:
        return client.document(client.whole_id("document", document))
    for candidate in client.documents(collection):
        if document in (candidate.id, candidate.source):
            return candidate
    if (whole := client.whole_id("document", document)) != document:
        candidate = client.document(whole)
        if candidate.collection == collection:
            return candidate
    raise NotFound(f"{collection} has no document {document}.")
