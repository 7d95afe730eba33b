"""Data sets for evaluations: documents, and queries with their relevant documents.

A data set is a SQuAD file, a BEIR folder, or a list of judged queries (JSONL) whose documents are
in a collection already. A fault raises InvalidInput, which names its place and the remedy.
"""

import hashlib
import json
import random
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from shared.bounds import nfc, shown
from shared.errors import InvalidInput
from shared.kinds.eval import JudgedQuery, parse_queries

FORMS = (
    "a SQuAD file (a JSON object with `data`), a BEIR folder (corpus.jsonl, queries.jsonl, "
    "qrels/*.tsv), or a list of judged queries (*.jsonl)"
)
SPLITS = ("test", "dev")
"""The preferred qrels of a folder with several, if the user names none."""
LIMIT_QUERIES = 1_000_000
_NAME = re.compile(r"[^a-zA-Z0-9._-]+")
_SHORTEST_NAME, _LONGEST_NAME = 3, 63


@dataclass(frozen=True, kw_only=True)
class Dataset:
    """`documents` are texts by name; empty if they are in the user's own collection.

    `remarks` say which parts were left out.
    """

    name: str
    documents: Mapping[str, str]
    queries: Sequence[JudgedQuery]
    remarks: Sequence[str] = field(default=())

    def sample(self, count: int | None, seed: int) -> "Dataset":
        """The data set with at most `count` queries, drawn at random, in their order."""
        if count is None or count >= len(self.queries):
            return self
        drawn = sorted(random.Random(seed).sample(range(len(self.queries)), count))
        return replace(self, queries=[self.queries[n] for n in drawn])


def read_dataset(path: Path, *, split: str | None) -> Dataset:
    if path.is_dir():
        return _beir(path, split)
    if split is not None:
        raise InvalidInput(f"{path} is a file; only BEIR folders have a split.")
    data = _bytes(path)
    value = _object(data)
    if value is not None and "data" in value:
        return _squad(path, value)
    if value is not None and "query" not in value:
        raise InvalidInput(f"{path} is no data set. Give {FORMS}.")
    if path.suffix.lower() == ".json" and value is None:
        raise InvalidInput(f"{path} holds no JSON object. Give {FORMS}.")
    queries = parse_queries(data, name=str(path), limit=LIMIT_QUERIES)
    return Dataset(name=_name(path.stem), documents={}, queries=queries)


def _object(data: bytes) -> dict[str, Any] | None:
    """The only JSON object of a file; None if there is none, or several."""
    try:
        value = json.loads(data.decode("utf-8-sig"))
    except (ValueError, RecursionError):
        return None
    return value if isinstance(value, dict) else None


