"""Names of models on the Hugging Face hub from the time before names had an owner: `gpt2`,
`all-MiniLM-L6-v2`.

The hub redirects `gpt2`, and sentence-transformers adds its own name to `all-MiniLM-L6-v2`. Here
both are looked up in a table, so that they work without a network. The names are those of
`basic_transformer_models` in sentence-transformers 3, with the owners in transformers 4.40
(`models/deprecated/_archive_maps.py`), and those on the page of pretrained models of
sentence-transformers.
"""

from collections.abc import Mapping
from typing import Final

_OWNERS: Final[Mapping[str, str]] = {
    "albert": """
        albert-base-v1 albert-base-v2 albert-large-v1 albert-large-v2 albert-xlarge-v1
        albert-xlarge-v2 albert-xxlarge-v1 albert-xxlarge-v2
    """,
    "almanach": "camembert-base",
    "distilbert": """
        distilbert-base-cased distilbert-base-cased-distilled-squad distilbert-base-german-cased
        distilbert-base-multilingual-cased distilbert-base-uncased
        distilbert-base-uncased-distilled-squad distilbert-base-uncased-finetuned-sst-2-english
        distilgpt2 distilroberta-base
    """,
    "FacebookAI": """
        roberta-base roberta-large roberta-large-mnli xlm-clm-ende-1024 xlm-clm-enfr-1024
        xlm-mlm-100-1280 xlm-mlm-17-1280 xlm-mlm-en-2048 xlm-mlm-ende-1024 xlm-mlm-enfr-1024
        xlm-mlm-enro-1024 xlm-mlm-tlm-xnli15-1024 xlm-mlm-xnli15-1024 xlm-roberta-base
        xlm-roberta-large xlm-roberta-large-finetuned-conll02-dutch
        xlm-roberta-large-finetuned-conll02-spanish xlm-roberta-large-finetuned-conll03-english
        xlm-roberta-large-finetuned-conll03-german
    """,
    "google-bert": """
        bert-base-cased bert-base-cased-finetuned-mrpc bert-base-chinese bert-base-german-cased
        bert-base-german-dbmdz-cased bert-base-german-dbmdz-uncased bert-base-multilingual-cased
        bert-base-multilingual-uncased bert-base-uncased bert-large-cased
        bert-large-cased-whole-word-masking bert-large-cased-whole-word-masking-finetuned-squad
        bert-large-uncased bert-large-uncased-whole-word-masking
        bert-large-uncased-whole-word-masking-finetuned-squad
    """,
    "google-t5": "t5-11b t5-3b t5-base t5-large t5-small",
    "openai-community": """
        gpt2 gpt2-large gpt2-medium gpt2-xl openai-gpt roberta-base-openai-detector
        roberta-large-openai-detector
    """,
    "Salesforce": "ctrl",
    "sentence-transformers": """
        LaBSE all-MiniLM-L12-v1 all-MiniLM-L12-v2 all-MiniLM-L6-v1 all-MiniLM-L6-v2
        all-distilroberta-v1 all-mpnet-base-v1 all-mpnet-base-v2 all-roberta-large-v1
        allenai-specter distiluse-base-multilingual-cased-v1 distiluse-base-multilingual-cased-v2
        gtr-t5-base gtr-t5-large gtr-t5-xl gtr-t5-xxl msmarco-MiniLM-L12-cos-v5
        msmarco-MiniLM-L6-cos-v5 msmarco-bert-base-dot-v5 msmarco-distilbert-base-tas-b
        msmarco-distilbert-cos-v5 msmarco-distilbert-dot-v5 multi-qa-MiniLM-L6-cos-v1
        multi-qa-MiniLM-L6-dot-v1 multi-qa-distilbert-cos-v1 multi-qa-distilbert-dot-v1
        multi-qa-mpnet-base-cos-v1 multi-qa-mpnet-base-dot-v1 paraphrase-MiniLM-L12-v2
        paraphrase-MiniLM-L3-v2 paraphrase-MiniLM-L6-v2 paraphrase-albert-small-v2
        paraphrase-distilroberta-base-v2 paraphrase-mpnet-base-v2
        paraphrase-multilingual-MiniLM-L12-v2 paraphrase-multilingual-mpnet-base-v2
        sentence-t5-base sentence-t5-large sentence-t5-xl sentence-t5-xxl
    """,
    "transfo-xl": "transfo-xl-wt103",
    "xlnet": "xlnet-base-cased xlnet-large-cased",
}

FULL_NAMES: Final[Mapping[str, str]] = {
    name: f"{owner}/{name}" for owner, names in _OWNERS.items() for name in names.split()
}
"""Name without an owner -> the name on the hub."""


def full_name(name: str) -> str:
    return FULL_NAMES.get(name, name)


def names_of(name: str) -> tuple[str, ...]:
    """The full name, and the one without an owner if there is one: copies on this machine may have
    either."""
    full = full_name(name)
    short = full.rpartition("/")[2]
    return (full, short) if FULL_NAMES.get(short) == full else (full,)
