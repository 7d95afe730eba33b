"""Every Hugging Face task is complete: what its record says, and what is derived from it. And what
callers may ask of tasks, and the messages for what is wrong with it.
"""

import dataclasses
import json
import re
from contextlib import suppress
from importlib.util import find_spec
from inspect import signature
from pathlib import Path
from typing import Any
from uuid import uuid4

import huggingface_hub
import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import TypeAdapter

from api.compat.huggingface import call_of
from api.schemas import JobRequest
from cli.commands.hf import NamedInputs, show_output
from cli.options import complete_hf_tasks
from shared.bounds import TEXT_LIMIT_CHARS
from shared.config import Settings
from shared.errors import InvalidInput
from shared.hf.generation import GenerationParameters
from shared.hf.speech import SpeechGenerationParameters, SpeechParameters
from shared.hf.task import HfTask, OneToManyInput, file_ids, settable
from shared.kinds.hf import (
    HF,
    TASKS,
    HfInput,
    Task,
    default_models,
    parse_parameters,
    single_inputs,
)
from workers.models.checkpoints import tasks_of

ROOT = Path(__file__).resolve().parents[2]
every_task = pytest.mark.parametrize("task", TASKS.values(), ids=list(TASKS))


@every_task
def test_its_example_is_a_job_that_this_server_takes(task: HfTask) -> None:
    example = {"task": task.name, **task.example}
    request = TypeAdapter(JobRequest).validate_python({"kind": "hf", "input": example})
    HF.check(request.input, Settings(_env_file=None))
    assert not isinstance(task.example["inputs"], list), "the example is to have a single input"


@every_task
def test_it_can_be_named_wherever_tasks_are(task: HfTask) -> None:
    assert task.name in TypeAdapter(HfInput).json_schema()["$defs"]["Task"]["enum"]
    assert call_of("own/model", task.name).task == task.name
    unused: Any = None  # of click, which calls it with the context and the parameter
    assert [item.value for item in complete_hf_tasks(unused, unused, task.name)] == [task.name]
    assert default_models(Settings(_env_file=None))[Task(task.name)] == task.default_model


@every_task
def test_something_loads_its_models(task: HfTask) -> None:
    module, _, name = task.load.partition(":")
    spec = find_spec(module)
    assert spec is not None, task.load
    assert spec.origin is not None
    source = Path(spec.origin).read_text(encoding="utf-8")
    assert re.search(rf"^def {name}\(", source, re.MULTILINE), task.load


@every_task
def test_some_models_are_known_to_be_for_it(task: HfTask, tmp_path: Path) -> None:
    (tmp_path / "README.md").write_text(f"---\npipeline_tag: {task.name}\n---\n")
    assert tasks_of(tmp_path) == (task.name,)
    architectures = task.checkpoints.architectures
    assert architectures or task.checkpoints.are_for_sentences, "no architecture is for it"


@every_task
def test_the_hub_is_called_by_a_method_it_has_and_may_answer_as_the_example(task: HfTask) -> None:
    parameters = parse_parameters(task.name, dict(task.example.get("parameters", {})))
    values = parameters.model_dump(exclude_unset=True, exclude_none=True)
    value = b"bytes" if task.input.is_file else task.example["inputs"]
    if task.hub.arguments is not None:
        positional, named = task.hub.arguments(value, values)
        method = getattr(huggingface_hub.InferenceClient, task.name.replace("-", "_"))
        signature(method).bind(None, *positional, **named)
    output = task.example_output
    if task.hub.keys:
        items = output if isinstance(output, list) else [output]
        assert all(task.hub.keys <= item.keys() for item in items)
    assert task.hub.settle(output, value, values) == output


@every_task
def test_its_output_is_shown_to_a_person(task: HfTask, capsys: pytest.CaptureFixture[str]) -> None:
    """For one input, and for two."""
    value, output = task.example["inputs"], task.example_output
    shape = task.input
    names = value[shape.many] if isinstance(shape, OneToManyInput) else ["the input"]
    show_output(task, NamedInputs(inputs=value, names=names), task.alone(output))
    one = capsys.readouterr().out
    assert one.strip()
    assert not is_json(one), "it is shown as JSON: the output has another shape"
    if isinstance(shape, OneToManyInput):
        return  # the command line takes one of these at a time
    show_output(task, NamedInputs(inputs=[value] * 2, names=["a", "b"]), [output] * 2)
    several = capsys.readouterr().out
    assert len(several.splitlines()) >= 2
    assert not is_json(several)


