"""Every provider of models that write text is complete: its record, and what is derived from it."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest
from click.testing import CliRunner

from cli.commands.worker import worker
from cli.stack.servers import PACKAGES
from shared.bounds import MODEL_LIMIT_BYTES
from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds import chat
from shared.kinds.chat import Parameters
from shared.kinds.registry import KINDS
from shared.models.providers import (
    PROVIDERS,
    REFERENCE_FORMS,
    Provider,
    is_reference,
    is_servable,
    provider_of,
    route_of,
    served_unless_named,
)

ROOT = Path(__file__).resolve().parents[2]
every_provider = pytest.mark.parametrize("provider", PROVIDERS.values(), ids=list(PROVIDERS))


@every_provider
def test_a_provider_has_a_name_a_summary_and_an_example(provider: Provider) -> None:
    assert re.fullmatch(r"[a-z]+", provider.name)
    assert provider.summary
    assert not provider.summary.endswith(".")
    assert is_reference(provider.example)
    assert provider_of(provider.example) is provider
    assert provider.form.partition("/")[0] == provider.name
    assert len(provider.example) < MODEL_LIMIT_BYTES


@every_provider
def test_its_models_answer_kinds_that_generate(provider: Provider) -> None:
    assert set(provider.kinds) <= {kind.name for kind in KINDS.values() if kind.is_generated}
    assert provider.kinds


@every_provider
def test_its_back_end_is_in_a_module_of_the_workers(provider: Provider) -> None:
    if provider.backend is None:
        return
    module, _, name = provider.backend.partition(":")
    spec = find_spec(module)
    assert spec is not None, f"there is no module {module}"
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert re.search(rf"^class {name}\b", source, re.MULTILINE), provider.backend


@every_provider
def test_a_worker_serves_it_by_its_route(provider: Provider) -> None:
    route = route_of(provider.example)
    assert route == (provider.example if provider.is_loaded else provider.name)
    assert is_servable(provider.example)
    assert is_servable(provider.name) is not provider.is_loaded
    settings = Settings(_env_file=None)
    is_served = not provider.is_loaded and provider.is_set_up(settings)
    assert (provider.name in served_unless_named(settings)) is is_served


@every_provider
def test_a_server_that_is_not_set_is_an_error_with_the_setting(provider: Provider) -> None:
    server, settings = provider.server, Settings(_env_file=None)
    if server is None:
        assert provider.is_set_up(settings)
        return
    assert server.setting.removeprefix("SLUICE_").lower() in Settings.model_fields
    assert server.names({}) == []
    if provider.is_set_up(settings):
        chat.check(provider.example, Parameters(), settings)
        return
    with pytest.raises(InvalidInput, match=server.setting):
        chat.check(provider.example, Parameters(), settings)


@every_provider
def test_the_pages_and_helps_have_it(provider: Provider) -> None:
    page = (ROOT / "docs/generation.md").read_text(encoding="utf-8")
    row = f"| `{provider.form}` | {provider.summary} |"
    assert row in page, f"docs/generation.md has no row that begins with {row}"
    assert f"`{provider.form}`" in REFERENCE_FORMS
    if not provider.is_loaded:
        assert provider.name in CliRunner().invoke(worker, ["generate", "--help"]).output


@every_provider
def test_its_packages_are_those_of_a_worker(provider: Provider) -> None:
    assert set(provider.packages) <= set(PACKAGES["worker"])


@pytest.mark.parametrize("value", ["", "/", "gpt", "gpt/4", "hf", "hf/", "ollama/", "extractive/x"])
def test_what_is_no_model_reference(value: str) -> None:
    assert not is_reference(value)
