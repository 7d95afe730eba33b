"""What each kind of job takes and gives, as types that editors and mypy know.

Made from the records of the kinds by `python -m tests.client_types`; not to be edited. At run time
all of these are dictionaries, as they go over the wire. What is `NotRequired` may be left out of an
input, and may be missing from a result.
"""

from collections.abc import Coroutine, Mapping
from datetime import datetime
from typing import TYPE_CHECKING, Any, Literal, NotRequired, Protocol, TypedDict, Unpack, overload

if TYPE_CHECKING:
    from sluice.jobs import AsyncClientJob, ClientJob

Lane = Literal["interactive", "normal", "bulk"]


KindName = Literal[
    "ingest",
    "embed",
    "search",
    "rag",
    "chat",
    "complete",
    "hf",
    "model",
    "erase",
    "rebuild",
    "check",
    "export",
    "import",
    "eval",
    "batch",
]


class CsvOptions(TypedDict):
    """How CSV rows become text: which columns are text, which are metadata."""

    encoding: NotRequired[str | None]
    content_columns: NotRequired[list[str] | None]
    metadata_columns: NotRequired[list[str] | None]


class HtmlOptions(TypedDict):
    """What of a page becomes text."""

    css_classes: NotRequired[list[str] | None]
    main_content: NotRequired[bool]


class JsonOptions(TypedDict):
    """Which fields of an object are its text, and which its metadata; paths of keys with dots, such
    as `author.name`. Without any, `text` or `content` is the text, and the others are metadata.
    """

    content_fields: NotRequired[list[str] | None]
    metadata_fields: NotRequired[list[str] | None]


class OcrOptions(TypedDict):
    """Pictures, and pages that are pictures of text, are read by optical character recognition,
    where the workers have that.
    """

    languages: NotRequired[list[str] | None]


class SpeechOptions(TypedDict):
    """Recordings are transcribed, by a model of the task `automatic-speech-recognition`."""

    model: NotRequired[str | None]
    language: NotRequired[str | None]


class Splitter(TypedDict):
    """How text becomes chunks; sizes in characters, or in tokens for `token`.

    Without `chunk_size`, chunks hold what the collection's embedding model reads, counted by its
    own tokenizer, and at most 1,000. `chunk_overlap` is less than half of `chunk_size`; where it
    is not given, it is 200, or as much as may be of sizes up to 400. In chunks that the model made
    smaller, it is as much smaller.
    """

    type: NotRequired[
        Literal["recursive", "character", "token", "markdown", "html", "code", "sentence"]
    ]
    chunk_size: NotRequired[int | None]
    chunk_overlap: NotRequired[int]


class FileSource(TypedDict):
    """An upload; its document is called `name`, or as the upload."""

    metadata: NotRequired[Mapping[str, Any] | None]
    splitter: NotRequired[Splitter | None]
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions | None]
    html: NotRequired[HtmlOptions | None]
    json: NotRequired[JsonOptions | None]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    type: Literal["file"]
    file_id: str
    name: NotRequired[str | None]
    id: NotRequired[str | None]


class TextSource(TypedDict):
    metadata: NotRequired[Mapping[str, Any] | None]
    splitter: NotRequired[Splitter | None]
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions | None]
    html: NotRequired[HtmlOptions | None]
    json: NotRequired[JsonOptions | None]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    type: Literal["text"]
    text: str
    name: NotRequired[str | None]
    id: NotRequired[str | None]


class ChunkSource(TypedDict):
    """A text that is one chunk as it is: no format is looked for in it, and it is not divided."""

    type: Literal["chunk"]
    text: str
    name: NotRequired[str | None]
    metadata: NotRequired[Mapping[str, Any]]


class DocumentSource(TypedDict):
    """A document of the collection, which gets other metadata: all that came with requests before
    gives way to `metadata`. Its text and its chunks stay as they are.
    """

    type: Literal["document"]
    document_id: str
    metadata: NotRequired[Mapping[str, Any]]


