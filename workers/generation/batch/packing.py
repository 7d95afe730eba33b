"""Linear layers in the order of memory that a processor's matrix kernels read.

torch's own linear layer has oneDNN rearrange bfloat16 weights at every call, which costs a decode
step of few rows half of its time. Rearranged once, they compute the same. The operators are those
that torch's compiler uses for frozen models on processors.
"""

import torch
from torch import Tensor, nn


class PackedLinear(nn.Module):
    """A linear layer for inference. Its weight is opaque, but tells dtype and device."""

    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.in_features = linear.in_features
        self.out_features = linear.out_features
        self.weight: Tensor = torch.ops.mkldnn._reorder_linear_weight(linear.weight.detach(), None)
        self.bias = linear.bias

    def forward(self, inputs: Tensor) -> Tensor:
        out: Tensor = torch.ops.mkldnn._linear_pointwise(
            inputs, self.weight, self.bias, "none", [], ""
        )
        return out


def pack(model: nn.Module) -> int:
    """Replace the layers where that helps, in place; returns how many it were."""
    is_there = torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]  # has none
    if not is_there or not hasattr(torch.ops.mkldnn, "_linear_pointwise"):
        return 0
    packed = 0
    for parent in list(model.modules()):
        for name, child in list(parent.named_children()):
            # Subclasses (quantized layers, adapters) have a forward of their own.
            if type(child) is nn.Linear and _is_slow(child.weight):
                setattr(parent, name, PackedLinear(child))
                packed += 1
    return packed


def _is_slow(weight: Tensor) -> bool:
    return weight.device.type == "cpu" and weight.dtype == torch.bfloat16
