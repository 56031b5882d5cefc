"""A wrong flag, setting or plan file is refused: the error names it and what is accepted."""

from collections.abc import Callable
from pathlib import Path

import pytest
from support.fake_runs import make_run
from support.refusals import Refused, Words

from lorafit.cli.app import main


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora_rank", "8"], ["--lora_rank", "`--lora_r 8"]),
        (["--lora_rnk", "8"], ["--lora_rnk", "`--lora_r`"]),
        (["--learning-rte", "1"], ["--learning-rte", "`--learning_rate`"]),
        (["--zzz"], ["--zzz", "lorafit train --help"]),
        (["stray"], ["stray", "lorafit train --help"]),
        (["--demo", "yes"], ["yes"]),
        (["--lora_r"], ["--lora_r"]),
        (["--lora_r", "many"], ["lora_r", "'many'", "32"]),
        (["--lora_r", "0"], ["lora_r", "'0'", ">= 1"]),
        (["--learning_rate", "nan"], ["learning_rate", "'nan'", "> 0"]),
        (["--learning_rate=inf"], ["learning_rate", "'inf'"]),
        (["--device", "tpu"], ["'tpu'", "auto", "cuda", "mps", "cpu"]),
    ],
)
def test_a_wrong_flag_or_value_is_named_with_what_is_accepted(refused: Refused, words: Words, named: list[str]) -> None:
    refused(["train", *words], *named)


def test_a_wrong_flag_of_chat_is_named_with_the_near_one(refused: Refused) -> None:
    refused(["chat", "--promt", "hi"], "--promt", "`--prompt`")
    refused(["chat", "--temperature", "-1"], "temperature", "'-1'", ">= 0")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lora_rank: 8\n", ["lora_rank", "`lora_r: 8"]),
        ("lora_r: many\n", ["lora_r", "'many'", "32"]),
        ("model_name: 5\n", ["model_name", "5"]),
        ("lora_r:\n", ["lora_r", "null"]),
        ("a: [1, 2\nb", ["line 2", "lora_r: 16"]),
        ("- a\n- b\n", ["lora_r: 16"]),
        ("", ["lora_r: 16"]),
        ("# lora_r: 8\n", ["lora_r: 16"]),
        ("{}", ["lora_r: 16"]),
    ],
)
def test_a_wrong_settings_file_is_named_with_what_is_accepted(
    refused: Refused, tmp_path: Path, text: str, named: list[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text, "utf-8")
    english = refused(["train", "--config", str(path)], path, *named)
    assert ("a list" in english) == text.startswith("- ")
    assert path.read_text("utf-8") == text


@pytest.mark.parametrize(
    ("text", "named"),
    [("", []), (None, []), ("lora_r: [\n", []), ("lora_r: 8\nwonder: 3\n", ["wonder"]), ("lora_r: many\n", ["'many'"])],
)
def test_damaged_settings_of_a_run_are_named_with_their_file(
    tmp_path: Path, text: str | None, named: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    run = make_run(tmp_path, stop_after=5)
    run.config.unlink() if text is None else run.config.write_text(text, "utf-8")
    for argv in (["train", "--resume"], ["resume"], ["plan", "--resume"], ["bundle"]):
        for language in ("zh", "en"):
            assert main([*argv, str(run.path), "--lang", language]) == 2
            said = capsys.readouterr()
            assert [word for word in (str(run.config), *named) if word not in said.err] == [], said.err
            assert "command line" not in said.err
            assert "Looking for" not in said.out


@pytest.mark.parametrize("targets", ["nope", "q_proj,nope", "", "lm_head", "q_proj v_proj"])
def test_layers_that_the_model_lacks_are_named_by_a_plan_too(
    refused: Refused, model: Path, tmp_path: Path, targets: str
) -> None:
    refused(["plan", "--model_name", str(model), "--lora_targets", targets], "lora_targets", "q_proj", "all-linear")


def test_a_missing_settings_file_is_named(refused: Refused, tmp_path: Path) -> None:
    refused(["train", "--config", str(tmp_path / "none.yaml")], tmp_path / "none.yaml", "--config")


def test_three_batch_settings_that_disagree_are_named_before_anything_is_read(
    flags: Callable[..., Words], refused: Refused
) -> None:
    argv = flags(batch_size=2, gradient_accumulation_steps=3, effective_batch=4)
    text = refused(argv, "batch_size", "gradient_accumulation_steps", "2 x 3 = 6", "effective_batch = 4")
    assert "Looking for the model" not in text


@pytest.mark.parametrize("content", [None, "[", "{}", "[1]", '{"engine": "torch"}'])
def test_a_file_that_is_no_plan_is_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    refused(flags(plan=path), path, "--plan output/RUN/plan.json")
