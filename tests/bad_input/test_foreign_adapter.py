"""An adapter of another program: what lorafit applies is trained and answered with, the rest is refused by name."""

import json
import re
import shlex
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import peft
import pytest
import safetensors.torch
import torch
import transformers
from safetensors.numpy import load_file, save_file
from support import tiny
from support.refusals import Refused, Words, the_run
from support.stopped_runs import as_it_died, weights

from lorafit.cli.app import main
from lorafit.config import DEMO_PRESET
from lorafit.hardware.detect import Machine
from lorafit.planner.plan import Plan
from lorafit.run_folders.adapter import parse_lora_name, read_adapter, read_plain_config

PATTERNS: dict[str, Any] = {"rank_pattern": {"q_proj": 6}, "alpha_pattern": {r"layers\.1\..*": 5}}
RSLORA: dict[str, Any] = {
    "target_modules": ["v_proj"],
    "r": 8,
    "lora_alpha": 16,
    "use_rslora": True,
}  # plain alpha: 45.2548339959...
UNSUPPORTED: dict[str, tuple[dict[str, Any], str]] = {
    "head": ({"target_modules": ["q_proj", "lm_head"]}, "lm_head"),
    "embedding": ({"target_modules": ["q_proj", "embed_tokens"]}, "model.embed_tokens"),
    "resized": ({"target_modules": ["q_proj"], "resize": 8}, "model.embed_tokens.weight"),
    "saved": ({"target_modules": ["q_proj"], "modules_to_save": ["lm_head"]}, "modules_to_save: ['lm_head']"),
    "tokens": ({"target_modules": ["q_proj"], "trainable_token_indices": [1]}, "trainable_token_indices: [1]"),
    "dora": ({"target_modules": ["q_proj"], "use_dora": True}, "use_dora: True"),
    "biases": (
        {"target_modules": ["q_proj"], "bias": "all", "family": "qwen2"},
        "model.layers.0.self_attn.q_proj.bias",
    ),
}
MLX_LORA = {"rank": 2, "scale": 10.0, "dropout": 0.0}
MLX_UNSUPPORTED: list[tuple[dict[str, Any], str]] = [
    ({"fine_tune_type": "dora", "lora_parameters": MLX_LORA}, "mlx_lm.fuse"),
    ({"fine_tune_type": "full"}, "mlx_lm.fuse"),
    ({"fine_tune_type": "lora", "lora_parameters": {**MLX_LORA, "alpha": 16}}, "80"),
]


def make_adapter(model: Path, folder: Path, resize: int = 0, **settings: Any) -> Path:
    """Let peft save an adapter for `model` in `folder`, and return `folder`."""
    base = transformers.AutoModelForCausalLM.from_pretrained(model)
    if resize:
        base.resize_token_embeddings(base.config.vocab_size + resize)
    lora = peft.LoraConfig(init_lora_weights=False, task_type="CAUSAL_LM", **settings)
    peft.get_peft_model(base, lora).save_pretrained(str(folder))
    return folder


def untyped(argv: Words, *names: str) -> Words:
    """Return `argv` without the flags `names` and their values."""
    gone = {place + step for place, word in enumerate(argv) if word[2:] in names for step in (0, 1)}
    return [word for place, word in enumerate(argv) if place not in gone]


