"""A base model with an adapter in its weights as mlx_lm stores it, tensor by tensor, in 16 bits or quantized.

mlx_lm itself renames, joins and splits the tensors of the files (`sanitize`), and chooses what it quantizes. Everything is
lazy: the files' headers give all shapes, and a tensor is read when it is its turn.
"""

import contextlib
import gc
import io
import json
from collections.abc import Iterator, Mapping
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import mlx.core as mx
import numpy as np
from mlx.utils import tree_flatten
from mlx_lm.utils import _get_classes, load_model, quantize_model
from numpy.typing import NDArray
from transformers import AutoConfig, PretrainedConfig

from lorafit.engines.mlx import device
from lorafit.engines.mlx.load import missing_settings, refuse_different
from lorafit.engines.mlx.model_errors import CODE_ERRORS, error_text, other_way
from lorafit.engines.mlx.quantised import GROUP
from lorafit.errors import EngineError, ModelError
from lorafit.messages import _, listed

Arrays = dict[str, mx.array]
LowRank = tuple[NDArray[np.float32], NDArray[np.float32], float]  # lora_A [R,I], lora_B [O,R] and the factor before B A
TYPES = {mx.float32: "F32", mx.float16: "F16", mx.bfloat16: "BF16", mx.uint32: "U32", mx.uint8: "U8", mx.int32: "I32",
         mx.int64: "I64", mx.uint16: "U16", mx.int8: "I8", mx.bool_: "BOOL"}  # fmt: skip
PARTS = ("weight", "scales", "biases")  # of a quantized layer, in the order of mx.quantize
KEPT_SETTINGS = ("tie_word_embeddings",)  # defaults of every config class that mlx_lm's classes have otherwise
PLAIN = {"quantization": None, "quantization_config": None}


