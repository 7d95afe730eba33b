"""References of embedding models: their providers' records, and the one form of each model."""

import re
from importlib.util import find_spec
from pathlib import Path

import pytest

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.documents.collections import Spec
from shared.errors import InvalidInput
from shared.models.embedding_models import (
    EMBEDDING_PROVIDERS,
    EmbeddingProvider,
    canonical,
    check,
    hub_name,
    provider_name,
)
from shared.models.hub_names import FULL_NAMES, full_name, names_of

ROOT = Path(__file__).resolve().parents[2]
every_provider = pytest.mark.parametrize("provider", EMBEDDING_PROVIDERS.values())


@every_provider
def test_a_record_is_whole(provider: EmbeddingProvider) -> None:
    assert provider_name(provider.example) == provider.name
    assert canonical(provider.example) == provider.example
    module, _, name = provider.load.partition(":")
    spec = find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    assert re.search(rf"^def {name}\b", Path(spec.origin).read_text("utf-8"), re.MULTILINE)
    assert bool(provider.package) == bool(provider.extra)
    page = (ROOT / "docs/models.md").read_text(encoding="utf-8")
    assert f"`{provider.form.partition(',')[0]}`" in page


@every_provider
def test_an_extra_is_one_of_the_distribution(provider: EmbeddingProvider) -> None:
    project = (ROOT / "pyproject.toml").read_text(encoding="utf-8")
    assert not provider.extra or re.search(rf"^{provider.extra} = \[", project, re.MULTILINE)


@pytest.mark.parametrize(
    ("reference", "form"),
    [
        ("all-MiniLM-L6-v2", DEFAULT_EMBEDDING_MODEL),
        ("hf/all-MiniLM-L6-v2", DEFAULT_EMBEDDING_MODEL),
        (f"hf/{DEFAULT_EMBEDDING_MODEL}", DEFAULT_EMBEDDING_MODEL),
        ("gpt2", "openai-community/gpt2"),
        ("bert-base-uncased", "google-bert/bert-base-uncased"),
        (
            "distilbert-base-uncased-finetuned-sst-2-english",
            "distilbert/distilbert-base-uncased-finetuned-sst-2-english",
        ),
        ("own/model", "own/model"),
        ("unheard-of", "unheard-of"),
        ("/srv/models/e5", "/srv/models/e5"),
        ("hf//srv/models/e5", "/srv/models/e5"),
        ("ollama/nomic-embed-text:latest", "ollama/nomic-embed-text"),
        ("openai/gpt2", "openai/gpt2"),
        ("hf/openai/clip", "hf/openai/clip"),  # a name on the hub, and not a server's
    ],
)
def test_a_model_has_one_form(reference: str, form: str) -> None:
    assert canonical(reference) == form
    assert canonical(form) == form
    assert Spec(embedding_model=reference) == Spec(embedding_model=form)


def test_names_of_before_are_those_of_the_hub() -> None:
    assert len(FULL_NAMES) > 100
    for name, full in FULL_NAMES.items():
        assert full.rpartition("/")[2] == name
        assert full_name(name) == full_name(full) == full
        assert names_of(name) == names_of(full) == (full, name)
    assert names_of("own/gpt2") == ("own/gpt2",)
    assert hub_name("hf/") == "hf/"


def test_what_is_not_set_up_names_the_setting() -> None:
    settings = Settings(_env_file=None)
    check("ollama/nomic-embed-text", settings)  # it has an address unless it is told another
    check(DEFAULT_EMBEDDING_MODEL, settings)
    with pytest.raises(InvalidInput, match="SLUICE_OPENAI_BASE_URL"):
        check("openai/tiny", settings)
    with pytest.raises(InvalidInput, match="names no model"):
        check("ollama/", settings)
