"""The shape of a model and its linear layers for LoRA, from config.json and safetensors headers only.

No tensor is read, so a 70B folder takes milliseconds. The engine checks whether the model loads and trains.
"""

import json
import re
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.atomic import read_errors
from lorafit.errors import ModelError
from lorafit.messages import _, listed
from lorafit.models.positions import Positions, positions_of
from lorafit.models.state_space import HYBRID, kernel_packages, state_values
from lorafit.models.text_config import (
    STATE_SPACE,
    LayerKind,
    chosen_experts,
    layer_kinds,
    text_settings,
    window_of,
    with_defaults,
)
from lorafit.models.text_tensors import FLOATS, Linear, has_head, linears_of, routed_experts, split_tensors
from lorafit.models.weight_files import Header, broken_file, file_names, read_headers, require_folder, weight_files
from lorafit.units import kind_text

TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# Field of ModelSpec -> its keys in config.json, which differ between model families.
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "n_layers", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "ffn_hidden_size", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "n_heads", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
}
# The last layer of an MLP, in any family's words.
MLP_END = re.compile(r"\.(down_proj|w2|fc2|fc_out|dense_4h_to_h|output_linear|(mlp|feed_forward)\.(c_proj|value))$")
# Weights in MXFP4: two in a byte, with their scales in a tensor of their own.
MXFP4, MXFP4_SCALES = "_blocks", "_scales"


class Packed(NamedTuple):
    """Weights that mlx_lm quantized.

    `bits` is the default bits per weight. `size` is the bytes of all packed tensors. `others` is the number of
    floating-point values, including the scales.
    """

    bits: int
    size: int
    others: int


@dataclass(frozen=True)
class ModelSpec:
    """The shape of a model.

    `parameters` counts the parameters of the text decoder before quantization; `other_parameters` those in the files that
    training does not load: towers for images and audio, and layers that predict several tokens. `weight_bytes` is the size
    of all tensors in the files. A model without attention has no heads: `heads`, `kv_heads` and `head_dim` are 0.
    """

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # the LM head shares its weight with the embedding
    parameters: int
    weight_bytes: int
    linears: list[Linear]
    window: int | None = None  # sliding window in tokens; None: full attention in all layers
    activation: str = "silu"
    packed: Packed | None = None  # set for a model that mlx_lm quantized; only MLX can read it
    positions: Positions | None = None  # None: no limit is known
    other_parameters: int = 0
    expert_weights: int = 0  # in all routed experts of all layers
    active_experts: float = 1.0  # share of the routed experts that computes one token
    chosen_experts: int = 0  # that compute one token, in a layer with experts
    kinds: tuple[LayerKind, ...] = ()  # of each layer; empty: full attention in all
    state_values: int = 0  # float32 values that a layer of the kind "state" saves for each token
    kernels: tuple[str, ...] = ()  # optional packages with fused CUDA kernels for its layers
    text_type: str = ""  # model_type of the text decoder; empty: that of the model

    @cached_property
    def linear_weights(self) -> int:
        """Number of weights in all linear layers."""
        return sum(linear.in_features * linear.out_features for linear in self.linears)

    @cached_property
    def stored_linear_weights(self) -> int:
        """The same without the layers that use a weight again."""
        return sum(linear.in_features * linear.out_features for linear in self.linears if not linear.again)

    @property
    def active_parameters(self) -> int:
        """Number of parameters that compute one token: all but the experts that its router does not choose."""
        return self.parameters - round(self.expert_weights * (1 - self.active_experts))

    @cached_property
    def mlp_width(self) -> int:
        """Mean over the layers of the values between the matrices of a dense MLP, shared experts included."""
        ends = [linear for linear in self.linears if MLP_END.search(linear.name) and linear.out_features == self.hidden]
        inside = sum(linear.in_features for linear in ends)
        return inside // self.layers if ends or self.expert_weights else self.intermediate

    @property
    def attention_layers(self) -> int:
        """Number of layers with attention."""
        return self.layers - sum(kind in ("state", "none") for kind in self.kinds)

    @property
    def state_layers(self) -> int:
        """Number of layers with a state space; those that have attention too are counted."""
        return (
            self.layers
            if (self.text_type or self.model_type) in HYBRID
            else sum(kind == "state" for kind in self.kinds)
        )

    @property
    def expert_values(self) -> int:
        """Mean over the layers of the values that the chosen experts save for each token."""
        if not self.expert_weights:
            return 0
        inside = self.expert_weights * self.active_experts / self.hidden  # three matrices, each hidden x width
        return round(inside / self.layers) + self.chosen_experts * self.hidden

    @cached_property
    def rank1_parameters(self) -> int:
        """Sum of in_features + out_features of all linear layers: the parameters of a rank-1 adapter on all of them."""
        return sum(linear.in_features + linear.out_features for linear in self.linears)

    @cached_property
    def total_out_features(self) -> int:
        """Sum of out_features of all linear layers."""
        return sum(linear.out_features for linear in self.linears)

    @cached_property
    def largest_linear(self) -> int:
        """Number of weights in the largest linear layer."""
        return max((linear.in_features * linear.out_features for linear in self.linears), default=0)