def is_json(text: str) -> bool:
    with suppress(ValueError):
        return isinstance(json.loads(text), dict | list)
    return False


@every_task
def test_the_page_of_tasks_has_it_as_its_record_says(task: HfTask) -> None:
    page = (ROOT / "docs/huggingface.md").read_text(encoding="utf-8")
    row = f"| `{task.name}` | `{task.default_model}` | {task.takes} | {task.returns} |"
    assert row in page.splitlines()
    # Of the parameters of generation the page names some; they are the same for three tasks.
    left_out = set(GenerationParameters.model_fields) | {"encoding_format"}
    assert {name for name in settable(task.parameters) if f"`{name}`" not in page} <= left_out


@pytest.mark.parametrize("page", ["README.md", "docs/huggingface.md"])
def test_pages_list_every_task_with_its_default_model(page: str) -> None:
    text = (ROOT / page).read_text(encoding="utf-8")
    rows = re.findall(r"^\| `([a-z-]+)` \| `([^`]+/[^`]+)` \|", text, re.MULTILINE)
    assert dict(rows) == {name: task.default_model for name, task in TASKS.items()}
    assert len(rows) == len(TASKS)


PAIR = {"question": "Where?", "context": "In Seoul."}
SIMILAR = {"source_sentence": "a", "sentences": ["b", "c"]}
RANKED = {"query": "a", "texts": ["b"]}
FILE = {"file_id": str(uuid4())}
GOOD: dict[Task, list[Any]] = {
    Task("question-answering"): [PAIR],
    Task("sentence-similarity"): [SIMILAR],
    Task("text-ranking"): [RANKED],
    Task("automatic-speech-recognition"): ["ZkxhQw==", FILE],
    Task("image-classification"): ["ZkxhQw==", FILE],
}
LABELS = {"candidate_labels": ["good", "bad"]}


@pytest.mark.parametrize("task", Task)
def test_one_input_and_several(task: Task) -> None:
    good = GOOD.get(task, ["아홉 시", "x" * TEXT_LIMIT_CHARS])
    for value in good:
        assert single_inputs(task, value) == ([value], False)
    assert single_inputs(task, good) == (good, True)


