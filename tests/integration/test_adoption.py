"""Collections of LangChain and Chroma are adopted: from a server, a folder, and a FAISS folder."""

import hashlib
import pickle
import random
import tempfile
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from functools import cache
from itertools import count
from pathlib import Path
from typing import Any
from uuid import UUID, uuid4

import chromadb
import numpy as np
import pytest
import torch
from chromadb.api.client import Client
from chromadb.config import Settings as ChromaSettings
from langchain_chroma import Chroma
from langchain_core.documents import Document
from langchain_core.embeddings import Embeddings
from sentence_transformers import SentenceTransformer
from sqlalchemy import update

from cli.main import run
from shared.config import DEFAULT_EMBEDDING_MODEL, Settings
from shared.database.transaction import Ledger
from shared.errors import InvalidInput
from shared.kinds.ingest import INGEST, IngestInput
from shared.kinds.search import SearchOptions, SearchType
from shared.tables import Job, Step
from shared.urls import CollectionUrl, collection_url, folder_url
from shared.vector_stores import require_store
from shared.vocabulary import OPEN, Queue, State
from tests.api_server import served
from tests.integration import toy_embedder
from tests.integration.ingestion import (
    counts,
    hits_of,
    live_texts,
    new_collection,
    order_sources,
    stores_agree,
)
from tests.integration.job_runner import (
    drain,
    handlers,
    job_of,
    lose_workers,
    make_due,
    make_process,
)
from tests.integration.thread_worker import running_worker
from workers.attempts.process import Process
from workers.attempts.runner import run_next
from workers.ingest.adoption.chroma import ChromaOrigin
from workers.ingest.adoption.origin import Copy, OriginVector
from workers.models.locate import bundled
from workers.retrieval.embed import EMBEDDERS
from workers.retrieval.servers import store_of

SIMILARITY = SearchOptions(type=SearchType.SIMILARITY)
SUBJECTS = ("cats", "trains", "bread", "tea", "기차", "서버", "snow", "music")


