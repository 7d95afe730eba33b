"""All dialects, a line each. Whatever has to do with every one of them goes through here.

Their modules have routes, which are built on modules that import this one; so they are named, and
loaded at the first call.
"""

from functools import cache
from importlib import import_module
from typing import Any

from api.compat.dialect import NATIVE, Dialect

DIALECTS = ("api.compat.huggingface:HUGGING_FACE",)


@cache
def dialects() -> tuple[Dialect, ...]:
    loaded = tuple(load(name) for name in DIALECTS)
    assert all(isinstance(dialect, Dialect) for dialect in loaded), DIALECTS
    return loaded


def load(name: str) -> Any:
    """What `module:name` names."""
    module, _, attribute = name.partition(":")
    return getattr(import_module(module), attribute)


def dialect_of(path: str) -> Dialect:
    """The dialect that owns a path: the native one where it is nobody's."""
    return next((dialect for dialect in dialects() if dialect.owns(path)), NATIVE)


def asks_for_key(path: str) -> bool:
    """Whether a path is served to those alone who have one of the keys, where keys are set."""
    return NATIVE.owns(path) or dialect_of(path) is not NATIVE
