"""The URL of the API and its key: `SLUICE_URL`, else `client.env`, else the local stack.

The Python client uses this, too, where it is installed beside the command: `local` is the entry
point `sluice.local` of `pyproject.toml`.

A client reads the environment and `client.env` under `SLUICE_HOME`, never a `.env` of its working
directory: a file in somebody else's folder must not decide where a key is sent. Servers and
`sluice up` do read `.env` (`shared/config.py`); here only its `SLUICE_HOME` is used.
"""

import ipaddress
import os
import sys
from pathlib import Path
from urllib.parse import urlsplit

from pydantic import SecretStr
from pydantic_settings import BaseSettings, SettingsConfigDict

from sluice import ConfigurationError, ConnectionFailed

FILE = "client.env"
DEFAULT_HOME = Path("~/.sluice")


class ClientSettings(BaseSettings):
    """The settings of a client alone, so that a wrong setting of a server does not stop it."""

    model_config = SettingsConfigDict(
        env_prefix="SLUICE_", env_ignore_empty=True, extra="ignore", frozen=True
    )

    url: str | None = None
    api_key: SecretStr | None = None
    home: Path | None = None

    @property
    def home_path(self) -> Path:
        """The home of the local stack. `.env` may set it, as for `sluice up`."""
        home = self.home or _FolderSettings().home or DEFAULT_HOME
        return home.expanduser().resolve()


class _FolderSettings(BaseSettings):
    model_config = SettingsConfigDict(
        env_prefix="SLUICE_", env_file=".env", env_ignore_empty=True, extra="ignore", frozen=True
    )

    home: Path | None = None


def client_settings(*, url: str | None = None) -> ClientSettings:
    """The settings of this environment. `url` is a URL that overrides them.

    The key in `client.env` is for the URL in that file: it is not read if the URL is set elsewhere.
    """
    if url or os.environ.get("SLUICE_URL"):
        return ClientSettings()
    # Not `home_path`: the `.env` of the working directory may be somebody else's.
    home = Path(os.environ.get("SLUICE_HOME") or DEFAULT_HOME).expanduser()
    file = home / FILE
    try:
        return ClientSettings(
            _env_file=file if file.is_file() else None, _env_file_encoding="utf-8"
        )
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"{file} cannot be read: {error}") from error


def connection(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """The URL and the key of the API. Arguments override all settings."""
    settings = client_settings(url=url)
    if api_key is None and settings.api_key is not None:
        api_key = settings.api_key.get_secret_value()
    return url or find_url(settings), api_key


def local() -> tuple[str, str | None]:
    """The URL and the key for a program that passes none."""
    return connection(None, None)


def find_url(settings: ClientSettings) -> str:
    """Raises `ConnectionFailed` if no URL is set and no local stack runs."""
    if settings.url:
        return settings.url
    # The local stack runs on Linux only; a client runs anywhere.
    if sys.platform == "linux":
        from cli.stack.stackfile import find_stack

        stack = find_stack(settings.home_path)
        if stack is not None:
            if settings.home is None and not _is_loopback(stack.api_url):
                raise ConfigurationError(
                    f"The stack under {settings.home_path} names {stack.api_url}, which is another "
                    "machine. Set SLUICE_URL to it if that is meant."
                )
            return stack.api_url
    raise ConnectionFailed(
        "No API to talk to: SLUICE_URL is not set and no local stack runs. "
        "Start one with `sluice up`, or set SLUICE_URL."
    )


def _is_loopback(url: str) -> bool:
    host = urlsplit(url).hostname or ""
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
