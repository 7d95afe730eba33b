"""What the shell may offer for an argument: names and ids, as the API has them now.

Whatever goes wrong (no API, no key, a slow answer) offers nothing, and says nothing: a message
would break into the line that is being typed.
"""

from collections.abc import Callable, Iterable
from itertools import islice

import click
from click.shell_completion import CompletionItem

from cli.connection import connection
from cli.terminal.output import first_words
from shared.kinds.hf import TASKS
from sluice import Client, Retries

TIMEOUT_S = 1.0
SHOWN_ITEMS = 50
_HELP_CELLS = 60

Completer = Callable[[click.Context, click.Parameter, str], list[CompletionItem]]
Offers = Iterable[tuple[str, str]]
"""Values, and what is said beside them."""


def _completer(offers: Callable[[Client, click.Context], Offers]) -> Completer:
    def complete(
        ctx: click.Context, _parameter: click.Parameter, incomplete: str
    ) -> list[CompletionItem]:
        try:
            params = {**ctx.find_root().params, **{k: v for k, v in ctx.params.items() if v}}
            nothing_twice = Retries(connect_for_s=0, retry_for_s=0, busy_for_s=0)
            address = connection(params.get("url"), params.get("api_key"))
            with Client(*address, timeout_s=TIMEOUT_S, retries=nothing_twice) as client:
                matches = [
                    offer for offer in offers(client, ctx) if offer[0].startswith(incomplete)
                ]
        except Exception:
            return []
        return [
            CompletionItem(value, help=first_words(text, _HELP_CELLS)) for value, text in matches
        ]

    return complete


def _collections(client: Client, _: click.Context) -> Offers:
    for each in islice(client.collections(), SHOWN_ITEMS):
        yield each.name, f"{each.documents:,} documents"


def _jobs(client: Client, _: click.Context) -> Offers:
    for job in islice(client.jobs(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield job.id, f"{job.kind}, {job.state}"


def _documents(client: Client, ctx: click.Context) -> Offers:
    collection = ctx.params.get("collection")
    if not collection:
        return
    for each in islice(client.documents(collection, page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield each.source, f"{each.chunks:,} chunks"


def _conversations(client: Client, _: click.Context) -> Offers:
    for each in islice(client.conversations(page_items=SHOWN_ITEMS), SHOWN_ITEMS):
        yield each.id, f"{each.messages:,} messages"


def _models(client: Client, _: click.Context) -> Offers:
    for each in client.models():
        yield each.reference, " ".join(each.kinds)


def _queues(client: Client, _: click.Context) -> Offers:
    for each in client.queues():
        yield each.name, "paused" if each.paused else f"{each.queued:,} queued"


def hf_tasks(
    _ctx: click.Context, _parameter: click.Parameter, incomplete: str
) -> list[CompletionItem]:
    return [CompletionItem(name) for name in TASKS if name.startswith(incomplete)]


collections = _completer(_collections)
jobs = _completer(_jobs)
documents = _completer(_documents)
conversations = _completer(_conversations)
models = _completer(_models)
queues = _completer(_queues)
