"""Flags and settings files of LLaMA-Factory, Axolotl, mlx-lm and others: translated, or refused with the reason."""

import json
from pathlib import Path
from typing import Any

import pytest
import yaml
from support.paths import ROOT

from lorafit.cli.app import main
from lorafit.cli.flags import check_arguments
from lorafit.cli.foreign.tables import TYPED
from lorafit.cli.foreign.translate import TOOLS, recognize
from lorafit.cli.parse import train_config
from lorafit.config import TrainConfig, write_yaml
from lorafit.errors import ConfigError
from lorafit.evaluation.chat_request import ChatRequest

Output = pytest.CaptureFixture[str]
LLAMA_FACTORY = """
model_name_or_path: Qwen/Qwen3-0.6B
trust_remote_code: true
stage: sft
do_train: true
finetuning_type: lora
lora_rank: 8
lora_target: all
dataset: identity,my_law_zh
template: qwen3
cutoff_len: 2048
max_samples: 1000
overwrite_cache: true
preprocessing_num_workers: 16
output_dir: saves/qwen3/lora/sft
logging_steps: 10
save_steps: 500
per_device_train_batch_size: 1
gradient_accumulation_steps: 8
learning_rate: 1.0e-4
num_train_epochs: 3.0
lr_scheduler_type: cosine
warmup_ratio: 0.1
bf16: true
"""
AXOLOTL = """
base_model: NousResearch/Llama-3.2-1B
load_in_8bit: false
load_in_4bit: true
datasets:
  - path: law.jsonl
    type: alpaca
val_set_size: 0.1
adapter: qlora
lora_model_dir:
sequence_len: 2048
sample_packing: true
lora_r: 16
lora_alpha: 32
lora_dropout: 0.05
lora_target_modules: [q_proj, v_proj]
wandb_project:
gradient_accumulation_steps: 2
micro_batch_size: 3
num_epochs: 1
optimizer: adamw_8bit
lr_scheduler: cosine
learning_rate: 2e-4
train_on_inputs: false
bf16: auto
flash_attention: true
warmup_ratio: 0.1
weight_decay: 0.0
special_tokens:
  pad_token: "<|end_of_text|>"
"""
MLX = """
model: mlx-community/Qwen3-0.6B-bf16
train: true
fine_tune_type: lora
optimizer: adamw
data: law
seed: 7
num_layers: -1
batch_size: 4
grad_accumulation_steps: 2
iters: 600
learning_rate: 1e-5
adapter_path: adapters
max_seq_length: 1024
mask_prompt: true
grad_checkpoint: true
lora_parameters: {rank: 8, scale: 20.0, dropout: 0.1, keys: [self_attn.q_proj, self_attn.v_proj]}
lr_schedule: {name: cosine_decay, warmup: 30, arguments: [2.0e-5, 300, 0.0]}
"""
FILES = {"LLaMA-Factory": LLAMA_FACTORY, "Axolotl": AXOLOTL, "mlx-lm": MLX}
MEANT: dict[str, dict[str, Any]] = {
    "LLaMA-Factory": {
        "model_name": "Qwen/Qwen3-0.6B", "trust_remote_code": True, "lora_r": 8, "lora_alpha": 16.0,
        "dataset_name": "data/identity,data/my_law_zh", "max_length": 2048, "max_samples": 1000, "save_steps": 500,
        "output_dir": "saves/qwen3/lora/sft", "effective_batch": 8, "learning_rate": 1e-4, "num_epochs": 3.0,
        "lr_scheduler": "cosine", "warmup_ratio": 0.1, "val_size": 0.0, "optimizer": "adamw",
    },
    "Axolotl": {
        "model_name": "NousResearch/Llama-3.2-1B", "quantization": "4bit", "dataset_name": "law.jsonl", "val_size": 0.1,
        "max_length": 2048, "lora_r": 16, "lora_alpha": 32.0, "lora_dropout": 0.05, "lora_targets": "q_proj,v_proj",
        "effective_batch": 6, "num_epochs": 1.0, "optimizer": "paged_adamw_8bit", "lr_scheduler": "cosine",
        "learning_rate": 2e-4, "warmup_ratio": 0.1,
    },
    "mlx-lm": {
        "model_name": "mlx-community/Qwen3-0.6B-bf16", "optimizer": "adamw", "weight_decay": 0.01, "dataset_name": "law",
        "val_size": 0.0, "seed": 7, "effective_batch": 8, "max_steps": 300, "learning_rate": 2e-5, "max_length": 1024,
        "output_dir": "adapters", "lora_r": 8, "lora_alpha": 160.0, "lora_dropout": 0.1, "max_grad_norm": 0.0,
        "lora_targets": "self_attn.q_proj,self_attn.v_proj", "warmup_ratio": 0.1, "lr_scheduler": "cosine",
        "save_steps": 100, "train_on": "last",
    },
}  # fmt: skip


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "160")


