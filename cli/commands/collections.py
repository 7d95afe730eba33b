"""`sluice collections`: list, make, show, rebuild, check, adopt, move and delete collections."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import click

from cli.commands.ingest import say_failures
from cli.commands.jobs import show_job
from cli.errors import Exit, Interrupted, exit_of_state
from cli.options import ListByDefault, complete_collections, confirm, with_client
from cli.terminal.output import plural, print_fields, print_json, print_table, print_text, say
from cli.terminal.progress import waiting, watch_job
from cli.values import Number, key_values
from sluice import Client, ClientJob, Collection, Job, SourceError, State
from sluice.bundles import require_folder


@click.group(cls=ListByDefault)
def collections() -> None:
    """List, make, adopt, rebuild, check, move and delete them (alone: list)."""


@collections.command("list")
@with_client
def list_collections(client: Client, *, as_json: bool) -> int:
    """All collections with their counts."""
    items = list(client.collections())
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("name", "documents", "chunks", "model", "store", "check", "created"),
        [
            (
                c.name,
                c.documents,
                c.chunks,
                c.embedding_model,
                c.store or "",
                c.check.state if c.check else "",
                c.created_at,
            )
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
@click.option("--distance", metavar="NAME", help="cosine (the default), ip or l2.")
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
    """One collection, and its vector indexes where there are several."""
    collection = client.collection(name)
    _print_collection(collection, as_json)
    if not as_json and len(collection.indexes) > 1:
        print_text("")
        print_table(
            ("index", "state", "model", "dimension", "chunks", "rollback", "created", "kept until"),
            [
                (
                    one.name, one.state, one.embedding_model, one.dimension or "", one.chunks,
                    "yes" if one.can_roll_back else "", one.created_at, one.kept_until or "",
                )
                for one in collection.indexes
            ],
            flexible="model",
        )  # fmt: skip
    return 0


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
@click.option("--min-overlap", type=Number(0, 1), metavar="SHARE",
              help="Stop if both models have less in common.")  # fmt: skip
@click.option("--min-recall", type=Number(0, 1), metavar="SHARE",
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
    return _end(client, job, wait=wait, as_json=as_json, show=_print_rebuild)


@collections.command()
@click.argument("name", shell_complete=complete_collections)
@click.option("--dry-run", is_flag=True, help="Only report what differs; mend nothing.")
@click.option("--sample", type=click.IntRange(min=0), metavar="N",
              help="Of how many chunks the vector is made again and compared (100).")  # fmt: skip
@click.option("--delete-foreign", is_flag=True,
              help="Delete vectors, too, that Sluice did not write.")  # fmt: skip
@click.option("--wait", is_flag=True, help="Follow it to its end; exit code 1 if it is damaged.")
@with_client
def check(
    client: Client,
    *,
    name: str,
    dry_run: bool,
    sample: int | None,
    delete_foreign: bool,
    wait: bool,
    as_json: bool,
) -> int:
    """Compare the vectors of a collection with its chunks, and mend what differs.

    \b
    Examples:
      sluice collections check rules-ko --wait
      sluice collections check rules-ko --dry-run --sample 1000 --wait
    """
    job = client.check_collection(
        name, dry_run=dry_run, sample=sample, delete_foreign=delete_foreign, wait=False
    )
    return _end(client, job, wait=wait, as_json=as_json, show=_print_check)


def _end(
    client: Client,
    job: ClientJob[Any],
    *,
    wait: bool,
    as_json: bool,
    show: Callable[[dict[str, Any]], None],
) -> int:
    """Follow a job to its end, whose result `show` prints, or say how to."""
    if not wait:
        if as_json:
            print_json(job)
        else:
            print_text(job.id)
            say(f"Submitted. Follow it with `sluice jobs watch {job.id}`.")
        return Exit.OK
    ended = _followed(client, job, as_json)
    result = ended.result or {}
    if as_json or ended.state != State.SUCCEEDED:
        _print_end(ended, as_json)
    else:
        for warning in ended.warnings:
            say(f"Warning: {warning}", style="yellow")
        show(result)
    if result.get("state") == "damaged" or result.get("errors"):
        return Exit.FAILED
    return exit_of_state(ended.state)


@collections.command("export")
@click.argument("name", shell_complete=complete_collections)
@click.argument("file", type=click.Path(dir_okay=False, writable=True, path_type=Path))
@with_client
def export_collection(client: Client, *, name: str, file: Path, as_json: bool) -> int:
    """Write a collection with its vectors to a file, a bundle.

    It is of one moment, whatever is ingested meanwhile. `sluice collections import` makes a
    collection of it, in any installation and any vector store.

    \b
    Example:
      sluice collections export rules-ko rules-ko.zip
    """
    require_folder(file)
    job = client.submit_untyped("export", {"collection": name})
    ended = _followed(client, job, as_json)
    if ended.state != State.SUCCEEDED:
        return _print_end(ended, as_json)
    result = ended.result or {}
    with waiting(f"Downloading {file}"):
        client.download(result["file_id"], file)
    if as_json:
        print_json(ended)
    else:
        mebibytes = result["size_bytes"] / 2**20
        print_text(
            f"Wrote {plural(result['documents'], 'document')}, "
            f"{plural(result['chunks'], 'chunk')} to {file} ({mebibytes:,.1f} MiB)."
        )
    return 0


@collections.command("import")
@click.argument("file", type=click.Path(exists=True, dir_okay=False, path_type=Path))
@click.option("--as", "name", metavar="NAME", help="Of the new collection; else as in the file.")
@with_client
def import_collection(client: Client, *, file: Path, name: str | None, as_json: bool) -> int:
    """Make a new collection of the file of an export. Nothing is embedded.

    It is checked first, and seen when all of it is there. After an interruption, the same
    command sends only what the server does not have.

    \b
    Example:
      sluice collections import rules-ko.zip --as rules-copy
    """
    with waiting(f"Uploading {file}"):
        job = client.import_collection(file, name, wait=False)
    ended = _followed(client, job, as_json)
    if ended.state == State.SUCCEEDED:
        client.delete_slices(ended)
    if ended.state != State.SUCCEEDED or as_json:
        return _print_end(ended, as_json)
    result = ended.result or {}
    print_text(
        f"Imported {result['collection']}: {plural(result['documents'], 'document')}, "
        f"{plural(result['chunks'], 'chunk')} of {result['embedding_model']}."
    )
    return 0


def _followed(client: Client, job: Job, as_json: bool) -> Job:
    """The job when it has ended."""
    try:
        return client.wait(job.id) if as_json else watch_job(client, job)
    except KeyboardInterrupt:
        raise Interrupted(
            f"The job goes on. Cancel it with `sluice jobs cancel {job.id}`."
        ) from None


def _print_end(ended: Job, as_json: bool) -> int:
    if as_json:
        print_json(ended)
    else:
        show_job(ended)
    return exit_of_state(ended.state)


@collections.command()
@click.argument("name", shell_complete=complete_collections)
@click.option("--from", "place", required=True, metavar="URL|FOLDER",
              help="chroma://host:8000/COLLECTION, or ./chroma_db#COLLECTION.")  # fmt: skip
@click.option("--model", metavar="NAME", help="Of NAME, where it is made; else the default.")
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Noted with every document; may be repeated.",
)  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Submit the job and leave.")
@with_client
def adopt(
    client: Client,
    *,
    name: str,
    place: str,
    model: str | None,
    metadata: dict[str, Any],
    no_wait: bool,
    as_json: bool,
) -> int:
    """Take a collection of Chroma or LangChain into the collection NAME, which is made if missing.

    The chunks stay as they are, with their metadata; those with the same `source` become a
    document. Vectors are kept if they agree with those of the model of NAME, else made anew.
    Running it again adopts what is new or has changed. Without COLLECTION, those that are there
    are listed. Folders are those of the workers.

    \b
    Examples:
      sluice collections adopt wiki --from chroma://chroma.example:8000/langchain
      sluice collections adopt wiki --from ./chroma_db#langchain
      sluice collections adopt wiki --from /srv/faiss_index
    """
    job = client.adopt_collection(name, _url(place), model=model, metadata=metadata, wait=False)
    show = partial(_print_adoption, name)
    return _end(client, job, wait=not no_wait, as_json=as_json, show=show)


def _url(place: str) -> str:
    """A path of this machine as the URL of a whole one."""
    if "://" in place:
        return place
    path, hash_, collection = place.partition("#")
    return f"file://{Path(path).resolve()}{hash_}{collection}"


def _print_adoption(name: str, result: dict[str, Any]) -> None:
    say_failures([SourceError.model_validate(error) for error in result.get("errors") or ()])
    documents, chunks = result.get("documents") or {}, result.get("adopted") or {}
    print_fields(
        [
            ("name", name),
            *((key, documents.get(key)) for key in ("added", "replaced", "skipped", "failed")),
            ("vectors kept", chunks.get("kept")),
            ("embedded", chunks.get("embedded")),
            ("without text", chunks.get("no_text")),
            ("duplicates", chunks.get("duplicates")),
            ("bad metadata", chunks.get("bad_metadata")),
        ]
    )


@collections.command("drop-index")
@click.argument("name", shell_complete=complete_collections)
@click.argument("index")
@click.option("--forget", is_flag=True,
              help="Its server is gone for good: forget it, without asking that.")  # fmt: skip
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def drop_index(
    client: Client, *, name: str, index: str, forget: bool, yes: bool, as_json: bool
) -> int:
    """Drop a vector index that is kept for a rollback, or was left unfinished.

    `sluice collections show NAME` lists them. The one that searches read is refused.
    """
    if not yes:
        confirm(f"{'Forget' if forget else 'Drop'} the index {index} of {name}?")
    dropped = client.drop_index(name, index, forget=forget)
    if as_json:
        print_json(dropped)
    elif forget:
        print_text(f"Forgot {dropped.name} ({dropped.embedding_model}, on {dropped.store}).")
    else:
        print_text(f"Dropping {dropped.name} ({dropped.embedding_model}): the sweeper does it now.")
    return 0


def _print_rebuild(result: dict[str, Any]) -> None:
    comparison = result.get("comparison") or {}
    k = comparison.get("k")
    figures = [
        (f"overlap@{k}", comparison.get("overlap")),
        (f"recall@{k}", comparison.get("recall")),
        ("before that", comparison.get("recall_before")),
    ]
    print_fields(
        [
            ("name", result["collection"]),
            ("model", f"{result['embedding_model']} ({result['dimension']} dimensions)"),
            ("before", result["embedding_model_before"]),
            ("chunks", result["chunks"]),
            *(figures if comparison else ()),
            ("rollback until", result.get("rollback_until")),
        ]
    )


_FAULTS = ("missing", "surplus", "stale", "wrong", "foreign", "leftover")


def _print_check(result: dict[str, Any]) -> None:
    fields = ["collection", "state", "checked", "sampled", *_FAULTS, "mended", "rebuild_job_id"]
    examples = result.get("examples") or {}
    print_fields(
        [(name, result[name]) for name in fields if result.get(name) is not None]
        + [(f"{name}, such as", ids[0]) for name, ids in examples.items() if ids]
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
            ("check", _check_words(collection)),
        ]
    )
    return 0


def _check_words(collection: Collection) -> str:
    check = collection.check
    if check is None:
        return "none yet"
    counts = [f"{count} {name}" for name in _FAULTS if (count := getattr(check, name))]
    return ", ".join([f"{check.state} ({check.finished_at:%Y-%m-%d %H:%M} UTC)", *counts])
