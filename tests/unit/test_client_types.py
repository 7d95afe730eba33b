"""The client's types are those of the records, and of the fields that a new job takes."""

import inspect
import typing

from api.schemas import NewJobBase
from shared.kinds.registry import KINDS
from shared.vocabulary import Lane
from sluice import AsyncClient, Client, kinds
from tests import client_types

OWN = {"idempotency_key", "wait_s", "call_timeout_s"}
"""Options of `submit` that are no fields of the body."""


def test_the_module_is_what_the_records_make() -> None:
    written = client_types.MODULE.read_text(encoding="utf-8")
    assert written == client_types.make(), (
        f"an input or a result has changed: run `{client_types.COMMAND}`"
    )


def test_the_examples_of_all_kinds_have_the_fields_of_their_types() -> None:
    for name, kind in KINDS.items():
        fields = getattr(kinds, kind.input.__name__).__annotations__
        assert kind.example.keys() <= fields.keys(), name


def test_kinds_and_lanes() -> None:
    assert set(typing.get_args(kinds.KindName)) == set(KINDS)
    assert list(typing.get_args(kinds.Lane)) == [lane.value for lane in Lane]


def test_submit_takes_the_fields_of_a_job() -> None:
    fields = NewJobBase.model_fields.keys() - {"kind", "input"}
    assert kinds.JobFields.__annotations__.keys() == fields
    assert kinds.SubmitOptions.__annotations__.keys() == fields | OWN
    for client in (Client, AsyncClient):
        parameters = inspect.signature(client.submit_untyped).parameters
        options = {name for name, one in parameters.items() if one.kind is one.KEYWORD_ONLY}
        assert options == fields | OWN


def test_every_call_has_a_timeout() -> None:
    without = {"close", "url", "reasons"}
    for client in (Client, AsyncClient):
        calls = {
            name: call
            for name, call in inspect.getmembers(client, callable)
            if not name.startswith("_") and name not in without | {"aclose"}
        }
        assert len(calls) >= 50
        missing = [
            name for name, call in calls.items()
            if "timeout_s" not in inspect.signature(call).parameters
        ]  # fmt: skip
        assert missing == []
