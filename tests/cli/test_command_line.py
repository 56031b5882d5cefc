"""Tests of the command line: help, arguments, answers to wrong input, and exit codes."""

import json
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
import yaml

import lorafit
from lorafit.cli.app import COMMANDS, Command, flag_value, main
from lorafit.cli.commands import show_events
from lorafit.cli.parse import fill_in_latest, train_config
from lorafit.config import TrainConfig
from lorafit.errors import DoesNotFit
from lorafit.events import Event, Started, Stopped
from lorafit.messages import language
from lorafit.registry import Entry
from lorafit.run_folders.directory import RunDir, saved_config

Output = pytest.CaptureFixture[str]
LIGHT_COMMANDS = ["--help", "--version", "train --help", "chat --help"]


@pytest.fixture(autouse=True)
def width(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")


def yaml_file(folder: Path, text: str) -> str:
    (folder / "settings.yaml").write_text(text, "utf-8")
    return str(folder / "settings.yaml")


def run_with(folder: Path, name: str, **settings: object) -> Path:
    """Make the folder of a run that holds only its settings, and return it."""
    run = folder / name
    run.mkdir(parents=True)
    config = TrainConfig(**settings)  # type: ignore[arg-type]
    (run / "config.yaml").write_text(
        yaml.safe_dump(config.model_dump(exclude={"resume", "config", "plan", "dry_run", "lang"}))
    )
    return run


# help


@pytest.fixture(scope="module")
def loaded_modules() -> dict[str, list[str]]:
    """The modules that are loaded after each of LIGHT_COMMANDS, when one process runs them in this order."""
    program = f"""
import json, sys
from lorafit.cli.app import main
loaded = {{}}
for command in {LIGHT_COMMANDS!r}:
    assert main(command.split()) == 0
    loaded[command] = sorted(sys.modules)
print(json.dumps(loaded))
"""
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    modules: dict[str, list[str]] = json.loads(done.stdout.splitlines()[-1])
    return modules


@pytest.mark.parametrize("command", LIGHT_COMMANDS)
def test_help_loads_no_tensor_library_and_no_data_library(command: str, loaded_modules: dict[str, list[str]]) -> None:
    heavy = {"torch", "transformers", "datasets", "mlx", "tensorboard", "pyarrow"} & set(loaded_modules[command])
    assert not heavy


def test_help_itself_loads_little_more_than_rich(loaded_modules: dict[str, list[str]]) -> None:
    assert not {"numpy", "pydantic", "tyro", "yaml"} & set(loaded_modules["--help"])


def test_help_lists_every_command(capsys: Output) -> None:
    assert main(["--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"\n  {name} " in text for name in COMMANDS)


def test_help_of_train_names_every_setting_with_its_help(capsys: Output) -> None:
    assert main(["train", "--help"]) == 0
    text = capsys.readouterr().out
    assert all(f"--{name}" in text for name in TrainConfig.model_fields)
    assert "Rank (r) of the adapter." in text


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


def test_a_resumed_run_keeps_its_settings_except_those_given(tmp_path: Path) -> None:
    run_with(tmp_path, "llama-lora-20260101_120000", lora_r=2)
    newer = run_with(tmp_path, "llama-lora-20260102_120000", lora_r=3, seed=7, save_steps=5)
    config = train_config(["--resume", "--output_dir", str(tmp_path), "--save_steps", "9"])
    assert (config.lora_r, config.seed, config.save_steps, config.resume) == (3, 7, 9, "latest")
    assert train_config(["--resume", str(newer)]).lora_r == 3


def test_resume_as_a_command_is_train_with_resume(tmp_path: Path, demo_folder: Path) -> None:
    from support import tiny  # imports torch and transformers

    model = str(tiny.save_chat_model(tmp_path / "model", demo_folder))
    settings = {"model_name": model, "dataset_name": "demo", "max_samples": 4, "max_length": 64, "max_steps": 1}
    output = tmp_path / "output"
    named = run_with(output, "llama-lora-20260101_120000", lora_r=2, **settings)
    latest = run_with(output, "llama-lora-20260102_120000", lora_r=3, **settings)
    flags = ["--no_supervisor", "--no_preflight"]
    assert main(["resume", str(named), "--save_steps", "9", *flags]) == 0
    assert [RunDir(run).final_model.is_dir() for run in (named, latest)] == [True, False]
    assert main(["resume", "--output_dir", str(output), *flags]) == 0
    assert [RunDir(run).final_model.is_dir() for run in (named, latest)] == [True, True]
    assert [saved_config(RunDir(run)).lora_r for run in (named, latest)] == [2, 3]
    assert saved_config(RunDir(named)).save_steps == 9


@pytest.mark.parametrize(
    ("argv", "value"),
    [(["--lang", "zh"], "zh"), (["--lang=zh"], "zh"), (["--lang"], ""), ([], None), (["--lang", "--demo"], "")],
)
def test_a_flag_is_found_before_anything_is_parsed(argv: list[str], value: str | None) -> None:
    assert flag_value(argv, "lang") == value


def test_the_language_is_set_before_any_output(monkeypatch: pytest.MonkeyPatch) -> None:
    assert main(["--version", "--lang", "zh"]) == 0
    assert language() == "zh"
    monkeypatch.setenv("LORAFIT_LANG", "zh_CN")
    assert main(["--version", "--lang=en"]) == 0
    assert language() == "en"


def test_the_help_of_the_program_takes_the_language_before_or_behind_it(capsys: Output) -> None:
    shown = []
    for argv in (["--lang", "zh", "--help"], ["--lang=zh", "--help"], ["--help", "--lang", "zh"]):
        assert main(argv) == 0
        shown.append(capsys.readouterr().out)
    assert "用法：lorafit" in shown[0]
    assert shown == [shown[0]] * 3
    assert main(["--lang", "en", "--help"]) == 0
    assert "usage: lorafit" in capsys.readouterr().out


# wrong input


def test_an_unknown_flag_is_answered_with_the_near_one(capsys: Output) -> None:
    assert main(["train", "--lora_rr", "8"]) == 2
    text = capsys.readouterr().err
    assert "--lora_rr" in text
    assert "Did you mean `--lora_r`?" in text


@pytest.mark.parametrize(
    ("flags", "words"),
    [
        (["--lora_r", "many"], ["Invalid value for `lora_r`.", "lora_r: 'many'"]),
        (["--lora_r", "0"], ["lora_r", "'0'", "a whole number >= 1"]),
        (["--device", "tpu"], ["tpu", "cuda", "mps", "cpu"]),
    ],
)
def test_a_wrong_value_is_named_with_the_accepted_values(flags: list[str], words: list[str], capsys: Output) -> None:
    assert main(["train", *flags]) == 2
    text = capsys.readouterr().err
    assert all(word in text for word in words)
    assert "Traceback" not in text


def test_an_unknown_command_is_answered_with_the_near_one(capsys: Output) -> None:
    assert main(["trian"]) == 2
    assert "Did you mean `train`?" in capsys.readouterr().err


def test_an_unknown_yaml_key_is_answered_with_the_near_one(tmp_path: Path, capsys: Output) -> None:
    file = yaml_file(tmp_path, "lora_rr: 8\nlerning_rate: 1.0e-4\n")
    assert main(["train", "--config", file]) == 2
    text = capsys.readouterr().err
    assert "`lora_rr`: Did you mean `lora_r`?" in text
    assert "`lerning_rate`: Did you mean `learning_rate`?" in text
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
    assert "--prompt, --test_file cannot be used together" in capsys.readouterr().err


def test_questions_are_looked_at_before_any_model(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty.txt").write_text("\n \n")
    assert main(["chat", "--base_model", "demo", "--test_file", str(tmp_path / "empty.txt")]) == 2
    assert "no question" in capsys.readouterr().err
    assert main(["chat", "--base_model", "demo", "--test_file", str(tmp_path / "missing.txt")]) == 2
    assert "missing.txt" in capsys.readouterr().err


# exit codes


def does_not_fit(argv: list[str]) -> int:
    """A command whose events end with an error that the user can fix."""

    def events() -> Iterator[Event]:
        raise DoesNotFit("This does not fit.", found="needs 40 GiB", fix="--quantization 4bit")
        yield

    return show_events(events())


def has_a_bug(argv: list[str]) -> int:
    """A command whose events end with an error of lorafit itself."""

    def events() -> Iterator[Event]:
        1 / 0  # noqa: B018
        yield

    return show_events(events())


def is_interrupted(argv: list[str]) -> int:
    """A command that gets the signal of Ctrl-C."""

    def events() -> Iterator[Event]:
        signal.raise_signal(signal.SIGINT)
        yield

    return show_events(events())


@pytest.fixture
def run_as_command(monkeypatch: pytest.MonkeyPatch) -> Callable[[Callable[[list[str]], int]], int]:
    """Add a function of this module to lorafit's commands, run it as a user would, and return the exit code."""

    def run(function: Callable[[list[str]], int]) -> int:
        entry = Entry(f"{__name__}:{function.__name__}", "")
        monkeypatch.setitem(COMMANDS, "fail", Command(entry, lambda: "fail"))
        return main(["fail"])

    return run


def test_an_error_for_the_user_is_shown_with_its_fix_and_no_traceback(
    run_as_command: Callable[..., int], capsys: Output
) -> None:
    assert run_as_command(does_not_fit) == 2
    text = capsys.readouterr().err
    assert all(part in text for part in ("This does not fit.", "needs 40 GiB", "--quantization 4bit"))
    assert "Traceback" not in text


def test_a_bug_keeps_its_traceback_and_asks_for_a_report(run_as_command: Callable[..., int], capsys: Output) -> None:
    assert run_as_command(has_a_bug) == 1
    text = capsys.readouterr().err
    assert "ZeroDivisionError" in text
    assert "This is a bug in lorafit" in text


def test_ctrl_c_ends_with_130(run_as_command: Callable[..., int]) -> None:
    assert run_as_command(is_interrupted) == 130


@pytest.mark.parametrize(("number", "code"), [(2, 130), (15, 143)])
def test_the_exit_code_of_a_run_that_a_signal_stopped_tells_the_signal(number: int, code: int, tmp_path: Path) -> None:
    started = Started(
        run=str(tmp_path),
        model="m",
        engine="e",
        device="cpu",
        steps=9,
        train_samples=1,
        valid_samples=0,
        trainable_parameters=1,
    )
    assert show_events([started, Stopped(step=3, signal=number)]) == code


def test_runs_lists_the_latest_first(tmp_path: Path, capsys: Output) -> None:
    run_with(tmp_path, "llama-lora-20260101_120000")
    run_with(tmp_path, "llama-lora-20260102_120000")
    assert main(["runs", "--output_dir", str(tmp_path)]) == 0
    text = capsys.readouterr().out
    assert text.index("20260102") < text.index("20260101")
    assert main(["runs", "--output_dir", str(tmp_path / "none")]) == 0
    assert "No runs" in capsys.readouterr().out
