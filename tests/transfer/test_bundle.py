"""A run moved in a bundle ends as one that stayed; a bundle holds no secret; a tampered bundle is refused."""

import json
import shutil
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file
from support.stopped_runs import weights

from lorafit.atomic import atomic_folder
from lorafit.cli.app import main
from lorafit.config import TrainConfig, read_yaml
from lorafit.data.sources import read_rows
from lorafit.errors import ConfigError, LorafitError, RunError
from lorafit.events import Finished, Planned, read_events
from lorafit.hardware.detect import Machine
from lorafit.run_folders.adapter import read_adapter_config
from lorafit.run_folders.directory import RunDir, saved_config
from lorafit.training.resume import read_interrupted
from lorafit.training.worker import train_in_process
from lorafit.transfer import archive
from lorafit.transfer.bundle import bundle
from lorafit.transfer.unbundle import is_bundle, unbundle, unpack_bundle

Output = pytest.CaptureFixture[str]
SECRET = "hf_" + "a1b2c3d4" * 4


@pytest.fixture
def stopped(died: RunDir, tmp_path: Path) -> RunDir:
    """A copy of `died`, which the test may change."""
    shutil.copytree(died.path, tmp_path / "before" / died.name)
    return RunDir(tmp_path / "before" / died.name)


def config_elsewhere(path: Path, home: Path, output_dir: Path, **settings: Any) -> TrainConfig:
    """Unpack the bundle and return the config of `lorafit resume BUNDLE --model_name ...` on the other machine."""
    run, notes = unpack_bundle(path, output_dir, str(home / "models/Tiny-Llama"))
    assert notes == []
    return saved_config(run).model_copy(update={"resume": str(run.path), "output_dir": str(output_dir), **settings})


def pretend_other_machine(run: RunDir) -> None:
    machine = Machine.from_json(run.machine.read_text("utf-8"))
    run.machine.write_text(replace(machine, chip="Apple M2 Max", system="Darwin").to_json(), "utf-8")


def texts(path: Path) -> str:
    with zipfile.ZipFile(path) as inside:
        return "".join(inside.read(name).decode("utf-8", "replace") for name in inside.namelist())


@pytest.mark.parametrize("elsewhere", [False, True])
def test_a_run_that_moved_ends_with_the_same_bytes_as_the_one_that_stayed(
    home: Path, finished: RunDir, stopped: RunDir, tmp_path: Path, elsewhere: bool
) -> None:
    if elsewhere:  # then the plan is made again
        pretend_other_machine(stopped)
    facts = bundle(stopped, saved_config(stopped), tmp_path / "run.zip")
    assert (facts.kind, facts.step, facts.base, facts.base_is_local) == ("go_on", 4, "Tiny-Llama", True)
    shutil.rmtree(stopped.path)
    config = config_elsewhere(tmp_path / "run.zip", home, tmp_path / "there")
    assert read_interrupted(config).progress.done == 4
    list(train_in_process(config))
    run = RunDir(tmp_path / "there" / finished.name)
    assert weights(run.final_model) == weights(finished.final_model)
    steps = [[(e.step, e.loss) for e in read_events(r.events) if e.name == "step"] for r in (run, finished)]  # type: ignore[attr-defined]
    assert steps[0] == steps[1]


def test_a_bundle_of_settings_starts_a_run_and_given_again_resumes_it(
    home: Path, finished: RunDir, tmp_path: Path
) -> None:
    path = tmp_path / "new.zip"
    assert bundle(None, saved_config(finished), path).kind == "begin"
    config = config_elsewhere(path, home, tmp_path / "there", max_steps=6)
    list(train_in_process(config))
    again = config_elsewhere(path, home, tmp_path / "there")
    assert again.resume == config.resume
    with pytest.raises(RunError, match="finished"):
        list(train_in_process(again))
    assert weights(RunDir(Path(str(config.resume))).final_model) == weights(finished.final_model)


def test_the_same_input_gives_the_same_bytes(stopped: RunDir, run_zip: Path, tmp_path: Path) -> None:
    bundle(stopped, saved_config(stopped), tmp_path / "again.zip")
    assert (tmp_path / "again.zip").read_bytes() == run_zip.read_bytes()


