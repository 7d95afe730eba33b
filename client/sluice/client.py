"""The Python clients of Sluice's HTTP API: `Client` blocks, `AsyncClient` is for asyncio.

    with Client() as sluice:
        sluice.ingest("handbook", ["docs/"])
        print(sluice.ask("handbook", "How do I renew my pass?").answer)

Both have the same methods with the same arguments. Each method is written once, as a coroutine:
single calls of the API in `sluice/calls.py`, tasks of several calls here. `Client` runs these
coroutines over a transport that blocks.

Every submit carries an `Idempotency-Key`, so that a repeated request is the same job. Errors are
those of `sluice.errors`, all of them `SluiceError`.
"""

import functools
import inspect
import os
import time
import uuid
from collections.abc import (
    AsyncGenerator,
    Callable,
    Collection,
    Coroutine,
    Iterator,
    Mapping,
    Sequence,
)
from contextlib import (
    AbstractAsyncContextManager,
    AbstractContextManager,
    contextmanager,
    suppress,
)
from importlib.metadata import entry_points
from pathlib import Path
from types import TracebackType
from typing import Any, Concatenate, Generic, Literal, ParamSpec, Self, TypeVar, cast, get_args

import httpx

from sluice.bundles import download, require_folder, unused_slices, upload_slices
from sluice.calls import Calls, J, segment, silent
from sluice.errors import ApiError, ConnectionFailed, InvalidInput, SluiceError, WaitTimeout
from sluice.ingest import (
    PARALLEL_UPLOADS,
    Advance,
    FileHashes,
    IngestOptions,
    IngestReport,
    IngestRun,
    ignore,
    ingest_documents,
)
from sluice.inputs import Messages, Tools, chat_input, hf_input, rag_input, search_input
from sluice.jobs import AsyncClientJob, ClientJob
from sluice.kinds import (
    AsyncSubmit,
    CsvOptions,
    HtmlOptions,
    JsonOptions,
    Lane,
    OcrOptions,
    Parameters,
    ResponseFormat,
    SearchOptions,
    SpeechOptions,
    Splitter,
    Submit,
)
from sluice.shapes import Answer, ChatAnswer, Embeddings, Hit, Job, SourceError
from sluice.sources import (
    LocalDocument,
    discover,
    folder_documents,
    is_folder_url,
    is_url,
    readable,
    site_documents,
    text_documents,
    url_documents,
)
from sluice.sync import MAX_ERASED_SHARE, SyncReport, sync_documents
from sluice.transport import AsyncTransport, BlockingTransport, Retries, drive

P = ParamSpec("P")
R = TypeVar("R")

LOCAL = "sluice.local"
"""Group of entry points: functions that return the URL and the key (or None) of an API on this
machine. Sluice itself has one for its local stack."""
_PREFER_S = 20.0
"""How long a submit waits for the end of its job. Longer jobs are followed by their events."""


