"""Vocabularies for tokenizers of BERT's kind, small enough that many words fall into pieces."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary(
    texts: Iterable[str], *, size: int, lowercase: bool, strip_accents: bool | None = None
) -> dict[str, int]:
    """Token -> id, special ones first; every character of the texts is in it. Unless told not to,
    BERT in lower case strips accents, and takes Hangul apart."""
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.normalizer = normalizers.BertNormalizer(
        lowercase=lowercase, strip_accents=strip_accents
    )
    wordpiece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=SPECIAL, show_progress=False
    )
    wordpiece.train_from_iterator(texts, trainer)
    return wordpiece.get_vocab()
