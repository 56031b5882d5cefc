"""Texts beyond the positions of a model: refused where the model has a table of them, a warning where they are rotary."""

import io
import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
import transformers
from support import tiny
from support.refusals import Refused, Words, the_run

from lorafit.cli.app import main
from lorafit.events import Warned, read_events
from lorafit.models.spec import TOKENIZER_FILES

P = 64
LONG = "What does the law say? " * 20
Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def opt(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A tiny OPT with a table of 64 positions."""
    folder = tmp_path_factory.mktemp("opt")
    sizes = {
        "hidden_size": 32,
        "ffn_dim": 64,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "word_embed_proj_dim": 32,
    }
    config = transformers.OPTConfig(vocab_size=49_152, max_position_embeddings=P, **sizes)
    transformers.AutoModelForCausalLM.from_config(config).save_pretrained(folder)
    for path in demo_folder.iterdir():
        if path.name in TOKENIZER_FILES or path.suffix == ".jinja":
            shutil.copy(path, folder)
    return folder


@pytest.fixture(scope="module")
def rope(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A tiny Llama that was trained for 64 rotary positions, scaled by yarn."""
    scaled = {"rope_type": "yarn", "factor": 4.0, "rope_theta": 1e4, "original_max_position_embeddings": 16}
    folder = tmp_path_factory.mktemp("rope")
    return tiny.save_chat_model(folder, demo_folder, max_position_embeddings=P, rope_parameters=scaled)


@pytest.fixture(scope="module")
def long_data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Rows of which one is longer than 64 tokens."""
    path = tmp_path_factory.mktemp("long") / "law.jsonl"
    rows = [{"instruction": f"Article {i}?", "output": LONG if i == 7 else "So."} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


def test_a_sample_beyond_a_table_of_positions_is_refused_before_the_weights_are_loaded(
    flags: Callable[..., Words], refused: Refused, opt: Path, long_data: Path
) -> None:
    for argv in (flags(model_name=opt, dataset_name=long_data), flags(model_name=opt, valid_dataset=long_data)):
        text = refused(argv, opt, "96", f"`--max_length {P}`")
        assert "Loading the model" not in text
        refused(["plan", *argv[2:]], opt, "96", f"`--max_length {P}`")


def test_samples_within_a_table_of_positions_train(flags: Callable[..., Words], opt: Path, long_data: Path) -> None:
    assert main(flags(model_name=opt, dataset_name=long_data, max_length=P)) == 0


def test_a_sample_beyond_rotary_positions_is_a_warning(
    flags: Callable[..., Words], rope: Path, long_data: Path, tmp_path: Path, capsys: Output
) -> None:
    assert main(flags(model_name=rope, dataset_name=long_data)) == 0
    warned = [event.text for event in read_events(the_run(tmp_path / "output").events) if isinstance(event, Warned)]
    (said,) = [text for text in warned if f"`--max_length {P}`" in text]
    assert "96" in said
    assert "yarn" in said
    capsys.readouterr()
    assert main(["plan", *flags(model_name=rope, dataset_name=long_data)[2:]]) == 0
    assert said in capsys.readouterr().out
    assert main(["plan", *flags(model_name=rope, dataset_name=long_data, max_length=P)[2:]]) == 0
    assert "yarn" not in capsys.readouterr().out


def test_estimated_lengths_beyond_the_positions_are_a_warning_in_a_plan(opt: Path, capsys: Output) -> None:
    assert main(["plan", "--model_name", str(opt), "--max_length", "96"]) == 0
    assert f"`--max_length {P}`" in capsys.readouterr().out


@pytest.mark.parametrize("language", ["en", "zh"])
def test_an_answer_ends_with_the_table_of_positions(opt: Path, language: str, capsys: Output) -> None:
    argv = ["chat", "--base_model", str(opt), "--temperature", "0", "--lang", language]
    assert main([*argv, "--prompt", "hi"]) == 0
    said = capsys.readouterr()
    assert said.out.strip()
    assert said.err.count(f"{P} ") == 1
    assert main([*argv, "--prompt", "hi", "--max_new_tokens", "4"]) == 0
    assert capsys.readouterr().err == ""


@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_question_beyond_the_table_of_positions_is_refused(
    opt: Path, language: str, tmp_path: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch
) -> None:
    argv = ["chat", "--base_model", str(opt), "--max_new_tokens", "4", "--lang", language]
    assert main([*argv, "--prompt", LONG]) == 2
    said = capsys.readouterr().err
    assert all(word in said for word in ("What does the law", str(P), "/reset"))
    (tmp_path / "asked.txt").write_text(f"hi\n{LONG}\n", "utf-8")
    assert main([*argv, "--test_file", str(tmp_path / "asked.txt")]) == 2
    assert capsys.readouterr().out == ""  # no answer is computed that another question would cost
    monkeypatch.setattr("sys.stdin", io.StringIO(f"hi\n{LONG}\n/reset\nhi\n"))
    assert main([*argv, "--interactive"]) == 0
    output = capsys.readouterr()
    assert len(output.out.splitlines()) >= 2
    assert output.err.count("/reset") == 1


def test_a_chat_beyond_rotary_positions_warns_once(rope: Path, capsys: Output, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.stdin", io.StringIO(f"{LONG}\n{LONG}\n"))
    assert main(["chat", "--base_model", str(rope), "--interactive", "--max_new_tokens", "4", "--lang", "en"]) == 0
    assert capsys.readouterr().err.count(f" {P} ") == 1


def test_a_comparison_says_which_answers_the_positions_end(
    flags: Callable[..., Words], opt: Path, rope: Path, long_data: Path, tmp_path: Path, capsys: Output
) -> None:
    for model in (opt, rope):
        output = tmp_path / model.name
        assert main(flags(model_name=model, dataset_name=long_data, max_length=P, output_dir=output)) == 0
        capsys.readouterr()
        argv = ["compare", *map(str, output.iterdir()), "--max_new_tokens", "80", "--num_samples", "2", "--lang", "en"]
        assert main(argv) == 0
        assert f"{P} tokens" in capsys.readouterr().out
        assert main([*argv, "--prompt", LONG]) == (2 if model == opt else 0)
