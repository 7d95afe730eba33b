"""A format as CONTRIBUTING.md has one added: `.toy`, cards divided by lines of `~`."""

from workers.ingest.formats.loader import Document, Loader, Parts
from workers.ingest.formats.text import text_of


def load(document: Document) -> Parts:
    text, metadata = text_of(document)
    cards = text.split("\n~\n")
    passages = [(card, {"card": number}) for number, card in enumerate(cards, start=1)]
    return Parts(passages=passages, metadata=metadata)


TOY = Loader(load=load, example=b"one\n~\ntwo", example_text="one\n\ntwo")
