"""Fixtures of the transfer tests: one small run of six steps, the same run dead after step 4, and that run's bundle.

They are made once for all tests. A test that changes a run copies it first.
"""

import json
from pathlib import Path

import pytest
from support import tiny
from support.stopped_runs import as_it_died

from lorafit.config import TrainConfig
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.training.worker import train_in_process
from lorafit.transfer.bundle import bundle


@pytest.fixture(scope="session")
def home(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A user's home folder: a small base model, data, and `output` with a run of six steps."""
    home = tmp_path_factory.mktemp("home") / "anna_liebig"
    base = tiny.save_chat_model(home / "models/Tiny-Llama", demo_folder)
    rows = [{"instruction": f"第{i}条是什么?", "output": f"这是第{i}条的答案。"} for i in range(30)]
    (home / "law.jsonl").write_text("\n".join(json.dumps(row, ensure_ascii=False) for row in rows), "utf-8")
    list(train_in_process(TrainConfig(model_name=str(base), dataset_name=str(home / "law.jsonl"), output_dir=str(home / "output"),
                          effective_batch=4, max_steps=6, save_steps=2, eval_steps=2, keep_checkpoints=9, lora_r=4,
                          hf_endpoint="https://anna:pass@mirror.example", val_size=4)))  # fmt: skip
    return home


@pytest.fixture(scope="session")
def finished(home: Path) -> RunDir:
    """The finished run in `home`."""
    (path,) = (home / "output").glob("*-lora-*")
    return RunDir(path)


@pytest.fixture(scope="session")
def died(finished: RunDir, tmp_path_factory: pytest.TempPathFactory) -> RunDir:
    """A copy of the finished run as it was if it had died after step 4."""
    return as_it_died(finished, tmp_path_factory.mktemp("died"), 4)


@pytest.fixture(scope="session")
def run_zip(died: RunDir, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The bundle of `died`."""
    path = tmp_path_factory.mktemp("zip") / "run.zip"
    bundle(died, saved_config(died), path)
    return path
