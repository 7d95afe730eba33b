"""Descriptions of models in the form of Ollama's Modelfile, read line by line.

    # A model for the helpdesk.
    FROM llama3.2
    SYSTEM \"\"\"
    You answer for the helpdesk, in two sentences at most.
    \"\"\"
    PARAMETER temperature 0.2
    PARAMETER stop <|end|>

Instructions are FROM, SYSTEM, TEMPLATE and PARAMETER, in any case. A value may stand in quotes,
single (") or triple, and then run over several lines. Everything else is an error that names its
line: what is left out silently would be missed later.
"""

from collections.abc import Iterator
from dataclasses import dataclass, field

from shared.errors import InvalidInput

Value = str | int | float | bool | list[str]

LISTS = ("stop",)
"""Parameters that may be given several times."""
UNSUPPORTED = ("ADAPTER", "LICENSE", "MESSAGE", "REQUIRES", "RENDERER", "PARSER", "CAPABILITY")
_QUOTES = ('"""', '"')
_TRUTH = {"true": True, "false": False}


@dataclass(frozen=True, kw_only=True)
class Description:
    """What a model is to be made of; None and empty where it does not say."""

    from_: str | None = None
    system: str | None = None
    template: str | None = None
    parameters: dict[str, Value] = field(default_factory=dict)


def read_modelfile(text: str) -> Description:
    """Raises InvalidInput, which names the line."""
    found: dict[str, str] = {}
    pairs: list[tuple[str, str]] = []
    for number, instruction, value in _instructions(text):
        if instruction == "PARAMETER":
            name, *rest = value.split(maxsplit=1)
            if not rest:
                raise _wrong(number, "PARAMETER needs a name and a value")
            pairs.append((name, _unquoted(rest[0], number)))
            _check_once(pairs, number)
        elif instruction in found:
            raise _wrong(number, f"{instruction} was given before")
        elif instruction == "FROM" and _is_path(value):
            raise _wrong(
                number,
                f"FROM {value} names a file; name a model that the server has. Files are for "
                "`ollama create` on its machine",
            )
        else:
            found[instruction] = value
    return Description(
        from_=found.get("FROM"),
        system=found.get("SYSTEM"),
        template=found.get("TEMPLATE"),
        parameters=parameters_of(pairs),
    )


def parameters_of(pairs: list[tuple[str, str]]) -> dict[str, Value]:
    """Names and values as they were written -> numbers, truth values, text, lists."""
    parameters: dict[str, Value] = {}
    for name, text in pairs:
        before = parameters.get(name)
        if name in LISTS:
            parameters[name] = [*(before if isinstance(before, list) else []), text]
        else:
            parameters[name] = _scalar(text)
    return parameters


def _instructions(text: str) -> Iterator[tuple[int, str, str]]:
    """The number of its first line, the instruction, its value."""
    lines = iter(enumerate(text.splitlines(), start=1))
    for number, line in lines:
        if not line.strip() or line.lstrip().startswith("#"):
            continue
        word, *rest = line.split(maxsplit=1)
        instruction, value = word.upper(), "".join(rest).strip()
        if instruction in UNSUPPORTED:
            raise _wrong(number, f"{instruction} is not supported; take the line out")
        if instruction not in ("FROM", "SYSTEM", "TEMPLATE", "PARAMETER"):
            raise _wrong(
                number,
                f"{word!r} is no instruction; there are FROM, SYSTEM, TEMPLATE and PARAMETER, and "
                "text of several lines stands in triple quotes",
            )
        if not value:
            raise _wrong(number, f"{instruction} needs a value")
        if instruction != "PARAMETER":
            quote = next((each for each in _QUOTES if value.startswith(each)), None)
            if quote is not None:
                value = _quoted(value.removeprefix(quote), quote, lines, number)
        yield number, instruction, value


def _quoted(beginning: str, quote: str, lines: Iterator[tuple[int, str]], number: int) -> str:
    """Up to the closing quotes, which end a line."""
    parts, at = [beginning], number
    while not parts[-1].rstrip().endswith(quote):
        following = next(lines, None)
        if following is None:
            raise _wrong(number, f"the quotes {quote} are not closed")
        at, line = following
        parts.append(line)
    parts[-1] = parts[-1].rstrip().removesuffix(quote)
    text = "\n".join(parts)
    if '"""' in text:
        raise _wrong(at, "text follows the closing quotes")
    return text


def _unquoted(value: str, number: int) -> str:
    for quote in _QUOTES:
        if value.startswith(quote):
            if len(value) < 2 * len(quote) or not value.endswith(quote):
                raise _wrong(number, f"the quotes {quote} are not closed")
            return value[len(quote) : -len(quote)]
    return value


def _check_once(pairs: list[tuple[str, str]], number: int) -> None:
    name = pairs[-1][0]
    if name not in LISTS and any(name == before for before, _ in pairs[:-1]):
        raise _wrong(number, f"the parameter {name} was given before")


def _scalar(text: str) -> Value:
    if text.lower() in _TRUTH:
        return _TRUTH[text.lower()]
    for number in (int, float):
        try:
            return number(text)
        except ValueError:
            continue
    return text


def _is_path(value: str) -> bool:
    return value.startswith((".", "/", "~")) or value.lower().endswith((".gguf", ".safetensors"))


def _wrong(number: int, what: str) -> InvalidInput:
    return InvalidInput(f"The model description, line {number}: {what}.")
