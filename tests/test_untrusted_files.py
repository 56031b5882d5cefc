"""No file from another person runs code or writes outside its folder, and no config or report has an access token.

The files are configs, data, adapters, checkpoints, chat templates and events.
"""

import ast
import contextlib
import json
import os
import pickle
import re
from pathlib import Path

import pytest

from lorafit.atomic import MANIFEST, verify
from lorafit.cli.app import main
from lorafit.config import TrainConfig, read_yaml, write_yaml
from lorafit.data.conversation import Message
from lorafit.data.sources import read_rows
from lorafit.engines.tokenizer import load_tokenizer
from lorafit.errors import LorafitError
from lorafit.events import read_events
from lorafit.ipc.protocol import read_message
from lorafit.run_folders import history
from lorafit.run_folders.adapter import read_adapter
from lorafit.run_folders.checkpoint import latest_good
from lorafit.run_folders.directory import RunDir

PACKAGE = Path(__file__).parents[1] / "lorafit"
TREES = {path: ast.parse(path.read_text("utf-8")) for path in sorted(PACKAGE.rglob("*.py"))}
NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
TOKEN = "hf_" + "abcdefghij" * 3


class Touch:
    """An object that creates the file `path` when it is unpickled, as a malicious pickle runs a command."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> object:
        return (os.system, (f"touch {self.path}",))


def calls(tree: ast.AST) -> list[str]:
    """Return the names of all functions that `tree` calls, as they are written."""
    return [ast.unparse(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]


def test_nothing_in_the_package_unpickles_or_evaluates_text() -> None:
    forbidden = re.compile(
        r"(^|\.)(pickle|cPickle|dill|cloudpickle|marshal|shelve)\.|^(eval|exec|compile)$|^torch\.load$|^yaml\.(load|unsafe_load|full_load)$|^os\.(system|popen)$"
    )
    found = [f"{path.name}: {call}" for path, tree in TREES.items() for call in calls(tree) if forbidden.search(call)]
    assert found == []


def test_no_shell_reads_what_we_run() -> None:
    shells = [
        f"{path.name}:{node.lineno}"
        for path, tree in TREES.items()
        for node in ast.walk(tree)
        if isinstance(node, ast.keyword) and node.arg == "shell" and ast.unparse(node.value) == "True"
    ]
    assert shells == []


def test_numpy_never_takes_objects_from_a_file() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.Call) and ast.unparse(node.func) == "np.load":
                allowed = {k.arg: ast.unparse(k.value) for k in node.keywords}
                assert allowed.get("allow_pickle") == "False", path.name


def test_code_that_comes_with_a_model_runs_only_by_the_users_flag() -> None:
    for path, tree in TREES.items():
        for node in ast.walk(tree):
            if isinstance(node, ast.keyword) and node.arg == "trust_remote_code":
                assert ast.unparse(node.value) != "True", f"{path.name}:{node.lineno}"
    assert TrainConfig().trust_remote_code is False


@pytest.mark.parametrize(
    "template",
    [
        "{{ ''.__class__.__mro__[1].__subclasses__() }}",
        "{{ cycler.__init__.__globals__.os.system('touch HIT') }}",
    ],
    ids=["subclasses", "os.system"],
)
def test_templates_are_rendered_in_the_sandbox(tmp_path: Path, demo_folder: Path, template: str) -> None:
    tokenizer = load_tokenizer(demo_folder, template=template.replace("HIT", str(tmp_path / "hit")))
    with pytest.raises(LorafitError, match="is unsafe"):
        tokenizer.prompt_ids([Message("user", "hi")], "26 Jul 2024")
    assert not (tmp_path / "hit").exists()


@pytest.mark.parametrize("text", ["!!python/object/apply:os.system ['touch HIT']", "a: !!python/name:os.system ''"])
def test_a_config_with_python_in_it_is_refused(tmp_path: Path, text: str) -> None:
    (tmp_path / "c.yaml").write_text(text.replace("HIT", str(tmp_path / "hit")))
    with pytest.raises(LorafitError):
        read_yaml(tmp_path / "c.yaml")
    assert not (tmp_path / "hit").exists()


def test_a_pickle_under_any_file_name_is_refused_and_not_run(tmp_path: Path) -> None:
    evil = pickle.dumps(Touch(tmp_path / "hit"))
    for name in ("adapter_model.safetensors", "adapter_model.bin"):
        folder = tmp_path / name.replace(".", "-")
        folder.mkdir()
        (folder / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA", "r": 4, "lora_alpha": 8, "target_modules": ["q_proj"]}))  # fmt: skip
        (folder / name).write_bytes(evil)
        with pytest.raises(LorafitError):
            read_adapter(folder)
    for name in ("data.jsonl", "data.json", "data.csv", "data.parquet", "data.arrow", "data.pkl"):
        (tmp_path / name).write_bytes(evil)
        with contextlib.suppress(LorafitError):  # some are read as a CSV of meaningless words
            list(read_rows(str(tmp_path / name), "train"))
    assert not (tmp_path / "hit").exists()


def test_a_checkpoints_manifest_cannot_name_files_outside_it(tmp_path: Path) -> None:
    outside = tmp_path / "secret"
    outside.write_text("x")
    folder = tmp_path / "run" / "checkpoints" / "step-000002"
    folder.mkdir(parents=True)
    for name in ("../../../secret", str(outside), "a/../../secret"):
        facts = {"files": {name: {"bytes": 1, "sha256": "0" * 64}}}
        (folder / MANIFEST).write_text(json.dumps(facts))
        assert verify(folder) is not None
    assert latest_good(RunDir(tmp_path / "run"))[0] is None


def test_removing_a_run_does_not_follow_its_links(tmp_path: Path) -> None:
    treasure = tmp_path / "treasure"
    treasure.mkdir()
    (treasure / "gold").write_text("x")
    run = RunDir(tmp_path / "run")
    run.checkpoints.mkdir(parents=True)
    write_yaml(TrainConfig(), run.config)
    (run.checkpoints / "step-000001").symlink_to(treasure)
    history.remove_run_folder(history.read_record(run))
    assert not run.path.exists()
    assert (treasure / "gold").exists()


def test_unknown_lines_on_the_pipe_are_ignored() -> None:
    for line in (
        "",
        "[]",
        "null",
        "{}",
        '{"message": "__init__"}',
        '{"message": "Popen"}',
        '{"error": "KeyboardInterrupt"}',
    ):
        assert not isinstance(read_message(line), BaseException) or isinstance(read_message(line), LorafitError)


def test_foreign_event_lines_make_no_objects_but_events(tmp_path: Path) -> None:
    (tmp_path / "events.jsonl").write_text(
        '{"event": "__class__"}\n{"event": ["step"]}\n[1]\n{"event": "stage", "text": "ok"}\n'
    )
    assert [event.name for event in read_events(tmp_path / "events.jsonl")] == ["stage"]


def test_a_token_is_in_no_config_and_no_report(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)  # the report does not wait for a hub
    assert not [name for name in TrainConfig.model_fields if re.search(r"token$|secret|password|api_key", name)]
    write_yaml(TrainConfig(), tmp_path / "config.yaml")
    assert TOKEN not in (tmp_path / "config.yaml").read_text()
    main(["doctor", "--json", "--output_dir", str(tmp_path)])
    report = capfd.readouterr()
    assert json.loads(report.out)
    assert TOKEN not in report.out + report.err
