"""Where requests may go that are made on a user's behalf: every trick to reach something else."""

import gzip
import socket
import zlib
from collections.abc import Callable, Iterator
from typing import Any

import brotli
import pytest

from shared.addresses import Guard, read_allowed_host
from shared.config import load_settings
from shared.errors import ConfigurationError
from tests.integration.websites import Site, get, refusal, serving

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


# One line for each trick: what stands for the host (and its port, where there is a {port}).
HOSTS = {
    "loopback": "127.0.0.1:{port}",
    "another address of the loopback": "127.255.255.254:{port}",
    "a short address": "127.1:{port}",
    "three parts": "127.0.1:{port}",
    "a decimal number": "2130706433:{port}",
    "a hexadecimal number": "0x7f000001:{port}",
    "hexadecimal parts": "0x7f.0x0.0x0.0x1:{port}",
    "octal parts": "0177.0.0.01:{port}",
    "octal parts with zeros": "00000177.0.0.1:{port}",
    "mixed notations": "0x7f.0.1:{port}",
    "the name of this machine": "localhost:{port}",
    "in capitals": "LOCALHOST:{port}",
    "with a dot behind": "localhost.:{port}",
    "a name below it": "any.localhost:{port}",
    "an address with a dot behind": "127.0.0.1.:{port}",
    "zero": "0:{port}",
    "nowhere": "0.0.0.0:{port}",
    "this network": "0.1.2.3:{port}",
    "IPv6 loopback": "[::1]:{port}",
    "IPv6 loopback at length": "[0000:0000:0000:0000:0000:0000:0000:0001]:{port}",
    "IPv6 nowhere": "[::]:{port}",
    "IPv4 mapped": "[::ffff:127.0.0.1]:{port}",
    "IPv4 mapped in hexadecimal": "[::ffff:7f00:1]:{port}",
    "IPv4 compatible": "[::127.0.0.1]:{port}",
    "NAT64": "[64:ff9b::7f00:1]:{port}",
    "NAT64 of a network": "[64:ff9b:1::7f00:1]:{port}",
    "6to4": "[2002:7f00:1::]:{port}",
    "Teredo": "[2001:0:808:808:0:0:80ff:fffe]:{port}",
    "ISATAP": "[2606:4700::5efe:7f00:1]:{port}",
    "a zone": "[fe80::1%25lo]:{port}",
    "link-local IPv6": "[fe80::1]",
    "site-local": "[fec0::1]",
    "unique local": "[fd00::1]",
    "private A": "10.0.0.1",
    "private B": "172.16.0.1",
    "private C": "192.168.0.1",
    "shared space of providers": "100.64.0.1",
    "link-local": "169.254.0.1",
    "metadata of Amazon, Google, Azure": "169.254.169.254",
    "metadata as a number": "2852039166",
    "metadata in octal": "0251.0376.0251.0376",
    "metadata, mapped": "[::ffff:a9fe:a9fe]",
    "metadata by NAT64": "[64:ff9b::a9fe:a9fe]",
    "metadata of Amazon on IPv6": "[fd00:ec2::254]",
    "metadata of Alibaba": "100.100.100.200",
    "metadata of Oracle": "192.0.0.192",
    "Azure's host": "168.63.129.16",
    "multicast": "224.0.0.1",
    "multicast IPv6": "[ff02::1]",
    "broadcast": "255.255.255.255",
    "reserved": "240.0.0.1",
    "documentation": "192.0.2.1",
    "benchmarks": "198.18.0.1",
    "full-width digits": "１２７.０.０.１:{port}",
    "an ideographic dot": "127。0。0。1:{port}",
    "letters in circles": "ⓛⓞⓒⓐⓛⓗⓞⓢⓣ:{port}",
    "a soft hyphen": "local\u00adhost:{port}",
    "a zero-width space": "local\u200bhost:{port}",
    "an escaped host": "%6c%6f%63%61%6c%68%6f%73%74:{port}",
    "a user name": "user@127.0.0.1:{port}",
    "a public host as user name": "example.org@127.0.0.1:{port}",
    "a public host as user name and password": "example.org:80@127.0.0.1:{port}",
    "a backslash": "example.org:80\\@127.0.0.1:{port}",
    "two at signs": "a@example.org@127.0.0.1:{port}",
    "a blank": "127.0.0.1 example.org:{port}",
    "a line end": "127.0.0.1\r\nx:{port}",
    "a tab": "127.0\t.0.1:{port}",
    "a NUL": "127.0.0.1\0.example.org:{port}",
    "no host": ":{port}",
    "a port that wraps around": "127.0.0.1:{wrapped}",
    "the port 0": "8.8.8.8:0",
    "a port of mail": "8.8.8.8:25",
    "a port of a shell": "8.8.8.8:22",
    "a port of Redis": "8.8.8.8:6379",
    "a port of PostgreSQL": "8.8.8.8:5432",
}
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
