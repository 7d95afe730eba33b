"""The extractive answerer: what it quotes, how it marks it, and when it says nothing."""

import json
import re
from pathlib import Path
from typing import Final, Literal
from unicodedata import normalize

import pytest
from hypothesis import given
from hypothesis import strategies as st

from bench.extractive import DATA, korean, measure, same_score, xquad
from workers.generation.backends import extractive
from workers.generation.backends.extractive import (
    NOTHING_ENGLISH,
    NOTHING_KOREAN,
    QUOTE_CHARS,
    answer,
    answer_pattern,
    english_stem,
    korean_root,
    quotes,
    words,
)
from workers.generation.prompts import is_korean
from workers.generation.rag import is_no_answer

Form = Literal["NFC", "NFD", "NFKC", "NFKD"]
FORMS: Final[tuple[Form, ...]] = ("NFC", "NFD", "NFKC", "NFKD")

HANDBOOK = (
    "The office opens at 8 a.m. and closes at 7 p.m. on weekdays. Visitors must sign in at the "
    "front desk. Parking is free for the first two hours."
)
MANUAL = (
    "# Backups\n\nBackups run every night at 02:30 and are kept for 35 days. The archive is "
    "encrypted with a key that Dana Whitfield holds.\n\n- Restores take about 20 minutes\n"
    "- Only admins may restore"
)
GARDEN = "Tomatoes need six hours of sun. Water them in the morning, because wet leaves rot."
PASSAGES = [HANDBOOK, MANUAL, GARDEN]
SCORES = [0.5, 0.5, 0.5]


@pytest.mark.parametrize(
    ("question", "start"),
    [
        ("How long are backups kept?", "Backups run every night at 02:30"),
        ("Who holds the encryption key of the archive?", "The archive is encrypted"),
        ("When does the office close?", "The office opens at 8 a.m. and closes"),
        ("Why should tomatoes be watered in the morning?", "Water them in the morning"),
        ("How long does a restore take?", "- Restores take about 20 minutes"),
    ],
)
def test_the_best_sentence_comes_first(question: str, start: str) -> None:
    reply = answer(question, PASSAGES, SCORES)
    assert reply.answer.startswith(start)
    assert reply.answer.split("\n")[0].endswith(" [1]")


def test_markers_count_in_the_order_of_first_use() -> None:
    passages = ["Zinc melts at 420 degrees.", "Unrelated words only.", "Tin melts at 232 degrees."]
    reply = answer("At how many degrees does tin melt, and zinc?", passages, [0.4, 0.4, 0.6])
    assert reply.cited == (2, 0)
    assert reply.answer == "Tin melts at 232 degrees. [1]\nZinc melts at 420 degrees. [2]"


def test_sentences_of_one_passage_share_its_marker() -> None:
    text = "The pump is red. The pump weighs nine kilograms. Cats sleep."
    reply = answer("What does the pump weigh, and is the pump red?", [text], [0.7])
    assert reply.cited == (0,)
    assert reply.answer.count("[1]") == 2


def test_overlapping_chunks_are_quoted_once() -> None:
    """The same sentence, whole in one chunk and cut in the other: the whole one is quoted."""
    sentence = "The reactor was shut down in 1987 after an inspection found cracks."
    chunks = [f"found nothing. {sentence[:40]}", f"{sentence} Work went on.", sentence.upper()]
    reply = answer("When was the reactor shut down?", chunks, [0.6, 0.6, 0.6])
    assert "1987" in reply.answer
    assert reply.answer.lower().count("reactor") == 1


def test_sentences_that_differ_in_a_figure_are_not_the_same() -> None:
    rows = [f"Model A{n} of the series has a battery of {n}000 watt hours." for n in (1, 2)]
    reply = answer("What battery do the models of the series have?", rows, [0.5, 0.5])
    assert len(reply.cited) == 2


def test_quotes_are_verbatim_but_for_whitespace() -> None:
    text = "A  long first line of a paragraph that was\nwrapped by the editor goes  on here. Next."
    (quote,) = quotes("What was wrapped by the editor?", [text], [0.5])[:1]
    assert quote.text == (
        "A long first line of a paragraph that was wrapped by the editor goes on here."
    )


def test_long_sentences_are_cut_at_words_around_what_the_question_is_about() -> None:
    filler = " ".join(f"item{n}," for n in range(150))
    text = f"The list holds {filler} and a blue lantern from Oslo, {filler} too."
    (quote,) = quotes("Where is the blue lantern from?", [text], [0.5])
    assert "blue lantern from Oslo" in quote.text
    assert quote.text.startswith("… item")
    assert quote.text.endswith(", …")
    assert len(quote.text) <= QUOTE_CHARS + 4


