"""Prompt templates of Ollama: the part of Go's `text/template` language that they use.

`parse` makes a `GoTemplate` of a text, or raises an error with the line. `render` writes a
conversation with it, as `Execute` in `template/template.go` of Ollama does. Supported: trimmed
actions, comments, `if`, `else`, `range`, `with`, `break`, `continue`, variables, pipelines, and the
functions in `FUNCTIONS`. Not supported: named templates (`define`, `template`, `block`), methods,
complex numbers.

A template comes from outside: its depth is bounded, and so are the steps and the characters of one
rendering.
"""

import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from typing import Any, Final

from shared.bounds import shown
from shared.errors import InvalidInput

LIMIT_DEPTH: Final = 64
LIMIT_STEPS: Final = 500_000
LIMIT_CHARS: Final = 8_000_000

# Tokens of an action

_ACTION: Final = re.compile(r"\{\{(- )?(.*?)( -)?\}\}", re.DOTALL)
_COMMENT: Final = re.compile(r"\{\{(- )?/\*.*?\*/( -)?\}\}", re.DOTALL)
_TOKEN: Final = re.compile(
    r"""\s*(?:
      (?P<string>"(?:\\.|[^"\\\n])*" | `[^`]*`)
    | (?P<char>'(?:\\.|[^'\\\n])')
    | (?P<number>[+-]?(?:0x[0-9a-fA-F]+ | \d+(?:\.\d+)?(?:[eE][+-]?\d+)?))
    | (?P<variable>\$\w*)
    | (?P<field>\.\w+)
    | (?P<dot>\.(?!\w))
    | (?P<word>\w+)
    | (?P<sign>:= | = | \( | \) | \| | ,)
    )""",
    re.VERBOSE,
)


_EMPTY: Final = "$__"
"""An action that writes nothing, which replaces a comment."""


class TemplateSyntax(InvalidInput):
    """The template is no valid Go template."""

    code = "InvalidInput"


@dataclass(frozen=True, kw_only=True)
class _Token:
    kind: str
    text: str
    is_attached: bool
    """Whether there is no space before it."""


# Nodes of a template. An expression is a function of the scope.


class _Scope:
    """The variables, the dot, and the output of a rendering, with its limits."""

    def __init__(self, root: Any) -> None:
        self.root = root
        self.dot = root
        self.variables: list[tuple[str, Any]] = []
        self.out: list[str] = []
        self.steps = 0
        self.chars = 0

    def step(self) -> None:
        self.steps += 1
        if self.steps > LIMIT_STEPS:
            raise InvalidInput(
                f"The template takes more than {LIMIT_STEPS:,} steps for this conversation; "
                "simplify its loops, or send fewer messages."
            )

    def write(self, text: str) -> None:
        self.chars += len(text)
        if self.chars > LIMIT_CHARS:
            raise InvalidInput(
                f"The template makes a prompt of more than {LIMIT_CHARS:,} characters of this "
                "conversation; simplify it, or send less."
            )
        self.out.append(text)

    def variable(self, name: str) -> Any:
        if name == "$":
            return self.root
        for variable, value in reversed(self.variables):
            if variable == name:
                return value
        raise InvalidInput(f"The template has no variable {name} here.")

    def assign(self, name: str, value: Any) -> None:
        for index in range(len(self.variables) - 1, -1, -1):
            if self.variables[index][0] == name:
                self.variables[index] = (name, value)
                return
        raise InvalidInput(f"The template has no variable {name} here.")


Expression = Callable[[_Scope], Any]


class _Break(Exception):
    pass


class _Continue(Exception):
    pass


class _Cut(Exception):
    """Ends the rendering at the place of the response."""


@dataclass(frozen=True, kw_only=True)
class _Text:
    text: str

    def run(self, scope: _Scope) -> None:
        scope.write(self.text)


