"""`lorafit export --to gguf|lmstudio|ollama`: files that llama.cpp computes as base and adapter do, whole or absent."""

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from gguf import GGUFReader

from lorafit import api
from lorafit.cli.app import main
from lorafit.errors import LorafitError
from lorafit.exporters import adapted, keep, measure
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.certificate import file_digests
from lorafit.exporters.export import Exported
from lorafit.exporters.gguf import export as gguf_export
from lorafit.exporters.gguf import layout
from lorafit.exporters.gguf import merged as gguf_merged
from lorafit.exporters.gguf.models_folder import models_folder
from lorafit.exporters.kept import losses

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]
needs_llama_cpp = pytest.mark.skipif(importlib.util.find_spec("xllamacpp") is None, reason="xllamacpp is not installed")
FAST, SLOW = ("llama", "gemma3", "phi3"), ("mistral", "qwen3", "gemma2")


def no_package(name: str) -> None:
    """As importlib.util.find_spec() where xllamacpp is not installed."""


@needs_llama_cpp
@pytest.mark.parametrize("family", [*FAST, *(pytest.param(name, marks=pytest.mark.slow) for name in SLOW)])
def test_files_of_several_types_answer_as_base_and_adapter(
    llama_cpp_base_and_adapter: Folders, run_export: Export, family: str
) -> None:
    exported = run_export(llama_cpp_base_and_adapter(family)[1], to="gguf", quantize="f32,f16,q8_0")
    forms = exported.certificate.forms
    assert [form.dtype for form in forms] == ["f32", "f16", "q8_0"]
    for form in forms:
        assert (exported.folder / form.name).stat().st_size == form.bytes
        assert form.strings == 1027
        assert form.runtime is not None
        assert form.runtime.startswith("llama.cpp")
    f32, f16, q8_0 = (form.behaviour[0].kl_export for form in forms)
    assert f32 < 1e-5
    if not family.startswith("gemma"):  # the random one is so sure of each token that the adapter changes none
        assert forms[0].behaviour[0].ratio is not None
        assert f32 <= f16 + 1e-6
        assert f16 < q8_0 < 0.1 * forms[0].behaviour[0].kl_base
    facts = json.loads((exported.folder / "export.json").read_text("utf-8"))
    assert facts["forms"][2]["survival"]["slopes"]
    assert api.verify_export(exported.folder).texts == 0


@needs_llama_cpp
def test_an_adapter_alone_is_measured_on_the_base(llama_cpp_base_and_adapter: Folders, run_export: Export) -> None:
    exported = run_export(llama_cpp_base_and_adapter("qwen2")[1], to="gguf", adapter_only=True)
    (form,) = exported.certificate.forms
    assert form.name.endswith("-lora.gguf")
    assert form.behaviour[0].kl_export < 1e-5 < form.behaviour[0].kl_base
    assert sorted(p.suffix for p in exported.folder.iterdir()) == [".gguf", ".json", ".md"]


def base_alone(names: dict[str, str], *_: Any) -> dict[str, Any]:
    return {}


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "the base is exported": (adapted, "deltas", base_alone),
    "rows of query and key in another order": (layout, "PERMUTED", {}),
    "no bos": (gguf_merged, "begins_with_bos", lambda *_: False),
}


