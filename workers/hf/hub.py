"""The back end `hub`: a job's inputs at the Hugging Face inference API, through its own client.

Outputs have the shape that the local back end gives. Nothing is tried again in
here: that is for the runner (`workers/attempts/retry.py`), and the errors are the ones it goes by.
All of it is thread-safe.
"""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import numpy as np
from huggingface_hub import InferenceClient, constants, get_session, hf_raise_for_status
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
from shared.kinds.hf import BINARY, GenerationParameters, Task, parse_parameters
from workers.hf.contents import media_type
from workers.server_errors import (
    RemoteServer,
    as_sentence,
    broken_off,
    retry_after_s,
    unreachable,
    without_credentials,
)

# A request to the inference API for each task, and its answer in the shape of the local back
# end.
#
# The client's own methods are used where they take all that a job may ask for. An answer is
# checked: the hub runs the task that a model is for, whichever was asked for.

Parameters = dict[str, Any]
"""The parameters that a job gives, by name."""

_ANSWERED_IN_A_LIST = (Task.SUMMARIZATION, Task.TRANSLATION, Task.TEXT_CLASSIFICATION)


class NotOfTheTask(Exception):
    """The answer is JSON, and not what the task answers."""


def called(task: Task, client: InferenceClient, value: Any, parameters: Parameters) -> Any:
    """The output for one input, as JSON. Raises what the client raises, and NotOfTheTask."""
    form = _FORMS[task]
    try:
        answer = _plain(form.call(client, value, parameters))
    except (HfHubHTTPError, json.JSONDecodeError, UnicodeDecodeError):
        raise  # ValueErrors, too, and not of the shape
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise NotOfTheTask("it has another shape.") from error
    for item in _items(answer) if form.names else ():
        if not isinstance(item, dict) or not form.names <= item.keys():
            raise NotOfTheTask(f"it lacks {' and '.join(sorted(form.names))}.")
    return form.settled(answer, value, parameters)


def alone(task: Task, output: Any) -> Any:
    """The answer for an input that did not come in a list, as each local task's `alone`."""
    if task in _ANSWERED_IN_A_LIST:
        return [output]
    if task is Task.TEXT_GENERATION and not isinstance(output, list):
        return [output]
    return output


def _plain(answer: Any) -> Any:
    """The client's own types as JSON; it fills fields that did not come with null."""
    if isinstance(answer, np.ndarray):
        return answer.tolist()
    if isinstance(answer, dict):
        return {str(name): _plain(each) for name, each in answer.items() if each is not None}
    if isinstance(answer, list | tuple):
        return [_plain(each) for each in answer]
    return answer


def _items(answer: Any) -> Iterator[Any]:
    if isinstance(answer, list):
        for each in answer:
            yield from _items(each)
    else:
        yield answer


# Requests that are more than a method of the client


def _translation(client: InferenceClient, text: str, parameters: Parameters) -> Any:
    if ("src_lang" in parameters) != ("tgt_lang" in parameters):
        raise InvalidInput("The hub takes src_lang and tgt_lang together; give both or neither.")
    return client.translation(text, **_with_generation_apart(parameters))


def _with_generation_apart(parameters: Parameters) -> Parameters:
    """The API has a field of its own for the parameters of generation."""
    of_generation = GenerationParameters.model_fields.keys()
    others = {name: value for name, value in parameters.items() if name not in of_generation}
    inner = {name: value for name, value in parameters.items() if name in of_generation}
    inner |= others.pop("generate_parameters", {})
    return {**others, "generate_parameters": inner} if inner else others


def _posted(client: InferenceClient, value: Any, parameters: Parameters) -> Any:
    """For what the client has no method, or one that takes less than jobs may ask for."""
    response = get_session().post(
        str(client.model),
        json={"inputs": value, "parameters": parameters},
        headers={"Authorization": f"Bearer {client.token}"},
        timeout=client.timeout,
    )
    hf_raise_for_status(response)
    return response.json()


# Answers that differ between servers


def _listed(answer: Any, _value: Any, _parameters: Parameters) -> Any:
    if not isinstance(answer, list):
        raise NotOfTheTask("it is no list.")
    return answer


def _as_it_is(answer: Any, _value: Any, _parameters: Parameters) -> Any:
    if isinstance(answer, list):
        raise NotOfTheTask("it is a list.")
    return answer


def _single(answer: Any, _value: Any, parameters: Parameters) -> Any:
    """Some servers answer with a list of one where one was asked for."""
    if isinstance(answer, list) and len(answer) == 1 and parameters.get("top_k", 1) == 1:
        return answer[0]
    return answer


def _scores(answer: Any, value: Any, _parameters: Parameters) -> Any:
    if not isinstance(answer, list) or len(answer) != len(value["sentences"]):
        raise NotOfTheTask("it has not a score for each sentence.")
    if not all(isinstance(each, int | float) for each in answer):
        raise NotOfTheTask("its scores are no numbers.")
    return answer


