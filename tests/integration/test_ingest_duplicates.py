"""The same bytes under another name are noticed, or left out."""

from tests.integration.ingestion import (
    CATS,
    TRAINS,
    counts,
    ingest,
    live_texts,
    order_sources,
    stores_agree,
    upload,
)
from tests.integration.job_runner import drain
from workers.attempts.process import Process


def test_a_content_under_another_name_is_told_of(process: Process, collection: str) -> None:
    _, job = ingest(process, collection, {"a.txt": CATS, "b.txt": TRAINS})
    assert job.warnings == []
    _, job = ingest(process, collection, {"c.txt": CATS, "d.txt": CATS, "b.txt": TRAINS})
    (warning,) = job.warnings
    assert warning.startswith("2 documents have the same content as others")
    assert "c.txt (as a.txt), d.txt (as " in warning
    _, job = ingest(process, collection, {"c.txt": CATS})
    assert job.warnings == []


def test_a_content_under_another_name_may_be_left_out(process: Process, collection: str) -> None:
    ingest(process, collection, {"a.txt": CATS, "b.txt": TRAINS})
    texts = {"c.txt": CATS, "new.txt": "New.", "new-2.txt": "New.", "b.txt": CATS, "a.txt": CATS}
    outcomes, job = ingest(process, collection, texts, on_duplicate="skip")
    # What is there under its own name is no duplicate; and its old content does not stay.
    assert outcomes == {"added": 1, "replaced": 1, "skipped": 3}
    assert live_texts(process, collection).keys() == {"a.txt", "b.txt", "new.txt"}
    (replaced, skipped) = sorted(job.warnings)
    assert "b.txt (as a.txt)" in replaced
    assert "c.txt (as " in skipped
    assert "new-2.txt (as new.txt)" in skipped
    stores_agree(process, collection)


def test_the_same_bytes_of_another_type_or_charset_replace(
    process: Process, collection: str
) -> None:
    data = "<p>영업 시간은 아홉 시부터입니다.</p>".encode("cp949")
    for content_type, encoding, outcome, text in (
        ("text/plain", None, "added", "<p>영업 시간은 아홉 시부터입니다.</p>"),
        ("text/plain", None, "skipped", "<p>영업 시간은 아홉 시부터입니다.</p>"),
        ("text/html", None, "replaced", "영업 시간은 아홉 시부터입니다."),
        ("text/html; charset=euc-kr", None, "replaced", "영업 시간은 아홉 시부터입니다."),
        ("text/html; charset=euc-kr", "cp949", "replaced", "영업 시간은 아홉 시부터입니다."),
    ):
        file_id = upload(process, "a", data, content_type)
        source = {"type": "file", "file_id": file_id}
        job_id = order_sources(process, collection, [source], encoding=encoding)
        drain(process)
        assert counts(process, job_id) == {outcome: 1}
        assert live_texts(process, collection) == {"a": [text]}
