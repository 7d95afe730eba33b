"""OpenAI's published description, where SLUICE_OPENAPI_DESCRIPTION names its file (YAML), and what
answers have to be by it: the one place that checks them."""

import json
import os
import re
from base64 import b64decode
from collections.abc import Iterator, Mapping
from functools import cache
from pathlib import Path
from typing import Any

import httpx2
import numpy as np
import yaml
from jsonschema import Draft202012Validator
from referencing import Registry, Resource
from referencing.jsonschema import DRAFT202012

PATH = os.environ.get("SLUICE_OPENAPI_DESCRIPTION")
"""Read when this is imported: no setting reaches a test."""
PREFIX = "/openai/v1"
NOT_OPENAI = ("/rerank",)
"""Calls that others defined."""
UNTYPED_STREAMS = {
    "post /completions": "CreateCompletionResponse",
    "get /responses/{response_id}": "ResponseStreamEvent",
}
"""Streams that the description has no media type of, and what their events are."""


def check(response: httpx2.Response) -> None:
    """Whether an answer, or each event of a stream, is what the description says of its call; the
    hook of a client. It reads the answer to its end. An error has the form of the wire and a
    message, with or without a description."""
    response.read()
    _check(response)


async def check_async(response: httpx2.Response) -> None:
    """The same, of an asynchronous client."""
    await response.aread()
    _check(response)


def _check(response: httpx2.Response) -> None:
    if response.status_code >= 400:
        body = response.json()
        assert set(body["error"]) == {"message", "type", "param", "code"}, body
        assert body["error"]["message"], body
        valid(body, "ErrorResponse")
        return
    path = response.request.url.path.removeprefix(PREFIX)
    if PATH is None or path in NOT_OPENAI:
        return
    type_ = response.headers.get("content-type", "").partition(";")[0]
    call, content = _content(response.request.method.lower(), path)
    if type_ == "text/event-stream":
        schema = content.get(type_, {}).get("schema") or _named(UNTYPED_STREAMS[call])
        for event in events(response.text):
            _check_value(_with_reason(event) if call == "post /completions" else event, schema)
    elif call != "get /files/{file_id}/content" and "schema" in content.get(type_, {}):
        body = response.json()
        _check_value(
            _with_numbers(body) if call == "post /embeddings" else body, content[type_]["schema"]
        )


def events(text: str) -> Iterator[Any]:
    """The data of a stream of events."""
    for line in text.splitlines():
        if line.startswith("data: ") and line != "data: [DONE]":
            yield json.loads(line.removeprefix("data: "))


def _with_reason(chunk: Any) -> Any:
    """What a choice of `completions` has while it is not at its end, the description leaves out."""
    choices = [
        {**choice, "finish_reason": choice["finish_reason"] or "stop"}
        for choice in chunk["choices"]
    ]
    return {**chunk, "choices": choices}


def _with_numbers(vectors: Any) -> Any:
    """Of vectors in base64, which the description has no answer of."""
    data = [
        {**entry, "embedding": np.frombuffer(b64decode(entry["embedding"]), "<f4").tolist()}
        if isinstance(entry["embedding"], str)
        else entry
        for entry in vectors["data"]
    ]
    return {**vectors, "data": data}


def _content(method: str, path: str) -> tuple[str, Mapping[str, Any]]:
    """The call of a request, as the description names it, and its answers by their media types."""
    for template, operations in _document()["paths"].items():
        pattern = re.sub(r"\\\{[^}]*\}", lambda _: "[^/]+", re.escape(template))
        if template == "/models/{model}":  # names here have slashes
            pattern = "/models/.+"
        if method in operations and re.fullmatch(pattern, path):
            ok = operations[method]["responses"]["200"]
            return f"{method} {template}", ok.get("content", {})
    raise AssertionError(f"the description has no {method} {path}")


def _check_value(value: Any, schema: Mapping[str, Any]) -> None:
    references = schema.get("oneOf", [schema])  # of which several may fit
    names = [reference["$ref"].rpartition("/")[2] for reference in references]
    faults = [fault for name in names if (fault := _fault(value, name))]
    assert len(faults) < len(names), "\n".join(faults)


def _named(name: str) -> dict[str, Any]:
    return {"$ref": f"#/components/schemas/{name}"}


def valid(value: Any, name: str) -> None:
    """Whether a value is what the description calls by this name; nothing without a description."""
    fault = None if PATH is None else _fault(value, name)
    assert fault is None, fault


def _fault(value: Any, name: str) -> str | None:
    errors = sorted(_validator(name).iter_errors(value), key=lambda error: len(error.path))
    if not errors:
        return None
    return f"{name} at {list(errors[0].path)}: {errors[0].message[:2000]}"


@cache
def _document() -> dict[str, Any]:
    assert PATH is not None
    document: dict[str, Any] = _with_nulls(
        yaml.load(Path(PATH).read_text(), Loader=yaml.CSafeLoader)
    )
    for name, schema in document["components"]["schemas"].items():
        if schema.get("$recursiveAnchor"):
            _name_recursion(schema, f"urn:openai#/components/schemas/{name}")
    return document


@cache
def _registry() -> Registry[Any]:
    resource = Resource.from_contents(_document(), default_specification=DRAFT202012)
    registry: Registry[Any] = Registry()
    filled: Registry[Any] = registry.with_resource("urn:openai", resource)
    return filled


@cache
def _validator(name: str) -> Draft202012Validator:
    return Draft202012Validator(
        {"$ref": f"urn:openai#/components/schemas/{name}"}, registry=_registry()
    )


def _name_recursion(schema: Any, to: str) -> None:
    """Drafts of JSON Schema after 2019 know no `$recursiveRef`, which this description has."""
    for part in schema.values() if isinstance(schema, dict) else schema:
        if isinstance(part, dict | list):
            _name_recursion(part, to)
    if isinstance(schema, dict) and schema.pop("$recursiveRef", None):
        schema["$ref"] = to


def _with_nulls(schema: Any) -> Any:
    """`nullable`, which OpenAPI 3.1 knows no more and this description still has, said in JSON
    Schema."""
    if isinstance(schema, list):
        return [_with_nulls(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    parts = {name: _with_nulls(part) for name, part in schema.items()}
    if parts.pop("nullable", None) is not True:
        return parts
    return {"anyOf": [parts, {"type": "null"}]}