@pytest.fixture(scope="module")
def patterned(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter on some layers, with ranks and alphas by pattern."""
    wanted: dict[str, Any] = {"r": 3, "lora_alpha": 9, "target_modules": ["q_proj", "down_proj"], **PATTERNS}
    return make_adapter(model, tmp_path_factory.mktemp("patterned"), layers_to_transform=[0, 1], **wanted)


@pytest.mark.parametrize("case", UNSUPPORTED)
def test_parts_that_lorafit_does_not_apply_are_named(case: str, refused: Refused, tmp_path: Path) -> None:
    settings, named = UNSUPPORTED[case]
    base = tiny.save_model(settings.get("family", "llama"), tmp_path / "base", tie_word_embeddings=False)
    folder = make_adapter(base, tmp_path / "adapter", **{n: v for n, v in settings.items() if n != "family"})
    text = refused(["chat", str(folder), "--prompt", "hi"], folder, named, "merge_and_unload", "--base_model")
    assert "does not support this kind" in text
    assert "damaged" not in text


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"lora_alpha": float("inf")}, "lora_alpha: inf"),
        ({"lora_alpha": 1e308}, "lora_alpha: 1e+308"),
        ({"rank_pattern": {"(a+)+$": 3}}, "rank_pattern: '(a+)+$'"),
        ({"alpha_pattern": {".*.*.*.*.*.*x": 3}}, "alpha_pattern"),
        ({"peft_type": "PROMPT_TUNING"}, "PROMPT_TUNING"),
    ],
)
def test_settings_that_no_adapter_can_have_are_named(
    change: dict[str, Any], named: str, refused: Refused, patterned: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(patterned, tmp_path / "adapter"))
    settings = json.loads((folder / "adapter_config.json").read_text())
    (folder / "adapter_config.json").write_text(json.dumps(settings | change))
    refused(["chat", "--lora_weights", str(folder), "--prompt", "a"], folder, named)


@pytest.mark.parametrize(
    ("content", "named"), [(b"version https://git-lfs.github.com/spec/v1\n", "git lfs pull"), (None, "F8_E4M3")]
)
def test_weights_that_are_not_there_or_in_an_unknown_type_are_not_called_damaged(
    content: bytes | None, named: str, refused: Refused, patterned: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(patterned, tmp_path / "adapter"))
    path = folder / "adapter_model.safetensors"
    if content is None:
        tensors = {name: torch.from_numpy(tensor).to(torch.float8_e4m3fn) for name, tensor in load_file(path).items()}
        safetensors.torch.save_file(tensors, path)
    else:
        path.write_bytes(content)
    text = refused(["chat", "--lora_weights", str(folder), "--prompt", "a"], path, named)
    assert "damaged" not in text


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_without_a_value_are_not_answered_with(
    value: float, refused: Refused, patterned: Path, tmp_path: Path
) -> None:
    folder = Path(shutil.copytree(patterned, tmp_path / "adapter"))
    path = folder / "adapter_model.safetensors"
    save_file({name: tensor * np.float32(value) for name, tensor in load_file(path).items()}, path)
    refused(["chat", "--lora_weights", str(folder), "--prompt", "a"], path, "NaN")


def test_settings_with_a_byte_order_mark_are_read(patterned: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(patterned, tmp_path / "adapter"))
    text = (folder / "adapter_config.json").read_text()
    (folder / "adapter_config.json").write_text(text, "utf-8-sig")
    assert read_plain_config(folder) == read_plain_config(patterned)


@pytest.mark.parametrize(("settings", "fix"), MLX_UNSUPPORTED, ids=["dora", "full", "alpha"])
def test_adapters_of_mlx_lm_that_are_no_plain_lora_are_named(
    settings: dict[str, Any], fix: str, flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    refused(["chat", str(tmp_path), "--prompt", "hi"], tmp_path, fix)
    refused(flags(init_adapter=tmp_path), tmp_path, fix)


def test_an_adapter_of_mlx_lm_answers_and_is_trained_further_as_the_same_one_of_peft(
    flags: Callable[..., Words], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    config, tensors = read_adapter(make_adapter(model, tmp_path / "peft", **RSLORA))
    parts = {name: parse_lora_name(name) or ("", "") for name in tensors}
    turned = {f"{parts[n][0]}.lora_{parts[n][1].lower()}": np.ascontiguousarray(tensors[n].T) for n in tensors}
    theirs = tmp_path / "mlx"
    theirs.mkdir()
    save_file(turned, theirs / "adapters.safetensors")
    lora = {"rank": 8, "scale": config.scale_of("v_proj"), "dropout": 0.0}
    facts = {"fine_tune_type": "lora", "num_layers": 3, "model": str(model), "lora_parameters": lora}
    (theirs / "adapter_config.json").write_text(json.dumps(facts))
    said, trained = [], []
    for folder in (theirs, tmp_path / "peft"):
        assert main(["chat", str(folder), "--prompt", "hi", "--temperature", "0", "--max_new_tokens", "6"]) == 0
        said.append(capsys.readouterr().out)
        output = tmp_path / f"output-{folder.name}"
        assert main(untyped(flags(init_adapter=folder, output_dir=output), "lora_r", "lora_alpha")) == 0
        trained.append(the_run(output).final_model)
        capsys.readouterr()
    assert said[0] == said[1]
    ours, same = (load_file(folder / "adapter_model.safetensors") for folder in trained)
    assert ours.keys() == same.keys() == tensors.keys()
    assert all(np.abs(ours[name] - same[name]).max() < 1e-5 for name in ours)
    assert any(np.abs(ours[name] - tensors[name]).max() > 1e-5 for name in ours)


@pytest.mark.parametrize(
    "settings", [{"lora_parameters": {"rank": 2}}, {"lora_parameters": [1]}, {"fine_tune_type": "lora"}]
)
def test_invalid_settings_of_mlx_lm_are_an_error_of_the_file(
    settings: dict[str, Any], refused: Refused, tmp_path: Path
) -> None:
    (tmp_path / "adapter_config.json").write_text(json.dumps(settings))
    save_file({"model.layers.0.x.lora_a": np.zeros((4, 2), np.float32)}, tmp_path / "adapters.safetensors")
    refused(["chat", str(tmp_path), "--prompt", "hi"], tmp_path / "adapter_config.json")


def test_the_printed_settings_of_an_rslora_adapter_work_when_pasted(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags("--dry_run", init_adapter=make_adapter(model, tmp_path / "adapter", **RSLORA))
    text = refused(argv, "--lora_r 8 --lora_alpha 45.254834")
    pasted = re.search(r"--lora_r \S+ --lora_alpha [\d.]*\d", text)
    assert pasted
    assert main([*argv, *shlex.split(pasted[0])]) == 0
    assert main(untyped(argv, "lora_r", "lora_alpha")) == 0
    assert "45.2548" in capsys.readouterr().out


def test_removing_the_targets_or_giving_the_printed_ones_works(
    flags: Callable[..., Words], refused: Refused, patterned: Path
) -> None:
    argv = untyped(flags("--dry_run", init_adapter=patterned), "lora_r", "lora_alpha")
    text = refused([*argv, "--lora_targets", "q_proj"], patterned, "model.layers.0.mlp.down_proj")
    (printed,) = re.findall(r"--lora_targets (\S+,\S+\w)", text)
    assert main([*argv, "--lora_targets", printed]) == 0
    assert main(argv) == 0


def test_the_demos_preset_does_not_count_as_given_by_the_user(
    flags: Callable[..., Words], refused: Refused, patterned: Path
) -> None:
    argv = untyped(flags("--demo", "--dry_run", init_adapter=patterned), "lora_r", "lora_alpha")
    assert main(argv) == 0
    refused([*argv, "--lora_r", str(DEMO_PRESET["lora_r"] + 1)], patterned)


def test_training_keeps_an_adapters_ranks_alphas_and_layers_also_on_another_machine(
    flags: Callable[..., Words], patterned: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = flags(init_adapter=patterned, max_steps=4, save_steps=2, engine="torch", device="cpu", keep_checkpoints=9)
    assert main(untyped([*argv, "--lang", "en"], "lora_r", "lora_alpha")) == 0
    assert "keeps its rank (3 to 6), alpha (5 to 9) and linear layers (4)" in capsys.readouterr().out
    finished = the_run(tmp_path / "output")
    start, end = read_plain_config(patterned), read_plain_config(finished.final_model)
    assert replace(end, base_model=start.base_model, dropout=start.dropout) == start
    assert (end.rank_pattern, end.target_modules) == ({"down_proj": 3}, start.target_modules)
    moved = as_it_died(finished, tmp_path / "moved", 2)
    machine = Machine.from_json(moved.machine.read_text("utf-8"))
    moved.machine.write_text(replace(machine, chip="another").to_json(), "utf-8")
    assert main(["resume", str(moved.path), "--no_supervisor", "--output_dir", str(tmp_path / "moved")]) == 0
    assert weights(moved.final_model) == weights(finished.final_model)
    assert Plan.load(moved.plan).rank_pattern == {"down_proj": 3}