def _vector(answer: Any, _value: Any, _parameters: Parameters) -> Any:
    """Some servers answer with a batch of one."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
        answer = answer[0]
    if not isinstance(answer, list) or not answer:
        raise NotOfTheTask("it is no vector.")
    return answer


def _ranked(answer: Any, value: Any, parameters: Parameters) -> Any:
    ranks = _listed(answer, value, parameters)
    return sorted(ranks, key=lambda rank: float(rank["score"]), reverse=True)


def _generated(answer: Any, _value: Any, _parameters: Parameters) -> Any:
    """A list, of which several were asked for where there are several."""
    return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer


@dataclass(frozen=True, kw_only=True)
class _Form:
    """`names` are what every object of an answer has."""

    call: Callable[[InferenceClient, Any, Parameters], Any]
    settled: Callable[[Any, Any, Parameters], Any] = _listed
    names: frozenset[str] = frozenset()


_LABELS = frozenset({"label", "score"})
_FORMS: dict[Task, _Form] = {
    Task.SUMMARIZATION: _Form(
        call=lambda client, text, parameters: client.summarization(
            text, **_with_generation_apart(parameters)
        ),
        settled=_as_it_is,
        names=frozenset({"summary_text"}),
    ),
    Task.TRANSLATION: _Form(
        call=_translation, settled=_as_it_is, names=frozenset({"translation_text"})
    ),
    Task.QUESTION_ANSWERING: _Form(
        call=lambda client, value, parameters: client.question_answering(**value, **parameters),
        settled=_single,
        names=frozenset({"answer", "score", "start", "end"}),
    ),
    Task.SENTENCE_SIMILARITY: _Form(
        call=lambda client, value, _: client.sentence_similarity(
            value["source_sentence"], value["sentences"]
        ),
        settled=_scores,
    ),
    Task.TEXT_CLASSIFICATION: _Form(
        call=lambda client, text, parameters: client.text_classification(text, **parameters),
        names=_LABELS,
    ),
    Task.ZERO_SHOT_CLASSIFICATION: _Form(
        call=lambda client, text, parameters: client.zero_shot_classification(text, **parameters),
        names=_LABELS,
    ),
    Task.TOKEN_CLASSIFICATION: _Form(
        call=lambda client, text, parameters: client.token_classification(text, **parameters),
        names=frozenset({"word", "score", "start", "end"}),
    ),
    Task.FILL_MASK: _Form(
        call=lambda client, text, parameters: client.fill_mask(text, **parameters),
        names=frozenset({"sequence", "score", "token", "token_str"}),
    ),
    Task.FEATURE_EXTRACTION: _Form(
        call=lambda client, text, parameters: client.feature_extraction(text, **parameters),
        settled=_vector,
    ),
    Task.SPEECH_RECOGNITION: _Form(
        call=lambda client, audio, parameters: client.automatic_speech_recognition(
            audio, extra_body=parameters
        ),
        settled=_as_it_is,
        names=frozenset({"text"}),
    ),
    Task.IMAGE_CLASSIFICATION: _Form(
        call=lambda client, image, parameters: client.image_classification(image, **parameters),
        names=_LABELS,
    ),
    Task.TEXT_RANKING: _Form(call=_posted, settled=_ranked, names=frozenset({"index", "score"})),
    Task.TEXT_GENERATION: _Form(
        call=_posted, settled=_generated, names=frozenset({"generated_text"})
    ),
}


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

    `inputs` are as the job has them (`shared.kinds.hf.single_inputs`), but those of a binary task
    are bytes. `check` is called before each request, and ends the run by raising.
    """
    place = _place(settings)
    url = _url(task, model, settings)
    token = _token(settings)
    parsed = parse_parameters(task, parameters).model_dump(exclude_unset=True, exclude_none=True)
    many = isinstance(inputs, list)
    outputs = []
    for n, value in enumerate(inputs if many else [inputs]):
        check()
        if task in BINARY and not isinstance(value, bytes):
            # The client would take a text for a path on this machine, or for a URL to fetch.
            raise InvalidInput(f"{task} takes the bytes of a file.")
        headers = {}
        if task in BINARY and not parsed:
            headers = {"Content-Type": media_type(task, value)}
        client = InferenceClient(
            model=url, token=token, timeout=settings.hf_hub_timeout_s, headers=headers
        )
        try:
            with client:
                outputs.append(called(task, client, value, parsed))
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


def _place(settings: Settings) -> RemoteServer:
    return RemoteServer(
        name="The Hugging Face hub",
        url=without_credentials(settings.hf_hub_url or _hub(), URL_SETTING),
        setting=URL_SETTING,
        remedy="Check the network of the workers.",
        key_setting=TOKEN_SETTING,
        retry_after_limit_s=settings.remote_retry_after_limit_s,
    )


def _translated(
    error: Exception, place: RemoteServer, task: Task, model: str, where: str
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


def _refused(error: HfHubHTTPError, place: RemoteServer, model: str, where: str) -> SluiceError:
    status, headers = error.response.status_code, error.response.headers
    said = as_sentence(error.server_message or error.response.reason_phrase)
    message = f"{place} answered {status}: {said}"
    if status in _PASSING:
        wait_s = _asked_to_wait_s(error.response)
        capped = None if wait_s is None else min(wait_s, place.retry_after_limit_s)
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
        return InvalidInput(f"{message} This was about {where}.")
    return Permanent(message)


def _asked_to_wait_s(response: httpx.Response) -> float | None:
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