def write(folder: Path, text: str, encoding: str = "utf-8") -> str:
    path = folder / "settings.yaml"
    path.write_text(text, encoding)
    return str(path)


def refusal(argv: list[str]) -> ConfigError:
    with pytest.raises(ConfigError) as error:
        train_config(argv)
    return error.value


@pytest.mark.parametrize("tool", FILES)
def test_a_file_of_another_tool_becomes_settings_and_each_key_is_shown(
    tool: str, tmp_path: Path, capsys: Output
) -> None:
    path = write(tmp_path, FILES[tool])
    assert train_config(["--config", path]) == TrainConfig(**MEANT[tool], config=path)
    shown = capsys.readouterr().err
    assert all(key in shown for key in yaml.safe_load(FILES[tool]))
    assert path in shown.replace("\n", "")


@pytest.mark.parametrize("tool", FILES)
def test_flags_win_over_a_file_of_another_tool(tool: str, tmp_path: Path) -> None:
    assert train_config(["--config", write(tmp_path, FILES[tool]), "--max_length", "77"]).max_length == 77


@pytest.mark.parametrize(
    ("tool", "line", "reason"),
    [
        ("LLaMA-Factory", "stage: dpo", "sft"),
        ("LLaMA-Factory", "finetuning_type: full", "LoRA"),
        ("LLaMA-Factory", "use_dora: true", "DoRA"),
        ("LLaMA-Factory", "additional_target: embed_tokens,lm_head", "linear layers"),
        ("LLaMA-Factory", "train_on_prompt: true", "answers"),
        ("LLaMA-Factory", "optim: adafactor", "AdamW"),
        ("LLaMA-Factory", "warmup_steps: 10", "max_steps"),
        ("LLaMA-Factory", "do_predict: true", "lorafit chat"),
        ("LLaMA-Factory", "resume_from_checkpoint: saves/checkpoint-10", "init_adapter"),
        ("Axolotl", "adapter: ", "LoRA"),
        ("Axolotl", "rl: dpo", "sft"),
        ("Axolotl", "lora_modules_to_save: [lm_head]", "linear layers"),
        ("Axolotl", "chat_template: llama3", "chat_template_jinja"),
        ("Axolotl", "shuffle_merged_datasets: false", "change the result"),
        ("Axolotl", "datasets: [{path: a.jsonl, type: completion}]", "alpaca"),
        ("Axolotl", "datasets: [{path: a.jsonl, shards: 9}]", "counterpart: shards"),
        ("Axolotl", "plugins: [axolotl.integrations.liger.LigerPlugin, my.Plugin]", ": my.Plugin"),
        ("mlx-lm", "num_layers: 16", "-1"),
        ("mlx-lm", "fine_tune_type: dora", "LoRA"),
        ("mlx-lm", "resume_adapter_file: adapters/0000100_adapters.safetensors", "--init_adapter"),
        ("mlx-lm", "mask_prompt: false", "answers"),
        ("mlx-lm", "lr_schedule: cosine_decay", "cosine_decay and linear_schedule"),
        ("mlx-lm", "lora_parameters: {rank: 8, alpha2: 1}", "result: alpha2"),
        ("mlx-lm", "lr_schedule: {name: exponential_decay, arguments: [1e-5, 0.9]}", "cosine_decay"),
    ],
)
def test_what_would_change_the_result_is_refused_with_its_reason(
    tool: str, line: str, reason: str, tmp_path: Path
) -> None:
    key = line.partition(":")[0]
    kept = [old for old in FILES[tool].splitlines() if not old.startswith(f"{key}:") and not old.startswith("  ")]
    kept = [old for old in kept if old not in ("datasets:", "special_tokens:", "do_train: true")]
    error = refusal(["--config", write(tmp_path, "\n".join([*kept, line]))])
    (fault,) = str(error.found).splitlines()
    assert fault.startswith(f"{key}: ")
    assert reason in fault


