"""The documents within archives and mails, and what is refused of them."""

import bz2
import gzip
import io
import lzma
import struct
import tarfile
import zipfile
from collections.abc import Callable, Mapping
from typing import Any

import py7zr
import pytest
import zstandard

from shared.config import IngestSettings
from shared.errors import DocumentError
from shared.kinds.ingest import LoadOptions
from workers.ingest.formats.container import Member
from workers.ingest.load import members

Content = Mapping[str, bytes]
CONTENT = {"hours.txt": b"We open at nine.", "폴더/영업 시간.txt": "아홉 시에 엽니다.".encode()}


def zipped(content: Content, *, store: bool = False) -> bytes:
    buffer = io.BytesIO()
    method = zipfile.ZIP_STORED if store else zipfile.ZIP_DEFLATED
    with zipfile.ZipFile(buffer, "w", method) as archive:
        for name, data in content.items():
            archive.writestr(name, data)
    return buffer.getvalue()


def tarred(content: Content, **kind: Any) -> bytes:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w", **kind) as archive:
        for name, data in content.items():
            entry = tarfile.TarInfo(name)
            entry.size = len(data)
            archive.addfile(entry, io.BytesIO(data))
    return buffer.getvalue()


def sevenzipped(content: Content, **options: Any) -> bytes:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w", **options) as archive:
        for name, data in content.items():
            archive.writestr(data, name)
    return buffer.getvalue()


def test_members_of_one_name_in_a_7z_archive() -> None:
    buffer = io.BytesIO()
    with py7zr.SevenZipFile(buffer, "w") as archive:
        for name, data in (("a", b"1"), ("a", b"22"), ("a_0", b"333"), ("b", b"4"), ("a", b"5")):
            archive.writestr(data, name)
    listed = unpacked(buffer.getvalue(), "x.7z")
    assert {one.name: one.data for one in listed if not one.error} == {
        "x.7z!/a": b"1", "x.7z!/b": b"4",
    }  # fmt: skip
    errors = sorted((one.name, one.error[:20]) for one in listed if one.error)
    assert [name for name, _ in errors] == ["x.7z!/a", "x.7z!/a", "x.7z!/a_0"]


def unpacked(data: bytes, name: str = "a.zip", **settings: Any) -> list[Member]:
    return list(
        members(
            data,
            name=name,
            content_type=None,
            options=LoadOptions(),
            settings=IngestSettings.model_construct(**settings),
        )
    )


def contents(listed: list[Member]) -> dict[str, bytes]:
    assert not any(member.error for member in listed), listed
    return {member.name: member.data for member in listed}


def errors(listed: list[Member]) -> dict[str, str]:
    return {member.name: member.error for member in listed if member.error}


def refusal(data: bytes, name: str = "a.zip", **settings: Any) -> str:
    with pytest.raises(DocumentError) as caught:
        unpacked(data, name, **settings)
    assert caught.value.message.startswith(name)
    return caught.value.message


# What is in them


@pytest.mark.parametrize(
    ("name", "pack"),
    [
        ("a.zip", zipped),
        ("a.tar", tarred),
        ("a.tar.gz", lambda content: gzip.compress(tarred(content))),
        ("a.tgz", lambda content: gzip.compress(tarred(content))),
        ("a.tar.bz2", lambda content: bz2.compress(tarred(content))),
        ("a.tar.xz", lambda content: lzma.compress(tarred(content))),
        ("a.tar.zst", lambda content: zstandard.compress(tarred(content))),
        ("a.7z", sevenzipped),
        ("a", zipped),
        ("a.txt", sevenzipped),
    ],
)
def test_each_file_of_an_archive_is_a_document(name: str, pack: Callable[[Content], bytes]) -> None:
    assert contents(unpacked(pack(CONTENT), name)) == {
        f"{name}!/{path}": data for path, data in CONTENT.items()
    }


@pytest.mark.parametrize("pack", [gzip.compress, bz2.compress, lzma.compress, zstandard.compress])
def test_a_packed_file_is_one_document(pack: Callable[[bytes], bytes]) -> None:
    listed = unpacked(pack(b"a log\n" * 1000), "logs/app.log.gz")
    assert contents(listed) == {"logs/app.log.gz!/app.log": b"a log\n" * 1000}


