"""The output of a Hugging Face task for a person; as JSON where it has another shape."""

from collections.abc import Callable, Iterator, Sequence
from typing import Any

from cli.hf_inputs import Asked
from cli.output import escaped, first_words, print_json, print_table, print_text, stdout
from shared.hf import Task

_NAME_CELLS = 40
_SHOWN_NUMBERS = 4
_PASSAGES = ("sentence", "text", "sequence")

Row = tuple[object, ...]
_TEXTS = {
    Task.SUMMARIZATION: "summary_text",
    Task.TRANSLATION: "translation_text",
    Task.TEXT_GENERATION: "generated_text",
    Task.SPEECH_RECOGNITION: "text",
}


def show_output(task: Task, asked: Asked, output: Any) -> None:
    try:
        if task in _TEXTS:
            shown = _texts(_TEXTS[task], asked, output)
        elif task is Task.QUESTION_ANSWERING and asked.is_one and isinstance(output, dict):
            shown = [_answer(output)]
        else:
            columns, rows = _table(task, asked, output)
            print_table(columns, rows, flexible=_flexible(columns))
            return
    except (AttributeError, IndexError, KeyError, TypeError, ValueError):
        print_json(output)
        return
    for text in shown:
        print_text(text)


def _texts(field: str, asked: Asked, output: Any) -> list[str]:
    """One alone as it is; of many, a line for each in a pipe, and their names on a terminal."""
    if asked.is_one:
        each = output if isinstance(output, list) else [output]
        return [line for item in each for line in (item[field], *_pieces(item))]
    texts = [
        " / ".join(item[field] for item in (one if isinstance(one, list) else [one]))
        for one in output
    ]
    if not stdout().is_terminal:
        return [escaped(text) for text in texts]
    return [f"{_short(name)}\n  {text}\n" for name, text in zip(asked.names, texts, strict=True)]


def _pieces(item: dict[str, Any]) -> Iterator[str]:
    """What was said when, where a transcript tells."""
    for piece in item.get("chunks", ()):
        start, end = piece["timestamp"]
        yield f"{_seconds(start):>9} {_seconds(end):>9}  {piece['text'].strip()}"


def _seconds(value: float | None) -> str:
    return "" if value is None else f"{value:.2f} s"


def _answer(found: dict[str, Any]) -> str:
    where = f"{found['score']:.2f}, from character {found['start']:,}"
    return f"{found['answer']} ({where})" if found["answer"] else f"No answer ({where})"


def _table(task: Task, asked: Asked, output: Any) -> tuple[Sequence[str], list[Row]]:
    columns, rows_of = _TABLES[task]
    if asked.is_one:
        if task is Task.TEXT_CLASSIFICATION:
            [output] = output  # nested, as the API has it
        return columns, list(rows_of(output, asked.names))
    rows = [
        (name, *row)
        for name, one in zip(asked.names, output, strict=True)
        for row in rows_of(one, (name,))
    ]
    return ("input", *columns), rows


def _flexible(columns: Sequence[str]) -> str | None:
    """What one knows already, or reads elsewhere; an answer is never shortened."""
    return next((name for name in ("input", *_PASSAGES) if name in columns), None)


def _labels(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output:
        yield _score(item["score"]), item["label"]


def _answers(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output if isinstance(output, list) else [output]:
        yield _score(item["score"]), item["start"], item["end"], item["answer"]


def _entities(output: Any, _: Sequence[str]) -> Iterator[Row]:
    for item in output:
        name = item.get("entity_group") or item["entity"]
        yield name, _score(item["score"]), item["start"], item["end"], item["word"]


def _fillings(output: Any, _: Sequence[str]) -> Iterator[Row]:
    """With several masks there is a list for each."""
    masks = output if output and isinstance(output[0], list) else [output]
    for mask, items in enumerate(masks, start=1):
        for item in items:
            yield mask, _score(item["score"]), item["token_str"].strip(), item["sequence"]


def _similarities(output: Any, sentences: Sequence[str]) -> Iterator[Row]:
    for score, sentence in zip(output, sentences, strict=True):
        yield _score(score), sentence


def _ranks(output: Any, texts: Sequence[str]) -> Iterator[Row]:
    for item in output:
        yield _score(item["score"]), item["index"], texts[item["index"]]


def _vectors(output: Any, _: Sequence[str]) -> Iterator[Row]:
    rows = output if isinstance(output[0], list) else [output]
    size = f"{len(rows)} × {len(rows[0])}" if rows is output else f"{len(output)}"
    shown = ", ".join(f"{number:.4f}" for number in rows[0][:_SHOWN_NUMBERS])
    yield size, shown + (", …" if len(rows[0]) > _SHOWN_NUMBERS or len(rows) > 1 else "")


def _score(value: float) -> str:
    return f"{value:.4f}"


def _short(name: str) -> str:
    return first_words(name, _NAME_CELLS)


_LABEL_TABLE = (("score", "label"), _labels)
_TABLES: dict[Task, tuple[Sequence[str], Callable[[Any, Sequence[str]], Iterator[Row]]]] = {
    Task.TEXT_CLASSIFICATION: _LABEL_TABLE,
    Task.ZERO_SHOT_CLASSIFICATION: _LABEL_TABLE,
    Task.IMAGE_CLASSIFICATION: _LABEL_TABLE,
    Task.QUESTION_ANSWERING: (("score", "start", "end", "answer"), _answers),
    Task.TOKEN_CLASSIFICATION: (("entity", "score", "start", "end", "word"), _entities),
    Task.FILL_MASK: (("mask", "score", "token", "sequence"), _fillings),
    Task.SENTENCE_SIMILARITY: (("score", "sentence"), _similarities),
    Task.TEXT_RANKING: (("score", "index", "text"), _ranks),
    Task.FEATURE_EXTRACTION: (("numbers", "vector"), _vectors),
}