class UrlSource(TypedDict):
    """A document of the web, called `name`, or by its URL."""

    metadata: NotRequired[Mapping[str, Any] | None]
    splitter: NotRequired[Splitter | None]
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions | None]
    html: NotRequired[HtmlOptions | None]
    json: NotRequired[JsonOptions | None]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    type: Literal["url"]
    url: str
    name: NotRequired[str | None]
    css_classes: NotRequired[list[str] | None]


class SiteSource(TypedDict):
    """All pages of a web site that its sitemaps name, or that links lead to from `url` on; each is
    a document called by its URL. What robots.txt, `nofollow` and `noindex` keep from robots is left
    out.
    """

    metadata: NotRequired[Mapping[str, Any] | None]
    splitter: NotRequired[Splitter | None]
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions | None]
    html: NotRequired[HtmlOptions | None]
    json: NotRequired[JsonOptions | None]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    type: Literal["site"]
    url: str
    max_pages: NotRequired[int]
    max_depth: NotRequired[int]
    use_sitemaps: NotRequired[bool]
    include_paths: NotRequired[list[str] | None]
    exclude_paths: NotRequired[list[str] | None]
    ignore_parameters: NotRequired[list[str]]
    delay_s: NotRequired[float | None]
    on_vanished: NotRequired[Literal["keep", "erase"]]
    max_erased_share: NotRequired[float]
    css_classes: NotRequired[list[str] | None]


class FolderSource(TypedDict):
    """All files that can be read below a folder of a bucket or of the workers' disks, if the
    deployer permits that folder; each is a document called by its URL.
    """

    metadata: NotRequired[Mapping[str, Any] | None]
    splitter: NotRequired[Splitter | None]
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions | None]
    html: NotRequired[HtmlOptions | None]
    json: NotRequired[JsonOptions | None]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    type: Literal["folder"]
    url: str
    max_documents: NotRequired[int]
    on_vanished: NotRequired[Literal["keep", "erase"]]
    max_erased_share: NotRequired[float]


class CollectionSource(TypedDict):
    """A collection of Chroma or of LangChain, which is adopted: its chunks stay as they are, those
    with one `source` in their metadata are a document, and their vectors are kept if they agree
    with those of the model of this collection.
    """

    type: Literal["collection"]
    url: str
    metadata: NotRequired[Mapping[str, Any]]


class IngestInput(TypedDict):
    encoding: NotRequired[str | None]
    csv: NotRequired[CsvOptions]
    html: NotRequired[HtmlOptions]
    json: NotRequired[JsonOptions]
    ocr: NotRequired[OcrOptions | None]
    speech: NotRequired[SpeechOptions | None]
    collection: str
    sources: list[
        FileSource
        | TextSource
        | ChunkSource
        | DocumentSource
        | UrlSource
        | SiteSource
        | FolderSource
        | CollectionSource
    ]
    splitter: NotRequired[Splitter]
    on_existing: NotRequired[Literal["skip", "replace"]]
    on_duplicate: NotRequired[Literal["warn", "skip"]]
    metadata: NotRequired[Mapping[str, Any]]


class EmbedInput(TypedDict):
    texts: list[str]
    model: NotRequired[str | None]
    input_type: NotRequired[Literal["query", "passage"]]
    dimensions: NotRequired[int | None]


class SearchOptions(TypedDict):
    type: NotRequired[
        Literal["hybrid", "similarity", "mmr", "similarity_score_threshold", "lexical"]
    ]
    score_threshold: NotRequired[float | None]
    fetch_k: NotRequired[int | None]
    lambda_mult: NotRequired[float | None]
    filter: NotRequired[Mapping[str, Any] | None]
    rerank: NotRequired[str | None]
    expand: NotRequired[int]
    join: NotRequired[bool | None]
    debug: NotRequired[bool]


