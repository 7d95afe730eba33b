"""No value from outside is unbounded, and what is stored can be stored, listed and read."""

import json
import math
from collections.abc import Iterator
from contextlib import suppress
from datetime import UTC, datetime, timedelta
from enum import Enum
from types import UnionType
from typing import Annotated, Any, Literal, Union, get_args, get_origin
from uuid import UUID

import pytest
from annotated_types import Ge, Gt, Le, Lt, MaxLen
from hypothesis import given
from hypothesis import strategies as st
from pydantic import (
    AfterValidator,
    AwareDatetime,
    BaseModel,
    PlainValidator,
    TypeAdapter,
    UrlConstraints,
    ValidationError,
)
from pydantic.networks import AnyHttpUrl
from typing_extensions import TypeAliasType

from api.compat.openai.vector_stores import (
    AttributeChange,
    NewFileBatch,
    NewVectorStore,
    NewVectorStoreFile,
    VectorStoreChange,
    VectorStoreSearch,
)
from api.http.body import TOKEN, MalformedBody, ValueCount, check_structure, parse
from api.schemas import (
    BatchRequest,
    CollectionSpec,
    JobRequest,
    NewConversation,
    NewPrompt,
    NewSchedule,
    RollBack,
    VariablesBody,
)
from shared import bounds
from shared.bounds import (
    COLLECTION_NAME,
    DEPTH_LIMIT,
    Unreadable,
    check_json,
    from_json,
    json_line,
    shown,
    storable_text,
    to_json,
)
from shared.config import Settings
from shared.errors import Permanent, Retryable
from shared.hf.task import Only
from shared.kinds.hf import TASKS
from shared.kinds.rebuild import RebuildOptions
from shared.prompts import Variable
from workers.generation.backends.interface import ToolCall
from workers.generation.chat import storable

MODELS: list[type[BaseModel]] = [
    BatchRequest, NewConversation, NewSchedule, CollectionSpec, NewPrompt, RollBack, VariablesBody,
    Variable, RebuildOptions,
    NewVectorStore, NewVectorStoreFile, NewFileBatch, AttributeChange, VectorStoreChange,
    VectorStoreSearch, *(task.parameters for task in TASKS.values()),
]  # fmt: skip
REQUESTS = {model.__name__: model for model in MODELS}


# Every field of every request has a bound

FEW = (bool, None, type(None), UUID)
"""Types whose values are few, or all of one size."""


def unbounded(annotation: Any, metadata: tuple[Any, ...], seen: set[type]) -> Iterator[str]:
    """What in a type has no bound, by its place."""
    if any(isinstance(mark, Only) for mark in metadata):
        return  # one value
    if isinstance(annotation, TypeAliasType):
        yield from unbounded(annotation.__value__, metadata, seen)
    elif get_origin(annotation) is Annotated:
        inner, *more = get_args(annotation)
        yield from unbounded(inner, (*metadata, *more), seen)
    elif get_origin(annotation) in (Union, UnionType):
        for member in get_args(annotation):
            yield from unbounded(member, metadata, seen)
    elif (
        get_origin(annotation) is Literal
        or annotation in (bool, None, type(None), UUID)
        or (isinstance(annotation, type) and issubclass(annotation, Enum))
    ):
        return
    elif isinstance(annotation, type) and issubclass(annotation, BaseModel):
        if annotation in seen:
            return
        seen.add(annotation)
        for name, field in annotation.model_fields.items():
            for what in unbounded(field.annotation, tuple(field.metadata), seen):
                yield f"{annotation.__name__}.{name}: {what}"
    elif get_origin(annotation) is list:
        if not any(isinstance(mark, MaxLen) for mark in flat(metadata)):
            yield "a list without max_length"
        if not any(getattr(mark, "fail_fast", False) for mark in flat(metadata)):
            yield "a list that goes on behind its first error"
        yield from unbounded(get_args(annotation)[0], (), seen)
    elif annotation is str:
        bounded = any(
            isinstance(mark, MaxLen) or getattr(mark, "pattern", None) == COLLECTION_NAME
            for mark in flat(metadata)
        )
        if not bounded:
            yield "a str without max_length"
    elif annotation in (int, float):
        for kinds in ((Ge, Gt), (Le, Lt)):
            if not any(isinstance(mark, kinds) for mark in flat(metadata)):
                yield f"a number without {kinds[0].__name__}"
    elif annotation is Any or get_origin(annotation) is dict or annotation is dict:
        if not any(isinstance(mark, AfterValidator | PlainValidator) for mark in metadata):
            yield "free JSON without a check"
    elif any(isinstance(mark, PlainValidator) for mark in metadata):
        return  # read by a function of ours, such as a filter
    elif annotation is AwareDatetime or annotation is datetime:
        if not any(isinstance(mark, AfterValidator) for mark in metadata):
            yield "a date without bounds"
    elif annotation is AnyHttpUrl:
        if not any(isinstance(mark, UrlConstraints) and mark.max_length for mark in metadata):
            yield "a URL without max_length"
    else:
        yield f"{annotation!r}, which this test does not know"


