"""Names of models in Ollama's API, and the models that they mean here.

A name is, in this order: a model reference of Sluice, a named model, or a model of the Ollama
server behind Sluice, for which `ollama/` and `:latest` may be left out. Models `rag/<collection>`
answer from documents.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import httpx
from starlette.concurrency import run_in_threadpool

from api.compat.dialect import Problem, ProblemError
from api.deps import Parts
from api.routes.models import available_models
from shared import named_models
from shared.addresses import server_options
from shared.bounds import MODEL_LIMIT_BYTES, cut, is_storable_text, shown
from shared.config import Settings
from shared.errors import InvalidInput, Unavailable
from shared.kinds.rag import RAG_PREFIX
from shared.modelfiles.modelfile import parameters_of, values_of
from shared.models.providers import LATEST, OLLAMA, OLLAMA_SERVER, is_reference, provider_of
from shared.named_models import Definition

NAMES_SHOWN = 20
ASK_TIMEOUT_S = 5.0
DEFAULTS: Mapping[str, Any] = {"temperature": 0.8, "top_k": 40, "top_p": 0.9}
"""Those of `DefaultOptions` in `api/types.go` that differ from Sluice's defaults."""


ALIASES: Mapping[str, str] = {
    "all-minilm": "sentence-transformers/all-MiniLM-L6-v2",
    "all-minilm:22m": "sentence-transformers/all-MiniLM-L6-v2",
    "all-minilm:l6-v2": "sentence-transformers/all-MiniLM-L6-v2",
    "bge-m3": "BAAI/bge-m3",
    "granite-embedding:278m": "ibm-granite/granite-embedding-278m-multilingual",
    "nomic-embed-text": "nomic-ai/nomic-embed-text-v1.5",
    "snowflake-arctic-embed2": "Snowflake/snowflake-arctic-embed-l-v2.0",
}
"""Name of a model in Ollama's library -> the same model on the Hugging Face hub."""


@dataclass(frozen=True, kw_only=True)
class Model:
    """A model that a request names. `reference` is its model reference for jobs; `parameters` are
    its default parameters, under the names of `shared.kinds.chat.Parameters`."""

    name: str
    reference: str
    definition: Definition | None = None
    shown: Mapping[str, Any] | None = None
    """The answer of the Ollama server to `/api/show`, for one of its models."""
    parameters: Mapping[str, Any] = field(default_factory=dict)

    @property
    def base(self) -> str:
        """The reference of the model that generates: that of a named model's base."""
        return self.reference if self.definition is None else self.definition.base


async def model_of(parts: Parts, name: str) -> Model:
    """The model with this name. Raises ProblemError for an unknown one."""
    _check(name)
    reference = name if is_reference(name) else name.removesuffix(LATEST)
    if reference.startswith(RAG_PREFIX):
        return Model(name=name, reference=reference)
    if is_reference(reference):
        return await _of_reference(parts, name, reference)
    definition = await run_in_threadpool(_find, parts, reference)
    if definition is not None:
        parameters = {**DEFAULTS, **definition.parameters}
        return Model(name=name, reference=reference, definition=definition, parameters=parameters)
    shown_ = await show_behind(parts.settings, name)
    if shown_ is None and not parts.settings.ollama_pull:
        raise await unknown(parts, name)
    reference = OLLAMA.prefix + name.removesuffix(LATEST)
    return Model(name=name, reference=reference, shown=shown_, parameters=_parameters_shown(shown_))


async def _of_reference(parts: Parts, name: str, reference: str) -> Model:
    provider = provider_of(reference)
    assert provider is not None
    if provider.backend is None:
        raise InvalidInput(
            f"{shown(name)} writes nothing of its own; name it behind a collection, as "
            f"{RAG_PREFIX}<collection>."
        )
    if provider is OLLAMA:
        shown_ = await show_behind(parts.settings, reference.removeprefix(OLLAMA.prefix))
        if shown_ is None and not parts.settings.ollama_pull:
            raise await unknown(parts, name)
        return Model(
            name=name, reference=reference, shown=shown_, parameters=_parameters_shown(shown_)
        )
    is_held = provider.is_loaded and reference != parts.settings.generation_model
    if is_held and reference not in await run_in_threadpool(routes, parts):
        raise await unknown(parts, name)
    return Model(name=name, reference=reference, parameters=DEFAULTS)


def _check(name: str) -> None:
    too_long = len(name.encode(errors="replace")) > MODEL_LIMIT_BYTES
    if too_long or not is_storable_text(name):
        raise InvalidInput(f"model {shown(name)} is no name of a model")


def _find(parts: Parts, name: str) -> Definition | None:
    with parts.ledger.read() as session:
        return named_models.find(session, name)


def routes(parts: Parts) -> frozenset[str]:
    """The routes that living workers serve."""
    with parts.ledger.read() as session:
        return parts.routes.of_workers(session)


async def unknown(parts: Parts, name: str) -> ProblemError:
    """The error for an unknown model, in Ollama's words, with a list of known models."""
    known = [view.reference for view in await available_models(parts) if "chat" in view.kinds]
    more = f" and {len(known) - NAMES_SHOWN} more" if len(known) > NAMES_SHOWN else ""
    there = f"there are {', '.join(known[:NAMES_SHOWN])}{more}" if known else "there is none"
    detail = f"model '{cut(name, 200)}' not found; {there} (GET /ollama/api/tags)"
    return ProblemError(Problem(status=404, detail=detail))


# The Ollama server behind Sluice, which is asked over plain HTTP


def is_set(settings: Settings) -> bool:
    return OLLAMA_SERVER.url(settings) is not None


async def show_behind(settings: Settings, name: str) -> dict[str, Any] | None:
    """What the server says about a model; None if it has no such model or does not answer."""
    query = {"model": name.removesuffix(LATEST)}
    body = await ask_behind(settings, "POST", "/api/show", query)
    return body if isinstance(body, dict) else None


async def ask_behind(
    settings: Settings, method: str, path: str, body: Mapping[str, Any] | None = None
) -> Any:
    """The JSON of the server's answer; None if it does not answer, or not with status 200."""
    url = OLLAMA_SERVER.address(settings, path)
    if url is None:
        return None
    try:
        async with httpx.AsyncClient(timeout=ASK_TIMEOUT_S, **server_options(url)) as client:
            answer = await client.request(method, url, json=body)
        return answer.json() if answer.status_code == 200 else None
    except (httpx.HTTPError, ValueError):
        return None


def _parameters_shown(shown_: Mapping[str, Any] | None) -> dict[str, Any]:
    """The parameters of a model's Modelfile that Sluice sends with every request."""
    parameters: dict[str, Any] = dict(DEFAULTS)
    text = shown_.get("parameters") if shown_ is not None else None
    for row in str(text or "").splitlines():
        name, _, value = row.strip().partition(" ")
        if name not in ("temperature", "top_k", "top_p", "repeat_penalty"):
            continue
        try:
            parameters |= parameters_of(values_of([(name, value.strip())]))
        except InvalidInput:  # a value that Sluice does not take: the default is used
            continue
    return parameters


def no_server(settings: Settings) -> Unavailable:
    url = OLLAMA_SERVER.url(settings)
    return Unavailable(
        f"the Ollama server behind ({OLLAMA_SERVER.setting}, {url}) does not answer: "
        f"{OLLAMA_SERVER.remedy}"
    )