def test_nothing_of_the_home_and_no_secret_is_in_a_bundle(
    home: Path, stopped: RunDir, finished: RunDir, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    for run in (stopped, finished, None):
        bundle(run, saved_config(stopped), tmp_path / "run.zip")
        text = texts(tmp_path / "run.zip")
        for secret in (str(home), "anna_liebig", "anna:", "mirror.example", SECRET, str(tmp_path), "hf_endpoint: http"):
            assert secret not in text, (run, secret)


def test_a_finished_run_is_bundled_as_its_result_and_not_resumed(finished: RunDir, tmp_path: Path) -> None:
    path = tmp_path / "result.zip"
    assert bundle(finished, saved_config(finished), path).kind == "result"
    names = zipfile.ZipFile(path).namelist()
    assert not [name for name in names if "checkpoints" in name or "inputs" in name]
    with pytest.raises(RunError, match="nothing to resume"):
        unpack_bundle(path, tmp_path / "there", None)
    run = RunDir(tmp_path / "there" / finished.name)
    assert weights(run.final_model) == weights(finished.final_model)
    assert isinstance(read_events(run.events)[-1], Finished)
    assert json.loads((run.final_model / "adapter_config.json").read_text())["base_model_name_or_path"] == "Tiny-Llama"


def test_data_of_every_kind_are_in_the_bundle(home: Path, finished: RunDir, tmp_path: Path) -> None:
    folder = tmp_path / "many" / "中文, 数据"
    (folder / "train").mkdir(parents=True)
    shutil.copy(home / "law.jsonl", folder / "train/a b.jsonl")
    shutil.copy(home / "law.jsonl", folder / "test.jsonl")
    (tmp_path / "info").mkdir()
    shutil.copy(home / "law.jsonl", tmp_path / "info/rows.jsonl")
    (tmp_path / "info/dataset_info.json").write_text('{"law": {"file_name": "rows.jsonl"}, "b": {"hf_hub_url": "a/b"}}')
    with zipfile.ZipFile(tmp_path / "law.zip", "w") as packed:
        packed.write(home / "law.jsonl", "law.jsonl")
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}")
    names = f"{home / 'law.jsonl'},demo,owner/data,{tmp_path / 'info/law'},{tmp_path / 'law.zip'}"
    config = TrainConfig(model_name="demo", dataset_name=names, chat_template=str(template),
                         valid_dataset=str(folder), valid_split="test", init_adapter=str(finished.path))  # fmt: skip
    bundle(None, config, tmp_path / "run.zip")
    run = unbundle(tmp_path / "run.zip", tmp_path / "there").run
    now = saved_config(run)
    data = run.path / "inputs/dataset_name/0/law.jsonl"
    inputs = run.path / "inputs/dataset_name"
    assert now.dataset_name == f"{data},demo,owner/data,{inputs / '3/law'},{inputs / '4/law.zip'}"
    assert len(list(read_rows(f"{inputs / '3/law'},{inputs / '4/law.zip'}", "train"))) == 2 * len(
        list(read_rows(str(data), "train"))
    )
    assert data.read_bytes() == (home / "law.jsonl").read_bytes()
    assert now.valid_dataset is not None
    assert [p.name for p in Path(now.valid_dataset).rglob("*") if p.is_file()] == ["test.jsonl"]
    assert now.chat_template == template.read_text()
    assert weights(Path(str(now.init_adapter))) == weights(finished.final_model)


def test_an_initial_adapter_of_mlx_lm_travels_with_its_rank_and_without_its_authors_paths(
    home: Path, tmp_path: Path
) -> None:
    adapter = home / "mlx-adapter"
    adapter.mkdir()
    module = "model.layers.1.mlp.up_proj"
    pair = {f"{module}.lora_a": np.ones((32, 3), np.float32), f"{module}.lora_b": np.ones((3, 64), np.float32)}
    save_file(pair, adapter / "adapters.safetensors")
    lora = {"rank": 3, "scale": 2.0, "dropout": 0.0}
    facts = {
        "fine_tune_type": "lora",
        "num_layers": 2,
        "lora_parameters": lora,
        "model": str(home / "models/Tiny-Llama"),
    }
    (adapter / "adapter_config.json").write_text(json.dumps({**facts, "data": str(home), "adapter_path": str(adapter)}))
    config = TrainConfig(model_name="demo", dataset_name="demo", init_adapter=str(adapter))
    bundle(None, config, tmp_path / "run.zip")
    assert str(home) not in texts(tmp_path / "run.zip")
    now = saved_config(unbundle(tmp_path / "run.zip", tmp_path / "there").run)
    assert (now.lora_r, now.lora_alpha, now.lora_targets) == (3, 6.0, module)
    assert read_adapter_config(Path(str(now.init_adapter))).base_model == "demo"


