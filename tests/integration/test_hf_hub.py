"""The back end `hub` in front of a server that speaks the inference API: what each task answers."""

import base64
from typing import Any

import pytest

from shared.config import Settings
from shared.errors import InvalidInput
from shared.kinds.hf import TASKS, Task
from tests.integration.hubs import FLAC, INPUTS, OUTPUTS, PNG
from tests.integration.hubs import hub as hub
from tests.integration.hubs import settings as settings
from tests.integration.hubs import wire as wire
from tests.wire.behaviour import Wire
from tests.wire.hub import TOKEN, model_of
from workers.hf.hub import run

NESTED = {Task("summarization"), Task("translation"), Task("text-classification")}


def test_every_task_is_tried() -> None:
    assert {task for task, _, _, _ in OUTPUTS} == set(Task)


@pytest.mark.parametrize(("task", "value", "parameters", "output"), OUTPUTS)
def test_outputs_have_the_shape_of_the_local_back_end(
    wire: Wire, settings: Settings, task: Task, value: Any, parameters: dict[str, Any], output: Any
) -> None:
    model = model_of(task)
    assert run(task, model, [value, value], parameters, settings) == [output, output]
    nests = task in NESTED or (task is Task("text-generation") and not isinstance(output, list))
    assert run(task, model, value, parameters, settings) == ([output] if nests else output)
    assert [request.path for request in wire.requests] == [f"/models/{model}/pipeline/{task}"] * 3
    assert {request.authorization for request in wire.requests} == {f"Bearer {TOKEN}"}


EVERY_PARAMETER: dict[Task, dict[str, Any]] = {
    Task("question-answering"): {
        "top_k": 1, "doc_stride": 1, "max_answer_len": 1, "max_seq_len": 8, "max_question_len": 1,
        "handle_impossible_answer": True, "align_to_words": False,
    },
    Task("text-classification"): {"top_k": 1, "function_to_apply": "none"},
    Task("zero-shot-classification"): {
        "candidate_labels": ["a"], "hypothesis_template": "{}?", "multi_label": True,
    },
    Task("token-classification"): {
        "aggregation_strategy": "max", "ignore_labels": ["O"], "stride": 1,
    },
    Task("fill-mask"): {"top_k": 1, "targets": ["b"]},
    Task("feature-extraction"): {
        "normalize": False, "prompt_name": "query", "truncate": False, "dimensions": 2,
        "truncation_direction": "right", "encoding_format": "float",
    },
    Task("image-classification"): {"top_k": 1, "function_to_apply": "none"},
}  # fmt: skip


@pytest.mark.parametrize("task", EVERY_PARAMETER)
def test_every_parameter_reaches_the_hub(wire: Wire, settings: Settings, task: Task) -> None:
    parameters = EVERY_PARAMETER[task]
    assert set(parameters) == set(TASKS[task].parameters.model_fields)
    run(task, model_of(task), INPUTS[task], parameters, settings)
    body = wire.requests[-1].body
    sent = body if task is Task("feature-extraction") else body["parameters"]
    assert parameters.items() <= sent.items()


def test_files_are_sent_as_bytes_with_their_type(wire: Wire, settings: Settings) -> None:
    def sent(task: Task, data: bytes) -> str:
        run(task, model_of(task), data, {}, settings)
        body = wire.requests[-1].body
        assert base64.b64decode(body["bytes"]) == data
        return str(body["content_type"])

    speech, image = Task("automatic-speech-recognition"), Task("image-classification")
    assert sent(speech, FLAC) == "audio/flac"
    assert sent(speech, b"RIFF____WAVEfmt ") == "audio/wav"
    assert sent(speech, b"nobody knows") == "audio/x-audio"
    assert sent(image, PNG) == "image/png"
    assert sent(image, b"nobody knows") == "image/x-image"
    run(image, model_of(image), PNG, {"top_k": 1}, settings)
    assert base64.b64decode(wire.requests[-1].body["inputs"]) == PNG


@pytest.mark.parametrize("task", [name for name, task in TASKS.items() if task.input.is_file])
@pytest.mark.parametrize("value", ["/etc/passwd", "http://127.0.0.1:9/x", None])
def test_no_file_or_url_is_read_for_an_input(
    wire: Wire, settings: Settings, task: Task, value: Any
) -> None:
    with pytest.raises(InvalidInput, match="bytes"):
        run(task, model_of(task), value, {}, settings)
    assert not wire.requests


def test_text_that_looks_like_a_url_is_text(settings: Settings) -> None:
    output = run(Task("translation"), model_of(Task("translation")), "http://x", {}, settings)
    assert output == [{"translation_text": "HTTP://X"}]
