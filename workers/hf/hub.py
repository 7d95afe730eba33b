"""The back end `hub`: a job's inputs at the Hugging Face inference API, through its own client.

Outputs have the shape that the local back end gives (`hub_calls.py`). Nothing is tried again in
here: that is for the runner (`workers/runner.py`), and the errors are the ones it goes by. All of
it is thread-safe.
"""

import re
from collections.abc import Callable
from typing import Any

import httpx
from huggingface_hub import InferenceClient, constants
from huggingface_hub.errors import HfHubHTTPError, OfflineModeIsEnabled
from huggingface_hub.utils import (  # type: ignore[attr-defined]  # hidden from type checkers
    parse_ratelimit_headers,
)

from shared.config import Settings
from shared.errors import (
    InvalidInput,
    ModelNotFound,
    Permanent,
    Retryable,
    SluiceError,
    Unavailable,
)
from shared.hf import BINARY, Task
from shared.hf_parameters import parse_parameters
from workers.generation.remote.refusals import (
    Place,
    broken_off,
    retry_after_s,
    shortened,
    shown,
    unreachable,
)
from workers.hf.hub_calls import NotOfTheTask, alone, called
from workers.hf.media import media_type

URL_SETTING = "SLUICE_HF_HUB_URL"
TIMEOUT_SETTING = "SLUICE_HF_HUB_TIMEOUT_S"
TOKEN_SETTING = "HF_TOKEN"
PROVIDER = "hf-inference"

_OF_SEVERAL_TASKS = (Task.FEATURE_EXTRACTION, Task.SENTENCE_SIMILARITY)
"""Models of these serve the other one as well, so the hub wants to be told which."""
_REPOSITORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PASSING = (408, 425, 429, 502, 503, 504)

Check = Callable[[], None]


def run(
    task: Task,
    model: str,
    inputs: Any,
    parameters: dict[str, Any],
    settings: Settings,
    check: Check = lambda: None,
) -> Any:
    """The output of the API for a job's inputs, one request after the other.

    `inputs` are as the job has them (`shared.hf.single_inputs`), but those of a binary task are
    bytes. `check` is called before each request, and ends the run by raising.
    """
    place = _place(settings)
    url = _url(task, model, settings)
    token = _token(settings)
    given = parse_parameters(task, parameters).model_dump(exclude_unset=True, exclude_none=True)
    many = isinstance(inputs, list)
    outputs = []
    for n, value in enumerate(inputs if many else [inputs]):
        check()
        if task in BINARY and not isinstance(value, bytes):
            # The client would take a text for a path on this machine, or for a URL to fetch.
            raise InvalidInput(f"{task} takes the bytes of a file.")
        headers = {}
        if task in BINARY and not given:
            headers = {"Content-Type": media_type(task, value)}
        client = InferenceClient(
            model=url, token=token, timeout=settings.hf_hub_timeout_s, headers=headers
        )
        try:
            with client:
                outputs.append(called(task, client, value, given))
        except Exception as error:
            known = _translated(error, place, task, model, f"inputs.{n}" if many else "inputs")
            if known is None:
                raise
            raise known from error
    return outputs if many else alone(task, outputs[0])


def _url(task: Task, model: str, settings: Settings) -> str:
    """Given to the client as the model, which saves it from looking the model up first."""
    if ".." in model or not _REPOSITORY.fullmatch(model):
        raise InvalidInput(
            f"{model!r} is no model of the hub; name one as <owner>/<name>, or leave out "
            'backend="hub".'
        )
    if settings.hf_hub_url is not None:
        return f"{settings.hf_hub_url.rstrip('/')}/models/{model}/pipeline/{task}"
    url = f"{_hub()}/models/{model}"
    return f"{url}/pipeline/{task}" if task in _OF_SEVERAL_TASKS else url


def _hub() -> str:
    return constants.INFERENCE_PROXY_TEMPLATE.format(provider=PROVIDER)


def _token(settings: Settings) -> str:
    token = settings.hf_token.get_secret_value().strip() if settings.hf_token else ""
    if not token:
        raise Permanent(
            f"Set {TOKEN_SETTING} (or SLUICE_{TOKEN_SETTING}) for the workers to a token of the "
            'Hugging Face hub: backend="hub" needs one. Make it at '
            "https://huggingface.co/settings/tokens."
        )
    return token


def _place(settings: Settings) -> Place:
    return Place(
        name="The Hugging Face hub",
        url=shown(settings.hf_hub_url or _hub(), URL_SETTING),
        setting=URL_SETTING,
        remedy="Check the network of the workers.",
        key_setting=TOKEN_SETTING,
        retry_after_limit_s=settings.remote_retry_after_limit_s,
    )


def _translated(
    error: Exception, place: Place, task: Task, model: str, where: str
) -> SluiceError | None:
    """What an error of the client means; None for one that it does not know."""
    if isinstance(error, HfHubHTTPError):
        return _refused(error, place, model, where)
    if isinstance(error, OfflineModeIsEnabled):
        return Permanent('HF_HUB_OFFLINE is set for the workers; backend="hub" needs the network.')
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return unreachable(place, f"nothing came in time ({TIMEOUT_SETTING})")
    if isinstance(error, httpx.ConnectError):
        return unreachable(place, str(error))
    if isinstance(error, httpx.HTTPError):
        return broken_off(place, str(error) or type(error).__name__)
    if isinstance(error, NotOfTheTask):
        return Permanent(
            f"{place} answered for {where} with something that is not of {task}: {error} "
            f"Is {model} a model of that task?"
        )
    # What the client says of answers that are not JSON, or of errors of which it makes nothing.
    if isinstance(error, ValueError | AttributeError):
        return broken_off(place, "what came is not of the protocol")
    return None


def _refused(error: HfHubHTTPError, place: Place, model: str, where: str) -> SluiceError:
    status, headers = error.response.status_code, error.response.headers
    said = shortened(error.server_message or error.response.reason_phrase)
    told = f"{place} answered {status}: {said}"
    if status in _PASSING:
        asked = _asked_to_wait_s(error.response)
        capped = None if asked is None else min(asked, place.retry_after_limit_s)
        return Unavailable(told, retry_after_s=capped)
    if status >= 500:
        # It may be this input that it fails at, so the attempts are counted.
        return Retryable(told)
    if headers.get("X-Error-Code") == "GatedRepo":
        return Permanent(
            f"{told} {model} is gated: ask for access at https://huggingface.co/{model} with the "
            f"account whose token is in {TOKEN_SETTING}."
        )
    if status in (401, 403):
        return Permanent(
            f"{told} It refused the token. Set {TOKEN_SETTING} (or SLUICE_{TOKEN_SETTING}) for the "
            "workers to one that may call inference providers."
        )
    if status == 404:
        return ModelNotFound(f"{told} It does not serve the model {model}.")
    if status in (400, 413, 422):
        return InvalidInput(f"{told} This was about {where}.")
    return Permanent(told)


def _asked_to_wait_s(response: httpx.Response) -> float | None:
    """From Retry-After, else from the body of a model that loads, else from the rate limit."""
    asked = retry_after_s(response.headers.get("Retry-After"))
    if asked is not None:
        return asked
    try:
        body = response.json()
    except ValueError:
        body = None
    estimated = body.get("estimated_time") if isinstance(body, dict) else None
    if isinstance(estimated, int | float) and estimated >= 0:
        return float(estimated)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