class Place(NamedTuple):
    """A tensor of the exported files: name, type as safetensors calls it, shape and bytes."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int


class Left(NamedTuple):
    """What rounding leaves of a delta d: <q(W+d)-q(W), d>, <d, d> and <W, W>."""

    kept: float
    size: float
    norm: float


class Written(NamedTuple):
    """The parts of one weight as numpy words, in the order of FusedModel.places; `left` None: no adapter on it."""

    name: str
    parts: list[NDArray[Any]]
    left: Left | None


class FusedModel:
    """The model in `folder` with `deltas` in its weights, which are by the names in its files.

    `replaced` is a file with weights in place of those in the folder. Raises ModelError for a type that mlx_lm does not
    know or computes otherwise, before a weight is read.
    """

    def __init__(
        self, folder: Path, deltas: Mapping[str, LowRank], bits: int, replaced: Path | None = None,
        trust_remote_code: bool = False,
    ) -> None:  # fmt: skip
        device.use_device("cpu", "fp32")
        config = _config_of(folder, trust_remote_code)
        facts = json.loads((folder / "config.json").read_text("utf-8"))
        self.settings = _own_settings(missing_settings(facts, config), facts)
        self.bits, self._settings_of = bits, {}
        with _refusing(folder):
            self._base, self._fused, model, told = _load_both(folder, {**self.settings, **PLAIN}, deltas, replaced)
            self._casts = getattr(model, "cast_predicate", lambda _name: True)
            self.dtype = _sixteen_bits(self._base)
            if bits < 16:
                with contextlib.redirect_stdout(io.StringIO()):  # mlx_lm prints the bits per weight
                    model, told = quantize_model(model, told, GROUP, bits)
                self.settings |= {key: told[key] for key in PLAIN}
                self._settings_of = _quantized_layers(model)
            self._require_shapes({name: tuple(array.shape) for name, array in tree_flatten(model.parameters())})
        self.longrope = _long_rope(config)
        del model
        gc.collect()

    @property
    def dtype_name(self) -> str:
        """The type of the weights that are not quantized, as safetensors calls it."""
        return TYPES[self.dtype]

    def bits_of(self, name: str) -> int | None:
        """Return the bits of the weight `name`; None: it is not quantized."""
        settings = self._settings_of.get(name.removesuffix(".weight"))
        return None if settings is None else settings["bits"]

    def places(self) -> list[Place]:
        """Return the tensors of the exported files in their order."""
        return [place for name in self._fused for place in self._places_of(name)]

    def tensors(self) -> Iterator[Written]:
        """Yield the weights in the order of places(), each once: they are read now, and released after it."""
        for name in list(self._fused):
            with device.translated():
                yield self._written(name, self._base.pop(name), self._fused.pop(name))
            mx.clear_cache()

    def _written(self, name: str, base: mx.array, fused: mx.array) -> Written:
        parts = self._stored(name, fused)
        mx.eval(parts)
        if not all(bool(mx.isfinite(part).all()) for part in parts if mx.issubdtype(part.dtype, mx.floating)):
            raise EngineError(_("A weight is too large for this type, or it is not a number."), where=name,
                              found=self.dtype_name)  # fmt: skip
        left = None
        if base is not fused:  # mlx_lm passes on unchanged tensors as the same object
            kept = self._read_back(name, parts) - self._read_back(name, self._stored(name, base))
            delta = fused.astype(mx.float32) - base.astype(mx.float32)
            left = Left(_dot(kept, delta), _dot(delta, delta), _dot(base, base))
        return Written(name, [_words(part) for part in parts], left if left and left.size > 0 else None)

    def _stored(self, name: str, values: mx.array) -> list[mx.array]:
        """Return the arrays of a weight in the file. It is rounded once, from float32."""
        settings = self._settings_of.get(name.removesuffix(".weight"))
        if settings is not None and name.endswith(".weight"):
            found = mx.quantize(values.astype(mx.float32), **settings)
            return [part.astype(self.dtype) if part.dtype == mx.float32 else part for part in found]
        return [values.astype(self._type_of(name, values))]

    def _read_back(self, name: str, parts: list[mx.array]) -> mx.array:
        """Return the values that `parts` stand for, in float32."""
        if len(parts) == 1:
            return parts[0].astype(mx.float32)
        weight, *others = parts
        return mx.dequantize(
            weight, *(one.astype(mx.float32) for one in others), **self._settings_of[name.removesuffix(".weight")]
        )

    def _type_of(self, name: str, values: mx.array) -> mx.Dtype:
        floating = mx.issubdtype(values.dtype, mx.floating)
        return self.dtype if floating and self._casts(name) else values.dtype

    def _places_of(self, name: str) -> list[Place]:
        parts = self._stored(name, self._fused[name])  # lazy: shapes and types alone
        names = [name] if len(parts) == 1 else [name.removesuffix(PARTS[0]) + part for part in PARTS]
        return [Place(own, TYPES[part.dtype], tuple(part.shape), part.nbytes)
                for own, part in zip(names, parts, strict=False)]  # fmt: skip

    def _require_shapes(self, wanted: dict[str, tuple[int, ...]]) -> None:
        """Raise ValueError if the files would not be those of mlx_lm's own model."""
        found = {place.name: place.shape for place in self.places()}
        if found != wanted:
            raise ValueError(
                listed(sorted(name for name in {*found, *wanted} if found.get(name) != wanted.get(name))[:3])
            )


def _load_both(
    folder: Path, settings: dict[str, Any], deltas: Mapping[str, LowRank], replaced: Path | None
) -> tuple[Arrays, Arrays, Any, dict[str, Any]]:
    """Return the weights of the base and with the adapter by mlx_lm's names, mlx_lm's model, and its config."""
    stored: Arrays = {}

    def base_weights(weights: Arrays) -> Arrays:
        stored.update(weights if replaced is None else weights | mx.load(str(replaced)))
        return dict(stored)

    def fused_weights(_weights: Arrays) -> Arrays:
        if lacking := deltas.keys() - stored.keys():
            raise ValueError(listed(sorted(lacking)[:3]))
        return stored | {name: _merged(stored[name], *low) for name, low in deltas.items()}

    classes = partial(_classes_with, base_weights)
    base = load_model(folder, lazy=True, model_config=settings, get_model_classes=classes)[0]
    classes = partial(_classes_with, fused_weights)
    model, told = load_model(folder, lazy=True, model_config=settings, get_model_classes=classes)
    told = {key: value for key, value in told.items() if value is not None or key not in PLAIN}
    return dict(tree_flatten(base.parameters())), dict(tree_flatten(model.parameters())), model, told


