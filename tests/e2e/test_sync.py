"""`sluice sync` on a running system: what differs is touched, wherever it was killed before."""

from tests.e2e.stack import LiveStack

DOCUMENTS = 60
COLLECTION = "synchronized"


def test_a_folder_is_kept_wherever_the_command_was_killed(stack: LiveStack) -> None:
    folder = stack.home.parent / COLLECTION
    folder.mkdir()
    for n in range(DOCUMENTS):
        (folder / f"{n}.txt").write_text(f"Text {n} is about matter {n}.")
    command = ("sync", COLLECTION, "-c", COLLECTION, "--json")
    with stack.start(*command):
        stack.until_job_of(COLLECTION)
    done = stack.sluice(*command)
    assert done.code == 0, done.err
    assert done.document["added"] != [] or done.document["unchanged"] > 0
    assert sources(stack) == {f"{COLLECTION}/{n}.txt" for n in range(DOCUMENTS)}

    for n in range(3):
        (folder / f"{n}.txt").write_text(f"Text {n} is another one.")
    for n in range(10, 12):
        (folder / f"{n}.txt").unlink()
    (folder / "new.txt").write_text("A new text.")
    would = stack.sluice(*command, "--dry-run")
    assert would.document["is_dry_run"]
    names = [f"{COLLECTION}/{n}.txt" for n in range(3)]
    done = stack.sluice(*command)
    assert done.code == 0, done.err
    for document in (would.document, done.document):
        assert document["added"] == [f"{COLLECTION}/new.txt"]
        assert document["replaced"] == names
        assert document["erased"] == [f"{COLLECTION}/10.txt", f"{COLLECTION}/11.txt"]
        assert document["unchanged"] == DOCUMENTS - 5
    assert done.document["ingest"] == {"added": 1, "replaced": 3, "skipped": 0, "failed": 0}
    assert len(sources(stack)) == DOCUMENTS - 1
    again = stack.sluice(*command)
    assert (again.document["unchanged"], again.document["ingest"]) == (DOCUMENTS - 1, None)

    # An empty folder is rather a disk that is not there.
    for path in folder.iterdir():
        path.unlink()
    refused = stack.sluice(*command)
    assert refused.code != 0
    assert "--yes" in refused.err
    assert len(sources(stack)) == DOCUMENTS - 1
    assert stack.sluice(*command, "--yes").code == 0
    assert sources(stack) == set()


def sources(stack: LiveStack) -> set[str]:
    return set(
        stack.value(
            "SELECT coalesce(array_agg(d.source), '{}') FROM documents d "
            "JOIN collections c ON c.id = d.collection_id "
            "WHERE c.name = %s AND d.live_version_id IS NOT NULL",
            COLLECTION,
        )
    )