def test_fp32_on_a_mac_may_become_4bit_elsewhere_and_the_plan_says_so(
    home: Path, stopped: RunDir, tmp_path: Path
) -> None:
    pretend_other_machine(stopped)
    bundle(stopped, saved_config(stopped), tmp_path / "run.zip")
    config = config_elsewhere(tmp_path / "run.zip", home, tmp_path / "there", quantization="4bit")
    events = list(train_in_process(config))
    (planned,) = [event for event in events if isinstance(event, Planned)]
    (moved,) = [choice["reason"] for choice in planned.choices if choice["setting"] == "moved"]
    assert "cpu fp32" in moved
    assert "the base weights are quantized differently" in moved
    plan = json.loads(RunDir(Path(str(config.resume))).plan.read_text())
    assert plan["quantization"] == "4bit"


def test_another_model_is_refused_on_the_same_machine_and_named_by_the_plan_on_another(
    home: Path, stopped: RunDir, tmp_path: Path
) -> None:
    other = shutil.copytree(home / "models/Tiny-Llama", tmp_path / "other")
    arrays = {name: array + np.float32(0.01) for name, array in load_file(other / "model.safetensors").items()}
    save_file(arrays, other / "model.safetensors", {"format": "pt"})
    for elsewhere in (False, True):
        if elsewhere:
            pretend_other_machine(stopped)
        bundle(stopped, saved_config(stopped), tmp_path / f"{elsewhere}.zip")
        run, _notes = unpack_bundle(tmp_path / f"{elsewhere}.zip", tmp_path / f"{elsewhere}", str(other))
        config = saved_config(run).model_copy(update={"resume": str(run.path), "dry_run": True})
        if not elsewhere:
            with pytest.raises(RunError, match="base model changed") as raised:
                list(train_in_process(config))
            assert "model.safetensors: " in str(raised.value.found)
            continue
        (planned,) = [event for event in train_in_process(config) if isinstance(event, Planned)]
        (reason,) = [choice["reason"] for choice in planned.choices if choice["setting"] == "base"]
        assert "model.safetensors: " in reason


def test_on_the_same_machine_the_base_may_not_change(home: Path, stopped: RunDir) -> None:
    config = saved_config(stopped).model_copy(update={"resume": str(stopped.path), "quantization": "4bit"})
    with pytest.raises(RunError, match="quantization"):
        read_interrupted(config)


def test_a_base_model_that_is_not_in_the_bundle_must_be_named(run_zip: Path, tmp_path: Path, capsys: Output) -> None:
    with pytest.raises(ConfigError, match="not part of the bundle"):
        unpack_bundle(run_zip, tmp_path / "there", None)
    assert main(["train", str(run_zip), "--output_dir", str(tmp_path / "there")]) == 2
    assert "--model_name" in capsys.readouterr().err


def tampered(path: Path, scratch: Path, name: str, change: Callable[[str], str], sealed: bool) -> Path:
    """Return a copy of the bundle with one file changed; `sealed`: the manifest matches, as an attacker makes it."""
    folder = scratch / "out"
    folder.mkdir()
    archive.unpack(path, folder)
    (folder / name).write_text(change((folder / name).read_text("utf-8")), "utf-8")
    if sealed:
        (folder / "manifest.json").unlink()
        with atomic_folder(scratch / "new") as beside:
            shutil.copytree(folder, beside, dirs_exist_ok=True)
        folder = scratch / "new"
    archive.pack(folder, scratch / "evil.zip")
    return scratch / "evil.zip"


