"""How big is a model, and which of its matrices can LoRA take? From config.json and safetensors headers only.

No tensor is read, so a 70B folder takes milliseconds. Whether the model also loads and trains is the engine's question.
"""

import json
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cached_property
from math import prod
from pathlib import Path
from typing import Any, NamedTuple

from lorafit.errors import ModelError
from lorafit.messages import _, listed

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"
TOKENIZER_FILES = ("tokenizer.json", "tokenizer.model", "tokenizer_config.json")
# The names that model families use for one fact.
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
# 2-D, inside layers, yet no linear of the text decoder: other towers; experts and routers, which transformers 5 fuses.
NOT_LINEAR = re.compile(r"vision|visual|audio|\.experts\.|\.(router|gate|shared_expert_gate)\.weight$|embed|norm")
FLOATS = {"F64", "F32", "F16", "BF16"}


class Linear(NamedTuple):
    """A weight matrix [out_features, in_features] in a decoder layer, by its module's full name."""

    name: str
    in_features: int
    out_features: int


class Packed(NamedTuple):
    """What files hold that mlx_lm quantised: `bits` of most weights, `size` bytes of all packed ones, `others`: the numbers
    beside them, scales among these."""

    bits: int
    size: int
    others: int


@dataclass(frozen=True)
class ModelSpec:
    """A model's shape. `parameters` counts numbers, a packed one as one; `weight_bytes` are the files'."""

    model_type: str
    layers: int
    hidden: int
    intermediate: int
    heads: int
    kv_heads: int
    head_dim: int
    vocab: int
    tied: bool  # the output layer is the embedding
    parameters: int
    weight_bytes: int
    linears: list[Linear]
    window: int | None = None  # tokens that some layer sees, where it does not see all
    activation: str = "silu"
    packed: Packed | None = None  # by MLX, which alone reads it

    @cached_property
    def linear_weights(self) -> int:
        """Numbers in the matrices of all layers."""
        return sum(linear.in_features * linear.out_features for linear in self.linears)

    @cached_property
    def all_sides(self) -> int:
        """Inputs and outputs of all linears: what an adapter of rank 1 on each has of numbers."""
        return sum(linear.in_features + linear.out_features for linear in self.linears)

    @cached_property
    def all_rows(self) -> int:
        """Outputs of all linears."""
        return sum(linear.out_features for linear in self.linears)

    @cached_property
    def largest_linear(self) -> int:
        """Numbers in the largest matrix of all layers."""
        return max((linear.in_features * linear.out_features for linear in self.linears), default=0)


@dataclass(frozen=True)
class Header:
    """One tensor's line in a safetensors header; `size` in bytes, `start` the place of its first in the file."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    size: int
    start: int


def read_spec(folder: Path) -> ModelSpec:
    """The shape of the model in `folder`. Raises ModelError, with the remedy, for what is missing or broken."""
    require_folder(folder)
    config = _config(folder)
    headers = [header for file in weight_files(folder) for header in read_headers(file)]
    _require_tokenizer(folder)
    return spec_from(config, headers, folder)


def spec_from(config: dict[str, Any], headers: list[Header], folder: Path) -> ModelSpec:
    """The shape that a config.json and the headers of all safetensors files tell; `folder` is named in errors."""
    text = {**config, **(config.get("text_config") or {})}
    hidden, heads = _fact(text, "hidden", folder), _fact(text, "heads", folder)
    plain = _unpacked(headers, config)
    return ModelSpec(
        model_type=str(config.get("model_type", "unknown")),
        layers=_fact(text, "layers", folder),
        hidden=hidden,
        intermediate=_fact(text, "intermediate", folder, 4 * hidden),
        heads=heads,
        kv_heads=_fact(text, "kv_heads", folder, heads),
        head_dim=_fact(text, "head_dim", folder, hidden // heads),
        vocab=_fact(text, "vocab", folder),
        tied=bool(text.get("tie_word_embeddings")) or not any(h.name.endswith("lm_head.weight") for h in headers),
        parameters=sum(prod(h.shape) for h in plain),
        weight_bytes=sum(h.size for h in headers),
        linears=list(_linears(plain)),
        window=_window(text),
        activation=str(text.get("hidden_act") or text.get("hidden_activation") or "silu"),
        packed=_packed(headers, config),
    )


def _mlx(config: dict[str, Any]) -> dict[str, Any] | None:
    """How mlx_lm says that it quantised: bits of all, and by a module's name what differs."""
    told = config.get("quantization")
    return told if isinstance(told, dict) and isinstance(told.get("bits"), int) else None


def _unpacked(headers: list[Header], config: dict[str, Any]) -> list[Header]:
    """The weights as they were before mlx_lm packed them: a row of 32-bit words holds 32 / bits times as many numbers."""
    told, plain = _mlx(config), []
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
    told, floats = _mlx(config), [header for header in headers if header.dtype in FLOATS]
    if told is None:
        return None
    size = sum(header.size for header in headers if header.dtype not in FLOATS)
    return Packed(told["bits"], size, sum(prod(header.shape) for header in floats))


def _window(text: dict[str, Any]) -> int | None:
    """Tokens of the window that a layer looks at; Qwen's configs name one that they do not use."""
    return None if text.get("use_sliding_window") is False else text.get("sliding_window")


