"""What the models behind the test hub answer: the shapes are those of the inference API's task
specifications, the contents are made of what is asked, so that a test can tell them.
"""

from collections.abc import Callable
from typing import Any

from shared.kinds.hf import Task

VOWELS = "aeiou"


class Wrong(Exception):
    """What the server refuses to take for inputs."""


def _text(inputs: Any) -> str:
    if not isinstance(inputs, str) or not inputs:
        raise Wrong("inputs must be a string")
    return inputs


def _summary(inputs: Any, parameters: dict[str, Any]) -> Any:
    words = _text(inputs).split()
    limit = parameters.get("generate_parameters", {}).get("max_length", 3)
    return [{"summary_text": " ".join(words[:limit])}]


def _translation(inputs: Any, parameters: dict[str, Any]) -> Any:
    said = f"{parameters['tgt_lang']}: " if "tgt_lang" in parameters else ""
    return [{"translation_text": said + _text(inputs).upper()}]


def _answer(inputs: Any, parameters: dict[str, Any]) -> Any:
    """The last words of the context, best first."""
    context = inputs["context"]
    answers = []
    end = len(context)
    for rank in range(parameters.get("top_k", 1)):
        start = context.rfind(" ", 0, end) + 1
        score = 1 / (rank + 1)
        answers.append({"score": score, "start": start, "end": end, "answer": context[start:end]})
        end = start - 1
    return answers if len(answers) > 1 else answers[0]


def _similarity(inputs: Any, _: dict[str, Any]) -> Any:
    source = set(inputs["source_sentence"].split())
    others = [set(sentence.split()) for sentence in inputs["sentences"]]
    return [len(source & other) / len(source | other) for other in others]


def _labels(inputs: Any, parameters: dict[str, Any]) -> Any:
    good = "good" in _text(inputs)
    labels = [
        {"label": "POSITIVE" if good else "NEGATIVE", "score": 0.75},
        {"label": "NEGATIVE" if good else "POSITIVE", "score": 0.25},
    ]
    return [labels[: parameters.get("top_k", 2)]]


def _chosen(inputs: Any, parameters: dict[str, Any]) -> Any:
    text = _text(inputs)
    scores = [
        {"label": label, "score": 1.0 if label in text else 0.0}
        for label in parameters["candidate_labels"]
    ]
    return sorted(scores, key=lambda entry: -entry["score"])


def _entities(inputs: Any, parameters: dict[str, Any]) -> Any:
    """Words that begin with a capital."""
    text, entities, at = _text(inputs), [], 0
    name = "entity" if parameters.get("aggregation_strategy") == "none" else "entity_group"
    for word in text.split():
        at = text.index(word, at)
        if word[0].isupper():
            place = {"word": word, "start": at, "end": at + len(word)}
            entities.append({name: "PER", "score": 0.5, **place})
    return entities


def _fillings(inputs: Any, parameters: dict[str, Any]) -> Any:
    text = _text(inputs)
    if "[MASK]" not in text:
        raise Wrong("No mask_token ([MASK]) found on the input")
    words = parameters.get("targets", ["water", "air"])[: parameters.get("top_k", 5)]
    return [
        {
            "score": 1 / (token + 1),
            "token": token,
            "token_str": word,
            "sequence": text.replace("[MASK]", word),
        }
        for token, word in enumerate(words)
    ]


def _features(inputs: Any, parameters: dict[str, Any]) -> Any:
    """How often each vowel occurs; a text that begins with `batch` comes as a batch of one, and one
    that begins with `tokens` with a vector for each word."""
    text = _text(inputs)
    if text.startswith("tokens"):
        return [[_vector(word, parameters) for word in text.split()]]
    vector = _vector(text, parameters)
    return [vector] if text.startswith("batch") else vector


def _vector(text: str, parameters: dict[str, Any]) -> list[float]:
    vector = [float(text.count(vowel)) for vowel in VOWELS]
    length = sum(vector) if parameters.get("normalize") else 1
    return [count / length for count in vector][: parameters.get("dimensions")]


def _transcript(data: Any, parameters: dict[str, Any]) -> Any:
    said = f"{len(data)} bytes"
    if not parameters.get("return_timestamps"):
        return {"text": said}
    return {"text": said, "chunks": [{"text": said, "timestamp": [0.0, None]}]}


def _image(data: Any, parameters: dict[str, Any]) -> Any:
    labels = [{"label": f"{len(data)} bytes", "score": 0.5}, {"label": "cat", "score": 0.25}]
    return labels[: parameters.get("top_k", 5)]


def _ranks(inputs: Any, parameters: dict[str, Any]) -> Any:
    """Scores count the words that a text has of the query; the order is the one they came in."""
    query = set(inputs["query"].split())
    ranks: list[dict[str, Any]] = []
    for index, text in enumerate(inputs["texts"]):
        rank = {"index": index, "score": float(len(query & set(text.split())))}
        ranks.append(rank | ({"text": text} if parameters.get("return_text") else {}))
    return ranks


def _generated(inputs: Any, parameters: dict[str, Any]) -> Any:
    before = _text(inputs) if parameters.get("return_full_text", True) else ""
    more = " again" * parameters.get("max_new_tokens", 2)
    return [{"generated_text": before + more}] * parameters.get("num_return_sequences", 1)


ANSWERS: dict[Task, Callable[[Any, dict[str, Any]], Any]] = {
    Task("summarization"): _summary,
    Task("question-answering"): _answer,
    Task("sentence-similarity"): _similarity,
    Task("text-classification"): _labels,
    Task("translation"): _translation,
    Task("automatic-speech-recognition"): _transcript,
    Task("zero-shot-classification"): _chosen,
    Task("token-classification"): _entities,
    Task("fill-mask"): _fillings,
    Task("feature-extraction"): _features,
    Task("text-generation"): _generated,
    Task("text-ranking"): _ranks,
    Task("image-classification"): _image,
}
