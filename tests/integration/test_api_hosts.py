"""Without keys, no web page of another origin can use the API: by name, by form, by link."""

import socket
from collections.abc import Iterator

import httpx
import pytest
from pydantic import SecretStr

from shared.config import Settings
from shared.database.transaction import Ledger
from tests.api_server import served
from tests.integration.answers import EMBED, problem

PAGE = "https://evil.example"
APP = "http://localhost:5173"
PATHS = ["/v1/jobs", "/docs", "/openapi.json", "/metrics", "/readyz", "/nothing", "/"]
WRITES = [
    ("POST", "/v1/jobs"),
    ("POST", "/v1/jobs/batch"),
    ("POST", "/v1/queues/embed/pause"),
    ("POST", "/v1/jobs/00000000-0000-4000-8000-000000000000/cancel"),
    ("POST", "/v1/files"),
    ("POST", "/v1/conversations"),
    ("PUT", "/v1/collections/abc"),
    ("DELETE", "/v1/collections/abc"),
    ("POST", "/models/owner/name"),
    ("POST", "/pipeline/feature-extraction/owner/name"),
]


def refused(answer: httpx.Response, status: int) -> str:
    """What an answer says, in its dialect."""
    if answer.request.url.path.startswith(("/models/", "/pipeline/")):
        assert answer.status_code == status
        assert answer.headers["content-type"] == "application/json"
        return str(answer.json()["error"])
    return str(problem(answer, status)["detail"])


@pytest.fixture(scope="module")
def open_url(settings: Settings) -> Iterator[str]:
    changes = {
        "api_host": "0.0.0.0",
        "api_allow_anonymous": True,
        "api_allowed_hosts": ("sluice.lan", "api"),
    }
    with served(settings.model_copy(update=changes)) as url:
        yield url


@pytest.fixture(scope="module", params=[False, True], ids=["without keys", "with keys"])
def client(
    settings: Settings, request: pytest.FixtureRequest
) -> Iterator[tuple[httpx.Client, dict[str, str]]]:
    changes: dict[str, object] = {"api_cors_origins": (APP,)}
    headers = {}
    if request.param:
        changes["api_keys"] = {"app": SecretStr("s3cret")}
        headers = {"Authorization": "Bearer s3cret"}
    with (
        served(settings.model_copy(update=changes)) as url,
        httpx.Client(base_url=url, trust_env=False) as client,
    ):
        yield client, headers


class TestHost:
    @pytest.mark.parametrize(
        "host",
        [
            "evil.example",
            "evil.example:80",
            "localhost.evil.example",
            "127.0.0.1.evil.example",
            "notlocalhost",
            "localhost@evil.example",
            "evil.example/localhost",
            "192.168.1.7",
            "0.0.0.0",
            "[2001:db8::1]",
            "2130706433",
            "",
        ],
    )
    def test_a_foreign_one_is_421_wherever(self, api: httpx.Client, host: str) -> None:
        for path in PATHS:
            detail = refused(api.get(path, headers={"Host": host}), 421)
            assert "SLUICE_API_ALLOWED_HOSTS" in detail
        for method, path in WRITES:
            refused(api.request(method, path, json={}, headers={"Host": host}), 421)
            refused(api.request(method, path, content=b"", headers={"Host": host}), 421)

    @pytest.mark.parametrize(
        "host",
        [
            "localhost", "LOCALHOST:1", "localhost.", "localhost:", "127.0.0.1",
            "127.8.7.6:65000", "[::1]:8000", "[::ffff:127.0.0.1]",
        ],
    )  # fmt: skip
    def test_those_of_this_machine_are_answered(self, api: httpx.Client, host: str) -> None:
        assert api.get("/v1/jobs", headers={"Host": host}).status_code == 200

    def test_liveness_answers_under_any_name(self, api: httpx.Client) -> None:
        """Load balancers call by address."""
        assert api.get("/healthz", headers={"Host": "10.0.0.7"}).status_code == 200

    @pytest.mark.parametrize("hosts", [b"", b"Host: localhost\r\nHost: evil.example\r\n"])
    def test_there_has_to_be_one(self, api_url: str, hosts: bytes) -> None:
        """Sent by hand: clients do not send such things."""
        with socket.create_connection(("127.0.0.1", int(api_url.rpartition(":")[2]))) as raw:
            raw.sendall(b"GET /v1/jobs HTTP/1.1\r\nConnection: close\r\n" + hosts + b"\r\n")
            assert raw.recv(65536).startswith(b"HTTP/1.1 400 ")

    @pytest.mark.parametrize(
        ("target", "host", "status"),
        [
            ("http://localhost/v1/jobs", "localhost", 200),
            ("HTTP://[::1]:8000/v1/jobs?limit=1", "localhost", 200),
            ("http://evil.example/v1/jobs", "localhost", 421),
            ("http://evil.example:80/v1/jobs", "127.0.0.1", 421),
            ("http://localhost@evil.example/v1/jobs", "localhost", 421),
            ("http://localhost/v1/jobs", "evil.example", 421),
        ],
    )
    def test_that_of_the_request_line_counts_too(
        self, api_url: str, target: str, host: str, status: int
    ) -> None:
        with socket.create_connection(("127.0.0.1", int(api_url.rpartition(":")[2]))) as raw:
            raw.sendall(
                f"GET {target} HTTP/1.1\r\nHost: {host}\r\nConnection: close\r\n\r\n".encode()
            )
            assert raw.recv(65536).startswith(f"HTTP/1.1 {status} ".encode())

    @pytest.mark.parametrize(
        ("host", "status"),
        [
            ("sluice.lan", 200),
            ("API:8000", 200),
            ("192.168.1.7:8000", 200),
            ("localhost", 200),
            ("other.lan", 421),
        ],
    )
    def test_more_can_be_set(self, open_url: str, host: str, status: int, ledger: Ledger) -> None:
        """Beyond loopback its addresses are its own as well: no page can point one elsewhere."""
        assert ledger is not None
        answer = httpx.get(f"{open_url}/v1/queues", headers={"Host": host}, trust_env=False)
        assert answer.status_code == status


