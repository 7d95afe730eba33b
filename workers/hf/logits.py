"""What a model makes of rows of tokens, without a trace of the rows' company in the batch."""

import inspect
from collections.abc import Sequence

import torch
from transformers import PreTrainedModel, PreTrainedTokenizerBase

from workers.hf.padding import Tokens, can_pad, pad


def logits(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens]
) -> list[torch.Tensor]:
    """Each row's logits, in float32 on the CPU: of shape (labels), or (tokens of the row, labels)
    from models that judge every token."""
    if can_pad(model, tokenizer):
        return _batch(model, tokenizer, rows)
    return [each for row in rows for each in _batch(model, tokenizer, [row])]


def group(model: PreTrainedModel, tokens: Tokens) -> str:
    """Rows of which group may share a batch: BART and T5 classify by the end tokens, and want as
    many of them in each row. A text may hold some of its own."""
    if not model.config.is_encoder_decoder:
        return ""
    return str(tokens.inputs["input_ids"].count(model.config.eos_token_id))


def _batch(
    model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, rows: Sequence[Tokens]
) -> list[torch.Tensor]:
    # XLNet classifies by the last place of a row; its positions are relative ones.
    is_last = getattr(model.config, "summary_type", None) == "last"
    inputs = pad(tokenizer, rows, model.device, side="left" if is_last else "right")
    taken = inspect.signature(model.forward).parameters
    # Decoders that classify need no memory of the text; the others know no such word.
    extra = {"use_cache": False} if "use_cache" in taken else {}
    with torch.inference_mode():
        given = {name: tensor for name, tensor in inputs.items() if name in taken}
        output: torch.Tensor = model(**given, **extra).logits.float().cpu()
    if output.dim() == 2:
        return list(output)
    masks = inputs["attention_mask"].bool().cpu()
    return [each[mask] for each, mask in zip(output, masks, strict=True)]
