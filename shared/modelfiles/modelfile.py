"""Descriptions of models in the format of Ollama's Modelfile: read line by line, and written.

    # A model for the helpdesk.
    FROM hf/Qwen/Qwen3-4B-Instruct-2507
    SYSTEM \"\"\"
    You answer for the helpdesk, in two sentences at most.
    \"\"\"
    PARAMETER temperature 0.2
    PARAMETER stop <|end|>
    MESSAGE user When do you open?
    MESSAGE assistant At nine.

The instructions are those of `docs/modelfile.mdx` of Ollama, in upper or lower case. A value in
quotes, single (") or triple, may have several lines. Everything else is an error that names its
line; nothing is ignored.

The parameters are those of Ollama, also in `options` of its API; `parameters_of` converts them.
"""

import math
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final

from pydantic import ValidationError
from sqlalchemy.orm import Session

from shared import named_models
from shared.bounds import MODEL_LIMIT_BYTES, is_storable_text, shown
from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.chat import Parameters
from shared.modelfiles import go_templates
from shared.models.providers import (
    ADAPTER_MARK,
    HF,
    LATEST,
    OLLAMA,
    REFERENCE_FORMS,
    is_model_name,
    is_reference,
    provider_of,
)
from shared.named_models import LICENSES_LIMIT, Definition, Preset, PresetMessage

Value = str | int | float | bool | list[str]

LISTS: Final = ("stop",)
"""Parameters that may be repeated."""
ROLES: Final = ("system", "user", "assistant")
INSTRUCTIONS: Final = (
    "FROM", "SYSTEM", "TEMPLATE", "PARAMETER", "MESSAGE", "ADAPTER", "LICENSE", "REQUIRES",
)  # fmt: skip
SEVERAL: Final = ("PARAMETER", "MESSAGE", "LICENSE")
"""Instructions that may be repeated."""
UNSUPPORTED: Final = ("DRAFT", "RENDERER", "PARSER", "CAPABILITY")
_QUOTES: Final = ('"""', '"')
LINE_END: Final = re.compile(r"\r\n|\r|\n")
"""Other characters at which `str.splitlines` splits, such as U+2028, are text."""
_INTEGER: Final = re.compile(r"[+-]?[0-9]{1,40}")
_DECIMAL: Final = re.compile(r"[+-]?(?:[0-9]+\.?[0-9]*|\.[0-9]+)(?:[eE][+-]?[0-9]+)?")
_TRUTH: Final = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Description:
    """The content of a Modelfile. Missing instructions are None or empty."""

    from_: str | None = None
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Value] = field(default_factory=dict)
    """Under Ollama's names."""
    messages: tuple[tuple[str, str], ...] = ()
    """Roles and contents."""
    adapter: str | None = None
    licenses: tuple[str, ...] = ()
    lines: Mapping[str, int] = field(default_factory=dict, compare=False)
    """The line of each instruction: `SYSTEM`, `PARAMETER top_k`, `MESSAGE 0`."""

    def error(self, instruction: str, message: str) -> InvalidInput:
        """The error of an instruction, which is a key of `lines`."""
        number = self.lines.get(instruction)
        if number is None:
            return InvalidInput(message)
        return _error(number, message.removesuffix("."))


def read_modelfile(text: str) -> Description:
    """Raises InvalidInput, which names the line."""
    single: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    messages: list[tuple[str, str]] = []
    licenses: list[str] = []
    lines: dict[str, int] = {}
    for number, instruction, value in _instructions(text):
        if instruction == "PARAMETER":
            name, text_value = _parameter(value, number)
            if name not in LISTS and any(name == before for before, _ in pairs):
                raise _error(number, f"the parameter {name} was given before")
            pairs.append((name, text_value))
            lines.setdefault(f"PARAMETER {name}", number)
        elif instruction == "MESSAGE":
            role, _, content = value.partition(" ")
            lines[f"MESSAGE {len(messages)}"] = number
            messages.append((role, content))
        elif instruction == "LICENSE":
            licenses.append(value)
        elif instruction in single:
            raise _error(number, f"{instruction} was given before")
        elif instruction == "FROM" and _is_path(value):
            raise _error(
                number,
                f"FROM {value} names a file; name a model that the server has. Files are for "
                "`ollama create` on its machine",
            )
        else:
            single[instruction] = value
        lines.setdefault(instruction, number)
    return Description(
        from_=single.get("FROM"),
        system=single.get("SYSTEM"),
        template=single.get("TEMPLATE"),
        parameters=values_of(pairs),
        messages=tuple(messages),
        adapter=single.get("ADAPTER"),
        licenses=tuple(licenses),
        lines=lines,
    )


