"""How the failure of an ingest step is booked: its sources fail, and the job goes on.

Imports no library that loads documents, for the sweeper.
"""

from uuid import UUID

from sqlalchemy.orm import Session

from shared import items
from shared.claims import Claim
from shared.items import Outcome
from shared.versions import Part


def absorb_load(session: Session, claim: Claim, message: str) -> None:
    items.settle(session, claim.job_id, claim.payload["ordinals"], Outcome.FAILED, message)


def absorb_embed(session: Session, claim: Claim, message: str) -> None:
    for part in parts_of(claim):
        items.settle_version(
            session, claim.job_id, part.version_id, Outcome.FAILED, message=message
        )


def parts_of(claim: Claim) -> list[Part]:
    """What an embedding step works on."""
    return [
        Part(version_id=UUID(version_id), first=first, end=end)
        for version_id, first, end in claim.payload["parts"]
    ]