class SearchInput(TypedDict):
    """One query or several, in one collection or several; or a vector that the client has made."""

    collection: NotRequired[str | None]
    collections: NotRequired[list[str] | None]
    query: NotRequired[str | None]
    queries: NotRequired[list[str] | None]
    vector: NotRequired[list[float] | None]
    k: NotRequired[int]
    search: NotRequired[SearchOptions]


class PresetMessage(TypedDict):
    role: Literal["system", "user", "assistant"]
    content: str


class Preset(TypedDict):
    """What a named model adds to its model. `messages` stand in front of every conversation's."""

    name: str
    system: NotRequired[str | None]
    template: NotRequired[str | None]
    messages: NotRequired[list[PresetMessage]]


class FunctionCall(TypedDict):
    """A call of a declared tool; `arguments` is the decoded JSON object."""

    name: str
    arguments: NotRequired[Mapping[str, Any]]


class CallOfTool(TypedDict):
    id: str
    type: NotRequired[Literal["function"]]
    function: FunctionCall


class ChatMessage(TypedDict):
    """`tool_calls` belong to the assistant's messages, `tool_call_id` to those of a tool."""

    role: Literal["system", "user", "assistant", "tool"]
    content: NotRequired[str]
    tool_calls: NotRequired[list[CallOfTool]]
    tool_call_id: NotRequired[str | None]


class Parameters(TypedDict):
    """Sampling. `temperature` 0 always takes the likeliest token; `max_tokens` has a default and
    a limit among the server's settings.

    The penalties are taken off the logit of a token that was written already: `presence_penalty`
    once, `frequency_penalty` for each time. With `logprobs` the result has the log-probability of
    each token, and so many of the likeliest at its place.
    """

    max_tokens: NotRequired[int | None]
    temperature: NotRequired[float]
    top_p: NotRequired[float]
    top_k: NotRequired[int]
    stop: NotRequired[list[str]]
    seed: NotRequired[int | None]
    repetition_penalty: NotRequired[float]
    frequency_penalty: NotRequired[float]
    presence_penalty: NotRequired[float]
    logprobs: NotRequired[int | None]
    window_tokens: NotRequired[int | None]


class ResponseFormat(TypedDict):
    """`json` makes the model answer with JSON, valid by `schema` where there is one."""

    type: NotRequired[Literal["text", "json"]]
    schema: NotRequired[Mapping[str, Any] | None]


class RagInput(TypedDict):
    """`prompt` is a template with `{context}` and `{question}`, or names a stored one."""

    collection: str
    question: str
    k: NotRequired[int]
    search: NotRequired[SearchOptions]
    model: NotRequired[str | None]
    preset: NotRequired[Preset | None]
    prompt: NotRequired[str | None]
    variables: NotRequired[Mapping[str, Any]]
    rendered: NotRequired[str | None]
    conversation_id: NotRequired[str | None]
    previous_job_id: NotRequired[str | None]
    earlier: NotRequired[list[ChatMessage]]
    instructions: NotRequired[str | None]
    parameters: NotRequired[Parameters]
    response_format: NotRequired[ResponseFormat]


class BuiltInTool(TypedDict):
    """A tool that Sluice runs itself. `search_collection` looks in `collection`, or in all of
    `collections` at once.
    """

    type: Literal["search_collection", "calculator", "fetch_url"]
    collection: NotRequired[str | None]
    collections: NotRequired[list[str] | None]
    k: NotRequired[int | None]
    search: NotRequired[SearchOptions | None]
    least_score: NotRequired[float | None]


class FunctionSpec(TypedDict):
    name: str
    description: NotRequired[str]
    parameters: NotRequired[Mapping[str, Any]]


class DeclaredTool(TypedDict):
    """A tool of the client: its calls are returned, and the client sends what came of them."""

    type: Literal["function"]
    function: FunctionSpec


