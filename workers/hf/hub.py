"""The back end `hub`: a job's inputs at the Hugging Face inference API, through its own client.

Outputs have the shape that the local back end gives. Nothing is tried again in
here: that is for the runner (`workers/attempts/retry.py`), and the errors are the ones it goes by.
All of it is thread-safe.
"""

import json
import re
from collections.abc import Callable, Iterator
from typing import Any

import httpx
import numpy as np
from huggingface_hub import InferenceClient, get_session, hf_raise_for_status
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
from shared.hf.task import FileInput, HfTask, UnexpectedAnswer
from shared.kinds.hf import TASKS, parse_parameters
from workers.models.hub_session import guard_hub, inference_url
from workers.outbound import (
    RemoteServer,
    as_sentence,
    broken_off,
    retry_after_s,
    unreachable,
    without_credentials,
)

# A request to the inference API, and its answer in the shape of the local back end.
#
# An answer is checked: the hub runs the task that a model is for, whichever was asked for.


def _call(task: HfTask, client: InferenceClient, value: Any, parameters: dict[str, Any]) -> Any:
    """The output for one input, as JSON. Raises what the client raises, and UnexpectedAnswer."""
    try:
        answer = _plain(_answer(task, client, value, parameters))
    except (HfHubHTTPError, json.JSONDecodeError, UnicodeDecodeError):
        raise  # ValueErrors, too, and not of the shape
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise UnexpectedAnswer("it has another shape.") from error
    keys = task.hub.keys
    for item in _items(answer) if keys else ():
        if not isinstance(item, dict) or not keys <= item.keys():
            raise UnexpectedAnswer(f"it lacks {' and '.join(sorted(keys))}.")
    return task.hub.settle(answer, value, parameters)


def _answer(task: HfTask, client: InferenceClient, value: Any, parameters: dict[str, Any]) -> Any:
    if task.hub.arguments is not None:
        positional, named = task.hub.arguments(value, parameters)
        return getattr(client, task.name.replace("-", "_"))(*positional, **named)
    response = get_session().post(
        str(client.model),
        json={"inputs": value, "parameters": parameters},
        headers={"Authorization": f"Bearer {client.token}"},
        timeout=client.timeout,
    )
    hf_raise_for_status(response)
    return response.json()


def _plain(answer: Any) -> Any:
    """The client's own types as JSON; it fills fields that did not come with null."""
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if isinstance(answer, dict):
        return {str(name): _plain(value) for name, value in answer.items() if value is not None}
    if isinstance(answer, list | tuple):
        return [_plain(item) for item in answer]
    return answer


def _items(answer: Any) -> Iterator[Any]:
    if isinstance(answer, list):
        for item in answer:
            yield from _items(item)
    else:
        yield answer


URL_SETTING = "SLUICE_HF_HUB_URL"
TIMEOUT_SETTING = "SLUICE_HF_HUB_TIMEOUT_S"
TOKEN_SETTING = "HF_TOKEN"

_REPOSITORY = re.compile(r"([A-Za-z0-9][A-Za-z0-9_.-]*/)?[A-Za-z0-9_][A-Za-z0-9_.-]*")
_PASSING = (408, 425, 429, 502, 503, 504)


def run(
    name: str,
    model: str,
    inputs: Any,
    parameters: dict[str, Any],
    settings: Settings,
    check: Callable[[], None] = lambda: None,
) -> Any:
    """The output of the API for a task and a job's inputs, one request after the other.

    `inputs` are as the job has them (`shared.kinds.hf.single_inputs`), but files are bytes. `check`
    is called before each request, and ends the run by raising.
    """
    task = TASKS[name]
    server = _server(settings)
    url = _url(task, model, settings)
    token = _token(settings)
    parsed = parse_parameters(name, parameters).model_dump(exclude_unset=True, exclude_none=True)
    many = isinstance(inputs, list)
    outputs = []
    guard_hub(settings)
    for n, value in enumerate(inputs if many else [inputs]):
        check()
        headers = {}
        if isinstance(task.input, FileInput):
            if not isinstance(value, bytes):
                # The client would take a text for a path on this machine, or for a URL to fetch.
                raise InvalidInput(f"{task.name} takes the bytes of a file.")
            if not parsed:
                headers = {"Content-Type": _media_type(task.input.media, value)}
        client = InferenceClient(
            model=url, token=token, timeout=settings.hf_hub_timeout_s, headers=headers
        )
        try:
            with client:
                outputs.append(_call(task, client, value, parsed))
        except Exception as error:
            known = _translated(error, server, task, model, f"inputs.{n}" if many else "inputs")
            if known is None:
                raise
            raise known from error
    return outputs if many else task.alone(outputs[0])


def _url(task: HfTask, model: str, settings: Settings) -> str:
    """Given to the client as the model, which saves it from looking the model up first."""
    if ".." in model or not _REPOSITORY.fullmatch(model):
        raise InvalidInput(
            f"{model!r} is no model of the hub; name one as <owner>/<name>, or leave out "
            'backend="hub".'
        )
    if settings.hf_hub_url is not None:
        return f"{settings.hf_hub_url.rstrip('/')}/models/{model}/pipeline/{task.name}"
    url = f"{inference_url()}/models/{model}"
    # Models for sentences serve several tasks, so the hub wants to be told which.
    return f"{url}/pipeline/{task.name}" if task.checkpoints.are_for_sentences else url


