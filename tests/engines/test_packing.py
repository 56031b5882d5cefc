"""At load the engine finds what a model supports: packing, its LM head, and layers for adapters."""

import math
from dataclasses import replace
from pathlib import Path

import pytest
import torch
import transformers
from safetensors.torch import load_file, save_file
from support import tiny

from lorafit.engines.base import Setup
from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import SEGMENT_ATTENTION, segment_attention
from lorafit.engines.torch.engine import TorchEngine
from lorafit.engines.torch.loss import LMHead
from lorafit.engines.torch.model import load_base
from lorafit.errors import ConfigError, ModelError


def test_fused_experts_pack(models: Path) -> None:
    assert tiny.open_engine(models / "mixtral", tiny.make_plan()).generic.packs


def test_a_model_without_linear_layers_is_refused(models: Path) -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        tiny.open_engine(models / "gpt2", tiny.make_plan())


def test_a_head_that_lorafit_does_not_know_is_refused_rather_than_trained_wrongly(tmp_path: Path) -> None:
    """BERT's head has a layer, an activation and a norm before its output embeddings."""
    config = transformers.BertConfig(**tiny.SHAPE, is_decoder=True)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    with pytest.raises(ModelError, match="non-standard way"):
        tiny.open_engine(tmp_path, tiny.make_plan())


def test_a_head_without_its_logit_scale_is_refused(models: Path) -> None:
    """Granite divides its logits; Llama does not, so that its output embeddings are the whole head."""
    setup = Setup(models / "llama", "llama", "cpu", "fp32")
    llama, granite = load_base(setup), load_base(replace(setup, folder=models / "granite", model_name="granite"))
    tolerance = self_check.TOLERANCE[torch.float32]
    self_check.refuse_unknown_head(llama, LMHead(llama.get_output_embeddings()), setup, tolerance)
    with pytest.raises(ModelError, match="non-standard way"):
        self_check.refuse_unknown_head(granite, LMHead(granite.get_output_embeddings()), setup, tolerance)


def packing_error(engine: TorchEngine) -> tuple[float, float]:
    """Return the errors of packed logits and gradients, as the engine measures them at load."""
    engine.model.set_attn_implementation(SEGMENT_ATTENTION)
    with engine._without_dropout_and_nonzero_b():
        parameters = list(engine._parameters().values())
        return self_check.packing_error(engine.model, engine.head, parameters, "cpu")


def test_a_packing_check_that_overflows_is_not_passed(tmp_path: Path) -> None:
    """Large logits give large gradients, which grow at each norm of the small hidden states until fp16 overflows."""
    tiny.save_model("llama", tmp_path, tie_word_embeddings=False)
    weights = load_file(tmp_path / "model.safetensors")
    for name, weight in weights.items():
        if name.endswith(("embed_tokens.weight", "o_proj.weight", "down_proj.weight")):
            weight *= 1e-3
        if name.endswith("lm_head.weight"):
            weight *= 1e4
    save_file(weights, tmp_path / "model.safetensors", {"format": "pt"})
    engine = tiny.open_engine(tmp_path, tiny.make_plan(precision="fp16"))
    assert not engine.generic.packs
    logits, gradients = packing_error(engine)
    assert logits < 0.01
    assert math.isnan(gradients)


def test_the_packing_check_does_not_overflow_in_fp16(tmp_path: Path) -> None:
    folder = tiny.save_model("llama", tmp_path, vocab_size=60_000)
    engine = tiny.open_engine(folder, tiny.make_plan(precision="fp16"))
    assert engine.generic.packs
    assert self_check.worst(*packing_error(engine)) < 0.01


def test_lora_goes_into_the_language_model_and_not_into_a_vision_tower_with_more_layers(tmp_path: Path) -> None:
    name, text = tiny.FAMILIES["gemma3"]
    vision = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
              "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=getattr(transformers, name)(**tiny.SHAPE, **text).to_dict(),
        vision_config=vision,
        mm_tokens_per_image=4,
    )
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(tmp_path)
    engine = tiny.open_engine(tmp_path, tiny.make_plan())
    assert len(engine.layers) == 3 * 7
    assert all("language_model" in name for name in engine.layers)
    assert engine.generic.packs


def test_attention_comes_back_contiguous() -> None:
    q, k, v = (torch.randn(1, heads, 10, 8) for heads in (4, 2, 2))
    out, _none = segment_attention(torch.nn.Module(), q, k, v, None, cu_seq_lens_q=torch.tensor([0, 4, 10]))
    assert out.shape == (1, 10, 4, 8)
    assert out.is_contiguous()


def test_the_packing_check_sees_attention_that_leaks_between_samples(models: Path, leaking_attention: str) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    assert engine.generic.packs
    engine.model.set_attn_implementation(leaking_attention)
    assert any("computed one at a time" in note for note in engine._check_packing())
    assert not engine.generic.packs


def test_lora_targets_are_full_names_or_their_last_parts(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj, model.layers.1.mlp.up_proj"))
    assert len(engine.layers) == 4
    with pytest.raises(ConfigError) as error:
        tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj,nonsense"))
    assert error.value.found == "nonsense"
    assert "q_proj" in str(error.value.fix)