class McpTool(TypedDict):
    """Tools of an MCP server that the operator has set up (`SLUICE_MCP_SERVERS`): all that it
    allows, or those of them that are named.
    """

    type: Literal["mcp"]
    server: str
    allowed_tools: NotRequired[list[str] | None]


class ChatInput(TypedDict):
    """With `conversation_id`, `messages` are the new ones; the earlier ones are stored. With
    `previous_job_id`, the earlier ones are those of that chat and of the chats that it continues;
    several may continue the same one.

    `prompt` names a stored prompt: beside `messages` it is the system's message in front of them,
    alone it is the user's.

    `tool_choice` says whether the model may call tools, and `required` that it has to, in its
    first answer; without `parallel_tool_calls` one answer has one call at most. `n` answers are
    written side by side, each with a seed of its own.
    """

    messages: NotRequired[list[ChatMessage]]
    prompt: NotRequired[str | None]
    variables: NotRequired[Mapping[str, Any]]
    rendered: NotRequired[str | None]
    model: NotRequired[str | None]
    preset: NotRequired[Preset | None]
    instructions: NotRequired[str | None]
    conversation_id: NotRequired[str | None]
    previous_job_id: NotRequired[str | None]
    history: NotRequired[Literal["trim", "whole"]]
    tools: NotRequired[list[BuiltInTool | DeclaredTool | McpTool]]
    tool_choice: NotRequired[Literal["auto", "none", "required"]]
    parallel_tool_calls: NotRequired[bool]
    n: NotRequired[int]
    parameters: NotRequired[Parameters]
    tool_calls_limit: NotRequired[int | None]
    response_format: NotRequired[ResponseFormat]


class CompleteInput(TypedDict):
    """Each prompt goes to the model as it is, special tokens included, `n` times."""

    prompts: list[str]
    model: NotRequired[str | None]
    n: NotRequired[int]
    parameters: NotRequired[Parameters]
    preset: NotRequired[Preset | None]


class HfInput(TypedDict):
    """`task` may be left out where a model is named: then its own configuration tells it.

    A single input gives a single output; a list gives a list, one output an input.
    """

    task: NotRequired[
        Literal[
            "summarization",
            "question-answering",
            "sentence-similarity",
            "text-classification",
            "translation",
            "automatic-speech-recognition",
            "zero-shot-classification",
            "token-classification",
            "fill-mask",
            "feature-extraction",
            "text-generation",
            "text-ranking",
            "image-classification",
        ]
        | None
    ]
    model: NotRequired[str | None]
    inputs: Any
    parameters: NotRequired[Mapping[str, Any]]
    backend: NotRequired[Literal["local", "hub"]]


ModelInput = TypedDict(
    "ModelInput",
    {
        "action": Literal["pull", "create", "delete"],
        "name": str,
        "from": NotRequired[str | None],
        "system": NotRequired[str | None],
        "template": NotRequired[str | None],
        "parameters": NotRequired[Mapping[str, Any]],
    },
)


class EraseInput(TypedDict):
    document_ids: NotRequired[list[str] | None]
    collection: NotRequired[str | None]


class Judgement(TypedDict):
    """What is relevant to a query: a document or chunk by `id`, or the chunks that hold `text`.

    Of a document the first hit counts. `grade` is how relevant it is, which nDCG weighs; 0 is not.
    """

    id: NotRequired[str | None]
    text: NotRequired[str | None]
    grade: NotRequired[int]


class JudgedQuery(TypedDict):
    """A query, and what is relevant to it: names alone have the grade 1.

    `answers` are texts of which one should stand in a good hit, word for word.
    """

    query: str
    relevant: list[str | Judgement]
    answers: NotRequired[list[str]]


class RebuildInput(TypedDict):
    """`model` is the collection's own unless it is given. Below `min_overlap` or `min_recall` the
    job fails before anything has changed.
    """

    queries: NotRequired[list[JudgedQuery]]
    k: NotRequired[int]
    min_overlap: NotRequired[float | None]
    min_recall: NotRequired[float | None]
    model: NotRequired[str | None]
    collection: str
    rollback: NotRequired[bool]