def test_archives_and_mails_lie_in_each_other() -> None:
    inner = gzip.compress(tarred({"b/c.txt": b"deep"}))
    mail = (
        b"Subject: x\nMIME-Version: 1.0\nContent-Type: multipart/mixed; boundary=B\n\n--B\n\nbody\n"
    )
    mail += b'--B\nContent-Disposition: attachment; filename="d.txt"\n\nattached\n--B--\n'
    listed = contents(unpacked(zipped({"in.tar.gz": inner, "mail.eml": mail, "a.txt": b"x"})))
    assert listed == {
        "a.zip!/in.tar.gz!/b/c.txt": b"deep",
        "a.zip!/mail.eml": mail,
        "a.zip!/mail.eml!/d.txt": b"attached",
        "a.zip!/a.txt": b"x",
    }


def test_what_systems_leave_behind_is_no_document() -> None:
    names = ["__MACOSX/._a.txt", "a/.DS_Store", "Thumbs.db", "b/._c.txt", "b/c.txt"]
    assert [m.name for m in unpacked(zipped(dict.fromkeys(names, b"x")))] == ["a.zip!/b/c.txt"]


# Names


def renamed(data: bytes, names: Mapping[str, bytes]) -> bytes:
    """The archive with other bytes of the same number in names."""
    for name, written in names.items():
        assert len(name) == len(written)
        data = data.replace(name.encode(), written)
    return data


@pytest.mark.parametrize(
    ("name", "encoding"),
    [
        ("영업 시간.txt", "cp949"),
        ("영업 시간.txt", "utf-8"),
        ("똠방.md", "cp949"),
        ("営業時間のお知らせ.txt", "cp932"),
        ("日本語.txt", "cp932"),
        ("工作报告.docx", "gb18030"),
        ("Prüfung.txt", "cp437"),
        ("Café noir.txt", "cp437"),
        ("한글/가.txt", "cp949"),
    ],
)
def test_names_without_a_mark_are_read_as_what_they_look_like(name: str, encoding: str) -> None:
    written = name.encode(encoding)
    data = renamed(zipped({"x" * len(written): b"1"}), {"x" * len(written): written})
    assert [m.name for m in unpacked(data)] == [f"a.zip!/{name}"]


def test_names_are_in_nfc_whatever_packed_them() -> None:
    decomposed = "각.txt"
    for data in (zipped({decomposed: b"1"}), tarred({decomposed: b"1"})):
        assert [m.name for m in unpacked(data)] == ["a.zip!/각.txt"]


def test_a_tar_has_names_in_cp949_too() -> None:
    data = tarred({"시간.txt": b"1"}, encoding="cp949", format=tarfile.GNU_FORMAT)
    assert [m.name for m in unpacked(data, "a.tar")] == ["a.tar!/시간.txt"]


@pytest.mark.parametrize("pack", [zipped, tarred])
@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("../../etc/passwd", "leads out"),
        ("a/../../b.txt", "leads out"),
        ("/etc/passwd", "absolute"),
        ("C:/Windows/win.ini", "absolute"),
        ("..\\..\\b.txt", "leads out"),
        ("n" * 1100 + ".txt", "too long"),
        ("a\nb.txt", "cannot be shown"),
    ],
)
def test_a_name_that_leads_elsewhere_is_an_error_of_that_member(
    pack: Callable[[Content], bytes], name: str, message: str
) -> None:
    listed = unpacked(pack({name: b"evil", "good.txt": b"good"}), "a.tar")
    (error,) = errors(listed).values()
    assert message in error
    assert [m.data for m in listed if not m.error] == [b"good"]
    assert all(len(m.name) <= 1024 and m.name.startswith("a.tar!/") for m in listed)


def test_of_equal_names_the_first_is_read() -> None:
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as archive:
        archive.writestr("a.txt", "first")
        with pytest.warns(UserWarning, match="Duplicate name"):
            archive.writestr("a.txt", "second")
    listed = unpacked(buffer.getvalue())
    assert [(m.data, bool(m.error)) for m in listed] == [(b"first", False), (b"", True)]
    assert "comes twice" in listed[1].error


