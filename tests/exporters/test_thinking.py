"""A run on rows without thoughts, with a template whose prompt opens one: chat, comparison and exports leave it out."""

import json
import shutil
from pathlib import Path

import gguf
import pytest
from support import tiny
from support.thinking_templates import QWEN3, R1
from transformers import AutoTokenizer

from lorafit.api import open_chat, verify_export
from lorafit.cli.app import main
from lorafit.config import TrainConfig
from lorafit.data.conversation import Conversation, Message
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import ConfigError
from lorafit.evaluation.chat_request import ChatRequest
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.export import export
from lorafit.progress import ignore_progress
from lorafit.run_folders.adapter import CHAT, read_chat_settings

ASK: Conversation = [Message("user", "试用期多久？")]


@pytest.fixture(scope="module")
def trained(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> dict[str, Path]:
    """Runs of a tiny model on rows without thoughts, by the name of the template."""
    folder = tmp_path_factory.mktemp("thinking")
    rows = [{"instruction": f"第{i}题，{i}加一是多少？", "output": f"答案是{i + 1}。"} for i in range(24)]
    (folder / "rows.json").write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    base = tiny.save_chat_model(folder / "base", demo_folder)
    runs = {}
    for name, template in (("r1", R1), ("qwen3", QWEN3)):
        (folder / f"{name}.jinja").write_text(template, "utf-8")
        words = f"--model_name {base} --dataset_name {folder / 'rows.json'} --output_dir {folder / name}"
        words += (
            f" --chat_template {folder / name}.jinja --max_steps 8 --effective_batch 8 --max_length 128 --val_size 4"
        )
        assert main(["train", "--no_supervisor", *words.split(), "--learning_rate", "0.02", "--lora_r", "4"]) == 0
        (runs[name],) = (folder / name).iterdir()
    return runs


def prompt_of(adapter: Path, **settings: str) -> str:
    chat = open_chat(ChatRequest.model_validate({"lora_weights": str(adapter), "max_new_tokens": 2, **settings}))
    return chat._tokenizer.decode_with_special(chat._prompt(ASK))  # type: ignore[attr-defined]


def test_a_chat_on_another_machine_is_prompted_as_trained(trained: dict[str, Path], tmp_path: Path) -> None:
    adapter = tmp_path / "moved"
    shutil.copytree(trained["r1"] / "final_model", adapter)
    assert read_chat_settings(adapter).untrained_end == "<think>\n"
    assert prompt_of(adapter).endswith("<|User|>试用期多久？<|Assistant|>")
    facts = json.loads((adapter / CHAT).read_text("utf-8"))
    del facts["untrained_end"]  # as an earlier version wrote it
    (adapter / CHAT).write_text(json.dumps(facts), "utf-8")
    assert prompt_of(adapter).endswith("<|Assistant|><think>\n")


def test_a_switch_is_used_and_a_missing_one_is_an_error(
    trained: dict[str, Path], capsys: pytest.CaptureFixture[str]
) -> None:
    assert prompt_of(trained["qwen3"]).endswith("<|im_start|>assistant\n")
    assert prompt_of(trained["qwen3"], thinking="off").endswith("assistant\n<think>\n\n</think>\n\n")
    with pytest.raises(ConfigError, match="no switch"):
        prompt_of(trained["r1"], thinking="off")
    for command in (["chat", "--prompt", "?"], ["compare", "--prompt", "?"]):
        assert main([command[0], str(trained["r1"]), *command[1:], "--thinking", "on"]) == 2
        assert "no switch for thoughts" in capsys.readouterr().err


@pytest.mark.parametrize("to", ["merged", "peft"])
@pytest.mark.parametrize(
    ("name", "thinking", "ending"),
    [
        ("r1", "as_trained", "<|Assistant|>"),
        ("qwen3", "as_trained", "assistant\n"),
        ("qwen3", "off", "assistant\n<think>\n\n</think>\n\n"),
    ],
)
def test_other_programs_prompt_an_export_so_by_default(
    trained: dict[str, Path], tmp_path: Path, to: str, name: str, thinking: str, ending: str
) -> None:
    request = {"run": [str(trained[name])], "to": to, "output": str(tmp_path / "out"), "thinking": thinking}
    folder = export(ExportRequest.model_validate(request), ignore_progress).folder
    theirs = AutoTokenizer.from_pretrained(folder)
    turns = [{"role": "user", "content": ASK[0].content}]
    prompt = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True)
    assert prompt.endswith(ending)
    assert verify_export(folder).texts > 0
    if to == "peft":
        assert prompt_of(folder).endswith(ending)
    if thinking == "as_trained":  # as a chat with the run
        chat = prompt_of(trained[name])
        assert (
            theirs(prompt, add_special_tokens=False)["input_ids"] == theirs(chat, add_special_tokens=False)["input_ids"]
        )


@pytest.mark.parametrize("name", ["r1", "qwen3"])
def test_the_template_in_a_gguf_file_prompts_as_trained(trained: dict[str, Path], tmp_path: Path, name: str) -> None:
    request = {"run": [str(trained[name])], "to": "gguf", "quantize": "f32", "output": str(tmp_path / "out")}
    (file,) = export(ExportRequest.model_validate(request), ignore_progress).folder.glob("*.gguf")
    template = gguf.GGUFReader(file).get_field("tokenizer.chat_template").contents()
    theirs = AutoTokenizer.from_pretrained(trained[name] / "final_model")
    turns = [{"role": "user", "content": ASK[0].content}]
    prompt = theirs.apply_chat_template(turns, tokenize=False, add_generation_prompt=True, chat_template=template)
    assert prompt == prompt_of(trained[name])


def test_an_export_without_a_switch_is_refused_before_a_weight_is_read(
    trained: dict[str, Path], tmp_path: Path
) -> None:
    request = {"run": [str(trained["r1"])], "to": "merged", "output": str(tmp_path / "out"), "thinking": "off"}
    with pytest.raises(ConfigError, match="no switch"):
        export(ExportRequest.model_validate(request), ignore_progress)
    assert not (tmp_path / "out").exists()


def test_the_saved_tokenizer_of_a_run_is_that_of_the_training(trained: dict[str, Path]) -> None:
    saved = load_tokenizer(trained["r1"] / "final_model")
    assert saved.inner.get_chat_template() == R1
    assert TrainConfig().thoughts == "keep"
