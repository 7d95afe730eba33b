"""`sluice ask`: a question, its answer, and the passages that the answer rests on."""

import click
from rich.cells import cell_len

from cli.bars import waiting
from cli.client import Client
from cli.options import key_values, with_client
from cli.output import first_words, print_json, print_text, stdout
from cli.wire import Answer

PASSAGE_CELLS = 100
"""How much of a passage a pipe gets; a terminal gets what fits its line."""


@click.command()
@click.argument("question")
@click.option("--collection", "-c", required=True, metavar="NAME", help="Where to look.")
@click.option("--k", type=click.IntRange(1, 100), help="How many passages to use.")
@click.option("--model", metavar="REFERENCE", help="A model reference, such as extractive.")
@click.option(
    "--filter", "conditions", multiple=True, metavar="KEY=VALUE", callback=key_values,
    help="Only documents with this metadata; may be repeated.",
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
    conditions: dict[str, str | int | float | bool],
    timeout_s: float,
    as_json: bool,
) -> int:
    """Answer QUESTION from the documents of a collection, with sources."""
    with waiting("Looking for the answer"):
        answer = client.ask(
            collection, question, k=k, model=model, filter=conditions, timeout_s=timeout_s
        )
    if as_json:
        print_json(answer)
    else:
        _show(answer)
    return 0


def _show(answer: Answer) -> None:
    print_text(answer.answer)
    if answer.citations:
        print_text()
    for citation in answer.citations:
        head = f"{_marker(citation.marker)} {citation.source} ({citation.score:.2f}) — "
        console = stdout()
        room = console.width - cell_len(head) if console.is_terminal else PASSAGE_CELLS
        print_text(head + first_words(citation.text, max(room, 20)))


def _marker(marker: str) -> str:
    return marker if marker.startswith("[") else f"[{marker}]"