@dataclass(frozen=True, kw_only=True)
class _Print:
    value: Expression
    is_response: bool
    """Whether it writes the response, at which a prompt ends."""

    def run(self, scope: _Scope) -> None:
        scope.step()
        scope.write(_printed(self.value(scope)))
        if self.is_response and scope.root.get("__cut"):
            raise _Cut


@dataclass(frozen=True, kw_only=True)
class _Assign:
    name: str
    value: Expression
    is_new: bool

    def run(self, scope: _Scope) -> None:
        scope.step()
        value = self.value(scope)
        if self.is_new:
            scope.variables.append((self.name, value))
        else:
            scope.assign(self.name, value)


@dataclass(frozen=True, kw_only=True)
class _Branch:
    """`if` or `with`; `with` makes its value the dot."""

    value: Expression
    name: str
    is_with: bool
    is_response: bool
    then: "_List"
    otherwise: "_List"

    def run(self, scope: _Scope) -> None:
        scope.step()
        value = self.value(scope)
        if self.is_response and scope.root.get("__cut"):
            raise _Cut
        depth, dot = len(scope.variables), scope.dot
        if self.name:
            scope.variables.append((self.name, value))
        try:
            if _is_true(value):
                if self.is_with:
                    scope.dot = value
                self.then.run(scope)
            else:
                self.otherwise.run(scope)
        finally:
            scope.dot = dot
            del scope.variables[depth:]


@dataclass(frozen=True, kw_only=True)
class _Range:
    value: Expression
    names: tuple[str, ...]
    body: "_List"
    otherwise: "_List"

    def run(self, scope: _Scope) -> None:
        scope.step()
        items = _items(self.value(scope))
        depth, dot = len(scope.variables), scope.dot
        try:
            if not items:
                self.otherwise.run(scope)
            for key, item in items:
                scope.step()
                scope.dot = item
                values = (item,) if len(self.names) == 1 else (key, item)
                scope.variables += zip(self.names, values, strict=False)
                try:
                    self.body.run(scope)
                except _Continue:
                    pass
                except _Break:
                    break
                finally:
                    del scope.variables[depth:]
        finally:
            scope.dot = dot
            del scope.variables[depth:]


@dataclass(frozen=True, kw_only=True)
class _Jump:
    error: type[Exception]

    def run(self, _scope: _Scope) -> None:
        raise self.error


_Node = _Text | _Print | _Assign | _Branch | _Range | _Jump


@dataclass(frozen=True, kw_only=True)
class _List:
    nodes: tuple[_Node, ...]

    def run(self, scope: _Scope) -> None:
        depth = len(scope.variables)
        for node in self.nodes:
            node.run(scope)
        # Variables of the outermost list end with the rendering.
        if depth:
            del scope.variables[depth:]


# Parsing.


@dataclass
class _Piece:
    """A text, or an action with its tokens."""

    text: str
    line: int
    tokens: list[_Token] | None = None


