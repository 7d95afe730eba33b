"""`/v1/files`: what goes in comes out, names and bytes alike."""

import shutil
import subprocess
from hashlib import sha256
from pathlib import Path

import httpx
import pytest

from shared import files
from shared.config import Settings
from shared.database.transaction import Ledger
from shared.errors import NotFound
from shared.files import Purpose, make_storage
from tests.integration.answers import problem, stored

NAMES = ["plain.txt", "docs/한국어 안내.md", 'a "quoted" name.txt', "ends with dot.", "🙂.html"]


@pytest.mark.parametrize("name", NAMES)
def test_a_file_comes_back_as_it_was(api: httpx.Client, name: str) -> None:
    data = bytes(range(256)) * 10_000

    answer = api.post("/v1/files", files={"file": (name, data, "text/markdown")})

    assert answer.status_code == 201
    file = answer.json()
    assert set(file) == {"id", "name", "size_bytes", "sha256", "content_type", "created_at"}
    assert (file["name"], file["size_bytes"]) == (name, len(data))
    assert file["sha256"] == sha256(data).hexdigest()
    assert answer.headers["location"] == f"/v1/files/{file['id']}"
    assert api.get(answer.headers["location"]).json() == file
    content = api.get(f"/v1/files/{file['id']}/content")
    assert content.content == data
    assert content.headers["content-type"] == "text/markdown"
    assert content.headers["content-length"] == str(len(data))
    assert content.headers["content-disposition"].startswith("attachment; filename*=UTF-8''")
    assert content.headers["x-content-type-options"] == "nosniff"


@pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")
def test_curl_sends_a_korean_name(api: httpx.Client, tmp_path: Path) -> None:
    path = tmp_path / "안내문.txt"
    path.write_text("본문", encoding="utf-8")
    subprocess.run(
        ["curl", "-sf", "-F", f"file=@{path}", f"{api.base_url}/v1/files", "-o", "/dev/null"],
        check=True,
    )

    answer = api.get("/v1/files", params={"sha256": sha256("본문".encode()).hexdigest()}).json()

    assert [file["name"] for file in answer["items"]] == ["안내문.txt"]


def test_files_are_found_by_their_hashes(api: httpx.Client) -> None:
    for data in (b"one", b"two", b"two"):
        api.post("/v1/files", files={"file": ("f.txt", data)})
    hashes = [sha256(data).hexdigest() for data in (b"one", b"two", b"three")]

    answer = api.get("/v1/files", params={"sha256": [hashes[0].upper(), *hashes[1:]]})

    assert sorted(file["sha256"] for file in answer.json()["items"]) == sorted(
        [hashes[0], hashes[1], hashes[1]]
    )
    for query in ("", "?sha256=abc", "?" + "&".join([f"sha256={hashes[0]}"] * 201)):
        problem(api.get(f"/v1/files{query}"), 422)


def test_an_empty_file_is_refused_and_leaves_nothing(api: httpx.Client, settings: Settings) -> None:
    before = stored(settings)

    answer = problem(api.post("/v1/files", files={"file": ("empty.txt", b"")}), 422)

    assert "empty.txt is empty" in answer["detail"]
    assert stored(settings) == before


def test_control_characters_leave_the_name(api: httpx.Client) -> None:
    body = (
        b'--b\r\nContent-Disposition: form-data; name="file"; filename="a\x01b\xc2\x85c.txt"\r\n'
        b"Content-Type: text/plain\x01\r\n\r\nx\r\n--b--\r\n"
    )
    headers = {"Content-Type": "multipart/form-data; boundary=b"}

    answer = api.post("/v1/files", content=body, headers=headers)

    assert answer.status_code in {201, 400}, answer.text
    if answer.status_code == 201:
        assert (answer.json()["name"], answer.json()["content_type"]) == ("abc.txt", None)


@pytest.mark.parametrize(
    ("arguments", "status", "says"),
    [
        ({"files": {"other": ("a.txt", b"x")}}, 422, "file: is required"),
        ({"json": {"file": "x"}}, 415, "multipart/form-data"),
        ({"files": {"file": (None, b"x")}}, 422, "file"),
        ({"files": {"file": ("n" * 1025, b"x")}}, 422, "1024 characters"),
        ({"content": b"--b\r\n", "headers": {"Content-Type": "multipart/form-data"}}, 400,
         "oundary"),
    ],
)  # fmt: skip
def test_what_is_no_upload_is_refused(
    api: httpx.Client, arguments: dict[str, object], status: int, says: str
) -> None:
    assert says in problem(api.request("POST", "/v1/files", **arguments), status)["detail"]  # type: ignore[arg-type]


def test_a_deleted_file_is_gone_with_its_bytes(api: httpx.Client, settings: Settings) -> None:
    before = stored(settings)
    file = api.post("/v1/files", files={"file": ("a.txt", b"x")}).json()
    path = f"/v1/files/{file['id']}"

    assert api.delete(path).status_code == 204

    for answer in (api.get(path), api.get(f"{path}/content"), api.delete(path)):
        problem(answer, 404)
    assert stored(settings) == before


def test_a_file_that_the_storage_lost_is_404_with_the_remedy(
    api: httpx.Client, settings: Settings
) -> None:
    before = set(stored(settings))
    file = api.post("/v1/files", files={"file": ("a.txt", b"x")}).json()
    (lost,) = set(stored(settings)) - before
    lost.unlink()

    answer = problem(api.get(f"/v1/files/{file['id']}/content"), 404)

    assert "SLUICE_STORAGE_URL" in answer["detail"]


@pytest.mark.parametrize("id_", ["nonsense", "0198f2c4-0000-7000-8000-00000000dead"])
def test_an_unknown_file_is_404(api: httpx.Client, id_: str) -> None:
    problem(api.get(f"/v1/files/{id_}"), 404)


def test_a_file_is_read_while_it_grows(
    api: httpx.Client, ledger: Ledger, settings: Settings
) -> None:
    storage = make_storage(settings)
    with ledger.begin() as session:
        file = files.begin(
            session, name="out.jsonl", purpose=Purpose.BATCH_OUTPUT, content_type="text/plain"
        )
    url = f"/v1/files/{file.id}/content"
    seen = [api.get(url).content]
    for data in ("하나\n", "two\n"):
        part = files.write_part(storage, file.id, data.encode())
        files.write_part(storage, file.id, b"of an attempt that was lost")
        with ledger.begin() as session:
            files.append(session, file.id, part)
        seen.append(api.get(url).content)

    assert [content.decode() for content in seen] == ["", "하나\n", "하나\ntwo\n"]
    assert api.get(f"/v1/files/{file.id}").json()["size_bytes"] == len("하나\ntwo\n".encode())
    assert api.delete(f"/v1/files/{file.id}").status_code == 204
    with pytest.raises(NotFound):
        storage.read(part.path)
    with ledger.begin() as session, pytest.raises(NotFound):
        files.append(session, file.id, part)
