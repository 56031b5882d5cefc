"""A checkpoint is complete or absent, whatever happens while it is saved or later."""

import errno
import json
import os
import random
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import save_file

from lorafit import atomic
from lorafit.atomic import atomic_file, atomic_folder, restore_set_aside, verify
from lorafit.errors import DiskError
from lorafit.run_folders.checkpoint import latest_good, make_room, prune, save_checkpoint
from lorafit.run_folders.directory import RunDir

SAVER = """
import sys
from pathlib import Path
from lorafit.run_folders.checkpoint import prune, save_checkpoint
from lorafit.run_folders.directory import RunDir

def write(folder):
    for part in range(3):
        (folder / f"part-{part}").write_bytes(bytes([step % 256]) * 200_000)

run, step = RunDir(Path(sys.argv[1])), 0
while True:
    step = step % 4 + 1  # the same steps again and again, as after resumes
    save_checkpoint(run, step, write)
    prune(run, 2)
    print(step, flush=True)
"""


def writer(text: str = "weights") -> Callable[[Path], None]:
    def write(folder: Path) -> None:
        (folder / "sub").mkdir()
        (folder / "a.bin").write_text(text)
        (folder / "sub" / "b.bin").write_text(text * 100)

    return write


@pytest.fixture
def run(tmp_path: Path) -> RunDir:
    run = RunDir(tmp_path / "llama-lora-20260101_000000")
    run.path.mkdir()
    return run


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of 512 KiB. The test is skipped if this process may not mount one."""
    disk = tmp_path / "disk"
    disk.mkdir()
    may_mount = sys.platform == "linux" and os.geteuid() == 0
    command = ["mount", "-t", "tmpfs", "-o", "size=512k", "tmpfs", str(disk)]
    if not may_mount or subprocess.run(command, capture_output=True, check=False).returncode != 0:
        pytest.skip("no permission to mount a small disk")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)


def hidden(folder: Path) -> list[str]:
    return [p.name for p in folder.iterdir() if p.name.startswith(".")]


def test_a_saved_checkpoint_verifies_and_knows_its_step_and_size(run: RunDir) -> None:
    saved = save_checkpoint(run, 123, writer())
    assert saved.path == run.checkpoints / "step-000123"
    assert saved.bytes == sum(p.stat().st_size for p in saved.path.rglob("*") if p.is_file())
    assert json.loads((saved.path / "state.json").read_text()) == {"step": 123}
    assert set(json.loads((saved.path / "manifest.json").read_text())["files"]) == {"a.bin", "state.json", "sub/b.bin"}
    assert verify(saved.path) is None
    assert latest_good(run) == (saved.path, [])
    assert hidden(run.checkpoints) == []


def flip_a_bit(folder: Path) -> None:
    data = bytearray((folder / "sub" / "b.bin").read_bytes())
    data[50] ^= 1
    (folder / "sub" / "b.bin").write_bytes(data)


DAMAGES: dict[str, tuple[Callable[[Path], object], str]] = {
    "a flipped bit": (flip_a_bit, "sub/b.bin was changed: its SHA-256 checksum differs"),
    "a truncation": (lambda f: (f / "a.bin").write_text("weight"), "a.bin has 6 bytes instead of 7"),
    "a missing file": (lambda f: (f / "a.bin").unlink(), "a.bin is missing"),
    "a folder for a file": (lambda f: ((f / "a.bin").unlink(), (f / "a.bin").mkdir()), "a.bin"),
    "no manifest": (lambda f: (f / "manifest.json").unlink(), "manifest.json is missing"),
    "an empty manifest": (lambda f: (f / "manifest.json").write_text(""), "manifest.json cannot be read"),
    "a manifest of another type": (lambda f: (f / "manifest.json").write_text("[1]"), "list of files is missing"),
    "a manifest without files": (
        lambda f: (f / "manifest.json").write_text('{"files": {}}'),
        "list of files is missing",
    ),
    "an endless manifest": (lambda f: (f / "manifest.json").write_text("[" * 100_000), "manifest.json cannot be read"),
    "a manifest that looks outside": (
        lambda f: (f / "manifest.json").write_text('{"files": {"../x": {"bytes": 1, "sha256": ""}}}'),
        "../x",
    ),
    "sizes of a wrong type": (
        lambda f: (f / "manifest.json").write_text('{"files": {"a.bin": {"bytes": true, "sha256": ""}}}'),
        "a.bin",
    ),
    "bytes that are no text": (
        lambda f: (f / "manifest.json").write_bytes(b"\xff\xfe"),
        "manifest.json cannot be read",
    ),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_damage_is_found_and_the_checkpoint_before_it_is_used(run: RunDir, damage: str) -> None:
    older, newer = (save_checkpoint(run, step, writer()).path for step in (1, 2))
    do_damage, reason = DAMAGES[damage]
    do_damage(newer)
    good, bad = latest_good(run)
    assert good == older
    assert [path for path, _why in bad] == [newer]
    assert reason in bad[0][1]


@pytest.mark.parametrize("state", ['{"step": 1}', '{"step": "2"}', '{"step": true}', "{}", "7", "", "null"])
def test_a_state_that_does_not_fit_the_name_is_bad(run: RunDir, state: str) -> None:
    with atomic_folder(run.checkpoints / "step-000002") as folder:
        (folder / "state.json").write_text(state)
    good, bad = latest_good(run)
    assert good is None
    assert "state.json" in bad[0][1]


def test_other_names_than_checkpoints_are_ignored(run: RunDir) -> None:
    saved = save_checkpoint(run, 5, writer())
    for name in (
        "step-6",
        "step-000x07",
        "step-0000008",
        "step-١٢٣٤٥٦",
        "step--00009",
        "best",
        ".DS_Store",
        "step-000010 copy",
    ):
        (run.checkpoints / name).mkdir()
    (run.checkpoints / "step-000011").write_text("a file")
    assert latest_good(run) == (saved.path, [])
    prune(run, 1)
    assert (run.checkpoints / "step-6").is_dir()


def test_steps_beyond_six_digits_are_newer(run: RunDir) -> None:
    for step in (999_999, 1_000_000):
        save_checkpoint(run, step, writer())
    assert latest_good(run)[0] == run.checkpoints / "step-1000000"


def test_without_any_checkpoint_there_is_none(run: RunDir) -> None:
    assert latest_good(run) == (None, [])
    prune(run, 2)


def _write_and_raise(folder: Path, failure: type[BaseException]) -> None:
    writer("new")(folder)
    raise failure


@pytest.mark.parametrize("failure", [RuntimeError, KeyboardInterrupt])
def test_a_failure_while_writing_leaves_the_older_folder_unchanged(
    tmp_path: Path, failure: type[BaseException]
) -> None:
    target = tmp_path / "final_model"
    with atomic_folder(target) as folder:
        writer("old")(folder)
    with pytest.raises(failure), atomic_folder(target) as folder:
        _write_and_raise(folder, failure)
    assert verify(target) is None
    assert (target / "a.bin").read_text() == "old"
    assert hidden(tmp_path) == []


def test_a_failed_rename_brings_the_older_folder_back(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target = tmp_path / "final_model"
    with atomic_folder(target) as folder:
        writer("old")(folder)
    rename = Path.rename

    def fail_once(self: Path, to: Path) -> Path:
        if self.name.startswith(".tmp"):
            raise OSError(errno.EIO, os.strerror(errno.EIO))
        return rename(self, to)

    monkeypatch.setattr(Path, "rename", fail_once)
    with pytest.raises(DiskError), atomic_folder(target) as folder:
        writer("new")(folder)
    assert (target / "a.bin").read_text() == "old"
    assert hidden(tmp_path) == []


def test_a_new_folder_replaces_the_older_one_entirely(tmp_path: Path) -> None:
    for text, extra in (("old", "only-old"), ("new", "only-new")):
        with atomic_folder(tmp_path / "model") as folder:
            writer(text)(folder)
            (folder / extra).touch()
    assert (tmp_path / "model" / "a.bin").read_text() == "new"
    assert not (tmp_path / "model" / "only-old").exists()
    assert hidden(tmp_path) == []


def test_prune_keeps_the_newest_and_never_deletes_the_last_good_one(run: RunDir) -> None:
    for step in range(1, 6):
        save_checkpoint(run, step, writer())
    prune(run, 3)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000003", "step-000004", "step-000005"]
    flip_a_bit(run.checkpoints / "step-000005")
    flip_a_bit(run.checkpoints / "step-000004")
    prune(run, 1)
    assert sorted(p.name for p in run.checkpoints.iterdir()) == ["step-000003", "step-000005"]
    assert latest_good(run)[0] == run.checkpoints / "step-000003"


def dead_pid() -> int:
    """Return the process ID of a process that has ended."""
    child = subprocess.Popen(["true"])
    child.wait()
    return child.pid


def test_prune_deletes_leftovers_of_dead_processes_and_keeps_those_of_live_ones(run: RunDir) -> None:
    save_checkpoint(run, 1, writer())
    stale = [
        f".tmp-{dead_pid()}-0a-step-000002",
        f".old-{dead_pid()}-0a-step-000001",
        f".tmp-{os.getpid()}-0a-step-000003",
    ]
    alive = [f".tmp-{os.getppid()}-0a-step-000002", f".tmp-{os.getpid()}-{atomic.TOKEN}-step-000004"]
    for name in stale + alive:
        (run.checkpoints / name).mkdir()
    (run.path / f".tmp-{dead_pid()}-0a-final_model").mkdir()
    prune(run, 1)
    assert sorted(hidden(run.checkpoints)) == sorted(alive)
    assert hidden(run.path) == []
    assert latest_good(run)[0] == run.checkpoints / "step-000001"


def test_a_folder_set_aside_is_restored_if_the_process_died_before_it_was_replaced(tmp_path: Path) -> None:
    with atomic_folder(tmp_path / "model") as folder:
        writer()(folder)
    (tmp_path / "model").rename(tmp_path / f".old-{dead_pid()}-0a-model")
    restore_set_aside(tmp_path)
    assert verify(tmp_path / "model") is None


def test_a_process_killed_at_any_moment_leaves_a_good_checkpoint(run: RunDir) -> None:
    rng = random.Random(7)
    for _kill in range(12):
        saver = subprocess.Popen([sys.executable, "-c", SAVER, str(run.path)], stdout=subprocess.PIPE)
        assert saver.stdout is not None
        saver.stdout.readline()  # the saver is now writing checkpoints
        time.sleep(rng.uniform(0, 0.1))
        saver.send_signal(signal.SIGKILL)
        saver.wait()
        saver.stdout.close()
        good, bad = latest_good(run)
        assert good is not None
        assert bad == []
        assert verify(good) is None
    prune(run, 2)
    assert hidden(run.checkpoints) == []


def test_a_full_disk_raises_a_disk_error_and_the_last_checkpoint_stays(small_disk: Path) -> None:
    run = RunDir(small_disk / "run")
    run.path.mkdir()
    saved = save_checkpoint(run, 1, writer())
    for write in (
        lambda folder: (folder / "big").write_bytes(bytes(2_000_000)),
        lambda folder: save_file({"big": np.zeros(500_000, np.float32)}, folder / "big.safetensors"),
    ):
        with pytest.raises(DiskError, match="The disk is full") as raised:
            save_checkpoint(run, 2, write)
        assert raised.value.where == str(run.checkpoints / "step-000002")
        assert "left" in (raised.value.found or "")
        assert "--output_dir" in (raised.value.fix or "")
    assert latest_good(run) == (saved.path, [])
    assert hidden(run.checkpoints) == []


@pytest.mark.parametrize(
    ("code", "words"),
    [(errno.ENOSPC, "The disk is full"), (errno.EROFS, "cannot be written"), (errno.EACCES, "cannot be written")],
)
def test_a_refused_write_raises_a_disk_error(run: RunDir, code: int, words: str) -> None:
    def refused(folder: Path) -> None:
        (folder / "half").write_text("half")
        raise OSError(code, os.strerror(code))

    with pytest.raises(DiskError, match=words) as raised:
        save_checkpoint(run, 1, refused)
    assert os.strerror(code) in (raised.value.found or "")
    assert list(run.checkpoints.iterdir()) == []


def test_a_disk_that_fails_on_flush_leaves_nothing(run: RunDir, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(atomic, "_sync", full)
    with pytest.raises(DiskError):
        save_checkpoint(run, 1, writer())
    assert list(run.checkpoints.iterdir()) == []


def test_space_for_the_next_checkpoint_is_checked_before_each_save_and_made_by_deleting_older_ones(
    run: RunDir, monkeypatch: pytest.MonkeyPatch
) -> None:
    def set_free_bytes(*sizes: int) -> None:
        """Let the checks see these amounts of free space in turn; the last one stays."""
        rooms = [*sizes]
        monkeypatch.setattr(atomic, "_room_bytes", lambda _path: rooms.pop(0) if len(rooms) > 1 else rooms[0])

    set_free_bytes(0)
    make_room(run)  # without an earlier checkpoint the size is unknown
    saved = [save_checkpoint(run, step, writer("w" * 1000)) for step in (1, 2)]
    size = saved[-1].bytes
    set_free_bytes(2 * size)
    make_room(run)
    assert all(one.path.is_dir() for one in saved)
    set_free_bytes(size // 2, 2 * size)
    make_room(run)
    assert [one.path.is_dir() for one in saved] == [False, True]
    set_free_bytes(size // 2)
    with pytest.raises(DiskError, match="Not enough disk space") as raised:
        make_room(run)
    assert "--keep_checkpoints 1" in (raised.value.fix or "")
    assert latest_good(run) == (saved[1].path, [])


def test_a_file_in_place_of_the_folder_raises_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "checkpoints").write_text("in the way")
    with pytest.raises(DiskError, match="cannot be written"):
        save_checkpoint(RunDir(tmp_path), 1, writer())
    (tmp_path / "model").write_text("in the way")
    with pytest.raises(DiskError), atomic_folder(tmp_path / "model") as folder:
        writer()(folder)
    assert (tmp_path / "model").read_text() == "in the way"


def test_other_errors_pass_as_they_are(run: RunDir) -> None:
    def bug(folder: Path) -> None:
        raise FileNotFoundError(errno.ENOENT, "our own bug")

    with pytest.raises(FileNotFoundError):
        save_checkpoint(run, 1, bug)
    assert list(run.checkpoints.iterdir()) == []


@pytest.mark.parametrize("failure", [OSError(errno.ENOSPC, "full"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_leaves_the_older_one_unchanged(tmp_path: Path, failure: BaseException) -> None:
    target = tmp_path / "config.yaml"
    with atomic_file(target) as path:
        path.write_text("old")
    with pytest.raises((DiskError, KeyboardInterrupt)), atomic_file(target) as path:  # noqa: PT012
        path.write_text("new, but to")
        raise failure
    assert [(p.name, p.read_text()) for p in tmp_path.iterdir()] == [("config.yaml", "old")]


def test_prune_deletes_a_file_that_a_dead_process_left(run: RunDir) -> None:
    save_checkpoint(run, 1, writer())
    leftover = run.path / f".tmp-{dead_pid()}-00000000-config.yaml"
    leftover.write_text("half")
    prune(run, 2)
    assert not leftover.exists()
