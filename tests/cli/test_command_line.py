"""Does the command line take what users type, and say in words what is wrong with it?"""

import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest
import yaml

import lorafit
from lorafit import api
from lorafit.cli.app import COMMANDS, flag_value, main
from lorafit.cli.commands import show_events
from lorafit.cli.parse import fill_in_latest, train_config
from lorafit.config import TrainConfig
from lorafit.errors import DoesNotFit
from lorafit.events import Event, Started, Stopped
from lorafit.messages import language

Output = pytest.CaptureFixture[str]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def yaml_file(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text, "utf-8")
    return str(folder / "settings.yaml")


def run_with(folder: Path, name: str, **settings: object) -> Path:
    """A run's folder as far as its settings."""
    run = folder / name
    run.mkdir(parents=True)
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    (run / "config.yaml").write_text(
        yaml.safe_dump(config.model_dump(exclude={"resume", "config", "plan", "dry_run", "lang"}))
    )
    return run


# help


@pytest.mark.parametrize("arguments", [["--help"], ["--version"], ["train", "--help"], ["chat", "--help"]])
def test_help_loads_no_tensor_library_and_no_data_library(arguments: list[str]) -> None:
    program = f"""
import sys
from lorafit.cli.app import main
assert main({arguments!r}) == 0
heavy = {{"torch", "transformers", "datasets", "mlx", "tensorboard", "pyarrow"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_help_itself_loads_little_more_than_rich() -> None:
    program = """