def flat(metadata: tuple[Any, ...]) -> Iterator[Any]:
    for mark in metadata:
        yield mark
        yield from getattr(mark, "metadata", ())


@pytest.mark.parametrize("name", REQUESTS)
def test_every_field_of_a_request_has_a_bound(name: str) -> None:
    assert list(unbounded(REQUESTS[name], (), set())) == []


def test_the_walk_notices_what_has_none() -> None:
    class Loose(BaseModel):
        text: str
        number: int
        half: Annotated[float, Gt(0)]
        many: list[bool]
        free: dict[str, Any]
        date: datetime

    complaints = list(unbounded(Loose, (), set()))

    assert {line.split(":")[0] for line in complaints} == {
        f"Loose.{name}" for name in Loose.model_fields
    }


@pytest.mark.parametrize("name", Settings.model_fields)
def test_every_number_of_the_settings_has_a_bound(name: str) -> None:
    field = Settings.model_fields[name]
    numbers = [
        what
        for what in unbounded(field.annotation, tuple(field.metadata), set())
        if what.startswith("a number")
    ]

    assert numbers == []


# Dates


JOB: dict[str, Any] = {"kind": "embed", "input": {"texts": ["a"]}}


def job(**fields: Any) -> Any:
    return TypeAdapter[Any](JobRequest).validate_python(JOB | fields)


@pytest.mark.parametrize(
    "moment",
    [
        "0001-01-01T00:00:00+23:59",
        "9999-12-31T23:59:59-23:59",
        "1969-12-31T00:00:00Z",
        "9000-01-01T00:00:00Z",
        -(10**12),
        10**15,
    ],
)
def test_a_date_far_away_is_refused(moment: Any) -> None:
    with pytest.raises(ValidationError, match="run_after"):
        job(run_after=moment)


def test_a_date_at_hand_is_taken_in_utc() -> None:
    for days in (-0.9, 0, 365):
        moment = datetime.now(UTC) + timedelta(days=days)
        assert job(run_after=moment.isoformat()).run_after == moment


# Free JSON


def nested(depth: int, kind: str) -> Any:
    value: Any = 1
    for _ in range(depth):
        value = {"a": value} if kind == "object" else [value]
    return value


FREE = [
    ("metadata", lambda value: JOB | {"metadata": {"x": value}}),
    ("inputs", lambda value: {"kind": "hf", "input": {"task": "fill-mask", "inputs": value}}),
    (
        "parameters",
        lambda value: {
            "kind": "hf",
            "input": {"task": "fill-mask", "inputs": "a", "parameters": {"x": value}},
        },
    ),
    (
        "arguments",
        lambda value: chat(
            {
                "role": "assistant",
                "tool_calls": [{"id": "a", "function": {"name": "f", "arguments": {"x": value}}}],
            },
            {"role": "tool", "tool_call_id": "a", "content": "b"},
        ),
    ),
    (
        "parameters",
        lambda value: chat(
            {"role": "user", "content": "a"},
            tools=[{"type": "function", "function": {"name": "f", "parameters": {"x": value}}}],
        ),
    ),
    (
        "schema",
        lambda value: chat(
            {"role": "user", "content": "a"},
            response_format={"type": "json", "schema": {"x": value}},
        ),
    ),
]


def chat(*messages: dict[str, Any], **fields: Any) -> dict[str, Any]:
    return {"kind": "chat", "input": {"messages": list(messages), **fields}}


WRONG = {
    "depth of objects": nested(DEPTH_LIMIT + 1, "object"),
    "depth of lists": nested(300, "list"),
    "a long key": {"k" * 5000: 1},
    "a long key of few characters": {"\U0010abcd" * 300: 1},
    "an integer of 65 bits": 2**63,
    "a negative one": -(2**63) - 1,
    "no number": math.nan,
    "infinity": -math.inf,
    "NUL": "a\x00b",
    "NUL in a key": {"a\x00b": 1},
    "half a pair": ["\ud800"],
    "half a pair in a key": {"\udfff": 1},
}


