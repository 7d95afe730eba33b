"""One method for each call of the HTTP API, typed in and out.

Whole tasks (`ask`, `chat`, `ingest`, …) are in `cli/client.py`.
"""

import re

from cli.caller import part
from cli.calls_documents import DocumentCalls
from cli.calls_generation import GenerationCalls
from cli.wire import Queue, Readiness, Worker
from shared.errors import NotFound

_PREFIX = re.compile(r"[0-9a-fA-F-]+")
_SHORTEST, _DIGITS = 4, 32
_SHOWN_IDS = 3


class Calls(DocumentCalls, GenerationCalls):
    """All calls; here are those about the system itself."""

    def queues(self) -> list[Queue]:
        return self._all(Queue, "/v1/queues")

    def pause(self, queue: str) -> None:
        """Let no step of this queue start; what runs goes on."""
        self._post(f"/v1/queues/{part(queue)}/pause")

    def resume(self, queue: str) -> None:
        self._post(f"/v1/queues/{part(queue)}/resume")

    def workers(self) -> list[Worker]:
        return self._all(Worker, "/v1/workers")

    def whole_id(self, type: str, prefix: str) -> str:
        """The id of the one job, document, file or conversation that begins so.

        What is no beginning of an id, or of none, is given back as it is, for the API to refuse.
        Raises `NotFound` where several begin so.
        """
        digits = prefix.replace("-", "")
        if not _PREFIX.fullmatch(prefix) or not _SHORTEST <= len(digits) < _DIGITS:
            return prefix
        params = {"type": type, "prefix": prefix}
        found = [str(item["id"]) for item in self.transport.listed("GET", "/v1/ids", params=params)]
        if len(found) > 1:
            raise NotFound(
                f"More than one {type} begins with {prefix}; give more of the id: "
                f"{', '.join(found[:_SHOWN_IDS])}{', …' if len(found) > _SHOWN_IDS else ''}"
            )
        return found[0] if found else prefix

    def health(self) -> bool:
        """Whether the API itself answers."""
        return self.transport.request("GET", "/healthz").status_code == 200

    def ready(self) -> Readiness:
        """Whether everything that jobs need is there, part by part."""
        answer = self.transport.json("GET", "/readyz", accept_status=(503,))
        return Readiness.model_validate(answer)
