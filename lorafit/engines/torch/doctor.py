"""The checks of `lorafit doctor` with PyTorch: a device's arithmetic, and quantized layers."""

import importlib
from typing import Any

import torch
from torch import Tensor, nn

from lorafit.engines.torch.device import DEVICES, DTYPES, translated
from lorafit.engines.torch.self_check import difference, self_test
from lorafit.errors import HardwareError
from lorafit.messages import _, listed

# Largest relative difference by norm that rounding to 4 or 8 bits explains.
TOLERANCE = {"4bit": 0.2, "8bit": 0.05}


def try_device(device: str, precision: str) -> str:
    """Check matmul, causal attention and a gradient in float32 and in `precision`; return the result as a message.

    Raises HardwareError if one of them is wrong.
    """
    for name in dict.fromkeys(("fp32", precision)):
        self_test(device, DTYPES[name])
    return _("matmul, attention and gradient correct in {numbers}").format(
        numbers=listed(dict.fromkeys(("fp32", precision)))
    )


def try_4bit(device: str, precision: str) -> str:
    """Check an NF4 layer and its gradient; return the result as a message. Raise HardwareError if one is wrong."""
    return _try_layer("4bit", device, precision)


def try_8bit(device: str, precision: str) -> str:
    """Check an LLM.int8 layer and its gradient; return the result as a message. Raise HardwareError if one is wrong."""
    return _try_layer("8bit", device, precision)


def _try_layer(kind: str, device: str, precision: str) -> str:
    generator = torch.Generator().manual_seed(0)
    x, weight = torch.randn(16, 128, generator=generator), torch.randn(64, 128, generator=generator)
    inputs = x.to(device, DTYPES[precision]).requires_grad_()
    with translated(DEVICES[device]):
        product = _quantised(kind, weight, DTYPES[precision]).to(device)(inputs)
        (gradient,) = torch.autograd.grad(product, inputs, torch.ones_like(product))
    wanted: dict[str, tuple[Tensor, Tensor]] = {
        _("matmul"): (product, x @ weight.T),
        _("gradient"): (gradient, torch.ones(16, 64) @ weight),
    }
    offs = {part: difference(found, right) for part, (found, right) in wanted.items()}
    part, off = max(offs.items(), key=lambda item: item[1])
    if not off <= TOLERANCE[kind]:
        raise HardwareError(
            _("Quantized layers give wrong results on `{device}`.").format(device=device),
            where=part,
            found=_("relative error {off:.1%}").format(off=off),
            fix=_("Train with --quantization none, or update bitsandbytes and the driver."),
        )
    return _("layer and gradient correct (rounding error {off:.1%})").format(off=off)


def _quantised(kind: str, weight: Tensor, dtype: torch.dtype) -> nn.Module:
    bnb_nn: Any = importlib.import_module("bitsandbytes").nn  # slow to import (1 s), and not on every platform
    outs, ins = weight.shape
    layer: nn.Module
    if kind == "4bit":
        layer = bnb_nn.Linear4bit(ins, outs, bias=False, compute_dtype=dtype, quant_type="nf4")
        layer.weight = bnb_nn.Params4bit(weight, requires_grad=False, quant_type="nf4")
    else:
        layer = bnb_nn.Linear8bitLt(ins, outs, bias=False, has_fp16_weights=False)
        layer.weight = bnb_nn.Int8Params(weight, requires_grad=False, has_fp16_weights=False)
    return layer
