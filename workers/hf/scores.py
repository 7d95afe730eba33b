"""Logits to scores, as transformers' pipelines of classification do it."""

from collections.abc import Sequence
from typing import Any, Literal

import torch
from transformers import PreTrainedConfig

Function = Literal["sigmoid", "softmax", "none"]


def labels_of(config: PreTrainedConfig) -> dict[int, str]:
    return {int(n): label for n, label in (config.id2label or {}).items()}


def usual_function(config: PreTrainedConfig) -> Function:
    """What the model was trained for: one label of many, any of several, or a plain number."""
    if config.problem_type == "regression":
        return "none"
    if config.problem_type == "multi_label_classification" or config.num_labels == 1:
        return "sigmoid"
    return "softmax"


def labelled(
    logits: Sequence[float], config: PreTrainedConfig, function: Function | None, top_k: int | None
) -> list[dict[str, Any]]:
    """`{"label", "score"}` of each label, best first."""
    scores = torch.tensor(logits)
    match function or usual_function(config):
        case "sigmoid":
            scores = scores.sigmoid()
        case "softmax":
            scores = scores.softmax(-1)
    labels = labels_of(config)
    found = [{"label": labels[n], "score": score} for n, score in enumerate(scores.tolist())]
    return sorted(found, key=lambda each: -each["score"])[:top_k]