def _bytes(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise InvalidInput(f"Cannot read {path}: {error.strerror or error}.") from error


def _query(where: str, **fields: Any) -> JudgedQuery:
    try:
        return JudgedQuery.model_validate(fields)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        raise InvalidInput(f"{where}: {first['loc'][0]}: {first['msg']}.") from None


def _name(text: str) -> str:
    """A collection's name for a file or a folder."""
    name = _NAME.sub("-", nfc(text)).strip("._-")[:_LONGEST_NAME].strip("._-")
    if len(name) >= _SHORTEST_NAME:
        return name
    return f"eval-{hashlib.sha256(nfc(text).encode()).hexdigest()[:8]}"


# SQuAD: each paragraph is a document, relevant to its questions


def _squad(path: Path, value: Mapping[str, Any]) -> Dataset:
    documents: dict[str, str] = {}
    names: dict[str, str] = {}
    queries: list[JudgedQuery] = []
    unanswerable = 0
    for name, paragraph in _paragraphs(path, value):
        context = _text(paragraph, "context", f"{path}, {name}")
        # Equal paragraphs become one document: a hit could be the wrong one of two.
        name = names.setdefault(context, name)
        documents[name] = context
        for number, question in enumerate(_list(paragraph, "qas", f"{path}, {name}")):
            where = f"{path}, {name}, question {number + 1}"
            if not isinstance(question, dict):
                raise InvalidInput(f"{where}: is no object with `question` and `answers`.")
            answers = [
                _text(answer, "text", where) for answer in question.get("answers") or [] if answer
            ]
            if question.get("is_impossible"):
                unanswerable += 1
                continue
            query = _text(question, "question", where)
            answers = list(dict.fromkeys(answers))[:100]
            queries.append(_query(where, query=query, relevant=[name], answers=answers))
    if not queries:
        raise InvalidInput(f"{path} has no questions with answers. Give {FORMS}.")
    left_out = [f"Left out {unanswerable:,} questions without an answer."] if unanswerable else []
    return Dataset(name=_name(path.stem), documents=documents, queries=queries, remarks=left_out)


def _paragraphs(path: Path, value: Mapping[str, Any]) -> Iterator[tuple[str, dict[str, Any]]]:
    titles: dict[str, int] = {}
    for number, article in enumerate(_list(value, "data", str(path)), start=1):
        if not isinstance(article, dict):
            raise InvalidInput(f"{path}: article {number} is no object with `paragraphs`.")
        title = nfc(str(article.get("title") or f"article-{number}"))[:200]
        first = titles.get(title, 0)
        paragraphs = _list(article, "paragraphs", f"{path}, article {number}")
        for n, paragraph in enumerate(paragraphs, start=first):
            if not isinstance(paragraph, dict):
                raise InvalidInput(f"{path}, {title}/{n}: is no object with `context` and `qas`.")
            yield f"{title}/{n}", paragraph
        titles[title] = first + len(paragraphs)


def _list(value: Mapping[str, Any], key: str, where: str) -> list[Any]:
    items = value.get(key)
    if not isinstance(items, list):
        raise InvalidInput(f"{where}: `{key}` is no list. A SQuAD file has `data`, `paragraphs`, "
                           "`qas`, `answers`.")  # fmt: skip
    return items


def _text(value: Any, key: str, where: str) -> str:
    text = value.get(key) if isinstance(value, dict) else None
    if not isinstance(text, str) or not text.strip():
        raise InvalidInput(f"{where}: `{key}` is no text. Correct it, or leave it out.")
    return text


# BEIR: documents, queries and judgements in files of their own


def _beir(folder: Path, split: str | None) -> Dataset:
    for name in ("corpus.jsonl", "queries.jsonl", "qrels"):
        if not (folder / name).exists():
            raise InvalidInput(f"{folder} has no {name}. Give {FORMS}.")
    documents: dict[str, str] = {}
    empty = 0
    for where, line in _json_lines(folder / "corpus.jsonl"):
        parts = [str(line.get(key) or "").strip() for key in ("title", "text")]
        text = "\n\n".join(part for part in parts if part)
        name = nfc(_id(line, where))
        if name in documents:
            raise InvalidInput(f"{where}: there is another document {shown(name)}; leave one out.")
        if text:
            documents[name] = text
        else:
            empty += 1
    texts = {_id(line, where): _text(line, "text", where)
             for where, line in _json_lines(folder / "queries.jsonl")}  # fmt: skip
    path = _qrels(folder / "qrels", split)
    judgements: dict[str, dict[str, int]] = {}
    for query, document, grade in _judgements(path):
        if grade > 0:
            judgements.setdefault(query, {})[nfc(document)] = grade
    missing = [query for query in judgements if query not in texts]
    if missing:
        raise InvalidInput(
            f"{path} judges the query {shown(missing[0])}, which is not in queries.jsonl. Are they "
            "of one data set?"
        )
    if not judgements:
        raise InvalidInput(f"{path} calls nothing relevant: no line has a score above 0.")
    queries = [
        _query(
            f"{path}, query {query}",
            query=texts[query],
            relevant=[
                name if grade == 1 else {"id": name, "grade": grade}
                for name, grade in grades.items()
            ],
        )
        for query, grades in judgements.items()
    ]
    remarks = [f"Left out {empty:,} documents without text."] if empty else []
    return Dataset(
        name=_name(folder.resolve().name), documents=documents, queries=queries, remarks=remarks
    )


def _qrels(folder: Path, split: str | None) -> Path:
    names = sorted(path.stem for path in folder.glob("*.tsv"))
    if not names:
        raise InvalidInput(f"{folder} has no *.tsv with judgements.")
    if split is None:
        split = next((name for name in SPLITS if name in names), None)
    if split is None and len(names) == 1:
        split = names[0]
    if split not in names:
        raise InvalidInput(f"{folder} has {', '.join(names)}; choose one with --split.")
    return folder / f"{split}.tsv"


def _judgements(path: Path) -> Iterator[tuple[str, str, int]]:
    form = "A line has a query's id, a document's id and a score, between tabs."
    lines = (line.rstrip("\r").split("\t") for line in _decoded(path).split("\n"))
    for number, row in enumerate(lines, start=1):
        if row == [""] or (number == 1 and not row[-1].strip().lstrip("-").isdigit()):
            continue  # the head
        if len(row) == 4:
            row = [row[0], row[2], row[3]]
        try:
            query, document, score = row
            yield query, document, min(int(score), 1000)
        except ValueError:
            raise InvalidInput(f"{path}, line {number:,}: {shown(row)}. {form}") from None


def _json_lines(path: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    for number, line in enumerate(_decoded(path).split("\n"), start=1):
        if not line.strip():
            continue
        where = f"{path}, line {number:,}"
        value = _object(line.encode())
        if value is None:
            raise InvalidInput(f"{where}: is no JSON object: {shown(line)}.")
        yield where, value


def _decoded(path: Path) -> str:
    try:
        return _bytes(path).decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise InvalidInput(f"{path} is no UTF-8 text ({error}). Save it as UTF-8.") from None


def _id(line: Mapping[str, Any], where: str) -> str:
    value = line.get("_id")
    if not isinstance(value, str | int) or value == "":
        raise InvalidInput(f"{where}: has no `_id`.")
    return str(value)
