"""Token classification and filling masks give what transformers' pipelines give, in batches of any
company; windows lose nothing of long texts, and warnings say what is cut off."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import (
    BertConfig,
    BertForTokenClassification,
    ByT5Tokenizer,
    RobertaConfig,
    RobertaForMaskedLM,
    RobertaForTokenClassification,
)

from shared.errors import InvalidInput, Permanent
from shared.kinds.hf import Task
from tests.models.hf_tasks import HALF, OPTIONS, assert_same, outputs, reference_pipeline, warnings
from tests.tiny import mlm, ner, nli
from tests.tiny_models import one_thread
from workers.hf.tasks import classification, tokens
from workers.hf.tasks.tokens import FillMask, TokenClassification

NER = Task("token-classification")
FILL = Task("fill-mask")
STRATEGIES = ["none", "simple", "first", "average", "max"]
TEXTS = [
    *ner.ENTITIES,
    "Nothing known: Ünïcode, 🌉 and [SEP] in Seoul-Busan, said Minho's friend.",
    " ".join(ner.ENTITIES)[:99],
]
LONG = " ".join([*ner.ENTITIES] * 6)


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """As workers have it; more of them only wait for each other over models this small."""
    with one_thread():
        yield


@pytest.fixture(scope="module")
def finder() -> TokenClassification:
    return tokens.load_token_classification(ner.folder(), OPTIONS)


@pytest.fixture(scope="module")
def roberta(tmp_path_factory: pytest.TempPathFactory) -> TokenClassification:
    """Untrained, so that it finds something everywhere. Nobody has set its tokenizer's length, and
    its positions begin behind the padding token's id."""
    folder = tmp_path_factory.mktemp("roberta")
    _save_roberta(folder, RobertaForTokenClassification)
    return tokens.load_token_classification(folder, OPTIONS)


@pytest.fixture(scope="module")
def filler() -> FillMask:
    return tokens.load_fill_mask(mlm.folder(), OPTIONS)


def _save_roberta(folder: Path, architecture: Any) -> None:
    tokenizer = classification.load_text_classification(nli.folder(), OPTIONS).tokenizer
    tokenizer.model_max_length = int(1e30)
    labels = dict(enumerate(["O", "B-PER", "I-PER", "LOC", "B-MISC"]))
    config = RobertaConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=2, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=66, pad_token_id=1, initializer_range=0.5,
        id2label=labels, label2id={label: n for n, label in labels.items()},
    )  # fmt: skip
    torch.manual_seed(0)
    architecture(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _pipeline(task: TokenClassification | FillMask, name: Task) -> Any:
    return reference_pipeline(name, model=task.model, tokenizer=task.tokenizer)


def test_people_and_places_are_right(finder: TokenClassification) -> None:
    texts = list(ner.ENTITIES)
    for text, entities in zip(texts, outputs(finder, NER, texts), strict=True):
        assert _surfaces(text, entities) == ner.ENTITIES[text]
        assert all(entity["score"] > 0.9 for entity in entities)


@pytest.mark.parametrize("strategy", ["first", "average", "max"])
def test_words_are_not_split(finder: TokenClassification, strategy: str) -> None:
    [text] = [text for text in ner.ENTITIES if "부산" in text]
    [entities] = outputs(finder, NER, ["Anna Kowalska"], aggregation_strategy=strategy)
    assert _surfaces("Anna Kowalska", entities) == [("PER", "Anna Kowalska")]
    # The particle is of another kind than the place that it is joined to.
    [entities] = outputs(finder, NER, [text], aggregation_strategy=strategy)
    assert all(surface in text.split() for _, surface in _surfaces(text, entities))


def test_answers_stay_right_in_half_precision() -> None:
    texts = list(ner.ENTITIES)
    for text, entities in zip(
        texts,
        outputs(tokens.load_token_classification(ner.folder(), HALF), NER, texts),
        strict=True,
    ):
        assert _surfaces(text, entities) == ner.ENTITIES[text]
    text = "Paris is the [MASK] of France."
    [fillings] = outputs(tokens.load_fill_mask(mlm.folder(), HALF), FILL, [text])
    assert fillings[0]["token_str"] == "capital"


@pytest.mark.parametrize("strategy", STRATEGIES)
@pytest.mark.parametrize("ignored", [["O"], [], ["PER", "B-LOC", "O"]])
def test_entities_are_those_of_the_pipeline(
    finder: TokenClassification, strategy: str, ignored: list[str]
) -> None:
    options = {"aggregation_strategy": strategy, "ignore_labels": ignored}
    expected = _pipeline(finder, NER)(TEXTS, **options)
    assert_same(outputs(finder, NER, TEXTS, **options), [_plain(entities) for entities in expected])


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES)
def test_tokenizers_without_words_give_what_the_pipeline_gives(
    roberta: TokenClassification, strategy: str
) -> None:
    texts = [text[:25] for text in TEXTS]
    expected = _pipeline(roberta, NER)(texts, aggregation_strategy=strategy)
    answers = outputs(roberta, NER, texts, aggregation_strategy=strategy)
    assert sum(map(len, answers)) > 20
    assert_same(answers, [_plain(entities) for entities in expected])


