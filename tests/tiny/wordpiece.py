"""Vocabularies for tokenizers of BERT's kind, small enough that many words fall into pieces."""

from collections.abc import Iterable

from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

SPECIAL = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]


def vocabulary(
    texts: Iterable[str], *, size: int, lowercase: bool, strip_accents: bool | None = None
) -> dict[str, int]:
    """Token -> id, special ones first, the same each time; every character of the texts is in it.
    By default, BERT in lower case strips accents, and takes Hangul apart."""
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    splitter = pre_tokenizers.BertPreTokenizer()
    texts = [normalizer.normalize_str(text) for text in texts]
    words = [word for text in texts for word, _ in splitter.pre_tokenize_str(text)]
    # The trainer finds them itself, but numbers them anew in each process, and then merges others.
    continued = sorted({f"##{letter}" for word in words for letter in word[1:]})
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.pre_tokenizer = splitter
    trainer = trainers.WordPieceTrainer(
        vocab_size=size, special_tokens=[*SPECIAL, *continued], show_progress=False
    )
    wordpiece.train_from_iterator(texts, trainer)
    return dict(sorted(wordpiece.get_vocab().items(), key=lambda item: item[1]))
