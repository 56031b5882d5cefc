"""Types of models beyond plain decoders: multimodal classes, chunks, unused layers, caches of their own."""

import re
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny
from support.plans import VOCAB

from lorafit.engines.base import Setup
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.model_class import causal_lm_of
from lorafit.errors import ModelError
from lorafit.models import lora_targets
from lorafit.sampling import Sampling

VISION = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4, "image_size": 28,
          "patch_size": 14}  # fmt: skip
TOWER = {"depth": 2, "hidden_size": 32, "intermediate_size": 64, "num_heads": 2, "out_hidden_size": 32}
MROPE = {"rope_parameters": {"rope_type": "default", "rope_theta": 1e4, "mrope_section": [2, 1, 1]}}
GDN = {"linear_num_key_heads": 2, "linear_num_value_heads": 4, "linear_key_head_dim": 8, "linear_value_head_dim": 8}
WRAPPERS: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "qwen3_5": ("Qwen3_5Config", "model.language_model", {**GDN, "num_hidden_layers": 4, "head_dim": 8}, TOWER),
    "qwen3_vl": ("Qwen3VLConfig", "model.language_model", {**MROPE, "head_dim": 8}, TOWER),
    "mistral3": ("Mistral3Config", "model.language_model", {"model_type": "ministral3"}, {**VISION, "model_type": "pixtral"}),
    "llama4": ("Llama4Config", "language_model.model", {**tiny.LONERS["llama4"][1]}, {
        **VISION, "vision_output_dim": 32, "projector_input_dim": 32, "projector_output_dim": 32}),
    "smolvlm": ("SmolVLMConfig", "model.text_model", {"model_type": "llama"}, VISION),
}  # fmt: skip