class _Parser:
    def __init__(self, text: str) -> None:
        self._pieces = list(_pieces(text))
        self._at = 0
        self._depth = 0
        self._loops = 0
        self.names: set[str] = set()
        """The fields in the template, in lower case."""

    def whole(self) -> _List:
        body, end = self._list(())
        assert end == ""
        return body

    def _list(self, ends: tuple[str, ...]) -> tuple[_List, str]:
        """The nodes up to one of the words in `ends`, and that word; "" at the end of the text."""
        self._depth += 1
        if self._depth > LIMIT_DEPTH:
            raise self._error("is nested too deeply")
        nodes: list[_Node] = []
        while self._at < len(self._pieces):
            piece = self._pieces[self._at]
            self._at += 1
            if piece.tokens is None:
                if piece.text:
                    nodes.append(_Text(text=piece.text))
                continue
            first = piece.tokens[0].text if piece.tokens else ""
            if first in ("end", "else") and piece.tokens[0].kind == "word":
                if first not in ends:
                    raise self._error(f"has {{{{ {first} }}}} where nothing is open")
                if first == "end":
                    self._nothing_behind(piece)
                self._depth -= 1
                return _List(nodes=tuple(nodes)), first
            nodes.append(self._action(piece))
        if ends:
            raise self._error("has an if, range or with without its {{ end }}")
        self._depth -= 1
        return _List(nodes=tuple(nodes)), ""

    def _action(self, piece: _Piece) -> _Node:
        assert piece.tokens is not None
        if not piece.tokens:
            raise self._error("has an empty action {{ }}")
        word = piece.tokens[0].text if piece.tokens[0].kind == "word" else ""
        if word in ("if", "with"):
            return self._branch(piece.tokens[1:], is_with=word == "with")
        if word == "range":
            return self._range(piece.tokens[1:])
        if word in ("break", "continue"):
            self._nothing_behind(piece)
            if not self._loops:
                raise self._error(f"has {{{{ {word} }}}} outside of a range")
            return _Jump(error=_Break if word == "break" else _Continue)
        if word in ("define", "template", "block"):
            raise self._error(f"uses {word}, which is not supported; write its text in place")
        names, sign, rest = self._declaration(piece.tokens)
        value = self._pipeline(rest)
        if names:
            if len(names) > 1:
                raise self._error("assigns to two variables outside of a range")
            return _Assign(name=names[0], value=value, is_new=sign == ":=")
        return _Print(value=value, is_response=_names_response(rest))

    def _branch(self, tokens: list[_Token], *, is_with: bool) -> _Branch:
        names, _, rest = self._declaration(tokens)
        value = self._pipeline(rest)
        then, end = self._list(("else", "end"))
        otherwise = self._otherwise() if end == "else" else _List(nodes=())
        return _Branch(
            value=value, name=names[0] if names else "", is_with=is_with,
            is_response=_names_response(rest), then=then, otherwise=otherwise,
        )  # fmt: skip

    def _otherwise(self) -> _List:
        """The nodes after an `else`, which may continue with another `if` or `with`."""
        tokens = self._pieces[self._at - 1].tokens or []
        if len(tokens) == 1:
            body, end = self._list(("end",))
            assert end == "end"
            return body
        if tokens[1].text not in ("if", "with"):
            raise self._error(f"has {shown(tokens[1].text)} behind else")
        return _List(nodes=(self._branch(tokens[2:], is_with=tokens[1].text == "with"),))

    def _range(self, tokens: list[_Token]) -> _Range:
        names, _, rest = self._declaration(tokens)
        value = self._pipeline(rest)
        self._loops += 1
        body, end = self._list(("else", "end"))
        self._loops -= 1
        otherwise = _List(nodes=())
        if end == "else":
            if len(self._pieces[self._at - 1].tokens or []) > 1:
                raise self._error("has more than else behind a range")
            otherwise, _ = self._list(("end",))
        return _Range(value=value, names=tuple(names), body=body, otherwise=otherwise)

    def _declaration(self, tokens: list[_Token]) -> tuple[list[str], str, list[_Token]]:
        """The variables before `:=` or `=`, the sign, and the tokens after it."""
        for index, token in enumerate(tokens):
            if token.kind == "sign" and token.text in (":=", "="):
                front = tokens[:index]
                names = [part.text for part in front if part.text != ","]
                if not 1 <= len(names) <= 2 or any(
                    part.kind != "variable" and part.text != "," for part in front
                ):
                    raise self._error(f"has {token.text} behind what is no variable")
                return names, token.text, tokens[index + 1 :]
        return [], "", tokens

    def _pipeline(self, tokens: list[_Token]) -> Expression:
        if not tokens:
            raise self._error("lacks a value")
        commands: list[list[_Token]] = [[]]
        level = 0
        for token in tokens:
            level += (token.text == "(") - (token.text == ")") if token.kind == "sign" else 0
            if token.kind == "sign" and token.text == "|" and level == 0:
                commands.append([])
            else:
                commands[-1].append(token)
        value: Expression | None = None
        for command in commands:
            value = self._command(command, value)
        assert value is not None
        return value

    def _command(self, tokens: list[_Token], piped: Expression | None) -> Expression:
        """A value, or a function with its arguments and the value from the pipe."""
        if not tokens:
            raise self._error("has an empty command in a pipeline")
        if tokens[0].kind == "word" and tokens[0].text in FUNCTIONS:
            name = tokens[0].text
            arguments = self._operands(tokens[1:])
            if piped is not None:
                arguments.append(piped)
            return _call(name, arguments)
        operands = self._operands(tokens)
        if len(operands) > 1 or piped is not None:
            raise self._error(f"uses {shown(tokens[0].text)} as a function, which it is not")
        return operands[0]

    def _operands(self, tokens: list[_Token]) -> list[Expression]:
        operands: list[Expression] = []
        index = 0
        while index < len(tokens):
            token = tokens[index]
            index += 1
            if token.kind == "field" and token.is_attached and operands:
                operands[-1] = self._field(operands[-1], token)
            elif token.kind == "sign" and token.text == "(":
                end = self._closing(tokens, index)
                self._depth += 1
                if self._depth > LIMIT_DEPTH:
                    raise self._error("is nested too deeply")
                operands.append(self._pipeline(tokens[index:end]))
                self._depth -= 1
                index = end + 1
            else:
                operands.append(self._operand(token))
        return operands

    def _closing(self, tokens: list[_Token], start: int) -> int:
        level = 1
        for index in range(start, len(tokens)):
            if tokens[index].kind == "sign":
                level += (tokens[index].text == "(") - (tokens[index].text == ")")
            if level == 0:
                return index
        raise self._error("has a parenthesis that is not closed")

    def _field(self, value: Expression, token: _Token) -> Expression:
        name = token.text[1:]
        self.names.add(name.lower())
        return lambda scope: _member(value(scope), name)

    def _operand(self, token: _Token) -> Expression:
        text = token.text
        if token.kind == "field":
            return self._field(_dot, token)
        if token.kind == "dot":
            return _dot
        if token.kind == "variable":
            return lambda scope: scope.variable(text)
        if token.kind == "string":
            string = _string(text)
            return lambda _scope: string
        if token.kind == "char":
            code = ord(_string(f'"{text[1:-1]}"')[0])
            return lambda _scope: code
        if token.kind == "number":
            number = _number(text)
            return lambda _scope: number
        if token.kind == "word" and text in CONSTANTS:
            constant = CONSTANTS[text]
            return lambda _scope: constant
        if token.kind == "word" and text in FUNCTIONS:
            return _call(text, [])
        if token.kind == "word":
            names = ", ".join(sorted(FUNCTIONS))
            raise self._error(f"calls {shown(text)}; there are {names}")
        raise self._error(f"has {shown(text)} in a place where a value belongs")

    def _nothing_behind(self, piece: _Piece) -> None:
        if len(piece.tokens or ()) > 1:
            assert piece.tokens is not None
            raise self._error(f"has more than {piece.tokens[0].text} in an action")

    def _error(self, what: str) -> TemplateSyntax:
        line = self._pieces[min(self._at, len(self._pieces)) - 1].line if self._pieces else 1
        return TemplateSyntax(f"The template, line {line}: it {what}.")


