"""What can be written in a filter, and what is said of what cannot. What filters mean in
PostgreSQL and in vector stores: tests/integration/test_filter_meanings.py."""

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from jsonschema import Draft202012Validator
from pydantic import ValidationError

from shared.bounds import (
    FILTER_LIMIT_BYTES,
    FILTER_LIMIT_CONDITIONS,
    FILTER_LIMIT_DEPTH,
    FILTER_LIMIT_VALUES,
    Scalar,
    nfc,
)
from shared.documents import filtering
from shared.filters import MetadataFilter, escaped
from shared.kinds.search import SearchInput, SearchOptions

OWN: dict[str, Scalar] = {"source": "wiki", "document_id": "d", "start_index": 0}


def matches(filter_: Any, metadata: dict[str, Any]) -> bool:
    return MetadataFilter.read(filter_).matches(metadata, OWN)


def nested(levels: int) -> Any:
    filter_: Any = {"a": 1}
    for level in range(levels):
        filter_ = {"$not": filter_} if level % 2 else {"$and": [filter_]}
    return filter_


@pytest.mark.parametrize(
    ("filter_", "metadata", "expected"),
    [
        ({}, {}, True),
        ({"a": 1}, {"a": 1.0}, True),
        ({"a": 1}, {"a": True}, False),
        ({"a": 1}, {"a": "1"}, False),
        ({"a": 1, "b": 2}, {"a": 1}, False),
        ({"a": {"$gt": 1, "$lt": 3}}, {"a": 2}, True),
        ({"a": {"$gt": 1, "$lt": 3}}, {"a": 3}, False),
        ({"a": {"$gt": 1}}, {"a": "2"}, False),
        ({"a": {"$ne": 1}}, {}, True),
        ({"a": {"$nin": [1]}}, {"a": "1"}, True),
        ({"a": {"$not": {"$gt": 1}}}, {"a": "x"}, True),
        ({"a": {"$not": {"$gt": 1, "$lt": 3}}}, {"a": 3}, True),
        ({"a": {"$in": []}}, {"a": 1}, False),
        ({"a": {"$contains": "x"}}, {"a": ["x", "y"]}, True),
        ({"a": {"$contains": "x"}}, {"a": "xy"}, False),
        ({"a": "x"}, {"a": ["x"]}, False),
        ({"$or": [{"a": 1}, {"b": 1}], "c": 1}, {"b": 1, "c": 1}, True),
        ({"$not": {"$or": [{"a": 1}, {"b": 1}]}}, {"b": 1}, False),
        ({"$price": 3}, {"$price": 3}, True),
        ({"$price": {"$gte": 3}}, {"$price": 3}, True),
        ({"$$and": 3}, {"$and": 3}, True),
        ({"$$$and": 3}, {"$$and": 3}, True),
        ({"$$price": 3}, {"$price": 3}, True),
        ({"a.b": 1}, {"a": {"b": 1}}, False),
        ({"": 1}, {"": 1}, True),
        ({"source": "wiki"}, {}, True),
        ({"source": "wiki"}, {"source": "mine"}, False),
        ({"start_index": {"$lt": 1}}, {}, True),
        ({"a": 2**53 + 1}, {"a": 2**53}, False),
        ({"a": {"$gt": "Z"}}, {"a": "a"}, True),
        ({"\u1100\u1161": "e\u0301"}, {"\uac00": "\u00e9"}, True),
    ],
    ids=str,
)
def test_what_a_filter_means(filter_: Any, metadata: dict[str, Any], expected: bool) -> None:
    assert matches(filter_, metadata) is expected


