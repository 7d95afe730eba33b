"""What people write themselves: LangChain loaders, splitter, SentenceTransformer, Chroma.

Run as a process of its own by `bench.ingest`, so that its memory can be measured alone. Prints one
JSON line: chunks, seconds (models loaded before, imports not counted) and its peak memory.
"""

import json
import resource
import sys
import time
from pathlib import Path

from langchain_chroma import Chroma
from langchain_community.document_loaders import BSHTMLLoader
from langchain_core.embeddings import Embeddings
from langchain_text_splitters import RecursiveCharacterTextSplitter
from sentence_transformers import SentenceTransformer

from workers.models.locate import bundled


class Encoder(Embeddings):
    def __init__(self, name: str) -> None:
        self.model = SentenceTransformer(str(bundled(name) or name), device="cpu")

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        vectors: list[list[float]] = self.model.encode(texts, show_progress_bar=False).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


def main(folder: str, model: str, names: list[str]) -> None:
    encoder = Encoder(model)
    encoder.embed_query("warm")
    started = time.perf_counter()
    documents = [
        d for name in names for d in BSHTMLLoader(name, bs_kwargs={"features": "lxml"}).load()
    ]
    splitter = RecursiveCharacterTextSplitter(
        chunk_size=1000, chunk_overlap=200, add_start_index=True
    )
    chunks = splitter.split_documents(documents)
    for first in range(0, len(chunks), 5000):  # Chroma refuses larger batches
        Chroma.from_documents(chunks[first : first + 5000], encoder, persist_directory=folder)
    seconds = time.perf_counter() - started
    peak_mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    print(json.dumps({"chunks": len(chunks), "seconds": seconds, "peak_mib": peak_mib}))


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2], Path(sys.argv[3]).read_text().splitlines())
