"""The shape of a model of any type, read from its files, is that of transformers' own model: layers, heads, linears."""

import re
from functools import lru_cache
from pathlib import Path
from typing import Any

import pytest
from support.skeletons import FAMILIES, family_config, on_meta, write_skeleton
from torch import nn

from lorafit.models.spec import ModelSpec, read_spec

# The linear layers that may not get an adapter: routers, indexers, gates of experts, and what training does not call.
OWN_LORA = "shared_transformer.feed_forward.gate_up_proj_adapter_list"
LEFT_OUT = {
    "afmoe": {"mlp.router.gate"},
    "bamba": {"mamba.out_proj"},
    "deepseek_v32": {"self_attn.indexer.weights_proj", "self_attn.indexer.wk", "self_attn.indexer.wq_b"},
    "falcon_h1": {"mamba.out_proj"},
    "gemma4_moe_text": {"router.proj"},
    "granitemoehybrid": {"mamba.out_proj"},
    "hunyuan_v1_moe": {"mlp.gate.wg"},
    "jamba": {"mamba.dt_proj"},
    "llama4": {"feed_forward.router"},
    "mamba": {"mixer.dt_proj", "mixer.out_proj"},
    "mamba2": {"mixer.out_proj"},
    "nemotron_h": {"mixer.out_proj"},
    "phimoe": {"mlp.router"},
    "zamba2": {"mamba.out_proj", "mamba_decoder.mamba.out_proj"}
    # Of its own LoRA on a shared block, each layer calls that of its use: the first is in layer 1, the second in layer 3.
    | {f"{layer}.{OWN_LORA}.{use}.{i}" for layer, use in ((1, 1), (3, 0)) for i in (0, 1)},
} | {key: {"mlp.shared_expert_gate"} for key in ("qwen2_moe", "qwen3_next", "qwen3_5_moe_text", "qwen3_5_moe")}
# How each layer mixes positions, where it is not by full attention in all.
MIXED = ("state", "state", "state", "full")
KINDS = {
    "afmoe": ("window", "window", "window", "full"),
    "bamba": ("state", "state", "full", "state"),
    "gemma2": ("window", "full", "window", "full"),
    "gemma3": ("window",) * 4,
    "gemma4_moe_text": ("window", "full", "window", "full"),
    "gemma4_text": ("window", "full", "window", "full"),
    "gpt_oss": ("window", "full", "window", "full"),
    "granitemoehybrid": ("state", "state", "full", "state"),
    "jamba": ("state", "full", "state", "full"),
    "lfm2_moe": ("state", "state", "full", "state"),
    "llama4": ("window", "window", "window", "full"),
    "nemotron_h": ("state", "none", "full", "none"),
    "zamba2": ("state", "full", "state", "full"),
} | {name: MIXED for name in ("qwen3_next", "qwen3_5", "qwen3_5_moe", "qwen3_5_moe_text")}
KINDS |= {name: ("state",) * 4 for name in ("mamba", "mamba2", "rwkv")}
WITHOUT_ATTENTION = {"mamba", "mamba2", "rwkv"}
LAYER = re.compile(r"^.*?\.(?:layers|h|blocks)\.(\d+\..*)$")


@pytest.fixture(params=FAMILIES)
def family(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[str, Any, ModelSpec]:
    """A family's name, its model on the meta device, and the shape that its files give."""
    model = on_meta(family_config(request.param))
    write_skeleton(tmp_path, model)
    return request.param, model, read_spec(tmp_path)


@lru_cache(maxsize=1)
def decoder_of(model: Any) -> Any:
    decoder = model.get_decoder()
    return model.model if decoder is model else decoder


def in_layer(name: str) -> str:
    found = LAYER.match(f".{name}")
    assert found, name
    return found[1]


def test_linears_are_those_of_the_text_decoder_that_may_get_an_adapter(family: tuple[str, Any, ModelSpec]) -> None:
    name, model, spec = family
    modules = {
        in_layer(f"x.{part}"): (module.in_features, module.out_features)
        for part, module in decoder_of(model).named_modules()
        if isinstance(module, nn.Linear) and LAYER.match(f".x.{part}")
    }
    left_out = LEFT_OUT.get(name, set())
    wanted = {part: sizes for part, sizes in modules.items() if not {part, part.partition(".")[2]} & left_out}
    assert {in_layer(f"x.{linear.name}"): linear[1:3] for linear in spec.linears} == wanted
    absent = modules.keys() - wanted.keys()
    assert left_out <= absent | {part.partition(".")[2] for part in absent}


def test_a_weight_that_several_layers_use_is_counted_once(family: tuple[str, Any, ModelSpec]) -> None:
    _name, model, spec = family
    places = {in_layer(f"x.{linear.name}") for linear in spec.linears}
    weights = {
        id(module.weight): module.weight.numel()
        for part, module in decoder_of(model).named_modules()
        if LAYER.match(f".x.{part}") and in_layer(f"x.{part}") in places
    }
    assert spec.stored_linear_weights == sum(weights.values())


def test_parameters_are_those_of_the_text_decoder_and_its_head(family: tuple[str, Any, ModelSpec]) -> None:
    _name, model, spec = family
    every = {id(p): p.numel() for p in model.parameters()}
    held = {id(p): p.numel() for p in decoder_of(model).parameters()}
    held |= {id(p): p.numel() for p in model.get_output_embeddings().parameters()}
    assert spec.parameters == pytest.approx(sum(held.values()), rel=1e-3)
    assert spec.parameters + spec.other_parameters == pytest.approx(sum(every.values()), rel=1e-3)


def test_layers_heads_and_experts_are_those_of_the_config(family: tuple[str, Any, ModelSpec]) -> None:
    name, model, spec = family
    text = model.config.get_text_config()
    assert (spec.layers, spec.hidden, spec.vocab) == (4, 64, 512)
    heads = 0 if name in WITHOUT_ATTENTION else text.num_attention_heads
    assert spec.heads == heads
    assert spec.kv_heads == (getattr(text, "num_key_value_heads", heads) if heads else 0)
    assert spec.head_dim == (24 if "deepseek" in name else 16 if heads else 0)
    fused = sum(p.numel() for n, p in decoder_of(model).named_parameters() if ".experts." in f".{n}" and p.dim() == 3)
    assert spec.expert_weights == pytest.approx(fused, rel=0.02)  # gpt-oss has biases too
    chosen = 0.25 if name == "llama4" else 0.5
    assert spec.active_experts == (chosen if fused else 1.0)
    assert spec.kinds == KINDS.get(name, ())
