"""References of embedding models, such as `openai/text-embedding-3-small`, and their providers.

`EMBEDDING_PROVIDERS` has a record for each provider. How to add one: CONTRIBUTING.md. A reference
without a provider is a name on the Hugging Face hub, or a path.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from importlib.util import find_spec
from typing import Final

from shared.config import Settings
from shared.errors import InvalidInput
from shared.models.hub_names import full_name
from shared.models.providers import LATEST, OLLAMA_SERVER, OPENAI_SERVER, ModelServer

HUGGING_FACE: Final = "hf"


@dataclass(frozen=True, kw_only=True, eq=False)
class EmbeddingProvider:
    """A provider of embedding models. The references of its models begin with its `name`."""

    name: str
    summary: str
    form: str
    """The form of its references, for messages."""
    example: str
    load: str
    """A `LoadEmbedder` (`workers/retrieval/embed.py`) as `module:name`; only workers import it."""
    server: ModelServer | None = None
    package: str = ""
    """The Python package that it needs in addition to those of every worker."""
    extra: str = ""
    """The extra of the distribution that contains `package`."""

    @property
    def prefix(self) -> str:
        return f"{self.name}/"


EMBEDDING_PROVIDERS: Final[dict[str, EmbeddingProvider]] = {
    provider.name: provider
    for provider in (
        EmbeddingProvider(
            name=HUGGING_FACE,
            summary="in a CPU worker, by sentence-transformers",
            form="hf/<repository or path>, or without hf/",
            example="sentence-transformers/all-MiniLM-L6-v2",
            load="workers.retrieval.embedders.local:load",
        ),
        EmbeddingProvider(
            name="openai",
            summary="on any OpenAI-compatible server: vLLM, llama.cpp, TEI, OpenAI",
            form="openai/<name>",
            example="openai/text-embedding-3-small",
            load="workers.retrieval.embedders.openai:load",
            server=OPENAI_SERVER,
        ),
        EmbeddingProvider(
            name="ollama",
            summary="on an Ollama server",
            form="ollama/<name>",
            example="ollama/nomic-embed-text",
            load="workers.retrieval.embedders.ollama:load",
            server=OLLAMA_SERVER,
        ),
        EmbeddingProvider(
            name="fastembed",
            summary="in a CPU worker, by fastembed: ONNX models",
            form="fastembed/<name or folder>",
            example="fastembed/BAAI/bge-small-en-v1.5",
            load="workers.retrieval.embedders.fastembed:load",
            package="fastembed",
            extra="fastembed",
        ),
    )
}

_PACKAGE_OF_WORKERS: Final = "sentence_transformers"


def provider_name(reference: str, names: Iterable[str] = EMBEDDING_PROVIDERS) -> str:
    """The part before the first slash if it is one of `names`, else `hf`."""
    name, slash, _ = reference.partition("/")
    return name if slash and name in names else HUGGING_FACE


def canonical(reference: str) -> str:
    """The same form for all references of a model: `all-MiniLM-L6-v2` and
    `hf/sentence-transformers/all-MiniLM-L6-v2` become `sentence-transformers/all-MiniLM-L6-v2`.

    `hf/` stays if the name on the hub would otherwise be a reference of another provider.
    """
    provider = provider_name(reference)
    if provider == "ollama":
        return reference.removesuffix(LATEST)
    if provider != HUGGING_FACE:
        return reference
    name = hub_name(reference)
    return full_name(name) if provider_name(name) == HUGGING_FACE else reference


def hub_name(reference: str) -> str:
    """The name or path of a Hugging Face model, without `hf/`."""
    name = reference.removeprefix(f"{HUGGING_FACE}/")
    return name or reference


def check(reference: str, settings: Settings, *, where: str = "The embedding model") -> None:
    """Raises InvalidInput if this installation cannot run the model: its provider has no server,
    key or package here. Whether the model exists is not checked.

    `where` says where the model is named, for the message.
    """
    provider = EMBEDDING_PROVIDERS[provider_name(reference)]
    if reference == provider.prefix:
        raise InvalidInput(
            f"{where} is {reference!r}, which names no model; write {provider.form}, as "
            f"{provider.example}."
        )
    server = provider.server
    if server is not None and server.url(settings) is None:
        raise InvalidInput(
            f"{where} is {reference!r}, but no server is set for such models: set "
            f"{server.setting} for the API and the CPU workers, such as {server.url_example}."
        )
    if server is not None and server.lacks_key(settings):
        raise InvalidInput(
            f"{where} is {reference!r}, and {server.url(settings)} answers nobody without a key: "
            f"set {server.key_setting} for the API and the CPU workers."
        )
    # A host with only the API lacks the packages of workers, so it cannot check them.
    is_worker = find_spec(_PACKAGE_OF_WORKERS) is not None
    if provider.package and is_worker and find_spec(provider.package) is None:
        raise InvalidInput(
            f"{where} is {reference!r}, and the package {provider.package} is not installed: "
            f"install it for the CPU workers (in the folder of Sluice: pip install ./client "
            f"'.[{provider.extra}]')."
        )
