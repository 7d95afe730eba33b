"""Settings, read from the environment (prefix `SLUICE_`) and from `.env`.

One class for each role, and `Settings`, which is all of them: a function says by its types what it
needs. A field's name is that of its variable, so that one search finds both. Nothing here is read
at import: a process calls `load_settings()` once, at start, and hands the result on. Every duration
and size carries its unit in its name. Secrets have no default.
"""

import json
import logging
import os
import re
import sys
from math import ceil
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import (
    AliasChoices,
    BaseModel,
    ConfigDict,
    Field,
    SecretStr,
    ValidationError,
    ValidationInfo,
    field_validator,
)
from pydantic_settings import (
    BaseSettings,
    DotEnvSettingsSource,
    NoDecode,
    PydanticBaseSettingsSource,
    SettingsConfigDict,
)

from shared.addresses import Guard, read_allowed_host
from shared.bounds import (
    BATCH_LIMIT_JOBS,
    BODY_LIMIT_VALUES,
    FAIR_KEY_LIMIT_BYTES,
    INT32_MAX,
    SOURCES_LIMIT,
    McpServerName,
    ModelName,
    WebUrl,
)
from shared.errors import ConfigurationError
from shared.urls import folder_url
from shared.vocabulary import KeyScope

# Logging: one line an event on standard error, with time, level and origin.

FORMAT = "%(asctime)s %(levelname)s %(name)s: %(message)s"
QUIET = (
    "alembic.runtime",
    "celery.app.trace",  # a line for each ring
    "celery.beat",
    "celery.worker.request",
    "celery.worker.strategy",
    "chromadb",
    "filelock",
    "httpcore",
    "httpx",
    "mcp",
    "sentence_transformers",
    "sse_starlette",
    "urllib3",
)


def set_up_logging(level: str) -> None:
    """Set up the root logger; libraries that log each request speak from WARNING up."""
    logging.basicConfig(level=level, format=FORMAT, stream=sys.stderr, force=True)
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


PositiveInt = Annotated[int, Field(gt=0, le=INT32_MAX)]
Bytes = Annotated[int, Field(gt=0, le=2**50)]
PositiveFloat = Annotated[float, Field(gt=0, le=1e9)]
"""Durations and the like: as seconds 31 years, which every date and interval can hold."""

PROMPT_LIMIT_CHARS = 2000
DEFAULT_EMBEDDING_MODEL = "sentence-transformers/all-MiniLM-L6-v2"
EXTRACTIVE = "extractive"
HOST_NAME = re.compile(r"[\w.-]+|\[?[0-9a-fA-F:.]+\]?")
ORIGIN = re.compile(r"https?://([\w.-]+|\[[0-9a-fA-F:.]+\])(:\d{1,5})?")


class RoleSettings(BaseSettings):
    """What one role needs to know. Functions take the role that they work for."""

    model_config = SettingsConfigDict(
        env_prefix="SLUICE_",
        env_file=".env",
        env_ignore_empty=True,  # compose passes variables on that `.env` leaves empty
        extra="ignore",
        frozen=True,
    )

    @classmethod
    def settings_customise_sources(
        cls,
        settings_cls: type[BaseSettings],  # noqa: ARG003 (as the base class has it)
        init_settings: PydanticBaseSettingsSource,
        env_settings: PydanticBaseSettingsSource,
        dotenv_settings: PydanticBaseSettingsSource,
        file_secret_settings: PydanticBaseSettingsSource,  # noqa: ARG003 (there are none)
    ) -> tuple[PydanticBaseSettingsSource, ...]:
        """A source looks for each of 200 fields, so a `.env` that is not there is left out."""
        file = dotenv_settings
        is_empty = isinstance(file, DotEnvSettingsSource) and not file.env_vars
        return (init_settings, env_settings) if is_empty else (init_settings, env_settings, file)