@pytest.mark.filterwarnings("ignore:Tokenizer does not support real words")
@pytest.mark.parametrize("strategy", STRATEGIES[1:])
@pytest.mark.parametrize("stride", [1, 9, 30])
def test_windows_are_those_of_the_pipeline(
    finder: TokenClassification, roberta: TokenClassification, strategy: str, stride: int
) -> None:
    options = {"aggregation_strategy": strategy, "stride": stride}
    for task in finder, roberta:
        assert task.window == 64
        expected = _pipeline(task, NER)
        length = task.tokenizer.model_max_length
        task.tokenizer.model_max_length = 64
        reference = expected(LONG, **options)
        task.tokenizer.model_max_length = length
        assert_same(outputs(task, NER, [LONG], **options)[0], _plain(reference))


@pytest.mark.parametrize("strategy", STRATEGIES)
def test_nothing_of_a_long_text_is_lost_or_returned_twice(
    finder: TokenClassification, strategy: str
) -> None:
    """However the windows fall, and without the caller's asking."""
    sentence = "Anna Kowalska lives in Seoul."
    for count in range(20, 30):
        text = " ".join([sentence] * count)
        [entities] = outputs(finder, NER, [text], aggregation_strategy=strategy)
        assert warnings(finder, NER, text) == []
        places = [(entity["start"], entity["end"]) for entity in entities]
        assert places == sorted(set(places))
        surfaces = [text[start:end] for start, end in places]
        if strategy != "none":
            assert surfaces == ["Anna Kowalska", "Seoul"] * count
            continue
        assert "".join(surfaces) == "AnnaKowalskaSeoul" * count
        tokens = finder.tokenizer(text)
        assert [tokens.token_to_chars(entity["index"]) for entity in entities] == places


def test_a_stride_as_wide_as_the_window_is_refused(finder: TokenClassification) -> None:
    with pytest.raises(InvalidInput, match="windows of this model hold 62 tokens"):
        outputs(finder, NER, [LONG], stride=62)
    assert outputs(finder, NER, ["Seoul"], stride=62)


def test_a_slow_tokenizer_knows_no_places(tmp_path: Path) -> None:
    tokenizer = ByT5Tokenizer(extra_ids=0, model_max_length=64)
    config = BertConfig(
        vocab_size=len(tokenizer), hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
        intermediate_size=32, max_position_embeddings=64, id2label=ner.LABELS,
        label2id={label: n for n, label in ner.LABELS.items()}, initializer_range=0.5,
    )  # fmt: skip
    torch.manual_seed(0)
    BertForTokenClassification(config).save_pretrained(tmp_path)
    tokenizer.save_pretrained(tmp_path)
    task = tokens.load_token_classification(tmp_path, OPTIONS)
    assert not task.tokenizer.is_fast
    expected = _pipeline(task, NER)([*TEXTS[:2], LONG], aggregation_strategy="simple")
    assert_same(outputs(task, NER, [*TEXTS[:2], LONG]), [_plain(entities) for entities in expected])
    assert warnings(task, NER, LONG)[0].endswith("to 64 tokens, which is all that the model takes "
                                                 "at once.")  # fmt: skip
    with pytest.raises(InvalidInput, match="'simple' or 'none'"):
        outputs(task, NER, TEXTS[:1], aggregation_strategy="first")


