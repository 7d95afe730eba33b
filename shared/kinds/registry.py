"""All kinds of jobs, a line each. Whatever has to do with every kind goes through `KINDS`."""

from shared.kinds.batch import BATCH
from shared.kinds.bundle import EXPORT, IMPORT
from shared.kinds.chat import CHAT
from shared.kinds.check import CHECK
from shared.kinds.complete import COMPLETE
from shared.kinds.embed import EMBED
from shared.kinds.erase import ERASE
from shared.kinds.eval import EVAL
from shared.kinds.hf import HF
from shared.kinds.ingest import INGEST
from shared.kinds.kind import Kind, StepType
from shared.kinds.model import MODEL
from shared.kinds.rag import RAG
from shared.kinds.rebuild import REBUILD
from shared.kinds.search import SEARCH
from shared.vocabulary import Queue

__all__ = [
    "BATCH", "CHAT", "CHECK", "COMPLETE", "EMBED", "ERASE", "EVAL", "EXPORT", "HF", "IMPORT",
    "INGEST", "KINDS", "MODEL", "RAG", "REBUILD", "SEARCH",
    "WEBHOOK", "step_types",
]  # fmt: skip

KINDS: dict[str, Kind] = {
    kind.name: kind
    for kind in (
        INGEST,
        EMBED,
        SEARCH,
        RAG,
        CHAT,
        COMPLETE,
        HF,
        MODEL,
        ERASE,
        REBUILD,
        CHECK,
        EXPORT,
        IMPORT,
        EVAL,
        BATCH,
    )
}

WEBHOOK = StepType(name="webhook", queue=Queue.WEBHOOK, handler="workers.webhook:WEBHOOK")
"""Follows the end of a job of any kind."""


def step_types() -> list[StepType]:
    return [*(step for kind in KINDS.values() for step in kind.steps), WEBHOOK]