def test_all_refused_and_unknown_keys_are_named_at_once(tmp_path: Path) -> None:
    text = LLAMA_FACTORY.replace("stage: sft", "stage: rm") + "use_dora: true\nmy_own_key: 1\n"
    found = str(refusal(["--config", write(tmp_path, text)]).found)
    assert [line.partition(":")[0] for line in found.splitlines()] == ["stage", "use_dora", "my_own_key"]


@pytest.mark.parametrize(("tool", "data"), [("LLaMA-Factory", "dataset:"), ("mlx-lm", "data:")])
def test_a_file_without_training_data_does_not_train_on_the_default_data(tool: str, data: str, tmp_path: Path) -> None:
    path = write(tmp_path, "\n".join(line for line in FILES[tool].splitlines() if not line.startswith(data)))
    error = refusal(["--config", path])
    assert tool in error.what
    assert "--dataset_name" in str(error.fix)
    assert train_config(["--config", path, "--dataset_name", "law.jsonl"]).dataset_name == "law.jsonl"
    assert train_config(["--config", path, "--demo"]).dataset_name == "demo"


@pytest.mark.parametrize("line", ["max_steps: many", "save_steps: [1]", "eval_steps: x", "lora_rank: true",
                                  "per_device_train_batch_size: 0", "learning_rate: true"])  # fmt: skip
def test_a_value_of_another_kind_is_not_taken_for_the_default(line: str, tmp_path: Path) -> None:
    kept = [old for old in LLAMA_FACTORY.splitlines() if not old.startswith(line.partition(":")[0])]
    error = refusal(["--config", write(tmp_path, "\n".join([*kept, line]))])
    assert error.what.startswith("Invalid value")


@pytest.mark.parametrize("value", ["2026-02-31", "9" * 5000, "[" * 5000])
def test_a_typed_value_that_yaml_cannot_construct_is_text(value: str) -> None:
    assert "--max_length" in str(refusal(["--cutoff_len", value]).fix)


def test_a_long_text_is_shown_in_part_and_without_control_characters(tmp_path: Path, capsys: Output) -> None:
    text = LLAMA_FACTORY + 'default_system: "\\e[31m' + "x" * 5000 + '"\n'
    train_config(["--config", write(tmp_path, text)])
    shown = capsys.readouterr().err
    assert "\x1b" not in shown
    assert "⟨U+001B⟩" in shown
    assert shown.count("x") < 1000


def test_what_mlx_does_by_default_and_lorafit_does_not_is_said(tmp_path: Path, capsys: Output) -> None:
    kept = [line for line in MLX.splitlines() if not line.startswith(("num_layers", "mask_prompt"))]
    train_config(["--config", write(tmp_path, "\n".join(kept))])
    lines = capsys.readouterr().err.splitlines()
    assert any(line.startswith("num_layers") and "all layers" in line for line in lines)
    assert any(line.startswith("mask_prompt") and "only answers" in line for line in lines)


