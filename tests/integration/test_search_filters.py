"""Filters on the user's own metadata, whatever its keys are called and its values are."""

import json
import unicodedata
from collections.abc import Mapping
from typing import Any

import chromadb
import pytest
from chromadb.config import Settings as ChromaSettings

from shared.filters import escaped
from shared.kinds.search import SearchOptions
from tests.integration.ingestion import (
    hits_of,
    ingest,
    ingest_files,
    live_texts,
    new_collection,
    search,
    stores_agree,
)
from workers.attempts.process import Process
from workers.models.devices import Vectors
from workers.retrieval import search as searching
from workers.retrieval.search import SearchRequest
from workers.retrieval.servers import store_of
from workers.retrieval.store import Match

TEXT = "The kite is red."


def sources_of(process: Process, collection: str, where: Mapping[str, Any]) -> set[str]:
    options = SearchOptions(filter=dict(where))
    return {hit.source for hit in hits_of(process, collection, "kite", k=50, options=options)}


KEYS = [
    "source", "start_index", "document_id", "chunk_id", "title", "text", "#", "#id", "$price",
    "$and", "$or", "$", "", " ", "chroma:document", "chroma:x", "#document", "sluice:source",
    "sluice:shadowed:source", "a.b", "a b", "'\"", "한글 열쇠", "🙂", "k" * 1000, "row",
    "media_type", "heading",
]  # fmt: skip


def test_every_key_is_stored_returned_and_filtered_by(process: Process) -> None:
    collection = new_collection(process)
    record = {"text": TEXT, **{key: f"value {n}" for n, key in enumerate(KEYS) if key != "text"}}
    other = {"text": TEXT, **{key: "another" for key in KEYS if key != "text"}}
    files = {
        name: json.dumps(value).encode() for name, value in (("a.json", record), ("b.json", other))
    }
    assert ingest_files(process, collection, files) == {"added": 2}
    stores_agree(process, collection)

    (hit,) = search(process, collection, "kite", search={"filter": {"$price": record["$price"]}})
    assert {key: value for key, value in record.items() if key != "text"}.items() <= (
        hit.metadata.items()
    )
    for key in KEYS:
        if key != "text":
            name = escaped(key)
            assert sources_of(process, collection, {name: record[key]}) == {"a.json"}, key
            assert sources_of(process, collection, {name: "nothing"}) == set(), key
    several = {escaped(key): record[key] for key in ("source", "$and", "", "a.b")}
    assert sources_of(process, collection, several) == {"a.json"}


def test_a_key_of_ours_is_the_users_where_he_has_one(process: Process) -> None:
    collection = new_collection(process)
    keys = ("source", "start_index", "document_id")
    ingest(process, collection, {"plain": TEXT})
    ingest(process, collection, {"wiki": TEXT}, metadata=dict.fromkeys(keys, "wiki"))
    ingest(process, collection, {"number": TEXT}, metadata=dict.fromkeys(keys, 7))
    (plain,) = [one for one in search(process, collection, "kite") if one.source == "plain"]

    for key, own in zip(keys, ("plain", 0, plain.document_id), strict=True):
        assert sources_of(process, collection, {key: own}) == {"plain"}, key
        assert sources_of(process, collection, {key: "wiki"}) == {"wiki"}, key
        assert sources_of(process, collection, {key: 7}) == {"number"}, key


VALUES = [
    2024, 2024.5, 0, 0.5, -0.5, 1, True, False, "2024", "2024.5", "true", "", "1", -3, 10**18,
    2**63 - 1, 1 - 2**63, 1.5e10, "연도", " x ",
]  # fmt: skip


def test_values_are_equal_by_type_and_numbers_by_value(process: Process) -> None:
    collection = new_collection(process)
    lines = [json.dumps({"text": TEXT, "n": value, "at": f"{n}"}) for n, value in enumerate(VALUES)]
    ingest_files(process, collection, {"values.jsonl": "\n".join(lines).encode()})

    def places(value: Any) -> set[int]:
        options = SearchOptions(filter={"n": value})
        hits = hits_of(process, collection, "kite", k=50, options=options)
        return {int(hit.metadata["at"]) for hit in hits}

    for value in VALUES:
        kind = type(value) if isinstance(value, str | bool) else (int, float)
        equal = {
            n
            for n, other in enumerate(VALUES)
            if other == value
            and isinstance(other, kind)
            and isinstance(other, bool) == isinstance(value, bool)
        }
        assert places(value) == (equal if value != "" else set()), (
            value
        )  # empty values are left out
    assert places(2024.0) == {0}
    assert places(1.0) == {5}
    assert places(3) == set()


