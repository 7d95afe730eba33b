"""Where requests may go that are made on a user's behalf: every trick to reach something else."""

import gzip
import re
import socket
import threading
import zlib
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import brotli
import pytest
from huggingface_hub import get_session

from shared.addresses import Guard, read_allowed_host, server_options
from shared.config import McpServer, Settings, load_settings
from shared.errors import ConfigurationError, InvalidInput, StepError
from shared.kinds.chat import McpTool
from shared.kinds.model import MODEL, ModelInput
from tests.integration.websites import HOSTS, Site, get, refusal, serving
from workers import outbound, webhook
from workers.models.hub_session import guard_hub
from workers.tools import mcp

RESOLVE = socket.getaddrinfo


@pytest.fixture(scope="module")
def secret() -> Iterator[Site]:
    """A server of this machine that nobody may reach."""
    with serving() as site:
        site.page("/", "secret", "text/plain")
        yield site


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


@pytest.fixture
def names(monkeypatch: pytest.MonkeyPatch) -> dict[str, list[list[str]]]:
    """Names with the addresses of each look-up, the last of which stays."""
    known: dict[str, list[list[str]]] = {}

    def look_up(host: str, port: int, *args: Any, **kwargs: Any) -> list[Any]:
        if host not in known:
            return RESOLVE(host, port, *args, **kwargs)
        answers = known[host]
        addresses = answers.pop(0) if len(answers) > 1 else answers[0]
        return [
            (
                socket.AF_INET6 if ":" in one else socket.AF_INET,
                socket.SOCK_STREAM,
                6,
                "",
                (one, port),
            )
            for one in addresses
        ]

    monkeypatch.setattr(socket, "getaddrinfo", look_up)
    return known


SCHEMES = [
    "file:///etc/passwd", "file://127.0.0.1/etc/passwd", "ftp://127.0.0.1:{port}/",
    "gopher://127.0.0.1:{port}/_x", "dict://127.0.0.1:{port}/", "ldap://127.0.0.1:{port}/",
    "ws://127.0.0.1:{port}/", "data:text/plain,secret", "javascript:1", "jar:http://127.0.0.1!/",
    "unix:///var/run/docker.sock", "http+unix://%2Fvar%2Frun%2Fdocker.sock/",
    "view-source:http://127.0.0.1:{port}/", "http:////127.0.0.1:{port}/",
]  # fmt: skip
NO_URLS = [
    "", "/", "x", "//127.0.0.1:{port}/", "http:/127.0.0.1:{port}/", "http:127.0.0.1:{port}",
    "http:\\\\127.0.0.1:{port}\\", "http://", "http:", "127.0.0.1:{port}",
]  # fmt: skip


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_no_spelling_of_an_address_reaches_what_is_private(secret: Site, host: str) -> None:
    port = secret.server_port
    url = f"http://{host.format(port=port, wrapped=port + 65536)}/"
    assert refusal(url, fetch_allow_private=False, fetch_timeout_s=5)
    assert refusal(url.replace("http:", "https:", 1), fetch_allow_private=False, fetch_timeout_s=5)
    assert secret.paths == []


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_nor_does_a_redirect(secret: Site, site: Site, host: str) -> None:
    """From a place that is permitted, to one that is not."""
    port = secret.server_port
    to = f"http://{host.format(port=port, wrapped=port + 65536)}/".encode()

    def answer(request: Any) -> None:
        if b"\r" in to or b"\0" in to:
            request.send_error(500)
            return
        request.wfile.write(b"HTTP/1.1 302 Found\r\nlocation: " + to + b"\r\n\r\n")

    site.answers["/"] = answer
    allowed = (f"127.0.0.1:{site.server_port}",)
    assert refusal(
        site.url(), fetch_allow_private=False, outbound_allowed_hosts=allowed, fetch_timeout_s=5
    )
    assert site.paths == ["/"]
    assert secret.paths == []


@pytest.mark.parametrize("url", [*SCHEMES, *NO_URLS])
def test_only_whole_urls_of_the_web_are_fetched(secret: Site, url: str) -> None:
    assert refusal(url.format(port=secret.server_port), fetch_allow_private=False)
    assert secret.paths == []


