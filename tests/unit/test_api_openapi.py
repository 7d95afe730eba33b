"""The OpenAPI document, as programs read it that make clients of it."""

import re
import tomllib
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from pydantic import SecretStr

from api.app import create_app
from api.compat.dialect import dialect_of, dialects, requires_key
from api.openapi import RESULTS, TAGS
from shared.config import Settings
from shared.kinds import registry as kinds
from tests.integration import contract

ROOT = Path(__file__).resolve().parents[2]


def document_of(**changes: Any) -> dict[str, Any]:
    settings = Settings(
        _env_file=None,
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        redis_url=SecretStr("redis://127.0.0.1:1"),
        **changes,
    )
    document: dict[str, Any] = create_app(settings).openapi()
    return document


@pytest.fixture(scope="module")
def document() -> dict[str, Any]:
    return contract.document()


def operations(document: dict[str, Any]) -> list[tuple[str, str, dict[str, Any]]]:
    return [
        (method, path, operation)
        for path, methods in document["paths"].items()
        for method, operation in methods.items()
    ]


def test_its_version_is_that_of_the_package(document: dict[str, Any]) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert document["info"]["version"] == project["version"]


def test_operations_have_names_of_their_own_that_can_be_read(document: dict[str, Any]) -> None:
    entries = operations(document)
    ids = [operation["operationId"] for _, _, operation in entries]

    assert not [name for name, count in Counter(ids).items() if count > 1]
    assert {
        "submit_job", "submit_jobs", "list_jobs", "get_job", "get_job_result", "cancel_job",
        "retry_job", "stream_job_events", "upload_file", "put_collection", "delete_document",
    } <= set(ids)  # fmt: skip
    for _, path, operation in entries:
        name = operation["operationId"]
        assert re.fullmatch(r"[a-z]+(_[a-z]+)+", name), name
        assert operation["summary"] == name.replace("_", " ").capitalize()
        assert operation["description"].strip(), path
        assert len(operation["tags"]) == 1


def test_every_tag_is_described(document: dict[str, Any]) -> None:
    used = {tag for _, _, operation in operations(document) for tag in operation["tags"]}
    assert {tag["name"] for tag in document["tags"]} == used
    assert used == {*TAGS, *(dialect.tag for dialect in dialects())}
    assert all(tag["description"] for tag in document["tags"])


def test_every_header_is_one_string(document: dict[str, Any]) -> None:
    """Generators drop operations with lists in headers."""
    headers = [
        parameter
        for _, _, operation in operations(document)
        for parameter in operation.get("parameters", ())
        if parameter["in"] == "header"
    ]
    assert {header["name"] for header in headers} >= {"Prefer", "Idempotency-Key"}
    for header in headers:
        types = {option.get("type") for option in header["schema"].get("anyOf", [header["schema"]])}
        assert types <= {"string", "null"}, header


def test_components_have_plain_names(document: dict[str, Any]) -> None:
    names = set(document["components"]["schemas"])
    assert all(re.fullmatch(r"[A-Z][A-Za-z]+", name) for name in names), names
    assert {"JobPage", "FileList", "JobView", "ProblemView", "UploadFileForm"} <= names
    references = set(re.findall(r"#/components/schemas/(\w+)", str(document)))
    assert references <= names
    assert names <= references | {"JobView"}, "one that nothing uses"


def test_errors_are_in_the_dialect_of_their_path(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        for status, response in operation["responses"].items():
            if int(status) < 400 or (path, status) == ("/readyz", "503"):
                continue
            types = list(response["content"])
            assert types == [dialect_of(path).media_type], (method, path, status)


def test_what_comes_from_before_the_routes_is_documented(document: dict[str, Any]) -> None:
    for method, path, operation in operations(document):
        statuses = set(operation["responses"])
        assert statuses >= {"403", "421", "431", "503"}, path
        if requires_key(path):
            assert "401" in statuses, path
        if "requestBody" in operation:
            assert statuses >= {"408", "413"}, path
        if path in {"/v1/jobs", "/v1/jobs/batch"} and method == "post":
            assert "429" in statuses


def test_results_are_typed_by_kind(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]

    assert set(RESULTS) == set(kinds.KINDS) - {kinds.HF.name}
    options = {option["$ref"].rpartition("/")[2] for option in schemas["JobResult"]["anyOf"]}
    assert options == {result.__name__ for result in RESULTS.values()} | {"HfResult"}
    assert options <= set(schemas)
    assert schemas["JobView"]["properties"]["result"]["anyOf"][0]["$ref"].endswith("/JobResult")
    result = document["paths"]["/v1/jobs/{job_id}/result"]["get"]["responses"]["200"]
    assert result["content"]["application/json"]["schema"]["$ref"].endswith("/JobResult")


def test_keys_are_asked_for_where_they_are_set_and_only_there() -> None:
    document = document_of(api_keys={"ann": SecretStr("s3cret")})

    assert document["security"] == [{"key": []}]
    for _, path, operation in operations(document):
        is_open = path in {"/healthz", "/readyz", "/metrics"}
        assert (operation.get("security") == []) is is_open, path
    assert "security" not in contract.document()
