"""Providers of models that generate text, and model references such as `ollama/llama3.2`.

`PROVIDERS` has a record for each provider. The API, the command line, the doctor and the workers
read what they need from these records. How to add one: CONTRIBUTING.md.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Annotated, Any, Final
from urllib.parse import urlsplit

from pydantic import AfterValidator

from shared.bounds import ModelName
from shared.config import EXTRACTIVE, Settings


def _no_key(_settings: Settings) -> None:
    return None


def _open(_settings: Settings) -> bool:
    return False


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelServer:
    """A server beside Sluice that runs models, as far as plain HTTP shows.

    `remedy` is what an operator can do if it does not answer. `names` extracts the names of its
    models from the JSON body of a GET of `list_path`.
    """

    title: str
    url: Callable[[Settings], str | None]
    """None if no such server is set."""
    setting: str
    url_example: str
    remedy: str
    list_path: str
    names: Callable[[Mapping[str, Any]], list[str]]
    key: Callable[[Settings], str | None] = _no_key
    key_setting: str
    lacks_key: Callable[[Settings], bool] = _open
    """Whether the server is known to refuse requests without a key, and no key is set."""
    show_path: str | None = None
    """The path where a POST of `{"model": name}` returns what the server knows of a model."""
    shown_fields: tuple[str, ...] = ()
    """The fields of that answer that are passed on."""
    can_pull: Callable[[Settings], bool] | None = None
    """Only for servers whose models jobs of the kind `model` pull: whether a model is pulled at its
    first use."""

    def address(self, settings: Settings, path: str) -> str | None:
        url = self.url(settings)
        return None if url is None else url.rstrip("/") + path


@dataclass(frozen=True, kw_only=True, eq=False)
class Provider:
    """A provider of models that generate text. A model reference begins with its `name`.

    `backend` is what runs its models, as `module:name`; only workers import it, at the first use of
    a model. It is called with the settings and `on_fatal`, and makes a `Backend`
    (`workers/generation/backends/interface.py`). None: nothing is generated.
    """

    name: str
    summary: str
    example: str
    """A model reference, for messages and pages."""
    backend: str | None
    form: str
    """The form of its references."""
    kinds: tuple[str, ...] = ("rag", "chat", "complete")
    """Kinds of jobs that its models answer."""
    packages: tuple[str, ...] = ()
    """Modules of the Python packages that `backend` needs in addition to those of every worker."""
    is_loaded: bool = False
    """Whether a worker loads its models, on a GPU if there is one. Each such model has a route of
    its own; all models of another provider share one, since any generation worker serves them."""
    server: ModelServer | None = None

    @property
    def prefix(self) -> str:
        return f"{self.name}/"

    @property
    def has_models(self) -> bool:
        """Whether references name a model after the name of the provider."""
        return self.form != self.name

    def is_set_up(self, settings: Settings) -> bool:
        return self.server is None or self.server.url(settings) is not None


def _ollama_names(body: Mapping[str, Any]) -> list[str]:
    return [model["name"].removesuffix(":latest") for model in body.get("models") or []]


def _openai_names(body: Mapping[str, Any]) -> list[str]:
    return [model["id"] for model in body.get("data") or []]


OPENAI_HOST: Final = "api.openai.com"


def _openai_lacks_key(settings: Settings) -> bool:
    host = urlsplit(settings.openai_base_url or "").hostname
    return host == OPENAI_HOST and not _openai_key(settings)


def _openai_key(settings: Settings) -> str | None:
    key = settings.openai_api_key
    return None if key is None else key.get_secret_value()


OLLAMA_SERVER = ModelServer(
    title="Ollama",
    url=lambda settings: settings.ollama_url,
    setting="SLUICE_OLLAMA_URL",
    url_example="http://127.0.0.1:11434",
    remedy="start it with `ollama serve`, or set SLUICE_OLLAMA_URL to where it is",
    list_path="/api/tags",
    names=_ollama_names,
    key_setting="OLLAMA_API_KEY",
    show_path="/api/show",
    shown_fields=(
        "details", "parameters", "template", "system", "capabilities", "modelfile",
    ),
    can_pull=lambda settings: settings.ollama_pull,
)  # fmt: skip
OPENAI_SERVER = ModelServer(
    title="The OpenAI-compatible server",
    url=lambda settings: settings.openai_base_url,
    setting="SLUICE_OPENAI_BASE_URL",
    url_example="http://127.0.0.1:8000/v1",
    remedy="start that server, correct SLUICE_OPENAI_BASE_URL (it often ends in /v1), or set "
    "SLUICE_OPENAI_API_KEY",
    list_path="/models",
    names=_openai_names,
    key=_openai_key,
    lacks_key=_openai_lacks_key,
    key_setting="SLUICE_OPENAI_API_KEY",
)

QUOTING = Provider(
    name=EXTRACTIVE,
    summary="nowhere: it quotes the passages that fit best",
    example=EXTRACTIVE,
    backend=None,
    form=EXTRACTIVE,
    kinds=("rag",),
)
HF = Provider(
    name="hf",
    summary="in a generation worker, from the Hugging Face hub or a local folder",
    example="hf/Qwen/Qwen3-4B-Instruct-2507",
    backend="workers.generation.backends.rolling.generator:RollingBackend",
    form="hf/<repository or path>",
    packages=("torch", "transformers"),
    is_loaded=True,
)
OLLAMA = Provider(
    name="ollama",
    summary="on an Ollama server",
    example="ollama/llama3.2",
    backend="workers.generation.backends.ollama:OllamaBackend",
    form="ollama/<name>",
    packages=("ollama",),
    server=OLLAMA_SERVER,
)
OPENAI = Provider(
    name="openai",
    summary="on any OpenAI-compatible server: vLLM, llama.cpp, TGI, OpenAI",
    example="openai/Qwen/Qwen3-8B",
    backend="workers.generation.backends.openai:OpenAIBackend",
    form="openai/<name>",
    packages=("openai",),
    server=OPENAI_SERVER,
)

PROVIDERS: Final[dict[str, Provider]] = {
    provider.name: provider
    for provider in (
        QUOTING,
        HF,
        OLLAMA,
        OPENAI,
    )
}


def provider_of(reference: str) -> Provider | None:
    return PROVIDERS.get(reference.partition("/")[0])


def is_reference(value: str) -> bool:
    provider = provider_of(value)
    if provider is None:
        return False
    return len(value) > len(provider.prefix) if provider.has_models else value == provider.name


_NAME: Final = re.compile(
    r"(?:[a-z0-9][a-z0-9._-]*/){0,2}[a-z0-9][a-z0-9._-]*(?::[a-z0-9._-]+)?", re.IGNORECASE
)
NAME_LIMIT_CHARS: Final = 255
RESERVED: Final = frozenset({*PROVIDERS, "rag", "fastembed", "sluice"})
"""The name of a named model must not begin with these, which have another meaning."""
LATEST: Final = ":latest"
ADAPTER_MARK: Final = "+"
"""Separates a model that a worker loads from a LoRA adapter for it: `hf/<model>+<adapter>`."""
NAME_FORM: Final = (
    "letters, digits, '.', '_' and '-', with at most two '/' and then a tag behind ':', as "
    "`helpdesk` or `team/helpdesk:v2`"
)


def is_model_name(value: str) -> bool:
    """Whether a named model (`shared/named_models.py`) may have this name."""
    if len(value) > NAME_LIMIT_CHARS or _NAME.fullmatch(value) is None:
        return False
    return value.partition("/")[0].partition(":")[0].lower() not in RESERVED


def is_servable(value: str) -> bool:
    """Whether a worker can be started to serve this: a model, or all models of a provider."""
    provider = PROVIDERS.get(value)
    return is_reference(value) or (provider is not None and not provider.is_loaded)


def _either(forms: list[str]) -> str:
    return " or ".join([", ".join(forms[:-1]), forms[-1]])


REFERENCE_FORMS: Final = _either(
    [
        f"`{provider.form}`"
        for provider in sorted(PROVIDERS.values(), key=lambda p: not p.has_models)
    ]
)
"""The forms of model references, for messages."""

SERVED_UNLESS_NAMED: Final = "the default model and all that need no loading: " + ", ".join(
    provider.name for provider in PROVIDERS.values() if not provider.is_loaded
)
"""What a generation worker serves by default, for help texts."""


def served_unless_named(settings: Settings) -> list[str]:
    """What a generation worker serves if it was started without models."""
    ready = (
        provider.name
        for provider in PROVIDERS.values()
        if not provider.is_loaded and provider.is_set_up(settings)
    )
    return [settings.generation_model, *ready]


def _reference(value: str) -> str:
    if is_reference(value) or is_model_name(value):
        return value
    raise ValueError(f"a model reference is {REFERENCE_FORMS}, or the name of a named model")


ModelReference = Annotated[ModelName, AfterValidator(_reference)]


def route_of(reference: str) -> str:
    """The route of the steps of a model in the queue `generate`."""
    provider = provider_of(reference)
    if provider is not None and provider.is_loaded:
        return reference
    return reference.partition("/")[0]
