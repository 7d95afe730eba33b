"""The test servers as programs of their own, as other tests start them."""

import sys
from pathlib import Path
from typing import Any

import httpx
import pytest

from shared.config import Settings
from shared.errors import Permanent
from tests.api_server import environment
from tests.generation.contract import ended, said
from tests.integration.remotes import MODEL, QUICK, Remote
from tests.servers import Server, free_port
from tests.wire.behaviour import Wire
from workers.generation.backends.interface import Request


@pytest.mark.parametrize(
    ("provider", "key", "suffix"),
    [("ollama", "ollama_url", ""), ("openai", "openai_base_url", "/v1")],
)
def test_a_server_alone_is_steered_over_http(
    tmp_path: Path, provider: str, key: str, suffix: str
) -> None:
    port = free_port()
    url = f"http://127.0.0.1:{port}"

    def is_up() -> bool:
        try:
            return httpx.get(f"{url}/control", trust_env=False).is_success
        except httpx.TransportError:
            return False

    server = Server(
        [sys.executable, "-m", f"tests.wire.{provider}_server", "--port", str(port)],
        url=url,
        folder=tmp_path,
        is_ready=is_up,
        env=environment(Settings(_env_file=None)),
    )
    try:
        address: dict[str, Any] = {key: url + suffix}
        settings = Settings(_env_file=None, **QUICK, **address)
        remote = Remote(provider=provider, wire=Wire(), settings=settings)
        with httpx.Client(base_url=url, trust_env=False) as control, remote.generator() as model:
            assert ended(model.start(Request(messages=said("count to 3"))))[0].text == "1 2 3"
            faults = {"refuse_times": 1, "refuse_status": 400, "refuse_message": "by control"}
            control.put(f"/control/{MODEL}", json=faults).raise_for_status()
            with pytest.raises(Permanent, match="by control"):
                ended(model.start(Request(messages=said("count to 3"))))
            paths = [recorded["path"] for recorded in control.get("/control").json()["requests"]]
            assert sum("chat" in path for path in paths) == 2
    finally:
        server.stop()