@pytest.mark.parametrize("url", SCHEMES)
def test_nor_does_a_redirect_leave_the_web(secret: Site, site: Site, url: str) -> None:
    allowed = (f"127.0.0.1:{site.server_port}",)
    redirect = site.redirect("/", url.format(port=secret.server_port))
    assert refusal(redirect, fetch_allow_private=False, outbound_allowed_hosts=allowed)
    assert (site.paths, secret.paths) == (["/"], [])


# Names


@pytest.mark.parametrize(
    "addresses",
    [["127.0.0.1"], ["10.0.0.1"], ["::1"], ["::ffff:127.0.0.1"], ["169.254.169.254"],
     ["64:ff9b::7f00:1"], ["8.8.8.8", "127.0.0.1"], ["2606:4700:4700::1111", "fd00::1"]],
)  # fmt: skip
def test_a_public_name_of_a_private_address_is_refused(
    names: dict[str, list[list[str]]], secret: Site, addresses: list[str]
) -> None:
    names["wiki.example"] = [addresses]
    url = secret.url(host="wiki.example")
    assert "not an address of the public internet" in refusal(url, fetch_allow_private=False)
    assert secret.paths == []


def test_the_address_that_was_checked_is_the_one_that_is_connected_to(
    names: dict[str, list[list[str]]], site: Site
) -> None:
    """A name that changes between the check and the connection (DNS rebinding)."""
    names["rebinding.example"] = [["127.0.0.1"], ["169.254.169.254"]]
    site.page("/", "there", "text/plain")
    allowed = ("127.0.0.0/8",)
    url = site.url(host="rebinding.example")
    page = get(url, fetch_allow_private=False, outbound_allowed_hosts=allowed)
    assert page.text == "there"
    assert site.hosts == [f"rebinding.example:{site.server_port}"]
    message = refusal(url, fetch_allow_private=False, outbound_allowed_hosts=allowed)
    assert "169.254.169.254" in message


def test_each_hop_is_looked_up_anew(names: dict[str, list[list[str]]], site: Site) -> None:
    names["rebinding.example"] = [["127.0.0.1"], ["10.0.0.7"]]
    site.redirect("/", site.url("/b", host="rebinding.example"))
    url = site.url(host="rebinding.example")
    message = refusal(url, fetch_allow_private=False, outbound_allowed_hosts=("127.0.0.1",))
    assert "10.0.0.7" in message
    assert site.paths == ["/"]


