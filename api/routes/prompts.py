"""Prompts: stored templates with variables, in numbered versions; `rag` and `chat` name them."""

import re
from typing import Annotated

from fastapi import APIRouter, Depends, Path, Query, Response

from api.deps import Cursor, PageLimit, PartsDep
from api.http import answers
from api.http.answers import answer
from api.http.body import StrictRoute
from api.http.errors import BadCursor
from api.openapi import documented
from api.schemas import (
    NewPrompt,
    Page,
    PromptDifference,
    PromptView,
    RenderedPrompt,
    RollBack,
    VariablesBody,
)
from shared import prompts
from shared.bounds import shown
from shared.errors import NotFound
from shared.prompts import PROMPT_NAME, Reference

router = APIRouter(prefix="/v1/prompts", tags=["prompts"], route_class=StrictRoute)

NewName = Annotated[
    str, Path(pattern=PROMPT_NAME, description="Up to 63 letters, digits, `.`, `_`, `-`.")
]
VersionNumber = Annotated[int, Query(ge=1, le=prompts.INT32_MAX)]


async def _reference(name: str) -> Reference:
    reference = prompts.reference_of(name)
    if reference is None:
        raise NotFound(f"There is no prompt {shown(name)}; that is not a name of one.")
    return reference


async def _name(reference: Annotated[Reference, Depends(_reference)]) -> str:
    if reference.version is not None:
        raise NotFound(f"There is no prompt {str(reference)!r}; leave out the version here.")
    return reference.name


ReferenceDep = Annotated[Reference, Depends(_reference)]
Name = Annotated[str, Depends(_name)]


@router.put(
    "/{name}",
    responses=documented({200: PromptView, 201: PromptView}, 400, 413, 415, 422),
)
def put_prompt(parts: PartsDep, name: NewName, new: NewPrompt) -> Response:
    """Store a version: 201, or 200 if the latest version is the same. Versions never change."""
    content = prompts.content_of(new.template, new.description, new.variables)
    with parts.ledger.begin() as session:
        version, is_new = prompts.put(session, name, content, make_current=new.make_current)
    headers = {"Location": f"/v1/prompts/{name}/versions/{version.version}"}
    return answer(PromptView.of(version), 201 if is_new else 200, headers)


@router.get("", responses=documented({200: Page[PromptView]}, 400, 422))
def list_prompts(parts: PartsDep, limit: PageLimit = 50, cursor: Cursor = None) -> Response:
    """Prompts by name, each with its current version."""
    after = answers.decode("prompts", cursor)
    with parts.ledger.read() as session:
        rows = prompts.page(session, limit=limit + 1, after=after)
    items = [PromptView.of(version) for version in rows[:limit]]
    more = answers.encode("prompts", items[-1].name) if len(rows) > limit else None
    return answer(Page[PromptView](items=items, next_cursor=more))


@router.get("/{name}", responses=documented({200: PromptView}, 404))
def get_prompt(parts: PartsDep, reference: ReferenceDep) -> Response:
    """The current version of a prompt, or the one that `name@3` names."""
    with parts.ledger.read() as session:
        version = prompts.get(session, reference)
    return answer(PromptView.of(version))


@router.get("/{name}/versions", responses=documented({200: Page[PromptView]}, 400, 404, 422))
def list_prompt_versions(
    parts: PartsDep, name: Name, limit: PageLimit = 50, cursor: Cursor = None
) -> Response:
    """All versions of a prompt, newest first."""
    position = answers.decode("versions", cursor)
    if position is not None and not re.fullmatch(r"[0-9]{1,9}", position, re.ASCII):
        raise BadCursor
    before = None if position is None else int(position)
    with parts.ledger.read() as session:
        rows = prompts.versions(session, name, limit=limit + 1, before=before)
    items = [PromptView.of(version) for version in rows[:limit]]
    more = answers.encode("versions", str(items[-1].version)) if len(rows) > limit else None
    return answer(Page[PromptView](items=items, next_cursor=more))


@router.get("/{name}/versions/{version}", responses=documented({200: PromptView}, 404, 422))
def get_prompt_version(
    parts: PartsDep, name: Name, version: Annotated[int, Path(ge=1, le=prompts.INT32_MAX)]
) -> Response:
    """One version of a prompt."""
    with parts.ledger.read() as session:
        prompt = prompts.get(session, Reference(name=name, version=version))
    return answer(PromptView.of(prompt))


@router.get("/{name}/diff", responses=documented({200: PromptDifference}, 404, 422))
def diff_prompt(
    parts: PartsDep,
    name: Name,
    from_: Annotated[
        VersionNumber | None, Query(alias="from", description="The one before `to` by default.")
    ] = None,
    to: Annotated[VersionNumber | None, Query(description="The newest version by default.")] = None,
) -> Response:
    """The difference of two versions: a unified diff of the templates, and the variables."""
    with parts.ledger.read() as session:
        old, new = prompts.pair(session, name, from_, to)
    return answer(PromptDifference.of(old, new))


@router.post("/{name}/rollback", responses=documented({200: PromptView}, 400, 404, 415, 422))
def roll_back_prompt(parts: PartsDep, name: Name, to: RollBack | None = None) -> Response:
    """Make a version the current one, by default the version before it.

    No version is changed or removed; the next one that is stored gets the next number.
    """
    with parts.ledger.begin() as session:
        version = prompts.roll_back(session, name, to.version if to is not None else None)
    return answer(PromptView.of(version))


@router.post("/{name}/render", responses=documented({200: RenderedPrompt}, 400, 404, 413, 415, 422))
def render_prompt(
    parts: PartsDep, reference: ReferenceDep, body: VariablesBody | None = None
) -> Response:
    """The text of a prompt with values for its variables, as `chat` uses it. No model runs."""
    with parts.ledger.read() as session:
        version = prompts.get(session, reference)
    text = prompts.render(version, body.variables if body is not None else {})
    return answer(RenderedPrompt(prompt=str(version), text=text))


@router.delete("/{name}", status_code=204, responses=documented({}, 404))
def delete_prompt(parts: PartsDep, name: Name) -> Response:
    """Erase a prompt with all its versions. Jobs that were submitted with it are not affected."""
    with parts.ledger.begin() as session:
        prompts.erase(session, name)
    return Response(status_code=204)
