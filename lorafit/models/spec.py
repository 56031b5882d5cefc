"""The shape of a model and its linear layers for LoRA, from config.json and safetensors headers only.

No tensor is read, so a 70B folder takes milliseconds. The engine checks whether the model loads and trains.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.atomic import read_errors
from lorafit.errors import ModelError
from lorafit.messages import _, listed
from lorafit.models.positions import Positions, positions_of
from lorafit.units import kind_text

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# Field of ModelSpec -> its keys in config.json, which differ between model families.
KEYS = {
    "layers": ("num_hidden_layers", "n_layer", "num_layers"),
    "hidden": ("hidden_size", "n_embd", "d_model"),
    "intermediate": ("intermediate_size", "n_inner", "ffn_dim", "d_ff"),
    "heads": ("num_attention_heads", "n_head", "num_heads"),
    "kv_heads": ("num_key_value_heads",),
    "head_dim": ("head_dim",),
    "vocab": ("vocab_size",),
}
LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.(\d+)\.")
# 2-D weights in layers that are no linear layers of the text decoder: vision and audio towers, embeddings and norms;
# also experts and routers, which transformers 5 fuses.
NOT_LINEAR = re.compile(r"vision|visual|audio|\.experts\.|\.(router|gate|shared_expert_gate)\.weight$|embed|norm")
FLOATS = {"F64", "F32", "F16", "BF16"}


class Linear(NamedTuple):
    """A weight matrix [out_features, in_features] in a decoder layer. `name` is the full name of its module."""

    name: str
    in_features: int
    out_features: int


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

    `parameters` counts parameters before quantization. `weight_bytes` is the size of all tensors in the files.
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

    @cached_property
    def linear_weights(self) -> int:
        """Number of weights in all linear layers."""
        return sum(linear.in_features * linear.out_features for linear in self.linears)

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


@dataclass(frozen=True)
class Header:
    """The entry of one tensor in a safetensors header. `size` is in bytes; `start` is its byte offset in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int


def read_spec(folder: Path) -> ModelSpec:
    """Return the shape of the model in `folder`. Raises ModelError, with a fix, for a missing or damaged file."""
    require_folder(folder)
    config = _config(folder)
    headers = [header for file in weight_files(folder) for header in read_headers(file)]
    _require_tokenizer(folder)
    return spec_from(config, headers, folder)


