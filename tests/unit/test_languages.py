"""Which language a question is in, and what it gets to read where nothing was found."""

from typing import Final, Literal
from unicodedata import normalize

import pytest

from workers.generation.languages import LANGUAGES, language_of
from workers.generation.rag import is_no_answer

QUESTIONS: Final = [
    ("en", "When do you open?"), ("en", "What is 김치?"), ("en", "What does the word 東京 mean?"),
    ("en", "Where is the café of Zürich?"), ("en", "PostgreSQL WAL"), ("en", "?!"), ("en", ""),
    ("ko", "언제 여나요?"), ("ko", "API 인증 방법은?"),
    ("ko", "The Lord of the Rings의 감독은 누구인가요?"),
    ("ko", "How I Met Your Mother의 주인공은 누구인가요?"),
    ("ko", "PostgreSQL replication slot 설정"), ("zh", "谁赢得了第 49 届超级碗？"),
    ("zh", "NFL 是什么？"), ("zh-Hant", "這個國家的首都是哪裡？"),
    ("ja", "プログラムは何時に始まりますか"), ("ja", "東京タワーの高さは？"),
    ("ja", "NASAの本部はどこですか"), ("de", "Wann wurde Berlin gegründet?"),
    ("fr", "Où se trouve la tour ?"), ("es", "¿Quién ganó?"),
    ("pt", "Quantos dias dura a viagem?"), ("it", "Quando apre l'ufficio?"),
    ("nl", "Hoeveel mensen zijn er?"), ("sv", "När öppnar kontoret?"),
    ("da", "Hvornår åbner kontoret?"), ("fi", "Milloin toimisto aukeaa?"),
    ("pl", "Kiedy otwiera się biuro?"), ("cs", "Kdy se otevírá kancelář?"),
    ("hu", "Mikor nyit az iroda?"), ("ro", "Când se deschide biroul?"),
    ("tr", "Ofis ne zaman açılıyor?"), ("vi", "Văn phòng mở cửa khi nào?"),
    ("id", "Kapan kantor buka?"), ("ru", "Когда открывается офис?"),
    ("uk", "Коли відкривається офіс?"), ("bg", "Кога отваря офисът?"),
    ("ar", "متى يفتح المكتب؟"), ("fa", "دفتر چه زمانی باز می‌شود؟"), ("ur", "دفتر کب کھلتا ہے؟"),
    ("he", "מתי המשרד נפתח?"), ("el", "Πότε ανοίγει το γραφείο;"),
    ("hi", "कार्यालय कब खुलता है?"), ("bn", "অফিস কখন খোলে?"),
    ("ta", "அலுவலகம் எப்போது திறக்கும்?"), ("th", "สำนักงานเปิดเมื่อไร"),
]  # fmt: skip
FORMS: Final[tuple[Literal["NFC", "NFD", "NFKC", "NFKD"], ...]] = ("NFC", "NFD", "NFKC", "NFKD")


@pytest.mark.parametrize(("code", "question"), QUESTIONS)
def test_the_language_of_a_question(code: str, question: str) -> None:
    for form in FORMS:
        assert language_of(normalize(form, question)).code == code


def test_each_language_has_a_question_above() -> None:
    assert {code for code, _ in QUESTIONS} == {language.code for language in LANGUAGES}


@pytest.mark.parametrize("language", LANGUAGES, ids=lambda language: language.code)
def test_the_sentence_is_in_its_language_and_is_known_for_no_answer(language: object) -> None:
    (known,) = [one for one in LANGUAGES if one is language]
    assert language_of(known.not_found) is known
    for form in FORMS:
        assert is_no_answer(normalize(form, f'"{known.not_found}" [1]'))


def test_a_long_text_is_read_no_further_than_needed() -> None:
    assert language_of("Der Zug fährt nicht. " * 100_000).code == "de"
