"""Which handler runs which step: a table for each sort of worker."""

from workers.attempts.context import Handler
from workers.attempts.runner import Handlers
from workers.ingest import steps


def cpu_handlers() -> Handlers:
    """Loading, embedding, retrieval, erasure: imports torch, and so does it before any fork."""
    from workers.generation import chat
    from workers.hf import steps as hf
    from workers.ingest import erasure
    from workers.ingest import steps as ingest
    from workers.retrieval import steps as retrieval

    return {
        "ingest.plan": ingest.PLAN,
        "ingest.load": ingest.LOAD,
        "ingest.embed": ingest.EMBED,
        "embed": retrieval.EMBED,
        "search": retrieval.SEARCH,
        "rag.find": retrieval.RAG_FIND,
        "chat.tools": chat.CHAT_TOOLS,
        "erase": erasure.ERASE,
        "hf.run": hf.HF_RUN,
    }


def webhook_handlers() -> Handlers:
    """What leaves for servers of others, which may be slow."""
    from workers import webhook

    return {"webhook": webhook.WEBHOOK}


def failure_handlers() -> Handlers:
    """How the failure of a step is booked in its job, for the sweeper, which runs none.

    Steps that are not here fail their jobs. Nothing is imported that loads models.
    """
    return {
        "ingest.load": Handler(absorb=steps.absorb_load, finish=steps.finish),
        "ingest.embed": Handler(absorb=steps.absorb_embed, finish=steps.finish),
    }


def hf_handlers() -> Handlers:
    """Hugging Face tasks only, for a worker of their own: on a GPU, say."""
    from workers.hf import steps as hf

    return {"hf.run": hf.HF_RUN}


def generate_handlers() -> Handlers:
    """Answering only: retrieval and embedding happen on CPU workers."""
    from workers.generation import chat, model_steps, rag

    return {
        "rag.answer": rag.RAG_ANSWER,
        "chat.answer": chat.CHAT_ANSWER,
        "model.apply": model_steps.APPLY,
    }
