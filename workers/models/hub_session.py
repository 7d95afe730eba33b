"""The connections of huggingface_hub in this process, guarded.

The hub is a server that the deployer has named (`HF_ENDPOINT`, `SLUICE_HF_HUB_URL`), and keeps the
files of models with others, to which it redirects. So its library follows redirects, but only those
that read, and only to addresses that `workers/outbound.py` lets users have, too: prompts are sent
nowhere else, and no hub leads into the network around a worker. Large files may come through
hf_xet, which makes its own connections, to where the hub says.
"""

import threading
from functools import partial
from typing import Final
from urllib.parse import urlsplit
from urllib.request import getproxies, proxy_bypass

import httpx
from huggingface_hub import constants, set_client_factory
from huggingface_hub.utils._http import default_client_factory

from shared.addresses import Guard
from shared.config import Settings
from workers.outbound import check_hop

_PROVIDER: Final = "hf-inference"
_lock = threading.Lock()
_installed: tuple[Guard, frozenset[str]] | None = None


def inference_url() -> str:
    """Of the hub's own inference API."""
    return constants.INFERENCE_PROXY_TEMPLATE.format(provider=_PROVIDER)


def guard_hub(settings: Settings) -> None:
    """From now on the library makes guarded connections; once is enough."""
    global _installed
    urls = (constants.ENDPOINT, inference_url(), settings.hf_hub_url)
    arguments = (settings.guard(), frozenset(url for url in urls if url))
    with _lock:
        if arguments != _installed:
            set_client_factory(partial(_client, *arguments))
            _installed = arguments


def release_hub() -> None:
    """The library makes its own connections again, for other users of it in this process."""
    global _installed
    with _lock:
        if _installed is not None:
            set_client_factory(default_client_factory)
            _installed = None


def _client(guard: Guard, named: frozenset[str]) -> httpx.Client:
    client = default_client_factory()

    def check(request: httpx.Request) -> None:
        check_hop(request, named=named, guard=guard, is_proxied=proxy_of(str(request.url)) != "")

    client.event_hooks["request"].append(check)
    return client


def proxy_of(url: str) -> str:
    """The proxy of the environment before a host; empty where there is none."""
    address = urlsplit(url)
    proxies = {} if proxy_bypass(address.hostname or "") else getproxies()
    return proxies.get(address.scheme) or proxies.get("all") or ""