def read_spec(folder: Path) -> ModelSpec:
    """Return the shape of the model in `folder`. Raises ModelError, with a fix, for a missing or damaged file."""
    spec = read_shape(folder)
    _require_tokenizer(folder)
    return spec


def read_shape(folder: Path) -> ModelSpec:
    """Return the shape of the model in `folder`, which may lack a tokenizer. Raises ModelError."""
    require_folder(folder)
    config = read_config(folder)
    headers = [header for file in weight_files(folder) for header in read_headers(file)]
    return spec_from(config, headers, folder)


def spec_from(config: dict[str, Any], headers: list[Header], folder: Path) -> ModelSpec:
    """Return the shape from a config.json and the headers of all safetensors files. `folder` is for error messages."""
    plain, told = _unpacked(headers, config), text_settings(config)
    text = _settings(told, plain)
    layers, hidden = _layers(text, folder), _config_int(text, "hidden", folder)
    tensors, others = split_tensors(plain, config, layers)
    heads = 0 if text.get("model_type") in STATE_SPACE else _config_int(text, "heads", folder)
    experts, number = routed_experts(tensors)
    kinds = layer_kinds(text, layers)
    return ModelSpec(
        model_type=str(config.get("model_type", "unknown")),
        layers=layers,
        hidden=hidden,
        intermediate=_config_int(text, "intermediate", folder, 4 * hidden),
        heads=heads,
        kv_heads=_config_int(text, "kv_heads", folder, heads) if heads else 0,
        head_dim=_head_dim(text, hidden, heads, folder),
        vocab=_config_int(text, "vocab", folder),
        tied=bool(text.get("tie_word_embeddings")) or not has_head(tensors),
        parameters=sum(prod(h.shape) for h in tensors),
        weight_bytes=sum(h.size for h in headers),
        linears=linears_of(tensors, text, layers),
        window=window_of(text),
        activation=str(text.get("hidden_act") or text.get("hidden_activation") or "silu"),
        packed=_packed(headers, config),
        positions=positions_of(told, ((h.name, h.shape) for h in plain), hidden),
        other_parameters=sum(prod(h.shape) for h in others),
        expert_weights=experts,
        active_experts=min((chosen_experts(text) or number) / number, 1.0) if number else 1.0,
        chosen_experts=(chosen_experts(text) or number) if number else 0,
        kinds=kinds if set(kinds) != {"full"} else (),
        state_values=state_values(text, hidden) if "state" in kinds or text.get("model_type") in HYBRID else 0,
        kernels=kernel_packages(text) if "state" in kinds or text.get("model_type") in HYBRID else (),
        text_type="" if told.get("model_type") == config.get("model_type") else str(told.get("model_type", "")),
    )


def _settings(told: dict[str, Any], headers: list[Header]) -> dict[str, Any]:
    """Return the settings `told` by the file, with the defaults of their class if its default size is that of the files."""
    text = with_defaults(told)
    size = next((text[key] for key in KEYS["hidden"] if text.get(key) is not None), None)
    return text if any(header.shape and header.shape[-1] == size for header in headers) else told


def _layers(text: dict[str, Any], folder: Path) -> int:
    """Return the number of layers. Nemotron-H has a list of them instead of the number."""
    listed_layers = text.get("layers_block_type") or text.get("hybrid_override_pattern")
    return _config_int(text, "layers", folder, len(listed_layers) if listed_layers else None)


