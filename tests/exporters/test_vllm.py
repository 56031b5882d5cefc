"""The adapter for vLLM: one rank and one scale, the same deltas, a command; and what vLLM does not take is refused."""

import json
import shlex
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.adapters import deltas_of, random_like

from lorafit.cli.app import main
from lorafit.errors import LorafitError
from lorafit.exporters import vllm
from lorafit.exporters.base import ExportSource
from lorafit.exporters.export import Exported

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]


def words(exported: Exported) -> list[str]:
    (command,) = exported.certificate.commands
    return shlex.split(command)


def value(exported: Exported, flag: str) -> str:
    found = words(exported)
    return found[found.index(flag) + 1]


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("family", ["llama", "phi3", "gemma2", "phi", "starcoder2", "gemma3"])
def test_one_rank_and_scale_give_the_same_deltas(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, family: str, rslora: bool
) -> None:
    adapter = random_like(base_and_adapter(family)[1], tmp_path / "mine", 3, use_rslora=rslora)
    exported = run_export(adapter, to="vllm")
    settings = json.loads((exported.folder / "adapter_config.json").read_text("utf-8"))
    rank = settings["r"]
    assert settings["lora_alpha"] == rank
    assert not settings["use_rslora"]
    assert not {"rank_pattern", "alpha_pattern"} & {name for name, given in settings.items() if given}
    for name, tensor in load_file(exported.folder / "adapter_model.safetensors").items():
        assert tensor.shape[".lora_B." in name] == rank, name
    found, given = deltas_of(exported.folder), deltas_of(adapter)
    assert found.keys() == given.keys()
    for module, delta in given.items():
        np.testing.assert_allclose(found[module], delta, rtol=0, atol=1e-6 * np.abs(delta).max())
    assert "loads this adapter" in exported.certificate.notes[0]


def test_the_command_and_the_readme_serve_it(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    adapter = base_and_adapter("llama")[1]
    exported = run_export(adapter, to="vllm")
    assert words(exported)[:4] == ["vllm", "serve", "llama", "--enable-lora"]
    assert value(exported, "--max-lora-rank") == "8"
    assert value(exported, "--lora-modules") == "llama-adapter={folder}"
    assert "--chat-template" not in words(exported)
    assert "--generation-config" not in words(exported)
    card = (exported.folder / "README.md").read_text("utf-8")
    assert "--lora-modules llama-adapter=." in card
    assert str(tmp_path) not in card
    out = str(tmp_path / "second")
    assert main(["export", str(adapter), "--to", "vllm", "-o", out]) == 0
    assert f"llama-adapter={out}" in capsys.readouterr().out
    assert main(["verify", out]) == 0


def test_another_template_and_other_end_tokens_are_in_the_command(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path
) -> None:
    base, adapter = base_and_adapter("llama")
    mine = random_like(adapter, tmp_path / "mine", 1)
    for name in ("tokenizer.json", "tokenizer_config.json"):
        (mine / name).write_bytes((base / name).read_bytes())
    text = (base / "chat_template.jinja").read_text("utf-8")
    (mine / "chat_template.jinja").write_text(text.replace("<|im_end|>\\n", "x"), "utf-8")
    (mine / "generation_config.json").write_text('{"eos_token_id": [2, 5]}', "utf-8")
    exported = run_export(mine, to="vllm")
    assert value(exported, "--chat-template") == "{folder}/chat_template.jinja"
    assert (exported.folder / "chat_template.jinja").is_file()
    assert value(exported, "--generation-config") == "{folder}"
    stops = json.loads((exported.folder / "generation_config.json").read_text("utf-8"))["eos_token_id"]
    assert set(stops) == {2, 5}


@pytest.mark.parametrize(("bits", "told"), [("4bit", "4 bits"), ("8bit", "8 bits")])
def test_a_quantized_base_is_told(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, bits: str, told: str
) -> None:
    monkeypatch.setattr(ExportSource, "quantization", property(lambda _self: bits))
    exported = run_export(base_and_adapter("llama")[1], to="vllm")
    assert ("bitsandbytes" in words(exported)) == (bits == "4bit")
    assert [note for note in exported.certificate.notes if told in note]


@pytest.mark.parametrize(("rank", "allowed"), [(1, "8"), (8, "8"), (9, "16"), (200, "256"), (257, "320"), (512, "512")])
def test_the_smallest_rank_that_vllm_allows_is_given(
    base_and_adapter: Folders, run_export: Export, tmp_path: Path, rank: int, allowed: str
) -> None:
    plain: dict[str, Any] = {"rank_pattern": {}, "alpha_pattern": {}, "r": rank, "modules": 2}
    adapter = random_like(base_and_adapter("llama")[1], tmp_path / "mine", 2, **plain)
    assert value(run_export(adapter, to="vllm"), "--max-lora-rank") == allowed


@pytest.mark.parametrize(
    ("family", "found"),
    [
        ("mamba", "type mamba"),
        ("glm4_moe", "model.layers.0.mlp.down_proj"),
        ("falcon_h1", "type falcon_h1"),
        ("stablelm", "type stablelm"),
    ],
)
def test_what_vllm_does_not_take_is_refused_by_name(
    base_and_adapter: Folders, run_export: Export, family: str, found: str
) -> None:
    with pytest.raises(LorafitError, match="does not take") as refused:
        run_export(base_and_adapter(family)[1], to="vllm")
    assert found in str(refused.value.found)
    assert "--to merged" in str(refused.value.fix)


def test_a_rank_above_512_is_refused(base_and_adapter: Folders, run_export: Export, tmp_path: Path) -> None:
    adapter = random_like(
        base_and_adapter("llama")[1], tmp_path / "mine", 2, r=513, modules=1, rank_pattern={}, alpha_pattern={}
    )
    with pytest.raises(LorafitError, match="does not take") as refused:
        run_export(adapter, to="vllm")
    assert "513" in str(refused.value.found)


def test_a_scale_that_is_lost_is_refused(
    base_and_adapter: Folders, run_export: Export, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = vllm.side_by_side
    monkeypatch.setattr(vllm, "side_by_side", lambda deltas, rank: right([deltas[0]._replace(scale=1.0)], rank))
    with pytest.raises(LorafitError, match="does not compute"):
        run_export(random_like(base_and_adapter("llama")[1], tmp_path / "mine", 2), to="vllm")
    assert not (tmp_path / "out").exists()


def test_a_type_of_weights_does_not_apply(base_and_adapter: Folders, run_export: Export) -> None:
    with pytest.raises(LorafitError, match="--dtype"):
        run_export(base_and_adapter("llama")[1], to="vllm", dtype="bf16")
