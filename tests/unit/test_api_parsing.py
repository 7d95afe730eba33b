"""What the API makes of bodies, headers, cursors and file names."""

import json
from typing import Any
from uuid import UUID

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.http import answers
from api.http.body import MalformedBody, parse
from api.http.errors import BadCursor
from api.jobs import waiting
from api.routes import files
from api.schemas import JobRequest
from shared.addresses import is_loopback
from shared.errors import InvalidInput
from shared.kinds.registry import KINDS

storable = st.text(st.characters(exclude_characters="\x00", exclude_categories=["Cs"]))
values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**63) | storable
    | st.floats(allow_nan=False, allow_infinity=False),
    lambda inner: st.lists(inner) | st.dictionaries(storable, inner),
    max_leaves=10,
)  # fmt: skip


@given(values, st.booleans())
def test_every_storable_value_is_parsed_as_it_is(value: Any, ascii_only: bool) -> None:
    assert parse(json.dumps(value, ensure_ascii=ascii_only).encode()) == value


@given(st.text(st.characters(categories=["Cs"]) | st.just("\x00"), min_size=1), values)
def test_no_unstorable_string_comes_through(bad: str, value: Any) -> None:
    halves = [c for c in bad if c == "\x00" or not _pairs(bad)]
    if not halves:
        return
    for body in ({"a": [value, bad]}, {bad: value}):
        with pytest.raises(MalformedBody) as caught:
            parse(json.dumps(body).encode())
        assert caught.value.status_code == 422


def _pairs(text: str) -> bool:
    """Whether JSON reads all surrogates of the text as pairs, which are characters."""
    decoded = json.loads(json.dumps(text))
    return not any("\ud800" <= c <= "\udfff" or c == "\x00" for c in decoded)


@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        (None, None),
        (["wait=10"], 10),
        (["respond-async, wait=10"], 10),
        (["respond-async", "wait=10"], 10),
        (["Wait = 7; foo"], 7),
        (['wait="5"'], 5),
        (["wait=0"], 0),
        (["wait=100000"], 60),
        (["wait"], None),
        (["wait=-1"], None),
        (["wait=soon"], None),
        (["await=3"], None),
        (["handling=lenient"], None),
    ],
)
def test_prefer_wait(headers: list[str] | None, seconds: float | None) -> None:
    assert waiting.wait_of(headers, at_most=60) == seconds


@given(storable.filter(lambda s: s and s.isprintable()))
def test_a_cursor_returns_its_position_to_its_own_list_only(position: str) -> None:
    cursor = answers.encode("jobs", position)

    assert answers.decode("jobs", cursor) == position
    with pytest.raises(BadCursor):
        answers.decode("files", cursor)


@given(st.text())
def test_no_cursor_makes_another_error(cursor: str) -> None:
    try:
        last_id = answers.decode_id("jobs", cursor)
    except BadCursor:
        return
    assert isinstance(last_id, UUID)


@pytest.mark.parametrize(
    ("raw_name", "name"),
    [
        ("docs/안내.md", "docs/안내.md"),
        ("../../etc/passwd", "../../etc/passwd"),  # a name; never a path
        (" a\x00b\r\nc.txt ", "abc.txt"),
        ("a%22b%22.txt", 'a"b".txt'),
    ],
)
def test_names_keep_all_but_control_characters(raw_name: str, name: str) -> None:
    assert files.clean_name(raw_name) == name


@pytest.mark.parametrize("name", [None, "", "\x00", " \n"])
def test_a_file_needs_a_name(name: str | None) -> None:
    with pytest.raises(InvalidInput, match="filename="):
        files.clean_name(name)


@given(st.text(min_size=1).filter(lambda s: s.isprintable()))
def test_every_name_fits_into_a_header(name: str) -> None:
    assert files.disposition(name).encode("ascii").isascii()


def test_the_union_of_requests_is_that_of_the_inputs() -> None:
    schema = TypeAdapter[Any](JobRequest).json_schema()

    assert set(schema["discriminator"]["mapping"]) == set(KINDS)


@pytest.mark.parametrize(
    ("host", "expected"),
    [
        ("127.0.0.1", True),
        ("127.8.8.8", True),
        ("::1", True),
        ("localhost", True),
        ("0.0.0.0", False),
        ("::", False),
        ("10.0.0.1", False),
        ("localhost.example.test", False),
    ],
)
def test_loopback(host: str, expected: bool) -> None:
    assert is_loopback(host) is expected
