"""Tools of MCP servers (`SLUICE_MCP_SERVERS`): which there are, and what comes of a call.

A server is one that the operator has named, at an address that no job chooses. A request to it has
a time in all (`timeout_s` of the server), stops with its step, follows no redirect to another
origin, goes through no proxy, and reads `mcp_limit_bytes` at most. What a server says is text of
others: it is cut, fenced, and never more than a result or a description.
"""

import json
import logging
import re
import threading
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any, Final, TypeVar

import httpx2
import mcp_types as types
from mcp import Client
from mcp.client.streamable_http import streamable_http_client
from mcp.shared.exceptions import MCPError

from shared.bounds import SCHEMA_LIMIT_BYTES, check_json, shown, storable_json, storable_text
from shared.config import McpServer, ToolSettings
from shared.errors import InvalidInput, Permanent, StepError, Unavailable
from shared.kinds.chat import McpTool, RemoteTool
from workers import outbound
from workers.fences import code_for, cut_block, disarm

log = logging.getLogger(__name__)

DESCRIPTION_CHARS: Final = 2000
SHOWN_TOOLS: Final = 30
NAME_CHARS: Final = 64
_NO_NAME: Final = re.compile(r"[^a-zA-Z0-9_-]")

T = TypeVar("T")


# Which tools there are


def listed(
    wished: Sequence[McpTool], settings: ToolSettings, stop: threading.Event
) -> list[RemoteTool]:
    """The tools of the servers that a job names, as models may call them.

    Raises Unavailable where a server does not answer, Permanent where it refuses, or has no tool of
    a name that the job allows, or has too many; Cancelled soon after `stop` is set.
    """
    tools: list[RemoteTool] = []
    for wish in wished:
        server = server_of(wish.server, settings)
        try:
            there = _within(server, wish.server, stop, settings, _all_tools)
        except _Failure as failure:
            raise failure.of_listing from failure
        tools += _chosen(wish, server, there)
    if len(tools) > settings.mcp_limit_tools:
        raise Permanent(
            f"The MCP servers {_names(wished)} have {len(tools)} tools; a job may offer "
            f"{settings.mcp_limit_tools} of them (SLUICE_MCP_LIMIT_TOOLS). Name the ones that are "
            "needed in `allowed_tools`."
        )
    return _with_names(tools)


def server_of(name: str, settings: ToolSettings) -> McpServer:
    """Raises Permanent: the API has checked it, but workers may have other settings."""
    server = settings.mcp_servers.get(name)
    if server is None:
        raise Permanent(
            f"This worker knows no MCP server {name!r}: set SLUICE_MCP_SERVERS for CPU workers as "
            "for the API."
        )
    return server


async def _all_tools(client: Client) -> list[types.Tool]:
    tools: list[types.Tool] = []
    cursor: str | None = None
    while True:
        page = await client.list_tools(cursor=cursor)
        tools += page.tools
        # A server that pages without end is ended by its time and its bytes.
        if not page.next_cursor or page.next_cursor == cursor:
            return tools
        cursor = page.next_cursor


def _chosen(wish: McpTool, server: McpServer, there: Sequence[types.Tool]) -> list[RemoteTool]:
    """In the server's order, which is the same at each attempt: they are stored with the job."""
    allowed = None if server.allowed_tools is None else {*server.allowed_tools}
    if wish.allowed_tools is not None:
        named = {*wish.allowed_tools}
        allowed = named if allowed is None else named & allowed
        lacking = [name for name in wish.allowed_tools if name not in {tool.name for tool in there}]
        if lacking:
            known = ", ".join(tool.name for tool in there[:SHOWN_TOOLS]) or "none"
            raise Permanent(
                f"The MCP server {wish.server!r} has no tool {shown(lacking[0])}; its tools are: "
                f"{shown(known, 1000)[1:-1]}."
            )
    chosen: list[RemoteTool] = []
    for tool in there:
        if allowed is not None and tool.name not in allowed:
            continue
        try:
            schema = check_json(storable_json(tool.input_schema), limit_bytes=SCHEMA_LIMIT_BYTES)
        except (ValueError, RecursionError) as error:
            raise Permanent(
                f"The tool {shown(tool.name)} of the MCP server {wish.server!r} has a schema that "
                "cannot be used. Leave it out, by naming others in `allowed_tools`."
            ) from error
        description = disarm(storable_text(tool.description or tool.title or ""))
        chosen.append(
            RemoteTool(
                server=wish.server,
                tool=storable_text(tool.name),
                name=_NO_NAME.sub("_", f"{wish.server}__{tool.name}")[:NAME_CHARS],
                description=description[:DESCRIPTION_CHARS],
                parameters=schema,
            )
        )
    return chosen