@pytest.mark.parametrize(
    ("question", "expected"),
    [
        ("Who won the chess championship in Reykjavik?", NOTHING_ENGLISH),
        ("체스 선수권 대회에서 누가 이겼나요?", NOTHING_KOREAN),
        ("What is it?", NOTHING_ENGLISH),
        ("무엇인가요?", NOTHING_KOREAN),
        ("?!", NOTHING_ENGLISH),
    ],
)
def test_nothing_relevant_is_said_in_the_questions_language(question: str, expected: str) -> None:
    for passages in (PASSAGES, [], [""], ["...", "\n"]):
        reply = answer(question, passages, [0.5] * len(passages))
        assert (reply.answer, reply.cited) == (expected, ())


def test_a_low_retrieval_score_raises_the_bar() -> None:
    passages = ["The treaty was signed by the mayor of the old town.", *PASSAGES]
    question = "Which treaty about fishing quotas did Norway sign?"
    assert answer(question, passages, [0.6] * 4).cited
    assert not answer(question, passages, [0.05] * 4).cited


def test_scores_must_fit_the_passages() -> None:
    with pytest.raises(ValueError, match="3 passages with 1 scores"):
        answer("x", PASSAGES, [0.5])


@given(st.text(max_size=80), st.lists(st.text(max_size=200), max_size=4))
def test_any_text_gives_an_answer_whose_markers_fit(question: str, passages: list[str]) -> None:
    reply = answer(question, passages, [0.5] * len(passages))
    assert reply.answer
    assert len(set(reply.cited)) == len(reply.cited) <= 3
    for number in range(1, len(reply.cited) + 1):
        assert f"[{number}]" in reply.answer


# Sentences


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        (
            "Dr. Smith paid $3.50 to J. R. Jones, e.g. for v1.2 of pg_dump. The U.S. Army came.",
            [
                "Dr. Smith paid $3.50 to J. R. Jones, e.g. for v1.2 of pg_dump.",
                "The U.S. Army came.",
            ],
        ),
        ('"Why?" he asked. "No!" It ended...', ['"Why?" he asked.', '"No!"', "It ended..."]),
        (
            '그는 "갑니다." 라고 말했다. 정말 그럴까요? 네! 버전 3.2.1에서 지원됩니다.',
            ['그는 "갑니다." 라고 말했다.', "정말 그럴까요?", "네!", "버전 3.2.1에서 지원됩니다."],
        ),
        ("붙여 썼다.그래도 나눈다. 끝", ["붙여 썼다.", "그래도 나눈다.", "끝"]),
        ("这是第一句。这是第二句！", ["这是第一句。", "这是第二句！"]),
        ("1. Install it\n2. Run it", ["1. Install it", "2. Run it"]),
        ("a | b\n1 | 2", ["a | b", "1 | 2"]),
        ("name: Kim\nage: 31", ["name: Kim age: 31"]),
        ("", []),
    ],
)
def test_sentences(text: str, expected: list[str]) -> None:
    assert [sentence.text for sentence in extractive.split(text)] == expected


def test_headings_and_cut_sentences_are_known() -> None:
    cut = "This sentence goes on, and on, and past the end of the"
    text = f"of the text before. Whole one.\n\nInstallation\n\n{cut}"
    sentences = extractive.split(text)
    assert [sentence.is_heading for sentence in sentences] == [False, False, True, False]
    assert [sentence.is_cut for sentence in sentences] == [True, False, False, True]


@given(st.text(max_size=300))
def test_sentences_are_slices_of_the_passage(text: str) -> None:
    collapsed = " ".join(text.split())
    at = 0
    for sentence in extractive.split(text):
        at = collapsed.find(sentence.text, at)
        assert at >= 0
        at += len(sentence.text)


# Terms


@pytest.mark.parametrize(
    ("one", "other"),
    [("running", "runs"), ("cities", "city"), ("performed", "performance"), ("six", "6")],
)
def test_english_forms_of_a_word_meet(one: str, other: str) -> None:
    assert english_stem(one) == english_stem(other)


@pytest.mark.parametrize(
    ("word", "root"),
    [
        ("데이터베이스는", "데이터베이스"),
        ("서울에서는", "서울"),
        ("지원하나요", "지원"),
        ("친절하셨습니다", "친절"),
        ("예약하려면", "예약"),
        ("나이", "나이"),
    ],
)
def test_korean_words_lose_particles_and_endings(word: str, root: str) -> None:
    assert korean_root(word) == root


