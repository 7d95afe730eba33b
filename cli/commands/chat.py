"""`sluice chat`: an answer of a model as it comes, or a whole conversation on the terminal."""

import sys
from collections.abc import Mapping, Sequence
from contextlib import suppress
from typing import Any

import click

from cli.errors import ERRORS
from cli.options import (
    complete_conversations,
    complete_models,
    complete_prompts,
    sampling_options,
    variables_option,
    with_client,
)
from cli.terminal.output import print_json, say, stdout
from cli.terminal.progress import print_remarks, print_warnings, show_answer, waiting
from cli.values import Number
from sluice import Client, Job
from sluice.inputs import chat_input, user_messages

PROMPT = "> "
NEW = "new"


def chat_lines(
    client: Client,
    *,
    system: str | None,
    conversation_id: str | None,
    options: Mapping[str, Any],
) -> str | None:
    """Answer lines of the terminal in one stored conversation until Ctrl-D; returns its id.

    The first line starts the conversation if there is none. `options` are those of `chat_input`. A
    turn that fails or is cancelled does not end the chat.
    """
    with suppress(ImportError):
        import readline  # noqa: F401  # its import gives input() line editing and a history

    say("Ctrl-C cancels an answer, Ctrl-D ends.")
    while True:
        try:
            text = input(PROMPT)
        except EOFError:
            say("")
            return conversation_id
        except KeyboardInterrupt:
            say("")
            continue
        if not text.strip():
            continue
        try:
            if conversation_id is None:
                conversation_id = client.start_conversation().id
            job: Job = client.submit(
                "chat",
                chat_input(user_messages(text, system), conversation_id=conversation_id, **options),
                lane="interactive",
            )
            job = show_answer(client, job)
            print_remarks(job.result)
            print_warnings(job)
        except KeyboardInterrupt:
            say("\nCancelled. This turn is not part of the conversation.")
        except ERRORS as error:
            say(f"sluice: {error.message}")


@click.command()
@click.argument("text", required=False, metavar="[TEXT|-]")
@click.option(
    "--model",
    metavar="REFERENCE",
    shell_complete=complete_models,
    help="Such as ollama/llama3.2; else the default.",
)
@click.option(
    "--conversation",
    metavar="ID|new",
    shell_complete=complete_conversations,
    help="Go on with one, or start one.",
)
@click.option("--system", metavar="TEXT", help="The system prompt.")
@click.option(
    "--prompt", metavar="NAME[@VERSION]", shell_complete=complete_prompts,
    help="A stored prompt: the system's beside TEXT, the user's without.",
)  # fmt: skip
@variables_option
@sampling_options
@click.option(
    "--tool", "tools", multiple=True, metavar="NAME",
    help="calculator, fetch_url, search_collection:COLLECTION or mcp:SERVER; may be repeated.",
)  # fmt: skip
@click.option(
    "--timeout", "timeout_s", type=Number(min=0, min_open=True), metavar="SECONDS",
    help="Give up waiting for an answer after this time.",
)  # fmt: skip
@with_client
def chat(
    client: Client,
    *,
    text: str | None,
    model: str | None,
    conversation: str | None,
    system: str | None,
    prompt: str | None,
    variables: dict[str, str],
    parameters: dict[str, Any],
    tools: tuple[str, ...],
    timeout_s: float | None,
    as_json: bool,
) -> int:
    """Have a model answer TEXT (- reads it from standard input).

    Without TEXT on a terminal: a chat in one conversation, line by line.

    \b
    Examples:
      sluice chat --model ollama/llama3.2
      sluice chat "How many days are 17 weeks?" --tool calculator
      sluice chat - --system "Answer in Korean." < question.txt
    """
    options: dict[str, Any] = {
        "model": model,
        "tools": tools,
        "parameters": parameters,
        "prompt": prompt,
        "variables": variables,
    }
    conversation_id = (
        None if conversation in (None, NEW) else client.whole_id("conversation", conversation)
    )
    if text is None and prompt is None and sys.stdin.isatty():
        if as_json or not stdout().is_terminal:
            raise click.UsageError("Give a TEXT, or - to read one from standard input.")
        if conversation_id is not None:
            client.conversation(conversation_id)  # raises NotFound now, not at the first line
        conversation_id = chat_lines(
            client, system=system, conversation_id=conversation_id, options=options
        )
        if conversation_id is not None:
            say(f"Go on with `sluice chat --conversation {conversation_id}`.")
        return 0
    messages: Sequence[Mapping[str, Any]] = ()
    if text is not None or prompt is None:
        messages = user_messages(_text(text), system)
    elif system is not None:
        raise click.UsageError("--system goes with a TEXT; --prompt alone is the user's message.")
    if conversation == NEW:
        conversation_id = client.start_conversation().id
        say(f"Conversation {conversation_id}")
    job_input = chat_input(messages, conversation_id=conversation_id, **options)
    job: Job = client.submit("chat", job_input, lane="interactive")
    if not as_json:
        job = show_answer(client, job, timeout_s=timeout_s)
        print_remarks(job.result)
        print_warnings(job)
        return 0
    with waiting("Waiting for the model") as show:
        job = client.wait(job.id, timeout_s=timeout_s, on_waiting=show).require_success()
    print_warnings(job)
    print_json({"job_id": job.id, "conversation_id": conversation_id, **(job.result or {})})
    return 0


def _text(text: str | None) -> str:
    if text not in (None, "-"):
        return str(text)
    try:
        text = sys.stdin.buffer.read().decode("utf-8")
    except UnicodeDecodeError as error:
        raise click.UsageError(f"Standard input is no UTF-8 text ({error}).") from error
    if not text.strip():
        raise click.UsageError("Standard input holds no text.")
    return text
