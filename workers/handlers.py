"""Which handler runs which step. One table for the CPU worker, one for the generation worker."""

from workers.runner import Handlers


def cpu_handlers() -> Handlers:
    """Loading, embedding, retrieval, erasure: imports torch, and so does it before any fork."""
    from workers import webhook
    from workers.ingest import erase
    from workers.ingest import steps as ingest
    from workers.retrieval import steps as retrieval

    return {
        "ingest.plan": ingest.PLAN,
        "ingest.load": ingest.LOAD,
        "ingest.embed": ingest.EMBED,
        "embed": retrieval.EMBED,
        "search": retrieval.SEARCH,
        "rag.find": retrieval.RAG_FIND,
        "erase": erase.ERASE,
        "webhook": webhook.WEBHOOK,
    }


def generate_handlers() -> Handlers:
    """Answering only: retrieval and embedding happen on CPU workers."""
    from workers.generation import steps as generation

    return {"rag.answer": generation.RAG_ANSWER}