class CheckInput(TypedDict):
    """`sample` is of how many chunks the vector is made again by the model of the collection, and
    compared; as many as there are, and all of them are.
    """

    collection: str
    dry_run: NotRequired[bool]
    sample: NotRequired[int]
    delete_foreign: NotRequired[bool]


class ExportInput(TypedDict):
    collection: str


class ImportInput(TypedDict):
    """A bundle, in one upload or in several that are its parts in order. `collection` is the name
    of the new collection, else it is that in the bundle.
    """

    file_ids: list[str]
    collection: NotRequired[str | None]


class EvalInput(TypedDict):
    """The queries are given as they are, or as an upload with one such object a line."""

    collection: str
    queries: NotRequired[list[JudgedQuery] | None]
    file_id: NotRequired[str | None]
    searches: NotRequired[list[SearchOptions]]
    k: NotRequired[int]


class BatchInput(TypedDict):
    """The lines of an uploaded file. Lines that are not done by `finish_by`, or `completion_window`
    after the submission, expire; the answers of the others stay.
    """

    file_id: str
    endpoint: NotRequired[str]
    completion_window: NotRequired[str | None]
    finish_by: NotRequired[str | None]
    output_expires_after_s: NotRequired[int | None]


class IngestDocuments(TypedDict):
    added: int
    replaced: int
    skipped: int
    failed: int
    erased: NotRequired[int]


class SourceErrorDict(TypedDict):
    source: str
    message: str


class AdoptedChunks(TypedDict):
    """What became of the chunks of collections that were adopted, without those of documents that
    had not changed. `kept` and `embedded` are chunks of documents that were added or replaced.
    """

    kept: NotRequired[int]
    embedded: NotRequired[int]
    no_text: NotRequired[int]
    duplicates: NotRequired[int]
    bad_metadata: NotRequired[int]


class IngestResult(TypedDict):
    documents: IngestDocuments
    chunks: int
    errors: list[SourceErrorDict]
    vanished: NotRequired[list[str]]
    adopted: NotRequired[AdoptedChunks]


class EmbedResult(TypedDict):
    """`tokens` counts those of all texts, with what the model adds."""

    model: str
    dimension: int
    embeddings: list[list[float]]
    tokens: NotRequired[int]


class Span(TypedDict):
    """The part of a hit's text that fits the query best, in characters of that text."""

    start: int
    end: int


class HitDebug(TypedDict):
    """How the score of a hit came about. `similarity` is its cosine, `lexical` its BM25 score,
    and `halves` names those whose best passages it was among. `index` is the vector index that
    was read, and `embedding_model` is its model; without them no vectors were.
    """

    similarity: NotRequired[float]
    lexical: NotRequired[float]
    dense_weight: NotRequired[float]
    halves: NotRequired[list[str]]
    index: NotRequired[str]
    embedding_model: NotRequired[str]


class HitDict(TypedDict):
    """A chunk that matches; `start` is an offset in characters of its document's text.

    Where further chunks are joined to it, `text` and `start` are those of all of them.
    What `score` is depends on the type of the search; a higher one is always better.
    """

    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int
    score: float
    metadata: NotRequired[dict[str, Any]]
    collection: NotRequired[str]
    span: NotRequired[Span]
    debug: NotRequired[HitDebug]


class QueryHits(TypedDict):
    query: str
    hits: list[HitDict]


class SearchResult(TypedDict):
    """`hits` of `query`; `results` of `queries`, in their order."""

    hits: NotRequired[list[HitDict]]
    results: NotRequired[list[QueryHits]]


class CitationDict(TypedDict):
    chunk_id: str
    document_id: str
    source: str
    text: str
    start: int
    score: float
    metadata: NotRequired[dict[str, Any]]
    collection: NotRequired[str]
    span: NotRequired[Span]
    debug: NotRequired[HitDebug]
    marker: str


