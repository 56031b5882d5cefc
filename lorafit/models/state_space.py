"""Activations of layers without attention: state-space models, linear attention and convolutions.

The counts were measured with transformers 5.24 in its own PyTorch code, which runs where no fused kernels are installed:
all tensors that autograd saved, over sizes of heads, states and chunks, within 10%. Fused kernels save far less.
"""

from collections.abc import Mapping
from typing import Any

CHUNK = 64  # tokens of a chunk in transformers' gated delta rule
HYBRID = {"falcon_h1", "zamba", "zamba2"}  # their layers with attention have a state space too


def kernel_packages(text: Mapping[str, Any]) -> tuple[str, ...]:
    """Return the packages whose fused CUDA kernels transformers uses for such layers, by their names on PyPI."""
    if text.get("linear_num_value_heads") or text.get("linear_num_heads"):
        return "flash-linear-attention", "causal-conv1d"
    if any(text.get(name) for name in ("mamba_d_state", "ssm_state_size", "state_size")):
        return "mamba-ssm", "causal-conv1d"
    return ("causal-conv1d",) if text.get("conv_L_cache") else ()


def state_values(text: Mapping[str, Any], hidden: int) -> int:
    """Return the float32 values that a state-space layer saves for each token. `text`: settings of the decoder."""

    def number(*names: str) -> int:
        return next((value for name in names if isinstance(value := text.get(name), int) and value > 0), 0)

    delta_heads = number("linear_num_value_heads", "linear_num_heads")
    if delta_heads:
        keys = number("linear_key_head_dim", "linear_head_dim")
        values = number("linear_value_head_dim", "linear_head_dim")
        return delta_heads * (15 * keys + 11 * values + 2 * CHUNK)
    state = number("mamba_d_state", "ssm_state_size", "state_size")
    if state and str(text.get("model_type")) in ("mamba", "falcon_mamba", "jamba"):
        own = number("intermediate_size") if text.get("model_type") != "jamba" else 0
        return (own or number("mamba_expand", "expand") * hidden or 2 * hidden) * (3 * state + 8)
    heads = number("mamba_n_heads", "mamba_num_heads", "n_mamba_heads", "num_heads")
    if state and heads:
        size = number("mamba_d_head", "mamba_head_dim", "mamba_headdim", "head_dim")
        chunk = number("mamba_chunk_size", "chunk_size") or 256
        return heads * (12 * size + 6 * state + 5 * chunk // 2)
    if number("conv_L_cache", "conv_kernel"):
        return 6 * hidden
    return 12 * hidden