def test_question_words_say_nothing() -> None:
    assert not list(words("What is it, and who was there?"))
    assert not list(words("그것은 무엇이며 누가 언제 어디에서 하나요?"))[1:]


def test_what_a_question_asks_for() -> None:
    when, many = answer_pattern("몇 년에 끝났나요?"), answer_pattern("How many were there?")
    assert when is not None
    assert when.search("1997년에 끝났다")
    assert many is not None
    assert not many.search("There were several.")
    assert answer_pattern("How do I install it?") is None


# Rates, on what the bench measures


def test_korean_questions_are_answered() -> None:
    right, wrong = korean(same_score)
    answered, unanswerable = measure(right), measure(wrong)
    assert answered.contained >= 0.85
    assert answered.first >= 0.65
    assert unanswerable.nothing >= 0.8


def test_the_korean_fixture_is_sound() -> None:
    path = Path(__file__).parent / "fixtures" / "korean_questions.json"
    rows = json.loads(path.read_text("utf-8"))["answerable"]
    assert len(rows) >= 20
    for row in rows:
        assert row["answer"] in re.sub(r"\s+", " ", row["passage"])


@pytest.mark.data
def test_english_questions_are_answered() -> None:
    path = DATA / "xquad.en.json"
    if not path.exists():
        pytest.skip(f"{path} is absent: test data that a stranger's clone does not have")
    right, wrong, _ = xquad(path, same_score)
    answered, unanswerable = measure(right[::12]), measure(wrong[::12])
    assert answered.contained >= 0.85
    assert answered.first >= 0.7
    assert unanswerable.nothing >= 0.9


# Normal forms: the same letters, however they are written

LEAVE = "연차 휴가는 1년에 18일입니다. 출입증은 총무팀에서 발급합니다."
PROGRAM = "プログラムは九時に始まります。食堂は二階にあります。"


@pytest.mark.parametrize(
    ("question", "passage", "start"),
    [
        ("연차 휴가는 며칠입니까?", LEAVE, "연차 휴가는 1년에 18일입니다. [1]"),
        ("출입증은 누가 발급합니까?", LEAVE, "출입증은 총무팀에서 발급합니다. [1]"),
        ("プログラムは何時に始まりますか", PROGRAM, "プログラムは九時に始まります。 [1]"),
        ("Où est le café de l'école?", "Le café de l'école est à Ångers.", "Le café de l'école"),
    ],
)
@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_question_and_passage_may_differ_in_form(
    question: str, passage: str, start: str, form: Form, other: Form
) -> None:
    reply = answer(normalize(form, question), [normalize(other, passage)], [0.6])
    assert reply.answer.startswith(start)


@pytest.mark.parametrize(
    ("question", "passage"),
    [
        ("When does the gate open?", "Ｔｈｅ ｇａｔｅ ｏｐｅｎｓ ａｔ ９."),
        ("Ｗｈｅｎ ｄｏｅｓ ｔｈｅ ｇａｔｅ ｏｐｅｎ？", "The gate opens at 9."),
        ("ﾌﾟﾛｸﾞﾗﾑは何時に始まりますか", "プログラムは九時に始まります。"),
        ("ＡＢＣ 회의는 몇 시입니까?", "abc 회의는 ３시입니다."),
        ("(주)한빛의 대표는 누구입니까?", "㈜한빛의 대표는 김하나입니다."),
        ("Who wrote the file office?", "The ﬁle oﬃce was written by Dana."),
    ],
)
def test_width_and_ligatures_make_no_difference(question: str, passage: str) -> None:
    reply = answer(question, ["Bread is baked.", passage], [0.4, 0.4])
    assert reply.answer.removesuffix(" [1]") == passage  # quoted as it is written
    assert reply.cited == (1,)


def test_the_language_of_a_question_is_seen_in_every_form() -> None:
    question = "양자 얽힘은 왜 생깁니까?"
    for form in FORMS:
        assert answer(normalize(form, question), [LEAVE], [0.1]).answer == NOTHING_KOREAN
        assert is_korean(normalize(form, question))
        assert is_no_answer(normalize(form, NOTHING_KOREAN))
    assert answer("Ｗｈｙ？", [LEAVE], [0.1]).answer == NOTHING_ENGLISH
    assert not is_korean("プログラム")


def test_rare_ideographs_are_words_too() -> None:
    assert [*words("佐々木")] == [("佐々",), ("々木",)]
    assert [*words("𠮷野家")] == [("𠮷野",), ("野家",)]