import sys
from lorafit.cli.app import main
main(["--help"])
assert not {"numpy", "pydantic", "tyro", "yaml"} & set(sys.modules)
"""
    subprocess.run([sys.executable, "-c", program], check=True, capture_output=True)


def test_help_lists_every_command(capsys: Output) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_of_train_names_every_setting_with_its_help(capsys: Output) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in TrainConfig.model_fields)
    assert "Rank of the adapter." in text


def test_version_and_python_m(capsys: Output) -> None:
    done = subprocess.run([sys.executable, "-m", "lorafit", "--version"], check=True, capture_output=True, text=True)
    assert done.stdout == f"lorafit {lorafit.__version__}\n"


# arguments


def test_underscores_and_hyphens_are_the_same() -> None:
    config = train_config(["--lora_r", "8", "--lora-alpha", "4", "--max_samples=7", "--dry-run"])
    assert (config.lora_r, config.lora_alpha, config.max_samples, config.dry_run) == (8, 4.0, 7, True)


def test_without_flags_the_config_is_the_default() -> None:
    assert train_config([]) == TrainConfig()


def test_flags_win_over_yaml_and_yaml_over_the_preset(tmp_path: Path) -> None:
    file = yaml_file(tmp_path, "lora-r: 4\nmax_length: 128\n")
    config = train_config(["--demo", "--config", file, "--max_length", "64"])
    assert config.lora_r == 4  # the preset says 16
    assert config.max_length == 64
    assert config.model_name == "demo"
    assert config.config == file


def test_the_preset_may_stand_in_the_yaml_file(tmp_path: Path) -> None:
    assert train_config(["--config", yaml_file(tmp_path, "demo: true\n")]).model_name == "demo"


@pytest.mark.parametrize(
    ("typed", "meant"),
    [
        (["--resume"], ["--resume", "latest"]),
        (["--resume", "--demo"], ["--resume", "latest", "--demo"]),
        (["--resume", "runs/a", "--demo"], ["--resume", "runs/a", "--demo"]),
        (["--resume=runs/a"], ["--resume=runs/a"]),
        (["--demo"], ["--demo"]),
    ],
)
def test_a_bare_resume_means_the_latest_run(typed: list[str], meant: list[str]) -> None:
    assert fill_in_latest(typed) == meant


def test_a_resumed_run_keeps_its_settings_but_for_what_is_said(tmp_path: Path) -> None:
    run_with(tmp_path, "llama-lora-20260101_120000", lora_r=2)
    newer = run_with(tmp_path, "llama-lora-20260102_120000", lora_r=3, seed=7, save_steps=5)
    config = train_config(["--resume", "--output_dir", str(tmp_path), "--save_steps", "9"])
    assert (config.lora_r, config.seed, config.save_steps, config.resume) == (3, 7, 9, "latest")
    assert train_config(["--resume", str(newer)]).lora_r == 3


def test_resume_as_a_command_is_train_with_resume(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    run = run_with(tmp_path, "llama-lora-20260101_120000", lora_r=2)
    seen: list[TrainConfig] = []
    monkeypatch.setattr(api, "train", lambda config: seen.append(config) or iter(()))
    assert main(["resume", str(run), "--save_steps", "9"]) == 0
    assert main(["resume", "--output_dir", str(tmp_path)]) == 0
    assert [(c.resume, c.lora_r) for c in seen] == [(str(run), 2), ("latest", 2)]
    assert seen[0].save_steps == 9


@pytest.mark.parametrize(
    ("argv", "value"),
    [(["--lang", "zh"], "zh"), (["--lang=zh"], "zh"), (["--lang"], ""), ([], None), (["--lang", "--demo"], "")],
)
def test_a_flag_is_found_before_anything_is_parsed(argv: list[str], value: str | None) -> None:
    assert flag_value(argv, "lang") == value


def test_the_language_is_set_before_anything_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--version", "--lang", "zh"]) == 0
    assert language() == "zh"
    monkeypatch.setenv("LORAFIT_LANG", "zh_CN")
    assert main(["--version", "--lang=en"]) == 0
    assert language() == "en"


# wrong input


def test_an_unknown_flag_is_answered_with_the_near_one(capsys: Output) -> None:
    assert main(["train", "--lora_rr", "8"]) == 2
    text = capsys.readouterr().err
    assert "--lora_rr" in text
    assert "Did you mean `--lora_r`?" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora_r", "many"], ["--lora_r", "many"]),
        (["--lora_r", "0"], ["lora_r", "'0'", "a whole number >= 1"]),
        (["--device", "tpu"], ["tpu", "cuda", "mps", "cpu"]),
    ],
)
def test_a_wrong_value_is_named_with_what_would_do(flags: list[str], words: list[str], capsys: Output) -> None:
    assert main(["train", *flags]) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words)
    assert "Traceback" not in text


def test_an_unknown_command_is_answered_with_the_near_one(capsys: Output) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean `train`?" in capsys.readouterr().err


def test_an_unknown_yaml_key_is_answered_with_the_near_one(tmp_path: Path, capsys: Output) -> None:
    file = yaml_file(tmp_path, "lora_rank: 8\nlerning_rate: 1.0e-4\n")
    assert main(["train", "--config", file]) == 2
    text = capsys.readouterr().err
    assert "lora_rank" in text
    assert "Did you mean `lora_r" in text
    assert file in text


def test_a_wrongly_typed_yaml_value_is_named_with_its_key(tmp_path: Path, capsys: Output) -> None:
    file = yaml_file(tmp_path, "lora_r: many\n")
    assert main(["train", "--config", file]) == 2
    text = capsys.readouterr().err
    assert "lora_r: 'many'" in text
    assert "Default: 32" in text
    assert file in text


def test_a_missing_yaml_file_is_named(capsys: Output) -> None:
    assert main(["train", "--config", "no/such.yaml"]) == 2
    assert "no/such.yaml" in capsys.readouterr().err


def test_a_missing_run_is_named(tmp_path: Path, capsys: Output) -> None:
    assert main(["resume", "nothing", "--output_dir", str(tmp_path)]) == 2
    assert "nothing" in capsys.readouterr().err


def test_two_things_at_once_are_refused(capsys: Output) -> None:
    assert main(["chat", "--prompt", "a", "--test_file", "b"]) == 2
    assert "Only one of --prompt, --test_file" in capsys.readouterr().err


def test_questions_are_looked_at_before_any_model(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["chat", "--base_model", "demo", "--test_file", str(tmp_path / "empty.txt")]) == 2
    assert "no question" in capsys.readouterr().err
    assert main(["chat", "--base_model", "demo", "--test_file", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err


# how a command ends


def test_an_error_for_the_user_is_shown_with_its_remedy_and_no_traceback(
    monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    def train(config: TrainConfig) -> Iterator[Event]:
        raise DoesNotFit("This does not fit.", found="needs 40 GiB", fix="--quantization 4bit")
        yield

    monkeypatch.setattr(api, "train", train)
    assert main(["train"]) == 2
    text = capsys.readouterr().err
    assert all(part in text for part in ("This does not fit.", "needs 40 GiB", "--quantization 4bit"))
    assert "Traceback" not in text


def test_a_bug_keeps_its_traceback_and_owns_up(monkeypatch: pytest.MonkeyPatch, capsys: Output) -> None:
    monkeypatch.setattr(api, "train", lambda config: 1 / 0)
    assert main(["train"]) == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert "This is a bug in lorafit" in text


def test_ctrl_c_ends_with_130(monkeypatch: pytest.MonkeyPatch) -> None:
    def train(config: TrainConfig) -> Iterator[Event]:
        raise KeyboardInterrupt
        yield

    monkeypatch.setattr(api, "train", train)
    assert main(["train"]) == 130


@pytest.mark.parametrize(("signal", "code"), [(2, 130), (15, 143)])
def test_a_run_that_a_signal_stopped_ends_with_its_number(signal: int, code: int, tmp_path: Path) -> None:
    begun = Started(
        run=str(tmp_path),
        model="m",
        engine="e",
        device="cpu",
        steps=9,
        train_samples=1,
        valid_samples=0,
        trainable_parameters=1,
    )
    assert show_events([begun, Stopped(step=3, signal=signal)]) == code


def test_runs_lists_the_latest_first(tmp_path: Path, capsys: Output) -> None:
    run_with(tmp_path, "llama-lora-20260101_120000")
    run_with(tmp_path, "llama-lora-20260102_120000")
    assert main(["runs", "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.index("20260102") < text.index("20260101")
    assert main(["runs", "--output_dir", str(tmp_path / "none")]) == 0
    assert "No runs" in capsys.readouterr().out
