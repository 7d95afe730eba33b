"""Whatever is wrong with an archive or a mail is an error of the document or of a member."""

import contextlib

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shared.errors import DocumentError
from shared.formats import FORMATS
from tests.unit.compound_file import outlook_message
from tests.unit.documents import read
from tests.unit.test_members import sevenzipped, tarred, unpacked, zipped
from workers.ingest.load import loader_of

CONTENT = {"a.txt": b"one", "폴더/b.txt": b"two" * 50, "in.zip": zipped({"c.txt": b"three"})}
SAMPLES = {
    "a.zip": zipped(CONTENT),
    "a.tar": tarred(CONTENT),
    "a.7z": sevenzipped(CONTENT),
    "a.msg": outlook_message(
        subject="x", body="body", attachments=[{"name": "a.txt", "data": b"attached"}]
    ),
    "a.eml": loader_of(FORMATS["EML"]).example,
    "a.gz": loader_of(FORMATS["gzip"]).example,
    "a.bz2": loader_of(FORMATS["bzip2"]).example,
    "a.xz": loader_of(FORMATS["xz"]).example,
    "a.zst": loader_of(FORMATS["Zstandard"]).example,
}


@pytest.mark.parametrize("name", SAMPLES)
@settings(max_examples=40, deadline=None)
@given(data=st.data())
def test_damaged_containers_are_errors(name: str, data: st.DataObject) -> None:
    sample = bytearray(SAMPLES[name])
    for _ in range(data.draw(st.integers(1, 4))):
        at = data.draw(st.integers(0, len(sample) - 1))
        sample[at] = data.draw(st.integers(0, 255))
    end = data.draw(st.integers(len(sample) // 2, len(sample)))
    damaged = bytes(sample[:end]) if data.draw(st.booleans()) else bytes(sample)
    with contextlib.suppress(DocumentError):
        unpacked(damaged, name)
    if name in ("a.msg", "a.eml"):
        with contextlib.suppress(DocumentError):
            read(damaged, name)