def _names_response(tokens: Sequence[_Token]) -> bool:
    return any(token.kind == "field" and token.text == ".Response" for token in tokens)


def _pieces(text: str) -> Iterator[_Piece]:
    """The texts and actions in their order, trimmed by the marks of the actions."""
    # A comment may contain braces, so it is removed first. Its line ends stay, to be counted.
    text = _COMMENT.sub(_empty_action, text)
    at, line, is_trimmed = 0, 1, False
    for match in _ACTION.finditer(text):
        before = text[at : match.start()]
        shown_text = before.lstrip() if is_trimmed else before
        yield _Piece(shown_text.rstrip() if match[1] else shown_text, line)
        line += before.count("\n")
        tokens = _tokens(match[2], line)
        if not (len(tokens) == 1 and tokens[0].text == _EMPTY):
            yield _Piece("", line, tokens)
        line += match[0].count("\n")
        at, is_trimmed = match.end(), bool(match[3])
    rest = text[at:]
    if "{{" in rest:
        number = line + rest[: rest.index("{{")].count("\n")
        raise TemplateSyntax(f"The template, line {number}: it has {{{{ without }}}}.")
    yield _Piece(rest.lstrip() if is_trimmed else rest, line)


def _empty_action(comment: re.Match[str]) -> str:
    lines = "\n" * comment[0].count("\n")
    return "{{" + (comment[1] or "") + _EMPTY + lines + (comment[2] or "") + "}}"


