"""Translations: right word for word, from and into languages by the names that each model has."""

import copy
import sys
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from transformers import (
    BartForConditionalGeneration,
    M2M100Config,
    M2M100ForConditionalGeneration,
    MarianMTModel,
    MBart50Tokenizer,
    NllbTokenizer,
)

from shared.errors import InvalidInput
from shared.kinds.hf import TASKS, Task
from tests.models.hf_generation import make_t5, rows, unlimited_tokenizer
from tests.models.hf_tasks import OPTIONS, outputs, warnings
from tests.tiny import bart, marian
from tests.tiny_models import one_thread
from workers.hf.task import UNWATCHED
from workers.hf.tasks import generation
from workers.hf.tasks.generation import Translation

TRANSLATE = Task("translation")


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    with one_thread():
        yield


@pytest.fixture(scope="module")
def translator() -> Translation:
    return generation.load_translation(marian.folder(), OPTIONS)


def test_translations_are_right_in_any_company(translator: Translation) -> None:
    answers = outputs(translator, TRANSLATE, list(marian.ENGLISH))
    assert answers == [{"translation_text": text} for text in marian.ENGLISH.values()]
    assert answers == [outputs(translator, TRANSLATE, [text])[0] for text in marian.ENGLISH]
    assert outputs(translator, TRANSLATE, list(marian.ENGLISH), num_beams=1) == answers
    assert TASKS[TRANSLATE].alone(answers[0]) == [answers[0]]


def test_a_target_language_of_marian_is_marked(translator: Translation) -> None:
    expected = [{"translation_text": text} for text in marian.IN_KOREAN.values()]
    assert outputs(translator, TRANSLATE, list(marian.IN_KOREAN), tgt_lang="kor") == expected
    marked = [f">>kor<< {text}" for text in marian.IN_KOREAN]
    assert outputs(translator, TRANSLATE, marked, tgt_lang="kor") == expected
    # The pair of the model's own configuration.
    [english] = outputs(translator, TRANSLATE, ["Да."], src_lang="ru", tgt_lang="en")
    assert english == {"translation_text": "Yes."}


def test_languages_that_marian_does_not_know(translator: Translation) -> None:
    with pytest.raises(InvalidInput, match=r"tgt_lang 'fra' is none .* it knows en, kor\."):
        outputs(translator, TRANSLATE, ["Да."], tgt_lang="fra")
    with pytest.raises(InvalidInput, match=r"src_lang 'fr' is none .* it knows ru\."):
        outputs(translator, TRANSLATE, ["Да."], src_lang="fr")


def test_a_text_of_no_tokens_is_an_error(translator: Translation) -> None:
    # Sentencepiece drops what has no width.
    with pytest.raises(InvalidInput, match="nothing that the model can read"):
        outputs(translator, TRANSLATE, ["\u200b\u200b"])


def test_marian_loads_without_sacremoses(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sacremoses", None)
    task = generation.load_translation(marian.folder(), OPTIONS)
    assert outputs(task, TRANSLATE, ["Да."]) == [{"translation_text": "Yes."}]


# Copying a Marian tokenizer recommends a package that transformers 5 imports and does not use.
@pytest.mark.filterwarnings("ignore:Recommended. pip install sacremoses")
def test_a_marian_of_many_languages_says_that_it_chooses(translator: Translation) -> None:
    tokenizer: Any = copy.copy(translator.tokenizer)
    tokenizer.supported_language_codes = [">>kor<<", ">>fin<<"]
    task = Translation(MarianMTModel.from_pretrained(marian.folder()).eval(), tokenizer, OPTIONS)
    [warning] = warnings(task, TRANSLATE, "Да.")
    assert warning.endswith("it knows fin, kor.")
    assert not warnings(task, TRANSLATE, ">>kor<< Да.")
    assert not warnings(task, TRANSLATE, "Да.", tgt_lang="fin")


@pytest.mark.parametrize(
    ("make", "codes"),
    [(NllbTokenizer, ("fra_Latn", "kor_Hang")), (MBart50Tokenizer, ("fr_XX", "ko_KR"))],
)
def test_languages_that_are_tokens(make: Callable[[], Any], codes: tuple[str, str]) -> None:
    """Untrained: what matters is what it is given, and what a translation begins with."""
    tokenizer = make()
    config = M2M100Config(
        vocab_size=len(tokenizer), d_model=32, encoder_layers=1, decoder_layers=1,
        encoder_attention_heads=2, decoder_attention_heads=2, encoder_ffn_dim=32,
        decoder_ffn_dim=32, pad_token_id=tokenizer.pad_token_id, decoder_start_token_id=2,
    )  # fmt: skip
    task = Translation(M2M100ForConditionalGeneration(config).eval(), tokenizer, OPTIONS)
    source, target = (tokenizer.convert_tokens_to_ids(code) for code in codes)
    named = {"src_lang": codes[0], "tgt_lang": codes[1], "max_new_tokens": 4}
    batch = rows(task, TRANSLATE, ["un", "deux"], **named)
    assert all(source in row.data.ids for row in batch)
    assert [tokens[0] for [tokens] in task.run(batch, UNWATCHED)] == [target] * 2
    [output] = outputs(task, TRANSLATE, ["un"], **named)
    assert not any(code in output["translation_text"] for code in codes)
    with pytest.raises(InvalidInput, match=f"tgt_lang 'ko' is none .* it knows .*{codes[1]}, "):
        outputs(task, TRANSLATE, ["un"], src_lang=codes[0], tgt_lang="ko")
    with pytest.raises(InvalidInput, match="name src_lang and tgt_lang"):
        outputs(task, TRANSLATE, ["un"], src_lang=codes[0])


def test_t5_gets_its_languages_in_the_prompt() -> None:
    tokenizer = unlimited_tokenizer()
    task = Translation(make_t5(), tokenizer, OPTIONS)
    for text, options in (
        ("Yes.", {"src_lang": "en", "tgt_lang": "fr"}),
        ("Yes.", {"tgt_lang": "fr"}),
        ("translate English to French: Yes.", {}),
    ):
        [row] = rows(task, TRANSLATE, [text], **options)
        assert tokenizer.decode(row.data.ids) == "<s>translate English to French: Yes.</s>"
        assert row.data.arguments.new_tokens == 7
    for options in ({}, {"src_lang": "en"}, {"tgt_lang": "ko"}):
        with pytest.raises(InvalidInput, match="knows: en to de, en to fr"):
            outputs(task, TRANSLATE, ["Yes."], **options)


def test_a_model_without_languages_takes_no_name_of_one() -> None:
    model = BartForConditionalGeneration.from_pretrained(bart.folder()).eval()
    task = Translation(model, unlimited_tokenizer(), OPTIONS)
    assert outputs(task, TRANSLATE, ["A baker gave away bread."]) == [
        {"translation_text": "A baker gave bread."}
    ]
    with pytest.raises(InvalidInput, match="takes no src_lang and tgt_lang"):
        outputs(task, TRANSLATE, ["A baker gave away bread."], tgt_lang="en")
