"""`sluice sync`: a collection becomes what folders or sites are; `sluice watch` goes on."""

from collections.abc import Callable, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import click

from cli.errors import Exit
from cli.options import complete_collections, key_values, with_client
from cli.terminal.output import jsonable, plural, print_json, print_text, say
from cli.terminal.progress import bars
from shared import formats
from sluice import Client, IngestOptions, InvalidInput, SyncReport
from sluice.sources import is_folder_url, is_url
from sluice.sync import MAX_ERASED_SHARE

SHOWN = 20
PAUSE_MS = 1000
"""Changes that come within this time of each other are synchronized together."""


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take."""
    for option in (
        click.option(
            "--max-erased-share", type=click.FloatRange(0, 1), default=MAX_ERASED_SHARE,
            show_default=True,
            help="If more of the documents have vanished, none is erased, but with --yes.",
        ),
        click.option(
            "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
            help="Noted with every document that is sent; may be repeated.",
        ),
        click.option(
            "--root", type=click.Path(exists=True, file_okay=False, path_type=Path),
            metavar="FOLDER", help="Where names of documents begin.  [default: .]",
        ),
        click.option(
            "--collection", "-c", required=True, metavar="NAME",
            shell_complete=complete_collections, help="Made if missing.",
        ),
    ):  # fmt: skip
        function = option(function)
    return function


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS|URLS")
@_options
@click.option("--dry-run", is_flag=True, help="Say what would be done, and do nothing.")
@click.option("--yes", is_flag=True, help="Erase what has vanished, however much that is.")
@click.option("--max-pages", type=click.IntRange(1, 100_000), help="Of a site.  [default: 1000]")
@with_client
def sync(
    client: Client,
    *,
    paths: tuple[str, ...],
    collection: str,
    root: Path | None,
    metadata: dict[str, Any],
    max_erased_share: float,
    dry_run: bool,
    yes: bool,
    max_pages: int | None,
    as_json: bool,
) -> int:
    """Make a collection what folders are, or a web site, or a bucket.

    What is new is added, what has changed is replaced, and what has vanished is erased. Only what
    differs is sent. A run that was cut off is finished by the next one.

    \b
    Examples:
      sluice sync company/ -c handbook --dry-run
      sluice sync https://docs.example.org/ -c docs
      sluice sync s3://team-docs/handbook -c handbook
    """
    share = 1.0 if yes else max_erased_share
    report = _sync(
        client, paths, collection, root, metadata, share, dry_run=dry_run, max_pages=max_pages
    )
    if as_json:
        print_json(_document(report))
    else:
        _show(report)
    return _exit(report)


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS")
@_options
@with_client
def watch(
    client: Client,
    *,
    paths: tuple[str, ...],
    collection: str,
    root: Path | None,
    metadata: dict[str, Any],
    max_erased_share: float,
    as_json: bool,
) -> int:
    """Synchronize folders, and again whenever something in them changes; Ctrl-C ends it.

    Where more has vanished than --max-erased-share allows, nothing is done until it is back, or
    until `sluice sync --yes` has confirmed it.
    """
    import watchfiles  # with a library in Rust, which no other command needs

    for path in paths:
        if is_url(path) or is_folder_url(path):
            raise InvalidInput(f"{path} cannot be watched; `sluice sync` reads it now and then.")

    def once() -> None:
        report = _sync(client, paths, collection, root, metadata, max_erased_share)
        if as_json:
            print_json(_document(report))
        else:
            _show(report)

    once()
    say(f"Watching {', '.join(paths)}; Ctrl-C ends it.")
    for _ in watchfiles.watch(*paths, debounce=PAUSE_MS, raise_interrupt=False):
        try:
            once()
        except InvalidInput as error:
            say(str(error), style="yellow")
    return Exit.OK


def _sync(
    client: Client,
    paths: Sequence[str],
    collection: str,
    root: Path | None,
    metadata: dict[str, Any],
    max_erased_share: float,
    *,
    dry_run: bool = False,
    max_pages: int | None = None,
) -> SyncReport:
    with bars() as show:
        return client.sync(
            collection,
            paths,
            options=IngestOptions(metadata=metadata),
            root=root,
            dry_run=dry_run,
            max_erased_share=max_erased_share,
            suffixes=formats.suffixes(),
            max_pages=max_pages,
            on_advance=show,
        )


def _exit(report: SyncReport) -> int:
    failed = report.ingest is not None and report.ingest.documents.failed
    return Exit.FAILED if failed else Exit.OK


def _document(report: SyncReport) -> dict[str, Any]:
    values = asdict(report)
    ingest = report.ingest
    values["ingest"] = None if ingest is None else jsonable(ingest.documents)
    values["errors"] = [] if ingest is None else jsonable(ingest.errors)
    values["warnings"] = [] if ingest is None else list(ingest.warnings)
    return values


def _show(report: SyncReport) -> None:
    ingest = report.ingest
    for error in () if ingest is None else ingest.errors[:SHOWN]:
        say(f"Failed: {error.message}")
    for warning in () if ingest is None else ingest.warnings[:SHOWN]:
        say(f"Warning: {warning}", style="yellow")
    if report.is_dry_run:
        for what, names in (
            ("add", report.added), ("replace", report.replaced), ("erase", report.erased),
        ):  # fmt: skip
            for name in names[:SHOWN]:
                print_text(f"{what} {name}")
            if len(names) > SHOWN:
                print_text(
                    f"{what} {plural(len(names) - SHOWN, 'document')} more; --json lists all"
                )
    counts = None if ingest is None else ingest.documents
    added = len(report.added) if counts is None or report.is_dry_run else counts.added
    replaced = len(report.replaced) if counts is None or report.is_dry_run else counts.replaced
    failed = 0 if counts is None else counts.failed
    would = "would be " if report.is_dry_run else ""
    print_text(
        f"{report.collection}: {would}{added:,} added, {replaced:,} replaced, "
        f"{len(report.erased):,} erased, {report.unchanged:,} unchanged, {failed:,} failed"
    )
