"""Every kind is complete: what its record says, and what is derived from it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner
from pydantic import TypeAdapter

from api.openapi import RESULTS
from api.schemas import EXAMPLES, JobRequest
from cli.commands.jobs import submit
from shared.config import Settings
from shared.kinds.kind import Kind
from shared.kinds.registry import KINDS, step_types

ROOT = Path(__file__).resolve().parents[2]
every_kind = pytest.mark.parametrize("kind", KINDS.values(), ids=list(KINDS))


@every_kind
def test_a_kind_has_a_name_and_a_summary(kind: Kind) -> None:
    assert re.fullmatch(r"[a-z]+", kind.name)
    assert kind.summary
    assert not kind.summary.endswith(".")


@every_kind
def test_its_example_is_an_input_that_this_server_takes(kind: Kind) -> None:
    settings = Settings(_env_file=None)
    parsed = kind.input.model_validate(dict(kind.example))
    kind.check(parsed, settings)
    stored = parsed.model_dump(mode="json") | kind.defaults(parsed, settings)
    assert kind.input.model_validate(stored)
    assert isinstance(kind.route(stored), str)
    kind.batch_key(stored)


@every_kind
def test_it_can_be_submitted(kind: Kind) -> None:
    request = TypeAdapter(JobRequest).validate_python(EXAMPLES[kind.name]["value"])
    assert request.kind == kind.name
    assert isinstance(request.input, kind.input)
    usage = CliRunner().invoke(submit, ["--help"]).output
    assert kind.name in "".join(usage.split())  # it may be divided at the end of a line


@every_kind
def test_its_result_is_in_the_document_of_the_api(kind: Kind) -> None:
    assert RESULTS.get(kind.name) is kind.result


@every_kind
def test_the_page_of_the_api_has_it(kind: Kind) -> None:
    page = (ROOT / "docs/http.md").read_text(encoding="utf-8")
    assert f"| `{kind.name}` | {kind.summary} |" in page


def test_steps_have_names_of_their_own_and_modules_of_the_workers() -> None:
    names = [step.name for step in step_types()]
    assert len(names) == len(set(names))
    for step in step_types():
        module, _, name = step.handler.partition(":")
        spec = find_spec(module)
        assert spec is not None, step.handler
        assert spec.origin is not None
        source = Path(spec.origin).read_text(encoding="utf-8")
        assert re.search(rf"^({name} = |def {name}\()", source, re.MULTILINE), step.handler
