"""The tensors of a model's files that belong to its text decoder, which is all that training loads, and their roles.

Roles are told by name: files hold no other sign. Other tensors are towers for images and audio, projectors between them
and the decoder, and extra layers that predict several tokens at once (MTP).
"""

import re
from collections.abc import Iterator, Mapping
from math import prod
from typing import Any, NamedTuple

from lorafit.models.lora_targets import OTHER_TOWER, block_users, is_adaptable
from lorafit.models.text_config import is_wrapper
from lorafit.models.weight_files import Header

LAYER = re.compile(r"(^|\.)(layers|h|blocks)\.(\d+)\.")
EXTRA_LAYERS = re.compile(r"(^|\.)(mtp\w*|nextn\w*)\.")  # DeepSeek and GLM number them after the last layer instead
HEAD = re.compile(r"(^|\.)(lm_head|embed_out|output_layer|head|output)\.(weight|bias)$")
NOT_LINEAR = re.compile(r"embed|norm")  # 2-D weights of layers that are no linear layers
EXPERT = re.compile(r"\.experts\.|(block_sparse_moe|moe)\.(input|output)_linear\.")
ONE_EXPERT = re.compile(r"\.experts\.(\d+)\.")
# Types whose layers are Conv1D of transformers, which is no nn.Linear.
CONV1D = {"gpt2", "gpt-sw3", "openai-gpt", "imagegpt", "decision_transformer"}
# Names in the files of a type -> names of its modules in transformers, where these differ in an adapted layer.
RENAMED: dict[str, tuple[tuple[str, str], ...]] = {
    "bailing_hybrid": ((r"\.attention\.dense$", ".self_attn.o_proj"), (r"\.attention\.f_proj$", ".self_attn.forget_gate.f_proj"),
                       (r"\.attention\.", ".self_attn.")),
    "deepseek_v4": ((r"\.attn\.", ".self_attn."), (r"\.ffn\.", ".mlp."), (r"\.w1$", ".gate_proj"), (r"\.w2$", ".down_proj"),
                    (r"\.w3$", ".up_proj"), (r"\.w(q|o)_(a|b)$", r".\1_\2_proj"), (r"\.wkv$", ".kv_proj"),
                    (r"\.wgate$", ".gate_proj")),
    "hy_v3": ((r"\.shared_mlp\.", ".shared_experts."),),
    "kimi_linear": ((r"\.block_sparse_moe\.", ".mlp."), (r"\.f_(a|b)_proj$", r".forget_gate.f_\1_proj")),
    "lfm3": ((r"\.self_attn\.gate_proj$", ".self_attn.g_proj"),),
}  # fmt: skip


FLOATS = {"F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2"}


class Linear(NamedTuple):
    """A weight matrix [out_features, in_features] in a decoder layer. `name` is the full name of its module."""

    name: str
    in_features: int
    out_features: int
    again: bool = False  # the weight is that of another Linear too; files store it once


def split_tensors(headers: list[Header], config: Mapping[str, Any], layers: int) -> tuple[list[Header], list[Header]]:
    """Return the tensors of the text decoder of `layers` layers with its head, and all others.

    In a wrapper, the decoder's tensors share the start of their names with its layers.
    """
    root = _root(headers, layers) if is_wrapper(config) else ""
    text: list[Header] = []
    others: list[Header] = []
    for header in headers:
        number = LAYER.search(header.name)
        inside = header.name.startswith(root) or HEAD.search(header.name)
        extra = EXTRA_LAYERS.search(header.name) or (number and int(number[3]) >= layers)
        other = not inside or extra or OTHER_TOWER.search(header.name)
        (others if other else text).append(header)
    return text, others


def _root(headers: list[Header], layers: int) -> str:
    """Return the start of the names of the decoder's tensors, for example "model.language_model."."""
    numbers: dict[str, set[str]] = {}
    for header in headers:
        part = LAYER.search(header.name)
        if part and not OTHER_TOWER.search(header.name):
            numbers.setdefault(header.name[: part.start(2)], set()).add(part[3])
    return max(numbers, key=lambda root: (len(numbers[root]) == layers, len(numbers[root])), default="")


def has_head(text: list[Header]) -> bool:
    """Return whether the tensors `text` of a decoder have an LM head of their own."""
    return any(HEAD.search(header.name) and not LAYER.search(header.name) for header in text)


def linears_of(tensors: list[Header], text: Mapping[str, Any], layers: int) -> list[Linear]:
    """Return the linear layers that may get an adapter. `text`: the settings of the text decoder.

    Names are those of the files, except where transformers gives the modules of a layer other names.
    """
    kind = str(text.get("model_type", ""))
    if kind in CONV1D:
        return []
    shared_from = layers - (text.get("num_kv_shared_layers") or 0)  # from here on, layers use the keys of earlier ones
    found = []
    for header in tensors:
        number = LAYER.search(header.name)
        matrix = header.name.endswith(".weight") and len(header.shape) == 2 and header.dtype in FLOATS
        if number is None or not matrix or NOT_LINEAR.search(header.name) or EXPERT.search(header.name):
            continue
        name = _renamed(header.name.removesuffix(".weight"), kind)
        without = int(number[3]) >= shared_from and name.endswith((".k_proj", ".v_proj"))
        if not without and not name.endswith(".o_a_proj"):
            found.append(Linear(name, header.shape[1], header.shape[0]))
    return [linear for linear in [*found, *_shared_blocks(found, text)] if is_adaptable(linear.name, text)]


def _renamed(name: str, kind: str) -> str:
    for pattern, other in RENAMED.get(kind, ()):
        name = re.sub(pattern, other, name)
    return name


def _shared_blocks(found: list[Linear], text: Mapping[str, Any]) -> Iterator[Linear]:
    """Yield the linear layers of Zamba's shared blocks in the layers that use them again; files store them once."""
    users, blocks = block_users(text), max(int(text.get("num_mem_blocks") or 1), 1)
    for linear in found:
        number = LAYER.search(linear.name)
        if number and ".shared_transformer." in linear.name and int(number[3]) in users[:blocks]:
            for user in users[users.index(int(number[3])) + blocks :: blocks]:
                name = LAYER.sub(rf"\g<1>\g<2>.{user}.", linear.name, count=1)
                yield linear._replace(name=name, again=is_adaptable(linear.name, text))


def routed_experts(tensors: list[Header]) -> tuple[int, int]:
    """Return the number of weights of all routed experts, and the number of experts of a layer; zeros if there are none."""
    experts = [header for header in tensors if EXPERT.search(header.name)]
    numbers = {int(part[1]) for header in experts if (part := ONE_EXPERT.search(header.name))}
    fused = [header.shape[0] for header in experts if len(header.shape) >= 3]
    return sum(prod(header.shape) for header in experts), len(numbers) or max(fused, default=0)