# What kind of file some bytes are, by how they begin.

_BEGINNINGS: tuple[tuple[int, bytes, str], ...] = (
    (0, b"fLaC", "audio/flac"),
    (8, b"WAVE", "audio/wav"),
    (0, b"OggS", "audio/ogg"),
    (0, b"ID3", "audio/mpeg"),
    (0, b"\xff\xfb", "audio/mpeg"),
    (0, b"\xff\xf3", "audio/mpeg"),
    (0, b"\x1aE\xdf\xa3", "audio/webm"),
    (4, b"ftyp", "audio/m4a"),
    (0, b"\x89PNG", "image/png"),
    (0, b"\xff\xd8\xff", "image/jpeg"),
    (0, b"GIF8", "image/gif"),
    (8, b"WEBP", "image/webp"),
    (0, b"BM", "image/bmp"),
    (0, b"II*\0", "image/tiff"),
    (0, b"MM\0*", "image/tiff"),
)


def _media_type(media: str, data: bytes) -> str:
    """Never none: where it is not known, what the hub takes for any audio or image."""
    for at, beginning, name in _BEGINNINGS:
        if data.startswith(beginning, at):
            return name
    return f"{media}/x-{media}"


def _token(settings: Settings) -> str:
    token = settings.hf_token.get_secret_value().strip() if settings.hf_token else ""
    if not token:
        raise Permanent(
            f"Set {TOKEN_SETTING} (or SLUICE_{TOKEN_SETTING}) for the workers to a token of the "
            'Hugging Face hub: backend="hub" needs one. Make it at '
            "https://huggingface.co/settings/tokens."
        )
    return token


def _server(settings: Settings) -> RemoteServer:
    return RemoteServer(
        name="The Hugging Face hub",
        url=without_credentials(settings.hf_hub_url or inference_url(), URL_SETTING),
        setting=URL_SETTING,
        remedy="Check the network of the workers.",
        key_setting=TOKEN_SETTING,
        retry_after_limit_s=settings.remote_retry_after_limit_s,
    )


def _translated(
    error: Exception, server: RemoteServer, task: HfTask, model: str, path: str
) -> SluiceError | None:
    """What an error of the client means; None for one that it does not know."""
    if isinstance(error, HfHubHTTPError):
        return _refused(error, server, model, path)
    if isinstance(error, OfflineModeIsEnabled):
        return Permanent('HF_HUB_OFFLINE is set for the workers; backend="hub" needs the network.')
    if isinstance(error, httpx.TimeoutException | TimeoutError):
        return unreachable(server, f"nothing came in time ({TIMEOUT_SETTING})")
    if isinstance(error, httpx.ConnectError):
        return unreachable(server, str(error))
    if isinstance(error, httpx.HTTPError):
        return broken_off(server, str(error) or type(error).__name__)
    if isinstance(error, UnexpectedAnswer):
        return Permanent(
            f"{server} answered for {path} with something that is not of {task.name}: {error} "
            f"Is {model} a model of that task?"
        )
    # What the client says of answers that are not JSON, or of errors of which it makes nothing.
    if isinstance(error, ValueError | AttributeError):
        return broken_off(server, "what came is not of the protocol")
    return None


def _refused(error: HfHubHTTPError, server: RemoteServer, model: str, path: str) -> SluiceError:
    status, headers = error.response.status_code, error.response.headers
    reason = as_sentence(error.server_message or error.response.reason_phrase)
    message = f"{server} answered {status}: {reason}"
    if status in _PASSING:
        wait_s = _retry_after_s(error.response)
        capped = None if wait_s is None else min(wait_s, server.retry_after_limit_s)
        return Unavailable(message, retry_after_s=capped)
    if status >= 500:
        # It may be this input that it fails at, so the attempts are counted.
        return Retryable(message)
    if headers.get("X-Error-Code") == "GatedRepo":
        return Permanent(
            f"{message} {model} is gated: ask for access at https://huggingface.co/{model} with "
            f"the account whose token is in {TOKEN_SETTING}."
        )
    if status in (401, 403):
        return Permanent(
            f"{message} It refused the token. Set {TOKEN_SETTING} (or SLUICE_{TOKEN_SETTING}) for "
            "the workers to one that may call inference providers."
        )
    if status == 404:
        return ModelNotFound(f"{message} It does not serve the model {model}.")
    if status in (400, 413, 422):
        return InvalidInput(f"{message} This was about {path}.")
    return Permanent(message)


def _retry_after_s(response: httpx.Response) -> float | None:
    """From Retry-After, else from the body of a model that loads, else from the rate limit."""
    wait_s = retry_after_s(response.headers.get("Retry-After"))
    if wait_s is not None:
        return wait_s
    try:
        body = response.json()
    except ValueError:
        body = None
    estimated = body.get("estimated_time") if isinstance(body, dict) else None
    if isinstance(estimated, int | float) and estimated >= 0:
        return float(estimated)
    limit = parse_ratelimit_headers(response.headers)
    return float(limit.reset_in_seconds) if limit is not None and limit.remaining == 0 else None
