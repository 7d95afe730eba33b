"""A format as CONTRIBUTING.md has one added: `.toy`, cards divided by lines of `~`."""

from workers.ingest.formats.loader import DocumentParts, Loader, RawDocument
from workers.ingest.formats.texts.text import text_of


def load(document: RawDocument) -> DocumentParts:
    text, metadata = text_of(document)
    cards = text.split("\n~\n")
    passages = [(card, {"card": number}) for number, card in enumerate(cards, start=1)]
    return DocumentParts(passages=passages, metadata=metadata)


TOY = Loader(load=load, example=b"one\n~\ntwo", example_text="one\n\ntwo")
