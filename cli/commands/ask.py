"""`sluice ask`: a question, its answer, and the passages that the answer rests on."""

from pathlib import Path
from typing import Any

import click
from rich.cells import cell_len

from cli import completions
from cli.options import filter_values, sampling_options, with_client
from cli.terminal.answers import finished_job, show_answer, tell_remarks, tell_warnings
from cli.terminal.output import first_words, jsonable, print_json, print_text, stdout
from sluice import Answer, Client
from sluice.inputs import rag_input

PASSAGE_CELLS = 100
"""How much of a passage a pipe gets; a terminal gets what fits its line."""


@click.command()
@click.argument("question")
@click.option(
    "--collection",
    "-c",
    required=True,
    metavar="NAME",
    shell_complete=completions.collections,
    help="Where to look.",
)
@click.option("--k", type=click.IntRange(1, 100), help="How many passages to use.")
@click.option(
    "--model",
    metavar="REFERENCE",
    shell_complete=completions.models,
    help="Such as extractive or ollama/llama3.2.",
)
@sampling_options
@click.option(
    "--prompt-file", type=click.Path(exists=True, dir_okay=False, path_type=Path), metavar="PATH",
    help="A prompt of your own, with the places {context} and {question}.",
)  # fmt: skip
@click.option(
    "--filter", "conditions", multiple=True, metavar="KEY=VALUE", callback=filter_values,
    help="Only documents with this metadata; may be repeated.",
)  # fmt: skip
@click.option(
    "--stream/--no-stream", default=None,
    help="Show the answer as it comes; on a terminal unless told otherwise.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=300.0,
    show_default=True, metavar="SECONDS", help="Give up waiting after this time.",
)  # fmt: skip
@with_client
def ask(
    client: Client,
    *,
    question: str,
    collection: str,
    k: int | None,
    model: str | None,
    parameters: dict[str, Any],
    prompt_file: Path | None,
    conditions: dict[str, str | int | float | bool],
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
    options: dict[str, Any] = {
        "k": k,
        "model": model,
        "filter": conditions,
        "parameters": parameters,
        "prompt": None if prompt_file is None else _prompt(prompt_file),
    }
    job_input = rag_input(collection, question, **options)
    if not as_json and (stdout().is_terminal if stream is None else stream):
        job = client.submit("rag", job_input, lane="interactive")
        job = show_answer(client, job, timeout_s=timeout_s)
        _show_sources(Answer.model_validate(client.result(job)))
        tell_remarks(job.result)
        tell_warnings(job)
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
    tell_remarks(answer.model_dump())
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
