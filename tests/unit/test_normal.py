"""Normal forms: one spelling for what is canonically the same, at a linear cost."""

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from shared.normal import comparable, nfc, nfc_metadata, nfkc

KOREAN = "연차 휴가는 1년에 18일입니다."
marks = st.text(st.sampled_from("a가e\u0301\u0327\u0316\u0344\u0f73\u0f71\uff9e\u3099か각ㅏᅡ각"))


@given(st.text() | marks)
def test_it_is_what_unicode_says(text: str) -> None:
    assert nfc(text) == unicodedata.normalize("NFC", text)
    assert nfkc(text) == unicodedata.normalize("NFKC", text)


@pytest.mark.parametrize("text", [KOREAN, "プログラム", "café", "Ångström", "한글.txt"])
def test_all_forms_become_one(text: str) -> None:
    composed = unicodedata.normalize("NFC", text)
    for form in ("NFC", "NFD", "NFKC", "NFKD"):
        assert nfc(unicodedata.normalize(form, text)) == composed


def test_comparing_folds_width_and_case() -> None:
    assert comparable("Ｔｈｅ ｇａｔｅ ９ ﬁle ㎏ ﾌﾟﾛ STRASSE") == comparable(
        "the GATE 9 file kg プロ straße"
    )
    assert nfc("Ｔｈｅ ﾌﾟﾛ ﬁ") == "Ｔｈｅ ﾌﾟﾛ ﬁ"


@pytest.mark.parametrize("pair", ["\u0300\u0327", "\u0f73\u0327", "\uff9e\u0327", "\u0344\u0316"])
def test_long_runs_of_marks_are_no_worse_than_others(pair: str) -> None:
    """In quadratic time, these take minutes."""
    short, long = "a" + pair * 100, "a" + pair * 200_000
    assert nfc(short) == unicodedata.normalize("NFC", short)
    assert nfkc(short) == unicodedata.normalize("NFKC", short)
    assert len(nfkc(long)) >= len(nfkc(short)) * 1900


def test_metadata_with_one_key_twice_is_refused() -> None:
    apart = unicodedata.normalize("NFD", "부서")
    assert nfc_metadata({apart: apart, "n": 1, "yes": True}) == {
        "부서": "부서",
        "n": 1,
        "yes": True,
    }
    with pytest.raises(ValueError, match="'부서' is there twice"):
        nfc_metadata({apart: 1, "부서": 2})
    decomposed = "e\u0323\u0302", "e\u0302\u0323"  # neither is the composed one
    with pytest.raises(ValueError, match="twice"):
        nfc_metadata(dict.fromkeys(decomposed, 1))
