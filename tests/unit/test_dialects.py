"""Every dialect is complete, and writes every error: what its record says, and what follows."""

import inspect
import json
import re
from pathlib import Path
from typing import Any

import pytest
from fastapi import FastAPI
from fastapi.exceptions import RequestValidationError
from fastapi.testclient import TestClient
from pydantic import SecretStr
from sqlalchemy.exc import OperationalError
from starlette.exceptions import HTTPException
from starlette.requests import Request

from api.app import create_app
from api.compat.dialect import NATIVE, Dialect, Problem, dialect_of, dialects, requires_key
from api.http.errors import RULES, problem_of, problem_of_job, refusal
from api.schemas import ProblemView
from shared import errors
from shared.config import Settings
from shared.errors import QueueFull, SluiceError, Unauthorized, Unavailable, code_of, type_of

ROOT = Path(__file__).resolve().parents[2]
ALL = (NATIVE, *dialects())
TYPES = [
    type_
    for _, type_ in inspect.getmembers(errors, inspect.isclass)
    if issubclass(type_, SluiceError)
]
every_dialect = pytest.mark.parametrize("dialect", ALL, ids=lambda dialect: dialect.name)
every_other = pytest.mark.parametrize("dialect", dialects(), ids=lambda dialect: dialect.name)
every_type = pytest.mark.parametrize("type_", TYPES, ids=lambda type_: type_.__name__)


def raised(type_: type[SluiceError]) -> SluiceError:
    if issubclass(type_, QueueFull):
        return type_("What to do.", retry_after_s=7)
    return type_("What to do.")


def path_in(dialect: Dialect) -> str:
    return f"{dialect.prefixes[0]}nothing/of/this/name"


def missing(schema: Any, body: dict[str, Any]) -> list[str]:
    """What a schema of the record requires, and an error's body lacks."""
    if "$ref" in schema:
        schema = ProblemView.model_json_schema()
    assert schema["required"]
    return [name for name in schema["required"] if name not in body]


@every_dialect
def test_a_dialect_owns_paths_that_are_nobody_elses(dialect: Dialect) -> None:
    assert re.fullmatch(r"[a-z]+", dialect.name)
    assert dialect.summary
    assert not dialect.summary.endswith(".")
    for prefix in dialect.prefixes:
        assert re.fullmatch(r"(/[a-z0-9]+)+/", prefix), f"{prefix} needs a slash at each end"
        owners = [other.name for other in ALL if other.owns(prefix)]
        assert owners == [dialect.name], f"{prefix} belongs to {owners}"
        assert dialect_of(prefix + "x") is dialect
        assert requires_key(prefix + "x")


@every_other
def test_its_routes_are_below_its_prefixes_and_have_its_tag(dialect: Dialect) -> None:
    app = FastAPI()
    dialect.include_routes(app)
    paths = app.openapi()["paths"]
    assert paths
    assert [path for path in paths if not dialect.owns(path)] == []
    tags = [operation["tags"] for path in paths.values() for operation in path.values()]
    assert all(of_operation == [dialect.tag] for of_operation in tags), tags


@every_other
def test_the_page_of_the_api_has_it(dialect: Dialect) -> None:
    page = (ROOT / "docs/http.md").read_text(encoding="utf-8")
    prefixes = ", ".join(f"`{prefix}`" for prefix in dialect.prefixes)
    assert f"| `{dialect.name}` | {dialect.summary} | {prefixes} |" in page


@every_dialect
@every_type
def test_it_writes_every_error(dialect: Dialect, type_: type[SluiceError]) -> None:
    error = raised(type_)
    problem = problem_of(error)

    answer = refusal(path_in(dialect), error, {"Connection": "close"})

    body = json.loads(bytes(answer.body))
    assert answer.status_code == dialect.status(problem.status)
    assert answer.media_type == dialect.media_type
    assert "What to do." in str(body)
    assert missing(dialect.error_schema, body) == []
    assert answer.headers["Connection"] == "close"
    assert answer.headers.get("Retry-After") == ("7" if isinstance(error, QueueFull) else None)
    has_scheme = answer.headers.get("WWW-Authenticate") == "Bearer"
    assert has_scheme is isinstance(error, Unauthorized)
    json.dumps(dialect.documented(answer.status_code))


