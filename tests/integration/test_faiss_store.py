"""The store FAISS with several processes, killed ones, damaged files and full disks."""

import fcntl
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest

from shared.errors import ConfigurationError, Permanent, Unavailable
from shared.kinds import registry as kinds
from tests.integration import faiss_programs as programs
from tests.integration.faiss_programs import NAME, all_ids, make_store, unit_vectors, write
from tests.integration.ingestion import (
    CATS,
    TRAINS,
    ingest,
    new_collection,
    pages,
    search,
    stores_agree,
    vector_ids,
)
from tests.integration.job_runner import drain, submit
from tests.integration.vector_store_contract import along, entry, reads
from workers.attempts.process import Process
from workers.retrieval.servers import store_of
from workers.retrieval.store import MissingCollection
from workers.retrieval.stores.faiss import Faiss, folder_name


@pytest.fixture
def store(tmp_path: Path) -> Iterator[Faiss]:
    store = make_store(tmp_path)
    store.make(NAME, "cosine")
    yield store
    store.close()


def run_program(program: Callable[[str], object], folder: Path) -> None:
    """Call a function of `faiss_programs.py` in a process of its own, which has but one thread and
    so may fork."""
    code = f"import sys; from {programs.__name__} import *; {program.__name__}(sys.argv[1])"
    subprocess.run(
        [sys.executable, "-c", code, str(folder)],
        cwd=Path(__file__).parents[2],
        env={**os.environ, "OMP_NUM_THREADS": "2"},
        check=True,
    )


# Names


def test_no_name_leads_out_of_the_folder(store: Faiss, tmp_path: Path) -> None:
    write(store, ["a"])
    other = ("..", ".", "../other", "/tmp/x", "a/b", "Papers", "PAPERS", ".dropped-1", "~x", "\0")
    for name in other:
        store.make(name, "cosine")
        store.upsert(name, [entry("b")], along(0))
        assert store.id_page(name, limit=9, offset=0) == ["b"], name
        assert (tmp_path / folder_name(name)).parent == tmp_path, name
        assert len(list(tmp_path.iterdir())) == 2, name
        assert store.drop(name) == 1, name
        assert all_ids(store) == ["a"], name


# Searches


def test_searches_are_exact_also_after_a_restart(store: Faiss, tmp_path: Path) -> None:
    vectors = unit_vectors(5000)
    entries = [entry(f"id-{n}", {"n": n, "third": n % 3 == 0}) for n in range(5000)]
    store.upsert(NAME, entries, vectors)
    store.delete(NAME, [f"id-{n}" for n in range(0, 5000, 10)])
    queries = unit_vectors(7, seed=2)
    again = make_store(tmp_path)
    for where, fits in (
        (None, [n for n in range(5000) if n % 10]),
        (reads({"third": True}), [n for n in range(5000) if n % 10 and n % 3 == 0]),
        (reads({"n": {"$gte": 4990}}), list(range(4991, 5000))),
    ):
        rows = again.query(NAME, queries, limit=300, where=where)
        scores = queries @ vectors[fits].T
        for row, exact in zip(rows, scores, strict=True):
            best = np.argsort(-exact)[:300]
            assert [match.id for match in row] == [f"id-{fits[n]}" for n in best]
            assert [match.score for match in row] == pytest.approx(exact[best], abs=1e-5)
    again.close()


def test_what_a_filter_matched_is_known_of_new_chunks_too(store: Faiss) -> None:
    where = reads({"city": "caf\u00e9"})

    def found() -> set[str]:
        ((*matches,),) = store.query(NAME, along(0), limit=9, where=where)
        return {match.id for match in matches}

    store.upsert(NAME, [entry("a", {"city": "cafe\u0301"}), entry("b")], along(0, 1))
    assert found() == {"a"}
    store.upsert(NAME, [entry("b", {"city": "caf\u00e9"}), entry("c")], along(0, 1))
    assert found() == {"a", "b"}
    store.delete(NAME, ["a"])
    assert found() == {"b"}


def test_vectors_of_another_model_are_refused(store: Faiss) -> None:
    store.upsert(NAME, [entry("a")], along(0))
    with pytest.raises(Permanent, match="collections rebuild"):
        store.upsert(NAME, [entry("b")], unit_vectors(1))
    with pytest.raises(Permanent, match="3 numbers, not of 16"):
        store.query(NAME, unit_vectors(1), limit=1, where=None)
    assert all_ids(store) == ["a"]


# Several processes


