"""Adapters that peft and mlx-lm made: every engine computes with them what their own program computes."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
import transformers
from safetensors.numpy import load_file
from support import engine_variants, float64_reference, tiny
from support.engine_variants import NO_MLX, SAMPLES, Way, every_way

from lorafit.run_folders.adapter import read_adapter, read_plain_config

IDS = list(range(5, 25))
PATTERNS: dict[str, Any] = {
    "rank_pattern": {"q_proj": 6, r"layers\.1\.mlp\..*": 2, "model.layers.2.mlp.up_proj": 3},
    "alpha_pattern": {"self_attn.v_proj": 20, "^model.layers.[01].mlp.down_proj": 2.5},
}
# Adapters as their authors describe them to peft; lorafit reads what peft makes of the description.
ADAPTERS: dict[str, dict[str, Any]] = {
    "rslora": {"target_modules": ["q_proj", "down_proj"], "use_rslora": True},
    "patterns": {"target_modules": "all-linear", **PATTERNS},
    "patterns, rslora": {
        "target_modules": ["q_proj", "v_proj", "up_proj", "down_proj"],
        "use_rslora": True,
        **PATTERNS,
    },
    "one layer": {"target_modules": ["model.layers.1.mlp.up_proj"]},
    "some layers": {"target_modules": ["q_proj", "o_proj"], "layers_to_transform": [0, 2], "layers_pattern": "layers"},
    "regular expression": {"target_modules": r".*\.[12]\..*(q|gate)_proj"},
    "excluded": {"target_modules": "all-linear", "exclude_modules": ["k_proj", "model.layers.0.mlp.up_proj"]},
    "bias without biases": {"target_modules": ["q_proj"], "bias": "all"},
}


@pytest.fixture(scope="module")
def llama(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny model."""
    return tiny.save_model("llama", tmp_path_factory.mktemp("llama"), tie_word_embeddings=False)


@pytest.fixture(scope="module", params=ADAPTERS)
def made(request: pytest.FixtureRequest, llama: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter for the tiny model, made by peft, with nonzero lora_B."""
    folder = tmp_path_factory.mktemp("made")
    base = transformers.AutoModelForCausalLM.from_pretrained(llama)
    torch.manual_seed(1)
    lora = peft.LoraConfig(
        r=4, lora_alpha=10, init_lora_weights=False, task_type="CAUSAL_LM", **ADAPTERS[request.param]
    )
    peft.get_peft_model(base, lora).save_pretrained(str(folder))
    return folder


def last_logits(way: Way, folder: Path, adapter: Path | None) -> np.ndarray:
    """Return the engine's logits of the token after IDS."""
    engine: Any = way.open(folder, None)
    if adapter is not None:
        engine.load_adapter(adapter)
    if way.engine == "mlx":
        return np.array(engine.body.next_logits(engine.params, IDS, engine.body.new_cache()))
    engine.model.set_attn_implementation("eager")
    with torch.no_grad():
        logits: np.ndarray = engine.model(torch.tensor([IDS])).logits[0, -1].numpy()
    return logits


def right_logits(folder: Path, adapter: Path) -> np.ndarray:
    """Return the logits of peft itself in float64."""
    with torch.no_grad():
        logits: np.ndarray = float64_reference.peft_model(folder, adapter)(torch.tensor([IDS])).logits[0, -1].numpy()
    return logits


@every_way
def test_an_adapter_of_peft_answers_as_in_peft(way: Way, llama: Path, made: Path) -> None:
    right = right_logits(llama, made)
    assert np.abs(last_logits(way, llama, made) - right).max() < 1e-4 * np.abs(right).max()
    assert np.abs(last_logits(way, llama, None) - right).max() > 1e-3 * np.abs(right).max()


@every_way
def test_training_from_an_adapter_with_patterns_has_the_gradients_of_peft(
    way: Way, llama: Path, made: Path, tmp_path: Path
) -> None:
    config = read_plain_config(made)
    plan = tiny.make_plan(
        token_budget=100,
        lora_r=config.r,
        lora_alpha=config.alpha,
        lora_targets=",".join(config.target_modules),
        rank_pattern=config.rank_pattern,
        alpha_pattern=config.alpha_pattern,
    )
    right = float64_reference.reference(llama, made, plan, SAMPLES)
    loss, gradients = engine_variants.loss_and_gradients(way, llama, plan, made, tmp_path)
    assert loss == pytest.approx(right.loss, rel=1e-5)
    assert engine_variants.worst(gradients, right.gradients) < 1e-4
    # The weights that the step saved are an adapter that peft loads with the same ranks and scales.
    saved = last_logits(way, llama, tmp_path)
    assert np.abs(saved - right_logits(llama, tmp_path)).max() < 1e-4 * np.abs(saved).max()
    assert read_plain_config(tmp_path) == config.__class__(**{**vars(config), "base_model": str(llama)})


@NO_MLX
@pytest.mark.parametrize("keys", [["self_attn.q_proj", "mlp.down_proj"], None], ids=["keys", "all"])
@pytest.mark.parametrize("family", ["llama", "phi3"])
def test_an_adapter_of_mlx_lm_answers_as_in_mlx_lm(family: str, keys: list[str] | None, tmp_path: Path) -> None:
    from mlx import core as mx
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    if family == "phi3" and keys:
        keys = ["self_attn.qkv_proj"]
    folder = tiny.save_model(
        family, tmp_path / "model", **({"tie_word_embeddings": False} if family == "llama" else {})
    )
    model = load_model(folder)[0]
    model.freeze()
    lora = {"rank": 3, "scale": 1.7, "dropout": 0.0, **({"keys": keys} if keys else {})}
    linear_to_lora_layers(model, 2, lora)
    mx.random.seed(1)
    weights = {n: mx.random.normal(w.shape) * 0.2 for n, w in tree_flatten(model.trainable_parameters())}
    model.load_weights(list(weights.items()), strict=False)
    adapter = tmp_path / "adapter"
    adapter.mkdir()
    mx.save_safetensors(str(adapter / "adapters.safetensors"), weights)
    facts = {"fine_tune_type": "lora", "num_layers": 2, "lora_parameters": lora, "model": str(folder)}
    (adapter / "adapter_config.json").write_text(json.dumps(facts))
    right = np.array(model(mx.array([IDS]))[0, -1])
    for way in engine_variants.WAYS:
        assert np.abs(last_logits(way, folder, adapter) - right).max() < 1e-4 * np.abs(right).max()
    config, tensors = read_adapter(adapter)
    assert (config.base_model, config.r) == (str(folder), 3)
    assert config.alpha == pytest.approx(5.1)
    assert len(tensors) == len(load_file(adapter / "adapters.safetensors")) == 2 * len(config.target_modules)
