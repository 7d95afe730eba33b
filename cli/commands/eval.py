"""`sluice eval`: measures the quality of searches on a data set of judged queries."""

import json
from collections.abc import Callable, Mapping, Sequence
from enum import Enum
from itertools import islice
from pathlib import Path
from typing import Any, cast, get_args

import click
from pydantic import ValidationError

from cli.errors import exit_of_state
from cli.evaluation.dataset import Dataset, read_dataset
from cli.evaluation.page import Evaluation, heading_of, measures_of, page, title_of
from cli.options import complete_collections, with_client
from cli.terminal.output import (
    jsonable,
    plural,
    print_json,
    print_record,
    print_table,
    print_text,
    say,
    stdout,
)
from cli.terminal.progress import bars, cancel_if_left, print_warnings, watch_job
from cli.values import Number
from shared.bounds import shown
from shared.kinds.eval import SEARCHES_LIMIT, Estimate, EvalResult
from shared.kinds.search import SearchOptions
from sluice import Advance, ApiError, Client, IngestOptions, InvalidInput, Job
from sluice.kinds import EvalInput
from sluice.sources import TextDocument

BATCH_DOCUMENTS = 1000
BATCH_BYTES = 4 * 2**20
"""The texts of one ingest job together."""
SHOWN_ERRORS = 5


def search_types() -> list[str]:
    """The values of `type` of a search, the default first."""
    annotation = SearchOptions.model_fields["type"].annotation
    if isinstance(annotation, type) and issubclass(annotation, Enum):
        types = [member.value for member in annotation]
    else:
        types = list(get_args(annotation))
    default = SearchOptions().model_dump(mode="json")["type"]
    return sorted(map(str, types), key=lambda name: name != default)


def _options(text: str) -> SearchOptions:
    try:
        return SearchOptions.model_validate(json.loads(text))
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise click.BadParameter(
            f"{text!r} are no options of a search: {f'{place}: ' if place else ''}{first['msg']}."
        ) from None
    except (ValueError, RecursionError):
        raise click.BadParameter(
            f"""{text!r} is no JSON object such as '{{"type": "{search_types()[0]}"}}'."""
        ) from None


def _search_options(
    _context: click.Context, _parameter: click.Parameter, texts: tuple[str, ...]
) -> list[SearchOptions]:
    return [_options(text) for text in texts]


@click.command()
@click.argument("path", metavar="DATASET", type=click.Path(exists=True, path_type=Path))
@click.option(
    "--collection", "-c", metavar="NAME", shell_complete=complete_collections,
    help="Where to search; else one that is called as DATASET is.",
)  # fmt: skip
@click.option(
    "--type", "types", type=click.Choice(search_types()), multiple=True,
    help="Measure this type of search; may be repeated. Else all that need no other option.",
)  # fmt: skip
@click.option(
    "--search", "searches", metavar="JSON", multiple=True, callback=_search_options,
    help="Measure a search of these options; may be repeated.",
)  # fmt: skip
@click.option(
    "--vs", "compared", metavar="JSON", multiple=True, callback=_search_options,
    help="Compare the first search with one of these options; may be repeated.",
)  # fmt: skip
@click.option("--k", type=click.IntRange(10, 100), default=10, show_default=True,
              help="How many hits to ask for.")  # fmt: skip
@click.option("--limit", type=click.IntRange(min=1), metavar="N",
              help="Ask N of the queries, drawn at random.")  # fmt: skip
@click.option("--seed", type=int, default=0, show_default=True, help="Of what --limit draws.")
@click.option("--split", metavar="NAME", help="Which qrels of a BEIR folder; else test.")
@click.option("--embedding-model", metavar="NAME",
              help="Of the collection, where it has to be made.")  # fmt: skip
@click.option("--chunk-size", type=click.IntRange(min=1), metavar="N",
              help="Of its chunks, in characters; else what the model reads.")  # fmt: skip