class Usage(TypedDict):
    prompt_tokens: int
    completion_tokens: int


class RagResult(TypedDict):
    """`passages_dropped` found no room in the model's window; `markers_removed` cited nothing."""

    answer: str
    citations: list[CitationDict]
    model: str
    usage: Usage
    finish_reason: NotRequired[str]
    passages_dropped: NotRequired[int]
    markers_removed: NotRequired[int]
    parsed: NotRequired[Any]


class ToolSearch(TypedDict):
    """What a call of `search_collection` has shown to the model: its passages are numbered on from
    `first`, and cited by these numbers.
    """

    call_id: str
    query: str
    first: int
    hits: list[HitDict]


class Likely(TypedDict):
    """A token and its log-probability. `bytes` are its own in UTF-8, where they are known: a token
    may be a part of a character, and `token` is then no text.
    """

    token: str
    logprob: float
    bytes: NotRequired[list[int]]


class TokenLogprob(TypedDict):
    """A token of a text, and the likeliest at its place, best first."""

    token: str
    logprob: float
    bytes: NotRequired[list[int]]
    top: NotRequired[list[Likely]]


class ChatChoice(TypedDict):
    """One of several answers."""

    message: dict[str, Any]
    finish_reason: NotRequired[str]
    parsed: NotRequired[Any]
    logprobs: NotRequired[list[TokenLogprob]]


class ChatResult(TypedDict):
    """`turns` counts the model's answers, `steps` are its calls of tools and their results, of
    which `searches` has the passages; `messages_dropped` of the history found no room in its
    window. With `n` above 1, `choices` are all answers, of which `message` is the first.
    """

    message: dict[str, Any]
    model: str
    usage: Usage
    finish_reason: NotRequired[str]
    turns: NotRequired[int]
    steps: NotRequired[list[dict[str, Any]]]
    searches: NotRequired[list[ToolSearch]]
    messages_dropped: NotRequired[int]
    parsed: NotRequired[Any]
    logprobs: NotRequired[list[TokenLogprob]]
    choices: NotRequired[list[ChatChoice]]


class TextChoice(TypedDict):
    """What the model wrote behind a prompt."""

    text: str
    finish_reason: NotRequired[str]
    logprobs: NotRequired[list[TokenLogprob]]


class CompleteResult(TypedDict):
    """`choices` are in the order of the prompts, `n` of each."""

    choices: list[TextChoice]
    model: str
    usage: Usage


class ModelResult(TypedDict):
    action: str
    name: str


class EraseResult(TypedDict):
    documents: int
    chunks: int
    vectors: int


class IndexComparison(TypedDict):
    """What both indexes gave before the switch, as means over the queries.

    `overlap` is the share of the old index's best `k` chunks that the new one has as well; null
    where the old index could not be asked. `recall` is the share of what is relevant that is among
    the best `k`: of judged queries what their judgements name, else the chunk that the sentence is
    from.
    """

    queries: int
    are_judged: bool
    k: int
    overlap: float | None
    recall: float | None
    recall_before: float | None


class RebuildResult(TypedDict):
    """`chunks` is how many the collection has."""

    collection: str
    embedding_model: str
    embedding_model_before: str
    dimension: int | None
    chunks: int
    comparison: IndexComparison | None
    rollback_until: str | None


class CheckExamples(TypedDict):
    """Ids of some chunks that differ, as the store has them."""

    missing: NotRequired[list[str]]
    surplus: NotRequired[list[str]]
    stale: NotRequired[list[str]]
    wrong: NotRequired[list[str]]
    foreign: NotRequired[list[str]]