@pytest.fixture
def process(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> Iterator[Process]:
    monkeypatch.setitem(EMBEDDERS, "toy", f"{toy_embedder.__name__}:load")
    process = make_process(
        settings,
        embed_step_chunks=8,
        outbound_allowed_hosts=("127.0.0.1",),
        source_folders=(folder_url(f"file://{tmp_path}"),),
    )
    yield process
    process.close()


class PlainEmbeddings(Embeddings):
    """As LangChain's HuggingFaceEmbeddings."""

    def embed_documents(self, texts: list[str]) -> list[list[float]]:
        plain = [text.replace("\n", " ") for text in texts]
        vectors: list[list[float]] = _plain_model().encode(plain).tolist()
        return vectors

    def embed_query(self, text: str) -> list[float]:
        return self.embed_documents([text])[0]


@cache
def _plain_model() -> SentenceTransformer:
    return SentenceTransformer(
        str(bundled(DEFAULT_EMBEDDING_MODEL)), device="cpu", model_kwargs={"dtype": torch.float32}
    )


def letters(texts: Sequence[str]) -> list[list[float]]:
    """Of the toy model, but not of length 1."""
    vectors = toy_embedder.Letters("toy").encode(texts, between=lambda: None)
    return (7 * vectors).tolist()  # type: ignore[no-any-return]  # numpy says Any


def langchain_documents() -> list[Document]:
    """As loaders and splitters make them: two files in pages, a table, a text without a source."""
    files = [
        Document(
            page_content=f"Page {page} of {name}:\nit tells of {subject} in all detail.",
            metadata={"source": name, "page": page, "start_index": 0, "total_pages": 4},
        )
        for name in ("docs/guide.pdf", "docs/안내서.pdf")
        for page, subject in enumerate(SUBJECTS[:4] if "guide" in name else SUBJECTS[4:])
    ]
    rows = [
        Document(
            page_content=f"name: {subject}\nprice: {n}", metadata={"source": "p.csv", "row": n}
        )
        for n, subject in enumerate(SUBJECTS)
    ]
    return [*files, *rows, Document(page_content="부산행 기차는 아홉 시에 출발한다.")]


def adopt(process: Process, collection: str, url: str, **fields: Any) -> Job:
    """Adopt to the end."""
    job_id = order_sources(process, collection, [{"type": "collection", "url": url, **fields}])
    drain(process)
    job = job_of(process, job_id)
    assert job.state == State.SUCCEEDED, job.error
    return job


def outcome(process: Process, job: Job) -> tuple[dict[str, int], dict[str, int]]:
    assert job.result is not None
    return counts(process, job.id), {k: n for k, n in job.result["adopted"].items() if n}


def texts_of(process: Process, collection: str, query: str, k: int) -> list[str]:
    return [hit.text for hit in hits_of(process, collection, query, k=k, options=SIMILARITY)]


def digest_of(folder: Path) -> dict[str, str]:
    return {
        str(path): hashlib.sha256(path.read_bytes()).hexdigest()
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }


@pytest.fixture
def folder_client(tmp_path: Path) -> Iterator[Callable[[], Client]]:
    """Opens the folder `chroma_db` as LangChain's `persist_directory` does."""
    opened: list[Client] = []

    def client() -> Client:
        made = chromadb.PersistentClient(
            path=tmp_path / "chroma_db", settings=ChromaSettings(anonymized_telemetry=False)
        )
        assert isinstance(made, Client)
        opened.append(made)
        return made

    yield client
    for one in opened:
        one.close()


def test_what_langchain_wrote_is_found_in_the_same_order(
    process: Process,
    tmp_path: Path,
    folder_client: Callable[[], Client],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    (own,) = require_store(process.settings).urls
    server = chromadb.HttpClient(
        host=own.host, port=own.port or 80, settings=ChromaSettings(anonymized_telemetry=False)
    )
    name, collection = f"lc-{uuid4().hex[:8]}", new_collection(process)
    url = f"chroma://{own.address}/{name}"
    theirs = Chroma.from_documents(
        langchain_documents(), PlainEmbeddings(), client=server, collection_name=name
    )

    job = adopt(process, collection, url, metadata={"team": "wiki"})

    assert outcome(process, job) == ({"added": 4}, {"kept": 17})
    assert ["script" in warning for warning in job.warnings] == [True]  # Hangul, for MiniLM
    queries = ("When does the train leave?", "price of tea", "고양이와 서버")
    for query in queries:
        found = theirs.similarity_search(query, k=6)
        assert texts_of(process, collection, query, 6) == [one.page_content for one in found]
    query = "Page 2 of docs/안내서.pdf:\nit tells of snow in all detail."
    (hit,) = hits_of(process, collection, query, k=1, options=SIMILARITY)
    assert hit.source == "docs/안내서.pdf"
    assert {"page": 2, "total_pages": 4, "team": "wiki"}.items() <= hit.metadata.items()
    assert "source" not in hit.metadata
    texts = live_texts(process, collection)
    assert [text.partition(" of")[0] for text in texts["docs/guide.pdf"]] == [
        f"Page {n}" for n in range(4)
    ]
    stores_agree(process, collection)

    # Only what has changed is adopted again.
    assert outcome(process, adopt(process, collection, url, metadata={"team": "wiki"})) == (
        {"skipped": 4}, {}
    )  # fmt: skip
    (row,) = theirs.get(where={"row": 3})["ids"]
    theirs.update_document(
        row, Document(page_content="name: tea\nprice: 99", metadata={"source": "p.csv", "row": 3})
    )
    read = ChromaOrigin.vectors

    def read_late(origin: ChromaOrigin, ids: Sequence[str]) -> dict[str, OriginVector]:
        later = Document(page_content="Snow.", metadata={"source": "p.csv", "row": 3})
        theirs.update_document(row, later)
        return read(origin, ids)

    with monkeypatch.context() as patched:
        patched.setattr(ChromaOrigin, "vectors", read_late)
        job = adopt(process, collection, url, metadata={"team": "wiki"})
    # The vector of the text that came later is not taken for that of the text before.
    assert outcome(process, job) == ({"replaced": 1, "skipped": 3}, {"kept": 7, "embedded": 1})
    assert live_texts(process, collection)["p.csv"][3] == "name: tea\nprice: 99"
    stores_agree(process, collection)
    text = texts_of(process, collection, "name: tea\nprice: 99", 1)
    assert text == ["name: tea\nprice: 99"]

    # A folder is not changed by that, and one of another metric gives the same.
    client = folder_client()
    theirs = Chroma.from_documents(
        langchain_documents(),
        PlainEmbeddings(),
        client=client,
        collection_name="langchain",
        collection_configuration={"hnsw": {"space": "cosine"}},
    )
    expected = {q: [d.page_content for d in theirs.similarity_search(q, k=6)] for q in queries}
    client.close()
    folder, before = tmp_path / "chroma_db", digest_of(tmp_path / "chroma_db")
    other = new_collection(process)
    job = adopt(process, other, f"file://{folder}#langchain")
    assert outcome(process, job) == ({"added": 4}, {"kept": 17})
    assert digest_of(folder) == before
    assert {query: texts_of(process, other, query, 6) for query in queries} == expected

    # Without a name, or with a wrong one, those that are there are listed.
    for place in (f"file://{folder}", f"chroma://{own.address}/none"):
        job = adopt(process, other, place)
        assert job.result is not None
        message = job.result["errors"][0]["message"]
        assert "(17 chunks)" in message, message
    # Another model has vectors of its own.
    toy = new_collection(process, embedding_model="toy/letters")
    job = adopt(process, toy, url)
    assert outcome(process, job) == ({"added": 4}, {"embedded": 17})
    assert "another dimension" in job.warnings[0]
    stores_agree(process, toy)
    server.delete_collection(name)


def test_odd_entries_are_counted_and_a_killed_adoption_goes_on(
    process: Process, tmp_path: Path, folder_client: Callable[[], Client]
) -> None:
    client = folder_client()
    theirs = client.create_collection("mixed", embedding_function=None)
    pages = [f"{word} and more of {word}" for word in ("tea", "snow", "bread", "music")] * 5
    pages = [f"{text} {n}" for n, text in enumerate(pages)]
    nfd = unicodedata.normalize("NFD", "결과.md")
    entries: list[tuple[str, str | None, dict[str, Any] | None, list[float]]] = [
        *(
            (f"p{n}", text, {"file_path": "book.md", "page": 20 - n, "tags": ["a", "b"]}, vector)
            for n, (text, vector) in enumerate(zip(pages, letters(pages), strict=True))
        ),
        ("twin", pages[3], {"file_path": "book.md", "page": 17, "tags": ["a", "b"]}, [1.0] * 26),
        ("nfd", "zz top", {"source": nfd, "document_id": "theirs"}, letters(["zz top"])[0]),
        ("nfc", "yy top", {"source": "결과.md", "big": "x" * 70_000}, letters(["yy top"])[0]),
        ("alone", "no source", None, letters(["no source"])[0]),
        ("empty", "", {"source": "결과.md"}, [1.0] * 26),
        ("vector alone", None, None, [1.0] * 26),
        ("book.md", "no part of it", None, letters(["no part of it"])[0]),
        (unicodedata.normalize("NFD", "회의"), "minutes", None, letters(["minutes"])[0]),
        ("odd", "odd name", {"source": "a\0b"}, letters(["odd name"])[0]),
        ("tiny", "tiny vector", {"source": "zeros.md"}, [1e-30] * 26),
        ("zeros", "not there", {"source": "zeros.md"}, [0.0] * 26),
        *((f"other {n}", f"other model {n}", {"source": "other.md"}, [float(n)] * 25 + [-9.0])
          for n in range(8)),
    ]  # fmt: skip
    for id_, text, metadata, vector in entries:
        theirs.add(
            ids=[id_],
            embeddings=[np.array(vector)],
            documents=None if text is None else [text],
            metadatas=None if metadata is None else [metadata],
        )
    client.close()
    url = f"file://{tmp_path}/chroma_db#mixed"
    collection = new_collection(process, embedding_model="toy/letters")
    job_id = order_sources(process, collection, [{"type": "collection", "url": url}])

    _kill_often(process, job_id, seed=3)

    job = job_of(process, job_id)
    done, adopted = outcome(process, job)
    assert done == {"added": 7, "failed": 2}
    assert adopted == {
        "kept": 25, "embedded": 10, "no_text": 1, "duplicates": 1, "bad_metadata": 1
    }  # fmt: skip
    assert job.result is not None
    messages = sorted(error["message"] for error in job.result["errors"])
    assert messages[0].startswith("chunk book.md: has no `source`")
    assert messages[1].startswith("vector alone: has no text")
    texts = live_texts(process, collection)
    assert texts["book.md"] == pages[::-1]
    assert set(texts) == {"book.md", "결과.md", "alone", "zeros.md", "other.md", "회의", "odd"}
    assert sorted(texts["결과.md"]) == ["yy top", "zz top"]
    hits = hits_of(process, collection, "zzz", k=1, options=SIMILARITY)
    assert hits[0].metadata == {"document_id": "theirs"}
    stores_agree(process, collection)
    embedded = [hit.score for hit in hits_of(process, collection, "other model 3", k=1)]
    assert embedded
    assert outcome(process, adopt(process, collection, url))[0] == {"skipped": 7, "failed": 2}

    # As other ingest jobs, it waits for a rebuild if the store has lost the collection.
    store_of(process).drop(collection)
    source = {"type": "collection", "url": url, "metadata": {"team": "wiki"}}
    job_id = order_sources(process, collection, [source])
    for _ in range(20):
        run_next(process, handlers(), Queue.INGEST.value)
    assert job_of(process, job_id).state == State.RUNNING


def _kill_often(process: Process, job_id: UUID, *, seed: int) -> None:
    """Run the job; attempts are lost before and behind calls of the store."""
    deadly, moment = set(random.Random(seed).sample(range(16), 6)), count()
    store = store_of(process)

    class Killed(BaseException):
        pass

    def killing(real: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            if next(moment) in deadly:
                raise Killed
            result = real(*args, **kwargs)
            if next(moment) in deadly:
                raise Killed
            return result

        return call

    calls = ("make", "upsert")
    for name in calls:
        setattr(store, name, killing(getattr(store, name)))
    deaths = 0
    try:
        while job_of(process, job_id).state in OPEN:
            for queue in (Queue.INGEST, Queue.EMBED):
                try:
                    run_next(process, handlers(), queue.value)
                except Killed:
                    deaths += 1
                    with process.ledger.begin() as session:  # deaths are not what is counted here
                        session.execute(
                            update(Step)
                            .where(Step.job_id == job_id)
                            .values(max_attempts=Step.max_attempts + 1)
                        )
                    lose_workers(process)
            make_due(process)
    finally:
        for name in calls:
            delattr(store, name)
    drain(process)
    assert deaths


@pytest.mark.filterwarnings("ignore:`langchain-community` is being sunset:DeprecationWarning")
def test_a_faiss_folder_is_adopted_and_no_other_pickle_is_read(
    process: Process, tmp_path: Path
) -> None:
    from langchain_community.vectorstores import FAISS

    nested = Document(
        page_content="snow in the mountains",
        metadata={"source": "s.html", "none": None, "points": {"x": [1, 2]}},
    )
    theirs = FAISS.from_documents([*langchain_documents(), nested], PlainEmbeddings())
    bomb: list[Any] = ["tick"]
    for _ in range(40):  # a few bytes in a pickle, and a trillion parts
        bomb = [bomb, bomb]
    lost = Document(page_content="It has no vector.", metadata={"source": "n.md", "bomb": bomb})
    theirs.docstore.add({"lost": lost})  # type: ignore[attr-defined]
    theirs.save_local(str(tmp_path / "faiss"))
    collection = new_collection(process)

    job = adopt(process, collection, f"file://{tmp_path}/faiss")

    assert outcome(process, job) == (
        {"added": 6}, {"kept": 18, "embedded": 1, "bad_metadata": 1}
    )  # fmt: skip
    for query in ("price of tea", "고양이와 서버"):
        found = theirs.similarity_search(query, k=6)
        assert texts_of(process, collection, query, 6) == [one.page_content for one in found]
    (hit,) = hits_of(process, collection, "snow in the mountains", k=1, options=SIMILARITY)
    assert hit.metadata == {"points": '{"x": [1, 2]}'}
    stores_agree(process, collection)

    class Evil:
        def __reduce__(self) -> Any:
            return Path.touch, (tmp_path / "touched",)

    (tmp_path / "faiss" / "index.pkl").write_bytes(pickle.dumps((Evil(), {})))
    job = adopt(process, collection, f"file://{tmp_path}/faiss")
    assert job.result is not None
    message = job.result["errors"][0]["message"]
    assert "it has an object of pathlib.Path" in message
    assert "Chroma.from_documents" in message
    assert not (tmp_path / "touched").exists()


def test_what_may_not_be_read_is_refused_at_once(process: Process, tmp_path: Path) -> None:
    (own,) = require_store(process.settings).urls

    def check(url: str, **changes: Any) -> None:
        body = {"collection": "wiki", "sources": [{"type": "collection", "url": url}]}
        settings = process.settings.model_copy(update=changes)
        INGEST.check(IngestInput.model_validate(body), settings)

    check(f"chroma://{own.address}/other")
    with pytest.raises(InvalidInput, match="Adopt it under another name"):
        check(f"chroma://{own.address}/wiki")
    with pytest.raises(InvalidInput, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
        check(f"chroma://{own.address}/other", outbound_allowed_hosts=())
    with pytest.raises(InvalidInput, match="SLUICE_SOURCE_FOLDERS"):
        check("file:///etc#passwd")
    (tmp_path / "link").symlink_to("/etc")
    collection = new_collection(process, embedding_model="toy/letters")
    for place, reason in (
        (f"file://{tmp_path}/link#x", "leads out"),
        (f"file://{tmp_path}/none#x", "no such folder"),
        (f"file://{tmp_path}#x", "neither chroma.sqlite3"),
    ):
        job = adopt(process, collection, place)
        assert job.result is not None
        assert reason in job.result["errors"][0]["message"]

    for text, normal in (
        ("chroma://h", "chroma://h:8000"),
        ("chroma+https://H/a%2Db?tenant=t", "chroma+https://h/a-b?tenant=t"),
        ("chroma://[::1]:1/x", "chroma://[::1]:1/x"),
        ("file:///srv//db/#위키", "file:///srv/db#%EC%9C%84%ED%82%A4"),
        ("file:///srv/db/?database=d#x", "file:///srv/db?database=d#x"),
    ):
        assert collection_url(text) == normal
        assert collection_url(normal) == normal
    assert CollectionUrl.read("file:///srv/db#위키").name == "위키"
    for text in ("http://h/a", "chroma://u:p@h/a", "chroma://h/a/b", "chroma://h/a?x=1", "wiki",
                 "file:///db?x=1#a"):  # fmt: skip
        with pytest.raises(ValueError, match=r"is no collection|user name|more behind|other"):
            collection_url(text)


def test_copies_that_a_killed_worker_has_left_are_deleted(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    used = Copy()
    for name in (f"{used.path.name}-left", "other"):  # nobody locks these
        (tmp_path / name).mkdir()
        for file in used.path.iterdir():
            (tmp_path / name / file.name).touch()
    new = Copy()
    assert {path.name for path in tmp_path.iterdir()} == {used.path.name, new.path.name, "other"}
    for copy in (used, new):
        copy.delete()
    assert [path.name for path in tmp_path.iterdir()] == ["other"]


def test_the_command_adopts_a_folder_and_says_what_became_of_it(
    settings: Settings,
    ledger: Ledger,  # noqa: ARG001 (empty tables)
    tmp_path: Path,
    folder_client: Callable[[], Client],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    client = folder_client()
    theirs = client.create_collection("langchain", embedding_function=None)
    texts = ["Tea is made of leaves.", "Trains run on rails."]
    theirs.add(
        ids=["a", "b"],
        documents=texts,
        embeddings=[np.array(vector) for vector in PlainEmbeddings().embed_documents(texts)],
        metadatas=[{"source": "tea.md"}, {"source": "trains.md"}],
    )
    client.close()
    name = f"wiki-{uuid4().hex[:8]}"
    folders = (folder_url(f"file://{tmp_path}"),)
    changed = settings.model_copy(update={"source_folders": folders})
    command = ["collections", "adopt", name, "--model", DEFAULT_EMBEDDING_MODEL, "--from"]
    monkeypatch.chdir(tmp_path)
    with served(changed) as url, running_worker(changed):
        monkeypatch.setenv("SLUICE_URL", url)
        assert run([*command, "/etc"]) != 0
        assert "SLUICE_SOURCE_FOLDERS" in capsys.readouterr().err
        assert run(["collections", "show", name]) != 0, "what is refused makes no collection"
        capsys.readouterr()

        assert run([*command, "./chroma_db#langchain"]) == 0
        shown = dict(line.split("\t") for line in capsys.readouterr().out.splitlines())
        assert (shown["added"], shown["vectors kept"], shown["embedded"]) == ("2", "2", "0")

        assert run([*command, "chroma_db"]) == 1
        assert "langchain (2 chunks)" in capsys.readouterr().err
