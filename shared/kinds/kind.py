"""What a kind of job is: all that the API, the workers, the command line and the pages know of it.

A kind is one record, and `registry.py` lists them. How to add one: CONTRIBUTING.md.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from sqlalchemy.orm import Session

from shared.config import Settings
from shared.documents import collections
from shared.vocabulary import KeyScope, Lane, Queue, Shape


@dataclass(frozen=True, kw_only=True)
class StepType:
    """Steps of one name. `handler` is what runs them, as `module:name`; only workers import it.

    It is a `Handler` (`workers/attempts/context.py`) or, of steps that need nothing but the job's
    input, a function from that to the result, which may stand beside the record.

    Where the last failure of such a step `is_absorbed`, the handler books it in the job, which
    goes on; otherwise the job fails.

    A step that `only_computes` writes nothing before its record. Its claim need not be on disk
    before it runs: should the database lose it, two attempts may have one number, and do no harm.
    """

    name: str
    queue: Queue
    handler: str
    is_absorbed: bool = False
    only_computes: bool = False


def _nothing(_input: Any, _settings: Settings) -> None:
    pass


def _no_defaults(_input: Any, _settings: Settings) -> dict[str, Any]:
    return {}


def _needs_nothing(_session: Session, _inputs: Sequence[Mapping[str, Any]]) -> None:
    pass


def _as_they_are(_session: Session, _inputs: Sequence[dict[str, Any]]) -> None:
    pass


def _any_worker(_input: Mapping[str, Any]) -> str:
    return ""


def _no_batch(_input: Mapping[str, Any]) -> None:
    return None


@dataclass(frozen=True, kw_only=True, eq=False)
class Kind:
    """A kind of job.

    `input` and `result` are its shapes in the HTTP contract; `result` None is any JSON. A job
    begins with the first of `steps`. `example` is an input that runs on a new installation.
    """

    name: str
    summary: str
    input: type[Shape]
    result: type[Shape] | None
    steps: Sequence[StepType]
    example: Mapping[str, Any]
    check: Callable[[Any, Settings], None] = _nothing
    """Raises InvalidInput for what this server cannot run; without a look at the database."""
    defaults: Callable[[Any, Settings], dict[str, Any]] = _no_defaults
    """Fields of the input that are noted with the job, such as its model: settings may change."""
    find_collection: Callable[[Session, str], object] = collections.get
    """Raises NotFound for the `collection` of an input."""
    uses_embedder: bool = False
    """Its jobs run the embedding model of their `collection`, so that has to be set up."""
    require: Callable[[Session, Sequence[Mapping[str, Any]]], None] = _needs_nothing
    """Raises NotFound where something else is not there that the inputs name."""
    resolve: Callable[[Session, Sequence[dict[str, Any]]], None] = _as_they_are
    """Notes in the inputs of new jobs what the names in them stand for at that moment, such as the
    version of a prompt. Raises NotFound or InvalidInput."""
    route: Callable[[Mapping[str, Any]], str] = _any_worker
    """Which workers can take the first step: those that serve a model, or any."""
    batch_key: Callable[[Mapping[str, Any]], str | None] = _no_batch
    """First steps of one key may run in one batch."""
    scope: KeyScope = KeyScope.ASK
    """What a key needs to submit such a job, or to change one."""
    lane: Lane | None = None
    """Where its jobs go unless the request says; None as the others, those that are waited for
    before those that are not."""
    file_path: str | None = None
    """Where inputs name uploads, as a JSON path of PostgreSQL; those are kept meanwhile."""
    is_generated: bool = False
    """Its jobs write text that clients may read as it is written."""
    closing_step: StepType | None = None
    """The step that follows the end of its jobs, however they end."""

    @property
    def first_step(self) -> StepType:
        return self.steps[0]