def test_forms_of_the_same_letters_are_one_key_and_one_value(process: Process) -> None:
    collection = new_collection(process)
    key, value = (unicodedata.normalize("NFD", text) for text in ("부서", "총무팀 café"))
    ingest(process, collection, {"a": TEXT}, metadata={key: value})
    record = {"text": TEXT, key: value, "이름": 1, unicodedata.normalize("NFD", "이름"): 2}
    ingest_files(process, collection, {"b.json": json.dumps(record).encode()})

    for form in ("NFC", "NFD", "NFKC"):
        where = {unicodedata.normalize(form, key): unicodedata.normalize(form, value)}
        assert sources_of(process, collection, where) == {"a", "b.json"}
    hits = {hit.source: hit.metadata for hit in search(process, collection, "kite")}
    assert hits["a"]["부서"] == "총무팀 café"
    # Neither of two is lost; as of two columns of one name, the second is numbered.
    assert (hits["b.json"]["이름"], hits["b.json"]["이름 (2)"]) == (1, 2)
    assert sources_of(process, collection, {"이름 (2)": 2}) == {"b.json"}


def test_columns_of_any_name_can_be_filtered_by(process: Process) -> None:
    collection = new_collection(process)
    table = "#,text,$price,source\n1,The kite is red.,300,wiki\n2,The boat is blue.,500,wiki\n"
    ingest_files(
        process,
        collection,
        {"table.csv": table.encode()},
        csv={"metadata_columns": ["#", "$price", "source"]},
    )
    hits = search(process, collection, "kite", search={"filter": {"source": "wiki"}})
    assert len(hits) == 2
    price = next(hit.metadata["$price"] for hit in hits if "kite" in hit.text)
    (hit,) = search(process, collection, "boat", search={"filter": {"$price": price}})
    assert "kite" in hit.text


def test_metadata_of_the_job_goes_before_what_we_note(process: Process) -> None:
    collection = new_collection(process)
    own = {"row": "창고", "media_type": "mine", "title": "제목", "heading": "머리"}
    ingest_files(process, collection, {"a.csv": b"text,x\nkite,1\n"}, metadata=own)
    html = b"<title>theirs</title>kite"
    ingest_files(process, collection, {"b.html": html}, metadata=own)
    ingest(
        process,
        collection,
        {"c.md": "# theirs\n\nkite"},
        metadata=own,
        splitter={"type": "markdown"},
    )
    for key, value in own.items():
        assert sources_of(process, collection, {key: value}) == {"a.csv", "b.html", "c.md"}


def test_other_programs_read_the_users_keys_beside_ours(process: Process, chroma_url: str) -> None:
    collection = new_collection(process)
    ingest(
        process, collection, {"a": TEXT}, metadata={"source": "wiki", "$price": 3, "team": "zoo"}
    )
    host, _, port = chroma_url.removeprefix("http://").partition(":")
    client = chromadb.HttpClient(
        host=host, port=int(port), settings=ChromaSettings(anonymized_telemetry=False)
    )
    (metadata,) = client.get_collection(collection).get()["metadatas"] or []
    assert metadata["source"] == "a"
    assert metadata["start_index"] == 0
    assert metadata["sluice:source"] == "wiki"
    assert metadata["sluice:$price"] == 3
    assert metadata["team"] == "zoo"
    assert live_texts(process, collection) == {"a": [TEXT]}


def test_what_the_store_does_not_know_is_looked_for_in_postgres(
    process: Process, monkeypatch: pytest.MonkeyPatch
) -> None:
    collection = new_collection(process)
    lines = [{"text": f"{TEXT} {n}", "day": f"2024-01-{n % 31 + 1:02}"} for n in range(99)]
    lines.append({"text": "Taxes are due.", "day": "2025-06-30"})
    data = "\n".join(map(json.dumps, lines)).encode()
    ingest_files(process, collection, {"days.jsonl": data})

    def days(where: Mapping[str, Any], k: int = 1) -> list[str]:
        hits = search(process, collection, "kite", k=k, search={"filter": dict(where)})
        return [hit.metadata["day"] for hit in hits]

    # Texts have no order in Chroma; the nearest 64 of 100 passages are of the wrong days.
    assert days({"day": {"$gte": "2024-02-01"}}) == ["2025-06-30"]
    assert days({"day": {"$not": {"$lt": "2024-01-31"}}}, k=9).count("2025-06-30") == 1
    assert set(days({"day": {"$gt": "2024-01-29", "$lt": "2024-02"}}, k=9)) == {
        "2024-01-30", "2024-01-31",
    }  # fmt: skip
    assert days({"day": {"$gt": "2026"}}, k=9) == []

    # Many queries are asked again for more in parts.
    store, sizes = store_of(process), []
    ask = store.query

    def noting(name: str, vectors: Vectors, **options: Any) -> list[list[Match]]:
        sizes.append((len(vectors), options["limit"]))
        return ask(name, vectors, **options)

    monkeypatch.setattr(store, "query", noting)
    monkeypatch.setattr(searching, "MATCHES_AT_ONCE", 100)
    for type_ in ("similarity", "hybrid"):
        options = SearchOptions(type=type_, filter={"day": {"$gte": "2024-02-01"}})
        queries = ["kite", "red kite", "The kite", "taxes"]
        request = SearchRequest(collections=[collection], queries=queries, k=1, options=options)
        hits = searching.search(process, request).hits
        assert [[hit.metadata["day"] for hit in row] for row in hits] == [["2025-06-30"]] * 4
    # At first all are asked, for 50 at most.
    assert all(count == 1 or count * limit <= max(100, 4 * 50) for count, limit in sizes)