# What is no file


def test_links_and_devices_are_errors_of_themselves() -> None:
    buffer = io.BytesIO()
    with tarfile.open(fileobj=buffer, mode="w") as archive:
        for name, kind in (("s", tarfile.SYMTYPE), ("h", tarfile.LNKTYPE), ("p", tarfile.FIFOTYPE)):
            entry = tarfile.TarInfo(name)
            entry.type, entry.linkname = kind, "/etc/passwd"
            archive.addfile(entry)
        archive.addfile(tarfile.TarInfo("empty.txt"))
    listed = unpacked(buffer.getvalue(), "a.tar")
    assert [m.name for m in listed if not m.error] == ["a.tar!/empty.txt"]
    assert [("link" in e, "device" in e) for e in errors(listed).values()] == [
        (True, False), (True, False), (False, True),
    ]  # fmt: skip
    entry_ = zipfile.ZipInfo("link")
    entry_.create_system, entry_.external_attr = 3, 0o120777 << 16
    buffer = io.BytesIO()
    with zipfile.ZipFile(buffer, "w") as zip_archive:
        zip_archive.writestr(entry_, "/etc/passwd")
    assert "link" in errors(unpacked(buffer.getvalue()))["a.zip!/link"]


def test_what_is_encrypted_says_so() -> None:
    data = bytearray(zipped({"a.txt": b"secret", "b.txt": b"open"}, store=True))
    for mark, offset in ((b"PK\x03\x04", 6), (b"PK\x01\x02", 8)):
        data[data.index(mark) + offset] |= 1
    listed = unpacked(bytes(data))
    assert "encrypted" in errors(listed)["a.zip!/a.txt"]
    assert [m.data for m in listed if not m.error] == [b"open"]
    assert "encrypted" in refusal(sevenzipped(CONTENT, password="pw"), "a.7z")


def test_a_damaged_member_is_an_error_and_the_others_are_read() -> None:
    data = zipped({"a.txt": b"first" * 9, "b.txt": b"second"}, store=True)
    listed = unpacked(data.replace(b"firstfirst", b"fristfrist"))
    assert "damaged" in errors(listed)["a.zip!/a.txt"]
    assert [m.data for m in listed if not m.error] == [b"second"]
    listed = unpacked(zipped({"in.zip": zipped(CONTENT)[:-30], "b.txt": b"second"}))
    assert "a.zip!/in.zip" in errors(listed)
    assert [m.data for m in listed if not m.error] == [b"second"]


