"""Values of options: KEY=VALUE of metadata and of filters."""

import unicodedata
from typing import Any

import click
import pytest

from cli.values import Number, filter_of, key_values
from shared.filters import MetadataFilter

CONTEXT = click.Context(click.Command("x"))
PARAMETER = click.Option(["--filter"])


@pytest.mark.parametrize("parse", [key_values, filter_of])
@pytest.mark.parametrize(
    ("pair", "values"),
    [
        ("year=2024", {"year": 2024}),
        ("year=2024.5", {"year": 2024.5}),
        ('year="2024"', {"year": "2024"}),
        ("draft=true", {"draft": True}),
        ("team=support desk", {"team": "support desk"}),
        (" team =x", {"team": "x"}),
        ("#=1", {"#": 1}),
        ("$price=300", {"$price": 300}),
        ("a.b=c=d", {"a.b": "c=d"}),
        ("부서=총무", {"부서": "총무"}),
        ("url=https://x/?a>=1", {"url": "https://x/?a>=1"}),
        ("empty=", {"empty": ""}),
        ('"a=b"=1', {"a=b": 1}),
        ('"year>"=2024', {"year>": 2024}),
        ('" k "=x', {" k ": "x"}),
        ('""=x', {"": "x"}),
        ('formula="=SUM(A1)"', {"formula": "=SUM(A1)"}),
        ('"a>b"=1', {"a>b": 1}),
    ],
)
def test_what_is_read(parse: Any, pair: str, values: dict[str, Any]) -> None:
    assert parse(CONTEXT, PARAMETER, (pair,)) == values


@pytest.mark.parametrize("pair", ["year", "=1", " =1", '"year=1', '"year" 1', ""])
@pytest.mark.parametrize("parse", [key_values, filter_of])
def test_what_is_no_pair(parse: Any, pair: str) -> None:
    with pytest.raises(click.BadParameter, match="does not read"):
        parse(CONTEXT, PARAMETER, (pair,))


@pytest.mark.parametrize(
    ("text", "where"),
    [
        ("year>=2024", {"year": {"$gte": 2024}}),
        ("year <= 2024.5", {"year": {"$lte": 2024.5}}),
        ("연도 > 2024", {"연도": {"$gt": 2024}}),
        ("year<2024", {"year": {"$lt": 2024}}),
        ("year!=2024", {"year": {"$ne": 2024}}),
        ("year==2024", {"year": 2024}),
        ("day>=2024-01-31", {"day": {"$gte": "2024-01-31"}}),
        ('day<"2024"', {"day": {"$lt": "2024"}}),
        ("team in office, desk,3", {"team": {"$in": ["office", "desk", 3]}}),
        ('team in "A, B", C', {"team": {"$in": ["A, B", "C"]}}),
        ("team in (a, b)", {"team": {"$in": ["a", "b"]}}),
        ("team in(a, b)", {"team": {"$in": ["a", "b"]}}),
        ('team in ["a", 2]', {"team": {"$in": ["a", 2]}}),
        ("team not  in a", {"team": {"$nin": ["a"]}}),
        ("tags contains new", {"tags": {"$contains": "new"}}),
        ('tags contains "x=1"', {"tags": {"$contains": "x=1"}}),
        ('"made in Korea"=true', {"made in Korea": True}),
        ('"a\\"b">1', {'a"b': {"$gt": 1}}),
        ("made in=3", {"made in": 3}),
        ("in in a", {"in": {"$in": ["a"]}}),
        ("index=3", {"index": 3}),
        ("text=a < b in c", {"text": "a < b in c"}),
        ("$and=1", {"$$and": 1}),
        ("$$price>1", {"$$$price": {"$gt": 1}}),
        ('{"$or": [{"a": 1}, {"b": 2}]}', {"$or": [{"a": 1}, {"b": 2}]}),
        (' {"$$and": {"$gt": 1}}', {"$$and": {"$gt": 1}}),
    ],
)
def test_what_a_filter_says(text: str, where: dict[str, Any]) -> None:
    assert filter_of(CONTEXT, PARAMETER, (text,)) == where
    MetadataFilter.read(where)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("name~=x", "compares with ~="), ("name=~x", "compares with =~"),
        ("year=>2024", "compares with =>"), ("year<>2024", "compares with <>"),
        ("year!2024", "compares with !"), (">=2024", "does not read"),
        ("year>=", "no value"), ("team in ", "no value"), ("team in", "does not read"),
        ('tags=["a"]', "contains A"), ("tags!=[1]", "contains A"),
        ('{"a": 1', "begins as JSON"), ("{a}=1", "begins as JSON"),
    ],
)  # fmt: skip
def test_what_no_filter_says(text: str, says: str) -> None:
    with pytest.raises(click.BadParameter, match=says):
        filter_of(CONTEXT, PARAMETER, (text,))


def test_several_filters_all_hold() -> None:
    texts = ("year>=2020", "year<2025", "team=office", '{"team": {"$ne": "desk"}}')
    where = filter_of(CONTEXT, PARAMETER, texts)
    assert where == {
        "$and": [
            {"year": {"$gte": 2020}}, {"year": {"$lt": 2025}}, {"team": "office"},
            {"team": {"$ne": "desk"}},
        ]
    }  # fmt: skip
    assert filter_of(CONTEXT, PARAMETER, ()) == {}
    assert filter_of(CONTEXT, PARAMETER, ("a=1", "A=2")) == {"$and": [{"a": 1}, {"A": 2}]}


def test_a_key_equals_one_value() -> None:
    apart = unicodedata.normalize("NFD", "부서")
    for pairs in (("a=1", "a=2"), ("부서=1", f"{apart}=2")):
        with pytest.raises(click.BadParameter, match="twice"):
            key_values(CONTEXT, PARAMETER, pairs)
        with pytest.raises(click.BadParameter, match="in A, B"):
            filter_of(CONTEXT, PARAMETER, pairs)


def test_lists_of_metadata_are_json() -> None:
    pairs = ('tags=["new", "large"]', "sizes=[1, 2.5]", "none=[]", 'text="[1]"', "odd=[x")
    assert key_values(CONTEXT, PARAMETER, pairs) == {
        "tags": ["new", "large"], "sizes": [1, 2.5], "none": [], "text": "[1]", "odd": "[x",
    }  # fmt: skip


@pytest.mark.parametrize("text", ["nan", "inf", "-inf", "1.1", "a"])
def test_no_option_takes_what_is_no_number(text: str) -> None:
    assert Number(0, 1).convert("0.5", PARAMETER, CONTEXT) == 0.5
    with pytest.raises(click.BadParameter):
        Number(0, 1).convert(text, PARAMETER, CONTEXT)
    if text != "1.1":
        with pytest.raises(click.BadParameter):
            Number(min=0, min_open=True).convert(text, PARAMETER, CONTEXT)
