"""The vector stores that can be used, one record each. How to add one: CONTRIBUTING.md."""

from collections.abc import Callable
from dataclasses import dataclass

from shared.config import ConnectionSettings


@dataclass(frozen=True, eq=False)
class StoreType:
    """A type of vector store for all parts of Sluice; only workers import the store itself."""

    name: str
    url: Callable[[ConnectionSettings], str | None]
    """The URL of its server; None if the settings have none."""
    setting: str
    """The name of the setting with the URL, for messages."""
    health_path: str
    """The path below the URL that answers 200 if the server is healthy."""
    store: str
    """A `VectorStore` (`workers/retrieval/store.py`) as `module:class`, made with the settings."""

    def health_url(self, url: str) -> str:
        return url.rstrip("/") + self.health_path


STORES: dict[str, StoreType] = {
    type_.name: type_
    for type_ in (
        StoreType(
            "chroma",
            lambda settings: settings.chroma_url,
            "SLUICE_CHROMA_URL",
            "/api/v2/heartbeat",
            "workers.retrieval.chroma:Chroma",
        ),
    )
}
CHROMA = STORES["chroma"]


def store_type(settings: ConnectionSettings) -> StoreType:
    """The first type with a server in the settings."""
    return next((type_ for type_ in STORES.values() if type_.url(settings)), CHROMA)
