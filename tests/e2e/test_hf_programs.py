"""Programs written for the Hugging Face Inference API run here with another base URL.

Plain `requests`, as the model pages show it, and `huggingface_hub.InferenceClient`, unmodified.
The models are tiny ones of the true architectures, under the true models' names.
"""

import base64
import shutil
from collections.abc import Iterator
from typing import Any

import pytest
import requests
from huggingface_hub import InferenceClient
from huggingface_hub.errors import HfHubHTTPError

from shared.redis import events
from shared.redis.events import Loading
from tests.e2e import tasks
from tests.e2e.processes import until
from tests.e2e.stack import LiveStack
from tests.tiny import bart, distilbert, marian, mlm, ner, nli
from tests.tiny.zoo import place

BART = "facebook/bart-large-cnn"
ROBERTA = "deepset/roberta-base-squad2"
MINILM = "sentence-transformers/all-MiniLM-L6-v2"
SST2 = "distilbert/distilbert-base-uncased-finetuned-sst-2-english"
MARIAN = "Helsinki-NLP/opus-mt-ru-en"
WAV2VEC2 = "facebook/wav2vec2-base-960h"
WHISPER = "openai/whisper-tiny"
HEADERS = {"Authorization": "Bearer hf_xxxxxxxxxxxxxxxx"}


@pytest.fixture(scope="module")
def url(live_stack: LiveStack) -> Iterator[str]:
    place(live_stack.home / "models")
    live_stack.until_whole()
    yield f"{live_stack.noted.api_url}/models"
    live_stack.until_whole()


def query(api_url: str, payload: Any) -> Any:
    response = requests.post(api_url, headers=HEADERS, json=payload, timeout=120)
    assert response.status_code == 200, response.text
    return response.json()


class TestRequests:
    """The snippets of the six tasks."""

    def test_summarization(self, url: str) -> None:
        output = query(
            f"{url}/{BART}", {"inputs": tasks.SUMMARIZED, "parameters": {"do_sample": False}}
        )
        assert output == [{"summary_text": bart.SUMMARIES[tasks.SUMMARIZED]}]

    def test_question_answering(self, url: str) -> None:
        question = tasks.QUESTION
        inputs = {"question": question.question, "context": question.context}
        output = query(f"{url}/{ROBERTA}", {"inputs": inputs})
        assert set(output) == {"score", "start", "end", "answer"}
        assert (
            output["answer"] == question.answer == question.context[output["start"] : output["end"]]
        )

    def test_sentence_similarity(self, url: str) -> None:
        inputs = {
            "source_sentence": "That is a happy person",
            "sentences": [
                "That is a happy dog", "That is a very happy person", "Today is a sunny day",
            ],
        }  # fmt: skip
        output = query(f"{url}/{MINILM}", {"inputs": inputs})
        # As the model's page on the hub has it.
        assert output == pytest.approx([0.695, 0.943, 0.257], abs=2e-3)

    def test_text_classification(self, url: str) -> None:
        output = query(f"{url}/{SST2}", {"inputs": tasks.FELT})
        labels = {entry["label"] for entry in output[0]}
        assert [len(output), labels] == [1, {"POSITIVE", "NEGATIVE"}]
        assert output[0][0]["label"] == distilbert.SENTIMENTS[tasks.FELT]

    def test_translation(self, url: str) -> None:
        output = query(f"{url}/{MARIAN}", {"inputs": tasks.TRANSLATED})
        assert output == [{"translation_text": marian.ENGLISH[tasks.TRANSLATED]}]

    @pytest.mark.parametrize("format_", ["FLAC", "WAV", "MP3", "OGG"])
    def test_speech(self, url: str, format_: str) -> None:
        data = tasks.sound(format_=format_, rate=44_100)
        response = requests.post(f"{url}/{WAV2VEC2}", headers=HEADERS, data=data, timeout=120)
        assert (response.status_code, response.json()) == (200, {"text": tasks.SPOKEN})

    def test_speech_in_base64_with_parameters(self, url: str) -> None:
        payload = {
            "inputs": base64.b64encode(tasks.sound()).decode(),
            "parameters": {"return_timestamps": "word"},
        }
        output = query(f"{url}/{WAV2VEC2}", payload)
        assert [chunk["text"] for chunk in output["chunks"]] == tasks.SPOKEN.split()

    def test_many_inputs(self, url: str) -> None:
        texts = list(distilbert.SENTIMENTS)
        output = query(f"{url}/{SST2}", {"inputs": texts})
        assert [row[0]["label"] for row in output] == list(distilbert.SENTIMENTS.values())


