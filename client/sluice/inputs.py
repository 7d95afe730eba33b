"""The `input` of chat, rag, search, hf and model jobs.

What is left out is left to the server's defaults. Nothing here talks to the network.
"""

from collections.abc import Mapping, Sequence
from typing import Any, cast

from sluice.errors import InvalidInput
from sluice.kinds import (
    BuiltInTool,
    ChatInput,
    ChatMessage,
    DeclaredTool,
    HfInput,
    McpTool,
    ModelInput,
    Parameters,
    RagInput,
    ResponseFormat,
    SearchInput,
    SearchOptions,
)

PROVIDER = "ollama/"
OTHER_PROVIDERS = ("hf/", "openai/")
SEARCH = "search_collection"
MCP = "mcp"
_PLACES = {SEARCH: "collection", MCP: "server"}

Messages = str | Sequence[ChatMessage] | Sequence[Mapping[str, Any]]
Tools = Sequence[str | BuiltInTool | DeclaredTool | McpTool | Mapping[str, Any]]


def chat_input(
    messages: Messages,
    *,
    prompt: str | None = None,
    variables: Mapping[str, Any] | None = None,
    model: str | None = None,
    conversation_id: str | None = None,
    tools: Tools = (),
    parameters: Parameters | None = None,
    response_format: ResponseFormat | None = None,
) -> ChatInput:
    """A text is one message of the user."""
    if isinstance(messages, str):
        messages = [{"role": "user", "content": messages}]
    fields = {"messages": [dict(message) for message in messages]} | _without_empty(
        prompt=prompt,
        variables=dict(variables or {}),
        model=model,
        conversation_id=conversation_id,
        tools=[tool_spec(tool) for tool in tools],
        parameters=dict(parameters or {}),
        response_format=response_format and dict(response_format),
    )
    return cast("ChatInput", fields)


def user_messages(text: str, system: str | None) -> Sequence[Mapping[str, Any]]:
    """What a user says. The server stores a system prompt once, however often it comes."""
    messages = [{"role": "user", "content": text}]
    return messages if system is None else [{"role": "system", "content": system}, *messages]


def rag_input(
    collection: str,
    question: str,
    *,
    k: int | None = None,
    filter: Mapping[str, Any] | None = None,
    search: SearchOptions | None = None,
    model: str | None = None,
    prompt: str | None = None,
    variables: Mapping[str, Any] | None = None,
    conversation_id: str | None = None,
    parameters: Parameters | None = None,
    response_format: ResponseFormat | None = None,
) -> RagInput:
    fields = {"collection": collection, "question": question} | _without_empty(
        k=k,
        search=_search(search, filter),
        model=model,
        prompt=prompt,
        variables=dict(variables or {}),
        conversation_id=conversation_id,
        parameters=dict(parameters or {}),
        response_format=response_format and dict(response_format),
    )
    return cast("RagInput", fields)


def search_input(
    collection: str | Sequence[str],
    query: str | Sequence[str],
    *,
    k: int | None = None,
    filter: Mapping[str, Any] | None = None,
    search: SearchOptions | None = None,
) -> SearchInput:
    """One query or several, in one collection or several."""
    where = {"collection" if isinstance(collection, str) else "collections": collection}
    what = {"query" if isinstance(query, str) else "queries": query}
    options = _without_empty(k=k, search=_search(search, filter))
    fields = {
        name: list(value) if isinstance(value, Sequence) and not isinstance(value, str) else value
        for name, value in (where | what | options).items()
    }
    return cast("SearchInput", fields)


def hf_input(
    task: str,
    inputs: Any,
    *,
    model: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    backend: str = "local",
) -> HfInput:
    """`inputs` is one input, or a list of them."""
    fields = {"task": task, "inputs": inputs, "backend": backend} | _without_empty(
        model=model, parameters=dict(parameters or {})
    )
    return cast("HfInput", fields)


def pull_input(name: str) -> ModelInput:
    return {"action": "pull", "name": of_ollama(name)}


def create_input(
    name: str,
    from_: str,
    *,
    system: str | None = None,
    template: str | None = None,
    parameters: Mapping[str, Any],
) -> ModelInput:
    names = {"action": "create", "name": of_ollama(name), "from": of_ollama(from_)}
    options = _without_empty(system=system, template=template, parameters=dict(parameters))
    return cast("ModelInput", names | options)


def delete_input(name: str) -> ModelInput:
    return {"action": "delete", "name": of_ollama(name)}


def of_ollama(name: str) -> str:
    """`llama3.2` and `ollama/llama3.2` are the same model. Raises InvalidInput for other ones."""
    if name.startswith(OTHER_PROVIDERS) or not name.removeprefix(PROVIDER):
        raise InvalidInput(
            f"{name!r} is no model of Ollama. Only these are pulled, made and deleted here; "
            "name one as llama3.2 or ollama/llama3.2."
        )
    return name if name.startswith(PROVIDER) else PROVIDER + name


def tool_spec(
    tool: str | BuiltInTool | DeclaredTool | McpTool | Mapping[str, Any],
) -> dict[str, Any]:
    """`search_collection:NAME`, `mcp:SERVER` and the bare names of the other built-in tools, or a
    whole spec."""
    if not isinstance(tool, str):
        return dict(tool)
    name, colon, place = tool.partition(":")
    if (name in _PLACES) != bool(colon and place):
        raise InvalidInput(
            f"{tool!r} does not name a tool; write calculator, fetch_url, {SEARCH}:COLLECTION or "
            f"{MCP}:SERVER."
        )
    return {"type": name, _PLACES[name]: place} if colon else {"type": name}


def _search(search: SearchOptions | None, filter: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(search or {}) | ({"filter": dict(filter)} if filter else {})


def _without_empty(**fields: Any) -> dict[str, Any]:
    """Without what is None or empty."""
    return {name: value for name, value in fields.items() if value is not None and value != {}
            and value != []}  # fmt: skip