def test_no_proxy_of_the_environment_is_used(
    secret: Site, site: Site, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in (
        "HTTP_PROXY",
        "http_proxy",
        "HTTPS_PROXY",
        "https_proxy",
        "ALL_PROXY",
        "all_proxy",
    ):
        monkeypatch.setenv(name, secret.url())
    assert get(site.page("/", "there", "text/plain")).text == "there"
    assert secret.paths == []


def test_nothing_of_this_machine_is_sent_along(
    site: Site, monkeypatch: pytest.MonkeyPatch, tmp_path: Any
) -> None:
    (tmp_path / ".netrc").write_text("default login me password secret\n")
    monkeypatch.setenv("NETRC", str(tmp_path / ".netrc"))
    seen: list[Any] = []

    def answer(request: Any) -> None:
        seen.append(dict(request.headers))
        to = "" if len(seen) > 1 else "location: /\r\nset-cookie: a=b\r\n"
        status = "200 OK" if len(seen) > 1 else "302 Found"
        request.wfile.write(f"HTTP/1.1 {status}\r\ncontent-type: text/plain\r\n{to}\r\nx".encode())

    site.answers["/"] = answer
    get(site.url())
    assert len(seen) == 2
    for headers in seen:
        names = {name.lower() for name in headers}
        assert not names & {"authorization", "cookie", "proxy-authorization", "referer"}


@pytest.mark.parametrize("hop", [1, 3, 5])
def test_no_hop_of_several_leads_there(secret: Site, site: Site, hop: int) -> None:
    for n in range(hop):
        site.redirect(f"/{n}", f"/{n + 1}")
    site.redirect(f"/{hop}", secret.url())
    allowed = (f"127.0.0.1:{site.server_port}",)
    url = site.url("/1")
    assert refusal(url, fetch_allow_private=False, outbound_allowed_hosts=allowed)
    assert secret.paths == []


META_REFRESH = '<meta http-equiv="refresh" content="0; url={url}"><p>there'


@pytest.mark.parametrize(
    ("headers", "body"),
    [
        ({}, META_REFRESH),
        ({}, '<link rel="canonical" href="{url}"><p>there'),
        ({}, '<base href="{url}"><script src="/x"></script><img src="/y"><p>there'),
        ({}, '<iframe src="{url}"></iframe><object data="{url}"></object><p>there'),
        ({}, '<?xml version="1.0"?><!DOCTYPE html SYSTEM "{url}"><html><p>there</p></html>'),
        ({}, '<!DOCTYPE html [<!ENTITY a SYSTEM "{url}">]><html><p>there &a;</p></html>'),
        ({"refresh": "0; url={url}"}, "<p>there"),
        ({"content_location": "{url}"}, "<p>there"),
        ({"location": "{url}"}, "<p>there"),
        ({"link": '<{url}>; rel="canonical"'}, "<p>there"),
        ({"alt_svc": 'h2="{host}"'}, "<p>there"),
        ({"proxy_authenticate": "Basic"}, "<p>there"),
    ],
)  # fmt: skip
def test_nothing_but_a_redirect_leads_anywhere(
    secret: Site, site: Site, headers: dict[str, str], body: str
) -> None:
    at = {"url": secret.url(), "host": f"127.0.0.1:{secret.server_port}"}
    filled = {name: value.format(**at) for name, value in headers.items()}
    url = site.page("/", body.format(**at), "text/html", 200, **filled)
    allowed = (f"127.0.0.1:{site.server_port}",)
    page = get(url, fetch_allow_private=False, outbound_allowed_hosts=allowed)
    assert "there" in page.text
    assert secret.paths == []


@pytest.mark.parametrize(
    "answer",
    [
        b"there, as HTTP/0.9 has it",
        b"HTTP/1.1 302 Found\r\nlocation: {url}\r\n x\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /a\r\nlocation: {url}\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: /\rlocation: {url}\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http://127.0.0.1:{port}\x00.example.org/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: //127.0.0.1:{port}/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: \\\\127.0.0.1:{port}/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: http:/\\127.0.0.1:{port}/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: @127.0.0.1:{port}/\r\n\r\n",
        b"HTTP/1.1 302 Found\r\nlocation: :@127.0.0.1:{port}/\r\n\r\n",
        b"HTTP/1.1 305 Use Proxy\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 300 Multiple Choices\r\nlocation: {url}\r\ncontent-length: 0\r\n\r\n",
        b"HTTP/1.1 101 Switching Protocols\r\nupgrade: h2c\r\nconnection: upgrade\r\n\r\nx",
        b"HTTP/1.1 401 Unauthorized\r\nwww-authenticate: Basic realm={url}\r\n"
        b"content-length: 0\r\n\r\n",
        b"HTTP/1.1 407 Proxy\r\nproxy-authenticate: Basic\r\ncontent-length: 0\r\n\r\n",
    ],
)
def test_no_answer_of_a_server_leads_there(secret: Site, site: Site, answer: bytes) -> None:
    filled = answer.replace(b"{url}", secret.url().encode())
    filled = filled.replace(b"{port}", str(secret.server_port).encode())

    def send(request: Any) -> None:
        request.wfile.write(filled)
        request.close_connection = True

    site.answers["/"] = send
    allowed = (f"127.0.0.1:{site.server_port}",)
    assert refusal(
        site.url(), fetch_allow_private=False, outbound_allowed_hosts=allowed, fetch_timeout_s=5
    )
    assert secret.paths == []


# Each way out that users have; sources of jobs are in test_web_sources.py


@pytest.mark.parametrize("host", HOSTS.values(), ids=HOSTS)
def test_no_webhook_reaches_what_is_private(secret: Site, host: str) -> None:
    port = secret.server_port
    url = f"http://{host.format(port=port, wrapped=port + 65536)}/"

    def sending() -> Any:
        return webhook.post(url, b"{}", {}, Settings(_env_file=None))

    with pytest.raises(InvalidInput):
        outbound.within(sending, timeout_s=5, what=url, stop=threading.Event())
    assert secret.paths == []


# Servers that the deployer has named: they may be private, but lead nowhere else


def test_model_servers_and_stores_are_not_followed_anywhere() -> None:
    """Of all clients of HTTP in the programs; what those of models make of a redirect is in
    test_remote_faults.py."""
    root = Path(__file__).parents[2]
    parts = [root / part for part in ("api", "cli", "shared", "workers")]
    guarded = 0
    for path in (path for part in parts for path in part.rglob("*.py")):
        source = path.read_text()
        assert not re.search(r"follow_redirects\s*=\s*(?!False)", source), path
        others = r"^\s*(?:import|from) (?:requests|aiohttp|urllib3|http\.client)\b|\burlopen\("
        assert not re.search(others, source, re.M), path
        guarded += "**server_options(" in source
    assert guarded == 4


def test_options_of_a_named_server() -> None:
    assert server_options("http://127.0.0.1:11434") == {
        "follow_redirects": False, "trust_env": False,
    }  # fmt: skip
    assert server_options("https://models.example/v1")["trust_env"]
    assert not server_options("http://[::1]:1/v1")["trust_env"]


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_the_hubs_library_is_not_led_to_what_is_private(
    secret: Site, site: Site, status: int
) -> None:
    """It follows redirects, for files of models lie elsewhere."""
    site.redirect("/model", "/file", status)
    site.page("/file", "weights", "text/plain")
    site.redirect("/evil", secret.url(), status)
    settings = Settings(_env_file=None, hf_hub_url=site.url(""))
    guard_hub(settings)
    assert get_session().get(site.url("/model")).text == "weights"
    with pytest.raises(InvalidInput, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
        get_session().get(site.url("/evil"))
    with pytest.raises(InvalidInput, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
        get_session().head(site.url("/evil"))
    assert secret.paths == []
    permitted = (f"127.0.0.1:{secret.server_port}",)
    guard_hub(settings.model_copy(update={"outbound_allowed_hosts": permitted}))
    assert get_session().get(site.url("/evil")).text == "secret"
    secret.paths.clear()


@pytest.mark.parametrize("status", [307, 308])
def test_the_hubs_library_takes_no_prompt_elsewhere(secret: Site, site: Site, status: int) -> None:
    def answer(request: Any) -> None:
        request.wfile.write(f"HTTP/1.1 {status} X\r\nlocation: {secret.url()}\r\n\r\n".encode())
        request.close_connection = True

    site.answers["/"] = answer
    permitted = (f"127.0.0.1:{secret.server_port}",)
    settings = Settings(_env_file=None, hf_hub_url=site.url(""), outbound_allowed_hosts=permitted)
    guard_hub(settings)
    with pytest.raises(InvalidInput, match="sends a POST on"):
        get_session().post(site.url(), json={"inputs": "a secret"})
    assert secret.paths == []


@pytest.mark.parametrize("status", [301, 302, 307, 308])
def test_a_server_of_tools_leads_nowhere(secret: Site, site: Site, status: int) -> None:
    url = site.redirect("/mcp", secret.url(), status)
    server = McpServer.model_validate({"url": url, "headers": {"Authorization": "Bearer a-key"}})
    settings = Settings(_env_file=None, mcp_servers={"office": server})
    with pytest.raises(StepError, match="office"):
        mcp.listed([McpTool(type="mcp", server="office")], settings, threading.Event())
    assert set(site.paths) == {"/mcp"}
    assert secret.paths == []


REGISTRIES = {
    "llama3.2": True,
    "llama3.2:3b": True,
    "mina/helpdesk:v2": True,
    "registry.ollama.ai/library/llama3.2": True,
    "https://registry.ollama.ai/library/llama3.2": True,
    "hf.co/bartowski/Llama-3.2-3B-Instruct-GGUF:Q4_K_M": True,
    "HF.co/a/b": True,
    "huggingface.co/a/b": True,
    "models.example/a/b": True,
    "models.example:443/a/b": True,
    "https://models.example/a/b": True,
    "http://models.example/a/b": True,
    "lan.example:5000/a/b": True,
    "lan.example:5001/a/b": False,
    "lan.example/a/b": False,
    "models.example:6379/a/b": False,
    "evil.example/a/b": False,
    "127.0.0.1:5000/a/b": False,
    "http://127.0.0.1:5000/a/b": False,
    "169.254.169.254/a/b": False,
    "http://169.254.169.254/latest": False,
    "0x7f000001/a/b": False,
    "[::1]:5000/a/b": False,
    "localhost/a/b": False,
    "http://hf.co/a/b": False,
    "hf.co:8080/a/b": False,
    "hf.co.evil.example/a/b": False,
    "hf.co@evil.example/a/b": False,
    "evil.example/hf.co/a/b": False,
    "hf.co/../evil.example/a/b": False,
    "https://evil.example": False,
    "https:///a/b": False,
    "//evil.example/a/b": False,
    "hf.co\\@evil.example/a/b": False,
    "ｈf.co/a/b": False,
}


@pytest.mark.parametrize("name", REGISTRIES)
@pytest.mark.parametrize("action", ["pull", "create"])
def test_ollama_fetches_models_from_registries_that_are_known(action: str, name: str) -> None:
    settings = Settings(
        _env_file=None, outbound_allowed_hosts=("models.example", "lan.example:5000")
    )
    if action == "pull":
        input_ = ModelInput(action="pull", name=f"ollama/{name}")
    else:
        input_ = ModelInput.model_validate(
            {"action": "create", "name": "ollama/mine", "from": name}
        )
    if REGISTRIES[name]:
        MODEL.check(input_, settings)
    else:
        with pytest.raises(InvalidInput, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
            MODEL.check(input_, settings)


# What a deployer permits


@pytest.mark.parametrize(
    ("places", "host", "address", "port", "is_allowed"),
    [
        (["127.0.0.1"], "127.0.0.1", "127.0.0.1", 8080, True),
        (["127.0.0.1:8080"], "127.0.0.1", "127.0.0.1", 8080, True),
        (["127.0.0.1:8080"], "127.0.0.1", "127.0.0.1", 8081, False),
        (["127.0.0.1"], "127.0.0.2", "127.0.0.2", 8080, False),
        (["127.0.0.1"], "127.1", "127.0.0.1", 80, True),
        (["127.0.0.1"], "a.example", "::ffff:127.0.0.1", 80, True),
        (["10.0.0.0/8"], "wiki.example", "10.9.8.7", 443, True),
        (["10.0.0.0/8:443"], "wiki.example", "10.9.8.7", 443, True),
        (["10.0.0.0/8:443"], "wiki.example", "10.9.8.7", 80, False),
        (["10.0.0.0/8"], "wiki.example", "11.9.8.7", 80, True),
        (["[::1]:80", "fd00::/8"], "::1", "::1", 80, True),
        (["[::1]:80", "fd00::/8"], "a", "fd12::1", 80, True),
        (["[::1]:80"], "::1", "::1", 81, False),
        (["wiki.example"], "WIKI.example.", "192.168.1.1", 80, True),
        (["wiki.example:8080"], "wiki.example", "192.168.1.1", 80, False),
        (["wiki.example"], "evil.wiki.example", "192.168.1.1", 80, False),
        (["wiki.example"], "wiki.example.evil.example", "192.168.1.1", 80, False),
        (["위키.example"], "xn--9q5b29o.example", "192.168.1.1", 80, True),
        (["169.254.169.254", "169.254.0.0/16", "0.0.0.0/0"], "a", "169.254.169.254", 80, False),
        (["metadata.example"], "metadata.example", "169.254.169.254", 80, False),
        (["::/0"], "a", "fe80::1", 80, False),
        (["0.0.0.0/0"], "a", "0.0.0.0", 80, False),
        ([], "a", "8.8.8.8", 80, True),
        ([], "a", "10.0.0.1", 80, False),
    ],
)  # fmt: skip
def test_single_places_can_be_permitted(
    places: list[str], host: str, address: str, port: int, is_allowed: bool
) -> None:
    guard = Guard(allowed_hosts=[read_allowed_host(host) for host in places])
    assert guard.allows(host, address, port) == is_allowed


def test_a_blocked_port_is_permitted_by_its_number() -> None:
    hosts = ["queue.example:6379", "10.0.0.0/8:25"]
    guard = Guard(allowed_hosts=[read_allowed_host(host) for host in hosts])
    assert guard.allows("queue.example", "8.8.8.8", 6379)
    assert guard.allows("mail.example", "10.0.0.1", 25)
    assert not guard.allows("queue.example", "8.8.8.8", 25)
    assert not guard.allows("mail.example", "11.0.0.1", 25)
    hosts = ["queue.example", "10.0.0.0/8"]
    named = Guard(allowed_hosts=[read_allowed_host(host) for host in hosts])
    assert not named.allows("queue.example", "8.8.8.8", 6379)
    assert not named.allows("mail.example", "10.0.0.1", 25)
    assert not Guard(allow_private=True).allows("127.0.0.1", "127.0.0.1", 6379)


@pytest.mark.parametrize(
    "value",
    [
        "http://a.example/",
        "a b",
        "10.0.0.0/33",
        "a:b",
        "a:0",
        "a:65536",
        "*",
        "a.example:",
        ":80",
        "a,,*.b",
    ],
)
def test_what_is_no_place_is_refused(value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_OUTBOUND_ALLOWED_HOSTS", value)
    with pytest.raises(ConfigurationError, match="SLUICE_OUTBOUND_ALLOWED_HOSTS"):
        load_settings()


def test_places_are_read_from_the_environment(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SLUICE_OUTBOUND_ALLOWED_HOSTS", " wiki.example:8080, 10.0.0.0/8 ,")
    settings = load_settings()
    assert settings.outbound_allowed_hosts == ("wiki.example:8080", "10.0.0.0/8")
    assert settings.guard().allows("wiki.example", "192.168.0.1", 8080)


# Packed bodies


def packings() -> dict[str, tuple[str, Callable[[bytes], bytes]]]:
    def bare(data: bytes) -> bytes:
        packer = zlib.compressobj(wbits=-zlib.MAX_WBITS)
        return packer.compress(data) + packer.flush()

    def in_members(data: bytes) -> bytes:
        half = len(data) // 2
        return gzip.compress(data[:half]) + gzip.compress(data[half:])

    return {
        "gzip": ("gzip", gzip.compress),
        "x-gzip in capitals": ("X-GZIP", gzip.compress),
        "several members": ("gzip", in_members),
        "padding": ("gzip", lambda data: gzip.compress(data) + b"\0" * 100),
        "zlib": ("deflate", zlib.compress),
        "a bare stream": ("deflate", bare),
        "brotli": ("br", brotli.compress),
        "twice": ("gzip, br", lambda data: brotli.compress(gzip.compress(data))),
        "not at all": ("identity", lambda data: data),
    }


@pytest.mark.parametrize("packing", packings())
def test_every_packing_is_unpacked(site: Site, packing: str) -> None:
    encoding, pack = packings()[packing]
    text = "".join(f"word {n} " for n in range(2000))
    url = site.page("/", pack(text.encode()), "text/plain", content_encoding=encoding)
    assert get(url, fetch_limit_bytes=10**6).text == text
    bomb = site.page("/b", pack(b"a " * 5_000_000), "text/plain", content_encoding=encoding)
    page = get(bomb)
    assert page.is_cut
    assert len(page.text) <= 20_000
    if packing not in ("not at all", "padding"):
        broken = site.page("/c", pack(text.encode())[:-20], "text/plain", content_encoding=encoding)
        assert "in the middle" in refusal(broken, fetch_limit_bytes=10**6)


def test_packed_many_times_or_unknown_is_refused(site: Site) -> None:
    url = site.page("/", b"x", "text/plain", content_encoding="gzip, gzip, gzip, gzip")
    assert "packed 4 times" in refusal(url)
    assert "packed as zstd" in refusal(site.page("/z", b"x", "text/plain", content_encoding="zstd"))
