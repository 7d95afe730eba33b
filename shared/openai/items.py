"""Items of responses and conversations, and the chat messages that correspond to them.

The messages of a chat (`shared.kinds.chat.ChatMessage`) are stored, items are not. An assistant's
message with tool calls corresponds to several items; calls of `search_collection` are
`file_search_call` items with the passages that were found.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Discriminator, Field, Tag

from shared.bounds import Line, shown
from shared.kinds.chat import SEARCH_TOOL, ChatResult, ToolSearch
from shared.kinds.rag import RagResult
from shared.kinds.search import Hit
from shared.openai.file_search import (
    LIMIT_KEY_CHARS,
    LIMIT_PAIRS,
    LIMIT_VALUE_CHARS,
    score_of,
    shown_attributes,
)
from shared.openai.wire import TEXT_CHARS, NoEffect, WireArguments, WireContent, id_of
from shared.vocabulary import WireShape

# Parameters of several routes

Include = Literal[
    "file_search_call.results", "message.output_text.logprobs", "web_search_call.results",
    "web_search_call.action.sources", "code_interpreter_call.outputs",
    "computer_call_output.output.image_url", "message.input_image.image_url",
    "reasoning.encrypted_content",
]  # fmt: skip
"""Only the first two concern items that exist here; the others change nothing."""
WITH_RESULTS: Include = "file_search_call.results"
WITH_LOGPROBS: Include = "message.output_text.logprobs"


WireMetadata = Annotated[
    dict[
        Annotated[str, Field(max_length=LIMIT_KEY_CHARS)],
        Annotated[str, Field(max_length=LIMIT_VALUE_CHARS)],
    ],
    Field(max_length=LIMIT_PAIRS),
]

# Items that clients send

FILE_PREFIX = "file-"
ITEMS_LIMIT = 1000
RESULTS_LIMIT = 1000


class MessageItem(WireShape):
    type: Literal["message"] = "message"
    role: Literal["user", "assistant", "system", "developer"]
    content: WireContent
    id: NoEffect = None
    status: NoEffect = None
    phase: NoEffect = None


class FunctionCallItem(WireShape):
    type: Literal["function_call"]
    call_id: Line
    name: Line
    arguments: WireArguments
    id: NoEffect = None
    status: NoEffect = None
    caller: NoEffect = None
    created_by: NoEffect = None


class FunctionCallOutputItem(WireShape):
    type: Literal["function_call_output"]
    call_id: Line
    output: WireContent
    id: NoEffect = None
    status: NoEffect = None
    caller: NoEffect = None
    name: NoEffect = None
    created_by: NoEffect = None


class FileSearchResult(WireShape):
    file_id: NoEffect = None
    filename: Line = ""
    text: Annotated[str, Field(max_length=TEXT_CHARS)] = ""
    score: NoEffect = None
    attributes: NoEffect = None


class FileSearchCallItem(WireShape):
    """A search of an earlier response. The model reads the passages again only if they are included
    (`include: ["file_search_call.results"]`)."""

    type: Literal["file_search_call"]
    id: Line
    queries: Annotated[tuple[Line, ...], Field(max_length=100)] = ()
    results: Annotated[tuple[FileSearchResult, ...], Field(max_length=RESULTS_LIMIT)] = ()
    status: NoEffect = None


class ReasoningItem(WireShape):
    """The reasoning of a model on another server; models here do not read it."""

    type: Literal["reasoning"]
    id: NoEffect = None
    summary: NoEffect = None
    content: NoEffect = None
    encrypted_content: NoEffect = None
    status: NoEffect = None


class ItemReference(WireShape):
    """An item of a stored response."""

    type: Literal["item_reference"] = "item_reference"
    id: Line


ITEM_TYPES = (
    "message", "function_call", "function_call_output", "file_search_call", "reasoning",
    "item_reference",
)  # fmt: skip


def tag_of(value: Any) -> str:
    """The tag of a member of a union by type. The angle brackets mark it as no part of the path of
    an error."""
    type_ = value.get("type") if isinstance(value, Mapping) else getattr(value, "type", None)
    return f"<{str(type_)[:100]}>"


def _item_tag_of(value: Any) -> str:
    """As `tag_of`; messages and references may lack their type."""
    if isinstance(value, Mapping) and value.get("type") is None:
        if "role" in value:
            return "<message>"
        return "<item_reference>" if set(value) <= {"id", "type"} and "id" in value else "<>"
    return tag_of(value)


def none_of(types: Sequence[str], remedy: str) -> Any:
    """Keyword arguments of a `Discriminator`: the error for a member of another type."""
    message = f"is of no type that is supported here ({', '.join(types)}); {remedy}"
    return {"custom_error_type": "unsupported_type", "custom_error_message": message}


InputItem = Annotated[
    Annotated[MessageItem, Tag("<message>")]
    | Annotated[FunctionCallItem, Tag("<function_call>")]
    | Annotated[FunctionCallOutputItem, Tag("<function_call_output>")]
    | Annotated[FileSearchCallItem, Tag("<file_search_call>")]
    | Annotated[ReasoningItem, Tag("<reasoning>")]
    | Annotated[ItemReference, Tag("<item_reference>")],
    Discriminator(_item_tag_of, **none_of(ITEM_TYPES, "send what it says as a message")),
]

Resolve = Callable[[str], InputItem]
"""The item of an id. Raises InvalidInput."""


def chat_messages(items: Sequence[InputItem], resolve: Resolve) -> list[dict[str, Any]]:
    """The chat messages that correspond to items."""
    messages: list[dict[str, Any]] = []
    calls: list[dict[str, Any]] | None = None
    """The tool calls of the last message, if that is the assistant's."""
    for item in items:
        if isinstance(item, ItemReference):
            item = resolve(item.id)
        match item:
            case MessageItem(role="assistant"):
                calls = []
                if item.content:
                    messages.append(_assistant(item.content, calls))
            case MessageItem():
                role = "system" if item.role == "developer" else item.role
                messages.append({"role": role, "content": item.content})
                calls = None
            case FunctionCallItem():
                if calls is None or not messages or messages[-1]["role"] != "assistant":
                    calls = []
                    messages.append(_assistant("", calls))
                calls.append(_call(item.call_id, item.name, item.arguments))
            case FunctionCallOutputItem():
                messages.append(_tool(item.call_id, item.output))
                calls = None
            case FileSearchCallItem(results=[_, *_]):
                query = {"query": " ".join(item.queries)}
                messages.append(_assistant("", [_call(item.id, SEARCH_TOOL, query)]))
                messages.append(_tool(item.id, _passages(item.results)))
                calls = None
            case _:
                pass  # models here do not read the other items
    return messages


