"""The built-in tools: how they are described to models, and how a call is run.

Every call gets a text back; what it got wrong, it reads as `error: ...` and can put
right. Only trouble of Sluice's own is raised: a store that does not answer, a job that is to stop.
This module is light, so that generation workers can describe the tools that CPU workers run.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Final

from pydantic import Field, ValidationError

from shared.errors import InvalidInput, NotFound
from shared.kinds.chat import SEARCH_TOOL, BuiltInTool, FunctionSpec, McpTool, RemoteTool
from shared.kinds.search import Hit, SearchOptions
from shared.vocabulary import Shape
from workers.attempts.context import Context
from workers.fences import code_for, cut_block

CALCULATOR: Final = "calculator"
FETCH_URL: Final = "fetch_url"

_CUT_NOTE: Final = " (cut: the rest is too long)"


class CalculatorArguments(Shape):
    expression: Annotated[
        str, Field(description="Arithmetic such as (3 + 4) * 2 ** 0.5, with functions like sqrt")
    ]


class FetchArguments(Shape):
    url: Annotated[str, Field(description="A whole address with http:// or https://")]


class SearchArguments(Shape):
    query: Annotated[str, Field(min_length=1, description="What to look for, as a phrase")]
    k: Annotated[int, Field(ge=1, le=20, description="How many passages")] = 5
    collection: Annotated[str | None, Field(description="Where to look")] = None


@dataclass(frozen=True, kw_only=True)
class ToolOutput:
    """What came of a call: the text that the model reads; of a search, also what it found."""

    text: str
    query: str = ""
    hits: Sequence[Hit] | None = None
    """None where nothing was searched."""


def tools(
    allowed: Sequence[BuiltInTool], remote: Sequence[RemoteTool] = ()
) -> tuple[FunctionSpec, ...]:
    """The descriptions of the tools that a model may use, in the order of `allowed`, and then those
    of MCP servers."""
    described: dict[str, FunctionSpec] = {}
    for built_in in allowed:
        if built_in.type == CALCULATOR:
            tool = FunctionSpec(
                name=CALCULATOR,
                description="Computes an arithmetic expression.",
                parameters=_parameters(CalculatorArguments),
            )
        elif built_in.type == FETCH_URL:
            tool = FunctionSpec(
                name=FETCH_URL,
                description="Reads a public web page and returns its text.",
                parameters=_parameters(FetchArguments),
            )
        else:
            tool = _search_tool(_searches(allowed))
        described.setdefault(tool.name, tool)
    others = (
        FunctionSpec(name=tool.name, description=tool.description, parameters=tool.parameters)
        for tool in remote
    )
    return (*described.values(), *others)


def run(
    context: Context,
    name: str,
    arguments: dict[str, Any],
    allowed: Sequence[BuiltInTool],
    *,
    remote: Sequence[RemoteTool] = (),
    first: int = 1,
) -> ToolOutput:
    """What comes of the model's call. Its text is at most `tool_result_limit_chars` long; passages
    in it are numbered from `first` on.

    Raises Cancelled where the step is to stop, and what the stores raise.
    """
    context.check()
    limit_chars = context.process.settings.tool_result_limit_chars
    try:
        for tool in remote:
            if tool.name == name:
                return ToolOutput(text=_call(context, tool, arguments, limit_chars))
        if name not in {built_in.type for built_in in allowed}:
            names = [built_in.type for built_in in allowed] + [tool.name for tool in remote]
            known = ", ".join(dict.fromkeys(names)) or "none"
            raise InvalidInput(f"there is no tool {name!r}; the tools are: {known}.")
        if name == CALCULATOR:
            result = _calculate(arguments)
        elif name == FETCH_URL:
            return ToolOutput(text=_fetch(context, arguments, limit_chars))
        else:
            return _search(context, arguments, _searches(allowed), first, limit_chars)
    except ValidationError as error:
        result = f"error: the arguments of {name} are wrong: {_problems(error)}"
    except (InvalidInput, NotFound) as error:
        result = f"error: {error.message}"
    return ToolOutput(text=_cut(result, limit_chars))


def remote_tools(context: Context, wished: Sequence[McpTool]) -> list[RemoteTool]:
    """The tools of MCP servers that a job may use. Raises what `workers/tools/mcp.py` does."""
    from workers.tools import mcp

    context.check()
    return mcp.listed(wished, context.process.settings, context.stop)


def _call(context: Context, tool: RemoteTool, arguments: dict[str, Any], limit_chars: int) -> str:
    # Imported here, since the SDK takes a second.
    from workers.tools import mcp

    return mcp.call(
        tool, arguments, context.process.settings, context.stop, limit_chars=limit_chars
    )


def _calculate(values: dict[str, Any]) -> str:
    from workers.tools.calculator import calculate

    return calculate(CalculatorArguments.model_validate(values).expression)


def _fetch(context: Context, values: dict[str, Any], limit_chars: int) -> str:
    from workers.tools.fetch import fetch

    arguments = FetchArguments.model_validate(values)
    page = fetch(arguments.url, context.process.settings, context.stop)
    attributes = {"url": page.url} | ({"title": page.title} if page.title else {})
    if page.is_cut:
        attributes["note"] = "only the beginning of the page"
    return cut_block("page", code_for([page.text]), page.text, limit_chars, **attributes)


def _search(
    context: Context,
    values: dict[str, Any],
    allowed: Sequence[BuiltInTool],
    first: int,
    limit_chars: int,
) -> ToolOutput:
    # Imported here, since it brings Chroma and the embedding library.
    from workers.retrieval.search import SearchRequest
    from workers.tools.search import search_collections

    arguments = SearchArguments.model_validate(values)
    named = [tool for tool in allowed if arguments.collection in tool.places]
    if arguments.collection is None and len(allowed) == 1:
        named = list(allowed)
    if not named:
        places = [place for tool in allowed for place in tool.places]
        raise InvalidInput(f"collection must be one of: {', '.join(places)}.")
    tool = named[0]
    request = SearchRequest(
        collections=tool.places,
        queries=[arguments.query],
        k=tool.k or arguments.k,
        options=tool.search or SearchOptions(),
    )
    shown = search_collections(
        context.process, request, least_score=tool.least_score, first=first,
        limit_chars=limit_chars, check=context.check,
    )  # fmt: skip
    return ToolOutput(text=shown.text, query=arguments.query, hits=shown.hits)


def _searches(allowed: Sequence[BuiltInTool]) -> list[BuiltInTool]:
    """The tools that search, one of each place."""
    return list({tuple(tool.places): tool for tool in allowed if tool.type == SEARCH_TOOL}.values())


def _search_tool(searches: Sequence[BuiltInTool]) -> FunctionSpec:
    parameters = _parameters(SearchArguments)
    places = [place for tool in searches for place in tool.places]
    if len(searches) == 1:
        del parameters["properties"]["collection"]
        where = f"the collection {places[0]!r}" if len(places) == 1 else "collections"
        if searches[0].k is not None:
            del parameters["properties"]["k"]
    else:
        parameters["properties"]["collection"] = {
            "type": "string",
            "enum": places,
            "description": "Where to look",
        }
        parameters["required"].append("collection")
        where = "a collection"
    return FunctionSpec(
        name=SEARCH_TOOL,
        description=(
            f"Finds the passages of {where} of documents that fit a query best. Put the number of "
            "a passage that a statement rests on in square brackets behind it, like [1]."
        ),
        parameters=parameters,
    )


def _parameters(shape: type[Shape]) -> dict[str, Any]:
    """The JSON Schema without the titles that pydantic makes of the names."""
    schema = shape.model_json_schema()
    properties = {
        name: {key: value for key, value in schema_.items() if key != "title"}
        for name, schema_ in schema["properties"].items()
    }
    return {
        "type": "object",
        "properties": properties,
        "required": schema.get("required", []),
        "additionalProperties": False,
    }


def _problems(error: ValidationError) -> str:
    return "; ".join(
        f"{'.'.join(map(str, problem['loc'])) or 'arguments'}: {problem['msg']}"
        for problem in error.errors(include_url=False, include_input=False)
    )


def _cut(text: str, limit_chars: int) -> str:
    if len(text) <= limit_chars:
        return text
    return text[: max(0, limit_chars - len(_CUT_NOTE))] + _CUT_NOTE
