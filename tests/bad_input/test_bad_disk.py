"""A full or read-only disk loses nothing that was saved. The tests mount small disks where that is allowed."""

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.refusals import Refused, Words, adapter_bytes, the_run

from lorafit.cli.app import main
from lorafit.events import StepDone, read_events
from lorafit.run_folders.checkpoint import latest_good
from lorafit.training import preflight


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """A function that mounts or remounts a small disk with mount options. Without permission, the test is skipped."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[str] = []

    def mount(options: str) -> Path:
        remount = "remount," if mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        mounted.append(options)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_without_enough_room_is_reported_before_the_data_are_read(
    flags: Callable[..., Words], refused: Refused, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=64k")
    text = refused(flags(output_dir=folder / "output"), folder, "64 KiB", "--output_dir")
    assert "Reading" not in text
    assert list(folder.iterdir()) == []


def test_the_copies_of_the_tokenizer_count_in_the_room_that_is_needed(
    flags: Callable[..., Words], refused: Refused, disk: Callable[[str], Path], model: Path
) -> None:
    copy = (model / "tokenizer.json").stat().st_size
    folder = disk(f"size={4 * copy}")  # two checkpoints, best_model twice, and final_model
    refused(flags(output_dir=folder / "output", keep_checkpoints=1), folder, "--keep_checkpoints 1")


@pytest.mark.parametrize("verb", ["train", "plan"])
@pytest.mark.parametrize("language", ["en", "zh"])
def test_a_data_cache_that_cannot_be_written_is_replaced_by_a_temporary_folder(
    flags: Callable[..., Words],
    disk: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    verb: str,
    language: str,
) -> None:
    folder = disk("size=1m,ro") / "data"
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(folder))
    words = flags(lang=language)
    assert main(words if verb == "train" else ["plan", *words[2:]]) == 0
    said = capfd.readouterr()
    assert (said.out + said.err).count(f"{folder} ") == 1
    assert not folder.exists()


def test_a_read_only_data_cache_is_read(
    flags: Callable[..., Words],
    disk: Callable[[str], Path],
    capfd: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    folder = disk("size=16m") / "data"
    monkeypatch.setenv("LORAFIT_DATA_CACHE", str(folder))
    assert main(flags("--dry_run")) == 0
    disk("size=16m,ro")
    capfd.readouterr()
    assert main(flags("--dry_run")) == 0
    assert str(folder) not in capfd.readouterr().out


def test_a_read_only_disk_is_reported_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=1m,ro")
    text = refused(flags(output_dir=folder / "output"), folder, "Read-only", "--output_dir")
    assert "Looking for the model" not in text


def test_a_disk_that_fills_up_ends_with_an_error_and_with_room_the_run_resumes_to_the_same_bytes(
    flags: Callable[..., Words],
    disk: Callable[[str], Path],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    output = disk("size=12m") / "output"
    steps = {"max_steps": 5, "save_steps": 1, "keep_checkpoints": 4}
    with monkeypatch.context() as patched:  # the room is there at the start, and is taken later
        patched.setattr(preflight, "ensure_disk_space", lambda *_facts: None)
        assert main(flags(**steps, output_dir=output, lang="en")) == 2
    text = capsys.readouterr()
    run = the_run(output)
    assert "Traceback" not in text.err
    assert "The disk is full." in text.err
    assert f"resume {run.path}" in text.out
    good, bad = latest_good(run)
    assert good is not None
    assert bad == []
    assert not list(run.path.rglob(".*"))
    disk("size=64m")
    assert main(["resume", str(run.path), "--no_supervisor"]) == 0
    assert main(flags(**steps, output_dir=tmp_path / "undisturbed")) == 0
    assert adapter_bytes(output) == adapter_bytes(tmp_path / "undisturbed")
    both = [read_events(the_run(folder).events) for folder in (output, tmp_path / "undisturbed")]
    losses, wanted = ([(e.step, e.loss) for e in events if isinstance(e, StepDone)] for events in both)
    assert losses == wanted


def test_an_impossible_output_folder_is_reported_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, data: Path
) -> None:
    before = data.read_bytes()
    text = refused(flags(output_dir=data / "runs"), data / "runs", "--output_dir")
    assert "Looking for the model" not in text
    assert data.read_bytes() == before


def test_an_output_file_that_cannot_be_written_is_reported_before_the_model_is_looked_for(
    refused: Refused, adapter: Path, data: Path, tmp_path: Path
) -> None:
    argv = ["chat", "--lora_weights", str(adapter), "--base_model", str(tmp_path / "none"), "--test_file", str(data)]
    refused([*argv, "--output", str(tmp_path)], tmp_path, "--output")
    refused([*argv, "--output", str(data / "answers.jsonl")], data, "--output")
