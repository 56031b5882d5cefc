"""Adapters on adapters: a second training from the first adapter, and one on a merged export, export what was trained."""

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pytest
from safetensors.numpy import load_file
from support import tiny
from support.adapters import deltas_of

from lorafit.cli.app import main
from lorafit.errors import LorafitError
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.export import Exported, export
from lorafit.progress import ignore_progress
from lorafit.run_folders.origins import adapter_digest

Export = Callable[..., Exported]


class Trained(NamedTuple):
    """A base model, a run on it, a run that continues it, its merged export, and a run on this export."""

    base: Path
    first: Path
    second: Path
    merged: Path
    third: Path


def facts_of(exported: Exported) -> dict[str, Any]:
    found: dict[str, Any] = json.loads((exported.folder / "export.json").read_text("utf-8"))
    return found


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Trained:
    folder = tmp_path_factory.mktemp("chain")
    base = tiny.save_chat_model(folder / "base", demo_folder)
    rows = [{"instruction": f"第{i}题，{i}加一是多少？", "output": f"答案是{i + 1}。"} for i in range(40)]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")

    def train(model: Path, *flags: str) -> Path:
        known = {*(folder / "output").glob("*")}
        words = f"--model_name {model} --dataset_name {folder / 'rows.json'} --output_dir {folder / 'output'}"
        settings = "--max_steps 8 --effective_batch 8 --max_length 64 --learning_rate 0.01 --lora_r 4 --val_size 8"
        assert main(["train", "--no_supervisor", *words.split(), *settings.split(), *flags]) == 0
        (run,) = {*(folder / "output").iterdir()} - known
        return run

    first = train(base)
    second = train(base, "--init_adapter", str(first), "--seed", "7")
    settings = {"run": [str(second)], "to": "merged", "output": str(folder / "merged"), "dtype": "fp32"}
    export(ExportRequest.model_validate(settings), ignore_progress)
    third = train(folder / "merged", "--seed", "8")
    return Trained(base, first, second, folder / "merged", third)


def weights(folder: Path) -> dict[str, Any]:
    return load_file(folder / "model.safetensors")


def test_the_second_adapter_contains_the_first(trained: Trained, run_export: Export) -> None:
    exported = run_export(trained.second, dtype="fp32")
    facts = facts_of(exported)
    wanted = {"name": trained.first.name, "sha256": adapter_digest(trained.first / "final_model")}
    assert facts["adapter"]["predecessors"] == [wanted]
    assert facts["base"]["made_from"] is None
    assert trained.first.name in exported.certificate.notes[0]
    before, after = weights(trained.base), weights(exported.folder)
    first, second = deltas_of(trained.first / "final_model"), deltas_of(trained.second / "final_model")
    for module, delta in second.items():
        np.testing.assert_allclose(after[f"{module}.weight"], before[f"{module}.weight"] + delta, rtol=0, atol=1e-6)
    changes = [np.linalg.norm(second[name] - first[name]) / np.linalg.norm(second[name]) for name in first]
    assert max(changes) < 1  # it went on from the first adapter, and not from zero
    assert exported.certificate.forms[0].behaviour[0] is not None
    assert (
        exported.certificate.forms[0].behaviour[0].kl_export < 1e-4 * exported.certificate.forms[0].behaviour[0].kl_base
    )


def test_an_export_on_an_export_keeps_all_adapters(trained: Trained, run_export: Export) -> None:
    exported = run_export(trained.third, dtype="fp32")
    made_from = facts_of(exported)["base"]["made_from"]
    assert made_from["target"] == "merged"
    assert made_from["adapter"]["sha256"] == adapter_digest(trained.second / "final_model")
    assert [one["name"] for one in made_from["adapter"]["predecessors"]] == [trained.first.name]
    before, after = weights(trained.base), weights(exported.folder)
    second, third = deltas_of(trained.second / "final_model"), deltas_of(trained.third / "final_model")
    for module in third:
        wanted = before[f"{module}.weight"] + second[module] + third[module]
        np.testing.assert_allclose(after[f"{module}.weight"], wanted, rtol=0, atol=1e-6)


def test_an_adapter_of_the_chain_cannot_be_dropped(trained: Trained, run_export: Export) -> None:
    """The third run was trained on the merged export: on the first base, the second adapter would be missing."""
    with pytest.raises(LorafitError, match="not the one"):
        run_export(trained.third, base_model=str(trained.base))


def test_an_export_that_changed_is_no_origin(trained: Trained, run_export: Export, tmp_path: Path) -> None:
    copy = Path(shutil.copytree(trained.merged, tmp_path / "copy"))
    adapter = Path(shutil.copytree(trained.third / "final_model", tmp_path / "adapter"))
    facts = json.loads((copy / "export.json").read_text("utf-8"))
    assert facts_of(run_export(adapter, to="peft", base_model=str(trained.merged)))["base"]["made_from"] is not None
    facts["files"]["model.safetensors"]["bytes"] += 1
    (copy / "export.json").write_text(json.dumps(facts), "utf-8")
    exported = run_export(adapter, to="peft", base_model=str(copy), output=str(tmp_path / "second"))
    assert facts_of(exported)["base"]["made_from"] is None


def test_a_mix_has_the_chain_of_each_part(trained: Trained, tmp_path: Path) -> None:
    settings = {"mix": f"{trained.first}=0.5,{trained.second}=0.5", "to": "merged", "output": str(tmp_path / "out"),
                "dtype": "fp32"}  # fmt: skip
    exported = export(ExportRequest.model_validate(settings), ignore_progress)
    parts = facts_of(exported)["adapter"]["parts"]
    assert [one["name"] for one in parts] == [trained.first.name, trained.second.name]
    assert [one["name"] for one in parts[1]["predecessors"]] == [trained.first.name]
    assert exported.certificate.forms[0].behaviour[0] is not None
    assert exported.certificate.forms[0].behaviour[0].rows == "validation"
    assert (
        exported.certificate.forms[0].behaviour[0].kl_export < 1e-4 * exported.certificate.forms[0].behaviour[0].kl_base
    )


def test_runs_on_two_bases_are_not_mixed(trained: Trained, tmp_path: Path) -> None:
    settings = {"mix": f"{trained.first}=0.5,{trained.third}=0.5", "to": "peft", "output": str(tmp_path / "out")}
    with pytest.raises(LorafitError, match="same base") as refused:
        export(ExportRequest.model_validate(settings), ignore_progress)
    assert "model.safetensors" in str(refused.value.found)


def test_a_predecessor_that_is_gone_keeps_its_digest(trained: Trained, run_export: Export, tmp_path: Path) -> None:
    output = tmp_path / "output"
    for run in (trained.first, trained.second):
        shutil.copytree(run, output / run.name)
    config = output / trained.second.name / "config.yaml"
    config.write_text(config.read_text("utf-8").replace(str(trained.first), str(output / trained.first.name)), "utf-8")
    shutil.rmtree(output / trained.first.name)
    (found,) = facts_of(run_export(output / trained.second.name, to="peft"))["adapter"]["predecessors"]
    assert found["sha256"] == adapter_digest(trained.first / "final_model")


def test_an_exported_adapter_brings_its_chain(trained: Trained, run_export: Export, tmp_path: Path) -> None:
    once = run_export(trained.second, to="peft")
    again = run_export(once.folder, to="peft", output=str(tmp_path / "again"))
    assert facts_of(again)["adapter"]["predecessors"] == facts_of(once)["adapter"]["predecessors"]
    assert facts_of(again)["adapter"]["predecessors"]