def require_folder(folder: Path) -> None:
    """Raise ModelError unless `folder` is one."""
    if folder.is_dir():
        return
    raise ModelError(
        _("A base model is a folder; this is a file.") if folder.exists() else _("There is no such model folder."),
        where=folder,
        fix=_(
            "Give `--model_name` a folder with config.json and *.safetensors, a hub id such as Qwen/Qwen3-0.6B, or `demo`."
        ),
    )


def weight_files(folder: Path) -> list[Path]:
    """The safetensors files that hold the model, all of them there. Raises ModelError."""
    if (folder / WEIGHTS).is_file():
        return [folder / WEIGHTS]
    if not (folder / INDEX).is_file():
        raise _no_weights(folder)
    try:
        names = sorted(set(json.loads((folder / INDEX).read_text("utf-8"))["weight_map"].values()))
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(_("The index of the weights cannot be read."), folder / INDEX, repr(error)) from None
    if missing := [name for name in names if not (folder / name).is_file()]:
        found = _("missing {missing} of {total} files: {names}").format(
            missing=len(missing), total=len(names), names=listed(missing[:5])
        )
        raise ModelError(
            _("Some of the model's weights are missing."),
            where=folder,
            found=found,
            fix=_("Download the missing files again."),
        )
    return [folder / name for name in names]


def read_headers(file: Path) -> list[Header]:
    """What a safetensors file holds, and that it is as long as it says. Raises ModelError."""
    # Layout: 8 bytes of little-endian length, that many bytes of JSON, then the tensors at data_offsets after it.
    size = file.stat().st_size
    try:
        with file.open("rb") as stream:
            length = int.from_bytes(stream.read(8), "little")
            lines = json.loads(stream.read(length)) if length <= size - 8 else {}
        headers = as_headers(lines, 8 + length)
        end = 8 + length + max((line["data_offsets"][1] for line in lines.values()), default=0)
    except (OSError, ValueError, KeyError, AttributeError, TypeError) as error:
        raise _broken(_("This file is not safetensors, or its head is damaged."), file, repr(error)) from None
    if size < end:
        found = _("{size} bytes, where its head announces {end}").format(size=size, end=end)
        raise _broken(_("This file of weights is cut short."), file, found)
    return headers


def as_headers(lines: dict[str, Any], origin: int) -> list[Header]:
    """The tensors that a safetensors head, read as JSON, names; they begin at byte `origin`. Its metadata goes."""
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
            _("The model's folder has no config.json."),
            where=folder,
            found=_names(folder),
            fix=_(
                "This is an adapter, not a base model: give it as `--init_adapter`, or to inference.py as `--lora_weights`."
            )
            if adapter
            else _("Give the folder that holds config.json, *.safetensors and the tokenizer together."),
        )
    try:
        config = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise _broken(_("The model's config.json cannot be read as JSON."), path, error) from None
    if not isinstance(config, dict):
        raise _broken(_("The model's config.json cannot be read as JSON."), path, type(config).__name__)
    return config


def _fact(config: dict[str, Any], fact: str, folder: Path, default: int | None = None) -> int:
    """A number under any of its names; of one that differs by layer, the largest."""
    value = next((config[key] for key in KEYS[fact] if config.get(key) is not None), default)
    value = max(value) if isinstance(value, list) and value else value
    if isinstance(value, int) and value > 0:
        return value
    raise ModelError(
        _("The model's config.json does not say its {fact}.").format(fact=KEYS[fact][0]),
        where=folder / "config.json",
        found=f"{KEYS[fact][0]}: {value}",
        fix=_("Fetch config.json again from where the model came from; only decoder language models can be trained."),
    )


def _require_tokenizer(folder: Path) -> None:
    if not any((folder / name).is_file() for name in TOKENIZER_FILES):
        raise ModelError(
            _("The model's folder has no tokenizer."),
            where=folder,
            found=_names(folder),
            fix=_("Copy the tokenizer's files beside the weights: {names}.").format(names=listed(TOKENIZER_FILES)),
        )


def _no_weights(folder: Path) -> ModelError:
    # .bin and .pth files are pickles: loading one runs whatever code its author put there.
    pickles = sorted(path.name for pattern in ("*.bin", "*.pth", "*.pt") for path in folder.glob(pattern))
    convert = "python -c \"from transformers import AutoModelForCausalLM as M; M.from_pretrained('{0}').save_pretrained('{0}')\""
    return ModelError(
        _("The model's folder has no safetensors weights ({name}, or shards with {index}).").format(
            name=WEIGHTS, index=INDEX
        ),
        where=folder,
        found=listed(pickles) or _names(folder),
        fix=_(
            "Pickled weights are never loaded here, for they can run code. Take a safetensors version of the model or, "
            "if you trust its author, convert it: {command}"
        ).format(command=convert.format(folder))
        if pickles
        else _("Download the model again, with its *.safetensors files."),
    )


def _broken(what: str, where: Path, found: object) -> ModelError:
    return ModelError(
        what, where=where, found=found, fix=_("Delete it and download it again; in a git clone: `git lfs pull`.")
    )


def _names(folder: Path) -> str:
    """What is in `folder`, for an error."""
    names = sorted(path.name for path in folder.iterdir())
    return listed(names[:12]) + (" ..." if len(names) > 12 else "") if names else _("an empty folder")
