"""The type of each tensor in a GGUF file, and the rounding of float32 values to it."""

import ctypes
import importlib.util
from collections.abc import Callable
from functools import cache
from typing import Any, NamedTuple

import numpy as np
from gguf import GGML_QUANT_SIZES, GGMLQuantizationType, LlamaFileType
from gguf.quants import quantize as rounded_by_gguf
from numpy.typing import NDArray

from lorafit.errors import ConfigError, ModelError
from lorafit.exporters.gguf.source import Floats
from lorafit.messages import _, listed

Type = GGMLQuantizationType
FILE_TYPES = {
    "f32": LlamaFileType.ALL_F32,
    "f16": LlamaFileType.MOSTLY_F16,
    "bf16": LlamaFileType.MOSTLY_BF16,
    "q8_0": LlamaFileType.MOSTLY_Q8_0,
    "q6_k": LlamaFileType.MOSTLY_Q6_K,
    "q5_k_m": LlamaFileType.MOSTLY_Q5_K_M,
    "q4_k_m": LlamaFileType.MOSTLY_Q4_K_M,
    "q4_0": LlamaFileType.MOSTLY_Q4_0,
}
BASE_TYPES = {
    "f32": Type.F32,
    "f16": Type.F16,
    "bf16": Type.BF16,
    "q8_0": Type.Q8_0,
    "q6_k": Type.Q6_K,
    "q5_k_m": Type.Q5_K,
    "q4_k_m": Type.Q4_K,
    "q4_0": Type.Q4_0,
}
K_TYPES = {Type.Q4_K: Type.Q5_0, Type.Q5_K: Type.Q5_1, Type.Q6_K: Type.Q8_0}  # -> for rows not of blocks of 256
FASTER_IN_C = {Type.Q8_0, Type.Q4_0, Type.Q5_0, Type.Q5_1}  # the same bytes as by the package gguf
MORE_BITS = {"attn_v", "ffn_down"}  # get more bits in some layers
PACKAGE = "xllamacpp"
F16_MAX, F32_MAX = (float(np.finfo(kind).max) for kind in (np.float16, np.float32))


class Sizes(NamedTuple):
    """What the choice of types depends on: layers, query heads per key head, and whether the embedding is the head."""

    layers: int
    shared_heads: int
    tied: bool


def check_quantize(quantize: str) -> None:
    """Raise ConfigError for an unknown type, or for a K-quant without the package that rounds to it."""
    if quantize not in FILE_TYPES:
        raise ConfigError(
            _("Unknown type of a GGUF file."),
            found=quantize,
            fix=_("Use one of: {names}").format(names=listed(FILE_TYPES)),
        )
    if BASE_TYPES[quantize] in K_TYPES and importlib.util.find_spec(PACKAGE) is None:
        simple = listed(name for name, kind in BASE_TYPES.items() if kind not in K_TYPES)
        raise ConfigError(
            _("{type} needs the package {package}.").format(type=quantize, package=PACKAGE),
            fix=_("Install it: {command}. Without it, these types can be written: {names}").format(
                command='pip install "lorafit[gguf]"', names=simple
            ),
        )


def tensor_type(quantize: str, name: str, shape: tuple[int, ...], model: Sizes) -> GGMLQuantizationType:
    """Return the type of the tensor `name` in a file of the type `quantize`, as llama.cpp chooses it.

    Vectors and norms stay in float32. The head of a q4_0 file has 8 bits, since q4_0 must not need K-quants.
    """
    if len(shape) < 2 or not name.endswith(".weight") or name.endswith("_norm.weight"):
        return Type.F32
    base = BASE_TYPES[quantize]
    part, head = name.split(".")[-2], "token_embd" if model.tied else "output"
    if part == head:
        base = {Type.Q4_0: Type.Q8_0, Type.Q4_K: Type.Q6_K, Type.Q5_K: Type.Q6_K}.get(base, base)
    elif base in (Type.Q4_K, Type.Q5_K):
        base = _mixed(base, part, name, model)
    return _fitting(base, shape[-1])


def _mixed(base: GGMLQuantizationType, part: str, name: str, model: Sizes) -> GGMLQuantizationType:
    """Return the type in a file of mixed K-quants: first and last layers, and every third one, get more bits."""
    if part == "attn_qkv":
        return Type.Q5_K if base == Type.Q4_K else Type.Q6_K
    if part not in MORE_BITS:
        return base
    layer, eighth = int(name.split(".")[1]), model.layers // 8
    if layer < eighth or layer >= 7 * model.layers // 8 or (layer - eighth) % 3 == 2:
        return Type.Q6_K
    is_70b = model.layers == 80 and model.shared_heads > 1
    return Type.Q5_K if part == "attn_v" and is_70b and base == Type.Q4_K else base


def _fitting(kind: GGMLQuantizationType, width: int) -> GGMLQuantizationType:
    """Return `kind`, or a type of smaller blocks that divide `width`."""
    if width % GGML_QUANT_SIZES[kind][0]:
        kind = K_TYPES.get(kind, kind)
    return Type.F16 if width % GGML_QUANT_SIZES[kind][0] else kind


def bytes_of(shape: tuple[int, ...], kind: GGMLQuantizationType) -> int:
    """Return the number of bytes of a tensor of this shape and type."""
    block, size = GGML_QUANT_SIZES[kind]
    return int(np.prod(shape, dtype=np.int64)) // block * size


def rounded(values: Floats, kind: GGMLQuantizationType) -> NDArray[Any]:
    """Return `values` [rows, width] in the type `kind`: numbers, or bytes [rows, bytes of a row].

    Raise ModelError for values that the type cannot hold. gguf.quants.dequantize makes float32 of the result.
    """
    largest = float(np.abs(values).max())
    if not largest <= (F16_MAX if kind == Type.F16 else F32_MAX):  # NaN is refused too
        raise ModelError(
            _("A weight of the merged model is not a number that this type can hold."),
            found=f"{kind.name}: {largest}",
            fix=_("Choose the type bf16 or f32."),
        )
    if kind in K_TYPES or (kind in FASTER_IN_C and importlib.util.find_spec(PACKAGE)):
        return _rounded_by_ggml(np.ascontiguousarray(values, np.float32), kind)
    return rounded_by_gguf(values, kind)


def _rounded_by_ggml(values: Floats, kind: GGMLQuantizationType) -> NDArray[np.uint8]:
    rows, width = values.shape
    block, size = GGML_QUANT_SIZES[kind]
    result = np.empty((rows, width // block * size), np.uint8)
    written = _quantize_chunk()(int(kind), values.ctypes.data, result.ctypes.data, 0, rows, width, None)
    if written != result.nbytes:
        raise RuntimeError(f"ggml_quantize_chunk wrote {written} bytes of {result.nbytes}")
    return result


@cache
def _quantize_chunk() -> Callable[..., int]:
    """Return ggml's function that rounds rows to blocks. It releases Python's lock."""
    spec = importlib.util.find_spec(f"{PACKAGE}.{PACKAGE}")
    if spec is None or spec.origin is None:
        raise ImportError(PACKAGE)
    function = ctypes.CDLL(spec.origin).ggml_quantize_chunk
    function.restype = ctypes.c_size_t
    pointer, number = ctypes.c_void_p, ctypes.c_int64
    function.argtypes = [ctypes.c_int, pointer, pointer, number, number, number, pointer]
    return function