def write_modelfile(description: Description) -> str:
    """The Modelfile of a description; `read_modelfile` reads it as the same one."""
    rows = ["FROM " + (description.from_ or "")]
    if description.adapter is not None:
        rows.append("ADAPTER " + _quote(description.adapter))
    if description.template is not None:
        rows.append("TEMPLATE " + _quote(description.template))
    if description.system is not None:
        rows.append("SYSTEM " + _quote(description.system))
    for name, value in description.parameters.items():
        for item in value if isinstance(value, list) else [value]:
            rows.append(f"PARAMETER {name} {_quote(parameter_text(item))}")
    rows += [f"MESSAGE {role} {_quote(content)}" for role, content in description.messages]
    rows += ["LICENSE " + _quote(text) for text in description.licenses]
    return "\n".join(rows) + "\n"


def parameter_text(value: str | int | float | bool) -> str:
    """The value of a parameter in a Modelfile."""
    return str(value).lower() if isinstance(value, bool) else str(value)


def values_of(pairs: Sequence[tuple[str, str]]) -> dict[str, Value]:
    """Names and texts of values -> numbers, booleans, texts, lists."""
    parameters: dict[str, Value] = {}
    for name, text in pairs:
        before = parameters.get(name)
        if name in LISTS:
            parameters[name] = [*(before if isinstance(before, list) else []), text]
        else:
            parameters[name] = _scalar(text)
    return parameters


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """Number of the first line, instruction, and value without quotes."""
    lines = iter(enumerate(LINE_END.split(text.removeprefix("\ufeff")), start=1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, *rest = line.split(maxsplit=1)
        instruction, value = word.upper(), "".join(rest).strip()
        if instruction in UNSUPPORTED:
            raise _error(number, f"{instruction} is not supported; take the line out")
        if instruction not in INSTRUCTIONS:
            raise _error(
                number,
                f"{shown(word)} is no instruction; there are {', '.join(INSTRUCTIONS[:-1])} and "
                f"{INSTRUCTIONS[-1]}, and text of several lines stands in triple quotes",
            )
        if not value:
            raise _error(number, f"{instruction} needs a value")
        yield number, instruction, _full_value(instruction, value, lines, number)


def _full_value(instruction: str, value: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    """The value with the quoted lines that follow. A role or a name stays in front of it."""
    front = ""
    if instruction in ("MESSAGE", "PARAMETER"):
        word, *rest = value.split(maxsplit=1)
        if instruction == "MESSAGE":
            word = word.lower()
            if word not in ROLES:
                raise _error(
                    number, f"MESSAGE begins with a role, {', '.join(ROLES[:-1])} or {ROLES[-1]}"
                )
        if not rest:
            what = "a role and a text" if instruction == "MESSAGE" else "a name and a value"
            raise _error(number, f"{instruction} needs {what}")
        front, value = word + " ", rest[0]
    quote = next((quote_ for quote_ in _QUOTES if value.startswith(quote_)), None)
    if quote is not None:
        value = _quoted(value.removeprefix(quote), quote, lines, number)
    return front + value


def _quoted(beginning: str, quote: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    """The text up to the closing quotes, which end a line."""
    parts, at = [beginning], number
    while not parts[-1].rstrip().endswith(quote):
        next_line = next(lines, None)
        if next_line is None:
            raise _error(number, f"the quotes {quote} are not closed")
        at, line = next_line
        parts.append(line)
    parts[-1] = parts[-1].rstrip().removesuffix(quote)
    text = "\n".join(parts)
    if '"""' in text:
        raise _error(at, "text follows the closing quotes")
    return text


def _parameter(value: str, number: int) -> tuple[str, str]:
    name, _, text = value.partition(" ")
    if not name.replace("_", "").isalnum():
        raise _error(number, f"{shown(name)} is no name of a parameter")
    return name.lower(), text


def _scalar(text: str) -> Value:
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    if _INTEGER.fullmatch(text):
        return int(text)
    return float(text) if _DECIMAL.fullmatch(text) else text


def _quote(text: str) -> str:
    """The text for a Modelfile, in quotes if it could not be read back without."""
    if "\n" in text or '"' in text or text != text.strip() or not text:
        return f'"""{text}"""'
    return text


def _is_path(value: str) -> bool:
    return value.startswith((".", "/", "~")) or value.lower().endswith((".gguf", ".safetensors"))


def _error(number: int, what: str) -> InvalidInput:
    return InvalidInput(f"The model description, line {number}: {what}.")


# Ollama's parameters (`api/types.go`, `Options`) -> ours (`shared.kinds.chat.Parameters`).
#
# Parameters of the machine that runs a model do not change an answer, and are ignored. A parameter
# that is not supported is accepted with the value that switches it off; other values are errors.


def _number(name: str, value: Any) -> float:
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise InvalidInput(f"{name} must be a number, not {shown(value)}.")
    if not math.isfinite(value):
        raise InvalidInput(f"{name} must be a finite number, not {value}.")
    return value


def _integer(name: str, value: Any) -> int:
    number = _number(name, value)
    if number != int(number):
        raise InvalidInput(f"{name} must be an integer, not {shown(value)}.")
    return int(number)


def _texts(name: str, value: Any) -> list[str]:
    items = [value] if isinstance(value, str) else value
    if not isinstance(items, list) or not all(isinstance(item, str) for item in items):
        raise InvalidInput(f"{name} must be a string or a list of strings, not {shown(value)}.")
    return [item for item in items if item]


def _length(name: str, value: Any) -> int | None:
    """-1 and -2 mean no limit."""
    number = _integer(name, value)
    if number in (-1, -2):
        return None
    if number < 1:
        raise InvalidInput(f"{name} must be at least 1, or -1 for no limit, not {number}.")
    return number


def _seed(name: str, value: Any) -> int | None:
    """-1 means a random seed."""
    number = _integer(name, value)
    return None if number < 0 else number


OURS: Final[dict[str, tuple[str, Callable[[str, Any], Any]]]] = {
    "num_predict": ("max_tokens", _length),
    "temperature": ("temperature", _number),
    "top_p": ("top_p", _number),
    "top_k": ("top_k", _integer),
    "stop": ("stop", _texts),
    "seed": ("seed", _seed),
    "repeat_penalty": ("repetition_penalty", _number),
    "num_ctx": ("window_tokens", _integer),
    "presence_penalty": ("presence_penalty", _number),
    "frequency_penalty": ("frequency_penalty", _number),
}
"""Ollama's name -> our name, and the function that reads the value."""
OF_MACHINES: Final = frozenset(
    {
        "num_keep", "num_batch", "num_gpu", "main_gpu", "num_thread", "numa", "low_vram", "f16_kv",
        "use_mmap", "use_mlock", "logits_all", "vocab_only", "embedding_only", "draft_num_predict",
        "penalize_newline", "mirostat_tau", "mirostat_eta", "repeat_last_n", "num_gqa",
        "rope_frequency_base", "rope_frequency_scale",
    }
)  # fmt: skip
"""Parameters of the machine, and those without an effect in current versions of Ollama."""
OFF: Final[dict[str, float]] = {
    "min_p": 0, "typical_p": 1, "tfs_z": 1, "mirostat": 0,
}  # fmt: skip
"""Parameters that are not supported, and the values that switch them off."""


def parameters_of(options: Mapping[str, Any], *, where: str = "options") -> dict[str, Any]:
    """Our parameters for Ollama's options; None is ignored. Raises InvalidInput, whose message
    begins with the option's name below `where`."""
    ours: dict[str, Any] = {}
    for name, value in options.items():
        path = f"{where}.{name}" if where else name
        if value is None or name in OF_MACHINES:
            continue
        if name in OURS:
            own_name, read = OURS[name]
            own = read(path, value)
            if own is not None:
                ours[own_name] = own
        elif name not in OFF:
            raise InvalidInput(
                f"{path} is no option; there are {', '.join(sorted({*OURS, *OFF, *OF_MACHINES}))}."
            )
        elif _number(path, value) != OFF[name]:
            raise InvalidInput(
                f"{path} is not supported: leave it out, or set it to {OFF[name]:g}, which turns "
                f"it off. Supported are {', '.join(OURS)}."
            )
    return ours


def checked_parameters(options: Mapping[str, Any], *, where: str = "options") -> dict[str, Any]:
    """`parameters_of` with a check of their bounds."""
    ours = parameters_of(options, where=where)
    try:
        Parameters.model_validate(ours)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        names = {own_name: name for name, (own_name, _) in OURS.items()}
        path = ".".join([names.get(str(first["loc"][0]), ""), *map(str, first["loc"][1:])])
        raise InvalidInput(f"{where}.{path}: {first['msg']}.") from error
    return ours


def options_of(parameters: Mapping[str, Any]) -> dict[str, Value]:
    """Our parameters under Ollama's names."""
    names = {own_name: name for name, (own_name, _) in OURS.items()}
    return {
        names[name]: value
        for name, value in parameters.items()
        if name in names and value is not None
    }


# A description -> a named model.


def define(session: Session, name: str, description: Description, settings: Settings) -> bool:
    """Make or replace a named model; True if it is new. Raises InvalidInput."""
    origin = (description.from_ or "").strip()
    base = None if is_reference(origin) else named_models.find(session, origin)
    definition = definition_of(name, description, base, settings.max_tokens_limit)
    return named_models.put(session, definition)


def definition_of(
    name: str, description: Description, base: Definition | None, limit_tokens: int
) -> Definition:
    """The named model of a description. `base` is the named model in its FROM, whose preset has the
    defaults; None if FROM is a model reference.

    Raises InvalidInput, which names the line if the description has lines.
    """
    own_name = named_models.name_of(name)
    if description.from_ is None:
        raise description.error("FROM", "FROM is missing: say which model it is made from.")
    reference = base.base if base is not None else _reference(description)
    if description.adapter is not None:
        reference = _adapted(description, reference)
    if description.template is not None:
        try:
            go_templates.parse(description.template)
        except InvalidInput as error:
            raise description.error("TEMPLATE", error.message) from error
    before = base.preset if base is not None else Preset(name=own_name)
    try:
        preset = Preset(
            name=own_name,
            system=before.system if description.system is None else description.system,
            template=before.template if description.template is None else description.template,
            messages=[
                PresetMessage.model_validate({"role": role, "content": content})
                for role, content in description.messages
            ]
            or before.messages,
        )
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        part = str(first["loc"][0]) if first["loc"] else "MESSAGE"
        place = "MESSAGE" if part in ("messages", "content", "role") else part.upper()
        raise description.error(place, f"{place}: {first['msg']}.") from error
    parameters = dict(base.parameters) if base is not None else {}
    for option, value in description.parameters.items():
        parameters |= _checked(description, option, value, limit_tokens)
    return Definition(
        name=own_name,
        base=reference,
        preset=preset,
        parameters=parameters,
        licenses=(*(base.licenses if base is not None else ()), *description.licenses)[
            :LICENSES_LIMIT
        ],
    )


def _reference(description: Description) -> str:
    """The model reference of FROM. A bare name is a model of Ollama."""
    name = (description.from_ or "").removesuffix(LATEST)
    if not is_reference(name) and is_model_name(name):
        name = OLLAMA.prefix + name
    provider = provider_of(name)
    if provider is None or not is_reference(name):
        raise description.error(
            "FROM", f"FROM {shown(name)} is no model: name a named one, or {REFERENCE_FORMS}."
        )
    if provider.backend is None:
        raise description.error(
            "FROM", f"FROM {name} writes nothing of its own; name a model that generates text."
        )
    return name


def _adapted(description: Description, reference: str) -> str:
    provider = provider_of(reference)
    if provider is None or not provider.is_loaded:
        raise description.error(
            "ADAPTER",
            f"ADAPTER goes with models of the form {HF.form}; {reference} runs on another server: "
            "add the adapter there.",
        )
    if ADAPTER_MARK in reference:
        raise description.error("ADAPTER", f"{reference} has an adapter already.")
    if description.adapter is None or not is_storable_text(description.adapter):
        raise description.error("ADAPTER", "ADAPTER needs the name or folder of an adapter.")
    if description.adapter.startswith((".", "~")) or description.adapter.lower().endswith(".gguf"):
        raise description.error(
            "ADAPTER",
            f"ADAPTER {shown(description.adapter)} is no adapter that workers can load: name one "
            "on the hub, or the whole path of its folder on their machine, in the form of PEFT.",
        )
    adapted = reference + ADAPTER_MARK + description.adapter
    if len(adapted.encode()) > MODEL_LIMIT_BYTES:
        raise description.error("ADAPTER", "ADAPTER has too long a name.")
    return adapted


def _checked(
    description: Description, option: str, value: Any, limit_tokens: int
) -> dict[str, Any]:
    """One parameter under our name, within its bounds."""
    place = f"PARAMETER {option}"
    try:
        ours = parameters_of(
            {option: value}, where="PARAMETER" if description.lines else "parameters"
        )
        Parameters.model_validate(ours)
    except InvalidInput as error:
        raise description.error(place, error.message.replace("PARAMETER.", "PARAMETER ")) from error
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise description.error(place, f"{place} is {shown(value)}: {first['msg']}.") from error
    if ours.get("max_tokens", 0) > limit_tokens:
        raise description.error(
            place,
            f"{place} is {value:,}; this server allows {limit_tokens:,} (SLUICE_MAX_TOKENS_LIMIT).",
        )
    return ours


def description_of(definition: Definition) -> Description:
    """The description from which the named model can be made again."""
    base, _, adapter = definition.base.partition(ADAPTER_MARK)
    return Description(
        from_=base,
        adapter=adapter or None,
        system=definition.preset.system,
        template=definition.preset.template,
        parameters=options_of(definition.parameters),
        messages=tuple((message.role, message.content) for message in definition.preset.messages),
        licenses=definition.licenses,
    )