@pytest.mark.parametrize("text", mlm.FILLED)
def test_masked_words_are_right(filler: FillMask, text: str) -> None:
    [answer] = outputs(filler, FILL, [text])
    lists = [answer] if isinstance(answer[0], dict) else answer
    assert [fillings[0]["token_str"] for fillings in lists] == mlm.FILLED[text]
    assert all(len(fillings) == 5 and fillings[0]["score"] > 0.9 for fillings in lists)
    if len(lists) == 1:
        assert answer[0]["sequence"] == text.lower().replace("[mask]", answer[0]["token_str"])


@pytest.mark.parametrize(
    "options", [{}, {"top_k": 1}, {"top_k": 400}, {"targets": ["capital", "mat", "paris"]},
              {"targets": ["mat", "mat", "mats"], "top_k": 2}]
)  # fmt: skip
def test_fillings_are_those_of_the_pipeline(filler: FillMask, options: dict[str, Any]) -> None:
    texts = [*mlm.FILLED, "[MASK] " * 9, "the cat sat on the [MASK] [PAD]"]
    top_k = min(options.get("top_k", 5), len(filler.tokenizer))
    expected = [_pipeline(filler, FILL)(text, **options | {"top_k": top_k}) for text in texts]
    assert_same(outputs(filler, FILL, texts, **options), expected)


def test_a_mask_of_another_kind_is_filled_likewise(tmp_path: Path) -> None:
    _save_roberta(tmp_path, RobertaForMaskedLM)
    task = tokens.load_fill_mask(tmp_path, OPTIONS)
    texts = ["The striker <mask> twice.", "<mask>", "손흥민이 <mask> 골을 넣었다."]
    assert_same(outputs(task, FILL, texts), [_pipeline(task, FILL)(text) for text in texts])
    with pytest.raises(InvalidInput, match="Write <mask> where a word is wanted"):
        outputs(task, FILL, ["The striker [MASK] twice."])


def test_a_batch_too_large_for_its_logits_is_run_in_parts(
    filler: FillMask, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = [text for text in mlm.FILLED for _ in range(3)]
    rows_of_calls: list[int] = []
    hook = filler.model.register_forward_hook(
        lambda _model, _inputs, output: rows_of_calls.append(len(output.logits))
    )
    with hook:
        whole = outputs(filler, FILL, texts)
        assert rows_of_calls == [len(texts)]
        rows_of_calls.clear()
        monkeypatch.setattr(tokens, "LOGITS_LIMIT_BYTES", 1)
        assert_same(outputs(filler, FILL, texts), whole)
        assert rows_of_calls == [1] * len(texts)


def test_targets_that_are_no_tokens_are_reported(filler: FillMask) -> None:
    text = "Paris is the [MASK] of France."
    assert warnings(filler, FILL, text, targets=["capital"]) == []
    replaced, unknown, empty = warnings(filler, FILL, text, targets=["mats", "capital", "🌉", " "])
    assert replaced.startswith("was filled with 'mat' for the target 'mats'")
    assert unknown.startswith("was not filled with '🌉'")
    assert empty.startswith("was not filled with ' '")
    with pytest.raises(InvalidInput, match="targets"):
        outputs(filler, FILL, [text], targets=[" "])


def test_a_mask_beyond_the_models_reach_is_an_error(filler: FillMask) -> None:
    words = "the cat sat on the mat. " * 20
    assert "to 64 tokens" in warnings(filler, FILL, f"[MASK] {words}")[0]
    with pytest.raises(InvalidInput, match=r"no \[MASK\] is within the first 64 of 1\d\d tokens"):
        outputs(filler, FILL, [f"{words} [MASK]"])


def test_a_model_without_a_mask_token_fills_none(tmp_path: Path, filler: FillMask) -> None:
    filler.model.save_pretrained(tmp_path)
    ByT5Tokenizer(extra_ids=0).save_pretrained(tmp_path)
    with pytest.raises(Permanent, match="no mask token"):
        tokens.load_fill_mask(tmp_path, OPTIONS)


def _surfaces(text: str, entities: list[dict[str, Any]]) -> list[tuple[str, str]]:
    return [(entity["entity_group"], text[entity["start"] : entity["end"]]) for entity in entities]


def _plain(entities: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """numpy's floats as Python's."""
    return [entity | {"score": float(entity["score"])} for entity in entities]
