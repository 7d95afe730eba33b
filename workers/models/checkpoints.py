"""A model's folder: what the model is called and for, and which weight files would be loaded.

Weights are `model.safetensors` or `pytorch_model.bin`, in one file or in shards with an index, the
first where both are there. Nothing is read here but the configuration and the index.
"""

import json
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Final, NamedTuple

import yaml

from shared.errors import Permanent, WrongTask
from shared.kinds.hf import Task

SAFE: Final = "model.safetensors"
PICKLED: Final = "pytorch_model.bin"
OTHER_FORMATS: Final = frozenset(
    {".bin", ".ckpt", ".gguf", ".h5", ".msgpack", ".npz", ".onnx", ".ot", ".pickle", ".pkl"}
    | {".pt", ".pth", ".safetensors", ".tflite"}
)
MODULES: Final = "modules.json"
CONFIG: Final = "config.json"
MIB: Final = 2**20


def name_of(folder: Path) -> str:
    """What messages call the model of a folder: its name on the hub where it is a snapshot from
    there, else the path."""
    kind, _, name = folder.parent.parent.name.partition("--")
    if folder.parent.name == "snapshots" and kind == "models":
        return name.replace("--", "/")
    return str(folder)


def holds_model(folder: Path) -> bool:
    return any((folder / name).is_file() for name in (CONFIG, MODULES))


def weight_files(folder: Path) -> list[Path]:
    """The files that are loaded, in one folder. Raises Permanent, which says what is there and what
    is needed, where there are none, or a shard is missing."""
    for name in (SAFE, PICKLED):
        whole, index = folder / name, folder / f"{name}.index.json"
        if whole.is_file():
            return [whole]
        if index.is_file():
            return _shards(index)
    raise Permanent(no_weights(name_of(folder), (path.name for path in sorted(folder.glob("*")))))


def no_weights(model: str, names: Iterable[str]) -> str:
    """What to tell where a model has files of these names, and no weights that can be used."""
    others = [name for name in names if PurePosixPath(name).suffix in OTHER_FORMATS]
    has = f"only {', '.join(others)}" if others else "no weights"
    return (
        f"{model} has {has}; {SAFE} (or {PICKLED}) is needed. Load the model "
        "with the library it was made with, and save it with `save_pretrained`."
    )


def size_bytes(folder: Path) -> int:
    """How large the weight files are that would be loaded; those that are missing count nothing."""
    total = 0
    for each in {folder, *(folder / module.path for module in modules_of(folder))}:
        try:
            total += sum(path.stat().st_size for path in weight_files(each))
        except (Permanent, OSError):
            continue
    return total


class SizeLimit(NamedTuple):
    """How large weights may be, and the setting that says so."""

    mib: int
    setting: str

    def check(self, model: str, size_bytes: int) -> None:
        """Raises Permanent for weights that are larger."""
        if size_bytes > self.mib * MIB:
            raise Permanent(
                f"The weights of {model} take {size_bytes / MIB:,.0f} MiB; the workers take models "
                f"of up to {self.mib:,} MiB ({self.setting}). Raise the setting, or use a smaller "
                "model."
            )


class Module(NamedTuple):
    """A part of a sentence-transformers model: its class, and its folder relative to the model's,
    which may be the same."""

    kind: str
    path: str


def modules_of(folder: Path) -> list[Module]:
    """What `modules.json` names; nothing where it is missing or cannot be read. Modules outside the
    model's folder are left away."""
    try:
        listed = json.loads((folder / MODULES).read_text(encoding="utf-8"))
        modules = [Module(str(each["type"]), str(each["path"])) for each in listed]
    except (OSError, ValueError, TypeError, LookupError):
        return []
    return [each for each in modules if _is_inside(PurePosixPath(each.path))]


def _is_inside(path: PurePosixPath) -> bool:
    return not path.is_absolute() and ".." not in path.parts


def _shards(index: Path) -> list[Path]:
    model = name_of(index.parent)
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
        shards = [index.parent / name for name in names if Path(name).name == name]
    except (OSError, ValueError, TypeError, AttributeError, LookupError) as error:
        raise Permanent(f"{index.name} of {model} cannot be read ({error}).") from error
    if not shards or len(shards) < len(names):
        raise Permanent(f"{index.name} of {model} names no files of the model's own folder.")
    _check_there(model, shards)
    return shards


def _check_there(model: str, shards: Sequence[Path]) -> None:
    missing = [path.name for path in shards if not path.is_file()]
    if missing:
        raise Permanent(
            f"The weights of {model} are incomplete: {', '.join(missing[:3])} is missing. Fetch "
            "the model's files anew."
        )


# Which tasks a model can do, told from what its folder says of itself, before weights are
# read.
#
# The model card's `pipeline_tag` names the model's own task; what else it can do follows from
# its architecture. A card may be wrong: loading the weights is what settles it
# (`workers.models.load`).