@pytest.mark.parametrize("pack", [zipped, sevenzipped])
def test_an_archive_that_is_cut_off_is_refused(pack: Callable[[Content], bytes]) -> None:
    data = pack({"a.txt": bytes(range(256)) * 100})
    assert refusal(data[: len(data) // 2], "a.zip" if pack is zipped else "a.7z")


def test_a_tar_that_is_cut_off_is_refused() -> None:
    data = tarred({"a.txt": bytes(range(256)) * 100})
    assert refusal(data[:10_000], "a.tar")
    assert refusal(gzip.compress(data)[:-20], "a.tar.gz")


# Bombs


def test_too_many_bytes_are_refused_before_they_are_unpacked() -> None:
    data = zipped({"zeros": bytes(3 * 2**20), "b.txt": b"x"})
    assert "SLUICE_ARCHIVE_LIMIT_BYTES" in refusal(data, archive_limit_bytes=2**20)
    packed = gzip.compress(tarred({"zeros": bytes(3 * 2**20)}))
    assert "SLUICE_ARCHIVE_LIMIT_BYTES" in refusal(packed, "a.tgz", archive_limit_bytes=2**20)
    data = sevenzipped({"zeros": bytes(3 * 2**20)})
    assert "SLUICE_ARCHIVE_LIMIT_BYTES" in refusal(data, "a.7z", archive_limit_bytes=2**20)


def test_what_is_packed_beyond_all_measure_is_refused() -> None:
    zeros = {"zeros": bytes(17 * 2**20)}
    for name, data in {
        "a.zip": zipped(zeros),
        "a.tar.gz": gzip.compress(tarred(zeros)),
        "a.gz": gzip.compress(bytes(17 * 2**20)),
    }.items():
        assert "SLUICE_ARCHIVE_LIMIT_RATIO" in refusal(data, name)


def test_declared_sizes_are_not_believed_either_way() -> None:
    data = zipped({"a.txt": b"x" * 100})
    sizes = struct.pack("<I", 100)
    huge = data.replace(sizes, struct.pack("<I", 2**31))
    assert "SLUICE_ARCHIVE_LIMIT_BYTES" in refusal(huge)
    small = data.replace(sizes, struct.pack("<I", 10))
    assert "damaged" in errors(unpacked(small))["a.zip!/a.txt"]


def test_members_that_overlap_are_refused() -> None:
    data = bytearray(zipped({"a.txt": b"x" * 5000, "b.txt": b"y" * 5000}, store=True))
    first = data.index(b"PK\x01\x02")
    second = data.index(b"PK\x01\x02", first + 4)
    data[second + 42 : second + 46] = data[first + 42 : first + 46]
    assert "overlap" in refusal(bytes(data))


def test_entries_are_limited_before_they_are_listed() -> None:
    many = {f"{n}.txt": b"" for n in range(50)}
    limit: dict[str, Any] = {"archive_limit_entries": 49}
    for name, data in {
        "a.zip": zipped(many), "a.tar": tarred(many), "a.7z": sevenzipped(many),
    }.items():  # fmt: skip
        assert "SLUICE_ARCHIVE_LIMIT_ENTRIES" in refusal(data, name, **limit)
        assert len(unpacked(data, name, archive_limit_entries=50)) == 50
    nested = zipped({f"{n}.zip": zipped({"a": b"x", "b": b"y"}) for n in range(20)})
    assert "SLUICE_ARCHIVE_LIMIT_ENTRIES" in refusal(nested, **limit)


def test_archives_within_archives_have_one_budget() -> None:
    inner = zipped({"zeros": bytes(6 * 2**20)})
    data = zipped({f"{n}.zip": inner for n in range(5)})
    assert "SLUICE_ARCHIVE_LIMIT" in refusal(data)


def test_only_so_deep_are_archives_opened() -> None:
    data = zipped({"a.txt": b"deep"})
    for _ in range(5):
        data = zipped({"in.zip": data})
    (listed,) = unpacked(data)
    assert listed.name == "a.zip!/in.zip!/in.zip!/in.zip!/in.zip"
    assert "SLUICE_ARCHIVE_LIMIT_DEPTH" in listed.error
    (listed,) = unpacked(data, archive_limit_depth=6)
    assert listed.data == b"deep"


def test_a_large_member_is_an_error_of_itself() -> None:
    content = {"large": bytes(range(256)) * 100, "b.txt": b"x"}
    for name, data in {
        "a.zip": zipped(content), "a.tar": tarred(content), "a.7z": sevenzipped(content),
    }.items():  # fmt: skip
        listed = unpacked(data, name, archive_limit_member_bytes=1000)
        assert "SLUICE_ARCHIVE_LIMIT_MEMBER_BYTES" in errors(listed)[f"{name}!/large"]
        assert [m.data for m in listed if not m.error] == [b"x"]


def test_a_sparse_member_of_a_tar_is_as_large_as_it_says() -> None:
    entry = tarfile.TarInfo("holes")
    entry.type = tarfile.GNUTYPE_SPARSE
    header = bytearray(entry.tobuf(tarfile.GNU_FORMAT))
    # One block of data, and a size of one terabyte (the header of old GNU formats).
    header[124:136] = b"00000001000\0"
    header[386:410] = b"00000000000\0" + b"00000001000\0"
    header[483:495] = b"\x80" + (2**40).to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    data = bytes(header) + bytes(512) + bytes(1024)
    (listed,) = unpacked(data, "a.tar")
    assert "SLUICE_ARCHIVE_LIMIT_MEMBER_BYTES" in listed.error


def test_an_archive_without_files_has_no_members() -> None:
    for name, data in {"a.zip": zipped({}), "a.tar": tarred({}), "b.tar": bytes(10240)}.items():
        assert unpacked(data, name) == []
