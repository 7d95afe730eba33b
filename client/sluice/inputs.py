"""The `input` of chat, rag, search, hf and model jobs.

Options that are left out get the server's defaults. Nothing here uses the network.
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
_TARGET_FIELDS = {SEARCH: "collection", MCP: "server"}
"""What follows the colon in the short form of these tools."""

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
    """A plain text is one message of the user."""
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
    """One message of the user. The server stores the system prompt once, even if repeated."""
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
    fields: dict[str, Any] = {}
    if isinstance(collection, str):
        fields["collection"] = collection
    else:
        fields["collections"] = list(collection)
    if isinstance(query, str):
        fields["query"] = query
    else:
        fields["queries"] = list(query)
    return cast("SearchInput", fields | _without_empty(k=k, search=_search(search, filter)))


def hf_input(
    task: str,
    inputs: Any,
    *,
    model: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    backend: str = "local",
) -> HfInput:
    """`inputs` is one input or a list of inputs."""
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
    """The reference of a model of Ollama: `llama3.2` becomes `ollama/llama3.2`.

    Raises InvalidInput for models of other providers.
    """
    if name.startswith(OTHER_PROVIDERS) or not name.removeprefix(PROVIDER):
        raise InvalidInput(
            f"{name!r} is no model of Ollama. Only these are pulled, made and deleted here; "
            "name one as llama3.2 or ollama/llama3.2."
        )
    return name if name.startswith(PROVIDER) else PROVIDER + name


def tool_spec(
    tool: str | BuiltInTool | DeclaredTool | McpTool | Mapping[str, Any],
) -> dict[str, Any]:
    """The spec of a tool, which may be given as `search_collection:NAME`, `mcp:SERVER`, or by the
    name of another built-in tool."""
    if not isinstance(tool, str):
        return dict(tool)
    name, colon, target = tool.partition(":")
    if (name in _TARGET_FIELDS) != bool(colon and target):
        raise InvalidInput(
            f"{tool!r} does not name a tool; write calculator, fetch_url, {SEARCH}:COLLECTION or "
            f"{MCP}:SERVER."
        )
    return {"type": name, _TARGET_FIELDS[name]: target} if colon else {"type": name}


def _search(search: SearchOptions | None, filter: Mapping[str, Any] | None) -> dict[str, Any]:
    return dict(search or {}) | ({"filter": dict(filter)} if filter else {})


def _without_empty(**fields: Any) -> dict[str, Any]:
    """The fields without those that are None or empty."""
    return {name: value for name, value in fields.items() if value not in (None, {}, [])}
