"""peft loads the adapters that lorafit writes, with lorafit's logits, in every kind of model where names are a trap."""

import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import torch
from peft.utils import transformers_weight_conversion as conversion
from support.model_zoo.folder import save_family as save_zoo_family
from transformers import AutoConfig

from lorafit.engines.torch.lora import DropoutKeys
from lorafit.engines.torch.model import add_lora, find_targets, short
from lorafit.engines.torch.model_class import base_facts, model_class
from lorafit.engines.torch.peft_check import check
from lorafit.events import AdapterChecked
from lorafit.run_folders import peft_form
from lorafit.run_folders.adapter import AdapterConfig, lora_names, modules_of, read_adapter, write_adapter
from lorafit.training import peft_check

# peft turns the names of the dense or shared layers' projections into names of experts (peft issue 3711).
MOE = ("afmoe", "deepseek_v2", "deepseek_v3", "deepseek_v32", "dots1", "ernie4_5_moe", "exaone_moe", "glm4_moe",
       "glm4_moe_lite", "glm_moe_dsa", "hunyuan_v1_moe", "qwen3_next", "solar_open")  # fmt: skip
# Short names match other modules too: towers, layers of a shared block, experts.
AMBIGUOUS = ("qwen3_moe", "zamba2", "gemma4_text", "bamba", "gemma3", "mistral3", "qwen3_vl", "qwen2_5_vl", "internvl")
MAMBA = ("mamba", "mamba2", "falcon_h1", "nemotron_h")  # peft refuses their out_proj in every form
IDS = torch.arange(3, 43)[None] % 50
FAST = ("qwen3_next", "deepseek_v3", "gemma3")
LOADED = [*MOE, *AMBIGUOUS]
DROPOUT = 0.05


def save_family(kind: str, folder: Path) -> Path:
    save_zoo_family(kind, folder)
    return folder


def load(folder: Path) -> Any:
    kind = model_class(AutoConfig.from_pretrained(folder))
    return kind.from_pretrained(folder, dtype=torch.float32, attn_implementation="eager").eval()


def tuned(base: Path, adapter: Path, targets: str = "all-linear", config: AdapterConfig | None = None) -> torch.Tensor:
    """Write a random adapter for `base` into `adapter`; return the logits of lorafit's layers with it."""
    model = load(base)
    config = config or AdapterConfig(str(base), 4, 8.0, DROPOUT, find_targets(model, targets))
    layers = add_lora(model, config, DropoutKeys(0.0))
    generator, tensors = np.random.default_rng(0), {}
    for name, layer in layers.items():
        for own, parameter in zip(lora_names(name), (layer.lora_A, layer.lora_B), strict=True):
            tensors[own] = generator.normal(0, 0.2, parameter.shape).astype(np.float32)
            with torch.no_grad():
                parameter.copy_(torch.from_numpy(tensors[own]))
    write_adapter(adapter, config, tensors, base_facts(model))
    return logits(model)


def logits(model: Any) -> torch.Tensor:
    with torch.no_grad():
        found: torch.Tensor = model(input_ids=IDS).logits
    return found


def edit(adapter: Path, **changes: Any) -> None:
    peft_form.change_settings(adapter, changes)


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind in FAST else pytest.mark.slow) for kind in LOADED]
)
def test_peft_loads_all_of_an_adapter_and_computes_the_same(kind: str, tmp_path: Path) -> None:
    base, adapter = save_family(kind, tmp_path / "base"), tmp_path / "adapter"
    wanted = tuned(base, adapter)
    report = check(base, adapter)
    assert (report.complete, report.changes) == (True, {}), report
    with warnings.catch_warnings(record=True) as seen:
        warnings.simplefilter("always")
        model = getattr(peft, report.loader).from_pretrained(adapter, dtype=torch.float32, attn_implementation="eager")
    assert not [str(w.message) for w in seen if not issubclass(w.category, DeprecationWarning | FutureWarning)]
    found = logits(model.eval())
    plain = logits(load(base))
    assert (plain - wanted).norm() / wanted.norm() > 1e-2, "the adapter changes the logits"
    assert (found - wanted).norm() / wanted.norm() < 1e-4
    if kind != "zamba2":  # its blocks share one weight but have an adapter each, so no weight can hold them all
        merged = logits(model.merge_and_unload())
        assert (merged - wanted).norm() / wanted.norm() < 1e-4


@pytest.mark.parametrize(
    "kind", [pytest.param(kind, marks=() if kind == "dots1" else pytest.mark.slow) for kind in MOE]
)
def test_the_check_finds_what_peft_drops_and_the_form_that_works(kind: str, tmp_path: Path) -> None:
    base, adapter = save_family(kind, tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter)
    modules = modules_of(read_adapter(adapter)[1])
    written = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    for names in (sorted({short(name) for name in modules}), modules, peft_form._expression(modules)):
        edit(adapter, target_modules=names, target_parameters=None)
        report = check(base, adapter)
        assert report.complete
        assert {*report.changes["target_parameters"]} <= {*written["target_parameters"]}, "`gate` needs no new name"
        edit(adapter, lora_dropout=DROPOUT)
        assert check(base, adapter).complete, "peft refuses dropout in this form"
        edit(adapter, lora_dropout=0.0)
    edit(adapter, **report.changes)
    assert check(base, adapter).complete
    assert not check(base, adapter).changes


