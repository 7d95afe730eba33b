"""The OpenAPI document of the real API, as a check of what a stand-in takes and answers."""

import json
import re
from collections.abc import Mapping
from datetime import datetime
from functools import cache
from typing import Any
from urllib.parse import parse_qsl

from jsonschema import Draft202012Validator, FormatChecker
from pydantic import SecretStr
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from api.app import create_app
from api.openapi import RESULTS
from shared.config import Settings

JSON = ("application/json", "application/problem+json")
OFF_CONTRACT = b"x-off-contract"
"""The header of an answer that no API of Sluice gives: one of a gateway, say."""

FORMATS = FormatChecker(["uuid"])


@FORMATS.checks("date-time", raises=ValueError)
def is_time(value: object) -> bool:
    return not isinstance(value, str) or datetime.fromisoformat(value).tzinfo is not None


@cache
def document() -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        redis_url=SecretStr("redis://127.0.0.1:1"),
    )
    openapi: dict[str, Any] = create_app(settings).openapi()
    return openapi


def operation(method: str, path: str) -> dict[str, Any] | None:
    """What the document says of a request; a parameter may be several parts of the path."""
    for template, operations in _by_detail():
        is_reference = template == "/v1/models/{name}"
        pattern = re.sub(r"\{[^}]*\}", ".+" if is_reference else "[^/]+", template)
        if re.fullmatch(pattern, path) and method.lower() in operations:
            description: dict[str, Any] = operations[method.lower()]
            return description
    return None


@cache
def _by_detail() -> list[tuple[str, dict[str, Any]]]:
    """Paths with fewer parameters first."""
    return sorted(document()["paths"].items(), key=lambda entry: entry[0].count("{"))


@cache
def _validator(schema: str) -> Draft202012Validator:
    root = {**json.loads(schema), "components": document()["components"]}
    return Draft202012Validator(root, format_checker=FORMATS)


def wrong(schema: Mapping[str, Any], value: Any) -> list[str]:
    """What of a value the schema does not allow."""
    errors = _validator(json.dumps(schema)).iter_errors(value)
    return [f"{error.json_path}: {error.message[:300]}" for error in errors]


def wrong_job(job: Mapping[str, Any]) -> list[str]:
    """Its result as well, which is of its kind."""
    errors = wrong({"$ref": "#/components/schemas/JobView"}, job)
    result = RESULTS.get(job.get("kind", ""))
    if result is not None and job.get("result") is not None:
        errors += wrong({"$ref": f"#/components/schemas/{result.__name__}"}, job["result"])
    return errors


def wrong_request(
    spoken: Mapping[str, Any], query: str, content_type: str, body: bytes
) -> list[str]:
    """Its query and its body."""
    names = {
        parameter["name"]: parameter
        for parameter in spoken.get("parameters", ())
        if parameter["in"] == "query"
    }
    errors = []
    for name, text in parse_qsl(query):
        if name not in names:
            errors.append(f"the API knows no parameter {name}")
        elif all(wrong(names[name]["schema"], value) for value in (text, _loaded(text), [text])):
            errors.append(f"{name}={text} is not allowed")
    contents = spoken.get("requestBody", {}).get("content", {})
    if body and content_type not in contents:
        errors.append(f"the API takes {list(contents)}, and not {content_type}")
    elif body and content_type == "application/json":
        errors += wrong(contents[content_type]["schema"], json.loads(body))
    return errors


def _loaded(text: str) -> Any:
    try:
        return json.loads(text)
    except ValueError:
        return text


def wrong_answer(
    spoken: Mapping[str, Any], status: int, content_type: str, body: bytes
) -> list[str]:
    response = spoken["responses"].get(str(status))
    if response is None:
        return [f"the API never answers {status}"]
    contents = response.get("content", {})
    if content_type == "text/event-stream":
        return wrong_events(body.decode())
    if not body:
        return [] if not contents else ["the API answers with a body"]
    if content_type not in contents or content_type not in JSON:
        return [f"the API answers {status} with {list(contents)}, and not with {content_type}"]
    value = json.loads(body)
    errors = wrong(contents[content_type]["schema"], value)
    jobs = value.get("items", [value]) if isinstance(value, dict) else []
    for job in jobs:
        if isinstance(job, dict) and {"kind", "max_attempts"} <= job.keys():
            errors += wrong_job(job)
    return errors


def wrong_events(text: str) -> list[str]:
    schema = operation("GET", "/v1/jobs/x/events")["responses"]["200"]["content"]  # type: ignore[index]  # it is there
    errors = []
    for block in text.split("\n\n"):
        lines = [line.partition(": ") for line in block.splitlines() if not line.startswith(":")]
        event = {field: value for field, _, value in lines}
        if not event:
            continue
        errors += wrong(schema["text/event-stream"]["schema"], event)
        data = json.loads(event["data"])
        errors += wrong_job(data) if event["event"] == "end" else []
    return errors


class Checked:
    """An application whose every exchange is compared with the document; `violations` says what
    was not as the real API has it."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self.violations: list[str] = []
        document()  # now, since clients wait only a moment for the first answer

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http":
            await self.app(scope, receive, send)
            return
        request_body, answer_body = bytearray(), bytearray()
        start: Message = {}
        done = {"request": False, "answer": False, "left": False}

        async def receive_(*_: object) -> Message:
            message = await receive()
            if message["type"] == "http.disconnect" and not done["request"]:
                done["left"] = True
            if message["type"] == "http.request":
                request_body.extend(message.get("body", b""))
                done["request"] = not message.get("more_body", False)
            return message

        async def send_(message: Message) -> None:
            if message["type"] == "http.response.start":
                start.update(message)
            else:
                answer_body.extend(message.get("body", b""))
                done["answer"] = not message.get("more_body", False)
            await send(message)

        try:
            await self.app(scope, receive_, send_)
        finally:
            headers = dict(start.get("headers", ()))
            if start and OFF_CONTRACT not in headers and not done.pop("left"):
                try:
                    self._compare(
                        scope,
                        bytes(request_body),
                        start["status"],
                        headers,
                        bytes(answer_body),
                        **done,
                    )
                except Exception as error:  # uvicorn would close the connection, and say nothing
                    self.violations.append(f"{scope['method']} {scope['path']}: {error!r}")

    def _compare(
        self,
        scope: Scope,
        request_body: bytes,
        status: int,
        headers: Mapping[bytes, bytes],
        answer_body: bytes,
        *,
        request: bool,
        answer: bool,
    ) -> None:
        method, path = scope["method"], scope["path"]
        spoken = operation(method, path)
        errors = [] if spoken else ["the API has no such route"]
        if spoken and request and status < 400:
            query = scope["query_string"].decode()
            errors += wrong_request(spoken, query, _type(dict(scope["headers"])), request_body)
        if spoken and answer:
            errors += wrong_answer(spoken, status, _type(headers), answer_body)
        self.violations += [f"{method} {path} -> {status}: {error}" for error in errors]


def _type(headers: Mapping[bytes, bytes]) -> str:
    return headers.get(b"content-type", b"").decode().partition(";")[0].strip()
