"""Intake of very many documents, and of a very large one: memory, and what is said of the time.

    python -m bench.intake [--documents 20000] [--text-mb 200]

In a stack of its own, with an embedding model of random weights that costs next to nothing: one job
of so many small texts, then one of a single plain text of so many megabytes (0 leaves one out).
Prints for each, at a tenth, at half and at the end, the memory of the CPU worker's processes
together, in which what they share counts once (PSS), and by how much `eta_s` was wrong then.
"""

import argparse
import random
import tempfile
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Final

import psutil
import torch
from sentence_transformers import SentenceTransformer
from sentence_transformers.sentence_transformer.modules import Pooling, Transformer
from tokenizers import Tokenizer, models, pre_tokenizers
from transformers import BertConfig, BertModel, PreTrainedTokenizerFast

from bench.support.stack import peaks_mib, running_stack
from cli.stack.stackfile import Stack
from sluice import Client

MODEL: Final = "bench/tiny"
_WORDS: Final = (
    "queue job state step lease worker claim retry document chunk vector search answer office time "
    "table page archive letter train cat week report number price delivery order customer contract"
)
WORDS: Final = tuple(_WORDS.split())
SHARES: Final = (0.1, 0.5, 1.0)
POLL_S: Final = 1.0
"""Each look reads all of the job, with its input of megabytes."""


def make_model(folder: Path) -> None:
    """One layer of 16 dimensions; each word is the same token."""
    special = {"[PAD]": 0, "[UNK]": 1, "[CLS]": 2, "[SEP]": 3, "[MASK]": 4}
    tokenizer = Tokenizer(models.WordLevel(special, unk_token="[UNK]"))
    tokenizer.pre_tokenizer = pre_tokenizers.Whitespace()
    source = folder / "source"
    torch.manual_seed(0)
    shape = BertConfig(
        vocab_size=len(special), hidden_size=16, num_hidden_layers=1, num_attention_heads=1,
        intermediate_size=16, max_position_embeddings=512,
    )  # fmt: skip
    BertModel(shape).save_pretrained(source)
    PreTrainedTokenizerFast(
        tokenizer_object=tokenizer, model_max_length=512, pad_token="[PAD]", unk_token="[UNK]",
        cls_token="[CLS]", sep_token="[SEP]", mask_token="[MASK]",
    ).save_pretrained(source)  # fmt: skip
    transformer = Transformer(str(source), max_seq_length=512)
    pooling = Pooling(transformer.get_embedding_dimension())
    SentenceTransformer(modules=[transformer, pooling]).save(str(folder / MODEL))


def text(chance: random.Random, words: int) -> str:
    return " ".join(chance.choices(WORDS, k=words))


def write_large(path: Path, size_bytes: int) -> None:
    chance = random.Random(1)
    written = 0
    with path.open("w") as file:
        while written < size_bytes:
            written += file.write(text(chance, 120) + "\n\n")


@dataclass(kw_only=True)
class Watch:
    """What is seen of a job while it runs."""

    stack: Stack
    started: float = field(default_factory=time.perf_counter)
    samples: list[tuple[float, float, float, float | None]] = field(default_factory=list)
    """Seconds, share of the documents, MiB of the worker's processes, the ETA in seconds."""

    def see(self, share: float, eta_s: float | None) -> None:
        seconds = time.perf_counter() - self.started
        memory = 0.0
        for process in self._workers():
            with suppress(psutil.NoSuchProcess):  # it has just ended
                memory += process.memory_full_info().pss / 2**20
        self.samples.append((seconds, share, memory, eta_s))

    def _workers(self) -> Iterator[psutil.Process]:
        for part in self.stack.parts:
            if part.pid is not None and part.name.startswith("cpu"):
                main = psutil.Process(part.pid)
                yield from (main, *main.children(recursive=True))

    def report(self, what: str, chunks: int) -> None:
        total_s = self.samples[-1][0]
        print(f"{what}: {chunks:,} chunks in {total_s:,.1f} s = {chunks / total_s:,.0f} chunks/s")
        for mark in SHARES:
            # By the documents, or by the time where there is one document alone.
            seconds, _, memory, eta_s = next(
                sample for sample in self.samples
                if sample[1] >= mark or (sample[1] == 0 and sample[0] >= mark * total_s)
            )  # fmt: skip
            said = "nothing" if eta_s is None else f"{(seconds + eta_s) / total_s - 1:+.0%}"
            print(f"  at {mark:4.0%}: {memory:6,.0f} MiB; the time in all was said to be {said}")


def watch(client: Client, stack: Stack, job_id: str, what: str) -> None:
    seen = Watch(stack=stack)
    while True:
        job = client.job(job_id)
        if job.finished_at is not None:
            break
        if job.progress is not None and job.progress.total:
            seen.see(job.progress.done / job.progress.total, job.eta_s)
        time.sleep(POLL_S)
    result = client.result(job)
    if result is None or result["errors"]:
        raise RuntimeError(f"{what}: {job.state}, {job.error or result['errors'][:3]}")
    seen.see(1, 0)
    seen.report(what, result["chunks"])
    peaks = ", ".join(f"{part} {mib:,.0f}" for part, mib in peaks_mib(stack).items())
    print(f"  peaks of single processes in MiB so far: {peaks}", flush=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--documents", type=int, default=20_000)
    parser.add_argument("--text-mb", type=int, default=200)
    arguments = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder)
        place.chmod(0o755)
        make_model(place / "models")
        settings = {
            "SLUICE_MODELS_FOLDER": str(place / "models"),
            "SLUICE_EMBEDDING_MODEL": MODEL,
            "SLUICE_MAX_SOURCES_PER_JOB": str(max(1, arguments.documents)),
            "SLUICE_MAX_FILE_BYTES": str(2**30),
            "SLUICE_MAX_DOCUMENT_CHARS": str(10**9),
            "SLUICE_MAX_DOCUMENT_CHUNKS": str(10**6),
        }
        with running_stack(**settings) as (stack, client):
            client.put_collection("intake")
            chance = random.Random(0)
            if arguments.documents:
                sources = [
                    {"type": "text", "name": f"{n}.txt", "text": f"{n} {text(chance, 40)}"}
                    for n in range(arguments.documents)
                ]
                job = client.submit_untyped("ingest", {"collection": "intake", "sources": sources})
                watch(client, stack, job.id, f"{arguments.documents:,} small documents")
            if arguments.text_mb:
                path = place / "large.txt"
                write_large(path, arguments.text_mb * 10**6)
                file = client.upload(path)
                source = {"type": "file", "file_id": file.id}
                options = {"splitter": {"chunk_size": 1000}}
                job = client.submit_untyped(
                    "ingest", {"collection": "intake", "sources": [source]} | options
                )
                watch(client, stack, job.id, f"one text of {arguments.text_mb} MB")


if __name__ == "__main__":
    main()
