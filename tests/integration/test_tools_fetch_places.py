"""Where `fetch_url` goes: redirects, addresses, names and certificates."""

import asyncio
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from shared.addresses import Guard, is_allowed, literal
from shared.config import Settings
from shared.errors import InvalidInput
from tests.integration.websites import Site, get, refusal, serving
from workers.outbound import resolve
from workers.tools.fetch import fetch


@pytest.fixture
def site() -> Iterator[Site]:
    with serving() as site:
        yield site


def test_redirects_are_followed_to_the_end(site: Site) -> None:
    site.page("/end?a=b", "there", "text/plain")
    site.redirect("/2", site.url("/end?a=b#part"), 308)
    page = get(site.redirect("/1", "2", 301))
    assert (page.text, page.url) == ("there", site.url("/end?a=b"))


def test_at_most_five_redirects_are_followed(site: Site) -> None:
    site.page("/0", "there", "text/plain")
    for n in range(1, 7):
        site.redirect(f"/{n}", f"/{n - 1}")
    assert get(site.url("/5")).text == "there"
    assert "more than 5 times" in refusal(site.url("/6"))
    assert "more than 5 times" in refusal(site.redirect("/loop", "/loop"))


@pytest.mark.parametrize(
    "to",
    ["http://169.254.169.254/latest/meta-data/", "file:///etc/passwd", "ftp://127.0.0.1/",
     "gopher://127.0.0.1:6379/_FLUSHALL", "http://[::ffff:169.254.169.254]/", "http://0.0.0.0/",
     "http://user:password@127.0.0.1/", "http://[::1"],
)  # fmt: skip
def test_every_hop_is_checked(site: Site, to: str) -> None:
    refusal(site.redirect("/", to))
    assert site.paths == ["/"]


# Addresses


@pytest.mark.parametrize(
    "host", ["127.0.0.1", "localhost", "127.1", "2130706433", "0x7f000001", "[::ffff:127.0.0.1]"]
)
def test_this_machine_is_not_reached_under_any_of_its_names(site: Site, host: str) -> None:
    site.page("/", "secret", "text/plain")
    assert "not an address of the public internet" in refusal(
        site.url(host=host), fetch_allow_private=False
    )
    assert site.paths == []


PUBLIC = ["8.8.8.8", "1.1.1.1", "2606:4700:4700::1111", "64:ff9b::808:808", "2002:808:808::1"]
PRIVATE = [
    "10.0.0.1", "172.16.0.1", "192.168.1.1", "127.0.0.1", "127.255.255.254", "100.64.0.1", "::1",
    "fc00::1", "fd12::1", "::ffff:10.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "192.0.2.1",
    "198.18.0.1", "2001:db8::1", "fec0::1", "64:ff9b:1::a00:1", "3fff::1", "::7f00:1", "5f00::1",
    "2606:4700::5efe:a00:1", "2001:0:808:808:0:0:f5ff:fffe", "0.1.2.3",
]  # fmt: skip
NEVER = [
    "0.0.0.0", "::", "169.254.169.254", "169.254.0.1", "fe80::1", "fe80::1%eth0", "224.0.0.1",
    "239.1.1.1", "ff02::1", "::ffff:169.254.169.254", "64:ff9b::a9fe:a9fe", "100.100.100.200",
    "168.63.129.16", "192.0.0.192", "fd00:ec2::254", "2002:a9fe:a9fe::", "nonsense", "::a9fe:a9fe",
    "2606:4700::200:5efe:a9fe:a9fe",
]  # fmt: skip


@pytest.mark.parametrize("address", PUBLIC + PRIVATE + NEVER)
def test_which_addresses_are_allowed(address: str) -> None:
    assert is_allowed(address, allow_private=False) == (address in PUBLIC)
    assert is_allowed(address, allow_private=True) == (address not in NEVER)


def test_a_name_that_does_not_exist_is_reported() -> None:
    with pytest.raises(InvalidInput, match=r"no host 'none-such\.invalid'"):
        asyncio.run(resolve("none-such.invalid", 80, guard=Guard()))


@pytest.mark.parametrize(
    "url",
    ["", "not a url", "example.org", "//example.org", "file:///etc/passwd", "javascript:1",
     "http://", "http://a b/", "http://exa\nmple/", "http://a:99999/", "http://" + "a" * 300,
     "http://user@127.0.0.1/", "http://\ud800/"],
)  # fmt: skip
def test_other_addresses_are_errors(url: str) -> None:
    assert refusal(url, fetch_allow_private=False)


# Certificates


def test_the_certificate_must_be_the_hosts_though_its_address_is_called(certificate: Path) -> None:
    tls = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    tls.load_cert_chain(certificate)
    trusting = ssl.create_default_context(cafile=certificate)
    settings = Settings(_env_file=None, fetch_allow_private=True)
    with serving(tls) as site:
        site.page("/", "secure", "text/plain")
        url = site.url(host="localhost", scheme="https")
        page = fetch(url, settings, threading.Event(), tls=trusting)
        assert (page.text, page.url) == ("secure", url)
        assert site.hosts == [f"localhost:{site.server_port}"]
        assert "certificate" in refusal(url).lower()
        other = site.url(scheme="https")
        with pytest.raises(InvalidInput, match=r"(?i)certificate"):
            fetch(other, settings, threading.Event(), tls=trusting)


@pytest.mark.parametrize(
    ("host", "address"),
    [("127.0.0.1", "127.0.0.1"), ("127.1", "127.0.0.1"), ("2130706433", "127.0.0.1"),
     ("0x7f.1", "127.0.0.1"), ("0177.0.0.1", "127.0.0.1"), ("[::1]", "::1"),
     ("[::ffff:10.0.0.1]", "::ffff:a00:1"), ("LOCALHOST.", "127.0.0.1"),
     ("a.localhost", "127.0.0.1"), ("example.org", None), ("1.2.3.4.5", None), ("한국", None)],
)  # fmt: skip
def test_which_addresses_hosts_spell_out(host: str, address: str | None) -> None:
    spelled = literal(host)
    assert spelled == address or spelled == "::ffff:10.0.0.1"