class ConnectionSettings(RoleSettings):
    """Where the servers and the storage are, and how long they are waited for."""

    home: Path = Path("~/.sluice")
    database_url: SecretStr | None = None
    redis_url: SecretStr | None = None
    vectors_url: SecretStr | None = None
    weaviate_api_key: SecretStr | None = None
    chroma_url: str | None = None
    qdrant_api_key: SecretStr | None = None
    storage_url: str | None = None

    connect_timeout_s: PositiveFloat = 5
    request_timeout_s: PositiveFloat = 30
    database_pool_connections: PositiveInt = 10
    database_statement_timeout_s: Annotated[float, Field(gt=0, le=2_000_000)] = 60
    database_lock_timeout_s: Annotated[float, Field(gt=0, le=2_000_000)] | None = None
    pgvector_index_above_mib: PositiveInt = 32
    pgvector_index_timeout_s: PositiveFloat = 600
    events_limit_entries: PositiveInt = 1000
    events_keep_s: PositiveInt = 86_400
    events_keep_after_end_s: PositiveInt = 600
    rings_limit_messages: PositiveInt = 10_000
    rings_keep_s: PositiveInt = 86_400

    @property
    def home_path(self) -> Path:
        return self.home.expanduser().resolve()

    def require_database_url(self) -> str:
        return _required(self.database_url, "SLUICE_DATABASE_URL")

    def require_redis_url(self) -> str:
        return _required(self.redis_url, "SLUICE_REDIS_URL")

    def storage(self) -> str:
        """Where uploads lie: an fsspec URL or a folder; the local stack's own unless set."""
        return self.storage_url or str(self.home_path / "files")


class HttpSettings(RoleSettings):
    """The API: who may call it, and the limits of what comes in and goes out."""

    api_host: str = "127.0.0.1"
    api_port: Annotated[int, Field(ge=1, le=65535)] = 8000
    api_keys: Annotated[dict[str, SecretStr | tuple[SecretStr, ...]], NoDecode] = {}
    api_key_scopes: Annotated[dict[str, frozenset[KeyScope]], NoDecode] = {}
    api_allow_anonymous: bool = False
    api_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()
    api_cors_origins: Annotated[tuple[str, ...], NoDecode] = ()
    api_threads: PositiveInt = 40
    max_body_bytes: Bytes = 16 * 2**20
    max_body_values: PositiveInt = BODY_LIMIT_VALUES
    max_file_bytes: Bytes = 32 * 2**20
    max_wait_s: PositiveFloat = 60
    sse_poll_s: PositiveFloat = 2
    sse_heartbeat_s: PositiveFloat = 15
    api_shutdown_s: PositiveInt = 10
    readiness_keep_s: PositiveFloat = 1
    api_limit_connections: PositiveInt = 1000
    api_limit_streams: PositiveInt = 500
    api_limit_pipeline_requests: PositiveInt = 16
    api_limit_header_bytes: Bytes = 64 * 1024
    api_limit_header_fields: PositiveInt = 256
    api_header_timeout_s: PositiveFloat = 10
    api_keep_alive_s: PositiveFloat = 5
    api_body_timeout_s: PositiveFloat = 30
    api_body_min_bytes_per_s: PositiveInt = 1000
    api_body_memory_bytes: Bytes = 16 * 2**20
    api_send_timeout_s: PositiveFloat = 60
    api_unwanted_bytes_per_s: Bytes = 64 * 2**20
    batch_limit_jobs: Annotated[int, Field(gt=0, le=BATCH_LIMIT_JOBS)] = 1000
    queue_limit_steps: PositiveInt = 100_000
    queue_full_retry_after_s: PositiveInt = 5
    queue_limit_steps_per_key: PositiveInt | None = None
    queue_count_keep_s: PositiveFloat = 2
    compat_wait_s: PositiveFloat = 300
    result_inline_bytes: Annotated[int, Field(gt=0, le=64 * 2**20)] = 2**20
    list_inline_bytes: Bytes = 4096

    @field_validator("api_keys", mode="before")
    @classmethod
    def _split_keys(cls, value: object) -> object:
        """`name:secret,name:secret` -> a mapping; the name is what fair share goes by, and who
        owns conversations. A name may have several secrets, a secret has one name."""
        if not isinstance(value, str):
            return value
        keys: dict[str, tuple[str, ...]] = {}
        names: dict[str, str] = {}
        for name, secret in _pairs(value, ":", "must read 'name:secret,name:secret'"):
            if names.setdefault(secret, name) != name:
                raise ValueError(
                    f"the keys {names[secret]!r} and {name!r} have the same secret; give each name "
                    "a secret of its own"
                )
            if secret in keys.get(name, ()):
                raise ValueError(f"the key {name!r} has the same secret twice; write it once")
            keys[name] = (*keys.get(name, ()), secret)
        return {name: secrets if secrets[1:] else secrets[0] for name, secrets in keys.items()}

    @field_validator("api_keys")
    @classmethod
    def _names_fit(cls, keys: dict[str, Any]) -> dict[str, Any]:
        """The names stand in the index that steps are claimed by."""
        if any(len(name.encode()) > FAIR_KEY_LIMIT_BYTES for name in keys):
            raise ValueError(f"a key's name has at most {FAIR_KEY_LIMIT_BYTES} bytes")
        return keys

    @field_validator("api_key_scopes", mode="before")
    @classmethod
    def _split_scopes(cls, value: object) -> object:
        """`name:ask,name:ask+write` -> a mapping."""
        if not isinstance(value, str):
            return value
        rule = "must read 'name:read,name:ask+write'; scopes are " + ", ".join(KeyScope)
        scopes: dict[str, frozenset[KeyScope]] = {}
        for name, words in _pairs(value, ":", rule):
            own = [word.strip() for word in words.split("+")]
            if not set(own) <= set(KeyScope):
                raise ValueError(rule)
            if name in scopes:
                raise ValueError(f"names {name!r} twice; write it once, as 'name:ask+write'")
            scopes[name] = frozenset(map(KeyScope, own))
        return scopes

    @field_validator("api_key_scopes")
    @classmethod
    def _scopes_are_of_keys(
        cls, scopes: dict[str, frozenset[KeyScope]], info: ValidationInfo
    ) -> dict[str, frozenset[KeyScope]]:
        """A key whose name is written wrongly here would have all scopes."""
        unknown = [name for name in scopes if name not in info.data.get("api_keys", ())]
        if unknown:
            raise ValueError(f"names {unknown[0]!r}, which is no key of SLUICE_API_KEYS")
        return scopes

    @field_validator("api_allowed_hosts", mode="before")
    @classmethod
    def _split_hosts(cls, value: object) -> object:
        """`name,name` -> a tuple."""
        return _list(value, HOST_NAME, "SLUICE_API_ALLOWED_HOSTS must read 'name,other.name'")

    @field_validator("api_cors_origins", mode="before")
    @classmethod
    def _split_origins(cls, value: object) -> object:
        """`https://name,http://name:port` -> a tuple."""
        return _list(value, ORIGIN, "SLUICE_API_CORS_ORIGINS must read 'https://name,http://a:81'")

    @property
    def steps_per_key(self) -> int | None:
        """How many due steps of a queue one key may have; None where there is but one."""
        if self.queue_limit_steps_per_key is not None:
            return self.queue_limit_steps_per_key
        return ceil(0.9 * self.queue_limit_steps) if len(self.api_keys) > 1 else None

    @property
    def api_secrets(self) -> list[tuple[str, SecretStr]]:
        """Each secret with the name of its key; while one is replaced, a name has several."""
        return [
            (name, secret)
            for name, secrets in self.api_keys.items()
            for secret in (secrets if isinstance(secrets, tuple) else (secrets,))
        ]


