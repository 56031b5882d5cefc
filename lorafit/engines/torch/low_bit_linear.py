"""Matmuls with weights that are stored in fewer bits than the computation uses.

Rows of the weight are converted block by block in a small scratch buffer, which is reused for the next block. bfloat16
storage halves the memory of a base; if its file is in bfloat16, the conversion is lossless.

Letters: T tokens, I inputs, O outputs.
"""

import importlib
import math
import threading
from collections.abc import Iterator, Sequence
from ctypes import c_longlong, c_void_p
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import PreTrainedModel

from lorafit.planner.memory import PACKED_BLOCK, WEIGHT_BLOCK

NATIVE_NAMES = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}
_OWN = threading.local()


def weight_blocks(
    weights_OI: Sequence[Tensor], dtype: torch.dtype, whole: bool = True
) -> Iterator[tuple[slice, Tensor]]:
    """Yield the rows of `weights_OI`, end to end, in `dtype` and in blocks: the slice of rows and its weight.

    A block is valid until the next is requested. A 4-bit block on a GPU is freed before the next is allocated, if the
    caller has dropped it. Each weight that already has `dtype` is one block if `whole`.
    """
    begin = 0
    for weight in weights_OI:
        for part in _unpacked(weight, dtype) if is_4bit(weight) else _parts(weight, dtype, whole):
            yield slice(begin, begin + len(part)), part
            begin += len(part)
            del part  # frees an unpacked block before the next is allocated


