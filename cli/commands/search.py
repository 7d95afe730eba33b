"""`sluice search`: the passages nearest to a query."""

import click

from cli import completions
from cli.options import filter_values, with_client
from cli.terminal.answers import finished_job
from cli.terminal.output import first_words, print_json, print_record, print_text, say, stdout
from sluice import Client, Hit
from sluice.inputs import search_input

_LINES = 3


@click.command()
@click.argument("query")
@click.option(
    "--collection",
    "-c",
    required=True,
    metavar="NAME",
    shell_complete=completions.collections,
    help="Where to look.",
)
@click.option("--k", type=click.IntRange(1, 100), help="How many passages to show.")
@click.option(
    "--filter", "conditions", multiple=True, metavar="KEY=VALUE", callback=filter_values,
    help="Only documents with this metadata; may be repeated.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=click.FloatRange(min=0, min_open=True), default=120.0,
    show_default=True, metavar="SECONDS", help="Give up waiting after this time.",
)  # fmt: skip
@with_client
def search(
    client: Client,
    *,
    query: str,
    collection: str,
    k: int | None,
    conditions: dict[str, str | int | float | bool],
    timeout_s: float,
    as_json: bool,
) -> int:
    """Show the passages of a collection that are nearest to QUERY.

    \b
    Examples:
      sluice search "renewing a pass" -c handbook
      sluice search "opening hours" -c handbook --filter team=office | cut -f 1,2
    """
    job_input = search_input(collection, query, k=k, filter=conditions)
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
        where = "" if hit.start is None else f", from character {hit.start:,}"
        print_text(f"{number}. {hit.source} ({hit.score:.2f}{where})", style="bold")
        print_text(f"   {first_words(hit.text, (stdout().width - 4) * _LINES)}")
    return 0