class TestOrigin:
    @pytest.mark.parametrize(
        "headers",
        [
            {"Origin": PAGE},
            {"Origin": PAGE, "Sec-Fetch-Site": "cross-site"},
            {"Origin": "null"},
            {"Origin": "http://localhost:1"},
            {"Origin": "file://"},
            {"Origin": "http://127.0.0.1.evil.example"},
            {"Sec-Fetch-Site": "cross-site"},
            {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "navigate"},
        ],
        ids=str,
    )
    def test_writes_of_a_foreign_page_are_403(
        self, api: httpx.Client, headers: dict[str, str]
    ) -> None:
        for method, path in WRITES:
            for content, type_ in (
                (b"", None),
                (b'{"kind":"embed","input":{"texts":["a"]}}', "text/plain"),
                (b"a=b", "application/x-www-form-urlencoded"),
                (b"--b--", "multipart/form-data; boundary=b"),
            ):
                sent = headers | ({"Content-Type": type_} if type_ else {})
                detail = refused(api.request(method, path, content=content, headers=sent), 403)
                assert "SLUICE_API_CORS_ORIGINS" in detail
        assert api.get("/v1/jobs").json()["items"] == []
        assert not any(queue["paused"] for queue in api.get("/v1/queues").json()["items"])

    def test_so_is_reading_but_not_a_link(self, api: httpx.Client) -> None:
        image = {"Sec-Fetch-Site": "cross-site", "Sec-Fetch-Mode": "no-cors"}
        for headers in (image, {"Origin": PAGE}):
            problem(api.get("/v1/jobs", headers=headers), 403)
        link = {
            "Sec-Fetch-Site": "cross-site",
            "Sec-Fetch-Mode": "navigate",
            "Sec-Fetch-Dest": "document",
        }
        assert api.get("/docs", headers=link).status_code == 200
        problem(api.get("/docs", headers=link | {"Sec-Fetch-Dest": "iframe"}), 403)

    def test_the_api_s_own_page_may_write(self, api: httpx.Client, api_url: str) -> None:
        for origin in (api_url, api_url.replace("127.0.0.1", "localhost")):
            headers = {
                "Origin": origin,
                "Host": origin.removeprefix("http://"),
                "Sec-Fetch-Site": "same-origin",
            }
            assert api.post("/v1/jobs", json=EMBED, headers=headers).status_code == 202

    def test_no_page_gets_cors_headers_unless_it_is_set(self, api: httpx.Client) -> None:
        preflight = {"Origin": PAGE, "Access-Control-Request-Method": "POST"}
        answer = api.options("/v1/jobs", headers=preflight)
        problem(answer, 403)
        assert "access-control-allow-origin" not in answer.headers


class TestCors:
    def test_a_page_of_a_set_origin_asks_and_then_writes_and_reads(
        self, client: tuple[httpx.Client, dict[str, str]], ledger: Ledger
    ) -> None:
        assert ledger is not None
        http, key = client
        headers = {
            "Origin": APP,
            "Sec-Fetch-Site": "cross-site",
            "Access-Control-Request-Method": "POST",
            "Access-Control-Request-Headers": "authorization,content-type,prefer,idempotency-key",
        }
        answer = http.options("/v1/jobs", headers=headers)
        assert answer.status_code == 200
        assert answer.headers["access-control-allow-origin"] == APP
        assert "POST" in answer.headers["access-control-allow-methods"]
        assert "prefer" in answer.headers["access-control-allow-headers"]

        page = key | {"Origin": APP, "Sec-Fetch-Site": "cross-site"}
        answer = http.post("/v1/jobs", json=EMBED, headers=page)
        assert answer.status_code == 202
        assert answer.headers["access-control-allow-origin"] == APP
        assert "Location" in answer.headers["access-control-expose-headers"]
        assert http.get(answer.headers["location"], headers=page).status_code == 200

    def test_others_get_nothing(
        self, client: tuple[httpx.Client, dict[str, str]], ledger: Ledger
    ) -> None:
        assert ledger is not None
        http, key = client
        answer = http.post("/v1/jobs", json=EMBED, headers=key | {"Origin": PAGE})
        assert "access-control-allow-origin" not in answer.headers
        # With a key it is no page that sends it, whatever it says.
        assert answer.status_code == (202 if key else 403)


def test_with_keys_any_name_is_answered(settings: Settings, ledger: Ledger) -> None:
    assert ledger is not None
    keys = {"ann": SecretStr("s3cret")}
    with served(settings.model_copy(update={"api_keys": keys})) as url:
        for headers in ({"Host": "sluice.example"}, {"Origin": PAGE}):
            sent = headers | {"Authorization": "Bearer s3cret"}
            assert httpx.get(f"{url}/v1/jobs", headers=sent, trust_env=False).status_code == 200
