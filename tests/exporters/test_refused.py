"""Exports with planted faults are refused in words, and nothing of them is left."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.paths import ROOT

from lorafit import api
from lorafit.cli.app import main
from lorafit.engines.tokenizer import ChatTokenizer
from lorafit.errors import LorafitError
from lorafit.exporters import adapted, chat_files, merged, weight_writer
from lorafit.exporters.certificate import Survival
from lorafit.exporters.export import Exported
from lorafit.exporters.merge import Block, Delta
from lorafit.exporters.survival import require_survival
from lorafit.run_folders.adapter import CONFIG, WEIGHTS

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]


def copy_of(adapter: Path, target: Path, **settings: Any) -> Path:
    """Copy `adapter` to `target` with changed settings."""
    shutil.copytree(adapter, target)
    facts = json.loads((target / CONFIG).read_text("utf-8"))
    (target / CONFIG).write_text(json.dumps(facts | settings), "utf-8")
    return target


def is_absent(folder: Path) -> bool:
    return not [path for path in folder.iterdir() if "out" in path.name]


def base_alone(self: Block) -> Any:
    return self.weight


def half(self: Delta, rows: slice) -> Any:
    return np.float32(self.scale / 2) * (self.b[rows] @ self.a)


def turned(self: Block) -> Any:
    found = self.weight if self.delta is None else self.weight + self.delta
    return found.T.copy().reshape(found.shape) if self.delta is not None else found


def other_rows(self: Delta, rows: slice) -> Any:
    return np.float32(self.scale) * (self.b[::-1][rows] @ self.a)


FAULTS: dict[str, tuple[Any, str, Any]] = {
    "the base is exported": (Block, "merged", property(base_alone)),
    "half of alpha": (Delta, "rows", half),
    "a transposed tensor": (Block, "merged", property(turned)),
    "rows in another order": (Delta, "rows", other_rows),
    "end tokens are missing": (ChatTokenizer, "_config_stops", lambda self: [7] if self.folder.name[0] == "." else []),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, fault: str
) -> None:
    monkeypatch.setattr(*FAULTS[fault])
    with pytest.raises(LorafitError) as refused:
        run_export(base_and_adapter("qwen2")[1])
    assert refused.value.fix
    assert is_absent(tmp_path)


@pytest.mark.parametrize("alpha", [0.5, 2.0])
def test_another_alpha_than_that_of_the_live_adapter_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, alpha: float
) -> None:
    """The scale is wrong in the deltas themselves: rounding keeps them, and only the live adapter differs."""
    right = adapted.deltas

    def wrong(*given: Any) -> dict[str, Delta]:
        return {name: delta._replace(scale=delta.scale * alpha) for name, delta in right(*given).items()}

    monkeypatch.setattr(adapted, "deltas", wrong)
    with pytest.raises(LorafitError, match="not those of the trained model"):
        run_export(base_and_adapter("qwen2")[1])


def test_weights_that_are_right_with_a_setting_that_is_not_are_refused_by_their_answers(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def wrong(_base: Path, folder: Path, _dtype: str | None) -> None:
        facts = json.loads((base_and_adapter("qwen2")[0] / "config.json").read_text("utf-8"))
        (folder / "config.json").write_text(json.dumps(facts | {"rms_norm_eps": 0.5}), "utf-8")

    monkeypatch.setattr(merged, "write_config", wrong)
    with pytest.raises(LorafitError, match="does not answer"):
        run_export(base_and_adapter("qwen2")[1])
    assert is_absent(tmp_path)


def test_a_lost_template_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setattr(chat_files, "without_marks", lambda template: template.replace("user", "").replace("role", "x"))
    with pytest.raises(LorafitError, match="template"):
        run_export(base_and_adapter("llama")[1])
    assert is_absent(tmp_path)


def test_truncated_weights_are_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def short(self: weight_writer.WeightWriter, *_error: object) -> None:
        self._file.truncate(self.path.stat().st_size - 1000)
        self._file.close()

    monkeypatch.setattr(weight_writer.WeightWriter, "__exit__", short)
    with pytest.raises(LorafitError):
        run_export(base_and_adapter("llama")[1])
    assert is_absent(tmp_path)


def test_a_delta_that_rounding_takes_away_is_refused(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    """In bf16 a change of 1e-5 of a weight is below half a step of the grid; float32 keeps it."""
    base, adapter = base_and_adapter("llama")
    weak = copy_of(adapter, tmp_path / "weak", base_model_name_or_path=str(tmp_path / "coarse"))
    tensors = load_file(weak / WEIGHTS)
    save_file({n: a * (1e-4 if ".lora_B." in n else 1) for n, a in tensors.items()}, weak / WEIGHTS, {"format": "pt"})
    shutil.copytree(base, tmp_path / "coarse")
    weights = load_file(base / "model.safetensors")
    coarse = {n: (a.view(np.uint32) & 0xFFFF0000).view(np.float32) for n, a in weights.items()}
    save_file(coarse, tmp_path / "coarse/model.safetensors", {"format": "pt"})
    with pytest.raises(LorafitError, match="Rounding"):
        run_export(weak, dtype="bf16")
    assert is_absent(tmp_path)
    kept = run_export(weak, dtype="fp32")
    assert kept.certificate.notes == ["The adapter changes nothing on the measured texts."]


def test_a_tensor_without_its_large_delta_is_refused_and_one_with_a_small_delta_is_not() -> None:
    slopes = {f"layer{i}": 0.9 for i in range(9)} | {"last": 0.0}
    far, near = ({name: reach for name in slopes} for reach in (0.1, 0.001))
    types = dict.fromkeys(slopes, "BF16")
    with pytest.raises(LorafitError, match="missing") as refused:
        require_survival(Survival(slopes, far), types, "-")
    assert "last" in str(refused.value.found)
    require_survival(Survival(slopes, near), types, "-")


def test_an_adapter_of_another_base_is_refused(base_and_adapter: Folders, run_export: Export) -> None:
    _base, adapter = base_and_adapter("qwen2")
    other, _adapter = base_and_adapter("mixtral")
    with pytest.raises(LorafitError, match="cannot be merged"):
        run_export(adapter, base_model=str(other))


def test_a_base_that_moved_is_named_with_the_flag_that_helps(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    base, adapter = base_and_adapter("llama")
    moved = copy_of(adapter, tmp_path / "moved", base_model_name_or_path=str(tmp_path / "gone"))
    with pytest.raises(LorafitError) as refused:
        run_export(moved)
    assert "--base_model" in str(refused.value.fix)
    assert run_export(moved, base_model=str(base)).certificate.forms[0].behaviour


def test_a_tied_head_with_an_adapter_is_refused_by_name(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    _base, adapter = base_and_adapter("gemma3_text")
    other = copy_of(adapter, tmp_path / "head")
    rng = np.random.default_rng(0)
    vocab = load_file(_base / "model.safetensors")["model.embed_tokens.weight"].shape
    head = {
        "base_model.model.lm_head.lora_A.weight": (4, vocab[1]),
        "base_model.model.lm_head.lora_B.weight": (vocab[0], 4),
    }
    tensors = load_file(other / WEIGHTS) | {n: rng.normal(size=shape).astype(np.float32) for n, shape in head.items()}
    save_file(tensors, other / WEIGHTS, {"format": "pt"})
    with pytest.raises(LorafitError) as refused:
        run_export(other)
    assert "lm_head" in str(refused.value.found)


def test_weights_beyond_fp16_are_refused_by_name(base_and_adapter: Folders, run_export: Export, tmp_path: Path) -> None:
    base, adapter = base_and_adapter("llama")
    shutil.copytree(base, tmp_path / "large")
    weights = load_file(base / "model.safetensors")
    weights["model.embed_tokens.weight"] = weights["model.embed_tokens.weight"].copy()
    weights["model.embed_tokens.weight"][5, 5] = 1e6
    save_file(weights, tmp_path / "large/model.safetensors", {"format": "pt"})
    with pytest.raises(LorafitError, match="too large") as refused:
        run_export(adapter, dtype="fp16", base_model=str(tmp_path / "large"))
    assert refused.value.where == "model.embed_tokens.weight"


@pytest.mark.parametrize("blocked", ["file", "full folder"])
def test_an_output_that_exists_is_refused(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, blocked: str
) -> None:
    out = tmp_path / "out"
    if blocked == "file":
        out.write_text("mine", "utf-8")
    else:
        out.mkdir()
        (out / "mine.txt").write_text("mine", "utf-8")
    with pytest.raises(LorafitError, match="exists already"):
        run_export(base_and_adapter("llama")[1])
    assert out.exists()


def test_too_little_disk_space_is_told_before_anything_is_written(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _path: usage._replace(free=1000))
    with pytest.raises(LorafitError, match="disk space") as refused:
        run_export(base_and_adapter("llama")[1])
    assert "--output" in str(refused.value.fix)
    assert is_absent(tmp_path)


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_a_killed_export_leaves_nothing_that_counts_and_can_be_repeated(
    base_and_adapter: Folders, tmp_path: Path, number: signal.Signals, run_export: Export
) -> None:
    _base, adapter = base_and_adapter("llama")
    slow = (
        "import sys, time; from lorafit.exporters import merged; from lorafit.cli.app import main\n"
        "merged.require_survival = lambda *_: (print('here', flush=True), time.sleep(60))\n"
        f"sys.exit(main(['export', {str(adapter)!r}, '--to', 'merged', '-o', {str(tmp_path / 'out')!r}]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    child.send_signal(number)
    child.communicate(timeout=60)
    assert child.returncode in (128 + number, -number)
    assert not (tmp_path / "out").exists()
    if number != signal.SIGKILL:
        assert is_absent(tmp_path)
    deadline = time.monotonic() + 60
    assert run_export(adapter).folder.is_dir()
    assert time.monotonic() < deadline
    assert [path.name for path in tmp_path.iterdir() if "out" in path.name] == ["out"]


def test_a_refusal_at_the_command_line_has_code_2(
    base_and_adapter: Folders, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(Block, "merged", property(base_alone))
    words = ["export", str(base_and_adapter("llama")[1]), "--to", "merged", "-o", str(tmp_path / "out")]
    assert main(words) == 2
    assert "fix:" in capsys.readouterr().err
    assert is_absent(tmp_path)


@pytest.mark.parametrize(
    ("flags", "said"),
    [
        ({"quantize": ","}, "Unknown type"),
        ({"quantize": "nonsense"}, "Unknown type"),
        ({"quantize": "q8_0", "adapter_only": True}, "float32"),
        ({"keep": 0.9, "adapter_only": True}, "float32"),
        ({"keep": 0.9, "quantize": "q8_0"}, "chooses the type"),
    ],
)
def test_types_of_gguf_files_that_say_nothing_or_two_things_are_refused(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, flags: dict[str, Any], said: str
) -> None:
    with pytest.raises(LorafitError, match=said):
        run_export(base_and_adapter("llama")[1], to="gguf", **flags)
    assert is_absent(tmp_path)


@pytest.mark.parametrize("words", [[], ["--to", "gold"], ["--to", "merged"]])
def test_incomplete_commands_are_refused(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["export", "latest", *words]) == 2
    assert "fix:" in capsys.readouterr().err


def test_verify_finds_each_kind_of_change(base_and_adapter: Folders, run_export: Export) -> None:
    folder = run_export(base_and_adapter("llama")[1]).folder
    assert api.verify_export(folder).texts == 54
    weights = folder / "model.safetensors"
    content = weights.read_bytes()
    weights.write_bytes(content[:-1] + bytes([content[-1] ^ 1]))
    with pytest.raises(LorafitError) as refused:
        api.verify_export(folder)
    assert "model.safetensors was changed" in str(refused.value.found)
    weights.write_bytes(content)
    (folder / "more.txt").write_text("?", "utf-8")
    with pytest.raises(LorafitError) as refused:
        api.verify_export(folder)
    assert "more.txt was added" in str(refused.value.found)
    (folder / "more.txt").unlink()
    (folder / "chat_template.jinja").unlink()
    with pytest.raises(LorafitError) as refused:
        api.verify_export(folder)
    assert "chat_template.jinja is missing" in str(refused.value.found)