def _tokens(text: str, line: int) -> list[_Token]:
    tokens: list[_Token] = []
    at = 0
    text = text.rstrip()
    while at < len(text):
        match = _TOKEN.match(text, at)
        if match is None or match.lastgroup is None:
            raise TemplateSyntax(
                f"The template, line {line}: it has {shown(text[at:].strip()[:20])} in an action, "
                "which cannot be read."
            )
        kind = match.lastgroup
        is_attached = match.start(kind) == at and bool(tokens)
        tokens.append(_Token(kind=kind, text=match[kind], is_attached=is_attached))
        at = match.end()
    return tokens


def _string(text: str) -> str:
    if text.startswith("`"):
        return text[1:-1]
    try:
        value = json.loads(
            text.replace("\\'", "'").replace("\\a", "\\u0007").replace("\\v", "\\u000b")
        )
    except ValueError:
        return text[1:-1]
    return str(value)


def _number(text: str) -> int | float:
    try:
        return int(text, 0)
    except ValueError:
        return float(text)


# Evaluating.


def _dot(scope: _Scope) -> Any:
    return scope.dot


def _member(value: Any, name: str) -> Any:
    """A field, or None if it is missing, as in Ollama (`missingkey=zero`)."""
    return value.get(name) if isinstance(value, Mapping) else None


def _is_true(value: Any) -> bool:
    return bool(value)


def _printed(value: Any) -> str:
    if value is None:
        return ""
    if isinstance(value, str):
        return value
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, Mapping | list):
        return _json(value)
    return str(value)


def _json(value: Any) -> str:
    """JSON as Go writes it: without spaces, and with the JSON names of fields."""
    return json.dumps(_plain(value), ensure_ascii=False, separators=(",", ":"))


def _plain(value: Any) -> Any:
    return value.plain if isinstance(value, Record) else (
        {key: _plain(item) for key, item in value.items()} if isinstance(value, Mapping)
        else [_plain(item) for item in value] if isinstance(value, list) else value
    )  # fmt: skip


class Record(dict[str, Any]):
    """Fields by their names in Go; `plain` is the same object for JSON."""

    def __init__(self, fields: Mapping[str, Any], plain: Any) -> None:
        super().__init__(fields)
        self.plain = plain


def _items(value: Any) -> list[tuple[Any, Any]]:
    if isinstance(value, Mapping):
        return [(key, value[key]) for key in sorted(value)]
    if isinstance(value, list | tuple):
        return list(enumerate(value))
    if isinstance(value, int) and not isinstance(value, bool):
        if value > LIMIT_STEPS:
            raise InvalidInput(f"The template ranges over {value:,}, which is too much.")
        return [(number, number) for number in range(value)]
    if value is None:
        return []
    raise InvalidInput(f"The template ranges over {shown(value)}, which is no list.")