def test_what_another_process_wrote_is_found_at_once(store: Faiss, tmp_path: Path) -> None:
    other = make_store(tmp_path)
    for n in range(20):
        store.upsert(NAME, [entry(f"a-{n}")], along(0))
        other.upsert(NAME, [entry(f"b-{n}")], along(1))
        assert len(other.query(NAME, along(0), limit=99, where=None)[0]) == 2 * n + 2
        assert len(all_ids(store)) == 2 * n + 2
    assert other.delete(NAME, ["a-0"]) == 1
    assert "a-0" not in store.vectors(NAME, ["a-0", "a-1"])
    assert store.drop(NAME) == 39
    with pytest.raises(MissingCollection, match="collections rebuild"):
        other.query(NAME, along(0), limit=1, where=None)
    with pytest.raises(MissingCollection):
        other.upsert(NAME, [entry("c")], along(0))
    store.make(NAME, "cosine")
    assert all_ids(other) == []
    other.close()


def test_processes_write_and_read_at_the_same_time(store: Faiss, tmp_path: Path) -> None:
    run_program(programs.write_and_read, tmp_path)
    assert len(all_ids(store)) == 150


def test_who_waits_too_long_for_others_tries_again_later(store: Faiss, tmp_path: Path) -> None:
    hasty = make_store(tmp_path, request_timeout_s=0.05)
    with (tmp_path / NAME / "lock").open() as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        with pytest.raises(Unavailable, match="SLUICE_REQUEST_TIMEOUT_S"):
            hasty.upsert(NAME, [entry("a")], along(0))
        assert hasty.query(NAME, along(0), limit=1, where=None) == [[]]  # readers do not wait
    hasty.upsert(NAME, [entry("a")], along(0))
    assert all_ids(store) == ["a"]
    hasty.close()


def test_it_runs_beside_torch_in_threads_and_forked_processes(store: Faiss, tmp_path: Path) -> None:
    write(store, [f"id-{n}" for n in range(3000)])
    run_program(programs.search_beside_torch, tmp_path)


# Killed processes


def test_a_process_killed_while_it_writes_loses_nothing(tmp_path: Path) -> None:
    run_program(programs.kill_writers, tmp_path)


def test_a_write_that_ends_at_any_byte_is_there_or_not(store: Faiss, tmp_path: Path) -> None:
    log = tmp_path / NAME / "log-1"
    write(store, ["a", "b"])
    lengths = [log.stat().st_size]
    write(store, ["c"])
    lengths.append(log.stat().st_size)
    store.delete(NAME, ["a"])
    content = log.read_bytes()
    states = [["a", "b"], ["a", "b", "c"], ["b", "c"]]
    for end in range(lengths[0], len(content) + 1):
        state = states[sum(end >= length for length in (lengths[1], len(content)))]
        tail = (b"", bytes(7), bytes(5000))[end % 3]  # a power cut may leave zeros
        log.write_bytes(content[:end] + tail)
        again = make_store(tmp_path)
        assert all_ids(again) == state, end
        again.upsert(NAME, [entry("new")], unit_vectors(1))
        assert all_ids(again) == [*state, "new"]
        again.close()


def test_a_compaction_that_was_killed_is_done_again(store: Faiss, tmp_path: Path) -> None:
    folder = tmp_path / NAME
    write(store, [f"id-{n}" for n in range(2000)])
    shutil.copytree(folder, tmp_path / "old")
    assert store.delete(NAME, [f"id-{n}" for n in range(1500)]) == 1500
    files = {"lock", "log-2", "vectors-2"}
    assert {path.name for path in folder.iterdir()} == files
    assert (folder / "log-2").stat().st_size < (tmp_path / "old" / "log-1").stat().st_size / 2
    # Killed before the old files were removed: they count no more, and hinder nobody.
    for name in ("log-1", "vectors-1"):
        shutil.copy(tmp_path / "old" / name, folder / name)
    again = make_store(tmp_path)
    assert len(all_ids(again)) == 500
    write(again, ["new"])
    assert {path.name for path in folder.iterdir()} == files
    # Killed before the new generation counted.
    (folder / "vectors-3").write_bytes(b"half")
    (folder / "log.new").write_bytes(b"half")
    assert len(all_ids(again)) == 501
    write(again, [f"new-{n}" for n in range(10)])
    assert {path.name for path in folder.iterdir()} == files
    assert len(all_ids(store)) == 511
    again.close()


def test_a_drop_that_was_killed_is_finished_by_the_next(store: Faiss, tmp_path: Path) -> None:
    shutil.copytree(tmp_path / NAME, tmp_path / ".dropped-0")
    store.make("other", "cosine")
    assert not (tmp_path / ".dropped-0").exists()


# Damage, full disks, folders that cannot be used


def flip(path: Path, position: int) -> None:
    content = bytearray(path.read_bytes())
    content[position] ^= 1
    path.write_bytes(content)


