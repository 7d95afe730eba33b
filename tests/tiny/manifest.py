"""Where the checkpoints of the tiny models are, and what they were trained from.

`python -m tests.tiny.make` trains the models and writes `checkpoints/`. The manifest in there holds
for each model a hash of its training code and lessons, and of the files that came of them; a test
compares both, so that nobody changes the one and forgets the other.
"""

import ast
import hashlib
import importlib.util
import json
from pathlib import Path
from typing import Any, Final

COMMAND: Final = "python -m tests.tiny.make"
CHECKPOINTS: Final = Path(__file__).parent / "checkpoints"
MANIFEST: Final = CHECKPOINTS / "manifest.json"


def checkpoint(name: str) -> Path:
    """The model's folder. It belongs to the repository: who changes files changes a copy."""
    folder = CHECKPOINTS / name
    if not folder.is_dir():
        raise FileNotFoundError(f"there is no checkpoint {folder}; make it: {COMMAND} {name}")
    return folder


def read_manifest() -> dict[str, Any]:
    """Model -> what its checkpoint was made from, and with."""
    if not MANIFEST.exists():
        return {}
    entries: dict[str, Any] = json.loads(MANIFEST.read_text(encoding="utf-8"))
    return entries


def hash_of_files(folder: Path) -> dict[str, str]:
    return {
        path.name: hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.iterdir())
    }


def hash_of_sources(module: str, lessons: object) -> str:
    """Of a module's code and of all test code that it imports, and of lessons as JSON."""
    digest = hashlib.sha256(json.dumps(lessons).encode())
    # Without the modules' names: who moves one need not train.
    for code in sorted(hash_of_code(source) for source in _sources(module).values()):
        digest.update(code.encode())
    return digest.hexdigest()


def hash_of_code(source: str) -> str:
    """Comments, docstrings, imports and layout do not count: they do not change a model."""
    return hashlib.sha256(json.dumps(_plain(ast.parse(source))).encode()).hexdigest()


def _sources(module: str) -> dict[str, str]:
    """Name -> source, of the module and the test modules that it needs, but for this one."""
    sources: dict[str, str] = {}
    waiting = [module]
    while waiting:
        name = waiting.pop()
        if name in sources or name == __name__ or not name.startswith("tests."):
            continue
        spec = importlib.util.find_spec(name)
        assert spec is not None
        assert spec.origin is not None
        sources[name] = Path(spec.origin).read_text(encoding="utf-8")
        for node in ast.walk(ast.parse(sources[name])):
            if isinstance(node, ast.ImportFrom) and node.module == __package__:
                waiting += [f"{node.module}.{alias.name}" for alias in node.names]
            elif isinstance(node, ast.ImportFrom) and node.module:
                waiting.append(node.module)
    return sources


def _plain(value: Any) -> Any:
    """A syntax tree as JSON, without empty fields, which differ between versions of Python."""
    if isinstance(value, list):
        return [_plain(item) for item in value if not _is_silent(item)]
    if isinstance(value, ast.AST):
        fields = ((name, _plain(field)) for name, field in ast.iter_fields(value))
        return [type(value).__name__, {name: field for name, field in fields if field}]
    return None if value is None else repr(value)


def _is_silent(node: Any) -> bool:
    """Whether it says nothing about a model: an import, or a docstring."""
    return isinstance(node, ast.Import | ast.ImportFrom) or (
        isinstance(node, ast.Expr)
        and isinstance(node.value, ast.Constant)
        and isinstance(node.value.value, str)
    )
