"""What the tests of FAISS run in processes of their own, and what they write with. Nothing here
needs more of Sluice than the store."""

import os
import random
import resource
import signal
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, contextmanager
from functools import partial
from itertools import count
from pathlib import Path

import numpy as np
import pytest

from shared.config import Settings
from shared.errors import Unavailable
from tests.integration.vector_store_contract import entry
from workers.models.devices import Vectors
from workers.retrieval.stores import faiss
from workers.retrieval.stores.faiss import Faiss

NAME = "papers"


def make_store(folder: str | Path, **changes: float) -> Faiss:
    settings = Settings(_env_file=None).model_copy(update=changes)
    return Faiss(settings, f"faiss://{folder}")


def unit_vectors(count: int, dimension: int = 16, *, seed: int = 1) -> Vectors:
    vectors = np.random.default_rng(seed).standard_normal((count, dimension), dtype=np.float32)
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    return vectors


def write(store: Faiss, ids: Sequence[str], dimension: int = 16) -> None:
    store.upsert(NAME, [entry(id_) for id_ in ids], unit_vectors(len(ids), dimension))


def all_ids(store: Faiss) -> list[str]:
    return store.id_page(NAME, limit=10**6, offset=0)


@contextmanager
def forked(work: Callable[[], object]) -> Iterator[int]:
    """A child that does this work; it is waited for at the end, unless it is killed before."""
    child = os.fork()
    if not child:
        try:
            work()
        except BaseException:
            traceback.print_exc()
            os._exit(1)
        os._exit(0)
    yield child
    assert os.waitpid(child, 0)[1] in (0, signal.SIGKILL)


def write_and_read(folder: str) -> None:
    faiss.DELETED_ROWS = 30  # compacts often
    writers, writes = 3, 20

    def work(writer: int) -> None:
        store = make_store(folder)
        for n in range(writes):
            ids = [f"{writer}-{n}-{m}" for m in range(5)]
            write(store, ids)
            assert store.vectors(NAME, ids).keys() == set(ids)
            if n % 2:
                assert store.delete(NAME, ids) == 5
        (Path(folder) / f".ended-{writer}").touch()

    def read() -> None:
        store = make_store(folder)
        while len(list(Path(folder).glob(".ended-*"))) < writers:
            rows = store.query(NAME, unit_vectors(2), limit=5, where=None)
            assert all(match.score < 1.001 for row in rows for match in row)
            store.vectors(NAME, [match.id for row in rows for match in row])

    with ExitStack() as children:
        for writer in range(writers):
            children.enter_context(forked(partial(work, writer)))
        for _ in range(2):
            children.enter_context(forked(read))
    expected = {
        f"{w}-{n}-{m}" for w in range(writers) for n in range(0, writes, 2) for m in range(5)
    }
    ids = all_ids(make_store(folder))
    assert set(ids) == expected
    assert len(ids) == len(expected)


def search_beside_torch(folder: str) -> None:
    import torch

    def work() -> None:
        torch.set_num_threads(2)
        store = make_store(folder)
        square = torch.rand(200, 200)
        with ThreadPoolExecutor(1) as thread:
            for _ in range(5):
                query = partial(store.query, NAME, unit_vectors(30), limit=5, where=None)
                answer = thread.submit(query)
                square = (square @ square).softmax(dim=1)
                assert len(query()) == len(answer.result()) == 30

    with forked(work), forked(work):
        work()


def kill_writers(folder: str) -> None:
    faiss.DELETED_ROWS = 40  # compacts often
    for seed in range(5):
        moment = random.Random(seed)
        name = f"{NAME}-{seed}"
        make_store(folder).make(name, "cosine")
        reading, writing = os.pipe()

        def work(name: str, acknowledge: int) -> None:
            store = make_store(folder)
            for n in count():
                ids = [f"{n}-{m}" for m in range(50)]
                store.upsert(name, [entry(id_) for id_ in ids], unit_vectors(50))
                os.write(acknowledge, f"w {n}\n".encode())
                if n % 2:
                    store.delete(name, ids)
                    os.write(acknowledge, f"d {n}\n".encode())

        with forked(partial(work, name, writing)) as child, os.fdopen(reading) as acknowledged:
            os.close(writing)
            lines = [acknowledged.readline() for _ in range(moment.randrange(1, 30))]
            time.sleep(moment.random() / 100)  # to somewhere in the middle of a write
            os.kill(child, signal.SIGKILL)
            lines += acknowledged.readlines()
        check_acknowledged(folder, name, {line.strip() for line in lines})


def check_acknowledged(folder: str, name: str, lines: set[str]) -> None:
    store = make_store(folder)
    stored = set(store.id_page(name, limit=10**6, offset=0))
    last = max(int(line[2:]) for line in lines)
    for n in range(last + 2):
        ids = {f"{n}-{m}" for m in range(50)}
        if f"d {n}" in lines:
            assert not ids & stored
        elif n < last or (f"w {n}" in lines and n % 2 == 0):
            assert ids <= stored
        else:  # the process was killed while it wrote or deleted them
            assert ids & stored in (set(), ids)
    (row,) = store.query(name, unit_vectors(1), limit=10**6, where=None)
    assert {match.id for match in row} == stored
    store.upsert(name, [entry("new")], unit_vectors(1))
    assert set(make_store(folder).id_page(name, limit=10**6, offset=0)) == stored | {"new"}


def fill_the_disk(folder: str) -> None:
    """As far as the process may write: files of this size."""
    faiss.GROWTH_BYTES = 2**18
    store = make_store(folder)
    # The log is full first, then the vectors, when their file has to grow.
    for dimension, limit in ((16, 20_000), (512, 2**18 + 100)):
        store.drop(NAME)
        store.make(NAME, "cosine")
        write(store, [f"id-{n}" for n in range(20)], dimension)
        before = all_ids(store)
        resource.setrlimit(resource.RLIMIT_FSIZE, (limit, resource.RLIM_INFINITY))
        with pytest.raises(Unavailable, match=r"no space left for .*SLUICE_VECTORS_URL"):
            write_on(store, before, dimension)
        assert all_ids(store) == all_ids(make_store(folder)) == before
        assert len(store.query(NAME, unit_vectors(1, dimension), limit=9, where=None)[0]) == 9
        assert store.delete(NAME, before[:1]) == 1
        resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY,) * 2)
        write(store, [f"new-{limit}"], dimension)
        assert all_ids(make_store(folder)) == [*before[1:], f"new-{limit}"]


def write_on(store: Faiss, ids: list[str], dimension: int) -> None:
    """Write until it fails; `ids` gets what was acknowledged."""
    for n in count():
        more = [f"{len(ids)}-{n}-{m}" for m in range(30)]
        write(store, more, dimension)
        ids += more
