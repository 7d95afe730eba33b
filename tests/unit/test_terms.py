"""Terms of texts: what people take for the same thing has the same terms."""

import builtins
import unicodedata
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.errors import ConfigurationError
from workers.retrieval.terms import Morphemes, terms


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("The cat sat.", ["the", "cat", "sat"]),
        ("retrieval", ["retrieval", "retri"]),
        ("KX-2000b", ["kx2000b", "kx", "2000b", "2000", "b"]),
        ("1,234.5", ["1234.5", "1234", "5"]),
        ("2024-03-01", ["2024-03-01", "2024", "03", "01"]),
        ("192.168.0.1", ["192.168.0.1", "192", "168", "0", "1"]),
        ("getName", ["getname", "getna", "get", "name"]),
        ("pg_dump", ["pgdump", "pg", "dump"]),
        ("e-mail", ["email", "e", "mail"]),
        ("U.S.A.", ["usa", "u", "s", "a"]),
        ("C++ C#", ["c++", "c", "c#", "c"]),
        ("l'eau", ["eau"]),
        ("dog's", ["dog"]),
        ("출장비 정산", ["출장", "장비", "출", "정산", "정"]),
        ("2024년", ["2024", "년"]),
        ("KBS는", ["kbs", "는"]),
        ("東京タワー", ["東京", "京タ", "タワ", "ワー", "東", "京"]),
        ("学", ["学"]),
        ("ไม่มี", ["ไม่", "ม่มี"]),
        ("हिन्दी", ["हिन्दी", "हिन्द"]),
        ("٢٠٢٤", ["2024"]),
        ("_ -- …", []),
        ("", []),
    ],
)
def test_terms_of(text: str, expected: list[str]) -> None:
    assert terms(text) == expected


@pytest.mark.parametrize(
    ("one", "other"),
    [
        ("ＦＵＬＬ　ｗｉｄｔｈ", "full width"),
        ("ｱｲｳ", "アイウ"),
        ("STRASSE", "straße"),
        ("ΣΊΣΥΦΟΣ", "σίσυφος"),
        ("İstanbul ILIK", "istanbul ılık"),
        ("الكِتَابُ", "الكتاب"),
        ("أحمد", "احمد"),
        ("ещё", "еще"),
        ("שָׁלוֹם", "שלום"),
        ("co\u00adoperate", "cooperate"),
        ("don’t", "don't"),
        ("KX‑2000", "KX-2000"),
        ("ﬁnance", "finance"),
    ],
)
def test_spellings_of_one_word_are_one(one: str, other: str) -> None:
    assert terms(one) == terms(other) != []


@pytest.mark.parametrize("query", ["KX-2000b", "kx2000B", "KX 2000b", "kx-2000", "2000"])
def test_a_code_is_found_by_any_of_its_forms(query: str) -> None:
    assert set(terms(query)) & set(terms("Order the part KX-2000b today."))


@given(st.text(max_size=200))
def test_normal_forms_change_nothing(text: str) -> None:
    assert terms(unicodedata.normalize("NFD", text)) == terms(unicodedata.normalize("NFC", text))


@given(st.text(max_size=200))
def test_terms_are_never_empty_and_not_much_longer_than_the_text(text: str) -> None:
    """NFKC makes up to 18 characters of one; each of these is part of at most 5 terms."""
    found = terms(text)
    assert all(found)
    assert sum(map(len, found)) <= 5 * len(unicodedata.normalize("NFKC", text.casefold()))


def test_long_runs_are_terms_whole_and_not_in_parts() -> None:
    data = "Zm9vYmFy" * 1000
    assert terms(data) == [data.casefold()]
    assert terms("이" * 100_000).count("이이") == 99_999


@pytest.fixture(scope="module")
def morphemes() -> Morphemes:
    return Morphemes()


def test_morphemes_are_without_particles_and_endings(morphemes: Morphemes) -> None:
    found = morphemes.terms("학생들이 KBS에서 2024년 방송을 보았다.")
    assert {"학생", "kbs", "2024", "방송", "보"} <= set(found)
    assert not {"이", "에서", "을", "았"} & set(found)
    assert morphemes.terms("no Korean here") == []
    nfd = unicodedata.normalize("NFD", "방송을 보았다")
    assert morphemes.terms(nfd) == morphemes.terms("방송을 보았다") != []


def test_long_texts_have_the_morphemes_of_all_their_parts(morphemes: Morphemes) -> None:
    found = morphemes.terms("학교에 갔다. " * 2000)
    assert found.count("학교") == 2000


def test_a_missing_package_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    real = builtins.__import__

    def refuse(name: str, *args: Any, **options: Any) -> Any:
        if name == "kiwipiepy":
            raise ImportError(name)
        return real(name, *args, **options)

    monkeypatch.setattr(builtins, "__import__", refuse)
    with pytest.raises(ConfigurationError, match="extra kiwi"):
        Morphemes()
