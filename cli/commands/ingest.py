"""`sluice ingest`: files, folders, globs and standard input into a collection."""

import sys
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Literal, cast

import click

from cli.errors import Exit, Interrupted
from cli.options import complete_collections, media_options, with_client
from cli.terminal.output import duration, jsonable, plural, print_json, print_text, say
from cli.terminal.progress import bars
from cli.values import Number, column_names, key_values
from shared import formats
from shared.kinds.ingest import SplitterType
from shared.vocabulary import Lane
from sluice import (
    Client,
    Duplicate,
    IngestOptions,
    IngestReport,
    InvalidInput,
    Job,
    SourceError,
)
from sluice.ingest import PARALLEL_UPLOADS
from sluice.kinds import (
    CsvOptions,
    HtmlOptions,
    JsonOptions,
    OcrOptions,
    SpeechOptions,
    Splitter,
)
from sluice.sources import (
    RemoteDocument,
    TextDocument,
    discover,
    folder_documents,
    is_folder_url,
    is_url,
    site_documents,
    url_documents,
)

SHOWN_ERRORS = 20
SHOWN_DUPLICATES = 3


@click.command()
@click.argument("paths", nargs=-1, required=True, metavar="PATHS|GLOBS|URLS|-")
@click.option(
    "--collection",
    "-c",
    required=True,
    metavar="NAME",
    shell_complete=complete_collections,
    help="Made if missing.",
)
@click.option("--name", default="stdin", show_default=True, help="What `-` is called.")
@click.option(
    "--root", type=click.Path(exists=True, file_okay=False, path_type=Path), metavar="FOLDER",
    help="Where names of documents begin.  [default: .]",
)  # fmt: skip
@click.option("--splitter", type=click.Choice([s.value for s in SplitterType]))
@click.option("--chunk-size", type=int,
              help="In characters; in tokens for `token`. Else what the model reads.")  # fmt: skip
@click.option("--chunk-overlap", type=int, help="In the same unit.")
@click.option(
    "--on-existing", type=click.Choice(["skip", "replace"]),
    help="What to do with documents that are there with other content.  [default: replace]",
)  # fmt: skip
@click.option(
    "--on-duplicate", type=click.Choice(["warn", "skip"]),
    help="What to do with contents that are there under another name.  [default: warn]",
)  # fmt: skip
@click.option("--lane", type=click.Choice([lane.value for lane in Lane]))
@click.option(
    "--metadata", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Noted with every document; may be repeated.",
)  # fmt: skip
@click.option("--encoding", metavar="NAME",
              help="Of all that is text, such as cp949; else it is detected.")  # fmt: skip
@click.option("--csv-encoding", metavar="NAME", help="Of CSV files alone.")
@click.option("--content-columns", metavar="NAME,…", callback=column_names,
              help="CSV columns that are text.")  # fmt: skip
@click.option("--metadata-columns", metavar="NAME,…", callback=column_names,
              help="CSV columns that are metadata.")  # fmt: skip
@click.option("--content-fields", metavar="PATH,…", callback=column_names,
              help="Fields of JSON that are text, such as title,author.name.")  # fmt: skip
@click.option("--metadata-fields", metavar="PATH,…", callback=column_names,
              help="Fields of JSON that are metadata.")  # fmt: skip
@click.option("--whole-pages", is_flag=True,
              help="Of HTML all that a reader sees, with navigation and banners.")  # fmt: skip
@click.option("--site", is_flag=True,
              help="Of each URL all pages of its site, by links and sitemaps.")  # fmt: skip
@click.option("--max-pages", type=click.IntRange(1, 100_000), help="Of a site.  [default: 1000]")
@click.option("--max-depth", type=click.IntRange(0, 1000),
              help="Links that a page of a site may be away from its URL.")  # fmt: skip
@click.option("--css-classes", metavar="NAME,…", callback=column_names,
              help="Of HTML, only elements of these classes.")  # fmt: skip
@media_options
@click.option("--uploads", type=click.IntRange(1, 64), default=PARALLEL_UPLOADS,
              show_default=True, help="Files to send at the same time.")  # fmt: skip