def spec_from(config: dict[str, Any], headers: list[Header], folder: Path) -> ModelSpec:
    """Return the shape from a config.json and the headers of all safetensors files. `folder` is for error messages."""
    text = {**config, **(config.get("text_config") or {})}
    hidden, heads = _config_int(text, "hidden", folder), _config_int(text, "heads", folder)
    plain = _unpacked(headers, config)
    return ModelSpec(
        model_type=str(config.get("model_type", "unknown")),
        layers=_config_int(text, "layers", folder),
        hidden=hidden,
        intermediate=_config_int(text, "intermediate", folder, 4 * hidden),
        heads=heads,
        kv_heads=_config_int(text, "kv_heads", folder, heads),
        head_dim=_config_int(text, "head_dim", folder, hidden // heads),
        vocab=_config_int(text, "vocab", folder),
        tied=bool(text.get("tie_word_embeddings")) or not any(h.name.endswith("lm_head.weight") for h in headers),
        parameters=sum(prod(h.shape) for h in plain),
        weight_bytes=sum(h.size for h in headers),
        linears=list(_linears(plain)),
        window=_window(text),
        activation=str(text.get("hidden_act") or text.get("hidden_activation") or "silu"),
        packed=_packed(headers, config),
        positions=positions_of(text, ((h.name, h.shape) for h in plain), hidden),
    )


def _mlx_quantization(config: dict[str, Any]) -> dict[str, Any] | None:
    """Return the quantization settings of mlx_lm: default bits and overrides by module name; None if not quantized."""
    told = config.get("quantization")
    return told if isinstance(told, dict) and isinstance(told.get("bits"), int) else None


def _unpacked(headers: list[Header], config: dict[str, Any]) -> list[Header]:
    """Return the headers with the shapes before quantization by mlx_lm, without scales and biases.

    A row of packed 32-bit words holds 32 / bits times as many weights.
    """
    told, plain = _mlx_quantization(config), []
    if told is None:
        return headers
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


def _window(text: dict[str, Any]) -> int | None:
    """Return the sliding window in tokens, or None. Qwen's configs have one even if use_sliding_window is false."""
    return None if text.get("use_sliding_window") is False else text.get("sliding_window")


def require_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` is a folder."""
    if folder.is_dir():
        return
    raise ModelError(
        _("A base model must be a folder, but this is a file.") if folder.exists() else _("Model folder not found."),
        where=folder,
        fix=_(
            "Give `--model_name` a folder with config.json and *.safetensors, a model ID such as "
            "Qwen/Qwen3-0.6B, or `demo`."
        ),
    )


def weight_files(folder: Path) -> list[Path]:
    """Return the safetensors files of the model. Raises ModelError if one is missing."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    try:
        with read_errors(folder / INDEX):
            names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(_("The index of the weight files cannot be read."), folder / INDEX, repr(error)) from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        found = _("missing files: {missing} of {total} ({names})").format(
            missing=len(missing), total=len(names), names=listed(missing[:5])
        )
        raise ModelError(
            _("Some weight files of the model are missing."),
            where=folder,
            found=found,
            fix=_("Download the missing files again."),
        )
    return [folder / name for name in names]


def read_headers(file: Path) -> list[Header]:
    """Return the tensor headers of a safetensors file. Raises ModelError if the file is damaged or truncated."""
    # Format: the header length in 8 little-endian bytes, the JSON header, then the tensors at their data_offsets.
    size = file.stat().st_size
    try:
        with read_errors(file), file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            lines = json.loads(stream.read(length)) if length <= size - 8 else {}
        headers = parse_headers(lines, 8 + length)
        end = 8 + length + max((line["data_offsets"][1] for line in lines.values()), default=0)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(_("This file is not safetensors, or its header is damaged."), file, repr(error)) from None
    if size < end:
        found = _("{size} bytes, while its header gives {end}").format(size=size, end=end)
        raise _broken(_("This weight file is incomplete."), file, found)
    return headers


def parse_headers(lines: dict[str, Any], origin: int) -> list[Header]:
    """Return the tensors in `lines`, a parsed safetensors header. Tensor data start at byte `origin`.

    The metadata entry is removed from `lines`.
    """
    lines.pop("__metadata__", None)
    return [_header(name, line, origin) for name, line in lines.items()]


def _header(name: str, line: dict[str, Any], origin: int) -> Header:
    start, end = line["data_offsets"]
    return Header(name, str(line["dtype"]), tuple(line["shape"]), end - start, origin + start)


def _linears(headers: list[Header]) -> Iterator[Linear]:
    for header in headers:
        matrix = header.name.endswith(".weight") and len(header.shape) == 2 and header.dtype in FLOATS
        if matrix and LAYER.search(header.name) and not NOT_LINEAR.search(header.name):
            yield Linear(header.name.removesuffix(".weight"), header.shape[1], header.shape[0])


def _config(folder: Path) -> dict[str, Any]:
    path = folder / "config.json"
    if not path.is_file():
        adapter = (folder / "adapter_config.json").is_file()
        raise ModelError(
            _("The model folder has no config.json."),
            where=folder,
            found=_names(folder),
            fix=_("Give this adapter to `--init_adapter`, or chat with it by `lorafit chat`: it is not a base model.")
            if adapter
            else _("Give the folder that contains config.json, *.safetensors and the tokenizer."),
        )
    try:
        with read_errors(path):
            config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(_("The model's config.json cannot be read as JSON."), path, error) from None
    if not isinstance(config, dict):
        raise _broken(_("The model's config.json cannot be read as JSON."), path, kind_text(config))
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
            found=_names(folder),
            fix=_("Copy the tokenizer files next to the weights: {names}.").format(names=listed(TOKENIZER_FILES)),
        )


def _no_weights(folder: Path) -> ModelError:
    # .bin, .pth and .pt files are pickles: loading one can run code of its author.
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    convert = "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}')\""
    return ModelError(
        _("The model folder has no safetensors weights ({name}, or shards with {index}).").format(
            name=WEIGHTS, index=INDEX
        ),
        where=folder,
        found=listed(pickles) or _names(folder),
        fix=_(
            "Use a safetensors version of the model: pickled weights are never loaded, because "
            "they can run code. If you trust the author, convert them: {command}"
        ).format(command=convert.format(folder))
        if pickles
        else _("Download the model again, including its *.safetensors files."),
    )


def _broken(what: str, where: Path, found: object) -> ModelError:
    return ModelError(
        what,
        where=where,
        found=found,
        fix=_("Delete the file and download it again; in a git clone, run `git lfs pull`."),
    )


def _names(folder: Path) -> str:
    """Return the names of the first twelve files in `folder`, for an error message."""
    names = sorted(path.name for path in folder.iterdir())
    return listed([*names[:12], *(["..."] if len(names) > 12 else [])]) if names else _("the folder is empty")
