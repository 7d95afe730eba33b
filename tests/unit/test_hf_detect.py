"""What a model can do, read from its folder."""

import json
from pathlib import Path
from typing import Any

import pytest

from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.errors import Permanent, WrongTask
from shared.kinds.hf import Task
from workers.models.checkpoints import check_task, choose, tasks_of
from workers.models.locate import locate

NLI = {"contradiction": 0, "Entailment": 1, "neutral": 2}
NAMED = {"0": "NEGATIVE", "1": "POSITIVE"}


def described(folder: Path, *, card: str | None = None, **config: Any) -> Path:
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text(json.dumps(config))
    if card is not None:
        (folder / "README.md").write_text(card)
    return folder


def tagged(tag: str) -> str:
    return f"---\nlanguage: en\npipeline_tag: {tag}\ntags:\n- x\n---\n# A model\n"


# Architectures as published models name them.
ARCHITECTURES = [
    ("BartForConditionalGeneration", "summarization"),
    ("PegasusForConditionalGeneration", "summarization"),
    ("LEDForConditionalGeneration", "summarization"),
    ("MarianMTModel", "translation"),
    ("M2M100ForConditionalGeneration", "translation"),
    ("MBartForConditionalGeneration", "translation"),
    ("T5ForConditionalGeneration", "summarization translation"),
    ("T5WithLMHeadModel", "summarization translation"),
    ("MT5ForConditionalGeneration", "summarization translation"),
    ("EncoderDecoderModel", "summarization translation"),
    ("RobertaForQuestionAnswering", "question-answering"),
    ("BertForTokenClassification", "token-classification"),
    ("DistilBertForSequenceClassification", "text-classification"),
    ("BertForMaskedLM", "fill-mask feature-extraction"),
    ("BertForPreTraining", "fill-mask feature-extraction"),
    ("LlamaForCausalLM", "text-generation"),
    ("GPT2LMHeadModel", "text-generation"),
    ("BertModel", "feature-extraction"),
    ("Wav2Vec2ForCTC", "automatic-speech-recognition"),
    ("WhisperForConditionalGeneration", "automatic-speech-recognition"),
    ("Speech2TextForConditionalGeneration", "automatic-speech-recognition"),
    ("ViTForImageClassification", "image-classification"),
    ("BlipForConditionalGeneration", ""),
    ("BertForNextSentencePrediction", ""),
]


@pytest.mark.parametrize(("architecture", "tasks"), ARCHITECTURES)
def test_the_architecture_tells(tmp_path: Path, architecture: str, tasks: str) -> None:
    assert tasks_of(described(tmp_path, architectures=[architecture])) == tuple(tasks.split())


@pytest.mark.parametrize(
    "architecture",
    ["Wav2Vec2ForSequenceClassification", "CLIPModel", "LayoutLMv3ForTokenClassification"],
)
@pytest.mark.parametrize("name", ["preprocessor_config.json", "processor_config.json"])
def test_models_of_sounds_and_images_take_no_texts(
    tmp_path: Path, architecture: str, name: str
) -> None:
    folder = described(tmp_path, architectures=[architecture])
    (folder / name).write_text("{}")
    assert tasks_of(folder) == ()


def test_speech_is_detected_beside_its_preprocessor(tmp_path: Path) -> None:
    folder = described(tmp_path, architectures=["WhisperForConditionalGeneration"])
    (folder / "preprocessor_config.json").write_text("{}")
    assert tasks_of(folder) == (Task("automatic-speech-recognition"),)


@pytest.mark.parametrize(
    ("config", "tasks"),
    [
        ({"id2label": NAMED}, "text-classification"),
        ({"label2id": NLI}, "text-classification zero-shot-classification"),
        ({"id2label": {"0": "ENTAILMENT"}, "label2id": {}}, "text-ranking text-classification"),
        ({"id2label": {"0": "entails", "1": "x"}}, "text-classification zero-shot-classification"),
        ({"id2label": {"0": "LABEL_0"}}, "text-ranking text-classification"),
        ({"num_labels": 1}, "text-ranking text-classification"),
        ({"id2label": ["odd"], "label2id": None}, "text-classification"),
    ],
)  # fmt: skip
def test_labels_tell_kinds_of_classifiers(
    tmp_path: Path, config: dict[str, Any], tasks: str
) -> None:
    folder = described(tmp_path, architectures=["BertForSequenceClassification"], **config)
    assert tasks_of(folder) == tuple(tasks.split())


