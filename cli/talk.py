"""An interactive chat: lines of a terminal as the turns of one stored conversation."""

from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from cli.asking import chat_input, turn
from cli.client import Client
from cli.output import say
from cli.showing import show_answer, tell_remarks, tell_warnings
from shared.errors import SluiceError

PROMPT = "> "


def talk(
    client: Client,
    *,
    system: str | None,
    conversation_id: str | None,
    options: Mapping[str, Any],
) -> str | None:
    """Until Ctrl-D; the id of the conversation, which is started with the first line.

    `options` are those of `chat_input`. A turn that fails or is cancelled does not end the chat.
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
            job = client.submit(
                "chat",
                chat_input(turn(text, system), conversation_id=conversation_id, **options),
                lane="interactive",
            )
            job = show_answer(client, job)
            tell_remarks(job.result)
            tell_warnings(job)
        except KeyboardInterrupt:
            say("\nCancelled. This turn is not part of the conversation.")
        except SluiceError as error:
            say(f"sluice: {error.message}")