@pytest.mark.parametrize("task", Task)
@pytest.mark.parametrize(
    ("inputs", "message"),
    [
        (None, "inputs is null"),
        (7, "inputs is a number"),
        (True, "inputs is a boolean"),
        ("", "inputs is"),
        ({}, "inputs is an object"),
        ({"file_id": "x", "more": 1}, "inputs is an object"),
        ([], "inputs is an empty list"),
        ([["a"]], "inputs.0 is a list"),
    ],
)
def test_no_task_takes_these(task: Task, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        single_inputs(task, inputs)


@given(task=st.sampled_from(Task), inputs=st.recursive(
    st.none() | st.booleans() | st.floats() | st.text(max_size=3),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(
        st.sampled_from([*PAIR, *SIMILAR, *RANKED, *FILE, "x"]), inner, max_size=3
    ),
))  # fmt: skip
def test_whatever_is_sent_is_taken_or_refused(task: Task, inputs: Any) -> None:
    with suppress(InvalidInput):
        values, many = single_inputs(task, inputs)
        assert values == (inputs if many else [inputs])


@pytest.mark.parametrize(
    ("task", "inputs", "message"),
    [
        (Task("fill-mask"), " \n", "inputs is empty; give a text."),
        (Task("fill-mask"), ["a", "b", ""], "inputs.2 is empty"),
        (Task("fill-mask"), ["a", 1], "inputs.1 is a number; this task takes a text"),
        (Task("fill-mask"), "x" * (TEXT_LIMIT_CHARS + 1), "1,000,001 characters; 1,000,000"),
        (Task("question-answering"), "Where?", 'a string; this task takes .*"context", "question"'),
        (Task("question-answering"), [PAIR, {"question": "a"}], r"inputs.1 is .*\['question'\]"),
        (Task("question-answering"), PAIR | {"id": 1}, "'id'"),
        (Task("question-answering"), [PAIR | {"context": ""}], "inputs.0.context is empty"),
        (Task("sentence-similarity"), SIMILAR | {"sentences": []}, "inputs.sentences must be"),
        (Task("sentence-similarity"), SIMILAR | {"sentences": "b"}, "inputs.sentences must be"),
        (Task("sentence-similarity"), SIMILAR | {"sentences": ["b", ""]}, "sentences.1 is empty"),
        (Task("text-ranking"), RANKED | {"query": None}, "inputs.query is null"),
        (Task("automatic-speech-recognition"), {"file_id": "x"}, "the file 'x'; ids are UUIDs"),
        (Task("automatic-speech-recognition"), "", "give a file in base64"),
    ],
)
def test_what_is_wrong_is_reported_with_its_location(task: Task, inputs: Any, message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        single_inputs(task, inputs)


def test_the_uploads_that_inputs_name() -> None:
    other = {"file_id": str(uuid4())}
    assert [str(file_id) for file_id in file_ids([FILE, "ZkxhQw==", other])] == [
        FILE["file_id"], other["file_id"]
    ]  # fmt: skip
    assert [str(file_id) for file_id in file_ids(FILE)] == [FILE["file_id"]]
    assert file_ids("ZkxhQw==") == []


PUBLISHED = {
    Task("summarization"): "SummarizationParameters",
    Task("question-answering"): "QuestionAnsweringParameters",
    Task("text-classification"): "TextClassificationParameters",
    Task("translation"): "TranslationParameters",
    Task("automatic-speech-recognition"): "AutomaticSpeechRecognitionParameters",
    Task("zero-shot-classification"): "ZeroShotClassificationParameters",
    Task("token-classification"): "TokenClassificationParameters",
    Task("fill-mask"): "FillMaskParameters",
    Task("feature-extraction"): "FeatureExtractionInput",
    Task("text-generation"): "TextGenerationInputGenerateParameters",
    Task("image-classification"): "ImageClassificationParameters",
}
BESIDE = {"inputs"}


@pytest.mark.parametrize("task", PUBLISHED)
def test_the_parameters_of_the_published_specification_are_known(task: Task) -> None:
    published = getattr(huggingface_hub, PUBLISHED[task])
    names = {field.name for field in dataclasses.fields(published)} - BESIDE
    assert names <= set(TASKS[task].parameters.model_fields)


def test_so_are_those_of_generation_that_speech_has() -> None:
    published = huggingface_hub.AutomaticSpeechRecognitionGenerationParameters
    names = {field.name for field in dataclasses.fields(published)}
    assert names <= set(SpeechGenerationParameters.model_fields)


UNASKED: dict[str, Any] = {
    "adapter_id": None,
    "best_of": 1,
    "decoder_input_details": False,
    "details": False,
    "frequency_penalty": 0.0,
    "grammar": None,
    "num_beam_groups": 1,
    "penalty_alpha": 0,
    "stop": [],
    "stop_sequences": None,
    "stream": False,
    "top_n_tokens": 0,
    "truncate": None,
    "use_cache": True,
    "watermark": False,
}
"""What clients of text-generation-inference send without being asked to."""


@pytest.mark.parametrize("names", [[name] for name in UNASKED] + [list(UNASKED)])
def test_what_clients_send_unasked_is_taken(names: list[str]) -> None:
    parse_parameters(Task("text-generation"), {name: UNASKED[name] for name in names})
    parse_parameters(Task("text-generation"), dict.fromkeys(names))


@pytest.mark.parametrize(
    ("name", "value", "message"),
    [
        ("adapter_id", "own/lora", "should be null"),
        ("best_of", 2, "should be 1"),
        ("decoder_input_details", True, "should be False"),
        ("details", True, "should be False"),
        ("frequency_penalty", 0.5, "should be 0"),
        ("grammar", {"type": "json", "value": {}}, "should be null"),
        ("top_n_tokens", 5, "should be 0"),
        ("watermark", True, "should be False"),
    ],
)
def test_what_only_another_server_can_do_is_refused(name: str, value: Any, message: str) -> None:
    with pytest.raises(
        InvalidInput, match=rf"^parameters\.{name}: Input {message}: .*leave it out$"
    ):
        parse_parameters(Task("text-generation"), {name: value})


def test_stop_sequences_is_stop_by_its_other_name() -> None:
    parameters = parse_parameters(Task("text-generation"), {"stop_sequences": ["."], "stop": []})
    assert parameters == parse_parameters(Task("text-generation"), {"stop": ["."]})
    with pytest.raises(InvalidInput, match="not both"):
        parse_parameters(Task("text-generation"), {"stop_sequences": ["."], "stop": [","]})


@pytest.mark.parametrize(
    ("task", "parameters"),
    [
        (Task("automatic-speech-recognition"), {"generate_kwargs": {"langauge": "ko"}}),
        (
            Task("automatic-speech-recognition"),
            {"generation_parameters": {"return_timestamps": True}},
        ),
        (Task("summarization"), {"generate_parameters": {"truncation": "only_first"}}),
        (Task("translation"), {"generate_parameters": {"src_lang": "ko"}}),
        (Task("text-generation"), {"stop_token": "."}),
    ],
)
def test_no_message_names_what_it_refuses(task: Task, parameters: dict[str, Any]) -> None:
    """Each parameter that the message says is known is taken where the unknown one stood."""
    [(outer, value)] = parameters.items()
    with pytest.raises(InvalidInput) as caught:
        parse_parameters(task, parameters)
    known = caught.value.message.partition("it knows: ")[2].split(", ")
    assert len(known) > 2
    for name in known:
        known_alone = {outer: {name: None}} if isinstance(value, dict) else {name: None}
        parse_parameters(task, known_alone)
        with suppress(InvalidInput):
            parse_parameters(task, {outer: {name: "x"}} if isinstance(value, dict) else {name: "x"})
            continue
        with pytest.raises(InvalidInput) as wrong:
            parse_parameters(task, {outer: {name: "x"}} if isinstance(value, dict) else {name: "x"})
        assert "no such parameter" not in wrong.value.message


def test_the_language_may_stand_with_the_parameters_of_generation() -> None:
    for place in ("generate_kwargs", "generation_parameters"):
        parameters = parse_parameters(
            Task("automatic-speech-recognition"), {"language": "en", place: {"language": "ko"}}
        )
        assert isinstance(parameters, SpeechParameters)
        assert (parameters.named_language, parameters.named_task) == ("ko", None)
    outer = parse_parameters(
        Task("automatic-speech-recognition"),
        {"task": "translate", "generate_kwargs": {"language": None}},
    )
    assert isinstance(outer, SpeechParameters)
    assert (outer.named_language, outer.named_task) == (None, "translate")


@pytest.mark.parametrize("task", Task)
def test_without_parameters_there_are_defaults_and_null_stands_for_them(task: Task) -> None:
    needed = LABELS if task == Task("zero-shot-classification") else {}
    default = parse_parameters(task, needed)
    nothing = dict.fromkeys(set(TASKS[task].parameters.model_fields) - set(needed))
    assert parse_parameters(task, nothing | needed) == default


@pytest.mark.parametrize(
    ("task", "parameters", "message"),
    [
        (
            Task("fill-mask"),
            {"topk": 1},
            "parameters.topk: fill-mask has .* it knows: top_k, targets",
        ),
        (
            Task("fill-mask"),
            {"top_k": 0, "targets": 1},
            "parameters.top_k: .*; parameters.targets: ",
        ),
        (Task("sentence-similarity"), {"k": 1}, "it knows: none"),
        (Task("zero-shot-classification"), {}, "parameters.candidate_labels: Field required"),
        (Task("zero-shot-classification"), {"candidate_labels": []}, "at least 1 item"),
        (Task("zero-shot-classification"), {"candidate_labels": " , "}, "at least 1 item"),
        (Task("zero-shot-classification"), LABELS | {"hypothesis_template": "x"}, "the place {}"),
        (Task("translation"), {"truncation": "all"}, "'do_not_truncate'"),
        (Task("summarization"), {"generate_parameters": {"num_beams": 0}}, "parameters.num_beams"),
        (Task("feature-extraction"), {"encoding_format": "base64"}, "'float'"),
        (Task("text-generation"), {"stream": True}, "parameters.stream: Input should be False"),
        (Task("text-generation"), {"temperature": -1}, "parameters.temperature"),
        (
            Task("automatic-speech-recognition"),
            {"return_timestamps": "line"},
            "parameters.return_timestamps",
        ),
    ],
)
def test_wrong_parameters_are_named(task: Task, parameters: dict[str, Any], message: str) -> None:
    with pytest.raises(InvalidInput, match=message):
        parse_parameters(task, parameters)


def test_labels_may_come_in_one_string() -> None:
    parameters = parse_parameters(
        Task("zero-shot-classification"), {"candidate_labels": "good, bad,"}
    )
    assert parameters == parse_parameters(Task("zero-shot-classification"), LABELS)
