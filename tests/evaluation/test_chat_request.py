"""`lorafit chat`: resolution of base model, adapter, tokenizer and settings, and errors where they do not match.

The model is a tiny random Llama with the demo's tokenizer.
"""

import io
import json
import shutil
import sys
from pathlib import Path

import numpy as np
import pytest

from lorafit.api import open_chat
from lorafit.cli.app import main
from lorafit.errors import AdapterError, ConfigError, HardwareError
from lorafit.evaluation.chat_request import ChatRequest
from lorafit.evaluation.model_request import choose_backend
from lorafit.hardware.detect import Machine, detect_machine
from lorafit.models.spec import read_spec
from lorafit.run_folders.adapter import AdapterConfig, ChatSettings, lora_names, write_adapter, write_chat_settings
from lorafit.units import GIB

Output = pytest.CaptureFixture[str]
MODULE = "model.layers.0.self_attn.q_proj"
GREEDY = ["--temperature", "0", "--max_new_tokens", "8"]


@pytest.fixture
def base(chat_model: Path) -> Path:
    return chat_model


def make_adapter(folder: Path, base_model: object, width: int = 32) -> Path:
    rng = np.random.default_rng(0)
    a, b = lora_names(MODULE)
    tensors = {a: rng.normal(size=(2, width)).astype(np.float32), b: rng.normal(size=(32, 2)).astype(np.float32)}
    write_adapter(folder, AdapterConfig(base_model and str(base_model), 2, 16.0, 0.0, ["q_proj"]), tensors)
    write_chat_settings(folder, ChatSettings(system_prompt="只答一句", date_string="1 Jan 2026"))
    return folder


@pytest.fixture(scope="module")
def adapter(chat_model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_adapter(tmp_path_factory.mktemp("adapter"), chat_model)


def test_a_prompt_prints_the_answer_alone_and_greedy_is_repeatable(base: Path, capsys: Output) -> None:
    assert main(["chat", "--base_model", str(base), "--prompt", "你好", *GREEDY]) == 0
    first = capsys.readouterr().out
    assert main(["chat", "--base-model", str(base), "--prompt", "你好", *GREEDY, "--seed", "7"]) == 0
    assert capsys.readouterr().out == first
    assert first.endswith("\n")
    assert first.strip()


def test_the_adapter_names_its_base_and_changes_the_answer(base: Path, adapter: Path, capsys: Output) -> None:
    assert main(["chat", "--lora_weights", str(adapter), "--prompt", "你好", *GREEDY]) == 0
    tuned = capsys.readouterr().out
    plain = ["--base_model", str(base), "--system_prompt", "只答一句", "--prompt", "你好"]
    assert main(["chat", *plain, *GREEDY]) == 0
    assert capsys.readouterr().out != tuned


def test_with_the_adapter_off_the_base_answers(base: Path, adapter: Path) -> None:
    tuned = open_chat(ChatRequest(lora_weights=str(adapter), temperature=0, max_new_tokens=8))
    plain = open_chat(ChatRequest(base_model=str(base), system_prompt="只答一句", temperature=0, max_new_tokens=8))
    expected = plain.answer("你好")
    assert tuned.answer("你好") != expected
    tuned.adapter_on = False
    assert tuned.answer("你好") == expected


def test_a_run_stands_for_its_final_model(base: Path, tmp_path: Path, adapter: Path) -> None:
    (tmp_path / "run").mkdir()
    shutil.copytree(adapter, tmp_path / "run" / "final_model")
    chat = open_chat(ChatRequest(lora_weights=str(tmp_path / "run")))
    assert chat.has_adapter
    assert chat.transcript()[0].content == "只答一句"  # from the file in the adapter folder


def test_a_system_prompt_of_ones_own_wins_over_the_adapters(adapter: Path) -> None:
    chat = open_chat(ChatRequest(lora_weights=str(adapter), system_prompt="用英文"))
    assert chat.transcript()[0].content == "用英文"


def test_a_file_of_questions_becomes_json_lines(base: Path, tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "q.txt").write_text("一\n\n二\n", "utf-8")
    flags = ["--base_model", str(base), "--test_file", str(tmp_path / "q.txt"), *GREEDY]
    assert main(["chat", *flags]) == 0
    rows = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [list(row) for row in rows] == [["question", "answer"]] * 2
    assert [row["question"] for row in rows] == ["一", "二"]


def test_a_pipe_holds_a_conversation(adapter: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(sys, "stdin", io.StringIO("/base\n你好\n/exit\n"))
    assert main(["chat", "--lora_weights", str(adapter), "--interactive", *GREEDY]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert "adapter is off" in lines[0]
    assert len(lines) > 1


def test_an_adapter_for_another_base_is_refused_with_the_remedy(base: Path, tmp_path: Path, capsys: Output) -> None:
    other = make_adapter(tmp_path / "other", base, width=48)
    assert main(["chat", "--lora_weights", str(other), "--prompt", "你好"]) == 2
    text = capsys.readouterr().err
    assert "was trained on a different base model" in text
    assert "--base_model" in text
    assert "Traceback" not in text


def test_an_adapter_without_a_base_asks_for_one(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        open_chat(ChatRequest(lora_weights=str(make_adapter(tmp_path, None))))
    assert "--base_model" in str(caught.value)


def test_without_adapter_and_base_model_the_request_is_refused() -> None:
    with pytest.raises(ConfigError, match="No model given"):
        open_chat(ChatRequest())


def test_a_missing_adapter_is_named(tmp_path: Path) -> None:
    with pytest.raises(AdapterError) as caught:
        open_chat(ChatRequest(lora_weights=str(tmp_path / "nothing")))
    assert "nothing" in str(caught.value)


# device and precision


def machine(**changes: object) -> Machine:
    facts = json.loads(detect_machine().to_json()) | {"gpus": [], "torch_cuda": None} | changes
    return Machine.from_json(json.dumps(facts))


def mac(gibibytes: int) -> Machine:
    gpu = {"name": "Apple M3", "kind": "mps", "memory_bytes": gibibytes * GIB}
    return machine(system="Darwin", arch="arm64", chip="Apple M3", gpus=[gpu], memory_bytes=gibibytes * GIB)


def test_float32_where_the_weights_fit_else_half(base: Path) -> None:
    assert choose_backend(ChatRequest(), machine(), read_spec(base)) == ("torch", "cpu", "fp32")
    assert choose_backend(ChatRequest(engine="torch"), mac(16), read_spec(base)) == ("torch", "mps", "fp32")
    assert choose_backend(ChatRequest(engine="torch"), mac(0), read_spec(base)) == ("torch", "mps", "bf16")
    assert choose_backend(ChatRequest(device="cpu"), mac(16), read_spec(base)) == ("torch", "cpu", "fp32")


def test_a_device_that_is_not_here_is_refused(base: Path) -> None:
    with pytest.raises(HardwareError):
        choose_backend(ChatRequest(device="cuda"), machine(), read_spec(base))