@needs_llama_cpp
@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    llama_cpp_base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    adapter = llama_cpp_base_and_adapter("llama")[1]
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(LorafitError) as refused:
        run_export(adapter, to="gguf", quantize="f16")
    assert refused.value.fix
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_without_llama_cpp_files_are_written_and_not_measured(
    llama_cpp_base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    for module in (gguf_export, gguf_merged):
        monkeypatch.setattr(module, "find_spec", no_package)
    exported = run_export(llama_cpp_base_and_adapter("llama")[1], to="gguf")
    (form,) = exported.certificate.forms
    assert form.dtype == "q8_0"
    assert not form.behaviour
    assert form.survival is not None
    assert min(form.survival.slopes.values()) > 0.9
    assert 'pip install "lorafit[gguf]"' in " ".join(exported.certificate.notes)


@pytest.mark.parametrize(
    ("flags", "found"),
    [
        ({"quantize": "q3_x"}, "Unknown type"),
        ({"quantize": "q8_0", "keep": 0.9}, "--keep chooses"),
        ({"dtype": "bf16"}, "--dtype works only with"),
        ({"bits": 4}, "--bits works only with"),
        ({"to": "ollama", "quantize": "f16,q8_0"}, "one type of weights"),
        ({"to": "merged", "quantize": "q8_0"}, "--quantize works only with"),
    ],
)
def test_settings_that_do_not_fit_are_refused(
    llama_cpp_base_and_adapter: Folders, run_export: Export, tmp_path: Path, flags: dict[str, Any], found: str
) -> None:
    with pytest.raises(LorafitError) as refused:
        run_export(llama_cpp_base_and_adapter("llama")[1], **({"to": "gguf"} | flags))
    assert found in refused.value.what
    assert refused.value.fix
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_a_model_type_without_exporter_is_refused_by_name(base_and_adapter: Folders, run_export: Export) -> None:
    with pytest.raises(LorafitError) as refused:
        run_export(base_and_adapter("mixtral")[1], to="gguf")
    assert refused.value.found == "mixtral"
    assert "llama, mistral" in str(refused.value.fix)


@needs_llama_cpp
def test_a_share_is_kept_by_the_smallest_type_that_keeps_it(
    llama_cpp_base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch
) -> None:
    kept = iter([0.7, 0.96])
    monkeypatch.setattr(gguf_export, "require_known_gain", lambda *_: None)
    monkeypatch.setattr(keep, "keeps", lambda _found, share: next(kept) >= share)
    monkeypatch.setattr(measure, "_require_same", lambda *_: None)
    exported = run_export(llama_cpp_base_and_adapter("llama")[1], to="gguf", keep=0.95)
    (form,) = exported.certificate.forms
    assert form.dtype == "q4_k_m"
    assert [path.name for path in exported.folder.glob("*.gguf")] == [form.name]


@needs_llama_cpp
def test_keep_refuses_where_it_cannot_be_said_what_was_learned(
    llama_cpp_base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    with pytest.raises(LorafitError, match="cannot be said") as refused:
        run_export(llama_cpp_base_and_adapter("llama")[1], to="gguf", keep=0.95)
    assert "95%" in str(refused.value.found)
    assert not [path for path in tmp_path.iterdir() if "out" in path.name]


def test_kept_is_the_share_of_the_gain_with_an_interval() -> None:
    rng = np.random.default_rng(0)
    base = [rng.uniform(2, 3, size) for size in (5, 20, 40, 7, 90, 31)]
    live = [one - rng.uniform(0.4, 0.6, len(one)) for one in base]
    half = [(one + other) / 2 for one, other in zip(base, live, strict=True)]
    found = losses(base, live, half)
    assert found.targets == 193
    assert found.gain[0] == pytest.approx(np.concatenate(base).mean() - np.concatenate(live).mean())
    assert found.gain[1] < found.gain[0] < found.gain[2]
    assert found.kept == pytest.approx((0.5, 0.5, 0.5))
    assert losses(base, base, half).kept is None
    assert losses(live, base, half).kept is None
    assert losses(base[:2], live[:2], half[:2]).kept is None


def test_lm_studio_has_its_own_folder(
    llama_cpp_base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    home = tmp_path / "home"
    (home / ".lmstudio/models").mkdir(parents=True)
    monkeypatch.setattr(Path, "home", lambda: home)
    adapter = llama_cpp_base_and_adapter("llama")[1]
    exported = run_export(adapter, to="lmstudio", output=None)
    assert exported.folder == home / ".lmstudio/models/lorafit" / adapter.name
    assert exported.certificate.commands == [f"lms import {{folder}}/{exported.certificate.forms[0].name}"]
    (home / ".lmstudio-home-pointer").write_text(str(tmp_path / "other"), "utf-8")
    assert models_folder() is None
    with pytest.raises(LorafitError, match="No output folder") as refused:
        run_export(adapter, to="lmstudio", output=None)
    assert "-o" in str(refused.value.fix)


def test_ollama_gets_a_modelfile_for_the_file(llama_cpp_base_and_adapter: Folders, run_export: Export) -> None:
    exported = run_export(llama_cpp_base_and_adapter("llama")[1], to="ollama", quantize="f16")
    text = (exported.folder / "Modelfile").read_text("utf-8")
    (form,) = exported.certificate.forms
    assert text.startswith(f"FROM ./{form.name}\nTEMPLATE")
    assert "PARAMETER num_ctx" in text
    assert "ADAPTER" not in text
    stored = GGUFReader(exported.folder / form.name)
    assert stored.fields["general.file_type"].contents() == 1
    assert [command.split()[1] for command in exported.certificate.commands] == ["create", "run"]


def test_settings_in_the_command_line(
    llama_cpp_base_and_adapter: Folders, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    words = [
        "export",
        str(llama_cpp_base_and_adapter("llama")[1]),
        "--to",
        "gguf",
        "-o",
        str(tmp_path / "out"),
        "--keep",
        "2",
    ]
    assert main(words) == 2
    assert "keep" in capsys.readouterr().err


@needs_llama_cpp
@pytest.mark.parametrize(("to", "flags"), [("merged", {}), ("gguf", {"quantize": "f16,q8_0"})])
def test_an_export_is_measured_again_beside_its_adapter(
    llama_cpp_base_and_adapter: Folders, run_export: Export, tmp_path: Path, to: str, flags: dict[str, Any]
) -> None:
    adapter = llama_cpp_base_and_adapter("llama")[1]
    exported = run_export(adapter, to=to, **flags)
    request = ExportRequest.model_validate({"run": [str(adapter)]})
    found = api.verify_export(exported.folder, request).forms
    assert [form.behaviour[0].kl_export for form in found] == pytest.approx(
        [form.behaviour[0].kl_export for form in exported.certificate.forms], abs=1e-6
    )
    other = llama_cpp_base_and_adapter("phi3")[1]
    with pytest.raises(LorafitError, match="not the adapter") as refused:
        api.verify_export(exported.folder, ExportRequest.model_validate({"run": [str(other)]}))
    assert adapter.name in str(refused.value.found)
    if to == "merged":  # a file that was replaced, with its digest
        weights = exported.folder / "model.safetensors"
        weights.write_bytes((llama_cpp_base_and_adapter("llama")[0] / "model.safetensors").read_bytes())
        facts = json.loads((exported.folder / "export.json").read_text("utf-8"))
        facts["files"][weights.name] = file_digests(exported.folder)[weights.name]
        (exported.folder / "export.json").write_text(json.dumps(facts), "utf-8")
        assert api.verify_export(exported.folder).files
        with pytest.raises(LorafitError, match="does not answer"):
            api.verify_export(exported.folder, request)