@pytest.fixture(scope="session")
def wrapped(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Return the folder of a multimodal model of each type, as it lies on a hub."""
    folders = {}
    for kind, (name, _decoder, text, vision) in WRAPPERS.items():
        settings = {"text_config": {**tiny.SHAPE, **text}, "vision_config": vision}
        config = getattr(transformers, name)(**settings, tie_word_embeddings=False)
        folder = tmp_path_factory.mktemp(kind)
        folders[kind] = tiny.save_random(config, folder, transformers.AutoModelForImageTextToText)
    return folders


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_of_a_multimodal_model_is_trained_without_its_towers(wrapped: dict[str, Path], kind: str) -> None:
    engine = tiny.open_engine(wrapped[kind], tiny.make_plan())
    assert engine.layers
    assert all(name.startswith(f"{WRAPPERS[kind][1]}.layers.") for name in engine.layers)
    names = " ".join(name for name, _p in engine.model.named_parameters())
    assert "vision" not in names
    assert "visual" not in names


@pytest.mark.parametrize("kind", WRAPPERS)
def test_the_text_part_of_a_multimodal_model_computes_what_the_whole_model_computes(
    wrapped: dict[str, Path], kind: str
) -> None:
    engine = tiny.open_engine(wrapped[kind], None)
    whole = transformers.AutoModelForImageTextToText.from_pretrained(wrapped[kind]).eval()
    ids = torch.arange(3, 40)[None] % VOCAB
    with torch.no_grad():
        wanted = causal_lm_of(whole)(input_ids=ids).logits
        engine.model.set_attn_implementation("sdpa")
        found = causal_lm_of(engine.model)(input_ids=ids).logits
    torch.testing.assert_close(found, wanted, rtol=1e-4, atol=1e-4)


def test_a_text_pass_that_needs_a_module_beside_the_decoder_keeps_it(tmp_path: Path) -> None:
    """Gemma 3n replaces the tokens of images with an embedding of its vision part, in every pass."""
    text = {**tiny.SHAPE, "num_hidden_layers": 2, "head_dim": 8, "sliding_window": 8, "hidden_size_per_layer_input": 8,
            "vocab_size_per_layer_input": VOCAB, "laurel_rank": 4, "num_kv_shared_layers": 0, "intermediate_size": [64] * 2,
            "layer_types": ["sliding_attention", "full_attention"], "activation_sparsity_pattern": [0.0] * 2}  # fmt: skip
    kind = transformers.Gemma3nConfig(text_config=text).vision_config.model_type
    if not transformers.utils.is_timm_available() and kind == "gemma3n_vision":
        pytest.skip("Gemma 3n needs timm, which is not installed")
    config = transformers.Gemma3nConfig(
        text_config=text,
        vision_config={"vocab_offset": 90, "vocab_size": 2},
        audio_config={"vocab_offset": 92, "vocab_size": 2},
    )
    tiny.save_random(config, tmp_path, transformers.AutoModelForImageTextToText)
    engine = tiny.open_engine(tmp_path, tiny.make_plan())
    assert not any("vision_tower" in name for name, _p in engine.model.named_parameters())


def test_an_encoder_decoder_model_is_refused_with_its_type(tmp_path: Path) -> None:
    shape = {"vocab_size": 64, "d_model": 16, "d_kv": 8, "d_ff": 32, "num_layers": 2, "num_heads": 2}
    transformers.T5ForConditionalGeneration(transformers.T5Config(**shape)).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="only decoder language models can") as error:
        tiny.open_engine(tmp_path, tiny.make_plan())
    assert error.value.found == "model_type: t5"


def test_a_layer_that_gets_no_gradient_gets_no_adapter(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Jamba multiplies by the weight of dt_proj itself. The name is known, so the test makes it unknown."""
    monkeypatch.setattr(lora_targets, "UNCALLED", re.compile("nothing"))
    config = transformers.JambaConfig(
        **{**tiny.SHAPE, "num_hidden_layers": 4}, attn_layer_period=2, attn_layer_offset=1, expert_layer_period=2,
        expert_layer_offset=1, num_experts=4, mamba_d_state=8, use_mamba_kernels=False
    )  # fmt: skip
    engine = tiny.open_engine(tiny.save_random(config, tmp_path), tiny.make_plan())
    assert not any("dt_proj" in name for name in engine.layers)
    assert "No adapter on 2 layers that get no gradient: dt_proj." in engine.facts.notes
    assert engine.adapter is not None
    assert engine.adapter.target_modules == list(engine.layers)
    engine.save(tmp_path / "saved")
    engine.load(tmp_path / "saved")


def test_attention_in_chunks_is_not_packed(models: Path) -> None:
    """The check's samples are shorter than a chunk of a real model; the check makes the chunks smaller."""
    config = {"attention_chunk_size": 8192}
    folder = tiny.save_model("llama4", models / "llama4-8192", **config)
    engine = tiny.open_engine(folder, tiny.make_plan())
    assert not engine.generic.packs
    assert engine.model.config.attention_chunk_size == 8192


def greedy(engine: TorchEngine, prompt: list[int], count: int) -> list[int]:
    """Return `count` greedy tokens, each from a pass over all tokens without a cache."""
    model, ids = causal_lm_of(engine.model), list(prompt)
    engine.model.set_attn_implementation("eager")
    for _i in range(count):
        with torch.no_grad():
            ids.append(int(model(input_ids=torch.tensor([ids]), use_cache=False).logits[0, -1].argmax()))
    return ids[len(prompt) :]


@pytest.mark.parametrize("family", ["bamba", "minimax", "mamba", "rwkv", "llama4", "gpt_oss"])
def test_an_answer_equals_passes_without_a_cache(models: Path, family: str) -> None:
    engine = tiny.open_engine(models / family, None)
    prompts = [list(range(3, 20)), list(range(10, 25))]
    sampling = Sampling(temperature=0.0, max_new_tokens=10)
    wanted = {place: greedy(engine, prompt, 10) for place, prompt in enumerate(prompts)}
    assert {place: list(engine.generate(prompt, sampling)) for place, prompt in enumerate(prompts)} == wanted
    answers: dict[int, list[int]] = {}
    for some in engine.answers(prompts, sampling):
        answers |= some
    assert answers == wanted


def test_weights_of_a_tower_that_is_not_loaded_may_be_missing_or_damaged(
    wrapped: dict[str, Path], tmp_path: Path
) -> None:
    for path in wrapped["qwen3_vl"].iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    weights = load_file(tmp_path / "model.safetensors")
    text = {name: weight for name, weight in weights.items() if "visual" not in name}
    assert len(text) < len(weights)
    save_file(text, tmp_path / "model.safetensors", {"format": "pt"})
    assert TorchEngine.open(Setup(tmp_path, "x", "cpu", "fp32")).model is not None