@pytest.mark.parametrize(("field", "made"), FREE)
@pytest.mark.parametrize("wrong", WRONG)
def test_free_json_is_bounded_wherever_it_may_stand(field: str, made: Any, wrong: str) -> None:
    adapter = TypeAdapter[Any](JobRequest)
    adapter.validate_python(made("harmless"))

    with pytest.raises(ValidationError) as caught:
        adapter.validate_python(made(WRONG[wrong]))

    assert caught.value.error_count() == 1
    assert field in caught.value.errors()[0]["loc"]
    assert len(str(caught.value)) < 1000


@pytest.mark.parametrize(
    "metadata",
    [
        {"a": "x" * bounds.METADATA_LIMIT_BYTES},
        {"a": "가" * (bounds.METADATA_LIMIT_BYTES // 3)},
        {str(n): n for n in range(bounds.METADATA_LIMIT_KEYS + 1)},
    ],
)
def test_metadata_has_a_size(metadata: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match=r"bytes|keys"):
        job(metadata=metadata)
    with pytest.raises(ValidationError, match=r"bytes|keys"):
        NewConversation(metadata=metadata)


def test_free_json_of_sensible_depth_comes_through_as_it_is() -> None:
    value = {"deep": nested(DEPTH_LIMIT - 2, "list"), "n": [2**63 - 1, -(2**63), 1e300, None, True]}

    assert job(metadata=value).metadata == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers() | st.floats() | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
        max_leaves=10,
    )
)
def test_what_is_checked_can_be_stored(value: Any) -> None:
    try:
        check_json(value, limit_bytes=10_000)
    except ValueError:
        return
    assert from_json(to_json(value)) == value


# Names, in the bytes of an index


RARE = "\U0010fffd"


@pytest.mark.parametrize(
    "body",
    [
        {"kind": "chat", "input": {"messages": [{"role": "user", "content": "a"}],
         "model": "hf/" + RARE * 1021}},
        {"kind": "hf", "input": {"model": RARE * 1000, "inputs": "a"}},
        {"kind": "embed", "input": {"texts": ["a"], "model": RARE * 300}},
        {"kind": "model", "input": {"action": "pull", "name": "ollama/" + RARE * 1000}},
        {"kind": "ingest", "input": {"collection": "abc", "sources": [
            {"type": "text", "text": "a", "name": RARE * 1024}]}},
    ],
)  # fmt: skip
def test_names_are_bounded_in_bytes(body: dict[str, Any]) -> None:
    with pytest.raises(ValidationError, match="bytes in UTF-8") as caught:
        TypeAdapter[Any](JobRequest).validate_python(body)
    assert len(str(caught.value)) < 1000


# The number of errors


def errors_of(body: Any) -> int:
    try:
        TypeAdapter[Any](BatchRequest).validate_python(body)
    except ValidationError as error:
        return error.error_count()
    return 0


@pytest.mark.parametrize(
    "body",
    [
        {"jobs": [0] * 5000},
        {"jobs": [0] * 100_000},
        {"jobs": [{"kind": "embed", "input": {"texts": [0] * 9000}}] * 1000},
        {"jobs": [{"kind": "embed", "input": {"texts": [0] * 90_000}}]},
        {"jobs": [{"kind": "embed", "input": {}} | {str(n): n for n in range(9000)}]},
        {"jobs": [{"kind": "ingest", "input": {"collection": "abc", "sources": [0] * 9000}}]},
        {"jobs": [{"kind": "chat", "input": {"messages": [{}] * 900, "tools": [{}] * 60}}]},
        {"jobs": [{"kind": "erase", "input": {"document_ids": [0] * 9000}}]},
        {"jobs": [{"kind": "search", "input": {"collection": "abc", "query": "q", "search":
         {"filter": {str(n): [] for n in range(900)}}}}]},
    ],
)  # fmt: skip
def test_a_wrong_body_makes_few_errors(body: Any) -> None:
    assert 1 <= errors_of(body) < 100


# Structure before parsing


@pytest.mark.parametrize(
    "body",
    [
        b'{"jobs":[' + b"0," * 600_000 + b"0]}",
        b'{"inputs":[' + b"[]," * 600_000 + b"[]]}",
        b"[" + b'"",' * 600_000 + b'""]',
        b"[" + b"{}," * 600_000 + b"{}]",
        b'{"":{' + b'"":0,' * 600_000 + b'"":0}}',
    ],
)
def test_a_body_of_very_many_values_is_refused_before_it_is_parsed(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="SLUICE_MAX_BODY_VALUES") as caught:
        parse(body)
    assert caught.value.status_code == 422


@pytest.mark.parametrize(
    "text", ["1,2,3\n" * 400_000, "[[{," * 400_000, '"\\,' * 400_000, "\\" * 1000 + '"' * 1000]
)
def test_what_stands_in_strings_is_not_counted(text: str) -> None:
    assert parse(json.dumps({"text": text, "n": [1, 2]}).encode()) == {"text": text, "n": [1, 2]}


