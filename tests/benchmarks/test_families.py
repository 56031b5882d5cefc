"""The matrix of model families: three kinds in the fast run, all of them in the slow one; a crash is a row."""

import json
import multiprocessing
import os
import signal
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from support.paths import ROOT

sys.path.insert(0, str(ROOT / "benchmarks"))

from matrix import children, page

LEAST_TYPES = 80
FAST = "llama,qwen3_5_text,gemma3"  # the fast path, a recurrent state, a vision tower


def matrix(record: Path, *flags: str) -> tuple[subprocess.CompletedProcess[str], list[dict[str, Any]]]:
    """Run the script with the record in `record`; return the process and the rows."""
    command = [sys.executable, str(ROOT / "benchmarks/families.py"), "--no-page", "--json", str(record), *flags]
    done = subprocess.run(command, capture_output=True, text=True, env={**os.environ, "PYTHONPATH": str(ROOT)})
    return done, [json.loads(line)["row"] for line in record.read_text("utf-8").splitlines()]


def outcome(state: str, cell: str = "", **facts: Any) -> dict[str, Any]:
    return {"state": state, "cell": cell, "facts": facts, "seconds": 0.0}


def test_three_kinds_of_models_train_rightly_and_a_second_run_uses_the_record(tmp_path: Path) -> None:
    record = tmp_path / "record.jsonl"
    done, rows = matrix(record, "--only", FAST)
    assert done.returncode == 0, done.stdout + done.stderr
    assert {row["name"]: row["train"]["cell"] for row in rows} == {
        "llama": "fast",
        "qwen3_5_text": "one at a time",
        "gemma3": "generic",
    }
    assert {page.verdict(row) for row in rows} == {"right"}
    again, same = matrix(record, "--only", FAST)
    assert same == rows
    assert again.stdout.count(" s  ") == 0  # no family is examined again


@pytest.mark.slow
def test_no_family_of_transformers_trains_wrongly_or_crashes(tmp_path: Path) -> None:
    done, rows = matrix(tmp_path / "record.jsonl", "--jobs", "2")
    kinds = {row["name"].partition("+")[0] for row in rows if page.stage(row, "make")["state"] == "ok"}
    assert len(kinds) >= LEAST_TYPES
    wrong = [row["name"] for row in rows if page.verdict(row) not in ("right", "refused", "absent")]
    assert not wrong, done.stdout + done.stderr


class Crashing:
    """A context of multiprocessing whose processes end by a signal, whatever they are told to do."""

    Pipe = staticmethod(multiprocessing.Pipe)

    @staticmethod
    def Process(target: Any, args: Any) -> Any:
        return multiprocessing.get_context("fork").Process(target=signal.raise_signal, args=[signal.SIGKILL])


def test_a_process_that_dies_is_a_row_with_its_signal() -> None:
    row = children.examine_one(Crashing, "llama")
    assert (row["make"]["state"], row["make"]["facts"]["error"]) == ("crash", "killed by SIGKILL")


def test_a_row_is_as_bad_as_its_worst_stage() -> None:
    good = {"name": "a", "make": outcome("ok"), "plan": outcome("ok"), "train": outcome("ok", "generic")}
    right = {**good, "step": outcome("ok", "1e-07, 2e-06"), "peft": outcome("ok", "0e+00")}
    assert page.verdict(right) == "right"
    assert page.verdict({**right, "peft": outcome("wrong")}) == "WRONG"
    assert page.verdict({**right, "peft": outcome("wrong"), "answer": outcome("crash")}) == "CRASH"
    assert page.verdict({**good, "train": outcome("refused")}) == "refused"
    assert page.verdict({"name": "a", "make": outcome("absent")}) == "absent"
    assert page.cells({**right, "answer": outcome("wrong", "differs"), "mlx": outcome("refused", "no")}) == [
        "`a`", "yes", "generic", "1e-07", "2e-06", "0e+00", "**differs**", "no"
    ]  # fmt: skip


def test_refusals_with_the_same_words_are_one_line() -> None:
    told = {"what": "Not {}.", "fix": "Do so.\nOr else."}
    rows = [
        {"name": name, "plan": outcome("refused", "no", **told, found=f"kind {name}")} for name in ("llama", "gemma")
    ]
    assert page.refusals(rows, ("plan",)).splitlines()[2:] == ["| Not {}. · kind TYPE · Do so. | `llama`, `gemma` |"]
