"""`sluice ask`: a question and its answer; `sluice search`: the passages that answer a query."""

from collections.abc import Callable
from pathlib import Path
from typing import Any, cast

import click
from rich.cells import cell_len

from cli.options import (
    complete_collections,
    complete_models,
    complete_prompts,
    sampling_options,
    variables_option,
    with_client,
)
from cli.terminal.output import (
    first_words,
    jsonable,
    print_json,
    print_record,
    print_text,
    say,
    stdout,
)
from cli.terminal.progress import finished_job, print_remarks, print_warnings, show_answer
from cli.values import Number, filter_of
from shared.kinds.search import FETCH_LIMIT, NEIGHBOURS_LIMIT, SearchType
from sluice import Answer, Client, Hit, Job
from sluice.inputs import rag_input, search_input
from sluice.kinds import SearchOptions

# Options of both commands.

Decorator = Callable[[Callable[..., Any]], Callable[..., Any]]

_collection = click.option(
    "--collection",
    "-c",
    required=True,
    metavar="NAME",
    shell_complete=complete_collections,
    help="Where to look.",
)
_filter = click.option(
    "--filter", "conditions", multiple=True, metavar="FILTER", callback=filter_of,
    help="Only passages with this metadata, such as 'year>=2024'; may be repeated.",
)  # fmt: skip


_type = click.option(
    "--type", "type_", type=click.Choice([type_.value for type_ in SearchType]),
    help="By words, by meaning, or by both (hybrid).",
)  # fmt: skip
_rerank = click.option(
    "--rerank", metavar="MODEL", help="A cross-encoder that reads the best passages once more."
)
_expand = click.option(
    "--expand", type=click.IntRange(0, NEIGHBOURS_LIMIT), metavar="N",
    help="Join N chunks before and after each passage.",
)  # fmt: skip


def _k(text: str) -> Decorator:
    return click.option("--k", type=click.IntRange(1, 100), help=text)


def _timeout(default_s: float) -> Decorator:
    return click.option(
        "--timeout", "timeout_s", type=Number(min=0, min_open=True), default=default_s,
        show_default=True, metavar="SECONDS", help="Give up waiting after this time.",
    )  # fmt: skip


# `sluice search`: the passages nearest to a query.

_LINES = 3


@click.command()
@click.argument("query")
@click.option(
    "--collection", "-c", "collections", required=True, multiple=True, metavar="NAME",
    shell_complete=complete_collections, help="Where to look; may be repeated.",
)  # fmt: skip
@_k("How many passages to show.")
@_type
@click.option(
    "--score-threshold", type=Number(-1, 1), metavar="X",
    help="The least similarity, of the type similarity_score_threshold.",
)  # fmt: skip
@click.option(
    "--fetch-k", type=click.IntRange(1, FETCH_LIMIT), metavar="N",
    help="Of the type mmr: choose from so many.",
)  # fmt: skip
@click.option(
    "--lambda-mult", type=Number(0, 1), metavar="X",
    help="Of the type mmr: 1 is similarity alone, 0 difference alone.",
)  # fmt: skip
@_rerank
@_expand
@click.option("--debug", is_flag=True, help="Show how scores came about.")
@_filter
@_timeout(120.0)
@with_client
def search(
    client: Client,
    /,
    *,
    query: str,
    collections: tuple[str, ...],
    k: int | None,
    type_: str | None,
    debug: bool,
    conditions: dict[str, Any],
    timeout_s: float,
    as_json: bool,
    **options: Any,
) -> int:
    """Show the passages of a collection that answer QUERY.

    \b
    Examples:
      sluice search "renewing a pass" -c handbook
      sluice search "opening hours" -c handbook --filter team=office | cut -f 1,2
      sluice search "B-2041" -c handbook -c contracts --type lexical --expand 1
      sluice search "parking" -c handbook --filter 'year>=2024' --filter 'team in office, desk'
    """
    where = collections[0] if len(collections) == 1 else collections
    options = _without_none(type=type_, debug=debug or None, **options)
    job_input = search_input(
        where, query, k=k, filter=conditions, search=cast("SearchOptions", options)
    )
    job = finished_job(client, "search", job_input, doing="Searching", timeout_s=timeout_s)
    hits = [Hit.model_validate(hit) for hit in client.result(job)["hits"]]
    if as_json:
        print_json({"job_id": job.id, "hits": hits, "warnings": job.warnings})
        return 0
    if not hits:
        say("Nothing found.")
    if not stdout().is_terminal:
        for hit in hits:
            print_record(hit.score, hit.source, hit.start, hit.chunk_id, hit.text)
        return 0
    for number, hit in enumerate(hits, start=1):
        source = f"{hit.collection}: {hit.source}" if hit.collection else hit.source
        start = "" if hit.start is None else f", from character {hit.start:,}"
        print_text(f"{number}. {source} ({hit.score:.2f}{start})", style="bold")
        print_text(f"   {first_words(hit.text, (stdout().width - 4) * _LINES)}")
        if hit.debug is not None:
            print_text("   " + ", ".join(f"{key} {value}" for key, value in hit.debug.items()))
    return 0


