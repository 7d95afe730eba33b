"""Files that a job reads once: uploaded before it, and deleted when it has succeeded.

Each is an upload of its own, whatever lies in the storage already, so that no other job can be
using it. After a failure it stays, for the job may be redriven or go on.
"""

from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from cli.calls_documents import DocumentCalls
from shared.errors import SluiceError

UNNAMED = "input"


@contextmanager
def attached(calls: DocumentCalls, inputs: Any) -> Iterator[Any]:
    """The inputs with every `Path` and all bytes replaced by what the API knows them by."""
    ids: list[str] = []

    def sent(value: Any) -> Any:
        if not isinstance(value, bytes | Path):
            return value
        name = UNNAMED if isinstance(value, bytes) else None
        ids.append(calls.upload(value, name=name).id)
        return {"file_id": ids[-1]}

    try:
        named = [sent(each) for each in inputs] if isinstance(inputs, list) else sent(inputs)
    except BaseException:
        _delete(calls, ids)
        raise
    yield named
    _delete(calls, ids)


def _delete(calls: DocumentCalls, ids: list[str]) -> None:
    """What cannot be deleted harms nobody."""
    for file_id in ids:
        with suppress(SluiceError):
            calls.delete_file(file_id)
