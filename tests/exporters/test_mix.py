"""Several adapters with weights: one export of their weighted sum, and refusals of what is no such sum."""

import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file
from support.adapters import deltas_of, random_like
from support.paths import ROOT

from lorafit.cli.app import main
from lorafit.errors import LorafitError
from lorafit.exporters import mix
from lorafit.exporters.base import ExportRequest
from lorafit.exporters.export import Exported, export
from lorafit.progress import ignore_progress
from lorafit.run_folders.adapter import ChatSettings, read_adapter_config, write_chat_settings
from lorafit.run_folders.origins import adapter_digest

Folders = Callable[[str], tuple[Path, Path]]
Mix = Callable[..., Exported]
SUFFIX = ".weight"


@pytest.fixture(params=["llama"])
def adapters(request: pytest.FixtureRequest, base_and_adapter: Folders, tmp_path: Path) -> tuple[Path, Path, Path]:
    """The folders of a base model, of its adapter `law`, and of an adapter `chat` on some of the layers."""
    base, adapter = base_and_adapter(request.param)
    law = Path(shutil.copytree(adapter, tmp_path / "law"))
    return base, law, random_like(adapter, tmp_path / "chat", 5, modules=7, use_rslora=True)


@pytest.fixture
def run_mix(tmp_path: Path) -> Mix:
    """A function that exports a mix to `tmp_path / "out"`."""

    def run(text: str, to: str = "merged", **flags: str | list[str]) -> Exported:
        settings = {"mix": text, "to": to, "output": str(tmp_path / "out"), **flags}
        return export(ExportRequest.model_validate(settings), ignore_progress)

    return run


def leftovers(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir() if path.name.startswith(".")]


@pytest.mark.parametrize("adapters", ["llama", "phi3", "qwen3_moe"], indirect=True)
def test_the_merged_weights_are_the_base_and_the_weighted_deltas(
    adapters: tuple[Path, Path, Path], run_mix: Mix, tmp_path: Path
) -> None:
    base, law, chat = adapters
    exported = run_mix(f"{law}=0.7, {chat}=-0.3", dtype="fp32")
    before, after = (load_file(folder / "model.safetensors") for folder in (base, exported.folder))
    first, second = deltas_of(law), deltas_of(chat)
    assert first.keys() > second.keys()
    for module, delta in first.items():
        wanted = before[module + SUFFIX] + 0.7 * delta - 0.3 * second.get(module, np.zeros_like(delta))
        np.testing.assert_allclose(after[module + SUFFIX], wanted, rtol=0, atol=2e-7)
    behaviour = exported.certificate.forms[0].behaviour[0]
    assert behaviour is not None
    assert behaviour.ratio is not None
    assert behaviour.ratio < 1e-4
    assert leftovers(tmp_path) == []


def test_the_certificate_lists_the_parts_and_no_folder(
    adapters: tuple[Path, Path, Path], run_mix: Mix, tmp_path: Path
) -> None:
    _base, law, chat = adapters
    write_chat_settings(law, ChatSettings(run="law-run"))
    exported = run_mix(f"{law}=1,{chat}=0.25")
    facts = json.loads((exported.folder / "export.json").read_text("utf-8"))
    assert [(one["name"], one["weight"], one["sha256"]) for one in facts["adapter"]["parts"]] == [
        ("law-run", 1.0, adapter_digest(law)), ("chat", 0.25, adapter_digest(chat))
    ]  # fmt: skip
    assert facts["adapter"]["run"] == "1 x law-run + 0.25 x chat"
    assert str(tmp_path) not in (exported.folder / "export.json").read_text("utf-8")


def test_one_adapter_alone_can_have_a_weight(adapters: tuple[Path, Path, Path], run_mix: Mix) -> None:
    _base, law, _chat = adapters
    exported = run_mix(f"{law}=0.5", to="peft")
    for module, delta in deltas_of(law).items():
        np.testing.assert_allclose(deltas_of(exported.folder)[module], 0.5 * delta, rtol=1e-6, atol=1e-9)


def test_peft_loads_a_mix_with_ranks_that_differ(adapters: tuple[Path, Path, Path], run_mix: Mix) -> None:
    _base, law, chat = adapters
    exported = run_mix(f"{law}=0.5,{chat}=2", to="peft")
    assert "loads this adapter" in exported.certificate.notes[0]
    config = read_adapter_config(exported.folder)
    assert {config.rank_of(module) for module in deltas_of(law)} == {4, 4 + 3, 4 + 6}
    assert {config.scale_of(module) for module in deltas_of(law)} == {1.0}
    found, first, second = (deltas_of(folder) for folder in (exported.folder, law, chat))
    for module, delta in found.items():
        wanted = 0.5 * first[module] + 2 * second.get(module, np.zeros_like(delta))
        np.testing.assert_allclose(delta, wanted, rtol=0, atol=1e-7)
    assert "| chat | 2 |" in (exported.folder / "README.md").read_text("utf-8")