def _parts(weight: Tensor, dtype: torch.dtype, whole: bool) -> Iterator[Tensor]:
    ready = weight.dtype == dtype
    step = len(weight) if ready and whole else max(1, WEIGHT_BLOCK // weight.shape[1])
    scratch = weight if ready else weight.new_empty(min(step, len(weight)), weight.shape[1], dtype=dtype)
    for part in weight.split(step):
        yield part if ready else scratch[: len(part)].copy_(part)


def is_4bit(weight: Tensor) -> bool:
    """Return whether `weight` is packed by bitsandbytes."""
    return getattr(weight, "quant_state", None) is not None


def weight_rows(weight: Tensor) -> int:
    """Return the number of rows O, also of a packed weight."""
    return int(weight.quant_state.shape[0]) if is_4bit(weight) else len(weight)  # type: ignore[attr-defined]


def _unpacked(weight: Tensor, dtype: torch.dtype) -> Iterator[Tensor]:
    """Yield the rows of a packed weight in blocks; each block ends where one of the weight's scales ends."""
    functional: Any = importlib.import_module("bitsandbytes").functional  # already imported if a packed weight exists
    state: Any = weight.quant_state  # type: ignore[attr-defined]
    scales = (
        functional.dequantize_blockwise(state.absmax, state.state2) + state.offset if state.nested else state.absmax
    )
    (outputs, inputs), size = state.shape, state.blocksize
    unit = size // math.gcd(inputs, size)
    step, packed = max(unit, PACKED_BLOCK // inputs // unit * unit), weight.data.view(torch.uint8).view(-1, 1)
    in_place = _unpack_kernel(state) if weight.device.type == "cpu" else None
    for row in range(0, outputs, step):
        shape = (min(step, outputs - row), inputs)
        begin, end = row * inputs, (row + shape[0]) * inputs
        own, scale = packed[begin // 2 : -(-end // 2)], scales[begin // size : -(-end // size)]
        if in_place is None:
            part = functional.QuantState(scale, shape, blocksize=size, quant_type=state.quant_type, dtype=state.dtype)
            yield functional.dequantize_4bit(own, part).to(dtype)
        else:
            block = _scratch(math.prod(shape), state.dtype).view(shape)
            in_place(_address(own), _address(scale), _address(block), c_longlong(size), *map(c_longlong, shape))
            yield block.to(dtype)


def _unpack_kernel(state: Any) -> Any:
    """Return bitsandbytes' CPU kernel that writes into a given buffer; None if absent or unfit for the weight.

    The operator that bitsandbytes registers allocates every block anew. This leaves holes of up to 300 MiB in the heap,
    in numbers that vary by chance.
    """
    library = getattr(importlib.import_module("bitsandbytes.cextension"), "lib", None)
    name = f"cdequantize_blockwise_cpu_{state.quant_type}_{NATIVE_NAMES.get(state.dtype)}"
    fitting = state.blocksize < 2048 and state.shape[-1] % 2 == 0
    return getattr(getattr(library, "_lib", None), name, None) if fitting else None


def _scratch(numbers: int, dtype: torch.dtype) -> Tensor:
    """Return this thread's buffer for unpacked weights, which is kept for reuse."""
    kept: Tensor | None = getattr(_OWN, "scratch", None)
    if kept is None or kept.numel() < numbers or kept.dtype != dtype:
        kept = _OWN.scratch = torch.empty(max(numbers, PACKED_BLOCK), dtype=dtype)
    return kept[:numbers]


def _address(tensor: Tensor) -> c_void_p:
    return c_void_p(tensor.data_ptr())


def low_bit_matmul(x_TI: Tensor, weights_OI: Sequence[Tensor], added: Tensor | None = None) -> Tensor:
    """Return x W^T [T,O], plus `added`: a residual [T,O] or a bias [O]."""
    outputs = sum(weight_rows(weight) for weight in weights_OI)
    y_TO = x_TI.new_empty(len(x_TI), outputs)
    for rows, weight in weight_blocks(weights_OI, x_TI.dtype):
        if added is None:
            torch.mm(x_TI, weight.t(), out=y_TO[:, rows])
        else:
            torch.addmm(added[..., rows], x_TI, weight.t(), out=y_TO[:, rows])
        del weight
    return y_TO


def low_bit_matmul_backward(grad_TO: Tensor, weights_OI: Sequence[Tensor]) -> Tensor:
    """Return grad W [T,I]: the gradient at x."""
    grad_TI: Tensor | None = None
    for rows, weight in weight_blocks(weights_OI, grad_TO.dtype):
        part = grad_TO[:, rows]
        grad_TI = part @ weight if grad_TI is None else grad_TI.addmm_(part, weight)
        del weight
    assert grad_TI is not None
    return grad_TI


class LowBitLinear(nn.Linear):
    """A frozen linear layer whose weight has fewer bits than its input; it computes in the input's dtype."""

    @classmethod
    def from_linear(cls, linear: nn.Linear) -> "LowBitLinear":
        """Return a layer that shares the weight of `linear`, with the bias in float32."""
        stored = cls(linear.in_features, linear.out_features, bias=False, device="meta")
        stored.weight = linear.weight
        if linear.bias is not None:
            stored.bias = nn.Parameter(linear.bias.detach().float(), requires_grad=False)
        return stored

    def forward(self, x: Tensor) -> Tensor:
        """Return x W^T + b in the dtype of `x`."""
        y: Tensor = _BlockwiseMatmul.apply(x, self.weight, self.bias)  # type: ignore[no-untyped-call]
        return y


class _BlockwiseMatmul(torch.autograd.Function):
    """Autograd function: x W^T + b, which saves only the stored weight for its backward."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(weight)
        return low_bit_matmul(x.reshape(-1, x.shape[-1]), [weight], bias).view(*x.shape[:-1], len(weight))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        (weight,), (grad,) = ctx.saved_tensors, grads
        flat = low_bit_matmul_backward(grad.reshape(-1, grad.shape[-1]), [weight])
        return flat.view(*grad.shape[:-1], weight.shape[1]), None, None


def compute_in_float32(model: PreTrainedModel) -> None:
    """Make `model`, loaded in bfloat16, compute in float32; linear layers and embeddings keep their storage.

    All other parameters (norms, and layers of other types) are small and become float32.
    """
    kept: set[int] = set()
    for module in list(model.modules()):
        for name, child in list(module.named_children()):
            if isinstance(child, nn.Embedding):
                child.register_forward_hook(_in_float32)
                kept.add(id(child.weight))
            elif type(child) is nn.Linear:
                setattr(module, name, LowBitLinear.from_linear(child))
                kept.add(id(child.weight))
    for parameter in model.parameters():
        if id(parameter) not in kept:
            parameter.data = parameter.data.float()
    model.config.dtype = torch.float32


def _in_float32(module: Any, inputs: Any, embedded: Tensor) -> Tensor:
    """Return the embedding layer's output in float32 (a forward hook).

    Gemma's layer scales the rows that it looks up, and would round in between. The hook repeats both in float32.
    """
    scale = getattr(module, "scalar_embed_scale", getattr(module, "embed_scale", None))
    if scale is None:
        return embedded.float()
    return F.embedding(inputs[0], module.weight).float() * float(scale)
