"""A run's folder has a unique name, is found by what users type, has one writer, and is listed even if damaged."""

import os
import re
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path

import pytest

from lorafit.errors import AdapterError, DiskError, RunError
from lorafit.events import EvalDone, Event, Finished, Resumed, Started, StepDone, Stopped, to_line
from lorafit.run_folders import directory
from lorafit.run_folders.checkpoint import save_checkpoint
from lorafit.run_folders.directory import RunDir, RunInfo, create, find_run, latest_run, list_runs
from lorafit.run_folders.find_adapter import find_adapter

STARTED = Started(
    run="r",
    model="demo",
    engine="torch",
    device="cpu",
    steps=9,
    train_samples=5,
    valid_samples=1,
    trainable_parameters=1,
)
FINISHED = Finished(
    step=9, seconds=1.0, valid_loss_before=3.0, valid_loss_after=2.0, best_step=9, best_loss=2.0, path="final_model"
)


def make_run(output: Path, name: str) -> RunDir:
    run = RunDir(output / name)
    run.path.mkdir(parents=True)
    run.config.write_text("seed: 1\n")
    return run


def step(number: int, loss: float) -> StepDone:
    return StepDone(
        step=number, loss=loss, target_tokens=1, tokens=1, grad_norm=1.0, lr=1.0, seconds=1.0, peak_bytes=None, micro_batches=1, epoch=0.1
    )  # fmt: skip


def evaluated(number: int, loss: float) -> EvalDone:
    return EvalDone(step=number, loss=loss, target_tokens=1, seconds=1.0, best=True)


def write_events(run: RunDir, *events: Event, torn: str = "") -> None:
    """Replace the run's log by `events`, followed by the damaged text `torn`."""
    run.events.write_text("".join(to_line(e) + "\n" for e in events) + torn, "utf-8")


def info(run: RunDir) -> RunInfo:
    return next(i for i in list_runs(run.path.parent) if i.name == run.name)


def test_a_run_is_named_by_model_type_and_time(tmp_path: Path) -> None:
    run = create(tmp_path / "deep" / "output", "llama")
    assert re.fullmatch(r"llama-lora-\d{8}_\d{6}", run.name)
    assert run.path.is_dir()
    assert run.path.parent == tmp_path / "deep" / "output"


def test_two_runs_in_the_same_second_get_two_folders_whatever_their_case(tmp_path: Path) -> None:
    stamp, names = "", []
    while stamp != time.strftime("%Y%m%d_%H%M%S"):  # again if a second ended while the folders were created
        stamp = time.strftime("%Y%m%d_%H%M%S")
        (tmp_path / stamp / f"QWEN2-lora-{stamp}").mkdir(parents=True)
        names = [create(tmp_path / stamp, kind).name for kind in ("llama", "Llama", "llama", "qwen2")]
    stem = f"llama-lora-{stamp}"
    assert names == [stem, f"{stem}_2", f"{stem}_3", f"qwen2-lora-{stamp}_2"]


@pytest.mark.parametrize(
    ("model_type", "kind"),
    [("../../etc", "etc"), ("", "model"), ("..", "model"), ("gemma3_text", "gemma3_text"), ("a/b c", "a_b_c")],
)
def test_a_model_type_from_a_strange_file_cannot_lead_elsewhere(tmp_path: Path, model_type: str, kind: str) -> None:
    run = create(tmp_path, model_type)
    assert run.path.resolve().parent == tmp_path.resolve()
    assert run.name.startswith(f"{kind}-lora-")


def test_an_output_folder_that_cannot_be_created_raises_a_disk_error(tmp_path: Path) -> None:
    (tmp_path / "output").write_text("a file in the way")
    for output in (tmp_path / "output", tmp_path / "output" / "below"):
        with pytest.raises(DiskError, match="cannot be written") as raised:
            create(output, "llama")
        assert "--output_dir" in (raised.value.fix or "")


