"""The types of the Python client, made from the records of the kinds: `client/sluice/kinds.py`.

Run `python -m tests.client_types` after a change of an input, of a result or of the fields of a
job; `tests/unit/test_client_types.py` says when it is due.

Fields keep their names and their order. What a client sends is as it is in JSON: an id is a text,
an enumeration is its values. Bounds are left to the server.
"""

import inspect
import keyword
import re
import subprocess
import sys
from collections.abc import Callable, Mapping, Sequence
from datetime import datetime
from enum import Enum
from pathlib import Path
from types import NoneType, UnionType
from typing import Annotated, Any, Final, Literal, Union, get_args, get_origin
from uuid import UUID

from pydantic import BaseModel
from pydantic.fields import FieldInfo

import sluice.shapes
from api.schemas import NewJobBase, Webhook
from shared.kinds.registry import KINDS
from shared.vocabulary import Lane

ROOT: Final = Path(__file__).resolve().parents[1]
MODULE: Final = ROOT / "client" / "sluice" / "kinds.py"
COMMAND: Final = "python -m tests.client_types"

_HEAD: Final = f'''"""What each kind of job takes and gives, as types that editors and mypy know.

Made from the records of the kinds by `{COMMAND}`; not to be edited. At run time
all of these are dictionaries, as they go over the wire. What is `NotRequired` may be left out of an
input, and may be missing from a result.
"""

from collections.abc import Callable, Coroutine, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, Unpack, overload

if TYPE_CHECKING:
    from sluice.jobs import AsyncClientJob, ClientJob
'''


class _Module:
    """The classes of one module, each once, those that others need before them."""

    def __init__(self) -> None:
        self._texts: dict[str, str] = {}
        self._models: dict[str, tuple[type[BaseModel], bool]] = {}

    def text(self) -> str:
        return "\n\n".join(self._texts.values())

    def add(self, name: str, text: str) -> None:
        self._texts[name] = text

    def shape(self, model: type[BaseModel], *, is_sent: bool) -> str:
        """The name of the class of a shape; the class is written where it is not there yet."""
        name = _name_of(model)
        if name in self._models:
            other, was_sent = self._models[name]
            assert other is model, f"two shapes are called {name}"
            assert was_sent or not is_sent, f"{name} is written before it is known to be sent"
            return name
        self._models[name] = model, is_sent
        fields = {
            _wire_name(field_name, field): self._field(field, is_sent=is_sent)
            for field_name, field in model.model_fields.items()
        }
        self.add(name, _class_text(name, _docstring(model), fields))
        return name

    def _field(self, field: FieldInfo, *, is_sent: bool) -> str:
        is_required = field.is_required()
        annotation = field.annotation
        if not is_required and not is_sent and field.default is None:
            annotation = _without_none(annotation)  # left out of results
        text = self.type_text(annotation, is_sent=is_sent)
        return text if is_required else f"NotRequired[{text}]"

    def type_text(self, annotation: Any, *, is_sent: bool) -> str:
        """An annotation of pydantic's as one of a `TypedDict`'s."""
        origin, parts = get_origin(annotation), get_args(annotation)
        if annotation is Any:
            return "Any"
        if annotation in (None, NoneType):
            return "None"
        if origin is Annotated:
            return self.type_text(parts[0], is_sent=is_sent)
        if origin is Literal:
            return f"Literal[{', '.join(map(_quoted, parts))}]"
        if origin in (Union, UnionType):
            texts = [self.type_text(part, is_sent=is_sent) for part in parts]
            return " | ".join(dict.fromkeys(texts))
        if origin in (list, tuple, set, frozenset, Sequence) or annotation is list:
            item = self.type_text(parts[0], is_sent=is_sent) if parts else "Any"
            return f"list[{item}]"
        if origin in (dict, Mapping) or annotation is dict:
            values = [self.type_text(part, is_sent=is_sent) for part in parts] or ["str", "Any"]
            return f"{'Mapping' if is_sent else 'dict'}[{', '.join(values)}]"
        assert isinstance(annotation, type), f"cannot write {annotation!r}"
        return self._class_text(annotation, is_sent=is_sent)

    def _class_text(self, type_: type, *, is_sent: bool) -> str:
        if issubclass(type_, BaseModel):
            return self.shape(type_, is_sent=is_sent)
        if issubclass(type_, Enum):
            return f"Literal[{', '.join(_quoted(member.value) for member in type_)}]"
        if issubclass(type_, UUID):
            return "str"
        if type_.__name__ == "MetadataFilter":
            return "Mapping[str, Any]"
        if type_ in (bool, int, float, str):
            return type_.__name__
        assert (
            issubclass(type_, datetime)
            or type_.__name__ == "AwareDatetime"
            or "Url" in type_.__name__
        ), f"cannot write {type_!r}"
        return "str"


def _name_of(model: type[BaseModel]) -> str:
    """Its own, unless the client has a shape of that name, which the dictionary is not."""
    return f"{model.__name__}Dict" if hasattr(sluice.shapes, model.__name__) else model.__name__


def _wire_name(name: str, field: FieldInfo) -> str:
    return field.alias or name


def _without_none(annotation: Any) -> Any:
    origin, parts = get_origin(annotation), get_args(annotation)
    if origin not in (Union, UnionType) or NoneType not in parts:
        return annotation
    return Union[tuple(part for part in parts if part is not NoneType)]  # noqa: UP007


