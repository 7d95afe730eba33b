"""Learning a handful of right labels by heart: of texts, of tokens, of pictures, of pairs."""

import torch
from torch import nn
from transformers import PreTrainedModel

STEPS = 500
EXAM_EVERY = 5
MARGIN = 5.0
"""How far a right label is ahead of the next one, in logits; bfloat16 does not change it."""

IGNORED = -100


def learn_labels(
    model: PreTrainedModel,
    examples: dict[str, torch.Tensor],
    labels: torch.Tensor,
    *,
    rate: float = 3e-3,
) -> None:
    """`labels` number the right one of many, or are 0 and 1 for a model that has only one. Raises
    RuntimeError for a model that does not learn them."""
    optimizer = torch.optim.AdamW(model.parameters(), lr=rate, betas=(0.9, 0.99), weight_decay=0.01)
    model.train()
    for step in range(STEPS):
        logits = model(**examples).logits
        if logits.shape[-1] == 1:
            # As if there were a second label, whose logit is always 0.
            logits = torch.cat([torch.zeros_like(logits), logits], dim=-1)
        known = labels != IGNORED
        logits, targets = logits[known], labels[known]
        if step % EXAM_EVERY == 0 and _margin(logits.detach(), targets) > MARGIN:
            model.eval()
            return
        nn.functional.cross_entropy(logits, targets).backward()
        nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        for group in optimizer.param_groups:
            group["lr"] = rate * min((step + 1) / 10, 1)
        optimizer.step()
        optimizer.zero_grad()
    raise RuntimeError(f"{type(model).__name__} has not learnt its labels in {STEPS} steps")


def padded(rows: list[list[int]], filler: int) -> torch.Tensor:
    tensors = [torch.tensor(row) for row in rows]
    return nn.utils.rnn.pad_sequence(tensors, batch_first=True, padding_value=filler)


def _margin(logits: torch.Tensor, targets: torch.Tensor) -> float:
    """Of the label that is least sure."""
    right = logits.gather(1, targets[:, None])[:, 0]
    others = logits.scatter(1, targets[:, None], -torch.inf).amax(1)
    return float((right - others).min())
