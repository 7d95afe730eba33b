"""A bulk job while its servers and workers are killed: it completes by itself, exactly."""

from tests.e2e import corpus
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack

DOCUMENTS = 170
COLLECTION = "faults"


def test_a_bulk_job_survives_the_loss_of_everything_but_postgres(stack: LiveStack) -> None:
    documents = corpus.samples(DOCUMENTS, seed=COLLECTION)
    folder = stack.home.parent / COLLECTION
    corpus.write(folder, documents)
    expected_chunks = sum(document.chunks for document in documents)
    command = ("ingest", COLLECTION, "-c", COLLECTION, *corpus.CHUNKING_OPTIONS, "--json")

    with stack.start(*command) as run:
        job_id = stack.until_job_of(COLLECTION)

        def at(done: int) -> None:
            """Wait until so many documents are done; the job must still be at it."""
            until(lambda: stack.progress(job_id) >= done, f"{done} documents are done")
            assert stack.state(job_id) == "running"
            assert run.is_running()

        at(8)
        stack.kill("cpu-1", group=True)
        at(30)
        stack.kill_pool(at_most=1)
        at(50)
        stack.lose_redis()
        at(70)
        stack.kill("chroma")
        stack.kill_and_await("api")
        stack.pid("chroma")
        at(100)
        stack.kill("cpu-1")

        done = run.finish()
    assert done.code == 0, done.err
    report = done.document
    counts = {"added": DOCUMENTS, "replaced": 0, "skipped": 0, "failed": 0, "erased": 0}
    assert report["documents"] == counts
    assert report["chunks"] == expected_chunks
    assert report["errors"] == []
    assert stack.state(job_id) == "succeeded"
    stack.until_whole()
    stack.until_tidy(COLLECTION)
    stack.check_agreement(COLLECTION, chunks=expected_chunks)
    sources = stack.value(
        "SELECT array_agg(d.source ORDER BY d.source) FROM documents d "
        "JOIN collections c ON c.id = d.collection_id WHERE c.name = %s",
        COLLECTION,
    )
    assert sources == sorted(f"{COLLECTION}/{document.name}" for document in documents)

    again = stack.sluice(*command)
    assert again.code == 0, again.err
    assert again.document["documents"]["skipped"] == DOCUMENTS
    assert again.document["uploaded_files"] == 0
    assert again.document["reused_files"] == DOCUMENTS
    stack.check_agreement(COLLECTION, chunks=expected_chunks)