def test_a_byte_that_changed_is_damage_that_is_told(store: Faiss, tmp_path: Path) -> None:
    write(store, [f"id-{n}" for n in range(200)])
    for file, position in (
        ("vectors-1", 0), ("vectors-1", 200 * 64 - 1), ("log-1", 0), ("log-1", 150), ("log-1", -1),
        ("log-1", -6), ("log-1", -300), ("log-1", 12),
    ):  # fmt: skip
        folder = tmp_path / f"{file}{position}"
        shutil.copytree(tmp_path / NAME, folder / NAME)
        flip(folder / NAME / file, position)
        again = make_store(folder)
        refused = pytest.raises(Permanent, match=r"damaged: .* `sluice collections rebuild NAME`")
        with refused:
            again.query(NAME, unit_vectors(1), limit=1, where=None)
        with refused:
            write(again, ["new"])
        with refused:
            again.delete(NAME, ["id-0"])
        again.drop(NAME)
        again.make(NAME, "cosine")
        write(again, ["new"])
        assert all_ids(again) == ["new"], folder
        again.close()


def test_a_file_that_is_lost_or_shorter_is_damage(store: Faiss, tmp_path: Path) -> None:
    write(store, ["a", "b"])
    vectors = tmp_path / NAME / "vectors-1"
    with vectors.open("rb+") as file:
        file.truncate(64)
    with pytest.raises(Permanent, match="shorter"):
        store.query(NAME, unit_vectors(1), limit=1, where=None)
    vectors.unlink()
    with pytest.raises(Permanent, match="no vectors-1"):
        store.query(NAME, unit_vectors(1), limit=1, where=None)
    (tmp_path / NAME / "log-1").unlink()
    with pytest.raises(MissingCollection):
        store.query(NAME, unit_vectors(1), limit=1, where=None)


def test_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    run_program(programs.fill_the_disk, tmp_path)


def test_a_folder_that_cannot_be_used_names_the_setting(tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.touch()
    for folder in (file, file / "below"):
        with pytest.raises(ConfigurationError, match="SLUICE_VECTORS_URL"):
            make_store(folder).make(NAME, "cosine")
    away = make_store(tmp_path / "not mounted")
    for call in (
        lambda: away.make(NAME, "cosine"),
        lambda: away.query(NAME, unit_vectors(1, 3), limit=1, where=None),
        lambda: away.delete(NAME, ["a"]),  # it may be back with what was to be erased
        lambda: away.drop(NAME),
    ):
        with pytest.raises(Unavailable, match="mkdir -p"):
            call()


# Jobs


@pytest.fixture
def process(process_with_store: Callable[[str], Process], tmp_path: Path) -> Process:
    (tmp_path / "vectors").mkdir()
    return process_with_store(f"faiss://{tmp_path}/vectors")


def test_documents_are_ingested_searched_replaced_and_erased(process: Process) -> None:
    collection = new_collection(process)
    texts = {"cats": CATS, "trains": TRAINS, "walls": pages("wall", 10)}
    assert ingest(process, collection, texts, metadata={"floor": 1})[0] == {"added": 3}
    assert isinstance(store_of(process), Faiss)
    assert search(process, collection, "When does a train leave?", k=1)[0].source == "trains"
    assert ingest(process, collection, {"cats": TRAINS}, metadata={"floor": 2})[0] == {
        "replaced": 1
    }
    stores_agree(process, collection)
    submit(process, kinds.ERASE, {"collection": collection})
    drain(process)
    assert not vector_ids(process, collection)


def test_a_filter_that_fits_few_passages_finds_all_of_them(process: Process) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"walls": pages("wall", 30)}, metadata={"floor": 1})
    ingest(process, collection, {"cats": CATS}, metadata={"floor": 2})
    for type_ in ("similarity", "mmr", "hybrid"):
        options = {"type": type_, "filter": {"floor": {"$gt": 1}}}
        hits = search(process, collection, "Which walls matter?", k=9, search=options)
        assert {hit.source for hit in hits} == {"cats"}
        assert "".join(hit.text for hit in hits).count("ats sleep") == 1
    hits = search(
        process, collection, "cats", k=20, search={"type": "similarity", "filter": {"floor": 1}}
    )
    assert {hit.source for hit in hits} == {"walls"}
    assert len(hits) == 20


def test_collections_that_are_damaged_say_what_to_do(process: Process, tmp_path: Path) -> None:
    collection = new_collection(process)
    ingest(process, collection, {"cats": CATS})
    flip(tmp_path / "vectors" / collection / "vectors-1", 0)
    again = make_store(tmp_path / "vectors")
    with pytest.raises(Permanent, match="sluice collections rebuild"):
        again.query(collection, unit_vectors(1, 384), limit=1, where=None)
    again.close()
