"""Merged models compute what peft computes with base and adapter, in every type and with every kind of names."""

import json
from collections.abc import Callable
from pathlib import Path

import peft
import pytest
import torch
from support.model_zoo.folder import text_logits
from transformers import (
    AutoModelForCausalLM,
    AutoModelForImageTextToText,
    AutoTokenizer,
    GenerationConfig,
    PreTrainedModel,
)

from lorafit.exporters import weight_writer
from lorafit.exporters.chat_files import without_marks
from lorafit.exporters.export import Exported
from lorafit.models.weight_files import read_headers, weight_files

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]
IDS = torch.arange(3, 40)
# One with biases, a tied head, experts that are fused, other names in the files, and wrappers with a vision tower.
FAMILIES = ("llama", "qwen2", "gemma3_text", "mixtral", "phi3", "qwen3_vl", "mistral3", "kimi_linear", "lfm2")
DTYPES = {"bf16": (torch.bfloat16, 0.05), "fp16": (torch.float16, 0.01), "fp32": (torch.float32, 1e-4)}


def load(folder: Path, kind: type | None = None) -> PreTrainedModel:
    settings = json.loads((folder / "config.json").read_text("utf-8"))
    auto = AutoModelForImageTextToText if "vision_config" in settings else AutoModelForCausalLM
    model: PreTrainedModel = auto.from_pretrained(folder, dtype=torch.float32).eval()
    return model


def live_logits(base: Path, adapter: Path) -> torch.Tensor:
    """Return the logits [T, V] of base and adapter by peft."""
    model = peft.PeftModel.from_pretrained(load(base), adapter)
    with torch.no_grad():
        return text_logits(model.get_base_model(), IDS)


def logits(folder: Path) -> torch.Tensor:
    with torch.no_grad():
        return text_logits(load(folder), IDS)


def distance(found: torch.Tensor, wanted: torch.Tensor) -> float:
    return float((found - wanted).norm() / wanted.norm())


@pytest.mark.parametrize("family", FAMILIES)
def test_a_merged_model_computes_what_peft_does(base_and_adapter: Folders, run_export: Export, family: str) -> None:
    base, adapter = base_and_adapter(family)
    exported = run_export(adapter)
    wanted = live_logits(base, adapter)
    assert distance(logits(base), wanted) > 0.01
    assert distance(logits(exported.folder), wanted) < 1e-5
    names = [[h.name for f in weight_files(folder) for h in read_headers(f)] for folder in (base, exported.folder)]
    assert sorted(names[0]) == sorted(names[1])


@pytest.mark.parametrize("dtype", DTYPES)
def test_weights_have_the_type_that_is_asked_for(base_and_adapter: Folders, run_export: Export, dtype: str) -> None:
    base, adapter = base_and_adapter("qwen2")
    exported = run_export(adapter, dtype=dtype)
    kind, limit = DTYPES[dtype]
    model = AutoModelForCausalLM.from_pretrained(exported.folder, dtype="auto")
    assert {parameter.dtype for parameter in model.parameters()} == {kind}
    assert distance(logits(exported.folder), live_logits(base, adapter)) < limit
    # Rounded once, to the nearest value, as torch does.
    whole = peft.PeftModel.from_pretrained(load(base), adapter).merge_and_unload()
    state = model.state_dict()
    for name, wanted in whole.state_dict().items():
        close = (state[name] == wanted.to(kind)).float().mean()
        assert close > 0.999, name


def test_a_tied_head_stays_tied(base_and_adapter: Folders, run_export: Export) -> None:
    exported = run_export(base_and_adapter("gemma3_text")[1])
    assert not [h for f in weight_files(exported.folder) for h in read_headers(f) if "lm_head" in h.name]
    model = load(exported.folder)
    assert model.get_input_embeddings().weight is model.get_output_embeddings().weight


def test_a_large_model_is_written_in_shards(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(weight_writer, "SHARD_BYTES", 60_000)
    base, adapter = base_and_adapter("llama")
    exported = run_export(adapter)
    files = weight_files(exported.folder)
    assert len(files) > 2
    assert distance(logits(exported.folder), live_logits(base, adapter)) < 1e-5


def test_end_tokens_template_and_certificate_are_written(base_and_adapter: Folders, run_export: Export) -> None:
    exported = run_export(base_and_adapter("llama")[1])
    assert GenerationConfig.from_pretrained(exported.folder).eos_token_id == [2]
    assert AutoTokenizer.from_pretrained(exported.folder).chat_template
    facts = json.loads((exported.folder / "export.json").read_text("utf-8"))
    assert facts["forms"][0]["behaviour"][0]["rows"] == "probe"
    assert facts["forms"][0]["behaviour"][0]["ratio"] < 1e-5
    assert min(facts["forms"][0]["survival"]["slopes"].values()) > 0.99
    assert set(facts["files"]) == {p.name for p in exported.folder.iterdir()} - {"export.json"}
    assert str(exported.folder.parent) not in json.dumps(facts)


def test_equal_exports_have_equal_bytes(base_and_adapter: Folders, run_export: Export, tmp_path: Path) -> None:
    adapter = base_and_adapter("llama")[1]
    first = run_export(adapter)
    second = run_export(adapter, output=str(tmp_path / "again"))
    assert first.certificate.files == second.certificate.files


@pytest.mark.parametrize(
    ("template", "wanted"),
    [
        ("a{% generation %}b{% endgeneration %}c", "a{# #}b{# #}c"),
        ("a {%- generation -%} b {%-endgeneration-%} c", "a {#- -#} b {#- -#} c"),
        ("{% if generation %}x{% endif %}", "{% if generation %}x{% endif %}"),
    ],
)
def test_marks_of_the_assistants_text_become_comments(template: str, wanted: str) -> None:
    assert without_marks(template) == wanted
