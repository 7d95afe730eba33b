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
from shared.kinds.hf import TASKS

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
    for part in {folder, *(folder / module.path for module in modules_of(folder))}:
        try:
            total += sum(path.stat().st_size for path in weight_files(part))
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
        modules = [Module(str(entry["type"]), str(entry["path"])) for entry in listed]
    except (OSError, ValueError, TypeError, LookupError):
        return []
    return [module for module in modules if _is_inside(PurePosixPath(module.path))]


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


def tasks_of(folder: Path) -> tuple[str, ...]:
    """The model's own task first; empty where nothing tells, and for tasks that Sluice lacks.

    Raises Permanent where `config.json` cannot be read.
    """
    config = read_config(folder)
    is_text = not any((folder / name).is_file() for name in PREPROCESSORS)
    tag = _card_tag(folder)
    tasks = [name for name in TASKS if name == tag]
    if _is_sentence_transformer(folder):
        tasks += [name for name, task in TASKS.items() if task.checkpoints.are_for_sentences]
    else:
        for architecture in _architectures(config):
            tasks += _tasks_of_architecture(architecture, config, is_text=is_text)
    return tuple(dict.fromkeys(tasks))


def check_task(folder: Path, model: str, task: str | None) -> tuple[str, ...]:
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
    folder: Path, model: str, task: str | None, inputs: Any, parameters: Mapping[str, Any]
) -> str:
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
        return next((name for name in tasks if not _needs_more_than_a_text(name)), tasks[0])
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


def _needs_more_than_a_text(task: str) -> bool:
    return bool(TASKS[task].input.fields or TASKS[task].required_parameters)


def _hint(inputs: Any, parameters: Mapping[str, Any]) -> str | None:
    """The task that a payload gives away: by what only its inputs and parameters have."""
    first = _first(inputs)
    fields = first.keys() if isinstance(first, dict) else set()
    for name, task in TASKS.items():
        is_complete = (
            set(task.input.fields) <= fields and task.required_parameters <= parameters.keys()
        )
        if _needs_more_than_a_text(name) and is_complete:
            return name
    return next((name for name, task in TASKS.items() if task.signs & parameters.keys()), None)


def _first(inputs: Any) -> Any:
    if isinstance(inputs, list):
        return inputs[0] if inputs else None
    return inputs


def _card_tag(folder: Path) -> str | None:
    tag = card_of(folder).get("pipeline_tag")
    return tag if isinstance(tag, str) else None


def card_of(folder: Path) -> dict[str, Any]:
    """The YAML before the model card's text. Cards are prose: a broken one tells nothing, and stops
    nothing."""
    card = folder / "README.md"
    try:
        with card.open(encoding="utf-8", errors="replace") as stream:
            text = stream.read(CARD_LIMIT_CHARS)
        start, _, rest = text.partition("\n")
        front, _, _ = rest.partition("\n---")
        read = yaml.safe_load(front) if start.strip("\ufeff \r") == "---" else None
    except (OSError, ValueError, yaml.YAMLError, RecursionError):
        return {}
    return read if isinstance(read, dict) else {}


def _is_sentence_transformer(folder: Path) -> bool:
    """Of the library sentence-transformers, and of its kind that makes a vector of a text (others
    are cross-encoders and sparse encoders)."""
    kind = read_object(folder / "config_sentence_transformers.json").get("model_type")
    return (folder / "modules.json").is_file() and kind in (None, "SentenceTransformer")


def _architectures(config: Mapping[str, Any]) -> list[str]:
    named = config.get("architectures")
    return [name for name in named if isinstance(name, str)] if isinstance(named, list) else []


def _tasks_of_architecture(
    architecture: str, config: Mapping[str, Any], *, is_text: bool
) -> list[str]:
    """What comes with a preprocessor is for no task of texts."""
    endings = {
        ending
        for task in TASKS.values()
        for ending in task.checkpoints.architectures
        if architecture.endswith(ending)
    }
    longest = max(endings, key=len, default="")
    ranks = {
        name: task.checkpoints.rank(architecture, config)
        for name, task in TASKS.items()
        if longest in task.checkpoints.architectures and (is_text or task.input.is_file)
    }
    able = {name: rank for name, rank in ranks.items() if rank is not None}
    return sorted(able, key=lambda name: able[name])


def _unclear(folder: Path, model: str) -> str:
    tag = _card_tag(folder)
    known = ", ".join(TASKS)
    if tag is not None:
        return f"{model} is a model for {tag}; the tasks that Sluice runs are {known}."
    return (
        f"The task of {model} cannot be told from its README.md or its config.json. Name it; the "
        f"tasks that Sluice runs are {known}."
    )
