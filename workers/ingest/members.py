"""The documents within a document: all members of an archive or a mail, and what is within those in
turn, under names such as `letters.zip!/may.eml!/plan.txt`.

Members come one by one, so that memory does not grow with an archive. One budget goes for all that
comes out of the outermost one (`formats/container.py`); what is wrong with one member, such as an
archive within that is damaged, is an error of that member.
"""

from collections.abc import Iterator
from dataclasses import replace

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.formats import Format
from shared.kinds.ingest import LoadOptions
from workers.ingest.formats.container import Budget, Exceeded, Member, whole_name
from workers.ingest.formats.loader import RawDocument
from workers.ingest.formats.sniffing import format_of
from workers.ingest.load import document_errors, loader_of


def members(
    data: bytes | str,
    *,
    name: str,
    content_type: str | None,
    options: LoadOptions,
    settings: IngestSettings,
    file_name: str | None = None,
) -> Iterator[Member]:
    """The members by their whole names; those that are archives themselves are left out. Raises
    `DocumentError` where the document cannot be opened, or too much comes out of it. `file_name` as
    of `load`."""
    budget = Budget(name=name, size_bytes=len(data), settings=settings)
    document = RawDocument(name=name, data=data, charset=None, options=options, settings=settings)
    yield from _within(document, format_of(file_name or name, content_type, data), budget, depth=1)


def _within(
    document: RawDocument, format_: Format, budget: Budget, *, depth: int
) -> Iterator[Member]:
    limit = document.settings.archive_limit_depth
    with document_errors(document.name, format_):
        open_ = loader_of(format_).members
        assert open_ is not None
        for member in open_(document, budget):
            name, problem = whole_name(document.name, member.name)
            member = replace(member, name=name, error=member.error or problem)
            inner = _format_of(member)
            if inner is None or inner.is_document:
                yield member
            if inner is None:
                continue
            within = replace(document, name=name, data=member.data)
            if depth == limit:
                yield from _too_deep(within, inner, budget)
                continue
            try:
                yield from _within(within, inner, budget, depth=depth + 1)
            except Exceeded:
                raise
            except DocumentError as error:
                yield Member(name=name, error=error.message.removeprefix(f"{name}: "))


def _too_deep(document: RawDocument, format_: Format, budget: Budget) -> Iterator[Member]:
    """What stands for the members of a document that is not opened."""
    limit = document.settings.archive_limit_depth
    error = (
        f"lies in {limit} others, which is as deep as they are opened. Unpack them, or raise "
        "SLUICE_ARCHIVE_LIMIT_DEPTH."
    )
    if not format_.is_document:
        yield Member(name=document.name, error=error)
        return
    open_ = loader_of(format_).members
    assert open_ is not None
    with document_errors(document.name, format_):
        for member in open_(document, budget):
            name, _ = whole_name(document.name, member.name)
            yield Member(name=name, error=error)


def _format_of(member: Member) -> Format | None:
    """The format of a member that holds documents itself."""
    if member.error:
        return None
    try:
        format_ = format_of(member.name, member.content_type, member.data)
    except DocumentError:
        return None  # loading will say what is wrong
    return format_ if format_.holds_documents else None
