"""Normal forms: one spelling for what is canonically the same, at a linear cost."""

import unicodedata
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from api.routes.files import clean_name
from shared.bounds import comparable, nfc, nfc_metadata, nfkc, plain_letters
from shared.kinds.ingest import CsvOptions, IngestInput
from shared.kinds.rag import RagInput
from shared.kinds.search import SearchInput
from shared.tables import File
from tests.unit.documents import read
from workers.ingest.sources import source_name

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


# Where it is applied


def apart(text: str) -> str:
    return unicodedata.normalize("NFD", text)


@pytest.mark.parametrize(
    ("data", "name", "text"),
    [
        (apart(KOREAN), "a.txt", KOREAN),
        (f"<p>{apart(KOREAN)}", "a.html", KOREAN),
        ("<p>cafe&#x301; &#x1100;&#x1161;", "a.html", "café 가"),
        (apart("내용\n가,나"), "a.md", "내용\n가,나"),
        (apart("제목,내용\n가,나"), "a.csv", "제목: 가\n내용: 나"),
        ('{"text": "\\u1100\\u1161 cafe\\u0301"}', "a.jsonl", "가 café"),
        (apart('{"이름": "가"}'), "a.json", "이름: 가"),
    ],
)
def test_text_is_stored_composed_and_offsets_count_in_it(data: str, name: str, text: str) -> None:
    assert read(data.encode(), name).text == text  # which looks at each passage's offset


def test_passages_begin_where_the_composed_text_has_them() -> None:
    loaded = read("\n".join([r'{"text": "\u1100\u1161\u11a8"}'] * 3).encode(), "a.jsonl")
    assert loaded.text == "각\n\n각\n\n각"
    assert [passage.start for passage in loaded.passages] == [0, 3, 6]


@pytest.mark.parametrize("form", ["NFC", "NFD"])
@pytest.mark.parametrize("other", ["NFC", "NFD"])
def test_columns_are_found_in_every_form(
    form: Literal["NFC", "NFD"], other: Literal["NFC", "NFD"]
) -> None:
    table = unicodedata.normalize(form, "제목,내용,날짜\n가,나다,오늘\n")
    content, metadata = (unicodedata.normalize(other, name) for name in ("내용", "날짜"))
    options = CsvOptions(content_columns=[content], metadata_columns=[metadata])
    (passage,) = read(table.encode(), "n.csv", csv=options).passages
    assert passage.text == "내용: 나다"
    assert passage.metadata == {"row": 1, "날짜": "오늘"}


def test_names_are_one_document_in_every_form() -> None:
    assert clean_name(apart("출입 규정.md")) == "출입 규정.md"
    source = {"type": "text", "text": "x", "name": apart("규정")}
    assert source_name(source, {}) == "규정"
    upload = File(name=apart("규정.md"))
    assert source_name({"type": "file", "file_id": "1"}, {"1": upload}) == "규정.md"


def test_questions_filters_and_metadata_arrive_composed() -> None:
    where = {apart("부서"): apart("총무")}
    search = {"filter": where}
    rag = RagInput.model_validate({"collection": "abc", "question": apart("왜"), "search": search})
    query = SearchInput.model_validate(
        {"collection": "abc", "query": apart("왜"), "search": search}
    )
    assert (rag.question, query.query) == ("왜", "왜")
    for options in (rag.search, query.search):
        assert options.filter is not None
        assert options.filter.matches({"부서": "총무"}, {})
    sources = [{"type": "text", "text": "x"}]
    order = {"collection": "abc", "sources": sources, "metadata": where}
    assert IngestInput.model_validate(order).metadata == {"부서": "총무"}
    with pytest.raises(ValidationError, match="there twice"):
        IngestInput.model_validate(order | {"metadata": where | {"부서": "총무"}})


@pytest.mark.parametrize(
    ("written", "plain"),
    [
        ("Ｔｈｅ ｇａｔｅ ９", "The gate 9"),
        ("ﾊﾟｿｺﾝ ｶﾞｲﾄﾞ", "パソコン ガイド"),
        ("㈜한빛 ① ㎏ ﬁle", "(주)한빛 1 kg file"),
        ("“이것”，那（個）！ x² 10⁻³ é 한", "“이것”，那（個）！ x² 10⁻³ é 한"),
        ("plain", "plain"),
    ],
)
def test_letters_become_plain_and_signs_stay(written: str, plain: str) -> None:
    assert plain_letters(written) == unicodedata.normalize("NFC", plain)
    assert plain_letters(plain) == plain
