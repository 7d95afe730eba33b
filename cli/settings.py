"""Where the API is, for the CLI and the Python client: `SLUICE_URL`, else the local stack."""

import sys
from pathlib import Path

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from cli.errors import ConnectionFailed


class ClientSettings(BaseSettings):
    """The three settings of a client, so that a wrong setting of a server is no concern of it."""

    model_config = SettingsConfigDict(
        env_prefix="SLUICE_", env_file=".env", extra="ignore", frozen=True
    )

    url: str | None = None
    api_key: SecretStr | None = None
    home: Path = Path("~/.sluice")

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().resolve()


def find_url(settings: ClientSettings) -> str:
    """Raises `ConnectionFailed` where no URL is set and no local stack runs."""
    if settings.url:
        return settings.url
    # The local stack runs on Linux only; a client of another machine runs anywhere.
    if sys.platform == "linux":
        from cli.stackfile import find_stack

        stack = find_stack(settings.home_path)
        if stack is not None:
            return stack.api_url
    raise ConnectionFailed(
        "No API to talk to: SLUICE_URL is not set and no local stack runs. "
        "Start one with `sluice up`, or set SLUICE_URL."
    )