CARD_LIMIT_CHARS: Final = 1_000_000
PREPROCESSORS: Final = ("preprocessor_config.json", "processor_config.json")
"""What comes with models of sounds and images, and with no model of texts alone."""

SENTENCE_TASKS: Final = (Task.SENTENCE_SIMILARITY, Task.FEATURE_EXTRACTION)

BY_SUFFIX: Final[dict[str, tuple[Task, ...]]] = {
    "ForQuestionAnswering": (Task.QUESTION_ANSWERING,),
    "ForTokenClassification": (Task.TOKEN_CLASSIFICATION,),
    "ForMaskedLM": (Task.FILL_MASK, Task.FEATURE_EXTRACTION),
    "BertForPreTraining": (Task.FILL_MASK, Task.FEATURE_EXTRACTION),
    "ForCausalLM": (Task.TEXT_GENERATION,),
    "T5WithLMHeadModel": (Task.SUMMARIZATION, Task.TRANSLATION),
    "LMHeadModel": (Task.TEXT_GENERATION,),
    "MarianMTModel": (Task.TRANSLATION,),
    "EncoderDecoderModel": (Task.SUMMARIZATION, Task.TRANSLATION),
    "Model": (Task.FEATURE_EXTRACTION,),
}
"""The first suffix that fits a text model's architecture counts."""

BY_PERCEPTION: Final[dict[str, tuple[Task, ...]]] = {
    "ForCTC": (Task.SPEECH_RECOGNITION,),
    "WhisperForConditionalGeneration": (Task.SPEECH_RECOGNITION,),
    "Speech2TextForConditionalGeneration": (Task.SPEECH_RECOGNITION,),
    "MoonshineForConditionalGeneration": (Task.SPEECH_RECOGNITION,),
    "ForSpeechToText": (Task.SPEECH_RECOGNITION,),
    "SpeechEncoderDecoderModel": (Task.SPEECH_RECOGNITION,),
    "ForImageClassification": (Task.IMAGE_CLASSIFICATION,),
    "ForImageClassificationWithTeacher": (Task.IMAGE_CLASSIFICATION,),
}
"""The same for models of sounds and images."""

BY_SEQ2SEQ: Final[dict[str, tuple[Task, ...]]] = {
    **dict.fromkeys(("MBart", "M2M100", "NllbMoe", "FSMT", "Marian"), (Task.TRANSLATION,)),
    **dict.fromkeys(
        ("Bart", "Pegasus", "PegasusX", "BigBirdPegasus", "LED", "ProphetNet", "Mvp"),
        (Task.SUMMARIZATION,),
    ),
    **dict.fromkeys(
        ("T5", "MT5", "LongT5", "UMT5", "SwitchTransformers", "T5Gemma"),
        (Task.SUMMARIZATION, Task.TRANSLATION),
    ),
}
"""What the families of `...ForConditionalGeneration` are trained for, where nothing else tells."""


def tasks_of(folder: Path) -> tuple[Task, ...]:
    """The model's own task first; empty where nothing tells, and for tasks that Sluice lacks.

    Raises Permanent where `config.json` cannot be read.
    """
    config = read_config(folder)
    is_text = not any((folder / name).is_file() for name in PREPROCESSORS)
    tag = _card_tag(folder)
    tasks = [task for task in Task if task == tag]
    if _is_sentence_transformer(folder):
        tasks += SENTENCE_TASKS
    else:
        for architecture in _architectures(config):
            tasks += _tasks_of_architecture(architecture, config, is_text=is_text)
    return tuple(dict.fromkeys(tasks))


def check_task(folder: Path, model: str, task: Task | None) -> tuple[Task, ...]:
    """What the model can do. Raises WrongTask where `task` is nothing of it, and where no task is
    named and none can be told."""
    tasks = tasks_of(folder)
    if task is None:
        if not tasks:
            raise WrongTask(_unclear(folder, model))
    elif tasks and task not in tasks:
        raise WrongTask(f"{model} is a model for {' and '.join(tasks)}, not for {task}.")
    elif not tasks and (known := _architectures(read_config(folder))):
        raise WrongTask(f"{model} is a {known[0]}, which is not a model for {task}.")
    return tasks


def choose(
    folder: Path, model: str, task: Task | None, inputs: Any, parameters: Mapping[str, Any]
) -> Task:
    """The task to run: the one named, or else the first of the model's that takes such a payload.

    Raises WrongTask where the model cannot do it.
    """
    tasks = check_task(folder, model, task)
    if task is not None:
        return task
    hint = _hint(inputs, parameters)
    if hint in tasks:
        return hint
    if isinstance(_first(inputs), str):
        return next((each for each in tasks if each not in _PARTICULAR), tasks[0])
    return tasks[0]


def read_config(folder: Path) -> dict[str, Any]:
    """`config.json`, empty where there is none. Raises Permanent where it cannot be read."""
    return read_object(folder / "config.json")