def _call(name: str, arguments: Sequence[Expression]) -> Expression:
    if name in ("and", "or"):
        return _either(name == "or", arguments)
    function = FUNCTIONS[name]
    assert function is not None

    def call(scope: _Scope) -> Any:
        scope.step()
        values = [argument(scope) for argument in arguments]
        try:
            return function(*values)
        except (TypeError, ValueError, IndexError, KeyError) as error:
            raise InvalidInput(f"The template's {name} fails: {error}.") from error

    return call


def _either(is_or: bool, arguments: Sequence[Expression]) -> Expression:
    """Arguments are evaluated until the result is known."""

    def call(scope: _Scope) -> Any:
        value: Any = None
        for argument in arguments:
            value = argument(scope)
            if _is_true(value) == is_or:
                return value
        return value

    return call


def _index(value: Any, *keys: Any) -> Any:
    for key in keys:
        value = value.get(key) if isinstance(value, Mapping) else value[key]
    return value


def _slice(value: Any, *ends: int) -> Any:
    start, end = (*ends, None, None)[:2]
    if any(number is not None and not 0 <= number <= len(value) for number in (start, end)):
        raise IndexError("the slice is out of range")
    return value[slice(start, end)]


def _equal(first: Any, *others: Any) -> bool:
    if not others:
        raise ValueError("it needs two values")
    return any(first == other for other in others)


def _printf(format_: str, *values: Any) -> str:
    left = list(values)

    def put(match: re.Match[str]) -> str:
        if match[1] == "%":
            return "%"
        value = left.pop(0) if left else "%!(MISSING)"
        return _quoted(value) if match[1] == "q" else _printed(value)

    return re.sub(r"%[-+# 0]*\d*(?:\.\d+)?([svdqtf%])", put, format_)


def _quoted(value: Any) -> str:
    return json.dumps(_printed(value), ensure_ascii=False)


def _type_of_property(value: Any) -> str:
    """The TypeScript type of a JSON Schema."""
    types = value.get("type", []) if isinstance(value, Mapping) else []
    names = {"integer": "number", "array": "any[]", "object": "Record<string, any>"}
    listed = [types] if isinstance(types, str) else types
    return " | ".join(names.get(str(item), str(item)) for item in listed) or "any"


def _today(*_: Any) -> str:
    return datetime.now(UTC).strftime("%Y-%m-%d")


def _yesterday(*_: Any) -> str:
    return (datetime.now(UTC) - timedelta(days=1)).strftime("%Y-%m-%d")


CONSTANTS: Final[dict[str, Any]] = {"true": True, "false": False, "nil": None}
FUNCTIONS: Final[dict[str, Callable[..., Any] | None]] = {
    "and": None,
    "or": None,
    "not": lambda value: not _is_true(value),
    "len": lambda value: len(value or ()),
    "index": _index,
    "slice": _slice,
    "eq": _equal,
    "ne": lambda a, b: a != b,
    "lt": lambda a, b: a < b,
    "le": lambda a, b: a <= b,
    "gt": lambda a, b: a > b,
    "ge": lambda a, b: a >= b,
    "print": lambda *values: "".join(map(_printed, values)),
    "println": lambda *values: " ".join(map(_printed, values)) + "\n",
    "printf": _printf,
    "json": _json,
    "currentDate": _today,
    "yesterdayDate": _yesterday,
    "toTypeScriptType": _type_of_property,
}


# Rendering of conversations