class Tasks(Calls[J], Generic[J]):
    """Tasks of several calls: submit a job, wait for it, and return its result."""

    async def ingest(
        self,
        collection: str,
        paths: Sequence[str | Path] = (),
        *,
        texts: Mapping[str, str] | None = None,
        sites: Sequence[str] = (),
        splitter: Splitter | None = None,
        encoding: str | None = None,
        csv: CsvOptions | None = None,
        html: HtmlOptions | None = None,
        json: JsonOptions | None = None,
        ocr: OcrOptions | None = None,
        speech: SpeechOptions | None = None,
        on_existing: Literal["skip", "replace"] | None = None,
        on_duplicate: Literal["warn", "skip"] | None = None,
        metadata: Mapping[str, Any] | None = None,
        root: str | Path | None = None,
        lane: Lane | None = None,
        parallel_uploads: int = PARALLEL_UPLOADS,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> IngestReport:
        """Ingest files, folders, globs, URLs, and `texts` by name; and all pages of `sites`.

        A missing collection is made. In folders, pictures are looked for with `ocr` alone, and
        recordings with `speech`. The name of a document is its path as it was written, or its
        path relative to `root`. A file that is refused is an entry in the report's `errors`.
        Raises `JobFailed`, `JobCancelled` or `WaitTimeout` for the job as a whole.
        """
        arguments = [str(path) for path in paths]
        local = [path for path in arguments if not (is_url(path) or is_folder_url(path))]
        remote = [
            *url_documents(filter(is_url, arguments)),
            *folder_documents(filter(is_folder_url, arguments)),
            *site_documents(sites),
        ]
        options = IngestOptions(
            splitter=splitter,
            encoding=encoding,
            csv=csv,
            html=html,
            json=json,
            ocr=ocr,
            speech=speech,
            on_existing=on_existing,
            on_duplicate=on_duplicate,
            metadata=metadata,
            lane=lane,
        )
        discovery = await self.transport.in_thread(
            discover, local, root=root, suffixes=readable(options.requested)
        )
        return await self.ingest_documents(
            collection,
            [*discovery.documents, *text_documents(texts or {}), *remote],
            options=options,
            refused=discovery.errors,
            parallel_uploads=parallel_uploads,
            wait=wait,
            timeout_s=timeout_s,
        )

    async def ingest_documents(
        self,
        collection: str,
        documents: Sequence[LocalDocument],
        *,
        options: IngestOptions | None = None,
        refused: Sequence[SourceError] = (),
        parallel_uploads: int = PARALLEL_UPLOADS,
        wait: bool = True,
        timeout_s: float | None = None,
        on_advance: Callable[[Advance], object] | None = None,
        on_submit: Callable[[Job], object] | None = None,
    ) -> IngestReport:
        """`ingest` for documents that were discovered before (`sluice/sources.py`).

        The errors in `refused` become part of the report. Callbacks are called in this thread.
        """
        run = IngestRun(
            options=options or IngestOptions(),
            parallel_uploads=parallel_uploads,
            timeout_s=timeout_s,
            on_advance=on_advance or ignore,
            on_submit=on_submit or ignore,
        )
        return await ingest_documents(self, collection, documents, run, refused=refused, wait=wait)

    async def sync(
        self,
        collection: str,
        paths: Sequence[str | Path],
        *,
        options: IngestOptions | None = None,
        root: str | Path | None = None,
        dry_run: bool = False,
        max_erased_share: float = MAX_ERASED_SHARE,
        suffixes: Collection[str] | None = None,
        max_pages: int | None = None,
        hashes: FileHashes | None = None,
        parallel_uploads: int = PARALLEL_UPLOADS,
        timeout_s: float | None = None,
        on_advance: Callable[[Advance], object] | None = None,
        on_submit: Callable[[Job], object] | None = None,
    ) -> SyncReport:
        """Make the collection equal to files and folders, a site or a bucket: new documents are
        added, changed ones replaced, and missing ones erased.

        Raises `InvalidInput`, and erases nothing, if more than `max_erased_share` of the documents
        are missing. With `dry_run` nothing is changed. A program that syncs again and again passes
        the same `hashes` each time, so that files are read only if they have changed.
        """
        run = IngestRun(
            options=options or IngestOptions(),
            hashes=hashes,
            parallel_uploads=parallel_uploads,
            timeout_s=timeout_s,
            on_advance=on_advance or ignore,
            on_submit=on_submit or ignore,
        )
        return await sync_documents(
            self,
            collection,
            [str(path) for path in paths],
            run,
            root=root,
            is_dry_run=dry_run,
            max_erased_share=max_erased_share,
            suffixes=readable((options or IngestOptions()).requested)
            if suffixes is None
            else suffixes,
            max_pages=max_pages,
        )

    async def search(
        self,
        collection: str | Sequence[str],
        query: str,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        search: SearchOptions | None = None,
        timeout_s: float | None = None,
    ) -> list[Hit]:
        """The passages of one or several collections that answer a query, best first.

        `search` has the other options, such as {"type": "lexical"} or {"expand": 1}.
        """
        job_input = search_input(collection, query, k=k, filter=filter, search=search)
        result = await self._result("search", job_input, timeout_s)
        return [Hit.model_validate(hit) for hit in result["hits"]]

    async def search_vector(
        self,
        collection: str | Sequence[str],
        vector: Sequence[float],
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        search: SearchOptions | None = None,
        timeout_s: float | None = None,
    ) -> list[Hit]:
        """The passages nearest to `vector`, which must be of the collection's embedding model.

        `search` has options of the types similarity (the default here), mmr and
        similarity_score_threshold.
        """
        options = cast("SearchOptions", {"type": "similarity", **(search or {})})
        job_input = {**search_input(collection, "", k=k, filter=filter, search=options)}
        del job_input["query"]
        job_input["vector"] = list(vector)
        result = await self._result("search", job_input, timeout_s)
        return [Hit.model_validate(hit) for hit in result["hits"]]

    async def search_many(
        self,
        collection: str | Sequence[str],
        queries: Sequence[str],
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        search: SearchOptions | None = None,
        timeout_s: float | None = None,
    ) -> list[list[Hit]]:
        """The hits of each query, in the order of the queries, from one job."""
        job_input = search_input(collection, list(queries), k=k, filter=filter, search=search)
        result = await self._result("search", job_input, timeout_s)
        return [[Hit.model_validate(hit) for hit in answer["hits"]] for answer in result["results"]]

    async def ask(
        self,
        collection: str,
        question: str,
        *,
        k: int | None = None,
        filter: Mapping[str, Any] | None = None,
        search: SearchOptions | None = None,
        model: str | None = None,
        prompt: str | None = None,
        variables: Mapping[str, Any] | None = None,
        conversation_id: str | None = None,
        parameters: Parameters | None = None,
        response_format: ResponseFormat | None = None,
        timeout_s: float | None = None,
    ) -> Answer:
        """An answer from the documents of a collection, with its citations.

        `search` has the options of `Client.search`. `prompt` is a template with {context} and
        {question} in it, or the name of a stored prompt with its `variables`. `parameters` are
        such as max_tokens and temperature.
        """
        job_input = rag_input(
            collection,
            question,
            k=k,
            filter=filter,
            search=search,
            model=model,
            prompt=prompt,
            variables=variables,
            conversation_id=conversation_id,
            parameters=parameters,
            response_format=response_format,
        )
        return Answer.model_validate(await self._result("rag", job_input, timeout_s))

    async def chat(
        self,
        messages: Messages = (),
        *,
        prompt: str | None = None,
        variables: Mapping[str, Any] | None = None,
        model: str | None = None,
        conversation_id: str | None = None,
        tools: Tools = (),
        parameters: Parameters | None = None,
        response_format: ResponseFormat | None = None,
        timeout_s: float | None = None,
    ) -> ChatAnswer:
        """A model's answer to a text, to messages, or to a stored prompt with its variables.

        `tools` are names (calculator, fetch_url, search_collection:NAME) or complete specs. To get
        the text while it is written, `submit` the job and `stream` it.
        """
        job_input = chat_input(
            messages,
            prompt=prompt,
            variables=variables,
            model=model,
            conversation_id=conversation_id,
            tools=tools,
            parameters=parameters,
            response_format=response_format,
        )
        return ChatAnswer.model_validate(await self._result("chat", job_input, timeout_s))

    async def embed(
        self,
        texts: Sequence[str],
        *,
        model: str | None = None,
        input_type: Literal["query", "passage"] | None = None,
        timeout_s: float | None = None,
    ) -> Embeddings:
        """The vectors of texts. `input_type` matters for models with a prompt for each type."""
        job_input: dict[str, Any] = {"texts": list(texts)}
        if model is not None:
            job_input["model"] = model
        if input_type is not None:
            job_input["input_type"] = input_type
        return Embeddings.model_validate(await self._result("embed", job_input, timeout_s))

    async def hf(
        self,
        task: str,
        inputs: Any,
        *,
        model: str | None = None,
        parameters: Mapping[str, Any] | None = None,
        backend: Literal["local", "hub"] = "local",
        timeout_s: float | None = None,
    ) -> Any:
        """The output of a Hugging Face task, in the format of the inference API.

        One input gives one output, and a list of inputs a list of outputs. An image or audio is
        bytes or a `Path`; it is uploaded until the job has ended. `notify` gets the job's warnings.
        """
        async with self.attached(inputs) as uploaded:
            job_input = hf_input(
                task, uploaded, model=model, parameters=parameters, backend=backend
            )
            job = await self._run_job("hf", job_input, timeout_s)
            result = await self.result(job)
        for warning in job.warnings:
            self.notify(warning)
        return result

    async def rebuild_collection(
        self,
        name: str,
        *,
        model: str | None = None,
        rollback: bool = False,
        queries: Sequence[Mapping[str, Any]] = (),
        k: int | None = None,
        min_overlap: float | None = None,
        min_recall: float | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> J:
        """Make the vectors of a collection anew, by another model or by its own; with `rollback`,
        go back to those before. The collection is searched and filled meanwhile. Both are compared
        before the switch: by `queries`, such as {"query": "…", "relevant": ["a.md"]}, or by
        sentences of the documents; and by the best `k` passages.

        Returns the `rebuild` job: succeeded, or with `wait=False` as it was submitted. Raises
        `JobFailed`, also below `min_overlap` or `min_recall`, and nothing has changed then.
        """
        if rollback and model is not None:
            raise InvalidInput("Give either model or rollback: the index before has its own model.")
        options = {
            "model": model,
            "queries": [dict(query) for query in queries] or None,
            "k": k,
            "min_overlap": min_overlap,
            "min_recall": min_recall,
        }
        answer = await self.transport.json(
            "POST",
            f"/v1/collections/{segment(name)}/{'rollback' if rollback else 'rebuild'}",
            body={key: value for key, value in options.items() if value is not None},
            headers={"Idempotency-Key": str(uuid.uuid4())},
        )
        job = self._bind(Job.model_validate(answer))
        if not wait:
            return job
        job = await self.wait(job.id, timeout_s=timeout_s)
        return job.require_success()

    async def check_collection(
        self,
        name: str,
        *,
        dry_run: bool = False,
        sample: int | None = None,
        delete_foreign: bool = False,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> J:
        """Compare the vectors of a collection with its chunks, and mend what differs; with
        `dry_run`, only report it. `sample` is of how many chunks the vector is made again to be
        compared. `delete_foreign` deletes vectors, too, that Sluice did not write.

        Returns the `check` job: succeeded, or with `wait=False` as it was submitted. The `state` of
        its result is `ok`, `mended` or `damaged`.
        """
        job_input: dict[str, Any] = {
            "collection": name,
            "dry_run": dry_run,
            "delete_foreign": delete_foreign,
        }
        if sample is not None:
            job_input["sample"] = sample
        job = await self.submit_untyped("check", job_input)
        if not wait:
            return job
        job = await self.wait(job.id, timeout_s=timeout_s)
        return job.require_success()

    async def export_collection(
        self,
        name: str,
        path: str | Path,
        *,
        on_submit: Callable[[Job], object] = ignore,
        on_advance: Callable[[Advance], object] = ignore,
        timeout_s: float | None = None,
    ) -> J:
        """Write a collection with its vectors to a file, a bundle, of which `import_collection`
        makes a collection anywhere. It is of one moment, whatever is ingested meanwhile.

        Returns the `export` job. The server keeps the bundle for a day (SLUICE_BUNDLE_KEEP_S);
        `download` gets it again. `timeout_s` is for the job.
        """
        require_folder(path)
        job = await self.submit_untyped("export", {"collection": name})
        on_submit(job)
        job = (await self.wait(job.id, timeout_s=timeout_s)).require_success()
        result = await self.result(job)
        await self.download(result["file_id"], path, on_advance=on_advance)
        return job

    async def import_collection(
        self,
        path: str | Path,
        name: str | None = None,
        *,
        on_submit: Callable[[Job], object] = ignore,
        on_advance: Callable[[Advance], object] = ignore,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> J:
        """Make a new collection of a bundle; without a `name`, it is called as in the bundle.
        Nothing is embedded, and readers see it when all of it is there.

        Returns the `import` job: succeeded, or with `wait=False` as it was submitted. Raises
        `JobFailed`, also for a name that is taken, and nothing is left then. The same call
        again sends only what the server does not have.
        """
        ids = await self.upload_slices(path, on_advance=on_advance)
        job_input: dict[str, Any] = {"file_ids": ids}
        if name is not None:
            job_input["collection"] = name
        job = await self.submit_untyped("import", job_input)
        on_submit(job)
        if not wait:
            return job
        job = (await self.wait(job.id, timeout_s=timeout_s)).require_success()
        await self.delete_slices(job)
        return job

    async def delete_slices(self, job: Job, *, timeout_s: float | None = None) -> None:
        """Delete the uploads of an `import` job that has ended, but for those that another import
        needs. Errors are ignored: a file that stays does no harm. `timeout_s` is for each
        request."""
        with suppress(SluiceError):
            input_ = (await self.job(job.id, timeout_s=timeout_s)).input or {}
            unused = await unused_slices(self, input_.get("file_ids", ()), timeout_s=timeout_s)
            await self._delete_files(unused, timeout_s=timeout_s)

    async def download(
        self,
        file_id: str,
        path: str | Path,
        *,
        on_advance: Callable[[Advance], object] = ignore,
        timeout_s: float | None = None,
    ) -> None:
        """Write a stored file to `path`, which is there once it is complete. `timeout_s` is how
        long the server may be silent."""
        await download(self, file_id, path, on_advance=on_advance, silence_s=timeout_s)

    async def upload_slices(
        self,
        path: str | Path,
        *,
        on_advance: Callable[[Advance], object] = ignore,
        timeout_s: float | None = None,
    ) -> list[str]:
        """Store a file of any size as several, for an `import` job; returns their ids in order.
        Slices that the server has already are not sent again. `timeout_s` is for each slice."""
        return await upload_slices(self, path, on_advance=on_advance, timeout_s=timeout_s)

    async def adopt_collection(
        self,
        name: str,
        url: str,
        *,
        model: str | None = None,
        metadata: Mapping[str, Any] | None = None,
        wait: bool = True,
        timeout_s: float | None = None,
    ) -> J:
        """Take a collection of Chroma or LangChain into the collection `name`, which is made with
        this model if it is missing. `url` is `chroma://host:8000/COLLECTION`, or
        `file:///folder#COLLECTION` of the disks of the server's workers.

        Returns the `ingest` job: succeeded, or with `wait=False` as it was submitted. Raises
        `Conflict` if the collection exists with another model.
        """
        source: dict[str, Any] = {"type": "collection", "url": url}
        if metadata:
            source["metadata"] = dict(metadata)
        job_input = {"collection": name, "sources": [source]}
        job = None
        try:
            existing = await self.collection(name)
        except ApiError as error:
            if error.status != 404:
                raise
            try:  # at first, so that a URL that is refused makes no collection
                job = await self.submit_untyped("ingest", job_input)
            except ApiError as refusal:
                if refusal.status != 404:
                    raise
                await self.put_collection(name, embedding_model=model)
        else:
            if model is not None:  # a conflict where it is another
                distance = existing.distance
                await self.put_collection(name, embedding_model=model, distance=distance)
        if job is None:
            job = await self.submit_untyped("ingest", job_input)
        if not wait:
            return job
        job = await self.wait(job.id, timeout_s=timeout_s)
        return job.require_success()

    async def _result(
        self, kind: str, job_input: Mapping[str, Any], timeout_s: float | None
    ) -> dict[str, Any]:
        job = await self._run_job(kind, job_input, timeout_s)
        result: dict[str, Any] = await self.result(job)
        return result or {}

    async def _run_job(self, kind: str, job_input: Mapping[str, Any], timeout_s: float | None) -> J:
        """Submit in the lane `interactive`, and wait for success."""
        started = time.monotonic()
        wait_s = _PREFER_S if timeout_s is None else min(_PREFER_S, timeout_s)
        job = await self.submit_untyped(kind, job_input, lane="interactive", wait_s=wait_s)
        if not job.ended and timeout_s is None:
            job = await self.wait(job.id)
        elif not job.ended and timeout_s is not None:
            left_s = timeout_s - (time.monotonic() - started)
            try:
                job = await self.wait(job.id, timeout_s=max(0.0, left_s))
            except WaitTimeout:
                raise WaitTimeout(job.id, timeout_s) from None
        return job.require_success()


BlockingTasks = Tasks[ClientJob[Any]]


class AsyncClient(Tasks[AsyncClientJob[Any]]):
    """A connection to one API for asyncio: `Client` with `await`, `async for` and `async with`.

    It belongs to one event loop. Cancelling a task that awaits a method does not cancel the job.
    Close an iterator that is not read to its end with `contextlib.aclosing`.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        notify: Callable[[str], None] | None = None,
        limits: httpx.Limits | None = None,
    ) -> None:
        notify = notify or silent
        options = _options(url, api_key, timeout_s, retries, notify, limits)
        bind: Callable[[Job], AsyncClientJob[Any]] = functools.partial(AsyncClientJob.of, self)
        super().__init__(AsyncTransport(**options), notify, bind)

    submit: AsyncSubmit = cast("AsyncSubmit", Tasks.submit_untyped)

    async def aclose(self) -> None:
        await self.transport.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        await self.aclose()


def _blocking(
    call: Callable[Concatenate[BlockingTasks, P], Coroutine[Any, Any, R]],
) -> Callable[Concatenate["Client", P], R]:
    @functools.wraps(call)
    def run(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> R:
        return drive(call(client.tasks, *args, **kwargs))

    return run


def _blocking_iterator(
    call: Callable[Concatenate[BlockingTasks, P], AsyncGenerator[R, None]],
) -> Callable[Concatenate["Client", P], Iterator[R]]:
    @functools.wraps(call)
    def run(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[R]:
        yield from blocking_items(call(client.tasks, *args, **kwargs))

    _show_result(run, Iterator)
    return run


def blocking_items(items: AsyncGenerator[R, None]) -> Iterator[R]:
    """The items of a generator over a `BlockingTransport`, which is closed with this one."""
    try:
        while True:
            try:
                item = drive(anext(items))
            except StopAsyncIteration:
                return
            yield item
    finally:
        drive(items.aclose())


def _blocking_block(
    call: Callable[Concatenate[BlockingTasks, P], AbstractAsyncContextManager[R]],
) -> Callable[Concatenate["Client", P], AbstractContextManager[R]]:
    @functools.wraps(call)
    def run(client: "Client", /, *args: P.args, **kwargs: P.kwargs) -> AbstractContextManager[R]:
        return _blocking_context(call(client.tasks, *args, **kwargs))

    _show_result(run, AbstractContextManager)
    return run


def _show_result(run: Callable[..., object], shape: Any) -> None:
    """Let `help` and `inspect` show the blocking result type instead of the coroutine's."""
    signature = inspect.signature(run)
    content = get_args(signature.return_annotation)[0]
    vars(run)["__signature__"] = signature.replace(return_annotation=shape[content])


@contextmanager
def _blocking_context(block: AbstractAsyncContextManager[R]) -> Iterator[R]:
    value = drive(block.__aenter__())
    try:
        yield value
    except BaseException as error:
        if not drive(block.__aexit__(type(error), error, error.__traceback__)):
            raise
    else:
        drive(block.__aexit__(None, None, None))


class Client:
    """A connection to one API: `url`, else `SLUICE_URL`, else the stack that runs on this machine.

    The key is `api_key`, else `SLUICE_API_KEY`. The local stack is only found where Sluice itself
    is installed (`docs/settings.md`). `timeout_s` bounds each answer, and `retries` says how long
    failing calls are repeated. `notify` gets a sentence when a call has to wait for something.
    `limits` are those of the connection pool. Threads may share a client.
    """

    def __init__(
        self,
        url: str | None = None,
        api_key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retries: Retries | None = None,
        notify: Callable[[str], None] | None = None,
        limits: httpx.Limits | None = None,
    ) -> None:
        notify = notify or silent
        options = _options(url, api_key, timeout_s, retries, notify, limits)
        bind: Callable[[Job], ClientJob[Any]] = functools.partial(ClientJob.of, self)
        self.tasks = BlockingTasks(BlockingTransport(**options), notify, bind)

    @property
    def url(self) -> str:
        return self.tasks.url

    def close(self) -> None:
        drive(self.tasks.transport.close())

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    ingest = _blocking(Tasks.ingest)
    ingest_documents = _blocking(Tasks.ingest_documents)
    sync = _blocking(Tasks.sync)
    search = _blocking(Tasks.search)
    search_vector = _blocking(Tasks.search_vector)
    search_many = _blocking(Tasks.search_many)
    ask = _blocking(Tasks.ask)
    chat = _blocking(Tasks.chat)
    embed = _blocking(Tasks.embed)
    hf = _blocking(Tasks.hf)

    submit: Submit = cast("Submit", _blocking(Tasks.submit_untyped))
    submit_untyped = _blocking(Tasks.submit_untyped)
    submit_batch = _blocking(Tasks.submit_batch)
    job = _blocking(Tasks.job)
    result = _blocking(Tasks.result)
    erase_job = _blocking(Tasks.erase_job)
    jobs = _blocking_iterator(Tasks.jobs)
    events = _blocking_iterator(Tasks.events)
    stream = _blocking_iterator(Tasks.stream)
    wait = _blocking(Tasks.wait)
    reasons = _blocking_block(Tasks.reasons)
    cancel = _blocking(Tasks.cancel)
    retry = _blocking(Tasks.retry)
    create_batch = _blocking(Tasks.create_batch)
    batch = _blocking(Tasks.batch)
    batches = _blocking_iterator(Tasks.batches)
    wait_batch = _blocking(Tasks.wait_batch)
    batch_results = _blocking_iterator(Tasks.batch_results)
    cancel_batch = _blocking(Tasks.cancel_batch)
    retry_batch = _blocking(Tasks.retry_batch)
    put_collection = _blocking(Tasks.put_collection)
    collection = _blocking(Tasks.collection)
    collections = _blocking_iterator(Tasks.collections)
    delete_collection = _blocking(Tasks.delete_collection)
    rebuild_collection = _blocking(Tasks.rebuild_collection)
    check_collection = _blocking(Tasks.check_collection)
    export_collection = _blocking(Tasks.export_collection)
    import_collection = _blocking(Tasks.import_collection)
    adopt_collection = _blocking(Tasks.adopt_collection)
    drop_index = _blocking(Tasks.drop_index)
    documents = _blocking_iterator(Tasks.documents)
    document = _blocking(Tasks.document)
    chunks = _blocking_iterator(Tasks.chunks)
    find_chunks = _blocking(Tasks.find_chunks)
    delete_document = _blocking(Tasks.delete_document)
    upload = _blocking(Tasks.upload)
    file = _blocking(Tasks.file)
    delete_file = _blocking(Tasks.delete_file)
    download = _blocking(Tasks.download)
    upload_slices = _blocking(Tasks.upload_slices)
    delete_slices = _blocking(Tasks.delete_slices)
    files_by_hash = _blocking(Tasks.files_by_hash)
    attached = _blocking_block(Tasks.attached)
    models = _blocking(Tasks.models)
    model = _blocking(Tasks.model)
    pull_model = _blocking(Tasks.pull_model)
    create_model = _blocking(Tasks.create_model)
    delete_model = _blocking(Tasks.delete_model)
    define_model = _blocking(Tasks.define_model)
    undefine_model = _blocking(Tasks.undefine_model)
    start_conversation = _blocking(Tasks.start_conversation)
    conversations = _blocking_iterator(Tasks.conversations)
    conversation = _blocking(Tasks.conversation)
    conversation_messages = _blocking(Tasks.conversation_messages)
    erase_conversation = _blocking(Tasks.erase_conversation)
    put_schedule = _blocking(Tasks.put_schedule)
    schedule = _blocking(Tasks.schedule)
    schedules = _blocking_iterator(Tasks.schedules)
    pause_schedule = _blocking(Tasks.pause_schedule)
    resume_schedule = _blocking(Tasks.resume_schedule)
    run_schedule = _blocking(Tasks.run_schedule)
    delete_schedule = _blocking(Tasks.delete_schedule)
    put_prompt = _blocking(Tasks.put_prompt)
    prompt = _blocking(Tasks.prompt)
    prompts = _blocking_iterator(Tasks.prompts)
    prompt_versions = _blocking_iterator(Tasks.prompt_versions)
    diff_prompt = _blocking(Tasks.diff_prompt)
    roll_back_prompt = _blocking(Tasks.roll_back_prompt)
    render_prompt = _blocking(Tasks.render_prompt)
    delete_prompt = _blocking(Tasks.delete_prompt)
    queues = _blocking(Tasks.queues)
    pause = _blocking(Tasks.pause)
    resume = _blocking(Tasks.resume)
    workers = _blocking(Tasks.workers)
    whole_id = _blocking(Tasks.whole_id)
    health = _blocking(Tasks.health)
    ready = _blocking(Tasks.ready)


def _options(
    url: str | None,
    api_key: str | None,
    timeout_s: float,
    retries: Retries | None,
    notify: Callable[[str], None],
    limits: httpx.Limits | None,
) -> dict[str, Any]:
    url, api_key = _connection(url, api_key)
    return {
        "url": url,
        "api_key": api_key,
        "timeout_s": timeout_s,
        "retries": retries or Retries(),
        "notify": notify,
        "limits": limits,
    }


def _connection(url: str | None, api_key: str | None) -> tuple[str, str | None]:
    """The URL and the key. The key of a local stack is only used with the URL of that stack."""
    if api_key is None:
        api_key = os.environ.get("SLUICE_API_KEY") or None
    url = url or os.environ.get("SLUICE_URL")
    if url:
        return url, api_key
    for local in entry_points(group=LOCAL):
        local_url, local_key = local.load()()
        return local_url, local_key if api_key is None else api_key
    raise ConnectionFailed("No API to talk to: set SLUICE_URL, or pass a url.")