def test_the_scale_of_rslora_is_kept(tmp_path: Path) -> None:
    text = LLAMA_FACTORY.replace("lora_rank: 8", "use_rslora: true\nlora_rank: 16\nlora_alpha: 10")
    config = train_config(["--config", write(tmp_path, text)])
    assert config.lora_alpha / config.lora_r == 10 / 16**0.5


def test_an_access_token_in_a_file_is_not_shown(tmp_path: Path, capsys: Output) -> None:
    train_config(["--config", write(tmp_path, LLAMA_FACTORY + "hf_hub_token: hf_abcdefgh\n")])
    text = capsys.readouterr().err
    assert "hf_hub_token" in text
    assert "abcdefgh" not in text


def test_names_in_dataset_info_become_files_and_dataset_ids(tmp_path: Path) -> None:
    columns = {"prompt": "title", "response": "solution"}
    info = {
        "identity": {"file_name": "identity.json"},
        "my_law_zh": {"file_name": "law.jsonl", "columns": columns},
        "hub": {"hf_hub_url": "owner/name"},
        "pairs": {"file_name": "p.json", "ranking": True},
    }
    (tmp_path / "dataset_info.json").write_text(json.dumps(info), "utf-8")
    text = LLAMA_FACTORY + f"dataset_dir: {tmp_path}\neval_dataset: hub\n"
    config = train_config(["--config", write(tmp_path, text)])
    assert config.dataset_name == f"{tmp_path}/identity.json,{tmp_path}/law.jsonl"
    assert (config.valid_dataset, config.field_map) == ("owner/name", "title=instruction,solution=output")
    for name in ("pairs", "absent"):
        error = refusal(["--config", write(tmp_path, text.replace("identity,my_law_zh", name))])
        assert str(error.found).startswith(f"dataset: {name}: ")


def test_a_data_folder_of_mlx_with_a_validation_file(tmp_path: Path) -> None:
    for name in ("train.jsonl", "valid.jsonl"):
        (tmp_path / name).write_text("{}\n", "utf-8")
    config = train_config(["--config", write(tmp_path, MLX.replace("data: law", f"data: {tmp_path}"))])
    assert (config.dataset_name, config.valid_dataset) == (str(tmp_path), str(tmp_path))
    assert (config.dataset_split, config.valid_split) == ("train", "validation")


def test_the_weights_that_mlx_resumes_are_the_adapter_to_start_from(tmp_path: Path) -> None:
    text = MLX + "resume_adapter_file: before/adapters.safetensors\n"
    assert train_config(["--config", write(tmp_path, text)]).init_adapter == "before"


def test_the_saved_settings_of_a_run_are_ours(tmp_path: Path, capsys: Output) -> None:
    write_yaml(TrainConfig(lora_r=3, output_dir=str(tmp_path)), tmp_path / "config.yaml")
    config = train_config(["--config", str(tmp_path / "config.yaml")])
    assert config.lora_r == 3
    assert capsys.readouterr().err == ""


def test_a_file_in_gbk_is_read_and_its_encoding_is_said(tmp_path: Path, capsys: Output) -> None:
    path = write(tmp_path, "max_steps: 2 # 步数\nsystem_prompt: 你是律师 # 系统提示词\n", "gbk")
    config = train_config(["--config", path])
    assert (config.max_steps, config.system_prompt) == (2, "你是律师")
    assert "GB2312" in capsys.readouterr().err


def test_a_file_in_latin_1_is_not_read_as_other_letters(tmp_path: Path) -> None:
    path = write(tmp_path, "system_prompt: Réponds en français à l'étudiant\n", "latin-1")
    assert path in str(refusal(["--config", path]))


def test_all_unknown_keys_of_a_file_of_ours_are_named_with_the_counterparts(tmp_path: Path) -> None:
    error = refusal(["--config", write(tmp_path, "lora_rank: 8\nlora_alpha: 8\nlearning_rte: 1\nzzz: 1\n")])
    assert all(name in error.what for name in ("`lora_rank`", "`learning_rte`", "`zzz`"))
    assert all(word in str(error.fix) for word in ("`lora_r: 8`", "`learning_rate`", "lorafit train --help"))


