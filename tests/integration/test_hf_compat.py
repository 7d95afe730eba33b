"""Programs that know the inference API, against Sluice's: `huggingface_hub`, `requests`, `curl`."""

import base64
import json
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
import requests
from huggingface_hub import InferenceClient

from shared import files
from shared.config import Settings
from shared.database.transaction import Ledger, make_ledger
from shared.errors import NotFound
from shared.tables import Job
from tests.integration.answers import stored
from tests.integration.inference import MODEL, Worker, working

CONTEXT = "Kim lives in Seoul and works in Busan."
SUMMARY = [{"summary_text": "We open at nine."}]
AUDIO = b"fLaC" + bytes(range(256)) * 8
LABELS = [{"label": "POSITIVE", "score": 0.75}, {"label": "NEGATIVE", "score": 0.25}]
ENTITY = {"entity_group": "PER", "score": 0.75, "word": "Kim", "start": 0, "end": 3}
FILLED = {"score": 0.75, "token": 7, "token_str": "Seoul", "sequence": "Kim lives in Seoul."}
SPAN = {"score": 0.75, "start": 13, "end": 18, "answer": "Seoul"}

Call = Callable[[InferenceClient], Any]


@pytest.fixture(scope="module")
def ledger(settings: Settings) -> Iterator[Ledger]:
    """One for all: each test ends the jobs that it begins."""
    ledger = make_ledger(settings)
    yield ledger
    ledger.close()


@pytest.fixture
def worker(ledger: Ledger) -> Iterator[Worker]:
    with working(ledger) as worker:
        yield worker


@pytest.fixture
def client(api_url: str) -> Iterator[InferenceClient]:
    with InferenceClient(model=f"{api_url}/models/{MODEL}", timeout=30) as client:
        yield client


def contents(job: Job) -> tuple[Any, Any, Any]:
    assert job.kind == "hf"
    assert job.lane == 0, "the lane is interactive"
    assert (job.input["model"], job.input["backend"]) == (MODEL, "local")
    return job.input["task"], job.input["inputs"], job.input["parameters"]


def _best_answer(client: InferenceClient) -> str:
    span = client.question_answering("Where?", CONTEXT, handle_impossible_answer=True)
    assert not isinstance(span, list)
    return span.answer


CALLS: dict[str, tuple[Call, Any, Any, Any]] = {
    "summarization": (
        lambda c: c.summarization("A text.", generate_parameters={"max_length": 20}).summary_text,
        ("A text.", {"generate_parameters": {"max_length": 20}}),
        SUMMARY,
        "We open at nine.",
    ),
    "question_answering": (
        _best_answer,
        ({"question": "Where?", "context": CONTEXT}, {"handle_impossible_answer": True}),
        SPAN,
        "Seoul",
    ),
    "question_answering, several": (
        lambda c: [span.start for span in c.question_answering("Where?", CONTEXT, top_k=2)],
        ({"question": "Where?", "context": CONTEXT}, {"top_k": 2}),
        [SPAN, SPAN],
        [13, 13],
    ),
    "sentence_similarity": (
        lambda c: c.sentence_similarity("a", ["b", "c"]),
        ({"source_sentence": "a", "sentences": ["b", "c"]}, {}),
        [0.5, 1.0],
        [0.5, 1.0],
    ),
    "text_classification": (
        lambda c: [(label.label, label.score) for label in c.text_classification("Good.", top_k=2)],
        ("Good.", {"top_k": 2}),
        [LABELS],
        [("POSITIVE", 0.75), ("NEGATIVE", 0.25)],
    ),
    "translation": (
        lambda c: c.translation("여기", src_lang="ko", tgt_lang="en").translation_text,
        ("여기", {"src_lang": "ko", "tgt_lang": "en"}),
        [{"translation_text": "here"}],
        "here",
    ),
    "feature_extraction": (
        lambda c: c.feature_extraction("a", normalize=True, truncate=False).tolist(),
        ("a", {"normalize": True, "truncate": False}),
        [0.5, -0.5],
        [0.5, -0.5],
    ),
    "zero_shot_classification": (
        lambda c: [label.label for label in c.zero_shot_classification("Good.", ["good", "bad"])],
        ("Good.", {"candidate_labels": ["good", "bad"], "multi_label": False}),
        [{"label": "good", "score": 0.75}, {"label": "bad", "score": 0.25}],
        ["good", "bad"],
    ),
    "token_classification": (
        lambda c: [
            (entity.entity_group, entity.word, entity.start, entity.end)
            for entity in c.token_classification(CONTEXT, aggregation_strategy="first")
        ],
        (CONTEXT, {"aggregation_strategy": "first"}),
        [ENTITY],
        [("PER", "Kim", 0, 3)],
    ),
    "fill_mask": (
        lambda c: [
            (filling.token_str, filling.token) for filling in c.fill_mask("in <mask>.", top_k=1)
        ],
        ("in <mask>.", {"top_k": 1}),
        [FILLED],
        [("Seoul", 7)],
    ),
    "text_generation": (
        lambda c: c.text_generation("Once", max_new_tokens=3, stop=["."]),
        ("Once", {"max_new_tokens": 3, "stop": ["."]}),
        [{"generated_text": " upon a time"}],
        " upon a time",
    ),
}


