"""The back end `hub`: tokens that are missing or refused, refusals, and every other fault."""

from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from email.utils import format_datetime
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import (
    InvalidInput,
    ModelNotFound,
    Permanent,
    Retryable,
    SluiceError,
    StepError,
    Unavailable,
)
from shared.kinds.hf import Task
from tests.integration.hubs import INPUTS
from tests.integration.hubs import hub as hub
from tests.integration.hubs import settings as settings
from tests.integration.hubs import wire as wire
from tests.wire.behaviour import Behaviour, Wire
from tests.wire.hub import TOKEN, model_of
from workers.hf.hub import run

SUMMARIZE = Task("summarization")
MODEL = model_of(SUMMARIZE)


# The token


@pytest.mark.parametrize("token", [None, "", "  "])
def test_a_missing_token_says_what_to_set(
    wire: Wire, settings: Settings, token: str | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HF_TOKEN", raising=False)
    options: dict[str, Any] = {"hf_token": token, "hf_hub_url": settings.hf_hub_url}
    with pytest.raises(Permanent, match=r"Set HF_TOKEN \(or SLUICE_HF_TOKEN\) for the workers"):
        run(SUMMARIZE, MODEL, "one", {}, Settings(_env_file=None, **options))
    assert not wire.requests


def test_the_token_comes_from_either_name(
    wire: Wire, monkeypatch: pytest.MonkeyPatch, settings: Settings
) -> None:
    for name in ("HF_TOKEN", "SLUICE_HF_TOKEN"):
        with monkeypatch.context() as patch:
            patch.setenv(name, TOKEN)
            run(SUMMARIZE, MODEL, "one", {}, Settings(_env_file=None, hf_hub_url=wire.url))
    assert len(wire.requests) == 2
    assert "hf_test" not in repr(settings)


def test_a_refused_token_says_so(settings: Settings) -> None:
    options: dict[str, Any] = {"hf_token": "hf_wrong", "hf_hub_url": settings.hf_hub_url}
    with pytest.raises(Permanent, match="refused the token") as raised:
        run(SUMMARIZE, MODEL, "one", {}, Settings(_env_file=None, **options))
    assert "Invalid username or password" in raised.value.message
    assert "HF_TOKEN" in raised.value.message
    assert "hf_wrong" not in raised.value.message


# Refusals


def refusal(wire: Wire, settings: Settings, inputs: Any = "one", **behaviour: Any) -> SluiceError:
    """The error for a refusal, of which the hub makes one only."""
    wire.behaviours[MODEL] = Behaviour(refuse_times=1, **behaviour)
    with pytest.raises((StepError, InvalidInput)) as raised:
        run(SUMMARIZE, MODEL, inputs, {}, settings)
    assert len(wire.requests) == (len(inputs) if isinstance(inputs, list) else 1)
    wire.requests.clear()
    assert run(SUMMARIZE, MODEL, "one", {}, settings) == [{"summary_text": "one"}]
    return raised.value


@pytest.mark.parametrize(
    ("status", "kind"),
    [
        (400, InvalidInput),
        (402, Permanent),
        (403, Permanent),
        (404, ModelNotFound),
        (408, Unavailable),
        (410, Permanent),
        (413, InvalidInput),
        (422, InvalidInput),
        (429, Unavailable),
        (500, Retryable),
        (502, Unavailable),
        (503, Unavailable),
        (504, Unavailable),
    ],
)
def test_a_refusal_is_of_the_right_kind_and_has_the_hubs_words(
    wire: Wire, settings: Settings, status: int, kind: type[Exception]
) -> None:
    error = refusal(wire, settings, refuse_status=status, refuse_message="words of the hub")
    assert type(error) is kind
    assert f"{wire.url} (SLUICE_HF_HUB_URL) answered {status}: words of the hub." in error.message


def test_which_input_was_refused_is_named(settings: Settings) -> None:
    mask = model_of(Task("fill-mask"))
    with pytest.raises(InvalidInput, match=r"No mask_token.*about inputs\.1\."):
        run(Task("fill-mask"), mask, ["a [MASK]", "a mask"], {}, settings)


def test_a_gated_model_says_where_to_ask(wire: Wire, settings: Settings) -> None:
    error = refusal(wire, settings, refuse_status=403, refuse_code="GatedRepo")
    assert type(error) is Permanent
    assert f"https://huggingface.co/{MODEL}" in error.message


@pytest.mark.parametrize("model", ["tests/nosuch", "nosuch"])
def test_an_unknown_model_is_not_found(settings: Settings, model: str) -> None:
    with pytest.raises(ModelNotFound, match=f"does not serve the model {model}"):
        run(SUMMARIZE, model, "one", {}, settings)


@pytest.mark.parametrize(
    "model", ["http://127.0.0.1:9/x", "/data/models/x", "../x", "a/../b", "a/b/c", "a b", ""]
)
def test_a_model_that_no_hub_could_have_is_not_requested(
    wire: Wire, settings: Settings, model: str
) -> None:
    with pytest.raises(InvalidInput, match="is no model of the hub"):
        run(SUMMARIZE, model, "one", {}, settings)
    assert not wire.requests


@pytest.mark.parametrize(
    ("behaviour", "least_s", "most_s"),
    [
        ({"retry_after": "7"}, 7, 7),
        ({"retry_after": "100000"}, 300, 300),
        ({"retry_after": format_datetime(datetime.now(UTC) + timedelta(days=1))}, 300, 300),
        ({"retry_after": "Wed, 21 Oct 2015 07:28:00 GMT"}, 0, 0),
        ({"estimated_time_s": 20.5}, 20.5, 20.5),
        ({"estimated_time_s": 1e9}, 300, 300),
        ({"estimated_time_s": 20, "retry_after": "3"}, 3, 3),
        ({"rate_limit": '"api";r=0;t=55'}, 55, 55),
    ],
)
@pytest.mark.parametrize("status", [429, 503])
def test_the_hub_is_waited_for_as_long_as_it_says(
    wire: Wire,
    settings: Settings,
    status: int,
    behaviour: dict[str, Any],
    least_s: float,
    most_s: float,
) -> None:
    error = refusal(wire, settings, refuse_status=status, **behaviour)
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is not None
    assert least_s <= error.retry_after_s <= most_s


def test_a_hub_that_says_no_time_is_tried_by_the_usual_pauses(
    wire: Wire, settings: Settings
) -> None:
    error = refusal(wire, settings, refuse_status=503, rate_limit='"api";r=7;t=55')
    assert isinstance(error, Unavailable)
    assert error.retry_after_s is None


# Faults of the connection and of the protocol


def test_a_hub_that_is_slow_is_unavailable(wire: Wire, settings: Settings) -> None:
    quick = settings.model_copy(update={"hf_hub_timeout_s": 0.1})
    for behaviour in (Behaviour(hang=True), Behaviour(delay_s=30)):
        wire.behaviours[MODEL] = behaviour
        with pytest.raises(Unavailable, match="SLUICE_HF_HUB_TIMEOUT_S"):
            run(SUMMARIZE, MODEL, "one", {}, quick)


def test_a_hub_that_is_not_there_is_unavailable(settings: Settings) -> None:
    away = settings.model_copy(update={"hf_hub_url": "http://127.0.0.1:9"})
    with pytest.raises(Unavailable, match="does not answer"):
        run(SUMMARIZE, MODEL, "one", {}, away)


@pytest.mark.parametrize("fault", ["break_after", "malformed_after"])
@pytest.mark.parametrize(
    "task", [Task("summarization"), Task("feature-extraction"), Task("text-ranking")]
)
def test_an_answer_that_breaks_off_or_is_no_json_is_tried_again(
    wire: Wire, settings: Settings, task: Task, fault: str
) -> None:
    setattr(wire.of(model_of(task)), fault, 0)
    with pytest.raises(Retryable, match="broke off its answer") as raised:
        run(task, model_of(task), INPUTS[task], {}, settings)
    assert not isinstance(raised.value, Unavailable)
    wire.behaviours.clear()
    assert run(task, model_of(task), INPUTS[task], {}, settings)


@pytest.mark.parametrize(
    ("task", "its"),
    [
        (Task("text-classification"), Task("fill-mask")),
        (Task("text-classification"), Task("feature-extraction")),
        (Task("summarization"), Task("translation")),
        (Task("summarization"), Task("token-classification")),
        (Task("translation"), Task("feature-extraction")),
        (Task("feature-extraction"), Task("text-classification")),
        (Task("text-generation"), Task("summarization")),
        (Task("fill-mask"), Task("text-classification")),
    ],
)
def test_a_model_of_another_task_is_no_silent_nonsense(
    wire: Wire, settings: Settings, task: Task, its: Task
) -> None:
    """The server runs what the model is for, as the hub does where the path names no task."""
    url = f"{wire.url}/models/{model_of(its)}/pipeline/{its}#"
    other = settings.model_copy(update={"hf_hub_url": url})
    with pytest.raises(Permanent, match=f"not of {task}.* Is tests/it a model of that task"):
        run(task, "tests/it", "a good [MASK]", {}, other)


def test_languages_come_in_pairs(wire: Wire, settings: Settings) -> None:
    with pytest.raises(InvalidInput, match="src_lang and tgt_lang together"):
        run(Task("translation"), model_of(Task("translation")), "a", {"tgt_lang": "fr"}, settings)
    with pytest.raises(InvalidInput, match="no such parameter"):
        run(SUMMARIZE, MODEL, "a", {"top": 1}, settings)
    assert not wire.requests


def test_the_job_is_looked_at_before_each_input(wire: Wire, settings: Settings) -> None:
    class Left(Exception):
        pass

    def check() -> None:
        if len(wire.requests) == 2:
            raise Left

    with pytest.raises(Left):
        run(SUMMARIZE, MODEL, ["one"] * 5, {}, settings, check)
    assert len(wire.requests) == 2


def test_many_threads_share_the_client(wire: Wire, settings: Settings) -> None:
    texts = [f"text {number}" for number in range(40)]
    with ThreadPoolExecutor(8) as pool:
        outputs = pool.map(lambda text: run(SUMMARIZE, MODEL, [text], {}, settings), texts)
        assert list(outputs) == [[{"summary_text": text}] for text in texts]
    assert len(wire.requests) == 40