def _merged(weight: mx.array, a: NDArray[np.float32], b: NDArray[np.float32], scale: float) -> mx.array:
    """Return W + scale x B A in float32."""
    return weight.astype(mx.float32) + scale * (mx.array(b) @ mx.array(a))


def _classes_with(change: Any, config: dict[str, Any]) -> tuple[Any, Any]:
    """Return mlx_lm's classes for `config`, with a model that gets the weights of `change` in place of the files'."""
    kind, arguments = _get_classes(config)

    class Changed(kind):  # type: ignore[misc, valid-type]
        def sanitize(self, weights: Arrays) -> Arrays:
            changed = change(weights)
            return super().sanitize(changed) if hasattr(kind, "sanitize") else changed

    return Changed, arguments


def _config_of(folder: Path, trust_remote_code: bool) -> PretrainedConfig:
    config = AutoConfig.from_pretrained(folder, local_files_only=True, trust_remote_code=trust_remote_code)
    try:
        refuse_different(config)
    except ModelError as error:
        error.fix = other_way()
        raise
    return config


def _own_settings(extra: dict[str, Any], facts: dict[str, Any]) -> dict[str, Any]:
    """Return `extra` without the defaults that every config class has, and without what the file has already."""
    usual = {key: value for key, value in PretrainedConfig().to_dict().items() if key not in KEPT_SETTINGS}
    return {key: value for key, value in extra.items()
            if not (key in usual and usual[key] == value) and facts.get(key, ...) != value}  # fmt: skip


def _sixteen_bits(weights: Arrays) -> mx.Dtype:
    """Return the type of most weights if it has 16 bits, else bfloat16, which has the range of float32."""
    sizes: dict[mx.Dtype, int] = {}
    for array in weights.values():
        sizes[array.dtype] = sizes.get(array.dtype, 0) + array.size
    most = max(sizes, key=lambda kind: sizes[kind])
    return most if most in (mx.float16, mx.bfloat16) else mx.bfloat16


def _quantized_layers(model: Any) -> dict[str, dict[str, Any]]:
    return {name: {"group_size": module.group_size, "bits": module.bits, "mode": module.mode}
            for name, module in model.named_modules() if "scales" in module}  # fmt: skip


def _long_rope(config: PretrainedConfig) -> int | None:
    """Return the tokens up to which a model with two sets of rotary factors is computed; None: it has one set."""
    rope = getattr(config.get_text_config(), "rope_parameters", None) or {}
    return int(rope["original_max_position_embeddings"]) if rope.get("rope_type") == "longrope" else None


def _dot(one: mx.array, other: mx.array) -> float:
    """Return the sum of products in float32. Rows are summed first: one sum of many numbers is less exact."""
    return float((one.astype(mx.float32) * other.astype(mx.float32)).sum(-1).sum())


def _words(array: mx.array) -> NDArray[Any]:
    return np.array(array.view(mx.uint16) if array.dtype == mx.bfloat16 else array)


@contextlib.contextmanager
def _refusing(folder: Path) -> Iterator[None]:
    """Turn the exceptions of mlx_lm's model code into ModelError."""
    try:
        yield
    except CODE_ERRORS as error:
        what = _("mlx_lm cannot load this base model.")
        raise ModelError(what, where=folder, found=error_text(error), fix=other_way()) from error
