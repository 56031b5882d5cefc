"""A run resumes with the base model, data, template and adapter that it began with, wherever the command is typed."""

import json
import shlex
import shutil
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support import tiny
from support.stopped_runs import as_it_died, weights

from lorafit.cli.app import main
from lorafit.config import read_yaml, write_yaml
from lorafit.models.identity import BLOCK_BYTES, SAMPLES, quick_digest
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.run_folders.origins import read_origins

Output = pytest.CaptureFixture[str]
BASE, DATA, TEMPLATE = "models/base", "law.jsonl", "chat.jinja"
ROWS = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
SETTINGS = "--max_length 64 --effective_batch 4 --lora_r 2 --max_steps 4 --save_steps 2 --eval_steps 2 --val_size 4"
TRAIN = f"train --no_supervisor --model_name {BASE} --dataset_name {DATA} --keep_checkpoints 9 {SETTINGS}"


def write_rows(path: Path, rows: list[dict[str, str]]) -> None:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")


def only_run(output: Path) -> RunDir:
    (path,) = output.iterdir()
    return RunDir(path)


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A folder with a finished run whose settings were typed with relative paths, and the run dead after step 2."""
    folder = tmp_path_factory.mktemp("made")
    tiny.save_chat_model(folder / BASE, demo_folder)
    write_rows(folder / DATA, ROWS)
    shutil.copy(demo_folder / "chat_template.jinja", folder / TEMPLATE)
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        assert main(shlex.split(f"{TRAIN} --chat_template {TEMPLATE} --output_dir finished")) == 0
    as_it_died(only_run(folder / "finished"), folder / "output", 2)
    return folder


@pytest.fixture
def home(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of `made` with its own paths in its run. The working directory is another, empty folder."""
    home = shutil.copytree(made, tmp_path / "home")
    stopped = only_run(home / "output")
    for path in (stopped.config, stopped.origins):
        path.write_text(path.read_text("utf-8").replace(str(made), str(home)), "utf-8")
    (tmp_path / "elsewhere").mkdir()
    monkeypatch.chdir(tmp_path / "elsewhere")
    return home


@pytest.fixture
def run(home: Path) -> RunDir:
    """The run that died after step 2, which was to have four."""
    return only_run(home / "output")


def resume(run: RunDir, *flags: str) -> int:
    return main(["resume", str(run.path), "--no_supervisor", *flags])


def assert_as_if_never_stopped(run: RunDir, home: Path) -> None:
    assert weights(run.final_model) == weights(only_run(home / "finished").final_model)


def shifted_weights(base: Path) -> None:
    """Replace the base model's weights by others of the same shapes, in a file of the same size."""
    arrays = {name: array + np.float32(0.01) for name, array in load_file(base / "model.safetensors").items()}
    save_file(arrays, base / "model.safetensors", {"format": "pt"})


def test_a_record_holds_absolute_paths_and_the_digests_of_all_files(home: Path, run: RunDir) -> None:
    saved, origins = saved_config(run), read_origins(run)
    named = (saved.model_name, saved.dataset_name, saved.chat_template)
    assert named == tuple(str(home / name) for name in (BASE, DATA, TEMPLATE))
    assert saved.output_dir == str(home / "finished")
    assert origins is not None
    assert (origins.base, [one.file for one in origins.data]) == (str(home / BASE), [str(home / DATA)])
    assert [one.rows for one in origins.data] == [len(ROWS)]
    assert origins.base_files.keys() == {"config.json", "model.safetensors"}
    whole = origins.base_files["model.safetensors"].sha256
    assert whole is not None
    assert len(whole) == 64


def test_a_run_resumes_from_another_folder_with_a_strangers_model_of_the_same_name(
    home: Path, run: RunDir, demo_folder: Path
) -> None:
    tiny.save_chat_model(Path(BASE), demo_folder, hidden_size=64)
    write_rows(Path(DATA), ROWS[:9])
    assert resume(run) == 0
    assert_as_if_never_stopped(run, home)