@every_dialect
def test_it_writes_what_else_goes_wrong(dialect: Dialect) -> None:
    for error, status in (
        (HTTPException(405, "No."), 405),
        (OperationalError("SELECT 1", {}, Exception("gone")), None),
        (RuntimeError("secret"), 500),
    ):
        answer = refusal(path_in(dialect), error)
        assert status in (None, answer.status_code)
        assert "secret" not in bytes(answer.body).decode()
        assert missing(dialect.error_schema, json.loads(bytes(answer.body))) == []
    lone = dialect.answer(Problem(status=400, detail="half \ud800 of a pair"))
    assert json.loads(bytes(lone.body))


def test_a_native_error_is_a_problem() -> None:
    body = json.loads(bytes(refusal("/nothing", HTTPException(421, "Not here.")).body))
    assert body == {
        "type": "about:blank",
        "title": "Misdirected Request",
        "status": 421,
        "detail": "Not here.",
    }


def test_invalid_fields_are_named() -> None:
    scope = {
        "type": "http",
        "method": "POST",
        "path": "/v1/jobs",
        "headers": [],
        "query_string": b"",
    }
    scope |= {"server": ("localhost", 80), "scheme": "http"}
    entry = {"type": "missing", "loc": ("query", "sha256"), "msg": "Field required", "ctx": {}}
    problem = problem_of(RequestValidationError([entry]), Request(scope))
    assert problem.status == 422
    assert problem.errors == [{"field": "sha256", "message": "is required"}]


@every_type
def test_a_stored_error_has_its_type_and_its_rule(type_: type[SluiceError]) -> None:
    assert "code" in type_.__dict__, f"{type_.__name__} needs a code of its own"
    assert type_of(type_.code) is type_
    problem = problem_of_job({"type": code_of(raised(type_)), "message": "What to do."})
    assert problem.detail == "What to do."
    assert problem.code == type_.code
    assert 400 <= problem.status < 600


def test_codes_are_what_stored_jobs_have() -> None:
    """Jobs of earlier versions have them, and programs compare them: they never change."""
    assert {type_.code for type_ in TYPES} == {
        "BatchExpired", "Cancelled", "ConfigurationError", "Conflict", "DocumentError", "Forbidden",
        "InvalidInput",
        "ModelNotFound", "ModelNotServed", "NotFound", "NotJson", "Permanent", "QueueFull",
        "Retryable",
        "SluiceError", "StepError", "Timeout", "TooLarge", "Unauthorized", "Unavailable",
        "WindowExceeded", "WorkerLost", "WrongTask",
    }  # fmt: skip
    assert code_of(ValueError()) == "ValueError"
    assert type_of("ValueError") is None
    assert set(RULES) & {Unavailable, Unauthorized} == {Unavailable, Unauthorized}


@pytest.fixture(scope="module")
def client() -> TestClient:
    settings = Settings(
        _env_file=None,
        database_url=SecretStr("postgresql://nobody@127.0.0.1:1/none"),
        redis_url=SecretStr("redis://127.0.0.1:1"),
        api_keys={"ann": SecretStr("s3cret")},
    )
    # Not entered: nothing is opened, for none of these requests reaches a server.
    return TestClient(create_app(settings))


@every_dialect
def test_before_the_routes_errors_are_in_the_dialect_too(
    dialect: Dialect, client: TestClient
) -> None:
    key = {"Authorization": "Bearer s3cret"}
    path = path_in(dialect)
    for statuses, answer in (
        ({401}, client.get(path)),
        ({413}, client.post(path, headers={**key, "Content-Length": "9" * 15}, content=b"")),
        # 405 where a route takes whatever its path holds.
        ({404, 405}, client.get(path, headers=key)),
    ):
        assert answer.status_code in statuses, answer.text
        assert answer.headers["content-type"] == dialect.media_type
        assert missing(dialect.error_schema, answer.json()) == []
