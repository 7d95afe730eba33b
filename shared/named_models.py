"""Named models: presets over models of any provider, used by their names as model references.

A job that names one is stored with the model behind it, the parameters that it sets and its preset
(`use`): a change or a deletion does not reach jobs that were submitted before. Nothing here
commits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError
from sqlalchemy import delete as sql_delete
from sqlalchemy import func, select
from sqlalchemy.dialects.postgresql import insert
from sqlalchemy.orm import Session

from shared.bounds import FullLine, Paragraph, as_object, shown
from shared.errors import InvalidInput, NotFound
from shared.models.providers import (
    LATEST,
    NAME_FORM,
    OLLAMA,
    REFERENCE_FORMS,
    is_model_name,
    is_reference,
)
from shared.tables import NamedModel
from shared.vocabulary import Shape

MESSAGES_LIMIT: Final = 1000
LICENSES_LIMIT: Final = 16
SHOWN_NAMES: Final = 20


class PresetMessage(Shape):
    role: Literal["system", "user", "assistant"]
    content: Annotated[str, Field(min_length=1, max_length=100_000)]


class Preset(Shape):
    """What a named model adds to its model. `messages` stand in front of every conversation's."""

    name: FullLine
    system: Paragraph | None = None
    template: Paragraph | None = None
    """In the language of `shared/modelfiles/go_templates.py`."""
    messages: Annotated[list[PresetMessage], Field(fail_fast=True, max_length=MESSAGES_LIMIT)] = []


@dataclass(frozen=True, kw_only=True)
class Definition:
    """A named model. `base` is the reference of the model that writes; `parameters` are those that
    it sets, under the names of `shared.kinds.chat.Parameters`."""

    name: str
    base: str
    preset: Preset
    parameters: dict[str, Any] = field(default_factory=dict)
    licenses: tuple[str, ...] = ()
    created_at: datetime | None = None
    updated_at: datetime | None = None


def name_of(value: str) -> str:
    """A name as it is stored: `:latest` is what a name without a tag means. Raises InvalidInput."""
    name = value.removesuffix(LATEST)
    if is_reference(value) or not is_model_name(name):
        raise InvalidInput(
            f"{shown(value)} is no name for a model of your own: take {NAME_FORM}, and no name of "
            "a provider in front."
        )
    return name


def put(session: Session, definition: Definition) -> bool:
    """Make or replace a named model; True if it is new."""
    values = {
        "base": definition.base,
        "preset": definition.preset.model_dump(mode="json"),
        "parameters": definition.parameters,
        "licenses": list(definition.licenses),
    }
    row = session.execute(
        insert(NamedModel)
        .values(name=definition.name, **values)
        .on_conflict_do_update(
            index_elements=[NamedModel.name], set_={**values, "updated_at": func.now()}
        )
        .returning(NamedModel.created_at == NamedModel.updated_at)
    ).one()
    return bool(row[0])


def find(session: Session, name: str) -> Definition | None:
    """The named model, with or without `:latest` in its name."""
    row = session.get(NamedModel, name.removesuffix(LATEST))
    return None if row is None else _definition(row)


def get(session: Session, name: str) -> Definition:
    """Raises NotFound, which lists what there is."""
    definition = find(session, name)
    if definition is not None:
        return definition
    names = [other.name for other in page(session, limit=SHOWN_NAMES, after=None)]
    there = f"there are {', '.join(names)}" if names else "there is none yet"
    raise NotFound(
        f"There is no named model {shown(name)}; {there}. Other model references are "
        f"{REFERENCE_FORMS}, as {OLLAMA.prefix}{name[:100]}."
    )


def delete(session: Session, name: str) -> None:
    """Raises NotFound. Jobs that were submitted before go on."""
    get(session, name)
    session.execute(sql_delete(NamedModel).where(NamedModel.name == name.removesuffix(LATEST)))


def page(session: Session, *, limit: int, after: str | None) -> Sequence[Definition]:
    """Named models by name."""
    query = select(NamedModel)
    if after is not None:
        query = query.where(NamedModel.name > after)
    return [
        _definition(row) for row in session.scalars(query.order_by(NamedModel.name).limit(limit))
    ]


def use(session: Session, inputs: Sequence[dict[str, Any]]) -> None:
    """Note in the inputs of new jobs what their `model` stands for where it is a named one, and in
    `preset` what that adds. What the job's own `parameters` say goes before what the named model
    says. Raises NotFound, InvalidInput."""
    for input_ in inputs:
        model = input_.get("model")
        if not isinstance(model, str) or is_reference(model):
            if input_.get("preset") is not None:
                _require_own(session, input_)
            continue
        definition = get(session, model)
        input_ |= {
            "model": definition.base,
            "parameters": definition.parameters | as_object(input_.get("parameters")),
            "preset": definition.preset.model_dump(mode="json"),
        }


def _require_own(session: Session, input_: Mapping[str, Any]) -> None:
    """An input that was noted before may come again."""
    preset = as_object(input_["preset"])
    definition = find(session, str(preset.get("name", "")))
    known = None if definition is None else definition.preset.model_dump(mode="json")
    if definition is None or (definition.base, known) != (input_.get("model"), preset):
        raise InvalidInput(
            "input.preset is what the server notes of a named model; name that in input.model, and "
            "leave preset out."
        )


def _definition(row: NamedModel) -> Definition:
    """A row that holds something else is a model without a preset."""
    try:
        preset = Preset.model_validate(as_object(row.preset) | {"name": row.name})
    except ValidationError:
        preset = Preset(name=row.name)
    return Definition(
        name=row.name,
        base=row.base,
        preset=preset,
        parameters=as_object(row.parameters),
        licenses=tuple(row.licenses),
        created_at=row.created_at,
        updated_at=row.updated_at,
    )
