"""Results from another machine are checked, then imported completely or not at all."""

import json
import shutil
import tarfile
import zipfile
from pathlib import Path

import pytest
from support.stopped_runs import weights

from lorafit.cli.app import main
from lorafit.errors import LorafitError, RunError
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.transfer.bundle import bundle
from lorafit.transfer.fetch import fetch

Output = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def result(finished: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of a finished run."""
    path = tmp_path_factory.mktemp("result") / "result.zip"
    bundle(finished, saved_config(finished), path)
    return path


def test_a_result_becomes_a_run_that_can_be_chatted_with(
    result: Path, finished: RunDir, tmp_path: Path, capsys: Output
) -> None:
    assert main(["fetch", str(result), "--output_dir", str(tmp_path)]) == 0
    run = RunDir(tmp_path / finished.name)
    assert weights(run.final_model) == weights(finished.final_model)
    text = capsys.readouterr().out
    assert f"lorafit chat {run.path}\n" in text
    assert "--base_model FOLDER" not in text, "a model ID is looked up on the hub"


def test_an_unfinished_bundle_is_to_be_resumed(run_zip: Path, tmp_path: Path, capsys: Output) -> None:
    assert main(["fetch", str(run_zip), "--output_dir", str(tmp_path)]) == 0
    assert "resume" in capsys.readouterr().out


def packed_run(finished: RunDir, folder: Path, kind: str) -> Path:
    """Return the finished run as a platform returns it: in a `folder`, `zip` or `tar`, by `kind`."""
    inside = folder / "there"
    shutil.copytree(finished.path, inside / "deep" / finished.name)
    if kind == "folder":
        return inside
    if kind == "zip":
        return Path(shutil.make_archive(str(folder / "working"), "zip", inside))
    with tarfile.open(folder / "model.tar.gz", "w:gz") as tar:
        tar.add(inside, ".")
    return folder / "model.tar.gz"


@pytest.mark.parametrize("kind", ["folder", "zip", "tar"])
def test_a_runs_folder_is_found_in_a_folder_a_zip_or_a_tar(finished: RunDir, tmp_path: Path, kind: str) -> None:
    (fetched,) = fetch(packed_run(finished, tmp_path, kind), tmp_path / "output")
    assert fetched.finished
    assert fetched.run.name == finished.name
    assert weights(fetched.run.final_model) == weights(finished.final_model)
    assert not fetched.run.checkpoints.exists()
    assert sorted(path.name for path in (tmp_path / "output").iterdir()) == [finished.name]


def test_an_adapter_alone_and_a_bundle_in_a_tar_in_a_folder_are_found(
    finished: RunDir, result: Path, tmp_path: Path
) -> None:
    shutil.copytree(finished.final_model, tmp_path / "law-adapter")
    (alone,) = fetch(tmp_path / "law-adapter", tmp_path / "output")
    assert alone.run.name == "law-adapter"
    assert weights(alone.run.final_model) == weights(finished.final_model)
    (tmp_path / "job/output").mkdir(parents=True)
    with tarfile.open(tmp_path / "job/output/model.tar.gz", "w:gz") as tar:
        tar.add(result, "result.zip")
    (packed,) = fetch(tmp_path / "job", tmp_path / "output")
    assert packed.run.name == finished.name


def test_a_base_model_that_is_a_folder_elsewhere_is_reported(finished: RunDir, tmp_path: Path, capsys: Output) -> None:
    shutil.copytree(finished.final_model, tmp_path / "adapter")
    path = tmp_path / "adapter/adapter_config.json"
    path.write_text(json.dumps({**json.loads(path.read_text()), "base_model_name_or_path": "/opt/there/Tiny"}))
    (tmp_path / "adapter/manifest.json").unlink()
    assert main(["fetch", str(tmp_path / "adapter"), "--output_dir", str(tmp_path / "output")]) == 0
    assert "--base_model FOLDER" in capsys.readouterr().out


def copy_with_damage(finished: RunDir, folder: Path, name: str, content: bytes) -> Path:
    shutil.copytree(finished.path, folder / "run")
    (folder / "run/final_model" / name).write_bytes(content)
    return folder / "run"


@pytest.mark.parametrize("name", ["adapter_model.safetensors", "adapter_config.json", "manifest.json"])
def test_a_damaged_adapter_is_refused_and_nothing_is_imported(finished: RunDir, tmp_path: Path, name: str) -> None:
    with pytest.raises(LorafitError) as raised:
        fetch(copy_with_damage(finished, tmp_path, name, b"{}"), tmp_path / "output")
    assert raised.value.fix
    assert list((tmp_path / "output").iterdir()) == []


def test_settings_that_a_foreign_run_may_not_set_are_dropped(finished: RunDir, tmp_path: Path) -> None:
    shutil.copytree(finished.path, tmp_path / "run")
    config = tmp_path / "run/config.yaml"
    config.write_text(config.read_text().replace("trust_remote_code: false", "trust_remote_code: true"))
    (fetched,) = fetch(tmp_path / "run", tmp_path / "output")
    assert not saved_config(fetched.run).trust_remote_code


def test_a_source_without_a_run_or_with_paths_outside_is_refused(tmp_path: Path, capsys: Output) -> None:
    (tmp_path / "empty").mkdir()
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as evil:
        evil.writestr("../../evil", "x")
    for path in ("empty", "evil.zip", "missing.zip"):
        with pytest.raises(RunError):
            fetch(tmp_path / path, tmp_path / "output")
    assert main(["fetch"]) == 2
    assert "lorafit fetch" in capsys.readouterr().err
