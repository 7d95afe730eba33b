"""`python -m api`: the HTTP server, with its settings from the environment."""

import ctypes
import gc
import logging
import sys
from contextlib import suppress

from pydantic import SecretStr

from shared.addresses import is_loopback
from shared.config import HttpSettings, load_settings, set_up_logging
from shared.errors import ConfigurationError
from shared.vector_stores import configured_store

log = logging.getLogger(__name__)

EXIT_CONFIGURATION = 2
SECRET_CHARS = 16
"""There is a warning about shorter secrets."""
MMAP_THRESHOLD, ARENA_MAX = -3, -8
"""Of glibc's `mallopt` (malloc.h)."""
LARGE_BLOCK_BYTES = 256 * 1024
SWITCH_S = 0.0005
"""The interpreter's switch interval, so that threads which parse large bodies do not slow down the
event loop."""


def main() -> int:
    try:
        settings = load_settings()
        settings.require_database_url()
        settings.require_redis_url()
        configured_store(settings)
        check_exposure(settings)
        # Imported here, which takes seconds: a wrong setting is named at once.
        from api.app import create_app
        from api.http.server import ApiServer

        app = create_app(settings)
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_CONFIGURATION
    set_up_logging(settings.log_level)
    return_memory()
    sys.setswitchinterval(SWITCH_S)
    for name in sorted({name for name, secret in settings.api_secrets if is_short(secret)}):
        log.warning(
            "the secret of the key %r has fewer than %d characters, and can be guessed; replace it "
            "in SLUICE_API_KEYS, for example by the output of `openssl rand -hex 24`",
            name, SECRET_CHARS,
        )  # fmt: skip
    # The objects of the application live as long as the process: the collector need not scan them.
    gc.collect()
    gc.freeze()
    server = ApiServer(app, settings, host=settings.api_host, port=settings.api_port)
    server.run()
    return 0 if server.started else 1


def return_memory() -> None:
    """Make glibc return the memory of large blocks when they are freed.

    By default it raises its threshold with the first large block that is freed, and then keeps the
    memory of bodies and answers, in an arena for each thread.
    """
    with suppress(OSError, AttributeError):  # another libc
        libc = ctypes.CDLL(None)
        libc.mallopt(MMAP_THRESHOLD, LARGE_BLOCK_BYTES)
        libc.mallopt(ARENA_MAX, 2)


def check_exposure(settings: HttpSettings) -> None:
    """Raises ConfigurationError if other machines could reach an API without keys."""
    if settings.api_keys or settings.api_allow_anonymous or is_loopback(settings.api_host):
        return
    raise ConfigurationError(
        f"SLUICE_API_HOST={settings.api_host} can be reached from other machines, and "
        "SLUICE_API_KEYS is not set. Set SLUICE_API_KEYS=name:secret, or "
        "SLUICE_API_ALLOW_ANONYMOUS=1 if anyone who reaches it may use it."
    )


def is_short(secret: SecretStr) -> bool:
    return len(secret.get_secret_value()) < SECRET_CHARS


if __name__ == "__main__":
    sys.exit(main())
