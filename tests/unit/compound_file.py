"""Writes OLE compound files (MS-CFB, version 3), and Outlook messages in them (MS-OXMSG)."""

import struct
from collections.abc import Mapping, Sequence
from datetime import UTC, datetime
from typing import Any

Tree = Mapping[str, Any]
"""Names with the bytes of streams, or with trees."""

_SECTOR, _MINI, _CUTOFF = 512, 64, 4096
_END, _FREE, _FAT = 0xFFFFFFFE, 0xFFFFFFFF, 0xFFFFFFFD


def compound_file(tree: Tree) -> bytes:
    entries: list[dict[str, Any]] = []

    def add(name: str, value: Any) -> int:
        number = len(entries)
        entry: dict[str, Any] = {"name": name, "child": _FREE, "next": _FREE, "data": None}
        entries.append(entry)
        if isinstance(value, bytes):
            entry["data"] = value
            return number
        before = None
        for key in sorted(value, key=lambda key: (len(key), key.upper())):
            child = add(key, value[key])
            if before is None:
                entry["child"] = child
            else:
                entries[before]["next"] = child
            before = child
        return number

    add("Root Entry", tree)
    mini = b""
    mini_fat: list[int] = []
    sectors: list[bytes] = []
    fat: list[int] = []

    def store(data: bytes) -> int:
        if not data:
            return _END
        first, count = len(fat), -(-len(data) // _SECTOR)
        for n in range(count):
            sectors.append(data[n * _SECTOR : (n + 1) * _SECTOR].ljust(_SECTOR, b"\0"))
            fat.append(first + n + 1 if n + 1 < count else _END)
        return first

    for entry in entries[1:]:
        data = entry["data"]
        if data is None:
            entry["start"], entry["size"] = 0, 0
            continue
        entry["size"] = len(data)
        if len(data) >= _CUTOFF:
            entry["start"] = store(data)
            continue
        entry["start"], count = len(mini_fat), -(-len(data) // _MINI)
        if not count:
            entry["start"] = _END
        for n in range(count):
            mini += data[n * _MINI : (n + 1) * _MINI].ljust(_MINI, b"\0")
            mini_fat.append(len(mini_fat) + 1 if n + 1 < count else _END)
    entries[0]["start"], entries[0]["size"] = store(mini), len(mini)
    mini_fat_start = store(struct.pack(f"<{len(mini_fat)}I", *mini_fat).ljust(_SECTOR, b"\xff"))
    directory = b"".join(_directory_entry(n, entry) for n, entry in enumerate(entries))
    unused = -len(entries) % 4
    directory_start = store(directory + _unused_entry() * unused)
    # The allocation table is behind all that it speaks of, itself included.
    count = 1
    while (len(fat) + count) * 4 > count * _SECTOR:
        count += 1
    first_fat = len(fat)
    fat += [_FAT] * count
    table = struct.pack(f"<{len(fat)}I", *fat).ljust(count * _SECTOR, b"\xff")
    mini_count = -(-len(mini_fat) * 4 // _SECTOR)
    header = struct.pack(
        "<8s16xHHHHH6xIIIIIIIIII",
        b"\xd0\xcf\x11\xe0\xa1\xb1\x1a\xe1", 0x3E, 3, 0xFFFE, 9, 6,
        0, count, directory_start, 0, _CUTOFF,
        mini_fat_start if mini_fat else _END, mini_count, _END, 0, first_fat,
    )  # fmt: skip
    more = [first_fat + n for n in range(1, count)]
    header += struct.pack(f"<{len(more)}I", *more)
    return header.ljust(_SECTOR, b"\xff") + b"".join(sectors) + table


def _directory_entry(number: int, entry: Mapping[str, Any]) -> bytes:
    name = entry["name"].encode("utf-16-le")
    kind = 5 if number == 0 else 2 if entry["data"] is not None else 1
    return struct.pack(
        "<64sHBBIII16xI8x8xIQ",
        name, len(name) + 2, kind, 1, _FREE, entry["next"], entry["child"], 0,
        entry["start"], entry["size"],
    )  # fmt: skip


def _unused_entry() -> bytes:
    return struct.pack("<64sHBBIII16xI8x8xIQ", b"", 0, 0, 0, _FREE, _FREE, _FREE, 0, 0, 0)


# Outlook messages: each property is an entry of 16 bytes in a stream, and, if it is long, a stream.

_LONG, _TIME, _TEXT, _BINARY = 0x0003, 0x0040, 0x001F, 0x0102


def outlook_message(
    *,
    subject: str,
    body: str | None = None,
    html: bytes | None = None,
    rtf: bytes | None = None,
    sender: str = "kim@example.org",
    to: Sequence[tuple[str, str]] = (),
    sent: datetime = datetime(2026, 11, 2, tzinfo=UTC),
    attachments: Sequence[Mapping[str, Any]] = (),
) -> bytes:
    tree: dict[str, Any] = {}
    values: dict[int, Any] = {
        0x001A: "IPM.Note", 0x0037: subject, 0x0C1A: sender.partition("@")[0], 0x0C1F: sender,
        0x0039: sent,
    }  # fmt: skip
    if body is not None:
        values[0x1000] = body
    if html is not None:
        values[0x1013] = html
        values[0x3FDE] = 65001
    if rtf is not None:
        values[0x1009] = rtf
    header = struct.pack("<8x4I8x", len(to), len(attachments), len(to), len(attachments))
    _put(tree, values, header)
    for n, (name, address) in enumerate(to):
        part: dict[str, Any] = {}
        _put(part, {0x3001: name, 0x3003: address, 0x39FE: address, 0x0C15: 1}, bytes(8))
        tree[f"__recip_version1.0_#{n:08X}"] = part
    for n, attachment in enumerate(attachments):
        part = {}
        values = {0x3705: 1, 0x3707: attachment["name"], 0x3701: attachment["data"]}
        if "type" in attachment:
            values[0x370E] = attachment["type"]
        _put(part, {key: value for key, value in values.items() if value is not None}, bytes(8))
        tree[f"__attach_version1.0_#{n:08X}"] = part
    return compound_file(tree)


def _put(tree: dict[str, Any], values: Mapping[int, Any], header: bytes) -> None:
    entries = b""
    for key, value in values.items():
        if isinstance(value, str):
            data, type_ = value.encode("utf-16-le"), _TEXT
        elif isinstance(value, bytes):
            data, type_ = value, _BINARY
        elif isinstance(value, datetime):
            ticks = int((value - datetime(1601, 1, 1, tzinfo=UTC)).total_seconds() * 10**7)
            entries += struct.pack("<HHIQ", _TIME, key, 6, ticks)
            continue
        else:
            entries += struct.pack("<HHIIxxxx", _LONG, key, 6, value)
            continue
        size = len(data) + 2 if type_ == _TEXT else len(data)
        entries += struct.pack("<HHIIxxxx", type_, key, 6, size)
        tree[f"__substg1.0_{key:04X}{type_:04X}"] = data
    tree["__properties_version1.0"] = header + entries