class CheckResult(TypedDict):
    """`state` is `ok`; `mended`, where all that was found was mended; or `damaged`.

    The counts are of vectors in all indexes of the collection, the one that is searched and those
    that one can go back to: `missing`; `surplus`, of chunks that there are no more; `stale`, with
    another text or other metadata than their chunk; `wrong`, of those that were `sampled`, which
    are not what the model gives. `foreign` vectors, which Sluice did not write, are no fault.
    `leftover` is what is left in PostgreSQL of documents that were erased.
    """

    collection: str
    state: Literal["ok", "mended", "damaged"]
    checked: int
    missing: int
    surplus: int
    stale: int
    sampled: int
    wrong: int
    foreign: int
    leftover: int
    mended: int
    examples: CheckExamples
    rebuild_job_id: str | None


class ExportResult(TypedDict):
    """`GET /v1/files/{file_id}/content` has the bundle, until `expires_at`."""

    collection: str
    embedding_model: str
    dimension: int | None
    documents: int
    chunks: int
    file_id: str
    size_bytes: int
    expires_at: str


class ImportResult(TypedDict):
    collection: str
    embedding_model: str
    dimension: int | None
    documents: int
    chunks: int


class Estimate(TypedDict):
    """A mean over the queries, with its 95 % bootstrap interval."""

    value: float
    low: float
    high: float


class SearchTimes(TypedDict):
    """Milliseconds of the search within the worker: neither the queue nor HTTP are in it."""

    mean_ms: float
    p50_ms: float
    p99_ms: float


class SearchFigures(TypedDict):
    """What came of one search. The lists have an entry for each query, in their order: at which
    places, from 1, relevant hits stood, and how many milliseconds the search took.
    """

    search: SearchOptions
    measures: dict[str, Estimate]
    times: SearchTimes
    places: list[list[int]]
    times_ms: list[float]


class SearchDifference(TypedDict):
    """The measures of search number `search` less those of the first, query by query (paired)."""

    search: int
    measures: dict[str, Estimate]


class EvalResult(TypedDict):
    """`measures` have the names of `measure_names`."""

    collection: str
    embedding_model: str
    query_count: int
    k: int
    searches: list[SearchFigures]
    differences: list[SearchDifference]


class BatchResult(TypedDict):
    """How its lines ended. The files are complete shortly after the job has ended."""

    total: int
    succeeded: int
    failed: int
    output_file_id: str | None
    error_file_id: str | None


class Webhook(TypedDict):
    """The URL for a POST when the job has ended; with a secret it is signed by Standard
    Webhooks.
    """

    url: str
    secret: NotRequired[str | None]


class JobFields(TypedDict):
    """A new job, beside its kind."""

    lane: NotRequired[Lane]
    metadata: NotRequired[Mapping[str, Any]]
    webhook: NotRequired[Webhook]
    timeout_s: NotRequired[float]
    max_attempts: NotRequired[int]
    run_after: NotRequired[str]


class SubmitOptions(TypedDict):
    """The options of `Client.submit`."""

    lane: NotRequired[Lane | None]
    metadata: NotRequired[Mapping[str, Any] | None]
    webhook: NotRequired[Webhook | None]
    timeout_s: NotRequired[float | None]
    max_attempts: NotRequired[int | None]
    run_after: NotRequired[datetime | None]
    idempotency_key: NotRequired[str | None]
    wait_s: NotRequired[float | None]
    call_timeout_s: NotRequired[float | None]


class IngestJob(JobFields):
    kind: Literal["ingest"]
    input: IngestInput


class EmbedJob(JobFields):
    kind: Literal["embed"]
    input: EmbedInput


class SearchJob(JobFields):
    kind: Literal["search"]
    input: SearchInput


class RagJob(JobFields):
    kind: Literal["rag"]
    input: RagInput


class ChatJob(JobFields):
    kind: Literal["chat"]
    input: ChatInput


class CompleteJob(JobFields):
    kind: Literal["complete"]
    input: CompleteInput


class HfJob(JobFields):
    kind: Literal["hf"]
    input: HfInput


class ModelJob(JobFields):
    kind: Literal["model"]
    input: ModelInput