def _with_names(tools: Sequence[RemoteTool]) -> list[RemoteTool]:
    """Each with a name of its own, also where two became one by what models' names may not have."""
    taken: set[str] = set()
    named: list[RemoteTool] = []
    for tool in tools:
        name, number = tool.name, 2
        while name in taken:
            suffix = f"_{number}"
            name, number = tool.name[: NAME_CHARS - len(suffix)] + suffix, number + 1
        taken.add(name)
        named.append(tool.model_copy(update={"name": name}))
    return named


def _names(wished: Sequence[McpTool]) -> str:
    return ", ".join(dict.fromkeys(wish.server for wish in wished))


# What comes of a call


def call(
    tool: RemoteTool,
    arguments: dict[str, Any],
    settings: ToolSettings,
    stop: threading.Event,
    *,
    limit_chars: int,
) -> str:
    """What the model reads. Raises InvalidInput, with a message for the model, for whatever goes
    wrong at the server or on the way; Cancelled soon after `stop` is set."""
    server = server_of(tool.server, settings)

    async def work(client: Client) -> types.CallToolResult:
        return await client.call_tool(tool.tool, arguments)

    try:
        result = _within(server, tool.server, stop, settings, work)
    except _Failure as failure:
        raise InvalidInput(failure.message) from failure
    text = storable_text(_text(result))
    if result.is_error:
        # Fenced all the same: it is the server's own text.
        return "error: " + _fenced(tool, text or "no reason was given", limit_chars - 7)
    return _fenced(tool, text or "(an empty result)", limit_chars)


def _fenced(tool: RemoteTool, text: str, limit_chars: int) -> str:
    return cut_block(
        "result", code_for([text]), text, limit_chars, server=tool.server, tool=tool.tool
    )


def _text(result: types.CallToolResult) -> str:
    """What a result says in words; of what has none, what it is."""
    parts = [part for block in result.content if (part := _part(block))]
    if not parts and result.structured_content is not None:
        return json.dumps(result.structured_content, ensure_ascii=False)
    return "\n\n".join(parts)


def _part(block: types.ContentBlock) -> str:
    if isinstance(block, types.TextContent):
        return block.text
    if isinstance(block, types.ImageContent | types.AudioContent):
        return f"({block.mime_type}, which cannot be shown)"
    if isinstance(block, types.ResourceLink):
        return f"({block.name}: {block.uri})"
    resource = block.resource
    if isinstance(resource, types.TextResourceContents):
        return resource.text
    return f"({resource.uri}, which cannot be shown)"


# The way to a server


class _Failure(Exception):
    """What went wrong with a server; `message` is for a model or a user."""

    def __init__(self, message: str, *, may_pass: bool) -> None:
        super().__init__(message)
        self.message = message
        self.may_pass = may_pass

    @property
    def of_listing(self) -> StepError:
        return Unavailable(self.message) if self.may_pass else Permanent(self.message)


