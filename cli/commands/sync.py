"""`sluice sync`: makes a collection equal to folders or sites; `sluice watch` keeps it so."""

import os
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, cast

import click

from cli.commands.ingest import say_failures, say_left_out
from cli.errors import Exit, Interrupted
from cli.options import complete_collections, media_options, with_client
from cli.terminal.output import jsonable, plural, print_json, print_json_line, print_text, say
from cli.terminal.progress import bars
from cli.values import Number, key_values
from shared import formats
from sluice import (
    ApiError,
    Client,
    ConnectionFailed,
    IngestOptions,
    InvalidInput,
    Job,
    JobEndedBadly,
    SluiceError,
    SyncReport,
    WaitTimeout,
)
from sluice.ingest import FileHashes
from sluice.kinds import OcrOptions, SpeechOptions
from sluice.sources import is_folder_url, is_url
from sluice.sync import MAX_ERASED_SHARE

SHOWN = 20
QUIET_MS, BURST_MS = 200, 2000
"""Changes are synchronized after the first of these times without a new one, or at the latest after
the second: programs save in bursts."""
TICK_MS = 500
RETRY_BASE_S, RETRY_CAP_S = 1.0, 30.0


def _options(function: Callable[..., Any]) -> Callable[..., Any]:
    """What both commands take."""
    for option in (
        click.option(
            "--max-erased-share", type=Number(0, 1), default=MAX_ERASED_SHARE,
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
@media_options
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
    ocr: dict[str, Any] | None,
    speech: dict[str, Any] | None,
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
    jobs: list[Job] = []
    try:
        report = _sync(
            client, paths, collection, root, _ingest_options(metadata, ocr, speech), share, jobs,
            dry_run=dry_run, max_pages=max_pages,
        )  # fmt: skip
    except KeyboardInterrupt:
        raise Interrupted(_interrupted(jobs)) from None
    if as_json:
        print_json(_document(report))
    else:
        _show(report)
    return Exit.FAILED if report.errors else Exit.OK


def _interrupted(jobs: Sequence[Job]) -> str:
    going_on = f" The job {jobs[-1].id} goes on." if jobs else ""
    return f"Interrupted.{going_on} Run the same command again to finish it."


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS")
@_options
@media_options
@with_client
def watch(
    client: Client,
    *,
    paths: tuple[str, ...],
    collection: str,
    root: Path | None,
    metadata: dict[str, Any],
    max_erased_share: float,
    ocr: dict[str, Any] | None,
    speech: dict[str, Any] | None,
    as_json: bool,
) -> int:
    """Synchronize folders, and again whenever something in them changes; Ctrl-C ends it.

    Where more has vanished than --max-erased-share allows, nothing is done until it is back, or
    until `sluice sync --yes` has confirmed it. While the API is away, it is tried again.
    """
    for path in paths:
        if is_url(path) or is_folder_url(path):
            raise InvalidInput(f"{path} cannot be watched; `sluice sync` reads it now and then.")

    options = _ingest_options(metadata, ocr, speech)

    hashes = FileHashes()  # not all files are read again for each that has changed

    def once(*, is_first: bool) -> None:
        report = _sync(
            client, paths, collection, root, options, max_erased_share, [], hashes=hashes
        )
        if as_json:
            print_json_line(_document(report))
        elif is_first or report.added or report.replaced or report.erased or report.errors:
            _show(report)
        if is_first:
            say(f"Watching {', '.join(paths)}; Ctrl-C ends it.")

    try:
        _repeat_at_changes(once, paths)
    except KeyboardInterrupt:
        say("Ended. A job that was submitted goes on.")
    return Exit.OK


def _repeat_at_changes(once: Callable[..., None], paths: Sequence[str]) -> None:
    """Run `once` at each change until Ctrl-C. Raises all errors of the first run, and later those
    that are not temporary."""
    is_first = is_due = True
    pause_s, not_before, last_words = RETRY_BASE_S, 0.0, ""
    for is_changed in _changes(paths):
        is_due = is_due or is_changed
        if not is_due or time.monotonic() < not_before:
            continue
        try:
            once(is_first=is_first)
        except InvalidInput as error:
            if is_first:
                raise
            # The same files would fail again; wait for a change.
            is_due, words = False, error.message
        except SluiceError as error:
            if is_first or not _is_temporary(error):
                raise
            not_before = time.monotonic() + pause_s
            pause_s, words = min(2 * pause_s, RETRY_CAP_S), f"{error.message} Trying again."
        else:
            is_first = is_due = False
            pause_s, words = RETRY_BASE_S, ""
        if words and words != last_words:
            say(words, style="yellow")
        last_words = words


def _is_temporary(error: SluiceError) -> bool:
    if isinstance(error, ApiError):
        return error.status >= 500 or error.status in (409, 429)
    return isinstance(error, ConnectionFailed | JobEndedBadly | WaitTimeout)


def _changes(paths: Sequence[str]) -> Iterator[bool]:
    """Yields, at least every TICK_MS, whether something has changed since the last time.

    The system watches files and not paths. So a path that becomes another file or folder, as with
    an editor that saves by renaming, is watched anew.
    """
    import watchfiles  # with a library in Rust, which no other command needs

    watched: _Identities | None = None
    while True:
        present = _identities(paths)
        is_changed, watched = present != watched, present
        existing = [path for path in paths if present[path] is not None]
        if not existing:
            yield is_changed
            time.sleep(TICK_MS / 1000)
            continue
        is_seen = _is_seen(paths)
        try:
            for changes in watchfiles.watch(
                *existing, watch_filter=None, debounce=BURST_MS, step=QUIET_MS,
                rust_timeout=TICK_MS, yield_on_timeout=True, ignore_permission_denied=True,
            ):  # fmt: skip
                yield is_changed or any(is_seen(path) for _, path in changes)
                is_changed = False
                if _identities(paths) != watched:
                    break
        except FileNotFoundError:
            watched = None  # it was deleted at this moment
        except OSError as error:
            raise InvalidInput(
                f"The system cannot watch {', '.join(existing)}: {error}. Of many folders, raise "
                "fs.inotify.max_user_watches; of what lies on the network, set "
                "WATCHFILES_FORCE_POLLING=true."
            ) from error


_Identities = dict[str, tuple[int, int] | None]


def _identities(paths: Sequence[str]) -> _Identities:
    """The device and inode of each path; None if there is nothing."""
    identities: _Identities = {}
    for path in paths:
        try:
            status = Path(path).stat()
        except OSError:
            identities[path] = None
        else:
            identities[path] = (status.st_dev, status.st_ino)
    return identities


def _is_seen(paths: Sequence[str]) -> Callable[[str], bool]:
    """A filter for changed files without hidden ones below the paths, which are no documents."""
    tops = [Path(os.path.abspath(path)) for path in paths]  # noqa: PTH100

    def is_seen(path: str) -> bool:
        whole = Path(os.path.abspath(path))  # noqa: PTH100
        below = [whole.relative_to(top).parts for top in tops if whole.is_relative_to(top)]
        return not below or not all(any(map(_is_hidden, parts)) for parts in below)

    return is_seen


def _is_hidden(name: str) -> bool:
    return name.startswith(".")


def _ingest_options(
    metadata: dict[str, Any], ocr: dict[str, Any] | None, speech: dict[str, Any] | None
) -> IngestOptions:
    return IngestOptions(
        metadata=metadata,
        ocr=cast("OcrOptions | None", ocr),
        speech=cast("SpeechOptions | None", speech),
    )


def _sync(
    client: Client,
    paths: Sequence[str],
    collection: str,
    root: Path | None,
    options: IngestOptions,
    max_erased_share: float,
    jobs: list[Job],
    *,
    dry_run: bool = False,
    max_pages: int | None = None,
    hashes: FileHashes | None = None,
) -> SyncReport:
    with bars() as show:
        return client.sync(
            collection,
            paths,
            options=options,
            root=root,
            dry_run=dry_run,
            max_erased_share=max_erased_share,
            suffixes=formats.suffixes(options.requested),
            max_pages=max_pages,
            hashes=hashes,
            on_advance=show,
            on_submit=jobs.append,
        )


def _document(report: SyncReport) -> dict[str, Any]:
    values = asdict(report)
    ingest = report.ingest
    values["errors"] = jsonable(report.errors)
    values["ingest"] = None if ingest is None else jsonable(ingest.documents)
    values["warnings"] = [] if ingest is None else list(ingest.warnings)
    return values


def _show(report: SyncReport) -> None:
    ingest = report.ingest
    say_left_out(report.left_out, report.circular_links)
    say_failures(report.errors)
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
    added = len(report.added) if counts is None else counts.added
    replaced = len(report.replaced) if counts is None else counts.replaced
    erased = len(report.erased) + (0 if counts is None else counts.erased)
    would = "would be " if report.is_dry_run else ""
    print_text(
        f"{report.collection}: {would}{added:,} added, {replaced:,} replaced, "
        f"{erased:,} erased, {report.unchanged:,} unchanged, {len(report.errors):,} failed"
    )
