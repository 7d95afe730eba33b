"""Values of options: KEY=VALUE of metadata and of filters."""

import unicodedata
from typing import Any

import click
import pytest

from cli.options import filter_values, key_values

CONTEXT = click.Context(click.Command("x"))
PARAMETER = click.Option(["--filter"])


@pytest.mark.parametrize("parse", [key_values, filter_values])
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
@pytest.mark.parametrize("parse", [key_values, filter_values])
def test_what_is_no_pair(parse: Any, pair: str) -> None:
    with pytest.raises(click.BadParameter, match="does not read"):
        parse(CONTEXT, PARAMETER, (pair,))


@pytest.mark.parametrize(
    ("pair", "sign"),
    [
        ("year>=2024", ">="), ("year<=2024", "<="), ("year!=2024", "!="), ("year>2024", ">"),
        ("year < 2024", "<"), ("year==2024", "=="), ("name~=x", "~="), ("name=~x", "=~"),
        ("연도 >= 2024", ">="), ("year=>2024", "=>"), ("year<>2024", "<>"),
    ],
)  # fmt: skip
def test_filters_with_other_comparisons_say_what_can_be_done(pair: str, sign: str) -> None:
    with pytest.raises(click.BadParameter) as caught:
        filter_values(CONTEXT, PARAMETER, (pair,))
    assert f"compares with {sign}," in caught.value.message
    assert "year=2024" in caught.value.message


def test_a_key_is_given_once() -> None:
    apart = unicodedata.normalize("NFD", "부서")
    for pairs in (("a=1", "a=2"), ("부서=1", f"{apart}=2")):
        for parse in (key_values, filter_values):
            with pytest.raises(click.BadParameter, match="twice"):
                parse(CONTEXT, PARAMETER, pairs)
    assert filter_values(CONTEXT, PARAMETER, ("a=1", "A=2")) == {"a": 1, "A": 2}