def _assistant(content: str, calls: list[dict[str, Any]]) -> dict[str, Any]:
    return {"role": "assistant", "content": content, "tool_calls": calls}


def _tool(call_id: str, content: str) -> dict[str, Any]:
    return {"role": "tool", "tool_call_id": call_id, "content": content}


def _call(id_: str, name: str, arguments: Mapping[str, Any]) -> dict[str, Any]:
    return {"id": id_, "type": "function", "function": {"name": name, "arguments": arguments}}


def _passages(results: Sequence[FileSearchResult]) -> str:
    return "\n\n".join(f"{result.filename}:\n{result.text}" for result in results)[:TEXT_CHARS]


# The id of an item consists of that of the job or conversation, and the item's place in it.

ITEM_ID = re.compile(r"(?:msg|fc|fco|fs)_([0-9a-f]{32})_[iox0-9]{1,20}", re.ASCII)


def owner_of(item_id: str) -> UUID | None:
    """The id of the job or conversation of an item; None for what is no id of an item."""
    match = ITEM_ID.fullmatch(item_id)
    return None if match is None else UUID(hex=match[1])


# Items that the server sends

MARKER = re.compile(r"\[ *(\d+(?: *[,;] *\d+)*) *\]", re.ASCII)
"""A citation of one or more passages, as `workers/generation/rag.py` writes it."""


@dataclass(frozen=True, kw_only=True)
class CitedFile:
    """The file of a passage."""

    file_id: str
    name: str
    attributes: Mapping[str, Any]

    @classmethod
    def of(cls, hit: Hit) -> "CitedFile":
        """The document of a hit as a file, if no uploaded file is known for it."""
        return cls(
            file_id=id_of(FILE_PREFIX, UUID(hit.document_id)),
            name=hit.source,
            attributes=shown_attributes(hit.metadata),
        )


@dataclass(kw_only=True)
class Passages:
    """The passages that the searches of a job have found, by the numbers by which the answer cites
    them; and their files, by document."""

    hits: dict[int, Hit] = field(default_factory=dict)
    files: dict[str, CitedFile] = field(default_factory=dict)

    def add(self, search: ToolSearch) -> None:
        self.hits.update(enumerate(search.hits, start=search.first))

    def file_of(self, hit: Hit) -> CitedFile:
        return self.files.get(hit.document_id) or CitedFile.of(hit)

    def citations(self, text: str) -> list[dict[str, Any]]:
        """The annotations of a text: one for each passage that a marker cites, at the marker."""
        if not self.hits:
            return []
        cited = [
            (match.start(), self.file_of(self.hits[number]))
            for match in MARKER.finditer(text)
            for number in map(int, re.findall(r"\d+", match[1][:100]))
            if number in self.hits
        ]
        return [
            {
                "type": "file_citation",
                "index": at,
                "file_id": file.file_id,
                "filename": file.name,
            }
            for at, file in cited
        ]

    def results(self, search: ToolSearch) -> list[dict[str, Any]]:
        return [
            {
                "file_id": (file := self.file_of(hit)).file_id,
                "filename": file.name,
                "score": score_of(hit),
                "text": hit.text,
                "attributes": dict(file.attributes),
            }
            for hit in search.hits
        ]


