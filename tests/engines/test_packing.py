"""Does the engine see at load what a model can do: packing, heads, layers that take an adapter?"""

import math
from pathlib import Path

import pytest
import torch
import transformers
from support import tiny

from lorafit.engines.torch import self_check
from lorafit.engines.torch.attention import segment_attention
from lorafit.engines.torch.loss import LMHead
from lorafit.errors import ConfigError, ModelError


def test_fused_experts_are_named_as_not_trained(models: Path) -> None:
    engine = tiny.open_engine(models / "mixtral", tiny.make_plan())
    assert any("experts" in note for note in engine.facts.notes)
    assert engine.generic.packs


def test_a_model_without_linear_layers_is_refused_with_words(models: Path) -> None:
    with pytest.raises(ModelError, match="no linear layers"):
        tiny.open_engine(models / "gpt2", tiny.make_plan())


def test_a_head_that_we_do_not_know_is_refused_rather_than_trained_wrongly(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def without_the_rest(model: transformers.PreTrainedModel) -> LMHead:
        return LMHead(model.get_output_embeddings())

    monkeypatch.setattr("lorafit.engines.torch.engine.head_of", without_the_rest)
    tiny.open_engine(models / "llama", tiny.make_plan())
    with pytest.raises(ModelError, match="way of its own"):
        tiny.open_engine(models / "granite", tiny.make_plan())


def test_a_packing_check_that_overflows_is_not_passed(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("lorafit.engines.torch.self_check.packing_error", lambda *_: (0.0, math.nan))
    assert not tiny.open_engine(models / "llama", tiny.make_plan()).generic.packs


def test_the_packing_check_does_not_overflow_in_fp16(models: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tiny.save_model("llama", models / "wide", vocab_size=60_000)
    engine = tiny.open_engine(folder, tiny.make_plan(precision="fp16"))
    assert engine.generic.packs
    with engine._without_dropout_and_nonzero_b():
        parameters = list(engine._parameters().values())
        assert self_check.worst_packing_error(engine.model, engine.head, parameters, "cpu") < 0.01


def test_lora_goes_into_the_language_model_and_not_into_an_eye_with_more_layers(tmp_path: Path) -> None:
    name, text = tiny.FAMILIES["gemma3"]
    eye = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 5, "num_attention_heads": 4,
           "image_size": 28, "patch_size": 14}  # fmt: skip
    config = transformers.Gemma3Config(
        text_config=getattr(transformers, name)(**tiny.SHAPE, **text).to_dict(),
        vision_config=eye,
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


def test_the_packing_check_sees_attention_that_leaks_between_samples(
    models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan())
    assert engine.generic.packs
    real = torch.Tensor.tolist
    monkeypatch.setattr(torch.Tensor, "tolist", lambda t: [0, 17] if t.dtype == torch.int32 else real(t))
    assert engine._check_packing() != []
    assert not engine.generic.packs


def test_the_shares_of_lora_targets(models: Path) -> None:
    engine = tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj, model.layers.1.mlp.up_proj"))
    assert len(engine.layers) == 4
    with pytest.raises(ConfigError) as error:
        tiny.open_engine(models / "llama", tiny.make_plan(lora_targets="q_proj,nonsense"))
    assert error.value.found == "nonsense"
    assert "q_proj" in str(error.value.fix)