@pytest.mark.parametrize(
    ("family", "names", "tasks"),
    [
        ("T5", ["translation_en_to_de", "summarization"], "translation summarization"),
        ("T5", ["translation_en_to_de"], "translation summarization"),
        ("Bart", ["summarization"], "summarization"),
        ("Bart", ["translation_en_to_ro"], "translation"),
        ("Bart", ["anything"], "summarization"),
        ("Blip", ["summarization"], ""),
    ],
)
def test_parameters_of_tasks_tell(
    tmp_path: Path, family: str, names: list[str], tasks: str
) -> None:
    folder = described(
        tmp_path,
        architectures=[f"{family}ForConditionalGeneration"],
        task_specific_params={name: {} for name in names},
    )
    assert tasks_of(folder) == tuple(tasks.split())


def test_the_card_names_the_own_task(tmp_path: Path) -> None:
    card = tagged("zero-shot-classification")
    folder = described(
        tmp_path, card=card, architectures=["BartForSequenceClassification"], label2id=NLI
    )
    assert tasks_of(folder) == (Task("zero-shot-classification"), Task("text-classification"))


@pytest.mark.parametrize(
    "card",
    [
        "# No front matter\npipeline_tag: summarization\n",
        "---\npipeline_tag: [summarization\n---\n",
        "---\n- pipeline_tag\n---\n",
        "---\npipeline_tag: 7\n---\n",
        "---\npipeline_tag: !!python/object/apply:os.getcwd []\n---\n",
        tagged("text2text-generation"),
        "---\n",
        "",
    ],
)
def test_a_card_that_tells_nothing_stops_nothing(tmp_path: Path, card: str) -> None:
    folder = described(tmp_path, card=card, architectures=["BertForQuestionAnswering"])
    assert tasks_of(folder) == (Task("question-answering"),)


def test_cards_with_other_line_ends_tell(tmp_path: Path) -> None:
    folder = described(tmp_path)
    card = "\ufeff" + tagged("summarization").replace("\n", "\r\n")
    (folder / "README.md").write_bytes(card.encode())
    assert tasks_of(folder) == (Task("summarization"),)


def test_the_bundled_model_makes_sentence_vectors(tmp_path: Path) -> None:
    folder = locate(DEFAULT_EMBEDDING_MODEL, Settings(_env_file=None, home=tmp_path), task=None)
    assert tasks_of(folder) == (Task("sentence-similarity"), Task("feature-extraction"))


@pytest.mark.parametrize(
    ("kind", "architecture", "tasks"),
    [
        ("SentenceTransformer", "BertForMaskedLM", "sentence-similarity feature-extraction"),
        ("SparseEncoder", "BertForMaskedLM", "fill-mask feature-extraction"),
        ("CrossEncoder", "BertForSequenceClassification", "text-ranking text-classification"),
    ],
)
def test_kinds_of_sentence_transformers(
    tmp_path: Path, kind: str, architecture: str, tasks: str
) -> None:
    folder = described(tmp_path, architectures=[architecture], id2label={"0": "LABEL_0"})
    (folder / "modules.json").write_text("[]")
    (folder / "config_sentence_transformers.json").write_text(json.dumps({"model_type": kind}))
    assert tasks_of(folder) == tuple(tasks.split())


@pytest.mark.parametrize("content", ["{", "[]", '"x"', b"\xff\xfe"])
def test_a_broken_configuration_is_reported(tmp_path: Path, content: str | bytes) -> None:
    data = content.encode() if isinstance(content, str) else content
    (tmp_path / "config.json").write_bytes(data)
    with pytest.raises(Permanent, match=r"config\.json"):
        tasks_of(tmp_path)


@pytest.mark.parametrize("named", [None, "BertModel", [], [None], {}])
def test_odd_architectures_tell_nothing(tmp_path: Path, named: Any) -> None:
    assert tasks_of(described(tmp_path, architectures=named)) == ()


def test_an_explicit_task_is_taken(tmp_path: Path) -> None:
    folder = described(tmp_path, architectures=["BertForMaskedLM"])
    assert choose(folder, "x/y", Task("feature-extraction"), "a", {}) == Task("feature-extraction")


