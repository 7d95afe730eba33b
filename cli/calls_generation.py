"""The calls about models and conversations."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any
from urllib.parse import quote

from cli.asking import create_input, delete_input, pull_input
from cli.caller import PAGE_ITEMS, part
from cli.calls_jobs import JobCalls
from cli.wire import Conversation, ConversationMessage, Event, Job, Model, ModelDetails

OnEvent = Callable[[Event], None]


class GenerationCalls(JobCalls):
    # Models

    def models(self) -> list[Model]:
        return self._all(Model, "/v1/models")

    def model(self, reference: str) -> ModelDetails:
        """One model; of those of Ollama, what that server tells of it."""
        return self._get(ModelDetails, f"/v1/models/{quote(reference, safe='/')}")

    def pull_model(
        self, name: str, *, timeout_s: float | None = None, on_event: OnEvent | None = None
    ) -> Job:
        """Have the Ollama server fetch a model; the job, succeeded.

        `name` is `ollama/llama3.2` or, shorter, `llama3.2`.
        """
        return self._change(pull_input(name), timeout_s, on_event)

    def create_model(
        self,
        name: str,
        from_: str,
        *,
        system: str | None = None,
        template: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
        on_event: OnEvent | None = None,
    ) -> Job:
        """Have the Ollama server make a model of another one, in the place of one of that name."""
        wanted = create_input(
            name, from_, system=system, template=template, parameters=parameters or {}
        )
        return self._change(wanted, timeout_s, on_event)

    def delete_model(self, name: str, *, timeout_s: float | None = None) -> Job:
        return self._change(delete_input(name), timeout_s, None)

    def _change(
        self, wanted: Mapping[str, Any], timeout_s: float | None, on_event: OnEvent | None
    ) -> Job:
        job = self.submit("model", wanted, lane="interactive")
        return self.wait(job.id, timeout_s=timeout_s, on_event=on_event).require_success()

    # Conversations

    def start_conversation(
        self, metadata: Mapping[str, Any] | None = None, *, summarize: bool = False
    ) -> Conversation:
        """With `summarize`, what finds no room in the model's window later is summed up."""
        body = {"metadata": dict(metadata or {}), "summarize": summarize}
        # Repeating it blindly could start two.
        answer = self.transport.json("POST", "/v1/conversations", body=body, safe=False)
        return Conversation.model_validate(answer)

    def conversations(self, *, page_items: int = PAGE_ITEMS) -> Iterator[Conversation]:
        """Newest first, page by page."""
        return self._pages(Conversation, "/v1/conversations", {}, page_items)

    def conversation(self, conversation_id: str) -> Conversation:
        return self._get(Conversation, f"/v1/conversations/{part(conversation_id)}")

    def conversation_messages(self, conversation_id: str) -> Sequence[ConversationMessage]:
        """All of them, oldest first."""
        path = f"/v1/conversations/{part(conversation_id)}/messages"
        return list(self._pages(ConversationMessage, path, {}, PAGE_ITEMS))

    def erase_conversation(self, conversation_id: str) -> None:
        """With all its messages. Turns that are open end, and are not stored."""
        self.transport.request("DELETE", f"/v1/conversations/{part(conversation_id)}")
