"""The kind `model`: pull, create or delete a model of the Ollama server."""

from typing import Literal

from pydantic import Field, model_validator

from shared.bounds import ModelName, Paragraph, ServerParameters
from shared.kinds.kind import Kind, StepType
from shared.providers import OLLAMA, ModelReference, route_of
from shared.vocabulary import KeyScope, Queue, Shape


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
)
