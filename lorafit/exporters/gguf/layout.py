"""The tensors of a GGUF file: which tensor of the model becomes which, checked by name and shape before one is read."""

import re
from collections.abc import Mapping
from typing import Any

from lorafit.errors import ModelError
from lorafit.exporters.gguf.architectures import ALWAYS, HEAD, Architecture, head_dim_of
from lorafit.exporters.gguf.quantize import Sizes, tensor_type
from lorafit.exporters.gguf.source import Floats, GgufSource, GgufTensor
from lorafit.messages import _
from lorafit.models.text_tensors import split_tensors
from lorafit.models.weight_files import Header

PERMUTED = {"attn_q": "num_attention_heads", "attn_k": "num_key_value_heads"}
BUFFERS = ("rotary_emb.inv_freq",)  # computed, but kept in some old files


def plan_tensors(
    source: GgufSource, architecture: Architecture, settings: Mapping[str, Any], quantize: str
) -> list[GgufTensor]:
    """Return the tensors of the file in the order of the source.

    Raise ModelError if a tensor is unknown or missing: a file without it would load and answer nonsense.
    """
    plain = _plain_names(source, settings)
    tied = is_tied(settings, plain)
    names = _names(architecture, settings, tied)
    wanted = {name for name in names if not name.endswith(".bias")} | _needed_biases(architecture, settings)
    spare = set(HEAD) if tied else set()
    for found, problem in (
        (wanted - set(plain), _("A tensor is missing in the merged model.")),
        (set(plain) - set(names) - spare, _("The merged model has a tensor that a GGUF file of its type cannot hold.")),
    ):
        if found:
            fix = _("Export with --to merged instead.")
            raise ModelError(problem, where=source.name, found=sorted(found)[0], fix=fix)
    sizes = sizes_of(settings, tied)
    planned = []
    for name, stored in plain.items():
        if name in names:
            shape = tuple(source.shapes[stored])
            kind = tensor_type(quantize, names[name], shape, sizes).name
            heads, shift = transform_of(architecture, settings, names[name])
            planned.append(GgufTensor(names[name], stored, shape, kind, heads, shift))
    return planned


def transform_of(architecture: Architecture, settings: Mapping[str, Any], name: str) -> tuple[int, float]:
    """Return the heads whose rows the tensor `name` reorders (0: none), and what is added to its values."""
    part = name.split(".")[-2]
    heads = int(settings[PERMUTED[part]] or 0) if architecture.reorders and part in PERMUTED else 0
    return heads, architecture.norm_shift if name.endswith("_norm.weight") else 0.0


def transformed(values: Floats, heads: int, shift: float) -> Floats:
    """Return `values` as llama.cpp wants them: rows of each head as neighbours that rotate together, norms shifted."""
    if heads:
        rows = values.reshape(heads, 2, values.shape[0] // heads // 2, *values.shape[1:])
        values = rows.swapaxes(1, 2).reshape(values.shape)
    return values + values.dtype.type(shift) if shift else values


def restored(values: Floats, heads: int, shift: float) -> Floats:
    """Return the values of a GGUF file's tensor in transformers' layout: the inverse of transformed()."""
    if heads:
        rows = values.reshape(heads, values.shape[0] // heads // 2, 2, *values.shape[1:])
        values = rows.swapaxes(1, 2).reshape(values.shape)
    return values - values.dtype.type(shift) if shift else values


def gguf_name(architecture: Architecture, module: str) -> str | None:
    """Return the name of the weight of `module`, for example model.layers.0.mlp.up_proj; None if it has none."""
    if not module.startswith("model.layers."):
        return {**ALWAYS, **HEAD}.get(f"{module}.weight")
    layer, _dot, part = module.removeprefix("model.layers.").partition(".")
    ours = architecture.layer.get(part)
    return f"blk.{layer}.{ours}.weight" if ours else None


def sizes_of(settings: Mapping[str, Any], tied: bool) -> Sizes:
    """Return what the choice of types depends on."""
    heads = settings["num_attention_heads"]
    return Sizes(settings["num_hidden_layers"], heads // (settings["num_key_value_heads"] or heads), tied)


def is_tied(settings: Mapping[str, Any], names: Mapping[str, str]) -> bool:
    """Return whether the embedding is the head too."""
    return bool(settings.get("tie_word_embeddings")) or not set(HEAD) & set(names)


def plain_name(name: str) -> str:
    """Return the name that a tensor of a wrapper's text decoder has in a plain decoder."""
    return re.sub(r"^(model\.)?(language_model|text_model)\.(model\.)?(?!lm_head)", "model.", name).replace(
        "language_model.lm_head", "lm_head"
    )


def _plain_names(source: GgufSource, settings: Mapping[str, Any]) -> dict[str, str]:
    """Return the names of the text decoder's tensors, as in a plain decoder, and their names in the source."""
    headers = [Header(name, "F32", tuple(shape), 0, 0) for name, shape in source.shapes.items()]
    text, _others = split_tensors(headers, source.config, int(settings["num_hidden_layers"]))
    return {plain_name(header.name): header.name for header in text if not header.name.endswith(BUFFERS)}


def _names(architecture: Architecture, settings: Mapping[str, Any], tied: bool) -> dict[str, str]:
    """Return all tensors that the file may hold: their names in a plain decoder and in the file."""
    names = ALWAYS | ({} if tied else HEAD)
    biased = {*architecture.needed_biases, *architecture.optional_biases}
    for layer in range(settings["num_hidden_layers"]):
        for theirs, ours in architecture.layer.items():
            for kind in ("weight", *(("bias",) if theirs in biased else ())):
                names[f"model.layers.{layer}.{theirs}.{kind}"] = f"blk.{layer}.{ours}.{kind}"
    return names


def _needed_biases(architecture: Architecture, settings: Mapping[str, Any]) -> set[str]:
    layers = range(settings["num_hidden_layers"])
    return {f"model.layers.{layer}.{part}.bias" for layer in layers for part in architecture.needed_biases}


def check_shapes(tensors: list[GgufTensor], settings: Mapping[str, Any], name: str) -> None:
    """Raise ModelError if the matrices of attention and the embedding do not have the shapes that config.json tells."""
    hidden, head_dim = settings["hidden_size"], head_dim_of(settings)
    heads = {"attn_q": settings["num_attention_heads"], "attn_k": settings["num_key_value_heads"]}
    heads["attn_v"] = heads["attn_k"]
    for tensor in tensors:
        part = tensor.name.split(".")[-2]
        wrong = part in heads and tensor.shape[0] != heads[part] * head_dim
        if wrong or (part == "token_embd" and tensor.shape[1] != hidden):
            raise ModelError(
                _("A tensor of the merged model does not have the shape that its config.json tells."),
                where=name,
                found=f"{tensor.source}: {list(tensor.shape)}",
                fix=_("Download config.json of the same model."),
            )
