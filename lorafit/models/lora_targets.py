"""Selection of the linear layers that get an adapter, by the words in `lora_targets`.

A word is `all` (or PEFT's `all-linear`), a group of layers (`attention`, `mlp`), or the last part of a layer's name. A
word with the number of a layer may start otherwise than the layer's name: wrappers have other names in files than in memory.
"""

import re
from collections.abc import Mapping, Sequence
from functools import lru_cache
from typing import Any

from lorafit.errors import ConfigError
from lorafit.messages import _, listed
from lorafit.units import ALL_LINEAR, canonical_targets

GROUPS = {  # each group, and the parts of a layer's full name that mark it; in Nemotron-H, all are in a "mixer"
    "attention": re.compile(r"attn|attention|\bmixer\.[qkvo]_proj$"),
    "mlp": re.compile(r"mlp|feed_?forward|ffn|moe|expert|\bfc\d\b|\bmixer\.(up|down)_proj$"),
}

SHOWN = 8  # words of lora_targets that an error shows

# Parts of a layer's full name that mark what chooses: routers and gates of experts, and indexers of sparse attention,
# which choose keys and get no gradient.
CHOOSES = re.compile(r"(^|\.)(\w*router\w*|gate|shared_expert_gate|indexer)(\.|$)")
# Layers whose weight the model multiplies by itself, so that an adapter around the layer is never called.
UNCALLED = re.compile(r"(^|\.)dt_proj$")
# Output layers of state-space blocks. Their fused CUDA kernels read the weight too, and PEFT refuses an adapter there.
STATE_OUTPUT = re.compile(r"(^|\.)(mamba|mixer)\.out_proj$")
FUSED_STATE_OUTPUT = {
    "bamba",
    "falcon_h1",
    "falcon_mamba",
    "granitemoehybrid",
    "mamba",
    "mamba2",
    "nemotron_h",
    "zamba2",
}
# Parts of a full name outside the text decoder: other towers and what connects them.
OTHER_TOWER = re.compile(
    r"vision|visual|vqmodel|image_|audio|speech|talker|token2wav|code2wav|embed_tokens_extend|"
    r"multi_modal|multimodal|mm_projector|modality_projection"
)
LAYER_NUMBER = re.compile(r"(^|\.)(?:layers|h|blocks)\.(\d+)\.")
# Zamba 2's own LoRA on its shared blocks: every layer that uses a block holds those of all its uses, and calls its own.
USE_OF_BLOCK = re.compile(r"_adapter_list\.(\d+)\.")


def is_adaptable(name: str, text: Mapping[str, Any]) -> bool:
    """Return whether the linear layer with the full `name` may get an adapter.

    Routers, indexers and layers that training does not call must not. `text`: the settings of the text decoder, as in
    its config.json.
    """
    if CHOOSES.search(name) or UNCALLED.search(name):
        return False
    if STATE_OUTPUT.search(name) and text.get("model_type") in FUSED_STATE_OUTPUT:
        return False
    number, use = LAYER_NUMBER.search(name), USE_OF_BLOCK.search(name)
    if number and use and block_users(text)[int(use[1]) :][:1] != [int(number[2])]:
        return False
    # Llama 3.2 Vision skips whole layers in a text without images.
    return number is None or int(number[2]) not in (text.get("cross_attention_layers") or ())


def block_users(text: Mapping[str, Any]) -> list[int]:
    """Return the layers that use Zamba's shared blocks, in their order."""
    kinds = text.get("layers_block_type")
    return [i for i, kind in enumerate(kinds) if kind == "hybrid"] if isinstance(kinds, list) else []


def place_in_layers(name: str) -> str:
    """Return layer number and rest of a layer's full `name`, e.g. "3.mlp.up_proj": the same under any prefix.

    A name of another tower stays whole.
    """
    number = None if OTHER_TOWER.search(name) else LAYER_NUMBER.search(name)
    return name[number.start(2) :] if number else name


def matching_names(names: Sequence[str], targets: str) -> list[str]:
    """Return the full names in `names` that one of the words in `targets` selects."""
    words = _split(targets)
    if ALL_LINEAR in words:
        return list(names)
    return list(_matching(tuple(names), tuple(words)))


def select_targets(names: Sequence[str], targets: str) -> list[str]:
    """Return `matching_names`. Raise ConfigError if `targets` is empty or one of its words matches no layer."""
    wanted = _split(targets)
    missing = [word for word in wanted if not matching_names(names, word)]
    if missing or not wanted:
        short = sorted({name.rpartition(".")[2] for name in names})
        groups = [group for group in GROUPS if matching_names(names, group)]
        raise ConfigError(
            _("lora_targets names layers that this model does not have."),
            where=f"lora_targets: {targets}" if len(wanted) <= SHOWN else "lora_targets",
            found=listed(missing[:SHOWN]),
            fix=_("Choose from these layers: {names}; or use {groups}.").format(
                names=listed(short), groups=listed([ALL_LINEAR, *groups])
            ),
        )
    return matching_names(names, targets)


@lru_cache(maxsize=8)
def _matching(names: tuple[str, ...], words: tuple[str, ...]) -> list[str]:
    """Return the names that one of the words selects; cached, because the planner asks thousands of times."""
    ends = tuple(f".{word}" for word in words if word not in GROUPS)
    groups = [GROUPS[word] for word in words if word in GROUPS]
    places = {place_in_layers(word) for word in words if LAYER_NUMBER.search(word)}
    return [
        name
        for name in names
        if f".{name}".endswith(ends) or place_in_layers(name) in places or any(group.search(name) for group in groups)
    ]


def _split(targets: str) -> list[str]:
    return list(filter(None, canonical_targets(targets).split(",")))
