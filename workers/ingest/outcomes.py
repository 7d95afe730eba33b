"""How the failure of an ingest step is booked: its sources fail, and the job goes on; and the
job's end.

Imports no library that loads documents, for the sweeper.
"""

from typing import Any
from uuid import UUID

from sqlalchemy import select
from sqlalchemy.orm import Session

from shared import items, jobs
from shared.claims import Claim
from shared.items import CutChunks, Outcome
from shared.models import Job
from shared.payloads import SplitterType
from shared.versions import Part


def absorb_load(session: Session, claim: Claim, message: str) -> None:
    items.settle(session, claim.job_id, claim.payload["ordinals"], Outcome.FAILED, message)


def absorb_embed(session: Session, claim: Claim, message: str) -> None:
    for part in parts_of(claim):
        items.settle_version(
            session, claim.job_id, part.version_id, Outcome.FAILED, message=message
        )


def finish(session: Session, job_id: UUID) -> dict[str, Any]:
    """The job's result; and a warning where the model could not read all of its chunks."""
    cut = items.cut(session, job_id)
    if cut is not None:
        input_ = session.scalar(select(Job.input).where(Job.id == job_id)) or {}
        splitter = (input_.get("splitter") or {}).get("type")
        jobs.warn(session, job_id, [_cut_warning(cut, splitter)])
    return items.result(session, job_id)


def _cut_warning(cut: CutChunks, splitter: str | None) -> str:
    named = ", ".join(f"{name} ({count:,})" for name, count in cut.documents)
    left = cut.document_count - len(cut.documents)
    more = f" and {left:,} more documents" if left else ""
    chunks = "chunk is longer" if cut.chunk_count == 1 else "chunks are longer"
    # `character` divides between paragraphs only, so that a smaller size alone may change nothing.
    other = "the splitter recursive, " if splitter == SplitterType.CHARACTER else ""
    return (
        f"{cut.chunk_count:,} {chunks} than what {cut.model} reads of a text, so that what stands "
        f"at the end is hard to find: {named}{more}. Ingest again with {other}a chunk_size of at "
        f"most {max(cut.chunk_size, 16):,} and a smaller chunk_overlap, or into a collection whose "
        "model reads more."
    )


def parts_of(claim: Claim) -> list[Part]:
    """What an embedding step works on."""
    return [
        Part(version_id=UUID(version_id), first=first, end=end)
        for version_id, first, end in claim.payload["parts"]
    ]
