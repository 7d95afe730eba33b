"""A request to the inference API for each task, and its answer in the shape of the local back end.

The client's own methods are used where they take all that a job may ask for. An answer is checked:
the hub runs the task that a model is for, whichever was asked for.
"""

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from huggingface_hub import InferenceClient, get_session, hf_raise_for_status
from huggingface_hub.errors import HfHubHTTPError

from shared.errors import InvalidInput
from shared.hf import Task
from shared.hf_parameters import GenerationParameters

Given = dict[str, Any]
"""The parameters that a job gives, by name."""

_ANSWERED_IN_A_LIST = (Task.SUMMARIZATION, Task.TRANSLATION, Task.TEXT_CLASSIFICATION)


class NotOfTheTask(Exception):
    """The answer is JSON, and not what the task answers."""


def called(task: Task, client: InferenceClient, value: Any, given: Given) -> Any:
    """The output for one input, as JSON. Raises what the client raises, and NotOfTheTask."""
    form = _FORMS[task]
    try:
        answer = _plain(form.call(client, value, given))
    except (HfHubHTTPError, json.JSONDecodeError, UnicodeDecodeError):
        raise  # ValueErrors, too, and not of the shape
    except (ValueError, IndexError, KeyError, TypeError) as error:
        raise NotOfTheTask("it has another shape.") from error
    for item in _items(answer) if form.names else ():
        if not isinstance(item, dict) or not form.names <= item.keys():
            raise NotOfTheTask(f"it lacks {' and '.join(sorted(form.names))}.")
    return form.settled(answer, value, given)


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


def _translation(client: InferenceClient, text: str, given: Given) -> Any:
    if ("src_lang" in given) != ("tgt_lang" in given):
        raise InvalidInput("The hub takes src_lang and tgt_lang together; give both or neither.")
    return client.translation(text, **_with_generation_apart(given))


def _with_generation_apart(given: Given) -> Given:
    """The API has a field of its own for the parameters of generation."""
    of_generation = GenerationParameters.model_fields.keys()
    others = {name: value for name, value in given.items() if name not in of_generation}
    inner = {name: value for name, value in given.items() if name in of_generation}
    inner |= others.pop("generate_parameters", {})
    return {**others, "generate_parameters": inner} if inner else others


def _posted(client: InferenceClient, value: Any, given: Given) -> Any:
    """For what the client has no method, or one that takes less than jobs may ask for."""
    response = get_session().post(
        str(client.model),
        json={"inputs": value, "parameters": given},
        headers={"Authorization": f"Bearer {client.token}"},
        timeout=client.timeout,
    )
    hf_raise_for_status(response)
    return response.json()


# Answers that differ between servers


def _listed(answer: Any, _value: Any, _given: Given) -> Any:
    if not isinstance(answer, list):
        raise NotOfTheTask("it is no list.")
    return answer


def _as_it_is(answer: Any, _value: Any, _given: Given) -> Any:
    if isinstance(answer, list):
        raise NotOfTheTask("it is a list.")
    return answer


def _found(answer: Any, _value: Any, given: Given) -> Any:
    """Some servers answer with a list of one where one was asked for."""
    if isinstance(answer, list) and len(answer) == 1 and given.get("top_k", 1) == 1:
        return answer[0]
    return answer


def _scores(answer: Any, value: Any, _given: Given) -> Any:
    if not isinstance(answer, list) or len(answer) != len(value["sentences"]):
        raise NotOfTheTask("it has not a score for each sentence.")
    if not all(isinstance(each, int | float) for each in answer):
        raise NotOfTheTask("its scores are no numbers.")
    return answer


def _vector(answer: Any, _value: Any, _given: Given) -> Any:
    """Some servers answer with a batch of one."""
    if isinstance(answer, list) and len(answer) == 1 and isinstance(answer[0], list):
        answer = answer[0]
    if not isinstance(answer, list) or not answer:
        raise NotOfTheTask("it is no vector.")
    return answer


def _ranked(answer: Any, value: Any, given: Given) -> Any:
    ranks = _listed(answer, value, given)
    return sorted(ranks, key=lambda rank: float(rank["score"]), reverse=True)


def _generated(answer: Any, _value: Any, _given: Given) -> Any:
    """A list, of which several were asked for where there are several."""
    return answer[0] if isinstance(answer, list) and len(answer) == 1 else answer


@dataclass(frozen=True, kw_only=True)
class _Form:
    """`names` are what every object of an answer has."""

    call: Callable[[InferenceClient, Any, Given], Any]
    settled: Callable[[Any, Any, Given], Any] = _listed
    names: frozenset[str] = frozenset()


_LABELS = frozenset({"label", "score"})
_FORMS: dict[Task, _Form] = {
    Task.SUMMARIZATION: _Form(
        call=lambda client, text, given: client.summarization(
            text, **_with_generation_apart(given)
        ),
        settled=_as_it_is,
        names=frozenset({"summary_text"}),
    ),
    Task.TRANSLATION: _Form(
        call=_translation, settled=_as_it_is, names=frozenset({"translation_text"})
    ),
    Task.QUESTION_ANSWERING: _Form(
        call=lambda client, value, given: client.question_answering(**value, **given),
        settled=_found,
        names=frozenset({"answer", "score", "start", "end"}),
    ),
    Task.SENTENCE_SIMILARITY: _Form(
        call=lambda client, value, _: client.sentence_similarity(
            value["source_sentence"], value["sentences"]
        ),
        settled=_scores,
    ),
    Task.TEXT_CLASSIFICATION: _Form(
        call=lambda client, text, given: client.text_classification(text, **given), names=_LABELS
    ),
    Task.ZERO_SHOT_CLASSIFICATION: _Form(
        call=lambda client, text, given: client.zero_shot_classification(text, **given),
        names=_LABELS,
    ),
    Task.TOKEN_CLASSIFICATION: _Form(
        call=lambda client, text, given: client.token_classification(text, **given),
        names=frozenset({"word", "score", "start", "end"}),
    ),
    Task.FILL_MASK: _Form(
        call=lambda client, text, given: client.fill_mask(text, **given),
        names=frozenset({"sequence", "score", "token", "token_str"}),
    ),
    Task.FEATURE_EXTRACTION: _Form(
        call=lambda client, text, given: client.feature_extraction(text, **given), settled=_vector
    ),
    Task.SPEECH_RECOGNITION: _Form(
        call=lambda client, audio, given: client.automatic_speech_recognition(
            audio, extra_body=given
        ),
        settled=_as_it_is,
        names=frozenset({"text"}),
    ),
    Task.IMAGE_CLASSIFICATION: _Form(
        call=lambda client, image, given: client.image_classification(image, **given),
        names=_LABELS,
    ),
    Task.TEXT_RANKING: _Form(call=_posted, settled=_ranked, names=frozenset({"index", "score"})),
    Task.TEXT_GENERATION: _Form(
        call=_posted, settled=_generated, names=frozenset({"generated_text"})
    ),
}