@pytest.mark.parametrize(
    ("typed", "fix"),
    [
        ("--cutoff_len 2048", "--max_length 2048"),
        ("--cutoff-len=2048", "--max_length 2048"),
        ("--lora_rank 8 --lora_alpha 4", "--lora_r 8"),
        ("--per_device_train_batch_size 2 --gradient_accumulation_steps 8", "--effective_batch 16"),
        ("--lr 3e-4", "--learning_rate 3e-4"),
        ("--load_in_4bit", "--quantization 4bit"),
        ("--iters 300", "--max_steps 300"),
        ("--target_modules q_proj,v_proj", "--lora_targets q_proj,v_proj"),
        ("--resume_from_checkpoint", "--resume"),
        ("--resume_from_checkpoint output/x", "--resume output/x"),
        ("--lora_path here", "--init_adapter here"),
        ("--model_name_or_path demo", "--model_name demo"),
        ("--bf16", "--precision"),
        ("--mask-prompt", "--train_on last"),
        ("--num_layers 16", "all layers"),
        ("--gradient_checkpointing", "--recompute"),
        ("--template qwen", "chat template"),
    ],
)
def test_a_typed_flag_of_another_tool_is_named_with_ours(typed: str, fix: str) -> None:
    error = refusal(typed.split())
    assert fix in str(error.fix)
    assert "Did you mean" not in str(error.fix)


def test_all_unknown_flags_of_a_command_line_are_named_at_once(capsys: Output) -> None:
    flags = "--cutoff_len 9 --zzz 1 --lora_r 4 --learning-rte 1"
    for command in ("train", "plan", "resume"):
        assert main([command, *flags.split()]) == 2
        text = capsys.readouterr().err
        assert all(word in text for word in ("`--cutoff_len`, `--zzz`, `--learning-rte`", "--max_length 9", "--help"))


@pytest.mark.parametrize(
    ("typed", "fix"), [("--adapter_path a", "--lora_weights a"), ("--model_name_or_path m", "--base_model m")]
)
def test_chat_names_its_own_flags(typed: str, fix: str) -> None:
    with pytest.raises(ConfigError) as error:
        check_arguments(ChatRequest, typed.split(), "chat")
    assert fix in str(error.value.fix)


def test_every_rule_gives_known_settings_or_a_note() -> None:
    for _tool, rules in TYPED:
        for name, rule in rules.items():
            outcome = rule(1, {name: 1})
            assert outcome.settings or outcome.note, name
            assert outcome.settings.keys() <= TrainConfig.model_fields.keys(), name


@pytest.mark.parametrize("value", [None, True, -1, "", "x", [], ["x"], [{}], {}, {"x": {}}])
def test_no_rule_fails_on_a_value_of_another_type(value: object) -> None:
    for tool in TOOLS:
        for name, rule in tool.rules.items():
            rule(value, dict.fromkeys(tool.rules, value) | {name: value})


def test_the_defaults_of_each_tool_are_keys_that_it_knows() -> None:
    for tool in TOOLS:
        assert tool.defaults.keys() <= tool.rules.keys()
        assert recognize(yaml.safe_load(FILES[tool.name])) is tool


@pytest.mark.parametrize("page", ["docs/coming-from.md", "docs/zh/coming-from.md"])
def test_the_page_names_every_setting_that_has_a_counterpart(page: str) -> None:
    text = (ROOT / page).read_text("utf-8")
    for tool in TOOLS:
        for name, rule in tool.rules.items():
            values = ("4", "adamw_torch", "cosine", "lora", {"rank": 8}, [{"path": "a.jsonl"}])
            ours = {ours for value in values for ours in rule(value, {name: value}).settings}
            assert not ours or (f"`{name}`" in text and all(f"`{one}`" in text for one in ours)), name