@pytest.mark.parametrize("name", CALLS)
def test_each_method_of_the_hubs_client(name: str, worker: Worker, client: InferenceClient) -> None:
    call, expected, result, parsed = CALLS[name]
    output, job = worker.answer(lambda: call(client), result)
    task, inputs, parameters = contents(job)
    assert task is None, "the model tells it"
    assert (inputs, parameters) == expected
    assert output == parsed


class TestFiles:
    def upload_of(self, worker: Worker, job: Job) -> Any:
        with worker.ledger.read() as session:
            return files.get(session, job.input["inputs"]["file_id"])

    def test_raw_bytes_are_an_upload_until_the_job_has_succeeded(
        self, worker: Worker, client: InferenceClient, settings: Settings
    ) -> None:
        before = stored(settings)
        call = worker.call(lambda: client.automatic_speech_recognition(AUDIO))
        claim = worker.claim(call)
        upload = self.upload_of(worker, worker.job(claim.job_id))
        (new,) = set(stored(settings)) - set(before)
        assert new.read_bytes() == AUDIO
        worker.succeed(claim, {"text": "HELLO"})
        assert call.result().text == "HELLO"
        assert stored(settings) == before
        with worker.ledger.read() as session, pytest.raises(NotFound):
            files.get(session, upload.id)

    def test_a_file_by_its_path_keeps_its_type(
        self, worker: Worker, client: InferenceClient, tmp_path: Path
    ) -> None:
        path = tmp_path / "dog.png"
        path.write_bytes(b"\x89PNG" + AUDIO)
        call = worker.call(lambda: client.image_classification(str(path)))
        claim = worker.claim(call)
        assert self.upload_of(worker, worker.job(claim.job_id)).content_type == "image/png"
        worker.succeed(claim, LABELS)
        assert [label.label for label in call.result()] == ["POSITIVE", "NEGATIVE"]

    def test_the_upload_of_a_failed_job_stays_for_a_retry(
        self, worker: Worker, api: httpx.Client
    ) -> None:
        answer = worker.refuse(
            lambda: api.post(f"/models/{MODEL}", content=AUDIO), "InvalidInput", "No audio."
        )
        assert (answer.status_code, answer.json()) == (400, {"error": "No audio."})
        self.upload_of(worker, worker.job(answer.headers["x-sluice-job-id"]))

    def test_base64_beside_parameters(self, worker: Worker, client: InferenceClient) -> None:
        chunks = [{"text": "HELLO", "timestamp": [0.0, 1.0]}]
        parameters = {"return_timestamps": True}
        output, job = worker.answer(
            lambda: client.automatic_speech_recognition(AUDIO, extra_body=parameters),
            {"text": "HELLO", "chunks": chunks},
        )
        assert contents(job) == (None, base64.b64encode(AUDIO).decode(), parameters)
        assert output.chunks[0].timestamp == [0.0, 1.0]

    def test_long_base64_is_kept_out_of_the_job(
        self, worker: Worker, client: InferenceClient, settings: Settings
    ) -> None:
        data = AUDIO * 100
        before = stored(settings)
        call = worker.call(
            lambda: client.automatic_speech_recognition(data, extra_body={"language": "en"})
        )
        claim = worker.claim(call)
        (new,) = set(stored(settings)) - set(before)
        assert new.read_bytes() == data
        job = worker.job(claim.job_id)
        assert set(job.input["inputs"]) == {"file_id"}
        assert job.input["parameters"] == {"language": "en"}
        worker.succeed(claim, {"text": "HELLO"})
        assert call.result().text == "HELLO"
        assert stored(settings) == before

    def test_a_long_word_of_a_text_task_stays_a_text(
        self, worker: Worker, api: httpx.Client
    ) -> None:
        body = {"inputs": "a" * 100_000}
        url = f"/models/{MODEL}/pipeline/text-classification"
        _, job = worker.answer(lambda: api.post(url, json=body), [LABELS])
        assert job.input["inputs"] == body["inputs"]