class TestInferenceClient:
    def client(self, url: str, model: str) -> InferenceClient:
        return InferenceClient(model=f"{url}/{model}", token="any", timeout=120)

    def test_summarization(self, url: str) -> None:
        output = self.client(url, BART).summarization(tasks.SUMMARIZED)
        assert output.summary_text == bart.SUMMARIES[tasks.SUMMARIZED]

    def test_question_answering(self, url: str) -> None:
        question = tasks.QUESTION
        output = self.client(url, ROBERTA).question_answering(
            question=question.question, context=question.context
        )
        assert not isinstance(output, list)
        assert output.answer == question.answer
        several = self.client(url, ROBERTA).question_answering(
            question=question.question, context=question.context, top_k=3
        )
        assert isinstance(several, list)
        assert several[0].answer == question.answer
        scores = [answer.score for answer in several]
        assert scores == sorted(scores, reverse=True)

    def test_sentence_similarity(self, url: str) -> None:
        output = self.client(url, MINILM).sentence_similarity(
            "Machine learning is so easy.",
            other_sentences=[
                "Deep learning is so straightforward.",
                "This is so difficult, like rocket science.",
                "I can't believe how much I struggled with this.",
            ],
        )
        # As the client's documentation has it.
        assert output == pytest.approx([0.7785726, 0.4587625, 0.2906219], abs=1e-3)

    def test_text_classification(self, url: str) -> None:
        output = self.client(url, SST2).text_classification(tasks.FELT)
        assert output[0].label == distilbert.SENTIMENTS[tasks.FELT]
        assert len(self.client(url, SST2).text_classification(tasks.FELT, top_k=1)) == 1

    def test_translation(self, url: str) -> None:
        output = self.client(url, MARIAN).translation(tasks.TRANSLATED)
        assert output.translation_text == marian.ENGLISH[tasks.TRANSLATED]

    @pytest.mark.parametrize("model", [WAV2VEC2, WHISPER])
    def test_automatic_speech_recognition(self, url: str, model: str) -> None:
        output = self.client(url, model).automatic_speech_recognition(tasks.sound())
        assert output.text.strip() == tasks.SPOKEN

    def test_feature_extraction(self, url: str) -> None:
        one = self.client(url, MINILM).feature_extraction("안녕하세요")
        two = self.client(url, MINILM).feature_extraction(["안녕하세요", "a"], normalize=True)
        assert (one.shape, two.shape, str(one.dtype)) == ((384,), (2, 384), "float32")
        assert one == pytest.approx(two[0], abs=1e-5)

    def test_zero_shot_classification(self, url: str) -> None:
        labels = ["sports", "cooking", "politics"]
        output = self.client(url, "facebook/bart-large-mnli").zero_shot_classification(
            tasks.ABOUT, labels, multi_label=True
        )
        assert {entry.label for entry in output} == set(labels)
        likely = {entry.label for entry in output if entry.score > 0.5}
        assert likely == nli.ABOUT[tasks.ABOUT] & set(labels)

    def test_token_classification(self, url: str) -> None:
        output = self.client(url, "dslim/bert-base-NER").token_classification(tasks.NAMED)
        entities = [
            (entity.entity_group, tasks.NAMED[entity.start : entity.end]) for entity in output
        ]
        assert entities == ner.ENTITIES[tasks.NAMED]

    def test_fill_mask(self, url: str) -> None:
        output = self.client(url, "google-bert/bert-base-uncased").fill_mask(tasks.FILLED, top_k=2)
        assert [output[0].token_str, len(output)] == [mlm.FILLED[tasks.FILLED][0], 2]

    def test_an_unknown_model_is_an_error_that_the_client_shows(self, url: str) -> None:
        with pytest.raises(HfHubHTTPError) as caught:
            self.client(url, "nobody/nothing").fill_mask("x")
        assert caught.value.response.status_code == 404
        assert "nobody/nothing" in str(caught.value)


def test_who_does_not_want_to_wait_reads_that_the_model_is_loading(
    url: str, live_stack: LiveStack
) -> None:
    """How long a load takes is the machine's business, so the first one here is only announced."""
    name = "quiet/sentiment"
    shutil.copytree(distilbert.folder(), live_stack.home / "models" / name)

    def ask() -> requests.Response:
        headers = HEADERS | {"x-wait-for-model": "false"}
        return requests.post(
            f"{url}/{name}", headers=headers, json={"inputs": tasks.FELT}, timeout=60
        )

    with live_stack.redis() as redis:
        events.announce(redis, Loading(model=name, estimated_s=20))
        refused = ask()
        events.done(redis, name)
        with redis.monitor() as monitor:
            answers = [ask()]
            key = events.key(name)
            commands: list[str] = []
            while not commands or not commands[-1].startswith(f"DEL {key}"):
                command = monitor.next_command()["command"]
                if key in command and not command.startswith(("GET", "PTTL")):
                    commands.append(command)
    assert refused.status_code == 503
    assert refused.json()["error"] == f"Model {name} is currently loading"
    assert 0 < refused.json()["estimated_time"] <= 20
    # The worker did the same while it loaded the model.
    assert commands[0].startswith(f"SET {key}")
    assert "estimated_s" in commands[0]

    def is_loaded() -> bool:
        answers.append(ask())
        return answers[-1].status_code == 200

    until(is_loaded, "the model is loaded")
    assert answers[-1].json()[0][0]["label"] == distilbert.SENTIMENTS[tasks.FELT]
    assert {answer.status_code for answer in answers} <= {200, 503}