def test_an_impossible_task_is_refused(tmp_path: Path) -> None:
    folder = described(tmp_path, architectures=["BartForConditionalGeneration"])
    with pytest.raises(WrongTask, match=r"^x/y is a model for summarization, not for fill-mask\.$"):
        choose(folder, "x/y", Task("fill-mask"), "a", {})


def test_a_model_of_no_known_task_is_refused(tmp_path: Path) -> None:
    folder = described(tmp_path, architectures=["BlipForConditionalGeneration"])
    with pytest.raises(WrongTask, match=r"x/y is a BlipFor.*, which is not a model for fill-mask"):
        check_task(folder, "x/y", Task("fill-mask"))
    with pytest.raises(WrongTask, match=r"cannot be told from its README\.md or its config"):
        check_task(folder, "x/y", None)


def test_a_task_that_sluice_lacks_is_named(tmp_path: Path) -> None:
    folder = described(
        tmp_path, card=tagged("image-to-text"), architectures=["BlipForConditionalGeneration"]
    )
    with pytest.raises(WrongTask, match="x/y is a model for image-to-text; the tasks that"):
        choose(folder, "x/y", None, "a", {})


def test_where_nothing_tells_the_caller_does(tmp_path: Path) -> None:
    assert choose(described(tmp_path), "x/y", Task("fill-mask"), "a", {}) == Task("fill-mask")


PAIR = {"question": "who?", "context": "me"}


@pytest.mark.parametrize(
    ("config", "tag", "inputs", "parameters", "task"),
    [
        ({"architectures": ["BertForMaskedLM"]}, "", "a [MASK]", {}, Task("fill-mask")),
        (
            {"architectures": ["BertForSequenceClassification"], "label2id": NLI},
            "", "a", {"candidate_labels": ["x"]}, Task("zero-shot-classification"),
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "label2id": NLI},
            "zero-shot-classification", "a", {}, Task("text-classification"),
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "num_labels": 1},
            "", {"query": "a", "texts": ["b"]}, {}, Task("text-ranking"),
        ),
        (
            {"architectures": ["BertForSequenceClassification"], "num_labels": 1},
            "", ["a", "b"], {}, Task("text-classification"),
        ),
        ({"architectures": ["T5ForConditionalGeneration"]}, "", "a", {}, Task("summarization")),
        (
            {"architectures": ["T5ForConditionalGeneration"]},
            "", "a", {"tgt_lang": "de"}, Task("translation"),
        ),
        (
            {"architectures": ["BertModel"]},
            "sentence-similarity", "a", {}, Task("feature-extraction"),
        ),
        (
            {"architectures": ["BertModel"]}, "feature-extraction",
            [{"source_sentence": "a", "sentences": ["b"]}], {}, Task("feature-extraction"),
        ),
        (
            {"architectures": ["BertModel"]}, "sentence-similarity",
            [{"source_sentence": "a", "sentences": ["b"]}], {}, Task("sentence-similarity"),
        ),
        ({"architectures": ["BertForQuestionAnswering"]}, "", PAIR, {}, Task("question-answering")),
        ({"architectures": ["BertForQuestionAnswering"]}, "", "a", {}, Task("question-answering")),
        ({"architectures": ["BartForConditionalGeneration"]}, "", PAIR, {}, Task("summarization")),
        ({"architectures": ["BartForConditionalGeneration"]}, "", [], {}, Task("summarization")),
        (
            {"architectures": ["Wav2Vec2ForCTC"]},
            "", "UklGRg==", {}, Task("automatic-speech-recognition"),
        ),
    ],
)  # fmt: skip
def test_the_payload_chooses_between_tasks(
    tmp_path: Path,
    config: dict[str, Any],
    tag: str,
    inputs: Any,
    parameters: dict[str, Any],
    task: Task,
) -> None:
    folder = described(tmp_path, card=tagged(tag) if tag else None, **config)
    assert choose(folder, "x/y", None, inputs, parameters) == task


def test_sentence_models_serve_both_clients(tmp_path: Path) -> None:
    folder = described(tmp_path, architectures=["BertModel"])
    (folder / "modules.json").write_text("[]")
    pairs = {"source_sentence": "a", "sentences": ["b"]}
    assert choose(folder, "x/y", None, pairs, {}) == Task("sentence-similarity")
    assert choose(folder, "x/y", None, "a", {}) == Task("feature-extraction")
    assert choose(folder, "x/y", None, ["a", "b"], {}) == Task("feature-extraction")