class EraseJob(JobFields):
    kind: Literal["erase"]
    input: EraseInput


class RebuildJob(JobFields):
    kind: Literal["rebuild"]
    input: RebuildInput


class CheckJob(JobFields):
    kind: Literal["check"]
    input: CheckInput


class ExportJob(JobFields):
    kind: Literal["export"]
    input: ExportInput


class ImportJob(JobFields):
    kind: Literal["import"]
    input: ImportInput


class EvalJob(JobFields):
    kind: Literal["eval"]
    input: EvalInput


class BatchJob(JobFields):
    kind: Literal["batch"]
    input: BatchInput


NewJob = (
    IngestJob
    | EmbedJob
    | SearchJob
    | RagJob
    | ChatJob
    | CompleteJob
    | HfJob
    | ModelJob
    | EraseJob
    | RebuildJob
    | CheckJob
    | ExportJob
    | ImportJob
    | EvalJob
    | BatchJob
)


class Submit(Protocol):
    """`Client.submit`: a new job of a kind."""

    @overload
    def __call__(
        self, kind: Literal["ingest"], input: IngestInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[IngestResult]": ...

    @overload
    def __call__(
        self, kind: Literal["embed"], input: EmbedInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[EmbedResult]": ...

    @overload
    def __call__(
        self, kind: Literal["search"], input: SearchInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[SearchResult]": ...

    @overload
    def __call__(
        self, kind: Literal["rag"], input: RagInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[RagResult]": ...

    @overload
    def __call__(
        self, kind: Literal["chat"], input: ChatInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[ChatResult]": ...

    @overload
    def __call__(
        self, kind: Literal["complete"], input: CompleteInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[CompleteResult]": ...

    @overload
    def __call__(
        self, kind: Literal["hf"], input: HfInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[Any]": ...

    @overload
    def __call__(
        self, kind: Literal["model"], input: ModelInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[ModelResult]": ...

    @overload
    def __call__(
        self, kind: Literal["erase"], input: EraseInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[EraseResult]": ...

    @overload
    def __call__(
        self, kind: Literal["rebuild"], input: RebuildInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[RebuildResult]": ...

    @overload
    def __call__(
        self, kind: Literal["check"], input: CheckInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[CheckResult]": ...

    @overload
    def __call__(
        self, kind: Literal["export"], input: ExportInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[ExportResult]": ...

    @overload
    def __call__(
        self, kind: Literal["import"], input: ImportInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[ImportResult]": ...

    @overload
    def __call__(
        self, kind: Literal["eval"], input: EvalInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[EvalResult]": ...

    @overload
    def __call__(
        self, kind: Literal["batch"], input: BatchInput, **options: Unpack[SubmitOptions]
    ) -> "ClientJob[BatchResult]": ...


class AsyncSubmit(Protocol):
    """`AsyncClient.submit`: a new job of a kind."""

    @overload
    def __call__(
        self, kind: Literal["ingest"], input: IngestInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[IngestResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["embed"], input: EmbedInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[EmbedResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["search"], input: SearchInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[SearchResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["rag"], input: RagInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[RagResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["chat"], input: ChatInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[ChatResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["complete"], input: CompleteInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[CompleteResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["hf"], input: HfInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[Any]"]: ...

    @overload
    def __call__(
        self, kind: Literal["model"], input: ModelInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[ModelResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["erase"], input: EraseInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[EraseResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["rebuild"], input: RebuildInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[RebuildResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["check"], input: CheckInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[CheckResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["export"], input: ExportInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[ExportResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["import"], input: ImportInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[ImportResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["eval"], input: EvalInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[EvalResult]"]: ...

    @overload
    def __call__(
        self, kind: Literal["batch"], input: BatchInput, **options: Unpack[SubmitOptions]
    ) -> Coroutine[Any, Any, "AsyncClientJob[BatchResult]"]: ...
