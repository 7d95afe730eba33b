"""The kind `check`: whether the vector store has what the ledger says of a collection, and nothing
else; what differs is mended."""

from typing import Annotated

from pydantic import Field

from shared.bounds import CollectionName
from shared.documents.checks import CheckState
from shared.kinds.kind import Kind, StepType
from shared.vocabulary import KeyScope, Lane, Queue, Shape

STEP = "check"
SAMPLE_LIMIT = 1_000_000_000
DEFAULT_SAMPLE = 100


class CheckInput(Shape):
    """`sample` is of how many chunks the vector is made again by the model of the collection, and
    compared; as many as there are, and all of them are."""

    collection: CollectionName
    dry_run: bool = False
    """Only report what differs."""
    sample: Annotated[int, Field(ge=0, le=SAMPLE_LIMIT)] = DEFAULT_SAMPLE
    delete_foreign: bool = False
    """Delete vectors, too, that Sluice did not write."""


class CheckExamples(Shape):
    """Ids of some chunks that differ, as the store has them."""

    missing: list[str] = []
    surplus: list[str] = []
    stale: list[str] = []
    wrong: list[str] = []
    foreign: list[str] = []


class CheckResult(Shape):
    """`state` is `ok`; `mended`, where all that was found was mended; or `damaged`.

    The counts are of vectors in all indexes of the collection, the one that is searched and those
    that one can go back to: `missing`; `surplus`, of chunks that there are no more; `stale`, with
    another text or other metadata than their chunk; `wrong`, of those that were `sampled`, which
    are not what the model gives. `foreign` vectors, which Sluice did not write, are no fault.
    `leftover` is what is left in PostgreSQL of documents that were erased.
    """

    collection: str
    state: CheckState
    checked: int
    """Chunks that the store is to have, of all indexes."""
    missing: int
    surplus: int
    stale: int
    sampled: int
    wrong: int
    foreign: int
    leftover: int
    mended: int
    """How many of these faults were mended."""
    examples: CheckExamples
    rebuild_job_id: str | None
    """The job that makes an index again of which the store has nothing that can be used."""


CHECK = Kind(
    name="check",
    scope=KeyScope.WRITE,
    summary="compare the vectors of a collection with its chunks, and mend what differs",
    input=CheckInput,
    result=CheckResult,
    steps=[StepType(name=STEP, queue=Queue.EMBED, handler="workers.ingest.check:CHECK")],
    example={"collection": "handbook", "sample": 200},
    lane=Lane.BULK,
)