def test_typed_relative_paths_are_those_of_the_record(home: Path, run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(home)
    typed = ["--model_name", f"./{BASE}", "--dataset_name", DATA, "--chat_template", f"./{TEMPLATE}"]
    assert resume(run, "--dry_run", *typed) == 0


def test_replaced_weights_are_refused_by_name_with_both_digests(home: Path, run: RunDir, capsys: Output) -> None:
    weights_file = home / BASE / "model.safetensors"
    before = quick_digest(weights_file)
    shifted_weights(home / BASE)
    assert resume(run) == 2
    text = capsys.readouterr().err
    assert f"model.safetensors: {before[:12]} at the start, {quick_digest(weights_file)[:12]} now" in text
    assert f"--init_adapter {run.path}" in text
    assert str(home / BASE) in text
    assert "config.json" not in text


def test_a_change_between_the_blocks_of_the_quick_digest_is_found(home: Path, run: RunDir, capsys: Output) -> None:
    path = home / BASE / "model.safetensors"
    before, content = quick_digest(path), bytearray(path.read_bytes())
    gap = len(content) // (SAMPLES - 1)
    assert gap > 2 * BLOCK_BYTES
    content[30 * gap + gap // 2] ^= 1
    path.write_bytes(content)
    assert quick_digest(path) == before
    assert resume(run) == 2
    assert "model.safetensors" in capsys.readouterr().err


def test_a_changed_config_is_refused_and_a_rewritten_one_is_not(home: Path, run: RunDir, capsys: Output) -> None:
    path = home / BASE / "config.json"
    facts = json.loads(path.read_text("utf-8"))
    path.write_text(json.dumps({**facts, "rms_norm_eps": 1e-3}), "utf-8")
    assert resume(run) == 2
    assert "config.json: " in capsys.readouterr().err
    path.write_text(json.dumps({"_name_or_path": "x", **dict(reversed(facts.items()))}), "utf-8")
    assert resume(run, "--dry_run") == 0


def test_a_base_that_is_gone_is_no_model_id_and_may_be_given_anew(home: Path, run: RunDir, capsys: Output) -> None:
    moved = (home / BASE).rename(home / "moved")
    assert resume(run) == 2
    text = capsys.readouterr().err
    assert str(home / BASE) in text
    assert f"lorafit resume {run.path} --model_name PATH" in text
    assert resume(run, "--model_name", str(moved)) == 0
    assert_as_if_never_stopped(run, home)
    assert saved_config(run).model_name == str(moved)


def test_another_model_in_place_of_a_base_that_is_gone_is_refused(home: Path, run: RunDir, capsys: Output) -> None:
    other = (home / BASE).rename(home / "other")
    shifted_weights(other)
    assert resume(run, "--model_name", str(other)) == 2
    assert "model.safetensors" in capsys.readouterr().err


@pytest.mark.parametrize(("rows", "text"), [(ROWS[:18], "rows: 18"), ([*ROWS[1:], ROWS[0]], "rows: 20")])
def test_changed_data_are_refused_by_the_files_name(
    home: Path, run: RunDir, capsys: Output, rows: list[dict[str, str]], text: str
) -> None:
    write_rows(home / DATA, rows)
    assert resume(run) == 2
    said = capsys.readouterr().err
    assert f"{home / DATA}: rows: 20, sha256 " in said
    assert f" at the start, {text}, sha256 " in said
    assert "digest" not in said


def test_data_that_moved_are_missed_by_name_and_may_be_given_anew(home: Path, run: RunDir, capsys: Output) -> None:
    (home / DATA).rename(home / "renamed.jsonl")
    assert resume(run) == 2
    text = capsys.readouterr().err
    assert f"lorafit resume {run.path} --dataset_name PATH" in text
    assert resume(run, "--dataset_name", str(home / "renamed.jsonl")) == 0
    assert_as_if_never_stopped(run, home)


def test_a_changed_template_is_refused_by_its_files_name(home: Path, run: RunDir, capsys: Output) -> None:
    text = (home / TEMPLATE).read_text("utf-8")
    (home / TEMPLATE).write_text(text + "{# changed #}", "utf-8")
    assert resume(run) == 2
    assert f"{TEMPLATE}: " in capsys.readouterr().err
    assert resume(run, "--dry_run", "--chat_template", text) == 0


def test_a_changed_tokenizer_is_named(home: Path, run: RunDir, capsys: Output) -> None:
    path = home / BASE / "tokenizer.json"
    facts = json.loads(path.read_text("utf-8"))
    facts["model"]["merges"] = facts["model"]["merges"][:1000]
    path.write_text(json.dumps(facts), "utf-8")
    assert resume(run) == 2
    text = capsys.readouterr().err
    assert "tokenizer.json: " in text
    assert DATA not in text.partition("details:")[2]


@pytest.fixture
def older(home: Path, run: RunDir) -> Iterator[RunDir]:
    """The run as an earlier version wrote it: relative paths, without origins.json."""
    run.origins.unlink()
    config = saved_config(run).model_copy(update={"model_name": BASE, "dataset_name": DATA, "chat_template": TEMPLATE})
    write_yaml(config.model_copy(update={"output_dir": "output"}), run.config)
    adapter = run.checkpoints / "step-000002" / "adapter_config.json"
    assert Path(json.loads(adapter.read_text("utf-8"))["base_model_name_or_path"]).is_absolute()
    return run


def test_a_run_of_an_earlier_version_resumes_where_it_was_started(
    home: Path, older: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(home)
    assert resume(older) == 0
    assert_as_if_never_stopped(older, home)
    assert read_yaml(older.config)["dataset_name"] == str(home / DATA)
    assert older.origins.is_file()


def test_elsewhere_a_run_of_an_earlier_version_takes_the_base_that_its_adapter_names(
    made: Path, home: Path, older: RunDir, capsys: Output
) -> None:
    assert resume(older) == 2
    text = capsys.readouterr().err
    assert "in the folder where the run was started" in text
    assert "model_name" not in text
    assert resume(older, "--dataset_name", str(home / DATA), "--chat_template", str(home / TEMPLATE)) == 0
    assert_as_if_never_stopped(older, home)
    assert saved_config(older).model_name == str(made / BASE)


def test_without_a_record_a_base_that_is_gone_must_be_put_back(home: Path, older: RunDir, capsys: Output) -> None:
    (home / BASE).rename(home / "moved")
    settings = {"model_name": str(home / BASE), "dataset_name": str(home / DATA), "chat_template": None}
    write_yaml(saved_config(older).model_copy(update=settings), older.config)
    assert resume(older) == 2
    text = capsys.readouterr().err
    assert str(home / BASE) in text
    assert "--model_name" not in text


def test_a_changed_first_adapter_is_refused_only_if_training_starts_from_it_again(
    home: Path, monkeypatch: pytest.MonkeyPatch, capsys: Output
) -> None:
    monkeypatch.chdir(home)
    start = shutil.copytree(only_run(home / "finished").final_model, home / "start")
    assert main(shlex.split(f"{TRAIN} --init_adapter start --output_dir second")) == 0
    stopped = as_it_died(only_run(home / "second"), home / "again", 2)
    assert saved_config(stopped).init_adapter == str(start)
    shifted = {name: array + 1 for name, array in load_file(start / "adapter_model.safetensors").items()}
    save_file(shifted, start / "adapter_model.safetensors", {"format": "pt"})
    without_checkpoint = as_it_died(only_run(home / "second"), home / "lost", 2)
    shutil.rmtree(without_checkpoint.checkpoints)
    assert resume(without_checkpoint) == 2
    assert str(start) in capsys.readouterr().err
    assert resume(stopped) == 0
    assert weights(stopped.final_model) == weights(only_run(home / "second").final_model)


def test_a_damaged_record_is_refused_with_its_path(run: RunDir, capsys: Output) -> None:
    run.origins.write_text("[]", "utf-8")
    assert resume(run) == 2
    assert str(run.origins) in capsys.readouterr().err