def _quoted(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def _docstring(model: type[BaseModel]) -> str:
    text = vars(model).get("__doc__") or ""
    return inspect.cleandoc(text) if text else ""


def _class_text(name: str, docstring: str, fields: Mapping[str, str]) -> str:
    if any(keyword.iskeyword(field) for field in fields):
        # A keyword is no name of a class's attribute, so this one is written as a call.
        rows = "".join(f'        "{field}": {text},\n' for field, text in fields.items())
        return f'{name} = TypedDict(\n    "{name}",\n    {{\n{rows}    }},\n)\n'
    lines = [_quoted_docstring(docstring)] if docstring else []
    lines += [f"    {field}: {text}\n" for field, text in fields.items()] or ["    pass\n"]
    return f"class {name}(TypedDict):\n" + ("\n" if docstring else "").join(
        ["".join(lines[:1]), "".join(lines[1:])] if docstring else ["".join(lines)]
    )


def _quoted_docstring(text: str) -> str:
    if "\n" in text:
        text += "\n"  # ends on a line of its own
    return f'    """{text}"""'.replace("\n", "\n    ").replace("    \n", "\n") + "\n"


def _jobs(module: _Module) -> None:
    """What `submit` takes beside kind and input; a job of each kind for `submit_batch`."""
    module.shape(Webhook, is_sent=True)
    fields = {
        name: _job_field(module, name, field)
        for name, field in NewJobBase.model_fields.items()
        if name not in ("kind", "input")
    }
    optional = {name: f"NotRequired[{text}]" for name, text in fields.items()}
    module.add("JobFields", _class_text("JobFields", "A new job, beside its kind.", optional))
    calls = {
        name: f"NotRequired[{text} | None]"
        for name, text in {**fields, "run_after": "datetime"}.items()
    } | {
        "idempotency_key": "NotRequired[str | None]",
        "wait_s": "NotRequired[float | None]",
        "call_timeout_s": "NotRequired[float | None]",
    }
    module.add(
        "SubmitOptions", _class_text("SubmitOptions", "The options of `Client.submit`.", calls)
    )


def _job_field(module: _Module, name: str, field: FieldInfo) -> str:
    if name == "lane":
        return "Lane"
    if name == "run_after":
        return "str"
    return module.type_text(_without_none(field.annotation), is_sent=True)


def _title(kind: str) -> str:
    return "".join(part.capitalize() for part in re.split(r"[^a-z0-9]", kind))


def _protocol(name: str, job: str, summary: str, results: Mapping[str, tuple[str, str]]) -> str:
    lines = [f'class {name}(Protocol):\n    """{summary}"""\n']
    for kind, (input_, result) in results.items():
        lines.append(
            "    @overload\n"
            f'    def __call__(self, kind: Literal["{kind}"], input: {input_}, '
            f"**options: Unpack[SubmitOptions]) -> {job.format(result)}: ...\n"
        )
    return "\n".join(lines)


def make() -> str:
    """The text of the module."""
    module = _Module()
    lanes = ", ".join(_quoted(lane.value) for lane in Lane)
    module.add("Lane", f"Lane = Literal[{lanes}]\n")
    kinds = ", ".join(map(_quoted, KINDS))
    module.add("KindName", f"KindName = Literal[{kinds}]\n")
    inputs = {name: module.shape(kind.input, is_sent=True) for name, kind in KINDS.items()}
    results = {
        name: "Any" if kind.result is None else module.shape(kind.result, is_sent=False)
        for name, kind in KINDS.items()
    }
    _jobs(module)
    names = []
    for kind, input_ in inputs.items():
        name = f"{_title(kind)}Job"
        names.append(name)
        module.add(
            name,
            f'class {name}(JobFields):\n    kind: Literal["{kind}"]\n    input: {input_}\n',
        )
    module.add("NewJob", f"NewJob = {' | '.join(names)}\n")
    pairs = {name: (inputs[name], results[name]) for name in KINDS}
    module.add(
        "Submit",
        _protocol("Submit", '"ClientJob[{}]"', "`Client.submit`: a new job of a kind.", pairs),
    )
    module.add(
        "AsyncSubmit",
        _protocol(
            "AsyncSubmit",
            'Coroutine[Any, Any, "AsyncClientJob[{}]"]',
            "`AsyncClient.submit`: a new job of a kind.",
            pairs,
        ),
    )
    return formatted(_HEAD + "\n" + module.text())


def formatted(text: str) -> str:
    """As `ruff format` has it, without imports that nothing uses."""
    options: dict[str, Any] = {"capture_output": True, "text": True, "check": True, "cwd": ROOT}
    name = ["--stdin-filename", str(MODULE)]
    ruff = [sys.executable, "-m", "ruff"]
    check = [*ruff, "check", "--fix", "--exit-zero", "--quiet", *name, "-"]
    run: Callable[..., Any] = subprocess.run
    fixed = run(check, input=text, **options).stdout
    done: str = run([*ruff, "format", "--quiet", *name, "-"], input=fixed, **options).stdout
    return done


if __name__ == "__main__":
    MODULE.write_text(make(), encoding="utf-8")
    print(f"{MODULE.relative_to(ROOT)} is written.")