@dataclass(frozen=True, kw_only=True)
class GoTemplate:
    text: str
    _body: _List
    names: frozenset[str] = field(default=frozenset())

    @property
    def has_tools(self) -> bool:
        """Whether it describes tools to the model."""
        return "tools" in self.names

    def render(
        self,
        messages: Sequence[Mapping[str, Any]],
        tools: Sequence[Mapping[str, Any]] = (),
    ) -> str:
        """The prompt. Messages and tools are in the form of OpenAI's API. Raises InvalidInput."""
        collated = _collated(messages)
        if "messages" in self.names:
            system = "\n\n".join(m["content"] for m in messages if m["role"] == "system")
            return self._execute(
                {
                    "System": system,
                    "Messages": [_message(message) for message in collated],
                    "Tools": [_tool(tool) for tool in tools],
                    "Response": "",
                }
            )
        return self._turn_by_turn(collated)

    def render_insert(self, prompt: str, suffix: str) -> str:
        """The prompt for a text between `prompt` and `suffix`."""
        return self._execute({"Prompt": prompt, "Suffix": suffix, "Response": ""})

    def _turn_by_turn(self, messages: Sequence[Mapping[str, Any]]) -> str:
        """For templates without a list of messages: each turn is rendered, and the last one ends
        before its response."""
        texts: list[str] = []
        turn = {"System": "", "Prompt": "", "Response": ""}

        def write() -> None:
            texts.append(self._execute(dict(turn)))
            turn.update(System="", Prompt="", Response="")

        for message in messages:
            role, content = message["role"], message["content"]
            if role == "system":
                if turn["Prompt"] or turn["Response"]:
                    write()
                turn["System"] = content
            elif role == "user":
                if turn["Response"]:
                    write()
                turn["Prompt"] = content
            elif role == "assistant":
                turn["Response"] = content
        return "".join(texts) + self._execute({**turn, "__cut": True})

    def _execute(self, values: dict[str, Any]) -> str:
        scope = _Scope(values)
        try:
            self._body.run(scope)
        except _Cut:
            pass
        except RecursionError as error:
            raise InvalidInput("The template is nested too deeply.") from error
        return "".join(scope.out)


def parse(text: str) -> GoTemplate:
    """Raises InvalidInput, which names the line."""
    parser = _Parser(text)
    body = parser.whole()
    if not parser.names & {"messages", "response"}:
        response = _Print(value=lambda scope: scope.root.get("Response"), is_response=True)
        body = _List(nodes=(*body.nodes, response))
    return GoTemplate(text=text, _body=body, names=frozenset(parser.names))


def _collated(messages: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    """Neighbouring messages of one role are joined, but for results of tools."""
    collated: list[Mapping[str, Any]] = []
    for message in messages:
        role = message["role"]
        if collated and collated[-1]["role"] == role and role != "tool":
            content = f"{collated[-1]['content']}\n\n{message['content']}"
            collated[-1] = {**collated[-1], "content": content}
        else:
            collated.append(message)
    return collated


def _message(message: Mapping[str, Any]) -> dict[str, Any]:
    calls = message.get("tool_calls") or []
    return {
        "Role": message["role"],
        "Content": message["content"],
        "ToolName": message.get("tool_name", ""),
        "ToolCallID": message.get("tool_call_id", ""),
        "ToolCalls": [
            {
                "ID": call.get("id", ""),
                "Function": {
                    "Index": index,
                    "Name": call["function"]["name"],
                    "Arguments": call["function"]["arguments"],
                },
            }
            for index, call in enumerate(calls)
        ],
    }


def _tool(tool: Mapping[str, Any]) -> Record:
    function = tool["function"]
    schema = function.get("parameters") or {}
    parameters = {
        "Type": schema.get("type", "object"),
        "Required": schema.get("required") or [],
        "Properties": {
            name: Record(
                {
                    "Type": value.get("type"),
                    "Description": value.get("description", ""),
                    "Enum": value.get("enum") or [],
                    "type": value.get("type"),
                },
                value,
            )
            for name, value in (schema.get("properties") or {}).items()
            if isinstance(value, Mapping)
        },
    }
    described = {
        "Name": function.get("name", ""),
        "Description": function.get("description", ""),
        "Parameters": Record(parameters, schema),
    }
    return Record(
        {"Type": tool.get("type", "function"), "Function": Record(described, function)}, tool
    )
