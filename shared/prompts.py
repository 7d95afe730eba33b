"""Prompts: stored templates with variables, in numbered versions that never change.

`put` adds a version. A prompt's current version is a pointer, which `put` and `roll_back` move. A
job names a prompt as `name` or `name@3`. When the job is submitted, the version and its text are
stored in the job's input (`use`), so that later changes of the prompt do not change the job.

A template is text with `{variable}`s; `{{` and `}}` stand for braces. Nothing here commits.
"""

import difflib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime
from string import Formatter
from typing import Annotated, Any, Final

from pydantic import AfterValidator, Field, PlainValidator
from sqlalchemy import and_, delete, func, insert, select, update
from sqlalchemy.dialects.postgresql import insert as upsert
from sqlalchemy.orm import Session

from shared.bounds import INT32_MAX, Paragraph, Scalar, check_json, shown
from shared.errors import InvalidInput, NotFound
from shared.tables import Prompt, PromptVersion
from shared.vocabulary import Shape

TEMPLATE_LIMIT_CHARS: Final = 100_000
RENDERED_LIMIT_CHARS: Final = 1_000_000
"""The limit of a template with the values of its variables: that of a message of `chat`."""
VARIABLES_LIMIT: Final = 100
VARIABLES_LIMIT_BYTES: Final = 4 * 2**20
DEFAULT_LIMIT_BYTES: Final = 100_000
PROMPT_NAME: Final = r"^[a-zA-Z0-9][a-zA-Z0-9._-]{0,62}$"
NAME_RULE: Final = (
    "use up to 63 letters (a-z), digits, '.', '_' and '-', a letter or digit in front"
)
_REFERENCE: Final = re.compile(
    r"([a-zA-Z0-9][a-zA-Z0-9._-]{0,62})(?:@([1-9][0-9]{0,8}))?", re.ASCII
)
_VARIABLE: Final = re.compile(r"[a-zA-Z_][a-zA-Z0-9_]{0,63}", re.ASCII)

# Templates