@pytest.mark.parametrize(("name", "old", "new", "found"), [
    ("run/events.jsonl", "loss", "l0ss", "checksum differs"),
    ("bundle.json", '"layout": 1', '"layout": 7', "format version 7, expected 1"),
    ("bundle.json", '"run": "', '"run": "../', "'../llama-lora"),
    ("bundle.json", "{", "[", "Expecting"),
    ("run/config.yaml", "inputs/dataset_name", "/etc", "points outside the bundle: /etc"),
    ("run/config.yaml", "inputs/dataset_name", "inputs/../../..", "points outside the bundle"),
    ("run/config.yaml", "chat_template: null", "chat_template: /etc/passwd", "/etc/passwd"),
    ("run/config.yaml", "lora_r: 4", "lora_r: [", "YAML"),
])  # fmt: skip
def test_a_tampered_bundle_is_refused_and_leaves_nothing(
    run_zip: Path, tmp_path: Path, name: str, old: str, new: str, found: str
) -> None:
    sealed = found != "checksum differs"
    path = tampered(run_zip, tmp_path, name, lambda text: text.replace(old, new, 1), sealed)
    with pytest.raises(LorafitError) as raised:
        unbundle(path, tmp_path / "there")
    assert found in str(raised.value.found)
    assert raised.value.fix
    assert list((tmp_path / "there").glob("*")) == []


def test_settings_of_a_machine_or_user_are_not_taken_from_a_bundle(run_zip: Path, tmp_path: Path) -> None:
    path = tampered(run_zip, tmp_path, "run/config.yaml", lambda text: text.replace("trust_remote_code: false",
                     "trust_remote_code: true").replace("output_dir: output", "output_dir: /etc"), True)  # fmt: skip
    config = saved_config(unbundle(path, tmp_path / "there").run)
    assert (config.trust_remote_code, config.output_dir) == (False, "output")


def test_other_versions_are_reported_when_the_bundle_is_unpacked(
    run_zip: Path, home: Path, tmp_path: Path, capsys: Output
) -> None:
    def newer(text: str) -> str:
        return text.replace('"lorafit": "', '"lorafit": "9.')

    path = tampered(run_zip, tmp_path, "bundle.json", newer, True)
    flags = [
        "--output_dir",
        str(tmp_path / "there"),
        "--model_name",
        str(home / "models/Tiny-Llama"),
        "--dry_run",
        "--no_supervisor",
    ]
    assert main(["train", str(path), *flags]) == 0
    assert "lorafit 9." in capsys.readouterr().err


def test_a_name_that_exists_gets_a_number_and_the_existing_run_stays(stopped: RunDir, tmp_path: Path) -> None:
    bundle(stopped, saved_config(stopped), tmp_path / "run.zip")
    before = read_yaml(stopped.config)
    moved = unbundle(tmp_path / "run.zip", stopped.path.parent)
    assert moved.run.name == f"{stopped.name}_2"
    assert read_yaml(stopped.config) == before
    assert unbundle(tmp_path / "run.zip", stopped.path.parent).existed


def test_other_zips_are_no_bundles(tmp_path: Path, capsys: Output) -> None:
    with zipfile.ZipFile(tmp_path / "other.zip", "w") as other:
        other.writestr("a.txt", "a")
    assert not is_bundle(tmp_path / "other.zip")
    for name in ("other.zip", "missing.zip"):
        assert main(["resume", str(tmp_path / name), "--output_dir", str(tmp_path / "there")]) == 2
        assert "lorafit bundle" in capsys.readouterr().err


def test_the_command_takes_a_run_or_flags_and_not_both(stopped: RunDir, tmp_path: Path, capsys: Output) -> None:
    path = str(tmp_path / "a.zip")
    assert main(["bundle", str(stopped.path), "-o", path]) == 0
    assert f"run {stopped.name} up to step 4" in capsys.readouterr().out
    assert main(["bundle", "--demo", "--max_steps=2", f"-o={path}"]) == 0
    assert "lorafit train a.zip" in capsys.readouterr().out
    for wrong in ([], [str(stopped.path), "--max_steps", "2"], ["one", "two"], ["--demo", "-o", "a.tar"]):
        assert main(["bundle", *wrong]) == 2
