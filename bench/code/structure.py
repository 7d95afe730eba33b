"""What the tree is made of: modules, who imports them, folders, cycles, lines.

`python -m bench.code.structure`. A module is a file of the product that is no `__init__.py`.
Imports are counted wherever they stand in a module, but for cycles only at its top: what is
imported late breaks no import.
"""

import argparse
import ast
import sys
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PARTS = {
    "api": "api",
    "shared": "shared",
    "workers": "workers",
    "cli": "cli",
    "sluice": "client/sluice",
}


def main() -> int:
    argparse.ArgumentParser(description=__doc__).parse_args()
    paths = dict(_modules())
    importers: dict[str, set[str]] = defaultdict(set)
    graph: dict[str, set[str]] = {}
    for name, path in paths.items():
        tree = ast.parse(path.read_text(encoding="utf-8"))
        graph[name] = set(_imported(tree.body, paths)) - {name}
        for other in _imported(ast.walk(tree), paths):
            importers[other].add(name)
    single = sorted(name for name in paths if len(importers[name] - {name}) == 1)
    folders = Counter(name.rpartition(".")[0] for name in paths)
    lines = Counter[str]()
    for name, path in paths.items():
        lines[name.partition(".")[0]] += len(path.read_text(encoding="utf-8").splitlines())
    print(f"modules: {len(paths)}")
    print(f"with one importer: {len(single)} ({100 * len(single) / len(paths):.1f} %)")
    print(
        "the widest folders:",
        ", ".join(f"{name} {count}" for name, count in folders.most_common(4)),
    )
    print("cycles:", ", ".join(_cycles(graph)) or "none")
    print("lines:", ", ".join(f"{part} {count:,}" for part, count in sorted(lines.items())))
    return 0


def _modules() -> Iterator[tuple[str, Path]]:
    for part, folder in PARTS.items():
        for path in sorted((ROOT / folder).rglob("*.py")):
            if path.name != "__init__.py":
                inner = path.relative_to(ROOT / folder).with_suffix("").parts
                yield ".".join((part, *inner)), path


def _imported(
    nodes: "Iterator[ast.AST] | list[ast.stmt]", paths: Mapping[str, Path]
) -> Iterator[str]:
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            for alias in node.names:
                full = f"{node.module}.{alias.name}"
                if full in paths:
                    yield full
                elif node.module in paths:
                    yield node.module
        elif isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in paths)


def _cycles(graph: Mapping[str, set[str]]) -> Iterator[str]:
    """Each cycle that a walk in depth meets, once."""
    done: set[str] = set()
    trail: list[str] = []

    def walk(name: str) -> Iterator[str]:
        trail.append(name)
        for other in sorted(graph[name]):
            if other in trail:
                yield " -> ".join([*trail[trail.index(other) :], other])
            elif other not in done:
                yield from walk(other)
        done.add(trail.pop())

    for name in graph:
        if name not in done:
            yield from walk(name)


if __name__ == "__main__":
    sys.exit(main())
