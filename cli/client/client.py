"""The Python client of Sluice's HTTP API: typed, synchronous, safe to share between threads.

    with Client() as sluice:
        sluice.ingest("handbook", ["docs/"])
        print(sluice.ask("handbook", "How do I renew my pass?").answer)

Every submit carries an `Idempotency-Key`, so that a repeated request is the same job. Errors are
`cli.errors`, all of them `SluiceError`. This module knows the calls; `cli/client/transport.py` does
HTTP and retries, `cli/client/calls.py` events, `cli/client/ingest.py` bulk uploads.
"""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import TracebackType
from typing import Any, Literal, Self

from cli.client import ingest as bulk
from cli.client.asking import Messages, Tools, chat_input, hf_input, rag_input, search_input
from cli.client.calls import Calls, attached, silent
from cli.client.ingest import PARALLEL_UPLOADS
from cli.client.shapes import Answer, ChatAnswer, Embeddings, Hit, Job
from cli.client.sources import discover, text_documents
from cli.client.transport import Retries, Transport
from cli.errors import WaitTimeout
from cli.settings import client_settings, find_url

_PREFER_S = 20.0
"""How long one answer is held back; what takes longer is followed through its events."""


class Client(Calls):
    """A connection to one API: `url`, else `SLUICE_URL`, else the running local stack.

    The key is `api_key`, else `SLUICE_API_KEY`; what stands for both in `client.env` under
    `SLUICE_HOME` is read where the environment says nothing (`cli/settings.py`).
    `timeout_s` bounds each answer, `retries` how long failing calls are repeated; `notify` is
    told what the client waits for, in sentences.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        notify: Callable[[str], None] | None = None,
    ) -> None:
        settings = client_settings(url=url)
        if api_key is None and settings.api_key is not None:
            api_key = settings.api_key.get_secret_value()
        notify = notify or silent
        transport = Transport(
            url or find_url(settings),
            api_key=api_key,
            timeout_s=timeout_s,
            retries=retries or Retries(),
            notify=notify,
        )
        super().__init__(transport, notify)

    def close(self) -> None:
        self.transport.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # Whole tasks: submit, wait, and the result

    def ingest(
        self,
        collection: str,
        paths: Sequence[str | Path] = (),
        *,
        texts: Mapping[str, str] | None = None,
        splitter: Mapping[str, Any] | None = None,
        csv: Mapping[str, Any] | None = None,
        on_existing: Literal["skip", "replace"] = "replace",
        metadata: Mapping[str, Any] | None = None,
        root: str | Path | None = None,
        lane: str | None = None,
        parallel_uploads: int = PARALLEL_UPLOADS,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> bulk.IngestReport:
        """Files, folders, globs, and `texts` by name into a collection, made where it is missing.

        Documents are named as their paths are given, or with `root` by their paths from there on.
        A file that is refused is an entry in the report's `errors`. Raises `JobFailed`,
        `JobCancelled` or `WaitTimeout` for the job as a whole.
        """
        discovery = discover([str(path) for path in paths], root=root)
        options = bulk.IngestOptions(
            splitter=splitter, csv=csv, on_existing=on_existing, metadata=metadata, lane=lane
        )
        return bulk.ingest(
            self,
            collection,
            [*discovery.documents, *text_documents(texts or {})],
            options=options,
            refused=discovery.errors,
            parallel_uploads=parallel_uploads,
            wait=wait,
            timeout_s=timeout_s,
        )

    def search(
        self,
        collection: str,
        query: str,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> list[Hit]:
        job_input = search_input(collection, query, k=k, filter=filter)
        result = self._result("search", job_input, timeout_s)
        return [Hit.model_validate(hit) for hit in result["hits"]]

    def ask(
        self,
        collection: str,
        question: str,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        model: str | None = None,
        prompt: str | None = None,
        conversation_id: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """An answer from the documents of a collection, with its citations.

        `prompt` is a template with the places {context} and {question}; `parameters` are such as
        max_tokens and temperature.
        """
        job_input = rag_input(
            collection,
            question,
            k=k,
            filter=filter,
            model=model,
            prompt=prompt,
            conversation_id=conversation_id,
            parameters=parameters,
            response_format=response_format,
        )
        return Answer.model_validate(self._result("rag", job_input, timeout_s))

    def chat(
        self,
        messages: Messages,
        *,
        model: str | None = None,
        conversation_id: str | None = None,
        tools: Tools = (),
        parameters: Mapping[str, Any] | None = None,
        response_format: Mapping[str, Any] | None = None,
        timeout_s: float | None = None,
    ) -> ChatAnswer:
        """A model's answer to a text or to messages.

        `tools` are names (calculator, fetch_url, search_collection:NAME) or whole specs. To get
        the text as it comes, `submit` the job and `stream` it.
        """
        job_input = chat_input(
            messages,
            model=model,
            conversation_id=conversation_id,
            tools=tools,
            parameters=parameters,
            response_format=response_format,
        )
        return ChatAnswer.model_validate(self._result("chat", job_input, timeout_s))

    def embed(
        self, texts: Sequence[str], *, model: str | None = None, timeout_s: float | None = None
    ) -> Embeddings:
        job_input: dict[str, Any] = {"texts": list(texts)}
        if model is not None:
            job_input["model"] = model
        return Embeddings.model_validate(self._result("embed", job_input, timeout_s))

    def hf(
        self,
        task: str,
        inputs: Any,
        *,
        model: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        backend: Literal["local", "hub"] = "local",
        timeout_s: float | None = None,
    ) -> Any:
        """The output of a Hugging Face task, as the inference API has it.

        One input gives one output, a list of them a list. An image or audio is bytes or a `Path`,
        uploaded for as long as the job needs it. What the job warns of, `notify` is told.
        """
        with attached(self, inputs) as sent:
            job_input = hf_input(task, sent, model=model, parameters=parameters, backend=backend)
            job = self._finished("hf", job_input, timeout_s)
            result = self.result(job)
        for warning in job.warnings:
            self.notify(warning)
        return result

    def _result(
        self, kind: str, job_input: Mapping[str, Any], timeout_s: float | None
    ) -> dict[str, Any]:
        result: dict[str, Any] = self.result(self._finished(kind, job_input, timeout_s))
        return result or {}

    def _finished(self, kind: str, job_input: Mapping[str, Any], timeout_s: float | None) -> Job:
        """Submit in the lane of those who wait, and wait."""
        started = time.monotonic()
        wait_s = _PREFER_S if timeout_s is None else min(_PREFER_S, timeout_s)
        job = self.submit(kind, job_input, lane="interactive", wait_s=wait_s)
        if not job.ended and timeout_s is None:
            job = self.wait(job.id)
        elif not job.ended and timeout_s is not None:
            left_s = timeout_s - (time.monotonic() - started)
            try:
                job = self.wait(job.id, timeout_s=max(0.0, left_s))
            except WaitTimeout:
                raise WaitTimeout(job.id, timeout_s) from None
        return job.require_success()