def read_object(path: Path) -> dict[str, Any]:
    if not path.is_file():
        return {}
    try:
        read = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise Permanent(
            f"{path} cannot be read ({error}). Fetch the model's files anew."
        ) from error
    if not isinstance(read, dict):
        raise Permanent(f"{path} is not a JSON object. Fetch the model's files anew.")
    return read


_PARTICULAR: Final = {
    Task.SENTENCE_SIMILARITY: {"source_sentence"},
    Task.QUESTION_ANSWERING: {"question", "context"},
    Task.TEXT_RANKING: {"query", "texts"},
    Task.ZERO_SHOT_CLASSIFICATION: {"candidate_labels"},
}
"""Tasks that a payload gives away: by the fields of an input, or by a parameter."""


def _hint(inputs: Any, parameters: Mapping[str, Any]) -> Task | None:
    first = _first(inputs)
    names = set(first) if isinstance(first, dict) else set()
    names |= set(parameters) & {"candidate_labels"}
    for task, fields in _PARTICULAR.items():
        if fields <= names:
            return task
    return Task.TRANSLATION if {"src_lang", "tgt_lang"} & set(parameters) else None


def _first(inputs: Any) -> Any:
    if isinstance(inputs, list):
        return inputs[0] if inputs else None
    return inputs


def _card_tag(folder: Path) -> str | None:
    """`pipeline_tag` of the YAML before the model card's text. Cards are prose: a broken one tells
    nothing, and stops nothing."""
    card = folder / "README.md"
    try:
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(CARD_LIMIT_CHARS)
        start, _, rest = text.partition("\n")
        front, _, _ = rest.partition("\n---")
        tags = yaml.safe_load(front) if start.strip("\ufeff \r") == "---" else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return None
    tag = tags.get("pipeline_tag") if isinstance(tags, dict) else None
    return tag if isinstance(tag, str) else None


def _is_sentence_transformer(folder: Path) -> bool:
    """Of the library sentence-transformers, and of its kind that makes a vector of a text (others
    are cross-encoders and sparse encoders)."""
    kind = read_object(folder / "config_sentence_transformers.json").get("model_type")
    return (folder / "modules.json").is_file() and kind in (None, "SentenceTransformer")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [each for each in named if isinstance(each, str)] if isinstance(named, list) else []


def _tasks_of_architecture(
    name: str, config: Mapping[str, Any], *, is_text: bool
) -> tuple[Task, ...]:
    for suffix, tasks in BY_PERCEPTION.items():
        if name.endswith(suffix):
            return tasks
    if not is_text:
        return ()
    if name.endswith("ForSequenceClassification"):
        return _tasks_of_classifier(config)
    if name.endswith("ForConditionalGeneration"):
        return _tasks_of_seq2seq(name.removesuffix("ForConditionalGeneration"), config)
    for suffix, tasks in BY_SUFFIX.items():
        if name.endswith(suffix):
            return tasks
    return ()


def _tasks_of_classifier(config: Mapping[str, Any]) -> tuple[Task, ...]:
    """One label is a score, such as of how well a text answers a query; labels that say whether
    one sentence follows from another can stand for any labels."""
    labels = config.get("id2label")
    count = len(labels) if isinstance(labels, dict) else config.get("num_labels", 2)
    if count == 1:
        return (Task.TEXT_RANKING, Task.TEXT_CLASSIFICATION)
    names = [str(each).lower() for each in _values(config, "id2label")]
    names += [str(each).lower() for each in config.get("label2id") or {}]
    if any(each.startswith("entail") for each in names):
        return (Task.TEXT_CLASSIFICATION, Task.ZERO_SHOT_CLASSIFICATION)
    return (Task.TEXT_CLASSIFICATION,)


def _values(config: Mapping[str, Any], name: str) -> list[Any]:
    value = config.get(name)
    return list(value.values()) if isinstance(value, dict) else []


def _tasks_of_seq2seq(family: str, config: Mapping[str, Any]) -> tuple[Task, ...]:
    usual = BY_SEQ2SEQ.get(family, ())
    described = config.get("task_specific_params")
    names = described if isinstance(described, dict) else {}
    tasks = [
        task
        for name in names
        for task in (Task.SUMMARIZATION, Task.TRANSLATION)
        if str(name).startswith(task)
    ]
    if len(usual) > 1:  # a text-to-text model, which may do more than its parameters name
        tasks += usual
    return tuple(dict.fromkeys(tasks)) if usual and tasks else usual


def _unclear(folder: Path, model: str) -> str:
    tag = _card_tag(folder)
    known = ", ".join(Task)
    if tag is not None:
        return f"{model} is a model for {tag}; the tasks that Sluice runs are {known}."
    return (
        f"The task of {model} cannot be told from its README.md or its config.json. Name it; the "
        f"tasks that Sluice runs are {known}."
    )