@pytest.mark.parametrize(
    "headers",
    [
        {},
        {"Content-Type": "application/x-www-form-urlencoded"},
        {"Content-Type": "text/plain;charset=UTF-8"},
        {"Content-Type": "application/json"},
    ],
)
def test_json_is_read_whatever_it_is_called(
    headers: dict[str, str], worker: Worker, api_url: str
) -> None:
    """`requests.post(data=...)` names no type; `curl -d` and `fetch` name wrong ones."""
    data = json.dumps({"inputs": "A text.", "parameters": None, "options": {"use_cache": False}})
    url = f"{api_url}/models/{MODEL}"
    answer, job = worker.answer(
        lambda: requests.post(url, data=data, headers=headers, timeout=30), SUMMARY
    )
    assert contents(job) == (None, "A text.", {})
    assert (answer.status_code, answer.json()) == (200, SUMMARY)
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-sluice-job-id"] == str(job.id)


def test_a_plain_text_is_the_inputs(worker: Worker, api: httpx.Client) -> None:
    headers = {"Content-Type": "text/plain"}
    _, job = worker.answer(
        lambda: api.post(f"/models/{MODEL}", content="아홉 시".encode(), headers=headers), SUMMARY
    )
    assert contents(job) == (None, "아홉 시", {})


NO_TYPE: dict[str, str] = {}
FIELDS = {"Content-Type": "application/x-www-form-urlencoded"}
"""What `curl -d` and `curl --data-binary` call all that they send."""
TEXT = {"Content-Type": "text/plain;charset=UTF-8"}
JSON = {"Content-Type": "application/json"}
QUESTION = {"question": "Where?", "context": CONTEXT}
SIMILAR = {"source_sentence": "a", "sentences": ["b", "c"]}


@pytest.mark.parametrize("task", [None, "fill-mask", "summarization"])
@pytest.mark.parametrize("headers", [NO_TYPE, FIELDS, TEXT])
@pytest.mark.parametrize(
    ("body", "inputs"),
    [
        ("아홉 시", "아홉 시"),
        ("\ufeffWe open.\r\n", "We open.\r\n"),
        ('"아홉 시"', "아홉 시"),
        ('"We" open, she said.', '"We" open, she said.'),
        ('["A text.", "Another."]', ["A text.", "Another."]),
        ("[MASK] opens at nine.", "[MASK] opens at nine."),
        ("42", "42"),
        ("null", "null"),
    ],
)
def test_a_body_without_inputs_is_the_inputs(
    body: str, inputs: Any, headers: dict[str, str], task: str | None, worker: Worker, api_url: str
) -> None:
    """As `normalize_payload_nlp` of api-inference-community takes it."""
    url = f"{api_url}/models/{MODEL}" + (f"/pipeline/{task}" if task else "")
    _, job = worker.answer(
        lambda: requests.post(url, data=body.encode(), headers=headers, timeout=30), SUMMARY
    )
    assert contents(job) == (task, inputs, {})


@pytest.mark.parametrize(
    ("body", "inputs"), [("A text.", "A text."), (["a", "b"], ["a", "b"]), (42, "42")]
)
def test_so_is_json_that_is_no_object(
    body: Any, inputs: Any, worker: Worker, api: httpx.Client
) -> None:
    _, job = worker.answer(lambda: api.post(f"/models/{MODEL}", json=body), SUMMARY)
    assert contents(job) == (None, inputs, {})


