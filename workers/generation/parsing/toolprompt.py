"""Tools, calls and results as text, for models whose chat template knows none (Hermes format)."""

import json
from collections.abc import Sequence

from workers.generation.engine import Message, Role, Tool
from workers.generation.parsing.toolcalls import HERMES, HERMES_END
from workers.generation.prompts.fence import disarm


def describe(tools: Sequence[Tool]) -> str:
    """The text for the system prompt of a model whose template knows no tools."""
    told = "\n".join(
        json.dumps(
            {
                "type": "function",
                "function": {
                    "name": tool.name,
                    "description": tool.description,
                    "parameters": tool.parameters,
                },
            },
            ensure_ascii=False,
        )
        for tool in tools
    )
    return (
        "# Tools\n\n"
        "You may call one or more functions to assist with the user query.\n\n"
        "You are provided with function signatures within <tools></tools> XML tags:\n"
        f"<tools>\n{told}\n</tools>\n\n"
        "For each function call, return a json object with function name and arguments within "
        f"{HERMES}{HERMES_END} XML tags:\n"
        f'{HERMES}\n{{"name": <function-name>, "arguments": <args-json-object>}}\n{HERMES_END}'
    )


def spell_out(messages: Sequence[Message], tools: Sequence[Tool]) -> list[Message]:
    """The messages for a model whose template knows no tools: all of it as text.

    The tools are described in the system prompt; calls become text of the assistant, and the
    results that follow each other one message of the user.
    """
    spelled: list[Message] = []
    answered: list[str] = []
    if tools and (not messages or messages[0].role != Role.SYSTEM):
        spelled.append(Message(role=Role.SYSTEM, content=describe(tools)))
    for number, message in enumerate(messages):
        if message.role == Role.TOOL:
            answered.append(f"<tool_response>\n{disarm(message.content)}\n</tool_response>")
            continue
        _add_answers(spelled, answered)
        content = message.content
        if tools and number == 0 and message.role == Role.SYSTEM:
            content = f"{content}\n\n{describe(tools)}"
        calls = [
            f"{HERMES}\n"
            f"{json.dumps({'name': call.name, 'arguments': call.arguments}, ensure_ascii=False)}\n"
            f"{HERMES_END}"
            for call in message.tool_calls
        ]
        spelled.append(
            Message(role=message.role, content="\n".join([content, *calls] if content else calls))
        )
    _add_answers(spelled, answered)
    return spelled


def _add_answers(spelled: list[Message], answered: list[str]) -> None:
    if answered:
        spelled.append(Message(role=Role.USER, content="\n".join(answered)))
        answered.clear()