@click.option("--no-wait", is_flag=True, help="Submit the job and leave.")
@click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Stop waiting after this time; the job goes on.",
)  # fmt: skip
@with_client
def ingest(
    client: Client,
    *,
    paths: tuple[str, ...],
    collection: str,
    name: str,
    root: Path | None,
    splitter: str | None,
    chunk_size: int | None,
    chunk_overlap: int | None,
    on_existing: Literal["skip", "replace"] | None,
    on_duplicate: Literal["warn", "skip"] | None,
    lane: str | None,
    metadata: dict[str, Any],
    encoding: str | None,
    csv_encoding: str | None,
    content_columns: list[str] | None,
    metadata_columns: list[str] | None,
    content_fields: list[str] | None,
    metadata_fields: list[str] | None,
    whole_pages: bool,
    site: bool,
    max_pages: int | None,
    max_depth: int | None,
    css_classes: list[str] | None,
    ocr: dict[str, Any] | None,
    speech: dict[str, Any] | None,
    uploads: int,
    no_wait: bool,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Put documents into a collection.

    Folders are searched for files that can be read; files that are named are always sent; URLs are
    read by the server; `-` reads a text from standard input. Running it again sends only what is
    new.

    \b
    Examples:
      sluice ingest docs/ notes.csv -c handbook --metadata team=support
      sluice ingest 'docs/**/*.md' -c handbook --root docs
      sluice ingest prices.csv -c prices --encoding cp949 --content-columns product,note
      sluice ingest https://example.org/post.html -c blog --css-classes post-title,post-content
      sluice ingest scans/ talks/ -c archive --ocr --speech --speech-model openai/whisper-small
      sluice ingest --site https://docs.example.org/ -c docs --max-pages 500
    """
    requested = [name for name, value in (("ocr", ocr), ("speech", speech)) if value is not None]
    discovery = discover(
        (path for path in paths if path != "-" and not is_url(path) and not is_folder_url(path)),
        root=root,
        suffixes=formats.suffixes(requested),
    )
    documents = [
        *discovery.documents,
        *_remote_documents(paths, is_site=site, max_pages=max_pages, max_depth=max_depth),
    ]
    if "-" in paths:
        documents.append(_standard_input(name))
    say_left_out(discovery.left_out, discovery.circular_links)
    if not documents and not discovery.errors:
        raise InvalidInput(f"Nothing to ingest in {', '.join(paths)}.")

    options = IngestOptions(
        splitter=cast(
            "Splitter | None",
            _without_none(type=splitter, chunk_size=chunk_size, chunk_overlap=chunk_overlap),
        ),
        encoding=encoding,
        csv=cast(
            "CsvOptions | None",
            _without_none(
                encoding=csv_encoding,
                content_columns=content_columns,
                metadata_columns=metadata_columns,
            ),
        ),
        html=cast(
            "HtmlOptions | None",
            _without_none(css_classes=css_classes, main_content=False if whole_pages else None),
        ),
        json=cast(
            "JsonOptions | None",
            _without_none(content_fields=content_fields, metadata_fields=metadata_fields),
        ),
        ocr=cast("OcrOptions | None", ocr),
        speech=cast("SpeechOptions | None", speech),
        on_existing=on_existing,
        on_duplicate=on_duplicate,
        metadata=metadata,
        lane=cast("Any", lane),  # a `Lane`, which the option has checked
    )
    jobs: list[Job] = []
    try:
        with bars() as show:
            report = client.ingest_documents(
                collection,
                documents,
                options=options,
                refused=discovery.errors,
                parallel_uploads=uploads,
                wait=not no_wait,
                timeout_s=timeout_s,
                on_advance=show,
                on_submit=jobs.append,
            )
    except KeyboardInterrupt:
        raise Interrupted(_interrupted(jobs)) from None
    if as_json:
        print_json(_document(report, discovery.left_out))
    else:
        _show(report)
    return Exit.FAILED if report.documents.failed else Exit.OK


def _remote_documents(
    paths: Sequence[str], *, is_site: bool, max_pages: int | None, max_depth: int | None
) -> list[RemoteDocument]:
    """The URLs among the paths. Raises InvalidInput for options that do not go together."""
    urls = [path for path in paths if is_url(path)]
    if not urls and is_site:
        raise InvalidInput("--site goes with a URL, such as https://docs.example.org/.")
    if not is_site and (max_pages, max_depth) != (None, None):
        raise InvalidInput("--max-pages and --max-depth go with --site.")
    folders = folder_documents(path for path in paths if is_folder_url(path))
    if is_site:
        return [*folders, *site_documents(urls, max_pages=max_pages, max_depth=max_depth)]
    return [*folders, *url_documents(urls)]


def say_left_out(left_out: Mapping[str, int], circular_links: Sequence[str]) -> None:
    """Report the files and links in folders that are not ingested."""
    if left_out:
        kinds = ", ".join(f"{kind} {count:,}" for kind, count in left_out.items())
        files = plural(sum(left_out.values()), "file")
        say(f"Left out {files} of other types ({kinds}).{_hint(left_out)}")
    if circular_links:
        links = plural(len(circular_links), "link")
        say(f"Left out {links} to folders around them ({', '.join(circular_links)}).")


def _hint(left_out: Mapping[str, int]) -> str:
    """Which options would have taken them in."""
    options = dict.fromkeys(
        f"--{format_.option}"
        for format_ in formats.FORMATS.values()
        if format_.option and left_out.keys() & set(format_.suffixes)
    )
    return f" {' and '.join(options)} would take some of them in." if options else ""


def say_failures(errors: Sequence[SourceError]) -> None:
    for error in errors[:SHOWN_ERRORS]:
        # Most messages begin with the source.
        has_source = error.message.startswith(error.source)
        say(f"Failed: {error.message if has_source else f'{error.source}: {error.message}'}")
    if len(errors) > SHOWN_ERRORS:
        say(f"… and {len(errors) - SHOWN_ERRORS:,} more; --json lists all.")


def _standard_input(name: str) -> TextDocument:
    if sys.stdin.isatty():
        say("Reading a text from the terminal; end it with Ctrl-D.")
    try:
        # Not `sys.stdin.read()`, whose encoding depends on the locale.
        text = sys.stdin.buffer.read().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(
            "Standard input is not UTF-8 text. Save it to a file and ingest that; "
            "the encoding of files is detected."
        ) from error
    if not text.strip():
        raise InvalidInput("Standard input is empty.")
    return TextDocument(name=name, text=text)


def _without_none(**values: Any) -> dict[str, Any] | None:
    return {key: value for key, value in values.items() if value is not None} or None


def _interrupted(jobs: list[Job]) -> str:
    if not jobs:
        return (
            "Interrupted before the job was submitted. Run the same command again to go on; "
            "files that have arrived are not sent again."
        )
    ids = " ".join(job.id for job in jobs)
    return (
        f"Stopped waiting; the work goes on. Watch it with `sluice jobs watch {jobs[-1].id}`, "
        f"cancel it with `sluice jobs cancel {ids}`."
    )


def _duplicates(duplicates: Sequence[Duplicate]) -> str:
    first = ", ".join(
        f"{duplicate.source} is {duplicate.other}" for duplicate in duplicates[:SHOWN_DUPLICATES]
    )
    more = (
        f" and {len(duplicates) - SHOWN_DUPLICATES:,} more"
        if len(duplicates) > SHOWN_DUPLICATES
        else ""
    )
    return (
        f"Warning: {plural(len(duplicates), 'file')} with the content of documents that are here "
        f"under another name ({first}{more}); searches find both. With --root a file has one name "
        "whatever folder is given; `sluice documents delete` removes the other."
    )


def _vanished(names: Sequence[str]) -> str:
    first = ", ".join(names[:SHOWN_DUPLICATES])
    more = f" and {len(names) - SHOWN_DUPLICATES:,} more" if len(names) > SHOWN_DUPLICATES else ""
    return (
        f"{plural(len(names), 'document')} of the site are no longer there ({first}{more}); "
        "`sluice documents delete` removes them here."
    )


def _document(report: IngestReport, left_out: Mapping[str, int]) -> dict[str, Any]:
    return {
        "collection": report.collection,
        "collection_created": report.collection_created,
        "job_ids": report.job_ids,
        "finished": report.finished,
        "documents": jsonable(report.documents),
        "chunks": report.chunks,
        "errors": jsonable(report.errors),
        "vanished": list(report.vanished),
        "warnings": list(report.warnings),
        "duplicates": [asdict(duplicate) for duplicate in report.duplicates],
        "uploaded_files": report.uploaded_files,
        "reused_files": report.reused_files,
        "left_out": dict(left_out),
        "elapsed_s": round(report.elapsed_s, 3),
    }


def _show(report: IngestReport) -> None:
    say_failures(report.errors)
    if report.duplicates:
        say(_duplicates(report.duplicates), style="yellow")
    if report.vanished:
        say(_vanished(report.vanished), style="yellow")
    for warning in report.warnings[:SHOWN_ERRORS]:
        say(f"Warning: {warning}", style="yellow")
    if not report.finished:
        for job_id in report.job_ids:
            print_text(job_id)
        if report.job_ids:
            say(f"Submitted. Follow it with `sluice jobs watch {report.job_ids[-1]}`.")
        return
    counts = report.documents
    done = counts.added + counts.replaced + counts.skipped
    rate = done / report.elapsed_s if report.elapsed_s > 0 else 0.0
    erased = f", {counts.erased:,} erased" if counts.erased else ""
    chunks = plural(report.chunks, "chunk")
    print_text(
        f"{report.collection}: {counts.added:,} added, {counts.replaced:,} replaced, "
        f"{counts.skipped:,} skipped, {counts.failed:,} failed{erased}; "
        f"{chunks} in {duration(report.elapsed_s)} ({rate:,.1f} documents/s)"
    )
