"""Models and data of ModelScope: its own client downloads from a local server; errors name the ways that remain."""

import json
from collections.abc import Iterator
from importlib.util import find_spec
from pathlib import Path

import pytest
from support import tiny
from support.fake_modelscope import FakeModelScope

from lorafit.cli.app import main
from lorafit.data.sources import read_rows
from lorafit.errors import HubError
from lorafit.models.hub import HUGGING_FACE, MIRROR, MODELSCOPE, find_model, translate

NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine


@pytest.fixture(scope="module")
def modelscope(demo_folder: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[FakeModelScope]:
    """A ModelScope with a tiny model and a data set, for the installed client. Its cache is in a temporary folder.

    The client reads the environment only once, at its first call.
    """
    if find_spec("modelscope") is None:
        pytest.skip("the extra `modelscope` is not installed")
    folder = tmp_path_factory.mktemp("modelscope")
    model, data = tiny.save_chat_model(folder / "model", demo_folder), folder / "data"
    (model / "original.bin").write_bytes(b"another format of the weights")
    data.mkdir()
    rows = [{"question": f"What does article {i} say?", "answer": f"Article {i} says so."} for i in range(20)]
    (data / "train.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    with FakeModelScope({"acme/tiny": model}, {"acme/law": data}).serve() as hub, pytest.MonkeyPatch.context() as patch:
        patch.setenv("MODELSCOPE_CACHE", str(folder / "cache"))
        patch.setenv("MODELSCOPE_HOME", str(folder / "home"))
        patch.setenv("MODELSCOPE_ENDPOINT", hub.address)
        yield hub


def test_a_model_is_downloaded_once_with_the_files_that_training_needs(modelscope: FakeModelScope) -> None:
    found = find_model("acme/tiny", hub="modelscope")
    assert found.name == "acme/tiny"
    for name in ("config.json", "model.safetensors", "tokenizer.json"):
        assert (found.folder / name).read_bytes() == (modelscope.models["acme/tiny"] / name).read_bytes()
    assert not (found.folder / "original.bin").exists()
    modelscope.asked.clear()
    assert find_model("acme/tiny", hub="modelscope").folder == found.folder
    assert modelscope.asked == []


def test_data_are_downloaded_and_read(modelscope: FakeModelScope) -> None:
    rows = [row.value for row in read_rows("acme/law", "train[:2]", hub="modelscope")]
    assert [row["answer"] for row in rows if isinstance(row, dict)] == ["Article 0 says so.", "Article 1 says so."]


def test_the_command_of_the_readme_trains_with_model_and_data_of_modelscope(
    modelscope: FakeModelScope, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    flags = ["--hub", "modelscope", "--model_name", "acme/tiny", "--dataset_name", "acme/law", "--max_steps", "1"]
    assert main(["train", "--no_supervisor", *flags, "--dry_run"]) == 0


def test_an_unknown_model_is_named_with_the_login_of_modelscope(modelscope: FakeModelScope) -> None:
    with pytest.raises(HubError, match="`acme/nothing` not found") as caught:
        find_model("acme/nothing", hub="modelscope")
    assert caught.value.where == modelscope.address
    assert "`modelscope login`" in str(caught.value.fix)


def test_an_unreachable_modelscope_is_named_with_the_other_hub(
    modelscope: FakeModelScope, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MODELSCOPE_ENDPOINT", NOWHERE)
    with pytest.raises(HubError) as caught:
        find_model("acme/other", hub="modelscope")
    assert caught.value.where == NOWHERE
    assert "`--hub huggingface`" in str(caught.value.fix)


@pytest.mark.parametrize(
    ("address", "offered"),
    [
        (HUGGING_FACE, ["--hf_endpoint https://hf-mirror.com", "--hub modelscope"]),
        (MIRROR, ["--hub modelscope"]),
        (MODELSCOPE, ["--hub huggingface"]),
    ],
)
def test_a_hub_that_fails_is_not_offered_again(
    address: str, offered: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("MODELSCOPE_ENDPOINT", raising=False)
    fix = str(translate(ConnectionError("refused"), "acme/tiny", "model", address).fix)
    hubs = ("--hf_endpoint https://hf-mirror.com", "--hub modelscope", "--hub huggingface")
    assert [hub for hub in hubs if hub in fix] == offered