@click.option("--delete/--keep", default=False, help="What to do with the documents afterwards.")
@click.option(
    "--html", "html_path", type=click.Path(dir_okay=False, writable=True, path_type=Path),
    metavar="PATH", help="Write a page with plots, too.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Stop waiting for the measuring after this time; the job goes on.",
)  # fmt: skip
@with_client
def eval(
    client: Client,
    *,
    path: Path,
    collection: str | None,
    types: tuple[str, ...],
    searches: list[SearchOptions],
    compared: list[SearchOptions],
    k: int,
    limit: int | None,
    seed: int,
    split: str | None,
    embedding_model: str | None,
    chunk_size: int | None,
    delete: bool,
    html_path: Path | None,
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Measure how well searches find what is relevant.

    DATASET is a SQuAD file, a BEIR folder, or a list of judged queries (JSONL) for a collection of
    your own. The documents of the first two are put into a collection; what is there is not sent
    to the model again. Intervals are of 95 %, times those of the search within the worker.

    \b
    Examples:
      sluice eval xquad.en.json
      sluice eval judged.jsonl -c handbook --html report.html
      sluice eval scifact/ --limit 300 --type hybrid --type lexical --json
      sluice eval judged.jsonl -c handbook --vs '{"rerank": "BAAI/bge-reranker-v2-m3"}'
    """
    measured = _searches(types, searches, compared)
    dataset = read_dataset(path, split=split)
    for remark in dataset.remarks:
        say(remark)
    sample = dataset.sample(limit, seed)
    name = collection or dataset.name
    if dataset.documents:
        _ingest_documents(client, name, dataset, embedding_model, chunk_size)
    else:
        is_changed = bool(embedding_model or chunk_size or delete)
        _require_collection(path, collection, is_changed=is_changed)
    queries = "\n".join(query.model_dump_json(exclude_defaults=True) for query in sample.queries)
    with client.attached(queries.encode()) as upload:
        job_input = {
            "collection": name,
            "file_id": upload["file_id"],
            "searches": [search.model_dump(mode="json") for search in measured],
            "k": k,
        }
        job: Job = client.submit("eval", cast("EvalInput", job_input))
        with cancel_if_left(client, job.id):
            job = watch_job(client, job, name="Asking", timeout_s=timeout_s)
        job.require_success()
        result = EvalResult.model_validate(client.result(job))
    print_warnings(job)
    evaluation = Evaluation(
        dataset=sample, path=str(path), result=result, collection=client.collection(name)
    )
    if html_path is not None:
        html_path.write_text(page(evaluation), encoding="utf-8")
        say(f"Wrote {html_path}.")
    if delete:
        client.delete_collection(name)
        say(f"Deleted the collection {name}.")
    if as_json:
        print_json(_document(evaluation, job.id, job.warnings))
    else:
        _show(evaluation)
    return exit_of_state(job.state)


def _searches(
    types: Sequence[str], searches: Sequence[SearchOptions], compared: Sequence[SearchOptions]
) -> list[SearchOptions]:
    """The searches to measure. The first is the one that the others are compared with."""
    measured = [*(SearchOptions.model_validate({"type": name}) for name in types), *searches]
    if not measured and not compared:
        measured = _complete_types()
    measured = [*(measured or [SearchOptions()]), *compared]
    if len(measured) > SEARCHES_LIMIT:
        raise click.UsageError(f"At most {SEARCHES_LIMIT} searches are measured at once.")
    return measured


def _complete_types() -> list[SearchOptions]:
    """The types of searches that need no other option."""
    complete = []
    for name in search_types():
        try:
            complete.append(SearchOptions.model_validate({"type": name}))
        except ValidationError:
            continue
    return complete


def _require_collection(path: Path, collection: str | None, *, is_changed: bool) -> None:
    """Check the options for a data set without documents. Raises UsageError."""
    if collection is None:
        raise click.UsageError(
            f"{path} has queries alone; name the collection that they are about with --collection."
        )
    if is_changed:
        raise click.UsageError(
            "--embedding-model, --chunk-size and --delete are for collections that this command "
            f"makes, and {path} has queries alone."
        )


# The documents of a data set, in a collection of their own


def _ingest_documents(
    client: Client,
    name: str,
    dataset: Dataset,
    embedding_model: str | None,
    chunk_size: int | None,
) -> None:
    """Raises InvalidInput if the collection has other documents, which could be hits, too."""
    _require_no_others(client, name, dataset)
    if embedding_model is not None:
        client.put_collection(name, embedding_model=embedding_model)
    options = IngestOptions(
        splitter=None if chunk_size is None else {"chunk_size": chunk_size}, lane="bulk"
    )
    done = failed = 0
    documents = [TextDocument(name=key, text=text) for key, text in dataset.documents.items()]
    with bars() as show:
        for batch in _batches(documents):
            report = client.ingest_documents(
                name,
                batch,
                options=options,
                on_advance=_progress_from(done, len(documents), show),
            )
            done += len(batch)
            for error in report.errors[: max(0, SHOWN_ERRORS - failed)]:
                say(f"Failed: {error.source}: {error.message}")
            failed += len(report.errors)
            for warning in report.warnings:
                say(f"Warning: {warning}", style="yellow")
    if failed:
        say(
            f"Warning: {plural(failed, 'document')} of {len(documents):,} could not be put into "
            f"{name}; their queries find nothing.",
            style="yellow",
        )


def _require_no_others(client: Client, name: str, dataset: Dataset) -> None:
    try:
        client.collection(name)
    except ApiError as error:
        if error.status == 404:
            return
        raise
    others = (
        document.source
        for document in client.documents(name)
        if document.source not in dataset.documents
    )
    first = list(islice(others, 3))
    if first:
        raise InvalidInput(
            f"The collection {name} has documents that are not of the data set "
            f"({', '.join(shown(source) for source in first)}), which would be found, too. Name "
            "another one with --collection, and it is made."
        )


def _batches(documents: Sequence[TextDocument]) -> list[list[TextDocument]]:
    batches: list[list[TextDocument]] = []
    size = 0
    for document in documents:
        text_bytes = len(document.text.encode())
        if not batches or len(batches[-1]) == BATCH_DOCUMENTS or size + text_bytes > BATCH_BYTES:
            batches.append([])
            size = 0
        batches[-1].append(document)
        size += text_bytes
    return batches


def _progress_from(
    first: int, total: int, show: Callable[[Advance], None]
) -> Callable[[Advance], None]:
    """A callback that shows the progress of one batch as progress of all. Only the phase `ingest`
    is shown: texts are sent with the job."""

    def count(advance: Advance) -> None:
        if advance.phase == "ingest":
            show(Advance(phase="ingest", done=first + advance.done, total=total, unit="documents"))

    return count


# Output


def _show(evaluation: Evaluation) -> None:
    """A table of the searches, and one of the differences."""
    result = evaluation.result
    names = measures_of(result)
    titles = [title_of(figures.search) for figures in result.searches]
    if not stdout().is_terminal:
        _print_records(result, names, titles)
        return
    collection = evaluation.collection
    print_text(
        f"{plural(result.query_count, 'query').replace('querys', 'queries')}, "
        f"{plural(collection.documents, 'document')}, {plural(collection.chunks, 'chunk')} in "
        f"{result.collection} ({result.embedding_model})"
    )
    columns = ["search", *map(heading_of, names), "p50 ms", "p99 ms"]
    print_table(
        columns,
        [
            [
                title,
                *(_with_interval(figures.measures[name]) for name in names),
                f"{figures.times.p50_ms:.1f}",
                f"{figures.times.p99_ms:.1f}",
            ]
            for title, figures in zip(titles, result.searches, strict=True)
        ],
        flexible="search",
    )
    if result.differences:
        print_text()
        print_text(f"Difference to {titles[0]}, paired; * is beyond chance (95 %)")
        print_table(
            ["search", *map(heading_of, names)],
            [
                [
                    titles[difference.search],
                    *(_difference(difference.measures[name]) for name in names),
                ]
                for difference in result.differences
            ],
            flexible="search",
        )


def _print_records(result: EvalResult, names: Sequence[str], titles: Sequence[str]) -> None:
    """For a pipe: a line for each search and difference, with the bounds of each interval."""
    for title, figures in zip(titles, result.searches, strict=True):
        times = (figures.times.p50_ms, figures.times.p99_ms)
        print_record(title, *_values_with_bounds(figures.measures, names), *times)
    for difference in result.differences:
        title = f"{titles[difference.search]} - {titles[0]}"
        print_record(title, *_values_with_bounds(difference.measures, names))


def _values_with_bounds(estimates: Mapping[str, Estimate], names: Sequence[str]) -> list[float]:
    ordered = [estimates[name] for name in names]
    return [
        number for estimate in ordered for number in (estimate.value, estimate.low, estimate.high)
    ]


def _with_interval(estimate: Estimate) -> str:
    return f"{estimate.value:.3f} {_half_interval(estimate)}"


def _difference(estimate: Estimate) -> str:
    """With a star if the interval does not contain zero."""
    star = "*" if estimate.low > 0 or estimate.high < 0 else ""
    return f"{estimate.value:+.3f}{star} {_half_interval(estimate)}"


def _half_interval(estimate: Estimate) -> str:
    return f"±{(estimate.high - estimate.low) / 2:.3f}".replace("±0.", "±.")


def _document(evaluation: Evaluation, job_id: str, warnings: Sequence[str]) -> dict[str, Any]:
    queries = [query.model_dump(mode="json") for query in evaluation.dataset.queries]
    return {
        "job_id": job_id,
        "dataset": evaluation.path,
        "documents": evaluation.collection.documents,
        "chunks": evaluation.collection.chunks,
        **jsonable(evaluation.result),
        "queries": queries,
        "warnings": list(warnings),
    }