@dataclass(frozen=True, kw_only=True)
class Template:
    """A parsed template: literal texts, each with the name of the variable that follows it."""

    parts: tuple[tuple[str, str | None], ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The variables, in the order of their first use."""
        return tuple(dict.fromkeys(name for _, name in self.parts if name is not None))


def parse(template: str) -> Template:
    """Raises InvalidInput for unbalanced braces, and for anything but a plain variable in
    braces."""
    parts: list[tuple[str, str | None]] = []
    try:
        for literal, name, spec, conversion in Formatter().parse(template):
            # A format such as {text:>999999999} would fill the memory.
            if name is not None and (spec or conversion or not _VARIABLE.fullmatch(name)):
                raise InvalidInput(
                    f"{shown(name, 40)} between braces is no variable: write a letter or _, then "
                    "letters, digits and _, at most 64, and nothing else. Write {{ and }} for "
                    "braces that are text."
                )
            parts.append((literal, name))
    except ValueError as error:
        raise InvalidInput(
            f"the template has a brace too many or too few: {error}. Write {{{{ and }}}} for "
            "braces that are text."
        ) from error
    parsed = Template(parts=tuple(parts))
    if len(parsed.names) > VARIABLES_LIMIT:
        raise InvalidInput(
            f"the template has {len(parsed.names)} variables; it may have {VARIABLES_LIMIT}"
        )
    return parsed


def fill(template: Template, values: Mapping[str, str], *, left: Sequence[str] = ()) -> str:
    """The template with its variables replaced by `values`.

    Variables in `left` are kept; the result is then a template. Raises InvalidInput if it would be
    too long, because a variable may occur many times.
    """
    is_template = bool(left)
    inserts = {name: f"{{{name}}}" for name in left} | {
        name: _as_literal(value) if is_template else value for name, value in values.items()
    }
    texts: list[str] = []
    for literal, name in template.parts:
        texts.append(_as_literal(literal) if is_template else literal)
        if name is not None:
            texts.append(inserts[name])
    if sum(map(len, texts)) > RENDERED_LIMIT_CHARS:
        raise InvalidInput(
            f"the prompt is longer than {RENDERED_LIMIT_CHARS:,} characters with the values of its "
            "variables; shorten them"
        )
    return "".join(texts)


def _as_literal(text: str) -> str:
    return text.replace("{", "{{").replace("}", "}}")


# Fields of requests


def _template_text(template: str) -> str:
    try:
        parse(template)
    except InvalidInput as error:
        raise ValueError(error.message) from error
    return template


TemplateText = Annotated[
    str, Field(min_length=1, max_length=TEMPLATE_LIMIT_CHARS), AfterValidator(_template_text)
]


def _values(value: Any) -> dict[str, Scalar]:
    if not isinstance(value, dict):
        raise ValueError("must be an object of names and values")
    if len(value) > VARIABLES_LIMIT:
        raise ValueError(f"has {len(value):,} names; a prompt has {VARIABLES_LIMIT} at most")
    for name, item in value.items():
        if not isinstance(item, str | int | float | bool):
            raise ValueError(f"{shown(name)} must be a text, a number, true or false")
    checked: dict[str, Scalar] = check_json(value, limit_bytes=VARIABLES_LIMIT_BYTES, limit_depth=1)
    return checked


VariableValues = Annotated[
    dict[str, Any], PlainValidator(_values, json_schema_input_type=dict[str, Scalar])
]
"""Values of a prompt's variables, by name."""


def _default(value: Any) -> Scalar | None:
    if value is not None and not isinstance(value, str | int | float | bool):
        raise ValueError("must be a text, a number, true, false or null")
    checked: Scalar | None = check_json(value, limit_bytes=DEFAULT_LIMIT_BYTES)
    return checked


class Variable(Shape):
    """The declaration of a template's variable. A variable without a default needs a value."""

    description: Paragraph = ""
    default: Annotated[Any, PlainValidator(_default, json_schema_input_type=Scalar | None)] = None


def _bounded(variables: dict[str, Variable]) -> dict[str, Variable]:
    if len(variables) > VARIABLES_LIMIT:
        raise ValueError(f"has {len(variables):,} names; a prompt has {VARIABLES_LIMIT} at most")
    return variables


Variables = Annotated[dict[str, Variable], AfterValidator(_bounded)]


@dataclass(frozen=True, kw_only=True)
class Reference:
    """The name of a prompt, or of one of its versions: `name`, `name@3`."""

    name: str
    version: int | None = None

    def __str__(self) -> str:
        return self.name if self.version is None else f"{self.name}@{self.version}"


def reference_of(text: str) -> Reference | None:
    """The reference in a text; None if the text has not the form of one."""
    match = _REFERENCE.fullmatch(text)
    if match is None:
        return None
    return Reference(name=match[1], version=int(match[2]) if match[2] else None)


def _reference_text(text: str) -> str:
    if reference_of(text) is None:
        raise ValueError(
            f"{shown(text)} is no name of a stored prompt; write its name, such as 'greeting', or "
            "one version of it, such as 'greeting@3' (GET /v1/prompts lists them)"
        )
    return text


PromptReference = Annotated[str, Field(max_length=100), AfterValidator(_reference_text)]

# The ledger of prompts


@dataclass(frozen=True, kw_only=True)
class PromptContent:
    """The content of a version."""

    template: str
    description: str = ""
    variables: Mapping[str, Variable] = field(default_factory=dict)
    """By name, in the order of the template."""


@dataclass(frozen=True, kw_only=True)
class VersionedPrompt:
    """A version of a prompt. `current` and `latest` are the prompt's current and latest
    versions."""

    name: str
    version: int
    content: PromptContent
    current: int
    latest: int
    created_at: datetime

    def __str__(self) -> str:
        return f"{self.name}@{self.version}"


def content_of(template: str, description: str, declared: Mapping[str, Variable]) -> PromptContent:
    """Raises InvalidInput if a variable is declared that the template does not have."""
    names = parse(template).names
    unknown = [name for name in declared if name not in names]
    if unknown:
        raise InvalidInput(
            f"variables declares {shown(unknown[0])}, which the template does not have; its "
            f"variables are: {', '.join(names) or 'none'}."
        )
    variables = {name: declared.get(name, Variable()) for name in names}
    return PromptContent(template=template, description=description, variables=variables)


def put(
    session: Session, name: str, content: PromptContent, *, make_current: bool = True
) -> tuple[VersionedPrompt, bool]:
    """Store a version, unless the latest one has the same content. Returns the version, and whether
    it is new. The first version of a prompt becomes the current one in any case."""
    session.execute(upsert(Prompt).values(name=name).on_conflict_do_nothing())
    row = session.execute(select(Prompt).where(Prompt.name == name).with_for_update()).scalar_one()
    newest = _read(session, Reference(name=name, version=row.latest)) if row.current else None
    is_new = newest is None or newest.content != content
    if is_new:
        row.latest += 1
        session.execute(
            insert(PromptVersion).values(
                prompt=name,
                version=row.latest,
                template=content.template,
                description=content.description,
                variables={
                    key: variable.model_dump() for key, variable in content.variables.items()
                },
            )
        )
    if make_current or row.current is None:
        row.current = row.latest
    row.updated_at = func.now()
    session.flush()
    return get(session, Reference(name=name, version=row.latest)), is_new


def get(session: Session, reference: Reference) -> VersionedPrompt:
    """The version that a reference names. Raises NotFound, which lists what exists."""
    version = _read(session, reference)
    if version is not None:
        return version
    latest = session.scalar(
        select(Prompt.latest).where(Prompt.name == reference.name, Prompt.current.is_not(None))
    )
    if latest is None:
        raise NotFound(
            f"There is no prompt {reference.name!r}. GET /v1/prompts lists them; make one with "
            f"`PUT /v1/prompts/{reference.name}` or `sluice prompts put {reference.name}`."
        )
    first = session.scalar(
        select(func.min(PromptVersion.version)).where(PromptVersion.prompt == reference.name)
    )
    numbers = f"only {latest}" if first == latest else f"{first} to {latest}"
    raise NotFound(
        f"The prompt {reference.name!r} has no version {reference.version}; it has {numbers}."
    )


def _read(session: Session, reference: Reference) -> VersionedPrompt | None:
    number = Prompt.current if reference.version is None else reference.version
    row = session.execute(
        select(Prompt, PromptVersion)
        .join(
            PromptVersion,
            and_(PromptVersion.prompt == Prompt.name, PromptVersion.version == number),
        )
        .where(Prompt.name == reference.name, Prompt.current.is_not(None))
    ).first()
    return None if row is None else _version(*row)


def _version(prompt: Prompt, version: PromptVersion) -> VersionedPrompt:
    assert prompt.current is not None  # the queries ask for it
    return VersionedPrompt(
        name=prompt.name,
        version=version.version,
        content=PromptContent(
            template=version.template,
            description=version.description,
            variables=_variables_of(version),
        ),
        current=prompt.current,
        latest=prompt.latest,
        created_at=version.created_at,
    )


def _variables_of(version: PromptVersion) -> dict[str, Variable]:
    """The variables in the order of the template: JSONB does not keep the order of keys."""
    return {
        name: Variable.model_validate(version.variables.get(name, {}))
        for name in parse(version.template).names
    }


def page(session: Session, *, limit: int, after: str | None) -> list[VersionedPrompt]:
    """The current version of each prompt, by name."""
    query = (
        select(Prompt, PromptVersion)
        .join(
            PromptVersion,
            and_(PromptVersion.prompt == Prompt.name, PromptVersion.version == Prompt.current),
        )
        .order_by(Prompt.name)
        .limit(limit)
    )
    if after is not None:
        query = query.where(Prompt.name > after)
    return [_version(*row) for row in session.execute(query)]


def versions(
    session: Session, name: str, *, limit: int, before: int | None
) -> list[VersionedPrompt]:
    """The versions of a prompt before `before`, newest first. Raises NotFound."""
    get(session, Reference(name=name))
    query = (
        select(Prompt, PromptVersion)
        .join(PromptVersion, PromptVersion.prompt == Prompt.name)
        .where(Prompt.name == name, PromptVersion.version < (before or INT32_MAX))
        .order_by(PromptVersion.version.desc())
        .limit(limit)
    )
    return [_version(*row) for row in session.execute(query)]


def roll_back(session: Session, name: str, version: int | None) -> VersionedPrompt:
    """Make a version the current one, by default the one before the present one. Raises NotFound,
    InvalidInput."""
    session.execute(select(Prompt.name).where(Prompt.name == name).with_for_update())
    current = get(session, Reference(name=name))
    if version is None:
        version = _before(session, name, current.version)
        if version is None:
            raise InvalidInput(
                f"{current} is the first version: there is none before it. Name the `version` that "
                "is to be the current one."
            )
    get(session, Reference(name=name, version=version))
    session.execute(
        update(Prompt)
        .where(Prompt.name == name)
        .values(current=version, updated_at=func.now())
        .execution_options(synchronize_session="fetch")
    )
    return get(session, Reference(name=name))


def erase(session: Session, name: str) -> None:
    """Delete a prompt with all its versions. Raises NotFound.

    If a prompt of this name is made later, its versions continue the numbers, so that `name@3` in
    jobs never means two texts.
    """
    get(session, Reference(name=name))
    session.execute(delete(PromptVersion).where(PromptVersion.prompt == name))
    session.execute(update(Prompt).where(Prompt.name == name).values(current=None))


def pair(
    session: Session, name: str, old: int | None, new: int | None
) -> tuple[VersionedPrompt, VersionedPrompt]:
    """Two versions to compare: `old`, by default the one before `new`; and `new`, by default the
    latest. Raises NotFound, InvalidInput."""
    latest = get(session, Reference(name=name)).latest
    newer = get(session, Reference(name=name, version=new or latest))
    before = old or _before(session, name, newer.version)
    if before is None:
        raise InvalidInput(f"{newer} is the first version: name `from`, which it is compared with.")
    return get(session, Reference(name=name, version=before)), newer


def _before(session: Session, name: str, version: int) -> int | None:
    return session.scalar(
        select(func.max(PromptVersion.version)).where(
            PromptVersion.prompt == name, PromptVersion.version < version
        )
    )


# Comparing versions. `difflib` takes quadratic time if much differs, so for long texts only the
# common beginning and end are found, and everything between them counts as replaced.

DIFF_LIMIT_LINES: Final = 500
_CONTEXT_LINES: Final = 3


def difference(old: VersionedPrompt, new: VersionedPrompt) -> str:
    """The difference of two templates as a unified diff; empty if they are equal."""
    before, after = old.content.template.splitlines(), new.content.template.splitlines()
    names = (str(old), str(new))
    if old.content.template == new.content.template:
        return ""
    if before == after:  # only the line ends differ
        return f"--- {names[0]}\n+++ {names[1]}\n\\ No difference but the ends of lines\n"
    head = _common_lines(before, after)
    tail = _common_lines(before[head:][::-1], after[head:][::-1])
    size = max(len(before), len(after)) - head - tail
    if size <= DIFF_LIMIT_LINES:
        start = max(0, head - _CONTEXT_LINES)
        end = max(0, tail - _CONTEXT_LINES)
        lines = difflib.unified_diff(
            before[start : len(before) - end], after[start : len(after) - end], *names, lineterm=""
        )
        return "\n".join(_shift_hunk(line, start) for line in lines) + "\n"
    return "\n".join(_one_hunk(before, after, head, tail, names)) + "\n"


def _common_lines(one: Sequence[str], other: Sequence[str]) -> int:
    for count, (a, b) in enumerate(zip(one, other, strict=False)):
        if a != b:
            return count
    return min(len(one), len(other))


_HUNK: Final = re.compile(r"@@ -(\d+)(,\d+)? \+(\d+)(,\d+)? @@")


def _shift_hunk(line: str, lines: int) -> str:
    """Add `lines` to the line numbers if the line is the head of a hunk."""
    match = _HUNK.fullmatch(line)
    if match is None:
        return line
    old, new = int(match[1]) + lines, int(match[3]) + lines
    return f"@@ -{old}{match[2] or ''} +{new}{match[4] or ''} @@"


def _one_hunk(
    before: Sequence[str], after: Sequence[str], head: int, tail: int, names: tuple[str, str]
) -> list[str]:
    """A unified diff of one hunk: all lines between the common `head` and `tail` are replaced."""
    start, end = max(0, head - _CONTEXT_LINES), max(0, tail - _CONTEXT_LINES)
    old, new = before[start : len(before) - end], after[start : len(after) - end]
    first, last = head - start, tail - end
    return [
        f"--- {names[0]}",
        f"+++ {names[1]}",
        f"@@ -{start + 1},{len(old)} +{start + 1},{len(new)} @@",
        *(f" {line}" for line in old[:first]),
        *(f"-{line}" for line in old[first : len(old) - last]),
        *(f"+{line}" for line in new[first : len(new) - last]),
        *(f" {line}" for line in old[len(old) - last :]),
    ]


# Prompts in the inputs of jobs


def render(version: VersionedPrompt, values: Mapping[str, Any], *, left: Sequence[str] = ()) -> str:
    """The text of a version with values for its variables. Raises InvalidInput for missing and for
    unknown variables.

    Variables in `left`, which the template must have, are filled in later.
    """
    variables = version.content.variables
    lacking = [name for name in left if name not in variables]
    if lacking:
        raise InvalidInput(
            f"the prompt {version} has no {{{lacking[0]}}}; one for `rag` has "
            f"{' and '.join(f'{{{name}}}' for name in left)}, which `rag` fills"
        )
    settable = [name for name in variables if name not in left]
    unknown = [name for name in values if name not in settable]
    if unknown:
        filled = " (`rag` fills it)" if unknown[0] in left else ""
        raise InvalidInput(
            f"the prompt {version} has no variable {shown(unknown[0])}{filled}; its variables are: "
            f"{', '.join(settable) or 'none'}"
        )
    texts = {
        name: _text(values.get(name, variables[name].default))
        for name in settable
        if name in values or variables[name].default is not None
    }
    missing = [_describe(name, variables[name]) for name in settable if name not in texts]
    if missing:
        raise InvalidInput(f"the prompt {version} needs {', '.join(missing)}; give it in variables")
    text = fill(parse(version.content.template), texts, left=left)
    if not text.strip():
        raise InvalidInput(f"the prompt {version} is empty with these values of its variables")
    return text


def _describe(name: str, variable: Variable) -> str:
    return f"{name} ({variable.description})" if variable.description else name


def _text(value: object) -> str:
    """A value as text; numbers and booleans as in JSON."""
    return value if isinstance(value, str) else json.dumps(value)


def use(session: Session, inputs: Sequence[dict[str, Any]], *, left: Sequence[str] = ()) -> None:
    """Store in the inputs of new jobs the version that their `prompt` names, and its text
    (`rendered`). Raises NotFound, InvalidInput."""
    known: dict[str, VersionedPrompt] = {}
    for input_ in inputs:
        reference = reference_of(input_["prompt"]) if input_.get("prompt") else None
        if reference is None:
            if input_.get("rendered") is not None:
                raise InvalidInput(
                    "input.rendered is what the server makes of a stored prompt; leave it out."
                )
            continue
        version = known.get(str(reference))
        if version is None:
            version = known[str(reference)] = get(session, reference)
        try:
            text = render(version, input_.get("variables") or {}, left=left)
        except InvalidInput as error:
            raise InvalidInput(f"input.variables: {error.message}.") from error
        if input_.get("rendered") not in (None, text):
            raise InvalidInput(
                "input.rendered is what the server makes of a stored prompt, and that is another "
                "text; leave it out."
            )
        input_ |= {"prompt": str(version), "rendered": text}
