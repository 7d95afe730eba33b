"""Packed linear layers compute what the plain ones do."""

import copy

import pytest
import torch
from torch import nn

from tests.models import tiny
from tests.models.tiny import TEXTS, asks, ids_of, rolling
from workers.generation.backends.rolling.generator import PackedLinear, can_pack, pack

packs = pytest.mark.skipif(
    not can_pack(), reason="this processor multiplies no bfloat16, or torch has no oneDNN"
)


def test_where_the_processor_cannot_the_layers_stay(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.ops.mkldnn, "_is_mkldnn_bf16_supported", lambda: False)
    model = copy.deepcopy(tiny.tiny_llama()).bfloat16()
    with rolling(model) as generator:
        assert type(model.lm_head) is nn.Linear
        assert len(ids_of(generator.start(asks(TEXTS[0], 12)))) == 12


@packs
@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("rows", [1, 7, 64])
def test_the_outputs_are_those_of_the_plain_layer(bias: bool, rows: int) -> None:
    torch.manual_seed(0)
    plain = nn.Linear(96, 160, bias=bias, dtype=torch.bfloat16)
    packed = PackedLinear(plain)
    with torch.inference_mode():
        for shape in ((rows, 96), (1, rows, 96), (rows, 1, 96)):
            inputs = torch.randn(shape, dtype=torch.bfloat16)
            outputs, expected = packed(inputs), plain(inputs)
            assert outputs.shape == expected.shape
            torch.testing.assert_close(outputs, expected)
    assert packed.weight.dtype == torch.bfloat16


@packs
def test_only_plain_layers_in_bfloat16_are_replaced() -> None:
    class Own(nn.Linear):
        """A layer with a forward of its own, as quantized ones are."""

    model = nn.Sequential(
        nn.Linear(64, 64, dtype=torch.bfloat16),
        nn.Sequential(nn.Linear(64, 64), Own(64, 64, dtype=torch.bfloat16)),
    )
    assert pack(model) == 1
    assert [type(layer) for layer in model.modules() if hasattr(layer, "weight")] == [
        PackedLinear,
        nn.Linear,
        Own,
    ]


@packs
def test_a_model_in_bfloat16_is_packed_and_answers() -> None:
    model = copy.deepcopy(tiny.tiny_llama()).bfloat16()
    with rolling(model) as generator:
        assert isinstance(model.lm_head, PackedLinear)
        alone = ids_of(generator.start(asks(TEXTS[0], 12)))
        assert len(alone) == 12
        assert ids_of(generator.start(asks(TEXTS[0], 12))) == alone