def test_the_check_says_what_is_dropped_and_made_anew(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = save_family("glm4_moe", tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter)
    edit(adapter, target_modules=["q_proj", "gate_proj", "up_proj", "down_proj"], target_parameters=None)
    monkeypatch.setattr("lorafit.engines.torch.peft_check.other_forms", lambda *_facts: iter(()))
    report = check(base, adapter)
    assert not report.complete
    assert any("layers.0.mlp.gate_proj" in name for name in report.dropped)
    assert any("k_proj" in name for name in report.dropped)
    assert any("experts" in name for name in report.new)
    assert report.taken + len(report.dropped) == report.total


@pytest.mark.parametrize("kind", ["gemma3", pytest.param("zamba2", marks=pytest.mark.slow)])
def test_short_names_that_match_other_modules_are_found(kind: str, tmp_path: Path) -> None:
    base, adapter = save_family(kind, tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter)
    edit(adapter, target_modules=sorted({short(name) for name in modules_of(read_adapter(adapter)[1])}))
    report = check(base, adapter)
    assert report.complete
    assert isinstance(report.changes["target_modules"], list)


def test_another_scale_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    base, adapter = save_family("dots1", tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter, "q_proj")
    monkeypatch.setattr("lorafit.run_folders.adapter.AdapterConfig.scale_of", lambda *_facts: 3.0)
    report = check(base, adapter)
    assert not report.complete
    assert "scale" in (report.error or "")


@pytest.mark.parametrize("kind", ["mamba2", *(pytest.param(k, marks=pytest.mark.slow) for k in MAMBA if k != "mamba2")])
def test_a_layer_that_peft_refuses_gets_no_adapter_and_is_named(kind: str, tmp_path: Path) -> None:
    base, adapter = save_family(kind, tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter)
    assert check(base, adapter).complete
    model = load(base)
    refused = next(name for name, module in model.named_modules() if name.endswith("out_proj"))
    tuned(base, tmp_path / "refused", config=AdapterConfig(str(base), 4, 8.0, DROPOUT, [refused]))
    report = check(base, tmp_path / "refused")
    assert not report.complete
    assert "out_proj" in (report.error or "")


def test_ranks_and_alphas_of_single_layers_stay_with_layers_named_by_their_weights(tmp_path: Path) -> None:
    base, adapter = save_family("dots1", tmp_path / "base"), tmp_path / "adapter"
    names = find_targets(load(base), "all-linear")
    config = AdapterConfig(
        str(base), 4, 8.0, 0.0, names, rank_pattern={"gate_proj": 2, "q_proj": 3}, alpha_pattern={"gate_proj": 9.0}
    )
    wanted = tuned(base, adapter, config=config)
    report = check(base, adapter)
    assert (report.complete, report.changes) == (True, {}), report
    model = peft.PeftModel.from_pretrained(load(base), adapter)
    assert (logits(model) - wanted).norm() / wanted.norm() < 1e-4


def test_the_known_types_are_those_of_the_installed_peft() -> None:
    """If this fails after an update, change the tables in peft_form.py, or delete them if peft has fixed its issue."""
    table: dict[str, str] = vars(conversion)["_MODEL_TO_CONVERSION_PATTERN"]
    assert {kind for kind, like in table.items() if like == "qwen2_moe"} == peft_form.LIKE_QWEN2_MOE
    assert set(conversion._MOE_TARGET_MODULE_MAPPING["qwen2_moe"]) == peft_form.EXPERT_NAMES


def test_the_child_process_answers_and_writes_its_answer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    base, adapter = save_family("qwen3_vl", tmp_path / "base"), tmp_path / "adapter"
    tuned(base, adapter)
    (adapter / "README.md").write_text("# a\n", "utf-8")
    edit(adapter, auto_mapping=None, task_type="CAUSAL_LM")
    beats: list[int] = []
    event = peft_check.check_adapter(adapter, base, False, lambda: beats.append(1))
    assert beats
    assert isinstance(event, AdapterChecked)
    total = len(read_adapter(adapter)[1])
    assert (event.loaded, event.tensors, event.peft) == (total, total, peft.__version__)
    assert f"{total} of {total} tensors" in event.text
    card = (adapter / "README.md").read_text("utf-8")
    assert event.text in card
    assert "AutoPeftModel.from_pretrained" in card
    settings = json.loads((adapter / "adapter_config.json").read_text("utf-8"))
    assert settings["auto_mapping"]["base_model_class"] == "Qwen3VLForConditionalGeneration"
    assert json.loads((adapter / peft_check.REPORT).read_text("utf-8"))["taken"] == total
    monkeypatch.setattr(peft_check, "PROGRAM", "lorafit.no_such_module")
    edit(adapter, auto_mapping=None, task_type="CAUSAL_LM")
    assert peft_check.check_adapter(adapter, base, False).text == event.text, "the answer is kept"
    edit(adapter, r=2)
    assert peft_check.check_adapter(adapter, base, False).peft is None, "another question"


@pytest.mark.parametrize(
    ("change", "why"),
    [
        (("find_spec", lambda _name: None), "not installed"),
        (("NEEDED_BYTES", 1 << 60), "memory"),
        (("SECONDS", 0.0), "seconds"),
        (("PROGRAM", "lorafit.no_such_module"), "no_such_module"),
    ],
)
def test_a_check_that_cannot_be_made_says_why(
    change: tuple[str, Any], why: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(peft_check, change[0], change[1])
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    adapter = tmp_path / "adapter"
    config = AdapterConfig("base", 2, 2.0, 0.0, ["q_proj"])
    write_adapter(adapter, config, {name: np.ones((2, 2), np.float32) for name in lora_names("layers.0.q_proj")})
    (tmp_path / "config.json").write_text("{}", "utf-8")
    before = sorted(adapter.iterdir())
    event = peft_check.check_adapter(adapter, tmp_path, False)
    assert isinstance(event, AdapterChecked)
    assert event.peft is None
    assert why in event.text
    assert sorted(adapter.iterdir()) == before
