"""The kind `model`: pull, create or delete a model of the Ollama server."""

from typing import Final, Literal

from pydantic import Field, model_validator

from shared.addresses import Guard
from shared.bounds import ModelName, Paragraph, ServerParameters, shown
from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.kind import Kind, StepType
from shared.models.providers import OLLAMA, ModelReference, route_of
from shared.vocabulary import KeyScope, Queue, Shape

REGISTRIES: Final = frozenset({"registry.ollama.ai", "ollama.com", "hf.co", "huggingface.co"})
"""What Ollama may fetch models from at anybody's word."""


def check_registry(name: str, guard: Guard) -> None:
    """Raises InvalidInput where the name has Ollama fetch the model from a registry that nobody has
    permitted: `name` is as Ollama reads it, `[scheme://][host[:port]/][namespace/]model[:tag]`.

    Ollama looks the host up and goes wherever that registry sends it, so the host has to be known.
    """
    scheme, has_scheme, rest = name.rpartition("://")
    parts = rest.split("/")
    if len(parts) < 3 and not has_scheme:
        return
    registry = "/".join(parts[:-2]) if len(parts) > 2 else parts[0]
    host, _, port = registry.rpartition(":") if registry[-1:].isdigit() else (registry, "", "")
    host, port = (host, port) if host else (registry, "")
    is_plain = scheme.lower() == "http"
    if registry.lower() in REGISTRIES and not is_plain:
        return
    number = int(port) if port.isascii() and port.isdigit() else 80 if is_plain else 443
    if not guard.names(host, number):
        raise InvalidInput(
            f"The model {shown(name)} would be fetched from {shown(registry)}, which is none of "
            f"{', '.join(sorted(REGISTRIES))}. SLUICE_OUTBOUND_ALLOWED_HOSTS names other "
            "registries that may be used."
        )


class ModelInput(Shape):
    """What to do with a model of the Ollama server: `create` makes `name` of `from`."""

    action: Literal["pull", "create", "delete"]
    name: ModelReference
    from_: ModelName | None = Field(default=None, alias="from")
    system: Paragraph | None = None
    template: Paragraph | None = None
    parameters: ServerParameters = {}

    @model_validator(mode="after")
    def _fits_the_action(self) -> "ModelInput":
        if not self.name.startswith(OLLAMA.prefix):
            raise ValueError(f"name must be a model of Ollama, as `{OLLAMA.example}`")
        if (self.action == "create") != (self.from_ is not None):
            raise ValueError("`from` goes with the action `create`, which needs it")
        if self.action != "create" and (self.system or self.template or self.parameters):
            raise ValueError("system, template and parameters go with the action `create`")
        return self


class ModelResult(Shape):
    action: str
    name: str


def _check(input_: ModelInput, settings: Settings) -> None:
    """Ollama fetches what it is to pull, and what it is to make another model of."""
    names = {"pull": input_.name, "create": input_.from_ or ""}
    if input_.action in names:
        check_registry(names[input_.action].removeprefix(OLLAMA.prefix), settings.guard())


MODEL = Kind(
    name="model",
    scope=KeyScope.ADMIN,
    summary="pull, create or delete a model of Ollama",
    input=ModelInput,
    result=ModelResult,
    steps=[
        StepType(
            name="model.apply",
            queue=Queue.GENERATE,
            handler="workers.generation.ollama_models:APPLY",
        )
    ],
    example={
        "action": "create",
        "name": "ollama/helpdesk",
        "from": "llama3.2",
        "system": "You answer for the helpdesk, in two sentences at most.",
        "parameters": {"temperature": 0.2},
    },
    route=lambda input_: route_of(input_["name"]),
    check=_check,
)
