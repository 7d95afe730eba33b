"""Vector stores that can be used, a line each. How to add one: CONTRIBUTING.md."""

from collections.abc import Callable
from dataclasses import dataclass

from shared.config import ConnectionSettings


@dataclass(frozen=True, eq=False)
class StoreType:
    """What all parts know of a sort of vector store; only workers import the store itself."""

    name: str
    url: Callable[[ConnectionSettings], str | None]
    """Where its server is; None where the settings name none."""
    setting: str
    """The setting that says so, for messages."""
    health_path: str
    """Below the URL: what answers 200 while the server is well."""
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
    """The first that the settings name a server of."""
    return next((type_ for type_ in STORES.values() if type_.url(settings)), CHROMA)
