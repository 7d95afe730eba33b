"""Text from token ids, one at a time."""

import pytest

from tests.models import tiny
from workers.generation.backends.rolling.generator import Prompts
from workers.models.detokenize import HALF_CHARACTER, StopFilter, TextStream

TEXT = "The quick 갈색 여우가, 뷁! 👩🏽‍🚀 jumps  over\n\n안녕하세요 ñandú"
PROMPTS = Prompts(tiny.tokenizer())


def _ids(text: str = TEXT) -> list[int]:
    return PROMPTS.encode_more(text)


def _pieces(ids: list[int], *stop: str) -> tuple[list[str], TextStream]:
    stream = TextStream(PROMPTS.decode, stop)
    pieces = []
    for token in ids:
        pieces.append(stream.feed(token))
        if stream.is_stopped:
            break
    pieces.append(stream.close())
    return pieces, stream


def test_pieces_add_up_and_hold_no_half_character() -> None:
    pieces, _ = _pieces(_ids())
    assert "".join(pieces) == TEXT
    assert not any(HALF_CHARACTER in piece for piece in pieces)
    assert len(pieces) > 20


def test_wherever_the_text_ends_it_ends_with_a_whole_character() -> None:
    ids = _ids()
    for end in range(len(ids)):
        pieces, _ = _pieces(ids[:end])
        assert TEXT.startswith("".join(pieces))


def test_the_same_ids_give_the_same_pieces() -> None:
    assert _pieces(_ids(), "over")[0] == _pieces(_ids(), "over")[0]


@pytest.mark.parametrize("length", [1, 2, 5, 12])
def test_stop_strings_never_show_wherever_they_are(length: int) -> None:
    ids = _ids()
    for start in range(len(TEXT) - length):
        stop = TEXT[start : start + length]
        pieces, stream = _pieces(ids, "not in it", stop)
        assert stream.is_stopped
        assert "".join(pieces) == TEXT[: TEXT.index(stop)]


def test_no_more_is_held_back_than_a_stop_string_needs() -> None:
    ids = _ids("aaab aaac")
    shown, so_far = "", ""
    stream = TextStream(PROMPTS.decode, ["aaaa!"])
    for token in ids:
        shown += stream.feed(token)
        so_far += PROMPTS.decode([token])
        assert len(so_far) - len(shown) <= 3
    assert shown + stream.close() == "aaab aaac"


def test_special_tokens_are_not_text() -> None:
    end = tiny.control_id(tiny.tokenizer(), "<|end|>")
    ids = [*_ids("hello"), end, *_ids(" world")]
    assert "".join(_pieces(ids)[0]) == "hello world"


def test_bytes_that_are_no_character_do_not_hold_the_text_for_ever() -> None:
    half = _ids("뷁")[0]
    stream = TextStream(PROMPTS.decode)
    assert any(stream.feed(half) for _ in range(20))


def test_a_sentencepiece_like_decoder_keeps_its_spaces() -> None:
    from tokenizers import Tokenizer, decoders, models

    words = {"▁the": 0, "▁fox": 1, "es": 2, "<0xEA>": 3, "<0xB0>": 4, "<0x80>": 5, "<unk>": 6}
    tokenizer = Tokenizer(models.BPE(words, [], unk_token="<unk>", byte_fallback=True))
    tokenizer.decoder = decoders.Sequence(
        [
            decoders.Replace("▁", " "),
            decoders.ByteFallback(),
            decoders.Fuse(),
            decoders.Strip(" ", 1, 0),
        ]
    )
    stream = TextStream(lambda ids: tokenizer.decode(list(ids)))
    pieces = [stream.feed(token) for token in (0, 1, 2, 3, 4, 5, 1)]
    assert pieces == ["the", " fox", "es", "", "", "가", " fox"]


def test_characters_that_cannot_be_stored_are_replaced_before_anybody_sees_them() -> None:
    filter_ = StopFilter(["END"])
    assert filter_.feed("a\0b\ud83dc") + filter_.flush() == "a\ufffdb\ufffdc"
