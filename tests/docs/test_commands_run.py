"""Do the commands that the docs show work as they stand there? Each is really run, or listed with the reason why not.

They run in a folder like a reader's: settings, data, runs and an adapter under the names that the docs use, and the
models and data of the hub in its cache, all of them tiny. What may differ from a reader's machine: one process, the CPU.
"""

import io
import json
import re
import shlex
import shutil
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import datasets
import pytest
from huggingface_hub import constants
from support import tiny
from support.doc_commands import PAGES, ROOT, arguments, commands
from support.fake_hub import FakeHub

from lorafit import api
from lorafit.cli.app import main
from lorafit.config import TrainConfig
from lorafit.events import Started, StepDone
from lorafit.hardware.detect import Machine
from lorafit.models.hub import find_model

MODELS = ("meta-llama/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-1B-Instruct",
          "Qwen/Qwen3-0.6B")  # fmt: skip
DATA = "Skepsun/lawyer_llama_data"
NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
RUN = re.compile(r"output/(llama-lora-\d{8}_\d{6})")

# What is not run here: a pattern of the whole command line -> the reason.
NOT_RUN = {
    r"(pip|brew|git|hf|make|source|sudo) .*": "installs or changes something, or is another program",
    r"(ioreg|notifyutil|pmset|sysctl) .*": "macOS only",
    r"tensorboard .*": "a server; what it reads is tested in test_reporters",
    r"\./run_(train|tests)\.sh.*": "makes an environment and downloads; what follows is `python train.py`",
    r"lorafit (train|resume|chat|compare|data|runs|runs (list|show|diff|remove))": "names a command in a text",
    r"lorafit resume '\[RUN\]'": "a pattern",
    r"python train\.py --hub modelscope .*": "needs the package modelscope, and its hub",
    r"(cd skypilot|\./sagemaker/).*": "another program, and an account",
    r"lorafit cloud .*": "builds a wheel; tested in test_cloud.py and test_notebooks.py",
    r"lorafit fetch .*": "takes what a cloud made; tested in test_fetch.py",
    r"lorafit train --processes 2": "other processes do not see the hub that is made here; test_ranks_runs.py trains so",
    r"lorafit (bundle|cloud|fetch)": "names a command in a text",
    r"python train\.py (--resume )?--precision bf16": "float32 is what a CPU without bfloat16 takes",
}


def shown() -> dict[str, list[str]]:
    """Every command line that the docs show, once."""
    return {shlex.join(words): words for page in PAGES for words in commands(page)}


def reason(line: str) -> str | None:
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


def to_run() -> Iterator[object]:
    """README's commands always; the guide's many, and fifty steps, with the slow tests."""
    readme = [shlex.join(words) for words in commands(ROOT / "README.md")]
    for line, words in shown().items():
        if reason(line) is None:
            slow = line not in readme or "--max_steps" in line
            yield pytest.param(words, id=line, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def desk(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Iterator[Path]:
    """A reader's folder: data, settings, the runs that the docs name, and an adapter that was sent over."""
    folder = tmp_path_factory.mktemp("desk")
    model = tiny.save_chat_model(tmp_path_factory.mktemp("model"), demo_folder)
    law = tmp_path_factory.mktemp("data") / "law.json"
    rows = [
        {"instruction": f"第{i}条说了什么？", "input": "", "output": f"《民法典》第{i}条说了这些。"} for i in range(20)
    ]
    law.write_text(json.dumps(rows, ensure_ascii=False), "utf-8")
    shutil.copy(law, folder / "my_data.json")
    (folder / "my_data.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    shutil.copy(folder / "my_data.jsonl", folder / "law.jsonl")
    (folder / "my.yaml").write_text("lora_r: 8\nmax_length: 128\n", "utf-8")
    with cached_hub(model, law.parent, tmp_path_factory.mktemp("cache")), pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        make_runs(folder)
        yield folder


@contextmanager
def cached_hub(model: Path, data: Path, cache: Path) -> Iterator[None]:
    """The docs' models and data in the hub's cache, and no hub behind it."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        for name in ("ENDPOINT", "HUGGINGFACE_CO_URL_TEMPLATE"):
            patch.setattr(constants, name, getattr(constants, name))  # put back at the end
        patch.setattr(datasets.config, "HF_ENDPOINT", "")
        patch.setenv("HF_ENDPOINT", "")
        with FakeHub(models=dict.fromkeys(MODELS, model), datasets={DATA: data}).serve() as hub:
            for name in MODELS:
                find_model(name, endpoint=hub.address)
            assert main(["data", DATA, "--hf_endpoint", hub.address]) == 0
        patch.setenv("HF_ENDPOINT", NOWHERE)
        yield


def make_runs(folder: Path) -> None:
    """A finished run under each name that the docs use, and its adapter."""
    assert main(["train", "--no_supervisor", "--max_steps", "3"]) == 0
    (run,) = (folder / "output").iterdir()
    shutil.copytree(run / "final_model", folder / "final_model")
    for name in {name for line in shown() for name in RUN.findall(line)}:
        shutil.copytree(run, folder / "output" / name, symlinks=True)
    shutil.rmtree(run)


def stop_a_run(folder: Path) -> None:
    """`folder` is a run that was stopped after two of its steps."""
    shutil.rmtree(folder, ignore_errors=True)
    for event in api.train(TrainConfig(no_supervisor=True)):
        if isinstance(event, Started):
            run = Path(event.run)
        if isinstance(event, StepDone) and event.step == 2:
            signal.raise_signal(signal.SIGINT)
    run.rename(folder)


def test_every_command_is_run_or_has_a_reason_not_to_be() -> None:
    lines = list(shown())
    gone = [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in lines)]
    assert not gone, "no page shows these any more"
    strange = [line for line, words in shown().items() if reason(line) is None and arguments(words) is None]
    assert not strange, "neither ours nor listed with a reason"


@pytest.mark.parametrize("words", to_run())
def test_the_command_works(
    words: list[str], desk: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(words)
    assert given is not None
    if {"--resume", "latest", "run.zip"} & set(given):
        named = RUN.findall(shlex.join(words))
        stopped = desk / "output" / (named[0] if named else "llama-lora-20991231_235959")
        stop_a_run(stopped)
    if given[0] in ("train", "resume") and "run.zip" in given:
        machine = replace(Machine.from_json((stopped / "machine.json").read_text("utf-8")), chip="another machine's")
        (stopped / "machine.json").write_text(machine.to_json(), "utf-8")
        assert main(["bundle", str(stopped), "-o", "run.zip"]) == 0
    monkeypatch.setattr("sys.stdin", io.StringIO("你好\n/exit\n"))
    alone = ["--no_supervisor"] if given[0] in ("train", "resume") else []
    assert main([*given, *alone]) == 0, capsys.readouterr().err