def test_lists_are_found_by_what_they_contain(process: Process) -> None:
    collection = new_collection(process)
    records = [
        {"text": TEXT, "tags": ["새", "large", None], "sizes": [1, 2.5], "mixed": ["a", 1, True]},
        {"text": TEXT, "tags": ["small"], "sizes": [], "mixed": "a"},
    ]
    files = {f"{n}.json": json.dumps(record).encode() for n, record in enumerate(records)}
    ingest_files(process, collection, files)
    ingest(process, collection, {"a.txt": TEXT}, metadata={"tags": ["large"], "source": ["x"]})
    stores_agree(process, collection)

    assert sources_of(process, collection, {"tags": {"$contains": "large"}}) == {"0.json", "a.txt"}
    apart = unicodedata.normalize("NFD", "새")
    assert sources_of(process, collection, {"tags": {"$contains": apart}}) == {"0.json"}
    assert sources_of(process, collection, {"sizes": {"$contains": 1}}) == {"0.json"}
    assert sources_of(process, collection, {"mixed": {"$contains": "1"}}) == {"0.json"}
    assert sources_of(process, collection, {"source": {"$contains": "x"}}) == {"a.txt"}
    without = {"tags": {"$not": {"$contains": "large"}}}
    assert sources_of(process, collection, without) == {"1.json"}
    (hit,) = search(process, collection, "kite", search={"filter": {"source": "0.json"}})
    assert hit.metadata["tags"] == ["새", "large"]
    assert hit.metadata["mixed"] == ["a", "1", "true"]


def test_columns_of_numbers_compare_as_numbers(process: Process) -> None:
    collection = new_collection(process)
    table = "text,year,open,phone\nkite,2024,true,010-1\nboat,2025,false,+82\nkite,999,true,007\n"
    ingest_files(
        process,
        collection,
        {"t.csv": table.encode()},
        csv={"metadata_columns": ["year", "open", "phone"]},
    )

    def rows(where: Mapping[str, Any]) -> set[int]:
        options = SearchOptions(filter=dict(where))
        hits = hits_of(process, collection, "kite", k=9, options=options)
        return {hit.metadata["row"] for hit in hits}

    assert rows({"year": 2024}) == {1}
    assert rows({"year": "2024"}) == set()
    assert rows({"year": {"$gte": 2024}}) == {1, 2}
    assert rows({"year": {"$lt": 2024.5}, "open": True}) == {1, 3}
    assert rows({"phone": {"$in": ["007", "+82"]}}) == {2, 3}
    assert rows({"row": {"$ne": 1}, "year": {"$gt": 1000}}) == {2}


def test_a_search_that_finds_nothing_says_what_of_the_filter_cannot_match(process: Process) -> None:
    collection = new_collection(process)
    table = "text,year,open\nkite,2024,true\nboat,2025,false\n"
    columns = {"metadata_columns": ["year", "open"]}
    ingest_files(process, collection, {"t.csv": table.encode()}, csv=columns, metadata={"t": ["a"]})

    def warnings(where: Mapping[str, Any], type_: str = "hybrid") -> list[str]:
        request = SearchRequest(
            collections=[collection],
            queries=["kite"],
            k=3,
            options=SearchOptions.model_validate({"type": type_, "filter": dict(where)}),
        )
        return list(searching.search(process, request).warnings)

    (text,) = warnings({"year": "2024"})
    assert "'year' has to be a text, but in" in text
    assert "it is a number; values of different types never match" in text
    assert (
        "'yaer', which the metadata of no passage" in warnings({"yaer": {"$gt": 1}}, "lexical")[0]
    )
    assert "look with $contains" in warnings({"$and": [{"t": "a"}, {"year": 2024}]})[0]
    assert "'year' has to be a list" in warnings({"year": {"$contains": 1}}, "similarity")[0]
    # Nothing is wrong with these: the values are other ones, or something is found.
    assert warnings({"year": 1999, "source": "x", "open": {"$in": [True, "yes"]}}) == []
    assert warnings({"year": 2024, "$not": {"nothing": 1}}) == []
    assert warnings({"$or": [{"year": 2024}, {"nothing": 1}]}) == []
    assert warnings({}) == []