@pytest.mark.skipif(os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_output_folder_raises_a_disk_error(tmp_path: Path) -> None:
    tmp_path.chmod(0o500)
    with pytest.raises(DiskError, match="cannot be written"):
        create(tmp_path, "llama")
    tmp_path.chmod(0o700)


def test_the_latest_run_is_the_one_started_last_even_if_an_older_one_was_touched(tmp_path: Path) -> None:
    assert latest_run(tmp_path / "absent") is None
    names = [
        "qwen2-lora-20260102_000000",
        "llama-lora-20260102_000000_2",
        "llama-lora-20260102_000000_10",
        "zeta-lora-20250101_000000",
    ]
    runs = [make_run(tmp_path, name) for name in names]
    (tmp_path / "no-run-lora-20300101_000000").mkdir()
    os.utime(runs[3].path, (4e9, 4e9))
    assert latest_run(tmp_path) == runs[2]
    assert [i.name for i in list_runs(tmp_path)] == [names[2], names[1], names[0], names[3]]


def test_a_run_is_found_by_path_by_name_and_as_the_latest(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    older, newer = make_run(tmp_path, "llama-lora-20260101_000000"), make_run(tmp_path, "my experiment")
    assert find_run(str(older.path), tmp_path / "elsewhere").path == older.path
    assert find_run(older.name, tmp_path).path == older.path
    assert find_run(older.name + "/", tmp_path).name == older.name
    assert find_run("", tmp_path).path == find_run("latest", tmp_path).path == newer.path
    monkeypatch.chdir(older.path)
    assert find_run(".", tmp_path).name == older.name


def test_a_missing_run_raises_an_error_with_similar_names(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="No runs yet"):
        find_run("", tmp_path)
    make_run(tmp_path, "llama-lora-20260101_000000")
    with pytest.raises(RunError, match="Did you mean llama-lora-20260101_000000"):
        find_run("lama-lora-20260101_00000", tmp_path)
    with pytest.raises(RunError, match="lorafit runs"):
        find_run("x", tmp_path)
    (tmp_path / "empty").mkdir()
    with pytest.raises(RunError, match=r"config\.yaml"):
        find_run(str(tmp_path / "empty"), tmp_path)


HOLDER = """
import sys
from pathlib import Path
from lorafit.run_folders.directory import RunDir
with RunDir(Path(sys.argv[1])).lock():
    print("locked", flush=True)
    sys.stdin.read()
"""


def test_a_run_has_one_writer_and_death_frees_it(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    write_events(run, STARTED, step(1, 2.0))
    holder = subprocess.Popen(
        [sys.executable, "-c", HOLDER, str(run.path)], stdin=subprocess.PIPE, stdout=subprocess.PIPE
    )
    assert holder.stdout is not None
    assert holder.stdin is not None
    assert holder.stdout.readline() == b"locked\n"
    with pytest.raises(RunError, match=f"process {holder.pid}"), run.lock():
        pass
    assert info(run).state == "running"
    holder.kill()
    holder.wait()
    holder.stdout.close()
    holder.stdin.close()
    assert info(run).state == "interrupted"
    with run.lock():
        assert run.lock_file.read_text() == f"{os.getpid()}\n"
        with pytest.raises(RunError, match=f"process {os.getpid()}"), run.lock():
            pass
    with run.lock():
        pass


def test_listing_runs_does_not_block_a_writer(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    for _ in range(20):
        with run.lock():
            assert info(run).state == "running"
        assert info(run).state == "interrupted"


def test_the_list_shows_the_progress_of_each_run(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    fresh = RunInfo("run", run.path, None, "interrupted", 0, None, None, None, None)
    assert info(run) == fresh
    run.plan.write_text('{"steps": 10}')
    assert info(run) == replace(fresh, steps=10)
    run.plan.unlink()
    events = [STARTED, evaluated(0, 3.5), step(1, 3.0)]
    write_events(run, *events)
    started = replace(fresh, model="demo", steps=9, valid_loss_before=3.5)
    assert info(run) == replace(started, step=1, loss=3.0)
    write_events(run, *events, step(2, 2.5), evaluated(2, 2.75), Stopped(step=2, signal=2))
    assert info(run) == replace(started, step=2, loss=2.5, state="stopped", valid_loss_after=2.75)
    write_events(run, *events, step(2, 2.5), Stopped(step=2, signal=2), Resumed(step=1, checkpoint="c"))
    assert info(run) == replace(started, step=1, loss=3.0)
    write_events(run, *events, FINISHED)
    assert info(run) == replace(
        started, step=9, loss=3.0, state="finished", valid_loss_before=3.0, valid_loss_after=2.0
    )


@pytest.mark.parametrize(
    "line",
    [
        "{",
        "5",
        "null",
        "[1]",
        '{"event": []}',
        '{"event": "step"}',
        '{"event": "step", "step": "x", "loss": {}}',
        "[" * 100_000,
        "\x00",
    ],
)
def test_damaged_lines_do_not_stop_the_list(tmp_path: Path, line: str) -> None:
    run = make_run(tmp_path, "run")
    write_events(run, STARTED, step(1, 3.0), torn=line + "\n")
    run.plan.write_text(line)
    assert (info(run).state, info(run).model) == ("interrupted", "demo")


def test_events_of_wrong_types_become_unknown_values(tmp_path: Path) -> None:
    run = make_run(tmp_path, "run")
    facts = {"run": 1, "model": 2, "engine": 3, "device": 4, "steps": "many", "train_samples": 0, "valid_samples": 0}
    run.events.write_text(
        str({"event": "started", "trainable_parameters": 1, "step": "x", **facts}).replace("'", '"') + "\n"
    )
    run.plan.write_text('{"steps": true}')
    assert info(run) == RunInfo("run", run.path, None, "interrupted", 0, None, None, None, None)


def adapter_in(folder: Path) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "adapter_config.json").write_text("{}")
    return folder


def test_the_adapter_of_a_run_is_the_final_else_the_best_else_that_of_the_newest_valid_checkpoint(
    tmp_path: Path,
) -> None:
    run = make_run(tmp_path, "run")
    with pytest.raises(AdapterError, match="No adapter found"):
        find_adapter(run.path, tmp_path)
    older, newer = (save_checkpoint(run, s, lambda folder: (adapter_in(folder), None)[1]).path for s in (1, 2))
    assert find_adapter(run.path, tmp_path) == newer
    (newer / "state.json").write_text("torn")
    assert find_adapter(run.path, tmp_path) == older
    best = adapter_in(run.best_model)
    assert find_adapter(run.path, tmp_path) == best
    final = adapter_in(run.final_model)
    assert find_adapter(run.path, tmp_path) == final


def test_an_adapter_is_found_by_its_own_folder_too(tmp_path: Path) -> None:
    for folder in (tmp_path / "final_model", tmp_path / "checkpoints" / "step-000001"):
        assert find_adapter(adapter_in(folder), tmp_path) == folder


def test_a_folder_without_an_adapter_raises_an_error_that_says_what_was_found(tmp_path: Path) -> None:
    with pytest.raises(AdapterError, match="no such folder"):
        find_adapter(tmp_path / "absent", tmp_path)
    saved = save_checkpoint(RunDir(tmp_path), 1, lambda folder: (adapter_in(folder), None)[1])
    (saved.path / "adapter_config.json").unlink()
    with pytest.raises(AdapterError, match=r"step-000001: adapter_config\.json is missing"):
        find_adapter(tmp_path, tmp_path)


def test_all_files_of_a_run_have_their_fixed_names() -> None:
    run = RunDir(Path("output/r"))
    assert [p.name for p in (run.config, run.plan, run.machine, run.events, run.rejects, run.report)] == [
        "config.yaml", "plan.json", "machine.json", "events.jsonl", "rejects.jsonl", "report.html",
    ]  # fmt: skip
    assert [p.name for p in (run.logs, run.checkpoints, run.final_model, run.best_model)] == [
        "logs", "checkpoints", "final_model", "best_model",
    ]  # fmt: skip
    assert directory.RunDir(Path("output/r")) == run
