"""Every command in the docs works as written: each one is run, or is listed with the reason why not.

The commands run in a folder with settings, data, runs and an adapter under the names that the docs use. The hub's cache
holds the models and data of the docs. All of them are tiny. Everything runs in one process on the CPU.
"""

import io
import json
import re
import shlex
import shutil
import signal
import sys
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
from lorafit.models.hub import find_model, use_endpoint

MODELS = ("meta-llama/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-3B-Instruct", "unsloth/Llama-3.2-1B-Instruct",
          "Qwen/Qwen3-0.6B")  # fmt: skip
DATA = "Skepsun/lawyer_llama_data"
NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
RUN = re.compile(r"output/(llama-lora-\d{8}_\d{6})")

# Commands that are not run here: pattern of the whole command line -> reason.
NOT_RUN = {
    r"(pip|brew|docker|git|hf|make|source|sudo) .*": "installs or changes something, or is another program",
    r"(ioreg|notifyutil|pmset|sysctl) .*": "macOS only",
    r"tensorboard .*": "a server; what it reads is tested in test_reporters",
    r"\./run_(train|tests)\.sh.*": "creates an environment and downloads packages, then runs `python train.py`",
    r"lorafit (train|resume|chat|compare|data|runs|runs (list|show|diff|remove))": "names a command in a text",
    r"python train\.py --hub modelscope .*": "needs the package modelscope and its hub",
    r"(cd skypilot|\./sagemaker/|cd ollama|ollama |mlx_lm).*": "needs another program and an account",
    r"lorafit (export|verify)( .*)?": "loads PyTorch models three times; tested in tests/exporters",
    r"lorafit cloud .*": "builds a wheel; tested in test_cloud.py and test_notebooks.py",
    r"lorafit runs (stop|pause|continue)": "needs a training that is running",
    r"lorafit fetch .*": "needs the result of a cloud platform; tested in test_fetch.py",
    r"lorafit train --processes 2": "other processes do not see the hub cache of this test; tested in tests/distributed",
    r"lorafit (bundle|cloud|fetch)": "names a command in a text",
    r"python train\.py (--resume )?--precision bf16": "a CPU without bfloat16 uses float32",
}


def documented_commands() -> dict[str, list[str]]:
    """Return every command line in the docs once, with its words."""
    return {shlex.join(words): words for page in PAGES for words in commands(page)}


def why_not_run(line: str) -> str | None:
    """Return the reason why the command `line` is not run, or None if it is run."""
    return next((why for pattern, why in NOT_RUN.items() if re.fullmatch(pattern, line)), None)


def commands_to_run() -> Iterator[object]:
    """Yield the words of each command to run. Long trainings, and commands that README lacks, are slow tests."""
    readme = [shlex.join(words) for words in commands(ROOT / "README.md")]
    for line, words in documented_commands().items():
        if why_not_run(line) is None:
            slow = line not in readme or "--max_steps" in line
            yield pytest.param(words, id=line, marks=[pytest.mark.slow] if slow else [])


@pytest.fixture(scope="module")
def reader_folder(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Iterator[Path]:
    """The working folder of a reader of the docs: data, settings, the runs that the docs name, and an adapter."""
    folder = tmp_path_factory.mktemp("reader")
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
    """Put the models and data of the docs into the hub's cache; inside the context, no hub is reachable."""
    endpoint = constants.ENDPOINT
    with pytest.MonkeyPatch.context() as patch:
        # The packages read the environment at their import, which other tests may have caused.
        patch.setattr(constants, "HF_HUB_CACHE", str(cache / "hub"))
        patch.setattr(datasets.config, "HF_DATASETS_CACHE", cache / "datasets")
        patch.setenv("HF_ENDPOINT", endpoint)  # restored at the end, whatever --hf_endpoint sets
        with FakeHub(models=dict.fromkeys(MODELS, model), datasets={DATA: data}).serve() as hub:
            for name in MODELS:
                find_model(name, endpoint=hub.address)
            assert main(["data", DATA, "--hf_endpoint", hub.address]) == 0
        use_endpoint(NOWHERE)
        yield
        use_endpoint(endpoint)


def make_runs(folder: Path) -> None:
    """Make a finished run under each name in the docs, and copy its adapter."""
    assert main(["train", "--no_supervisor", "--max_steps", "3"]) == 0
    (run,) = (folder / "output").iterdir()
    shutil.copytree(run / "final_model", folder / "final_model")
    for name in {name for line in documented_commands() for name in RUN.findall(line)}:
        shutil.copytree(run, folder / "output" / name, symlinks=True)
    shutil.rmtree(run)


def stop_a_run(folder: Path) -> None:
    """Replace `folder`, and the runs unpacked from bundles of it, by a run that was stopped after its second step."""
    for old in folder.parent.glob(f"{folder.name}*"):
        shutil.rmtree(old)
    for event in api.train(TrainConfig(no_supervisor=True)):
        if isinstance(event, Started):
            run = Path(event.run)
        if isinstance(event, StepDone) and event.step == 2:
            signal.raise_signal(signal.SIGINT)
    run.rename(folder)


def test_every_command_is_run_or_has_a_reason_not_to_be() -> None:
    lines = list(documented_commands())
    gone = [pattern for pattern in NOT_RUN if not any(re.fullmatch(pattern, line) for line in lines)]
    assert not gone, "no page shows these any more"
    unknown = [
        line for line, words in documented_commands().items() if why_not_run(line) is None and arguments(words) is None
    ]
    assert not unknown, "neither ours nor listed with a reason"


@pytest.mark.parametrize("words", commands_to_run())
def test_the_command_works(
    words: list[str], reader_folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    given = arguments(words)
    assert given is not None
    if {"--resume", "latest", "run.zip"} & set(given):
        named = RUN.findall(shlex.join(words))
        stopped = reader_folder / "output" / (named[0] if named else "llama-lora-20991231_235959")
        stop_a_run(stopped)
    if given[0] in ("train", "resume") and "run.zip" in given:
        machine = replace(Machine.from_json((stopped / "machine.json").read_text("utf-8")), chip="another machine's")
        (stopped / "machine.json").write_text(machine.to_json(), "utf-8")
        assert main(["bundle", str(stopped), "-o", "run.zip"]) == 0
    monkeypatch.setattr(sys, "stdin", io.StringIO("你好\n/exit\n"))
    in_process = ["--no_supervisor"] if given[0] in ("train", "resume") else []
    assert main([*given, *in_process]) == 0, capsys.readouterr().err
