"""A program that uses the Python clients and never runs. mypy (`test_architecture.py`) checks which
types it gets, and that each `type: ignore` is needed."""

from collections.abc import AsyncGenerator, Iterator
from contextlib import AbstractContextManager
from typing import Any, assert_type

from sluice import Answer, AsyncClient, AsyncClientJob, Client, ClientJob, Event, Job, StreamItem
from sluice.kinds import EmbedResult, HitDict, RagResult, SearchInput, SearchResult


def blocking(client: Client) -> None:
    assert_type(client.job("1", with_result=True), ClientJob[Any])
    assert_type(client.events("1"), Iterator[Event])
    assert_type(client.ask("handbook", "?", k=3), Answer)
    assert_type(client.attached([b""]), AbstractContextManager[Any, bool | None])
    job = client.submit("search", {"collection": "handbook", "query": "?"}, lane="bulk")
    plain: Job = job
    assert_type(job.wait(timeout_s=5), ClientJob[SearchResult])
    assert_type(job.wait().require_success().refresh().cancel().retry().result, SearchResult)
    assert_type(job.result["hits"], list[HitDict])
    assert_type(job.events(), Iterator[Event])
    assert_type(job.stream(), Iterator[StreamItem])
    assert_type(client.submit("embed", {"texts": ["a"]}).result, EmbedResult)
    client.submit("search", {"collections": ["a", "b"], "query": "?", "search": {"type": "mmr"}})
    client.submit("model", {"action": "create", "name": "ollama/a", "from": "ollama/b"})
    client.submit_batch([{"kind": "embed", "input": {"texts": ["a"]}, "lane": "bulk"}])
    client.submit_untyped(str(plain), {"anything": 1})
    client.chat("?", parameters={"temperature": 0.5}, timeout_s=3)


async def waiting(client: AsyncClient) -> None:
    assert_type(await client.job("1", with_result=True), AsyncClientJob[Any])
    assert_type(client.events("1"), AsyncGenerator[Event, None])
    assert_type(await client.ask("handbook", "?", k=3), Answer)
    job = await client.submit("rag", {"collection": "handbook", "question": "?"})
    assert_type((await job.wait()).result, RagResult)
    assert_type(job.events(), AsyncGenerator[Event, None])


def wrong(client: Client) -> None:
    client.job(1)  # type: ignore[arg-type]
    client.job("1", with_results=True)  # type: ignore[call-arg]
    client.submit("serch", {"collection": "a", "query": "?"})  # type: ignore[call-overload]
    client.submit("search", {"collection": "a", "qeury": "?"})  # type: ignore[call-overload]
    client.submit("embed", {"texts": "a"})  # type: ignore[call-overload]
    client.submit("embed", {})  # type: ignore[call-overload]
    client.submit("embed", {"texts": ["a"]}, lane="fast")  # type: ignore[call-overload]
    client.submit("embed", {"texts": ["a"]}, prio=1)  # type: ignore[call-overload]
    input_: SearchInput = {"collection": "a", "k": "3"}  # type: ignore[typeddict-item]
    client.submit("rag", input_)  # type: ignore[call-overload]
    client.submit_batch([{"kind": "embed", "input": {"text": 1}}])  # type: ignore[misc, list-item]
    client.search("a", "?", search={"typ": "mmr"})  # type: ignore[arg-type]
    client.chat("?", parameters={"temperature": "hot"})  # type: ignore[arg-type]
    client.submit("embed", {"texts": ["a"]}).result["hits"]  # type: ignore[typeddict-item]


async def wrong_later(client: AsyncClient) -> None:
    await client.submit("embed", {"texts": ["a"], "k": 1})  # type: ignore[call-overload]
    job = await client.submit("embed", {"texts": ["a"]})
    print(job.wait().result)  # type: ignore[attr-defined]