def _within(
    server: McpServer,
    name: str,
    stop: threading.Event,
    settings: ToolSettings,
    work: Callable[[Client], Awaitable[T]],
) -> T:
    """The result of `work` with a connection of its own. Raises _Failure, Cancelled."""
    at = f"the MCP server {name!r} (SLUICE_MCP_SERVERS)"

    async def whole() -> T:
        transport = _Limited(settings.mcp_limit_bytes)
        try:
            async with _connected(server, transport) as client:
                return await work(client)
        except Exception as error:
            raise _failure(at, error, transport.status) from error

    try:
        return outbound.within(whole, timeout_s=server.timeout_s, what=at, stop=stop)
    except outbound.Unreachable as error:
        raise _Failure(error.message, may_pass=True) from error


@asynccontextmanager
async def _connected(server: McpServer, transport: "_Limited") -> AsyncIterator[Client]:
    headers = {name: value.get_secret_value() for name, value in server.headers.items()}
    async with (
        httpx2.AsyncClient(
            headers={"user-agent": "Sluice", **headers, "accept-encoding": "identity"},
            transport=transport,
            timeout=server.timeout_s,
            trust_env=False,
        ) as http,
        Client(
            streamable_http_client(
                str(server.url),
                http_client=http,
                terminate_on_close=False,
                max_sse_event_size=transport.limit_bytes,
            ),
            cache=None,
            read_timeout_seconds=server.timeout_s,
        ) as client,
    ):
        yield client


class _TooLong(Exception):
    pass


class _Limited(httpx2.AsyncBaseTransport):
    """Reads so many bytes in all, of whatever answers come, and nothing that is packed."""

    def __init__(self, limit_bytes: int) -> None:
        self._transport = httpx2.AsyncHTTPTransport(trust_env=False)
        self.limit_bytes = self.left = limit_bytes
        self.status = 200
        """Of the last answer, of which the SDK tells nothing where it is an error."""

    async def handle_async_request(self, request: httpx2.Request) -> httpx2.Response:
        response = await self._transport.handle_async_request(request)
        self.status = response.status_code
        if response.headers.get("content-encoding", "identity").strip().lower() != "identity":
            await response.aclose()
            raise _TooLong("its answer is packed, which was not asked for")
        assert isinstance(response.stream, httpx2.AsyncByteStream)
        response.stream = _CountedStream(response.stream, self)
        return response

    def take(self, size: int) -> None:
        self.left -= size
        if self.left < 0:
            raise _TooLong(
                f"its answer is longer than {self.limit_bytes:,} bytes (SLUICE_MCP_LIMIT_BYTES)"
            )

    async def aclose(self) -> None:
        await self._transport.aclose()


class _CountedStream(httpx2.AsyncByteStream):
    def __init__(self, stream: httpx2.AsyncByteStream, limited: _Limited) -> None:
        self._stream, self._limited = stream, limited

    async def __aiter__(self) -> AsyncIterator[bytes]:
        async for block in self._stream:
            self._limited.take(len(block))
            yield block

    async def aclose(self) -> None:
        await self._stream.aclose()


def _failure(at: str, error: BaseException, status: int) -> _Failure:
    """The first error that says what has happened: the SDK's tasks raise them in groups."""
    while isinstance(error, BaseExceptionGroup):
        error = error.exceptions[0]
    if isinstance(error, _Failure):
        return error
    words = outbound.as_sentence(str(error) or type(error).__name__)
    if isinstance(error, _TooLong):
        return _Failure(f"{at} cannot be read: {words}", may_pass=False)
    if status in (401, 403):
        remedy = "Set its `headers` to a key that it takes."
        return _Failure(f"{at} answers {status}: {words} {remedy}", may_pass=False)
    if status >= 400:
        return _Failure(f"{at} answers {status}: {words}", may_pass=status >= 500 or status == 429)
    if isinstance(error, httpx2.HTTPError | OSError):
        return _Failure(f"{at} does not answer: {words}", may_pass=True)
    if isinstance(error, MCPError):
        return _Failure(f"{at} answers: {words}", may_pass=False)
    log.warning("%s: %s: %s", at, type(error).__name__, words)
    return _Failure(f"{at} answers what is not MCP: {words}", may_pass=False)