def _head_dim(text: dict[str, Any], hidden: int, heads: int, folder: Path) -> int:
    """Return the size of a query head: 0 without attention; its two parts together in multi-head latent attention."""
    if not heads:
        return 0
    parts = text.get("qk_nope_head_dim"), text.get("qk_rope_head_dim")
    if isinstance(parts[0], int) and isinstance(parts[1], int) and parts[0] > 0:
        return parts[0] + parts[1]
    return _config_int(text, "head_dim", folder, hidden // heads)


def _mlx_quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization settings of mlx_lm: default bits and overrides by module name; None if not quantized."""
    told = config.get("quantization")
    return told if isinstance(told, dict) and isinstance(told.get("bits"), int) else None


def _unpacked(headers: list[Header], config: dict[str, Any]) -> list[Header]:
    """Return the headers with the shapes before quantization by mlx_lm or to MXFP4, without scales and biases.

    A row of 32-bit words of mlx_lm holds 32 / bits times as many weights.
    """
    told, plain = _mlx_quantization(config), []
    if told is None:
        return _without_mxfp4(headers)
    modules = {header.name.removesuffix(".scales") for header in headers if header.name.endswith(".scales")}
    for header in headers:
        module, _dot, kind = header.name.rpartition(".")
        if module not in modules:
            plain.append(header)
        elif kind == "weight":
            own = told.get(module)
            bits = own["bits"] if isinstance(own, dict) and isinstance(own.get("bits"), int) else told["bits"]
            plain.append(replace(header, shape=(*header.shape[:-1], header.shape[-1] * 32 // bits), dtype="F16"))
    return plain


def _packed(headers: list[Header], config: dict[str, Any]) -> Packed | None:
    told, floats = _mlx_quantization(config), [header for header in headers if header.dtype in FLOATS]
    if told is None:
        return None
    size = sum(header.size for header in headers if header.dtype not in FLOATS)
    return Packed(told["bits"], size, sum(prod(header.shape) for header in floats))


def _without_mxfp4(headers: list[Header]) -> list[Header]:
    packed = {header.name.removesuffix(MXFP4) for header in headers if header.name.endswith(MXFP4)}
    plain = []
    for header in headers:
        if header.name.removesuffix(MXFP4) in packed:
            experts, *blocks = header.shape
            shape = (experts, prod(blocks[:-2]), 2 * prod(blocks[-2:]))
            plain.append(replace(header, name=header.name.removesuffix(MXFP4), shape=shape))
        elif header.name.removesuffix(MXFP4_SCALES) not in packed:
            plain.append(header)
    return plain


def read_config(folder: Path) -> dict[str, Any]:
    """Return the content of the config.json in `folder`. Raises ModelError, with a fix, if it is missing or damaged."""
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise ModelError(
            _("The model folder has no config.json."),
            where=folder,
            found=file_names(folder),
            fix=_("Give this adapter to `--init_adapter`, or chat with it by `lorafit chat`: it is not a base model.")
            if adapter
            else _("Give the folder that contains config.json, *.safetensors and the tokenizer."),
        )
    try:
        with read_errors(path):
            config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise broken_file(_("The model's config.json cannot be read as JSON."), path, error) from None
    if not isinstance(config, dict):
        raise broken_file(_("The model's config.json cannot be read as JSON."), path, kind_text(config))
    return config


def _config_int(config: dict[str, Any], fact: str, folder: Path, default: int | None = None) -> int:
    """Return a field of the config under any of its keys; the maximum if it is a list with a value per layer."""
    value = next((config[key] for key in KEYS[fact] if config.get(key) is not None), default)
    value = max(value) if isinstance(value, list) and value else value
    if isinstance(value, int) and value > 0:
        return value
    raise ModelError(
        _("The model's config.json has no valid {fact}.").format(fact=KEYS[fact][0]),
        where=folder / "config.json",
        found=f"{KEYS[fact][0]}: {value}",
        fix=_("Download config.json again from the source of the model; only decoder language models can be trained."),
    )


def _require_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            _("The model folder has no tokenizer."),
            where=folder,
            found=file_names(folder),
            fix=_("Copy the tokenizer files next to the weights: {names}.").format(names=listed(TOKENIZER_FILES)),
        )
