"""A model's folder: what the model is called, and which weight files would be loaded from it.

Weights are `model.safetensors` or `pytorch_model.bin`, in one file or in shards with an index, the
first where both are there. Nothing is read here but the index.
"""

import json
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath
from typing import Final, NamedTuple

from shared.errors import Permanent

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
