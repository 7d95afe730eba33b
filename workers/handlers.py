"""Which handler runs which step. One table for the CPU worker, one for the generation worker."""

from workers.runner import Handlers


def cpu_handlers() -> Handlers:
    """Loading, embedding, retrieval, erasure: imports torch, and so does it before any fork."""
    from workers import webhook
    from workers.generation import chat
    from workers.hf import steps as hf
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
        "chat.tools": chat.CHAT_TOOLS,
        "erase": erase.ERASE,
        "hf.run": hf.HF_RUN,
        "webhook": webhook.WEBHOOK,
    }


def hf_handlers() -> Handlers:
    """Hugging Face tasks only, for a worker of their own: on a GPU, say."""
    from workers.hf import steps as hf

    return {"hf.run": hf.HF_RUN}


def generate_handlers() -> Handlers:
    """Answering only: retrieval and embedding happen on CPU workers."""
    from workers.generation import admin, chat, rag

    return {
        "rag.answer": rag.RAG_ANSWER,
        "chat.answer": chat.CHAT_ANSWER,
        "model.apply": admin.APPLY,
    }