def output_text(
    text: str, annotations: Sequence[Mapping[str, Any]], logprobs: Sequence[Mapping[str, Any]] = ()
) -> dict[str, Any]:
    return {
        "type": "output_text",
        "text": text,
        "annotations": list(annotations),
        "logprobs": list(logprobs),
    }


@dataclass(frozen=True, kw_only=True)
class ItemWriter:
    """Makes the items of one job or conversation."""

    owner: UUID
    passages: Passages = field(default_factory=Passages)
    with_results: bool = False
    """Whether items of searches include the passages that were found."""

    def message(
        self, place: int | str, content: Sequence[Mapping[str, Any]], status: str
    ) -> dict[str, Any]:
        return {
            "id": f"msg_{self.owner.hex}_{place}",
            "type": "message",
            "role": "assistant",
            "status": status,
            "content": list(content),
        }

    def function_call(
        self, place: int | str, call: Mapping[str, Any], status: str = "completed"
    ) -> dict[str, Any]:
        arguments = json.dumps(call["function"].get("arguments", {}), ensure_ascii=False)
        return {
            "id": f"fc_{self.owner.hex}_{place}",
            "type": "function_call",
            "status": status,
            "call_id": str(call["id"]),
            "name": call["function"]["name"],
            "arguments": arguments,
        }

    def file_search_call(
        self, place: int | str, call: Mapping[str, Any], search: ToolSearch | None
    ) -> dict[str, Any]:
        """`search` is None if the call failed because of its arguments."""
        query = call["function"].get("arguments", {}).get("query")
        item: dict[str, Any] = {
            "id": f"fs_{self.owner.hex}_{place}",
            "type": "file_search_call",
            "status": "completed" if search is not None else "failed",
            "queries": [query] if isinstance(query, str) else [],
        }
        if self.with_results:
            item["results"] = self.passages.results(search) if search is not None else None
        return item

    def message_items(
        self, place: str, message: Mapping[str, Any], searches: set[str]
    ) -> Iterator[dict[str, Any]]:
        """The items of a message. `searches` collects the ids of search calls; their results, which
        come in later messages, are not shown."""
        content, role = message.get("content", ""), message["role"]
        if role == "tool":
            if message["tool_call_id"] not in searches:
                yield {
                    "id": f"fco_{self.owner.hex}_{place}",
                    "type": "function_call_output",
                    "call_id": message["tool_call_id"],
                    "output": content,
                    "status": "completed",
                }
        elif role != "assistant":
            yield {
                "id": f"msg_{self.owner.hex}_{place}",
                "type": "message",
                "role": role,
                "status": "completed",
                "content": [{"type": "input_text", "text": content}],
            }
        else:
            if content:
                yield self.message(place, [output_text(content, [])], "completed")
            for number, call in enumerate(message.get("tool_calls", ())):
                at = f"{place}x{number}"
                if call["function"]["name"] == SEARCH_TOOL:
                    searches.add(call["id"])
                    yield {**self.file_search_call(at, call, None), "status": "completed"}
                else:
                    yield self.function_call(at, call)

    def input_items(self, messages: Sequence[Mapping[str, Any]]) -> Iterator[dict[str, Any]]:
        """The items of messages that were the input of a job."""
        searches: set[str] = set()
        for number, message in enumerate(messages):
            yield from self.message_items(f"i{number}", message, searches)


@dataclass(frozen=True, kw_only=True)
class ModelAnswer:
    """One answer of the model: its text, and those of its tool calls that clients see."""

    text: str
    calls: Sequence[Mapping[str, Any]]
    is_last: bool = False

    @property
    def has_message(self) -> bool:
        return bool(self.text) or (self.is_last and not self.calls)


def turns_of(result: ChatResult) -> list[ModelAnswer]:
    last = ModelAnswer(
        text=result.message.get("content", ""),
        calls=result.message.get("tool_calls", ()),
        is_last=True,
    )
    return [*settled_turns(result.steps), last]


def settled_turns(steps: Sequence[Mapping[str, Any]]) -> list[ModelAnswer]:
    """The answers whose tool calls were run, from the messages that a chat has added so far."""
    return [
        ModelAnswer(
            text=message.get("content", ""),
            calls=[
                call
                for call in message.get("tool_calls", ())
                if call["function"]["name"] == SEARCH_TOOL
            ],
        )
        for message in steps
        if message["role"] == "assistant"
    ]


def read_result(values: Mapping[str, Any], passages: Passages) -> ChatResult:
    """The result of a `chat`; that of a `rag` in the same shape, and its citations are added to
    `passages`."""
    if "answer" not in values:
        return ChatResult.model_validate(values)
    result = RagResult.model_validate(values)
    for citation in result.citations:
        passages.hits[int(citation.marker.strip("[]"))] = citation
    return ChatResult(
        message={"role": "assistant", "content": result.answer},
        model=result.model,
        usage=result.usage,
        finish_reason=result.finish_reason,
    )


def no_item(id_: str) -> str:
    return f"there is no item {shown(id_)} in a stored response of this key; send the item itself"