@pytest.mark.parametrize("body", [b"[" * 600, b'{"a":' * 600, b'[{"a":' * 300_000])
def test_depth_is_bounded_before_parsing(body: bytes) -> None:
    with pytest.raises(MalformedBody, match="nested too deeply"):
        parse(body)


@given(st.binary())
def test_no_bytes_make_another_error(body: bytes) -> None:
    for limit in (1, 3, 1000):
        with suppress(MalformedBody):
            check_structure(body * 20, limit_values=limit)


# Between Python and PostgreSQL


@given(st.text(st.characters() | st.sampled_from("\x00\ud800\udfff")))
def test_storable_text_can_be_encoded_and_has_no_nul(text: str) -> None:
    kept = storable_text(text)

    assert len(kept) == len(text)
    assert b"\x00" not in kept.encode()
    assert [b for a, b in zip(text, kept, strict=True) if a != b] == ["\ufffd"] * sum(
        c == "\x00" or "\ud800" <= c <= "\udfff" for c in text
    )


@pytest.mark.parametrize("value", [math.nan, [math.inf], {"a": -math.inf}, [10**5000]])
def test_what_is_no_json_is_refused_for_good(value: Any) -> None:
    with pytest.raises(Permanent, match="number"):
        to_json(value)


def test_stored_json_is_read_as_it_was_or_as_unreadable() -> None:
    stored = to_json({"\x00a": ["\ud800", "\\u0000"]})
    assert from_json(stored) == {"\ufffda": ["\ufffd", "\\u0000"]}
    assert from_json(b"1" + b"0" * 30) == 1e30
    assert from_json(b"[9223372036854775807,-9223372036854775808]") == [2**63 - 1, -(2**63)]
    assert math.isfinite(from_json(b"-1" + b"0" * 5000))
    assert isinstance(from_json(b"[" * 2000 + b"]" * 2000), Unreadable)


@pytest.mark.parametrize(
    "wrong", ["depth of lists", "a long key", "an integer of 65 bits", "no number", "infinity"]
)
def test_arguments_of_another_server_that_cannot_be_stored_are_tried_again(wrong: str) -> None:
    with pytest.raises(Retryable, match="cannot be stored"):
        storable(ToolCall(id="a", name="f", arguments={"x": WRONG[wrong]}))


def test_arguments_of_another_server_are_made_storable() -> None:
    call = ToolCall(id="a\x00" * 999, name="\ud800", arguments={"\x00": ["\udfff", 1.5]})

    kept = storable(call)

    assert kept.arguments == {"\ufffd": ["\ufffd", 1.5]}
    assert (kept.name, len(kept.id)) == ("\ufffd", 1024)


@pytest.mark.parametrize("value", ["x" * 10**6, {"k" * 10**6: 1}, [0] * 10**6, 10**400, b"x" * 999])
def test_messages_show_little_of_a_value(value: Any) -> None:
    assert 0 < len(shown(value)) < 200


# Values that are counted while a body comes

JSON_VALUES = st.recursive(
    st.none() | st.integers() | st.text(alphabet='a,[{"\\\\ 한'),
    lambda inner: st.lists(inner, max_size=6) | st.dictionaries(st.text(), inner, max_size=4),
    max_leaves=40,
)


@given(JSON_VALUES, st.lists(st.integers(1, 9), min_size=1))
def test_never_more_values_are_counted_than_there_are(value: Any, sizes: list[int]) -> None:
    body = json.dumps(value, ensure_ascii=False).encode()
    tokens = [body[match.start() : match.start() + 1] for match in TOKEN.finditer(body)]
    count, at, turn = ValueCount(), 0, 0
    while at < len(body):
        size = sizes[turn % len(sizes)]
        count.feed(body[at : at + size])
        at, turn = at + size, turn + 1
    assert count.values <= sum(token in (b",", b"[", b"{") for token in tokens)


@pytest.mark.parametrize(
    ("start", "block"),
    [(b"[", b"0,"), (b'{"kind":"hf","input":{"inputs":[', b"[],"), (b'{"a":"x,y","b":[', b"{},")],
)
def test_values_behind_the_first_names_are_counted(start: bytes, block: bytes) -> None:
    count = ValueCount()
    for piece in (start, *[block * 1000] * 50):
        count.feed(piece)
    assert 50_000 <= count.values <= 100_001


def test_json_on_one_line_is_one_line_for_every_reader() -> None:
    text = "a\n\r\x0b\x0c\x1c\x1d\x1e\x85\u2028\u2029하나"
    line = json_line({"text": text})
    assert line.splitlines() == [line]
    assert json.loads(line) == {"text": text}
    assert "하나" in line
