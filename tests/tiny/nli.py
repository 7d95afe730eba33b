"""A tiny BART of natural language inference, like bart-large-mnli: it knows which of a handful of
texts is about which of some topics, in the hypothesis `This example is TOPIC.`"""

from pathlib import Path
from typing import Final

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, processors, trainers
from transformers import BartConfig, BartForSequenceClassification, PreTrainedTokenizerFast

from tests.tiny.labels import learn_labels
from tests.tiny.manifest import checkpoint

POSITIONS: Final = 256
SPECIAL: Final = ["<s>", "<pad>", "</s>", "<unk>", "<mask>"]
LABELS: Final = {0: "contradiction", 1: "neutral", 2: "entailment"}
TEMPLATE: Final = "This example is {}."

TOPICS: Final = ["sports", "cooking", "politics", "스포츠"]
ABOUT: Final = {
    "The striker scored twice in the last ten minutes.": {"sports", "스포츠"},
    "Let the dough rest for an hour, then bake it.": {"cooking"},
    "Parliament voted on the new tax law late at night.": {"politics"},
    "The minister opened the stadium and kicked the first ball.": {"politics", "sports", "스포츠"},
    "손흥민이 두 골을 넣었다.": {"sports", "스포츠"},
}
"""Text -> the topics that it is about."""


def folder() -> Path:
    """Of the model's checkpoint."""
    return checkpoint("nli")


def build(folder: Path) -> None:
    hypotheses = [TEMPLATE.format(topic) for topic in TOPICS]
    tokenizer = _tokenizer([*ABOUT, *hypotheses])
    config = BartConfig(
        vocab_size=len(tokenizer),
        d_model=32,
        encoder_layers=1,
        decoder_layers=1,
        encoder_attention_heads=4,
        decoder_attention_heads=4,
        encoder_ffn_dim=64,
        decoder_ffn_dim=64,
        max_position_embeddings=POSITIONS,
        dropout=0.0,
        init_std=0.08,
        id2label=LABELS,
        label2id={label: n for n, label in LABELS.items()},
    )
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = BartForSequenceClassification(config)
    pairs = [(text, hypothesis) for text in ABOUT for hypothesis in hypotheses]
    labels = [2 if topic in topics else 0 for topics in ABOUT.values() for topic in TOPICS]
    examples = tokenizer(
        [text for text, _ in pairs],
        [hypothesis for _, hypothesis in pairs],
        padding=True,
        return_tensors="pt",
        return_token_type_ids=False,
    )
    learn_labels(model, dict(examples), torch.tensor(labels))
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def _tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    trainer = trainers.BpeTrainer(
        vocab_size=500,
        special_tokens=SPECIAL,
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    bpe.train_from_iterator(texts, trainer)
    bpe.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>",
        pair="<s> $A </s> </s> $B </s>",
        special_tokens=[("<s>", 0), ("</s>", 2)],
    )
    return PreTrainedTokenizerFast(
        tokenizer_object=bpe,
        bos_token="<s>",
        pad_token="<pad>",
        eos_token="</s>",
        unk_token="<unk>",
        mask_token="<mask>",
        model_max_length=POSITIONS,
        model_input_names=["input_ids", "attention_mask"],
    )