class FolderSettings(ConnectionSettings):
    """Where models lie on this machine, and how long the hub is waited for."""

    models_folder: Path | None = None
    models_extra_folders: Annotated[tuple[Path, ...], NoDecode] = ()
    hub_connect_timeout_s: PositiveFloat = 3
    hub_answer_timeout_s: PositiveFloat = 10

    @field_validator("models_extra_folders", mode="before")
    @classmethod
    def _split_folders(cls, value: object) -> object:
        """`/one,/another` -> a list."""
        if not isinstance(value, str):
            return value
        return [item.strip() for item in value.split(",") if item.strip()]

    @property
    def models_path(self) -> Path:
        """Where models lie as `<owner>/<name>`, looked at before the hub."""
        return (self.models_folder or self.home_path / "models").expanduser()

    @property
    def model_paths(self) -> tuple[Path, ...]:
        """The folders that models may be read from, whoever asks for them."""
        return (self.models_path, *(folder.expanduser() for folder in self.models_extra_folders))


class EmbeddingPrompts(BaseModel):
    """What stands before a text that an embedding model reads; nothing where it is empty."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: Annotated[str, Field(max_length=PROMPT_LIMIT_CHARS)] = ""
    passage: Annotated[str, Field(max_length=PROMPT_LIMIT_CHARS)] = ""


class ModelSettings(RoleSettings):
    """Which models are used where a job names none, and how models that embed are run."""

    embedding_model: ModelName = DEFAULT_EMBEDDING_MODEL
    generation_model: ModelName = EXTRACTIVE
    embedding_dtype: Literal["auto", "float32", "bfloat16"] = "auto"
    embedding_matryoshka_models: Annotated[tuple[ModelName, ...], NoDecode] = ()
    embedding_batch_tokens: PositiveInt = 4096
    embedding_batch_steps: PositiveInt = 64
    embedding_batch_s: PositiveFloat = 2
    embedding_threads: PositiveInt = 1
    embedding_model_limit_mib: PositiveInt = 4096
    embedding_prompts: Annotated[dict[ModelName, EmbeddingPrompts], NoDecode] = {}

    @field_validator("embedding_matryoshka_models", mode="before")
    @classmethod
    def _split_names(cls, value: object) -> object:
        """`name,name` -> a tuple."""
        if not isinstance(value, str):
            return value
        return tuple(name.strip() for name in value.split(",") if name.strip())

    @field_validator("embedding_prompts", mode="before")
    @classmethod
    def _read_prompts(cls, value: object) -> object:
        return _json_object(value, '{"<model>": {"query": "<text>", "passage": "<text>"}}')


class GenerationSettings(RoleSettings):
    """What jobs that generate may ask for, and how models of this process (`hf/...`) run."""

    max_tokens_default: PositiveInt = 512
    max_tokens_limit: PositiveInt = 8192
    agent_limit_turns: PositiveInt = 8
    model_missing_fail_s: PositiveFloat = 600
    generation_limit_s: PositiveInt = 1800
    generation_flush_s: PositiveFloat = 0.2
    schema_check_s: PositiveFloat = 2

    generation_precision: Literal["auto", "nf4", "int8", "bfloat16", "float32"] = "auto"
    generation_device: str = "auto"
    generation_revision: str | None = None
    generation_adapter: str | None = None
    generation_trust_remote_code: bool = False
    generation_threads: PositiveInt | None = None
    generation_batch_requests: PositiveInt = 32
    generation_prefill_tokens: PositiveInt = 512
    generation_window_tokens: PositiveInt | None = None
    generation_kv_fraction: Annotated[float, Field(gt=0, le=1)] = 0.8
    generation_kv_mib: PositiveInt | None = None
    generation_prefix_fraction: Annotated[float, Field(ge=0, lt=1)] = 0.25
    generation_cuda_graphs: bool = False


class RemoteSettings(RoleSettings):
    """Models of other servers: Ollama, and what speaks the API of OpenAI."""

    ollama_url: str = "http://127.0.0.1:11434"
    ollama_pull: bool = False
    ollama_parallel_requests: PositiveInt = 4
    openai_base_url: str | None = None
    openai_api_key: SecretStr | None = None
    openai_parallel_requests: PositiveInt = 16
    openai_resume: Literal["instruct", "prefill"] = "instruct"
    remote_window_tokens: PositiveInt = 8192
    remote_embedding_batch_texts: PositiveInt = 32
    remote_embedding_batch_tokens: PositiveInt = 16_384
    remote_read_timeout_s: PositiveFloat = 120
    remote_retry_after_limit_s: PositiveFloat = 300


class HfSettings(RoleSettings):
    """Tasks of Hugging Face."""

    hf_models: Annotated[dict[str, ModelName], NoDecode] = {}
    hf_device: str = "auto"
    hf_dtype: Literal["auto", "float32", "bfloat16", "float16"] = "auto"
    hf_threads: PositiveInt = 1
    hf_trust_remote_code: bool = False
    hf_cache_mib: PositiveInt = 4096
    hf_batch_tokens: PositiveInt = 4096
    hf_batch_steps: PositiveInt = 64
    hf_step_s: PositiveFloat = 20
    hf_limit_inputs: PositiveInt = 10_000
    hf_audio_limit_s: PositiveFloat = 7200
    hf_audio_chunk_s: PositiveFloat = 30
    hf_image_limit_pixels: PositiveInt = 64_000_000
    hf_token: SecretStr | None = Field(
        default=None, validation_alias=AliasChoices("SLUICE_HF_TOKEN", "HF_TOKEN")
    )
    hf_hub_url: str | None = None
    hf_hub_timeout_s: PositiveFloat = 120
    hf_hub_parallel_requests: PositiveInt = 8

    @field_validator("hf_models", mode="before")
    @classmethod
    def _split_models(cls, value: object) -> object:
        """`task=model,task=model` -> a mapping."""
        if not isinstance(value, str):
            return value
        models: dict[str, str] = {}
        for task, model in _pairs(value, "=", "must read 'task=model,task=model'"):
            if task in models:
                raise ValueError(f"the task {task!r} has two models; name one")
            models[task] = model
        return models


class McpServer(BaseModel):
    """An MCP server whose tools agents may use."""

    model_config = ConfigDict(frozen=True, extra="forbid", hide_input_in_errors=True)

    url: WebUrl
    headers: dict[str, SecretStr] = {}
    """Sent with every request, such as `Authorization`."""
    allowed_tools: tuple[str, ...] | None = None
    """All of its tools, unless some are named."""
    timeout_s: PositiveFloat = 60


class OutboundSettings(RoleSettings):
    """Where requests may go that are made on a user's behalf, beside the public internet."""

    outbound_allowed_hosts: Annotated[tuple[str, ...], NoDecode] = ()

    @field_validator("outbound_allowed_hosts", mode="before")
    @classmethod
    def _split_places(cls, value: object) -> object:
        """`name,name:port,network` -> a tuple."""
        if not isinstance(value, str):
            return value
        return tuple(item.strip() for item in value.split(",") if item.strip())

    @field_validator("outbound_allowed_hosts")
    @classmethod
    def _are_places(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for item in value:
            read_allowed_host(item)
        return value

    def guard(self, *, allow_private: bool = False) -> Guard:
        allowed_hosts = tuple(map(read_allowed_host, self.outbound_allowed_hosts))
        return Guard(allow_private=allow_private, allowed_hosts=allowed_hosts)


class ToolSettings(OutboundSettings):
    """Tools of agents."""

    mcp_servers: Annotated[dict[McpServerName, McpServer], NoDecode] = {}
    mcp_limit_bytes: Bytes = 4 * 2**20
    mcp_limit_tools: PositiveInt = 64
    fetch_timeout_s: PositiveFloat = 10
    fetch_limit_bytes: Bytes = 1_000_000
    fetch_allow_private: bool = False
    tool_result_limit_chars: PositiveInt = 8000

    @field_validator("mcp_servers", mode="before")
    @classmethod
    def _read_servers(cls, value: object) -> object:
        return _json_object(
            value, '{"<name>": {"url": "<address>", "headers": {"Authorization": "Bearer <key>"}}}'
        )


class StepSettings(RoleSettings):
    """Claiming, retrying, recovery, and how long things are kept."""

    step_lease_s: PositiveFloat = 15
    step_heartbeat_s: PositiveFloat = 0.5
    step_soft_limit_s: PositiveInt = 300
    step_hard_limit_s: PositiveInt = 330
    max_attempts: PositiveInt = 3
    retry_base_s: PositiveFloat = 1
    retry_cap_s: PositiveFloat = 60
    unavailable_retry_for_s: PositiveFloat = 3600
    step_stall_s: PositiveFloat = 60
    sweep_interval_s: PositiveFloat = 1
    tidy_interval_s: PositiveFloat = 5
    sweep_limit_rows: PositiveInt = 500
    sweep_limit_s: Annotated[float, Field(gt=0, le=2_000_000)] = 5
    sweep_lock_timeout_s: Annotated[float, Field(gt=0, le=2_000_000)] = 1
    retention_days: Annotated[float, Field(gt=0, le=36_500)] = 30
    store_away_s: PositiveFloat = 2
    store_unseen_s: PositiveFloat = 600


class WorkerSettings(RoleSettings):
    """How much one worker process does at a time."""

    worker_concurrency: PositiveInt = 2
    query_concurrency: PositiveInt = 2
    generate_concurrency: PositiveInt = 64
    worker_max_memory_mib: PositiveInt = 3072
    worker_heartbeat_s: PositiveFloat = 5


class WebhookSettings(OutboundSettings):
    """Calls of the URLs that jobs name."""

    webhook_timeout_s: PositiveFloat = 10
    webhook_allow_private: bool = False
    webhook_concurrency: PositiveInt = 16


class IngestSettings(RoleSettings):
    """How documents are cut into steps, and how large they may be."""

    max_sources_per_job: Annotated[int, Field(gt=0, le=SOURCES_LIMIT)] = 20_000
    load_step_documents: PositiveInt = 16
    embed_step_chunks: PositiveInt = 128
    max_document_chars: PositiveInt = 20_000_000
    max_document_chunks: PositiveInt = 100_000
    max_document_metadata_chars: PositiveInt = 50_000_000
    max_job_chunks: PositiveInt = 1_000_000
    archive_limit_bytes: Bytes = 2**30
    archive_limit_member_bytes: Bytes = 32 * 2**20
    archive_limit_entries: PositiveInt = 50_000
    archive_limit_ratio: PositiveInt = 200
    archive_limit_depth: Annotated[int, Field(ge=1, le=16)] = 4
    load_limit_s: PositiveFloat = 120
    load_memory_mib: Annotated[int, Field(ge=256, le=2**20)] = 2048
    max_unpacked_mib: Annotated[int, Field(gt=0, le=2**20)] = 512
    max_unpacked_ratio: PositiveInt = 400
    ocr_languages: Annotated[str, Field(pattern=r"^[A-Za-z0-9_]+(\+[A-Za-z0-9_]+)*$")] = "kor+eng"
    ocr_page_limit_s: PositiveFloat = 60
    ocr_page_limit_pixels: PositiveInt = 64_000_000


class WebSettings(OutboundSettings):
    """Sources of ingest jobs that are read from the web."""

    web_user_agent: Annotated[str, Field(pattern=r"^[!-~]([ -~]{0,254}[!-~])?$")] = "Sluice"
    web_timeout_s: PositiveFloat = 30
    web_limit_bytes: Bytes = 32 * 2**20
    web_delay_s: Annotated[float, Field(ge=0, le=3600)] = 0.2
    web_delay_limit_s: Annotated[float, Field(gt=0, le=86_400)] = 60
    web_parallel_requests: Annotated[int, Field(ge=1, le=64)] = 4
    web_retries: Annotated[int, Field(ge=0, le=100)] = 3
    web_step_s: PositiveFloat = 20
    web_limit_pages: Annotated[int, Field(gt=0, le=100_000)] = 10_000
    source_folders: Annotated[tuple[str, ...], NoDecode] = ()
    adopt_limit_mib: Annotated[int, Field(gt=0, le=2**20)] = 16_384
    adopt_docstore_limit_mib: Annotated[int, Field(gt=0, le=2**20)] = 512
    adopt_copy_keep_s: Annotated[float, Field(gt=0, le=86_400)] = 120

    @field_validator("source_folders", mode="before")
    @classmethod
    def _split_folder_urls(cls, value: object) -> object:
        """`s3://bucket,file:///srv/docs` -> a tuple."""
        if isinstance(value, str):
            value = tuple(item.strip() for item in value.split(",") if item.strip())
        return value

    @field_validator("source_folders")
    @classmethod
    def _are_folders(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(map(folder_url, value))

    def permits_folder(self, url: str) -> bool:
        """Whether sources may read this folder: it is one of `source_folders`, or in one."""
        return url.startswith(self.source_folders) if self.source_folders else False


class SearchSettings(RoleSettings):
    """How passages are looked for."""

    rerank_candidates: Annotated[int, Field(ge=1, le=200)] = 50
    """So many passages a cross-encoder reads for each query; as many as are asked for, if more."""


class RebuildSettings(RoleSettings):
    """Jobs that make the vectors of a collection anew."""

    rebuild_step_s: PositiveFloat = 5
    rebuild_pause_s: Annotated[float, Field(gt=0, le=3600)] = 30
    retired_index_keep_s: Annotated[float, Field(gt=0, le=3_000_000_000)] = 604_800


class BundleSettings(RoleSettings):
    """Exports and imports of collections."""

    bundle_step_s: PositiveFloat = 5
    bundle_keep_s: Annotated[float, Field(gt=0, le=3_000_000_000)] = 86_400
    bundle_limit_chunks: Annotated[int, Field(gt=0, le=2**50)] = 20_000_000
    bundle_part_limit_mib: Annotated[int, Field(gt=0, le=2**20)] = 64


class EvalSettings(RoleSettings):
    """Jobs that measure searches."""

    eval_limit_queries: PositiveInt = 100_000
    eval_step_s: PositiveFloat = 2
    eval_resamples: PositiveInt = 2000


class BatchSettings(RoleSettings):
    """Batches, whose lines are jobs."""

    batch_limit_lines: PositiveInt = 50_000
    batch_limit_errors: Annotated[int, Field(gt=0, le=1000)] = 100
    batch_open_lines: PositiveInt = 2000
    batch_interval_s: PositiveFloat = 1
    batch_finish_s: PositiveInt = 86_400
    batch_replaced_s: PositiveInt = 600


class LexicalSettings(RoleSettings):
    """Lexical search."""

    morphemes: Literal["off", "kiwi"] = "off"
    lexical_cache_mib: PositiveInt = 256


class Settings(
    FolderSettings,
    HttpSettings,
    ModelSettings,
    GenerationSettings,
    RemoteSettings,
    HfSettings,
    ToolSettings,
    StepSettings,
    WorkerSettings,
    WebhookSettings,
    IngestSettings,
    WebSettings,
    SearchSettings,
    RebuildSettings,
    BundleSettings,
    EvalSettings,
    BatchSettings,
    LexicalSettings,
):
    """All settings of all processes; `docs/settings.md` lists them for users."""

    log_level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"


def load_settings() -> Settings:
    """Raises ConfigurationError, which names each wrong setting and shows no value of one."""
    _refuse_rights_of_a_folder()
    try:
        return Settings()
    except ValidationError as error:
        wrong = (
            f"SLUICE_{'_'.join(map(str, e['loc'])).upper()}: {e['msg']}"
            for e in error.errors(include_input=False)
        )
        raise ConfigurationError("; ".join(wrong)) from None


RIGHTS = (
    "api_allow_anonymous", "fetch_allow_private", "generation_trust_remote_code",
    "hf_trust_remote_code", "outbound_allowed_hosts", "source_folders", "webhook_allow_private",
)  # fmt: skip
"""Settings that let others in, or run their code."""
OFF = {"", "0", "f", "false", "n", "no", "off"}


def _refuse_rights_of_a_folder() -> None:
    """Raises ConfigurationError where `.env` grants what only the environment may: the folder may
    be somebody else's, as that of an archive or a clone."""
    in_file = DotEnvSettingsSource(Settings)()
    in_environment = {name.upper() for name in os.environ}
    for name in RIGHTS:
        setting = f"SLUICE_{name.upper()}"
        value = str(in_file.get(name, "")).strip()
        if value.lower() not in OFF and setting not in in_environment:
            meant = "true" if Settings.model_fields[name].annotation is bool else "..."
            raise ConfigurationError(
                f"{setting} stands in the file .env of this folder. It is taken from the "
                f"environment alone: if it is meant, `export {setting}={meant}`; else take it out."
            )


def _pairs(value: str, separator: str, rule: str) -> list[tuple[str, str]]:
    """What is written as pairs between commas. Raises ValueError, which shows no secret."""
    pairs = [pair.partition(separator) for pair in value.split(",") if pair.strip()]
    if any(not name.strip() or not content.strip() for name, _, content in pairs):
        raise ValueError(rule)
    return [(name.strip(), content.strip()) for name, _, content in pairs]


def _json_object(value: object, rule: str) -> object:
    """What is written as a JSON object; anything but a string as it is."""
    if not isinstance(value, str):
        return value
    try:
        read = json.loads(value)
    except (ValueError, RecursionError):
        read = None
    if not isinstance(read, dict):
        raise ValueError(f"must read '{rule}', which is JSON")
    return read


def _list(value: object, pattern: re.Pattern[str], rule: str) -> object:
    """What is written between commas, each as the pattern says; anything but a string as it is."""
    if not isinstance(value, str):
        return value
    items = tuple(item.strip().rstrip("/") for item in value.split(",") if item.strip())
    if not all(pattern.fullmatch(item) for item in items):
        raise ValueError(rule)
    return items


def _required(value: SecretStr | None, name: str) -> str:
    if value is None:
        raise ConfigurationError(
            f"{name} is not set. Set it to a running server, or start everything on this "
            "machine with `sluice up`."
        )
    return value.get_secret_value()
