"""`sluice conversations`: list, show and erase stored conversations with models."""

import itertools
import json

import click

from cli.options import ListByDefault, complete_conversations, confirm, with_client
from cli.terminal.output import plural, print_fields, print_json, print_table, print_text, say
from sluice import Client, Conversation


@click.group(cls=ListByDefault)
def conversations() -> None:
    """List, show and erase conversations (alone: list)."""


@conversations.command("list")
@click.option("--limit", type=click.IntRange(min=1), default=20, show_default=True)
@with_client
def list_conversations(client: Client, *, limit: int, as_json: bool) -> int:
    """The newest conversations of your key."""
    items = list(itertools.islice(client.conversations(page_items=min(limit, 100)), limit))
    if as_json:
        print_json({"items": items})
        return 0
    print_table(
        ("id", "messages", "last turn", "metadata"),
        [(c.id, c.messages, c.updated_at, _metadata(c)) for c in items],
        flexible="metadata",
    )
    if not items:
        say("No conversations. `sluice chat` on a terminal starts one.")
    return 0


@conversations.command()
@click.argument("conversation_id", metavar="ID", shell_complete=complete_conversations)
@with_client
def show(client: Client, *, conversation_id: str, as_json: bool) -> int:
    """One conversation with all its messages."""
    conversation_id = client.whole_id("conversation", conversation_id)
    conversation = client.conversation(conversation_id)
    messages = client.conversation_messages(conversation_id)
    if as_json:
        print_json({"conversation": conversation, "messages": list(messages)})
        return 0
    fields = [
        ("id", conversation.id),
        ("messages", conversation.messages),
        ("last turn", conversation.updated_at),
        ("metadata", _metadata(conversation)),
        ("summary", conversation.summary),
    ]
    print_fields([(name, value) for name, value in fields if value])
    for row in messages:
        print_text()
        print_text(str(row.message.get("role")), style="bold")
        if content := row.message.get("content"):
            print_text(str(content))
        for call in row.message.get("tool_calls") or []:
            function = call["function"]
            arguments = json.dumps(function["arguments"], ensure_ascii=False)
            print_text(f"> {function['name']} {arguments}", style="dim")
    return 0


@conversations.command()
@click.argument("conversation_id", metavar="ID", shell_complete=complete_conversations)
@click.option("--yes", "-y", is_flag=True, help="Do not ask.")
@with_client
def erase(client: Client, *, conversation_id: str, yes: bool, as_json: bool) -> int:
    """Erase a conversation with all its messages. Its jobs stay until retention removes them."""
    conversation_id = client.whole_id("conversation", conversation_id)
    if not yes:
        conversation = client.conversation(conversation_id)
        confirm(f"Erase the conversation with its {plural(conversation.messages, 'message')}?")
    client.erase_conversation(conversation_id)
    if as_json:
        print_json({"erased": conversation_id})
    else:
        print_text(f"Erased {conversation_id}.")
    return 0


def _metadata(conversation: Conversation) -> str:
    metadata = conversation.metadata
    return json.dumps(metadata, ensure_ascii=False) if metadata else ""
