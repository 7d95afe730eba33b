"""Bundles: files with whole collections, which are downloaded, and uploaded in slices.

A slice that the server has already is not sent again, so a transfer that broke off is resumed by
running it again.
"""

import hashlib
import os
import unicodedata
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any, Final

import httpx

from sluice.calls import Calls, segment
from sluice.errors import ConnectionBroken, InvalidInput
from sluice.ingest import Advance
from sluice.shapes import State

SLICE_BYTES: Final = 16 * 2**20
"""Half of what a server takes at once, unless SLUICE_MAX_FILE_BYTES says otherwise."""
_SLICES_LIMIT: Final = 10_000
_SILENCE_S: Final = 60.0
_UNIT: Final = "bytes"


def require_folder(path: str | Path) -> None:
    """Raises InvalidInput where no file can be made at this path: before an export, not behind
    it."""
    folder = Path(path).absolute().parent
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise InvalidInput(
            f"{folder} is no folder in which files can be made. Make it first, or name another one."
        )


async def download(
    calls: Calls[Any],
    file_id: str,
    path: str | Path,
    *,
    on_advance: Callable[[Advance], object],
    silence_s: float | None,
) -> None:
    """See `Client.download`."""
    target = Path(path)
    stored = await calls.file(file_id)
    part = target.with_name(f"{target.name}.part")
    again = f"The server still has it: GET /v1/files/{file_id}/content."
    size = 0
    try:
        with part.open("wb") as stream:
            url = f"/v1/files/{segment(file_id)}/content"
            async with calls.transport.stream(
                url, headers={}, silence_s=silence_s or _SILENCE_S
            ) as blocks:
                async for block in blocks:
                    await calls.transport.in_thread(stream.write, block)
                    size += len(block)
                    on_advance(
                        Advance(phase="upload", done=size, total=stored.size_bytes, unit=_UNIT)
                    )
        if size != stored.size_bytes:
            raise ConnectionBroken(
                f"{target}: {size:,} of {stored.size_bytes:,} bytes have come. {again}"
            )
        part.replace(target)
    except httpx.TransportError as error:
        raise ConnectionBroken(f"The download to {target} broke off: {error}. {again}") from error
    except OSError as error:
        raise InvalidInput(f"{target} cannot be written: {error}. {again}") from error
    finally:
        part.unlink(missing_ok=True)


async def upload_slices(
    calls: Calls[Any],
    path: str | Path,
    *,
    on_advance: Callable[[Advance], object],
    timeout_s: float | None,
) -> list[str]:
    """The ids of the uploads that a file has become, in their order."""
    name, total = Path(path).name, Path(path).stat().st_size
    if not 0 < total <= _SLICES_LIMIT * SLICE_BYTES:
        raise InvalidInput(f"{path} has {total:,} bytes, and so is no bundle that can be sent.")
    with Path(path).open("rb") as stream:
        hashes = await calls.transport.in_thread(_hashes, stream)
        # By name, too: what a user has stored for other ends is not deleted with a bundle.
        files = await calls.files_by_hash(sorted(set(hashes)))
        stored = {(file.sha256, file.name): file.id for file in files}
        ids: list[str] = []
        stream.seek(0)
        for n, digest in enumerate(hashes):
            data = await calls.transport.in_thread(stream.read, SLICE_BYTES)
            slice_name = unicodedata.normalize("NFC", f"{name}.{n:04d}")
            file_id = stored.get((digest, slice_name))
            if file_id is None:
                file_id = (await calls.upload(data, name=slice_name, timeout_s=timeout_s)).id
            ids.append(file_id)
            done = min(total, (n + 1) * SLICE_BYTES)
            on_advance(Advance(phase="upload", done=done, total=total, unit=_UNIT))
    return ids


def _hashes(stream: IO[bytes]) -> list[str]:
    return [hashlib.sha256(block).hexdigest() for block in _blocks(stream)]


def _blocks(stream: IO[bytes]) -> Iterator[bytes]:
    while block := stream.read(SLICE_BYTES):
        yield block


async def unused_slices(
    calls: Calls[Any], ids: Sequence[str], *, timeout_s: float | None
) -> list[str]:
    """Those of the uploads that no open import needs: two of one bundle share them."""
    unused = dict.fromkeys(ids)
    for state in (State.QUEUED, State.RUNNING):
        async for listed in calls.jobs(kind="import", state=state, timeout_s=timeout_s):
            job = await calls.job(listed.id, timeout_s=timeout_s) if listed.truncated else listed
            if not job.ended:
                for id_ in (job.input or {}).get("file_ids", ()):
                    unused.pop(id_, None)
    return list(unused)