@pytest.mark.parametrize("named", [True, False])
@pytest.mark.parametrize("headers", [NO_TYPE, FIELDS, JSON])
@pytest.mark.parametrize(
    ("task", "inputs", "result"),
    [
        ("question-answering", QUESTION, SPAN),
        ("sentence-similarity", SIMILAR, [0.5, 1.0]),
        ("text-ranking", {"query": "a", "texts": ["b"]}, [{"index": 0, "score": 1.0}]),
    ],
)
def test_so_is_the_object_that_a_task_takes(
    task: str,
    inputs: Any,
    result: Any,
    headers: dict[str, str],
    named: bool,
    worker: Worker,
    api_url: str,
) -> None:
    """As `question_answering` of huggingface_hub 0.20 to 0.25 sends it; parameters beside it."""
    body = {**inputs, "parameters": {"top_k": 1}, "options": {"use_cache": False}, "stream": False}
    if task == "sentence-similarity":
        del body["parameters"]
    url = f"{api_url}/models/{MODEL}" + (f"/pipeline/{task}" if named else "")
    answer, job = worker.answer(
        lambda: requests.post(url, data=json.dumps(body), headers=headers, timeout=30), result
    )
    assert contents(job) == (task if named else None, inputs, body.get("parameters", {}))
    assert answer.json() == result


def test_a_text_that_only_looks_like_a_file_is_a_text(worker: Worker, api: httpx.Client) -> None:
    """And bytes that are none are a file, where nothing tells the task."""
    _, job = worker.answer(lambda: api.post(f"/models/{MODEL}", content=b"BM is a firm."), LABELS)
    assert contents(job)[1] == "BM is a firm."
    _, job = worker.answer(lambda: api.post(f"/models/{MODEL}", content=b"BM\x36\0\0\0"), LABELS)
    assert set(contents(job)[1]) == {"file_id"}


BASE64 = base64.b64encode(AUDIO * 100).decode()


@pytest.mark.parametrize("task", [None, "automatic-speech-recognition"])
@pytest.mark.parametrize(
    "inputs",
    [
        base64.encodebytes(AUDIO * 100).decode(),
        base64.encodebytes(AUDIO * 100).decode().replace("\n", "\r\n"),
        base64.urlsafe_b64encode(AUDIO * 100).decode().rstrip("="),
        f"data:audio/flac;base64,{BASE64}",
    ],
    ids=["lines", "CRLF", "for URLs, unpadded", "data URL"],
)
def test_long_base64_is_a_file_however_it_is_written(
    inputs: str, task: str | None, worker: Worker, api: httpx.Client, settings: Settings
) -> None:
    before = set(stored(settings))
    path = f"/models/{MODEL}" + (f"/pipeline/{task}" if task else "")
    call = worker.call(lambda: api.post(path, json={"inputs": inputs}))
    claim = worker.claim(call)
    (new,) = set(stored(settings)) - before
    assert new.read_bytes() == AUDIO * 100
    worker.succeed(claim, {"text": "HELLO"})
    assert call.result().json() == {"text": "HELLO"}


@pytest.mark.parametrize(
    "inputs", ["word " * 20_000, "word\n" * 20_000, "data:text/plain," + "word" * 20_000]
)
def test_a_long_text_is_no_file(inputs: str, worker: Worker, api: httpx.Client) -> None:
    _, job = worker.answer(lambda: api.post(f"/models/{MODEL}", json={"inputs": inputs}), SUMMARY)
    assert contents(job)[1] == inputs


@pytest.mark.parametrize(
    "path", ["/models/{}/pipeline/feature-extraction", "/pipeline/feature-extraction/{}"]
)
def test_the_task_is_taken_from_the_path_and_parameters_from_the_root(
    path: str, worker: Worker, api: httpx.Client
) -> None:
    body = {"inputs": ["a", "b"], "normalize": True, "parameters": {"truncate": False}}
    answer, job = worker.answer(
        lambda: api.post(path.format(MODEL), json=body), [[0.5, 1.0], [1.0, 0.5]]
    )
    parameters = {"normalize": True, "truncate": False}
    assert contents(job) == ("feature-extraction", ["a", "b"], parameters)
    assert answer.json() == [[0.5, 1.0], [1.0, 0.5]]