@pytest.mark.parametrize(
    ("filter_", "says"),
    [
        ([], "is a list; write an object"),
        ("year=2024", "is a text; write an object"),
        ({"a": None}, "'a' takes a text, a number"),
        ({"a": [1]}, r"'a' takes .*\$in.*\$contains"),
        ({"a": {}}, "'a' is empty; write a value"),
        ({"a": {"$gt": True}}, r"'a.\$gt' compares numbers or texts"),
        ({"a": {"$gte": [1]}}, r"'a.\$gte' takes a text, a number"),
        ({"a": {"$in": 1}}, r"'a.\$in' takes a list"),
        ({"a": {"$in": [1, [2]]}}, r"'a.\$in\[1\]' takes a text, a number"),
        ({"a": {"$contains": ["x"]}}, r"'a.\$contains' takes a text, a number"),
        ({"a": {"$regex": "x"}}, r"'a.\$regex' is no comparison.*\$contains"),
        ({"a": {"b": 1}}, "'a.b' is no comparison .the metadata has no objects"),
        ({"a": {"$or": [{"$gt": 1}]}}, r"'a.\$or' is no comparison .it stands before filters"),
        ({"a": {"$not": 1}}, r"'a.\$not' takes comparisons"),
        ({"$and": []}, r"'\$and' is an empty list"),
        ({"$or": {"a": 1}}, r"'\$or' is an object; write a list.*'\$\$or'"),
        ({"$and": "x"}, r"'\$and' is a text; write a list.*'\$\$and'"),
        ({"$or": [{"a": 1}, 2]}, r"'\$or\[1\]' is a number; write a filter"),
        ({"$and": [{"$or": [{"a": {"$gt": []}}]}]}, r"'\$and\[0\].\$or\[0\].a.\$gt' takes"),
        ({"$not": [{"a": 1}]}, r"'\$not' is a list; write one filter"),
        ({"$gt": 1}, r"'\$gt' has no key"),
        ({"$adn": [{"a": 1}]}, r"'\$adn' is none of \$and, \$or, \$not"),
        ({"$nto": {"a": 1}}, r"'\$nto' is none of \$and, \$or, \$not"),
        ({"$price": 1, "$$price": 2}, "is there twice"),
        ({"\u1100\u1161": 1, "\uac00": 2}, "is there twice"),
        ({"a": 2**63}, "'a' holds an integer of more than 64 bits"),
        ({"a": float("nan")}, "'a' holds a number that is none"),
        ({"a": "\x00"}, "'a' .* NUL"),
        ({"a\ud800": 1}, "surrogate"),
        ({"k" * 2000: 1}, "1,024 bytes"),
        ({"a": "x" * FILTER_LIMIT_BYTES}, "bytes"),
        ({f"k{n}": n for n in range(FILTER_LIMIT_CONDITIONS + 1)}, "more than 100 conditions"),
        ({"$or": [{}] * 200_000}, "more than 100 conditions"),
        ({"a": {"$in": list(range(FILTER_LIMIT_VALUES + 1))}}, "more than 5,000 values"),
        (nested(FILTER_LIMIT_DEPTH), "deeper than 16"),
        (nested(500), "deeper than 16"),
    ],
)
def test_what_cannot_be_read_is_named_with_its_place(filter_: Any, says: str) -> None:
    with pytest.raises(ValidationError, match=says) as caught:
        SearchOptions.model_validate({"filter": filter_})
    assert caught.value.error_count() == 1
    assert caught.value.errors()[0]["loc"] == ("filter",)
    assert len(str(caught.value)) < 1000


def test_comparisons_that_are_not_too_many_are_read() -> None:
    MetadataFilter.read({"$or": [{f"k{n}": n} for n in range(FILTER_LIMIT_CONDITIONS)]})
    MetadataFilter.read({"a": {"$nin": list(range(FILTER_LIMIT_VALUES))}})
    MetadataFilter.read(nested(FILTER_LIMIT_DEPTH - 1))


@given(st.text(), st.integers(-9, 9))
def test_any_key_can_be_named(key: str, value: int) -> None:
    try:
        where = MetadataFilter.read({escaped(key): value})
    except ValueError:
        assert "\x00" in key or any("\ud800" <= char <= "\udfff" for char in key)
        return
    assert where.matches({nfc(key): value}, OWN)
    assert not where.matches({}, {})


free_json = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**70), 2**70) | st.floats() | st.text(max_size=3),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.dictionaries(
            st.sampled_from(["$and", "$or", "$not", "$in", "$gt", "$eq", "a", "$x", "$$x"]),
            inner,
            max_size=3,
        )
    ),
    max_leaves=12,
)


@given(free_json)
def test_whatever_is_sent_is_read_or_refused(value: Any) -> None:
    try:
        where = MetadataFilter.read(value)
    except ValueError:
        return
    where.matches({"a": 1}, OWN)
    filtering.condition(where)
    again = json.loads(json.dumps(where.json))
    assert MetadataFilter.read(again).root == where.root


@pytest.mark.parametrize("key", ["a", "source", "document_id"])
def test_texts_compare_by_code_points_whatever_the_locale_of_the_database_is(key: str) -> None:
    compared = str(filtering.condition(MetadataFilter.read({key: {"$gt": "Z"}})))
    assert compared.count(' COLLATE "C") >') == (1 if key == "a" else 2)


def test_a_filter_comes_back_from_a_stored_job_as_it_was() -> None:
    sent = {"$or": [{"a": {"$gte": 2}}, {"$$or": "e\u0301"}]}
    job_input = SearchInput.model_validate(
        {"collection": "abc", "query": "q", "search": {"filter": sent}}
    )
    stored = json.loads(json.dumps(job_input.model_dump(mode="json")))
    assert stored["search"]["filter"] == sent
    assert SearchInput.model_validate(stored) == job_input


def test_the_schema_tells_what_is_read() -> None:
    schema = SearchOptions.model_json_schema()["properties"]["filter"]["anyOf"][0]
    validator = Draft202012Validator(schema)
    for example in schema["examples"]:
        MetadataFilter.read(example)
    good = [{}, {"a": 1}, {"a": {"$in": ["x", 1]}}, {"$not": {"a": True}}, *schema["examples"]]
    bad = [[], {"a": None}, {"a": [1]}, {"a": {}}, {"a": {"$gt": True}}, {"a": {"b": 1}},
           {"$and": []}, {"$or": {"a": 1}}, {"$not": [{}]}, {"a": {"$in": 1}}]  # fmt: skip
    assert [one for one in good if not validator.is_valid(one)] == []
    assert [one for one in bad if validator.is_valid(one)] == []