def test_the_weight_0_changes_nothing(adapters: tuple[Path, Path, Path], run_mix: Mix) -> None:
    _base, law, chat = adapters
    exported = run_mix(f"{law}=0,{chat}=0", dtype="fp32")
    assert "changes nothing" in exported.certificate.notes[-1]


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("{law}", "needs adapters with weights"),
        ("{law}=", "needs adapters with weights"),
        ("=0.5", "needs adapters with weights"),
        ("", "needs adapters with weights"),
        ("{law}=0.5,", "needs adapters with weights"),
        ("{law}=half", "needs adapters with weights"),
        ("{law}=nan", "needs adapters with weights"),
        ("{law}=1e999", "needs adapters with weights"),
        ("{law}=1,{law}/../law=1", "twice"),
        ("{law}=1,nowhere=1", "No adapter found"),
        ("{law}=1e39", "too large"),
    ],
)
def test_what_is_no_mix_is_refused(
    adapters: tuple[Path, Path, Path], run_mix: Mix, tmp_path: Path, text: str, what: str
) -> None:
    _base, law, chat = adapters
    with pytest.raises(LorafitError, match=what) as refused:
        run_mix(text.format(law=law, chat=chat))
    assert refused.value.fix
    assert leftovers(tmp_path) == []
    assert not (tmp_path / "out").exists()


def test_a_run_beside_a_mix_is_refused(adapters: tuple[Path, Path, Path], run_mix: Mix) -> None:
    _base, law, chat = adapters
    with pytest.raises(LorafitError, match="together") as refused:
        run_mix(f"{law}=1", run=[str(chat)])
    assert "--mix" in str(refused.value.fix)


def test_adapters_of_two_bases_are_refused(
    adapters: tuple[Path, Path, Path], base_and_adapter: Folders, run_mix: Mix
) -> None:
    base, law, _chat = adapters
    other = base_and_adapter("qwen2")[1]
    with pytest.raises(LorafitError, match="same base") as refused:
        run_mix(f"{law}=1,{other}=1")
    assert refused.value.where == str(other)
    with pytest.raises(LorafitError):  # the shapes tell them apart where the names may not
        run_mix(f"{law}=1,{base_and_adapter('phi3')[1]}=1", base_model=str(base))


def test_another_name_of_the_same_folder_is_the_same_base(
    adapters: tuple[Path, Path, Path], run_mix: Mix, tmp_path: Path
) -> None:
    base, law, chat = adapters
    (tmp_path / "link").symlink_to(base)
    facts = json.loads((chat / "adapter_config.json").read_text("utf-8"))
    facts["base_model_name_or_path"] = str(tmp_path / "link")
    (chat / "adapter_config.json").write_text(json.dumps(facts), "utf-8")
    assert run_mix(f"{law}=1,{chat}=1", to="peft").folder.is_dir()


def test_another_chat_template_is_told(adapters: tuple[Path, Path, Path], run_mix: Mix) -> None:
    base, law, chat = adapters
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(base / name, chat)
    text = (base / "chat_template.jinja").read_text("utf-8")
    (chat / "chat_template.jinja").write_text(text.replace("\\n", " "), "utf-8")
    write_chat_settings(chat, ChatSettings(system_prompt="Be brief."))
    notes = run_mix(f"{law}=1,{chat}=1", to="peft").certificate.notes
    assert [note for note in notes if "another chat template" in note]
    assert [note for note in notes if "another system prompt" in note]


def test_a_mix_in_the_wrong_order_is_refused(
    adapters: tuple[Path, Path, Path], run_mix: Mix, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    right = mix.side_by_side
    monkeypatch.setattr(mix, "side_by_side", lambda deltas: (right(deltas)[0], right(deltas[::-1])[1]))
    _base, law, chat = adapters
    with pytest.raises(LorafitError, match="does not compute"):
        run_mix(f"{law}=1,{chat}=1")
    assert leftovers(tmp_path) == []


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGKILL])
def test_the_folder_of_the_mix_is_deleted_whatever_happens(
    adapters: tuple[Path, Path, Path], run_mix: Mix, tmp_path: Path, number: signal.Signals
) -> None:
    _base, law, chat = adapters
    text = f"{law}=1,{chat}=1"
    slow = (
        "import sys, time; from lorafit.exporters import peft; from lorafit.cli.app import main\n"
        "peft.ask_peft = lambda *_: (print('here', flush=True), time.sleep(60))\n"
        f"sys.exit(main(['export', '--mix', {text!r}, '--to', 'peft', '-o', {str(tmp_path / 'out')!r}]))"
    )
    child = subprocess.Popen(
        [sys.executable, "-c", slow], cwd=ROOT, stdout=subprocess.PIPE, env={**os.environ, "PYTHONPATH": str(ROOT)}
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"here\n"
    assert leftovers(tmp_path)
    child.send_signal(number)
    child.communicate(timeout=60)
    if number != signal.SIGKILL:
        assert leftovers(tmp_path) == []
    run_mix(text, to="peft")
    assert leftovers(tmp_path) == []


def test_the_command_line_takes_a_mix(
    adapters: tuple[Path, Path, Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    _base, law, chat = adapters
    words = ["export", "--mix", f"{law}=0.5,{chat}=-0.5", "--to", "peft", "-o", str(tmp_path / "new/out")]
    assert main(words) == 0
    assert "loads this adapter" in capsys.readouterr().out
    assert main(["export", "--mix", "a", "--to", "peft", "-o", str(tmp_path / "other")]) == 2
    assert "fix:" in capsys.readouterr().err
