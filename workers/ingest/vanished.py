"""What has vanished from a site or a folder: documents of earlier jobs that are no longer there."""

from collections.abc import Set
from dataclasses import dataclass
from math import ceil
from uuid import UUID

from shared.database.transaction import Transaction
from shared.documents import remote
from shared.jobs.steps import Record
from workers.attempts.context import Context
from workers.ingest.erasure import remove_documents


@dataclass(frozen=True, kw_only=True)
class Vanished:
    names: list[str]
    warnings: list[str]
    record: Record
    """Deletes the rows of what was erased."""


def find_vanished(
    context: Context,
    collection_id: UUID,
    parent: str,
    *,
    there: Set[str],
    is_erased: bool,
    max_share: float,
) -> Vanished:
    """The documents that were met in `parent`, or lie in archives that were, less those of what is
    there now.

    With `is_erased` readers no longer see them from here on; unless they are more than a share of
    all, for then something else is wrong.
    """
    with context.process.ledger.read() as session:
        known = remote.of_parent(session, collection_id, parent)
    vanished = [one for one in known if one.met not in there]
    names = [one.source for one in vanished]
    if not vanished or not is_erased:
        return Vanished(names=names, warnings=[], record=lambda _: None)
    if len(vanished) > ceil(max_share * len(known)):
        warning = (
            f"{parent}: {len(vanished):,} of {len(known):,} documents are no longer there, which "
            f"is more than a share of {max_share:g} (max_erased_share): none of them was erased."
        )
        return Vanished(names=names, warnings=[warning], record=lambda _: None)
    removal = remove_documents(context, [one.document_id for one in vanished])

    def record(transaction: Transaction) -> None:
        removal.record(transaction)
        remote.forget(transaction, collection_id, sorted({one.met for one in vanished}))

    return Vanished(names=names, warnings=[], record=record)
