"""One method for each call of the HTTP API, typed in and out.

Whole tasks (`ask`, `chat`, `ingest`, …) are in `cli/client.py`.
"""

from cli.caller import part
from cli.calls_documents import DocumentCalls
from cli.calls_generation import GenerationCalls
from cli.wire import Queue, Readiness, Worker


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

    def health(self) -> bool:
        """Whether the API itself answers."""
        return self.transport.request("GET", "/healthz").status_code == 200

    def ready(self) -> Readiness:
        """Whether everything that jobs need is there, part by part."""
        answer = self.transport.json("GET", "/readyz", accept_status=(503,))
        return Readiness.model_validate(answer)