def _without_none(**options: Any) -> dict[str, Any]:
    return {name: value for name, value in options.items() if value is not None}


PASSAGE_CELLS = 100
"""The length of a passage in a pipe. On a terminal it fills the line."""


@click.command()
@click.argument("question")
@_collection
@_k("How many passages to use.")
@click.option(
    "--model",
    metavar="REFERENCE",
    shell_complete=complete_models,
    help="Such as extractive or ollama/llama3.2.",
)
@_type
@_rerank
@_expand
@sampling_options
@click.option(
    "--prompt", metavar="NAME[@VERSION]", shell_complete=complete_prompts, help="A stored prompt."
)
@variables_option
@click.option(
    "--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PATH",
    help="A prompt of your own, with the places {context} and {question}.",
)  # fmt: skip
@_filter
@click.option(
    "--stream/--no-stream", default=None,
    help="Show the answer as it comes; on a terminal unless told otherwise.",
)  # fmt: skip
@_timeout(300.0)
@with_client
def ask(
    client: Client,
    *,
    question: str,
    collection: str,
    k: int | None,
    model: str | None,
    parameters: dict[str, Any],
    prompt: str | None,
    variables: dict[str, str],
    prompt_file: Path | None,
    type_: str | None,
    rerank: str | None,
    expand: int | None,
    conditions: dict[str, Any],
    stream: bool | None,
    timeout_s: float,
    as_json: bool,
) -> int:
    """Answer QUESTION from the documents of a collection, with sources.

    \b
    Examples:
      sluice ask "How do I renew my pass?" -c handbook
      sluice ask "Who may park on B2?" -c handbook --filter year=2026 --k 3 --json
      sluice ask "Sum up the incident" -c handbook --model ollama/llama3.2
    """
    if prompt is not None and prompt_file is not None:
        raise click.UsageError("Give either --prompt or --prompt-file.")
    options: dict[str, Any] = {
        "k": k,
        "model": model,
        "filter": conditions,
        "search": _without_none(type=type_, rerank=rerank, expand=expand),
        "parameters": parameters,
        "prompt": prompt if prompt_file is None else _prompt(prompt_file),
        "variables": variables,
    }
    job_input = rag_input(collection, question, **options)
    if not as_json and (stdout().is_terminal if stream is None else stream):
        job: Job = client.submit("rag", job_input, lane="interactive")
        job = show_answer(client, job, timeout_s=timeout_s)
        _show_sources(Answer.model_validate(client.result(job)))
        print_remarks(job.result)
        print_warnings(job)
        return 0
    job = finished_job(
        client, "rag", job_input, doing="Looking for the answer", timeout_s=timeout_s
    )
    answer = Answer.model_validate(client.result(job))
    if as_json:
        print_json({"job_id": job.id, **jsonable(answer), "warnings": job.warnings})
        return 0
    print_text(answer.answer)
    _show_sources(answer)
    print_remarks(answer.model_dump())
    return 0


def _prompt(path: Path) -> str:
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"{path} is no UTF-8 text ({error}).") from error


def _show_sources(answer: Answer) -> None:
    if answer.citations:
        print_text()
    for citation in answer.citations:
        head = f"{_marker(citation.marker)} {citation.source} ({citation.score:.2f}) — "
        console = stdout()
        room = console.width - cell_len(head) if console.is_terminal else PASSAGE_CELLS
        print_text(head + first_words(citation.text, max(room, 20)))


def _marker(marker: str) -> str:
    return marker if marker.startswith("[") else f"[{marker}]"
