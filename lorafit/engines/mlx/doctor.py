"""MLX self-test of `lorafit doctor`: compares results of the device with NumPy in float64."""

import mlx.core as mx
import numpy as np
from numpy.typing import NDArray

from lorafit.engines.mlx import blas, device
from lorafit.engines.mlx.attention import AttentionKind, trained_attention
from lorafit.engines.mlx.load import DTYPES
from lorafit.engines.mlx.self_check import TOLERANCE
from lorafit.errors import HardwareError
from lorafit.messages import _, clauses, listed

# Largest relative error by norm that rounding explains.
HEADS, TOKENS, WIDTH = 2, 64, 32


def try_device(name: str, precision: str) -> str:
    """Test matmul, causal attention and its gradient, in float32 and bfloat16; return the result as text.

    Raise HardwareError if a result is wrong.
    """
    device.use_device(name if name == "mps" else "cpu", "fp32")
    with device.translated():
        for numbers in TOLERANCE:
            for part, off in _relative_errors(numbers).items():
                if not off <= TOLERANCE[numbers]:
                    raise HardwareError(
                        _("Device `{name}` gives wrong results: its self-test failed.").format(name=name),
                        where=f"MLX: {part}, {numbers}",
                        found=_("relative error {off:.1%}").format(off=off),
                        fix=_("Update MLX and the system, or train with --engine torch."),
                    )
    right = _("matmul, attention and gradient correct in {numbers}").format(numbers=listed(TOLERANCE))
    slow = _("slow: install OpenBLAS ({command})").format(command=blas.INSTALL)
    return clauses([right, slow]) if blas.is_slow() else right


def _relative_errors(numbers: str) -> dict[str, float]:
    rng = np.random.default_rng(0)
    q, k, v, grad = (rng.normal(size=(1, HEADS, TOKENS, WIDTH)) for _part in range(4))
    arrays = [mx.array(t.astype(np.float32)).astype(DTYPES[numbers]) for t in (q, k, v)]
    attend = trained_attention(AttentionKind(WIDTH**-0.5))
    outs, grads = mx.vjp(
        lambda *args: attend(*args), arrays, [mx.array(grad.astype(np.float32)).astype(DTYPES[numbers])]
    )
    scores = np.where(np.tri(TOKENS, dtype=bool), q @ k.swapaxes(-1, -2) * WIDTH**-0.5, -np.inf)
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    weights /= weights.sum(-1, keepdims=True)
    product = arrays[0] @ arrays[1].swapaxes(-1, -2)
    return {
        "product": _relative_error(product, q @ k.swapaxes(-1, -2)),
        "attention": _relative_error(outs[0], weights @ v),
        "gradient": _relative_error(grads[2], weights.swapaxes(-1, -2) @ grad),
    }


def _relative_error(found: mx.array, wanted: NDArray[np.float64]) -> float:
    return float(np.linalg.norm(np.array(found.astype(mx.float32)) - wanted) / np.linalg.norm(wanted))
