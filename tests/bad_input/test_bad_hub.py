"""A hub that does not answer or refuses access is reported, with a mirror or a copy that works."""

import errno
import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_hub import FakeHub
from support.refusals import Refused, Words, the_run

from lorafit.cli.app import main
from lorafit.models.hub import use_endpoint

Output = pytest.CaptureFixture[str]
NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
LLAMA = "meta-llama/Llama-3.2-3B-Instruct"


@pytest.fixture
def hub(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a gated model, an ungated copy of it and a data set. The local caches are empty."""
    import datasets
    from huggingface_hub import constants

    endpoint = constants.ENDPOINT
    monkeypatch.setenv("HF_ENDPOINT", endpoint)  # restored at the end, whatever --hf_endpoint sets
    # The packages read the environment at their import, which other tests may have caused.
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    use_endpoint(NOWHERE)
    models = {LLAMA: model, "unsloth/Llama-3.2-3B-Instruct": model}
    with FakeHub(models=models, datasets={"acme/law": data.parent}, gated={LLAMA}).serve() as fake:
        yield fake
    use_endpoint(endpoint)


def test_an_unreachable_hub_names_the_mirror_and_demo_for_a_model(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused
) -> None:
    argv = flags(model_name="acme/tiny", hf_endpoint=NOWHERE)
    refused(argv, "acme/tiny", NOWHERE, "--hf_endpoint https://hf-mirror.com", "--hub modelscope", "--demo")


def test_an_unreachable_hub_names_the_mirror_and_demo_for_a_data_set(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused
) -> None:
    argv = flags(dataset_name="acme/law", hf_endpoint=NOWHERE)
    refused(argv, "acme/law", NOWHERE, "--hf_endpoint https://hf-mirror.com", "--demo")


def test_a_model_that_the_hub_does_not_know_is_named(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused
) -> None:
    refused(flags(model_name="acme/nothing", hf_endpoint=hub.address), "acme/nothing", hub.address)


def test_a_gated_model_gives_flags_to_paste_and_they_work(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused
) -> None:
    text = refused(flags(model_name=LLAMA, hf_endpoint=hub.address), LLAMA, "hf auth login")
    assert "--hub modelscope --model_name LLM-Research/Llama-3.2-3B-Instruct" in text
    (copy,) = re.findall(r"`--model_name (\S+)`", text)
    assert main(flags("--dry_run", model_name=copy, hf_endpoint=hub.address)) == 0


def test_a_data_set_in_the_cache_is_read_without_a_hub(hub: FakeHub, flags: Callable[..., Words]) -> None:
    assert main(flags("--dry_run", dataset_name="acme/law", hf_endpoint=hub.address)) == 0
    assert main(flags("--dry_run", dataset_name="acme/law", hf_endpoint=NOWHERE)) == 0


@pytest.fixture
def laws(data: Path, tmp_path: Path) -> Path:
    """The folder of a data set with the subsets civil and penal."""
    folder = tmp_path / "laws"
    folder.mkdir()
    names = ("civil", "penal")
    listed = "".join(f"- config_name: {name}\n  data_files: {name}.jsonl\n" for name in names)
    (folder / "README.md").write_text(f"---\nconfigs:\n{listed}---\n", "utf-8")
    for name in names:
        (folder / f"{name}.jsonl").write_text(data.read_text("utf-8").replace("article", name), "utf-8")
    return folder


def test_a_data_set_with_subsets_names_them_and_trains_on_the_chosen_one(
    hub: FakeHub, laws: Path, flags: Callable[..., Words], refused: Refused, tmp_path: Path, capsys: Output
) -> None:
    hub.datasets["acme/laws"] = laws
    there = {"dataset_name": "acme/laws", "hf_endpoint": hub.address}
    text = refused(flags(**there), "acme/laws", "--dataset_subset", "civil", "penal")
    assert "Check the network" not in text
    refused(flags(**there, dataset_subset="tax"), "acme/laws", "tax", "--dataset_subset", "civil", "penal")
    valid = {"valid_dataset": "acme/laws", "hf_endpoint": hub.address}
    refused(flags(**valid), "acme/laws", "--valid_subset", "civil")
    refused(["data", "acme/laws", "--hf_endpoint", hub.address], "--dataset_subset", "civil", "penal")
    refused(["plan", *flags(**there)[2:]], "--dataset_subset", "civil", "penal")
    refused(flags(dataset_subset="civil"), "dataset_subset: civil")

    assert main(flags(**there, dataset_subset="penal", valid_dataset="acme/laws", valid_subset="civil")) == 0
    run = the_run(tmp_path / "output")
    assert "dataset_subset | penal" in (run.final_model / "README.md").read_text("utf-8")
    capsys.readouterr()
    for subset in ("penal", "civil"):  # the second one must not be found under the key of the first
        assert main(["data", "acme/laws", "--dataset_subset", subset, "--hf_endpoint", NOWHERE, "--json"]) == 0
        assert f"What does {subset}" in capsys.readouterr().out
    run.final_model.joinpath("adapter_model.safetensors").unlink()
    lines = [line for line in run.events.read_text("utf-8").splitlines() if '"finished"' not in line]
    run.events.write_text("\n".join(lines) + "\n", "utf-8")
    for language in ("en", "zh"):
        argv = ["train", "--no_supervisor", "--resume", str(run.path), "--dataset_subset", "civil", "--lang", language]
        assert main(argv) == 2
        said = capsys.readouterr().err
        assert all(word in said for word in ("dataset_subset", "penal", "civil"))


def test_a_subset_that_was_not_asked_for_is_used_from_the_cache_only_without_a_hub(
    hub: FakeHub, laws: Path, flags: Callable[..., Words], refused: Refused, capsys: Output
) -> None:
    hub.datasets["acme/laws"] = laws
    assert main(flags("--dry_run", dataset_name="acme/laws", dataset_subset="civil", hf_endpoint=hub.address)) == 0
    refused(flags(dataset_name="acme/laws", hf_endpoint=hub.address), "--dataset_subset", "civil", "penal")
    assert main(flags("--dry_run", dataset_name="acme/laws", hf_endpoint=NOWHERE)) == 0
    assert "civil" in capsys.readouterr().out


@pytest.mark.parametrize(("status", "same"), [(403, "hf auth login"), (500, ""), (429, "")])
def test_a_status_of_the_hub_is_told_as_it_is(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused, status: int, same: str
) -> None:
    hub.failing = {"acme/odd": status}
    for argv in (
        flags(model_name="acme/odd", hf_endpoint=hub.address),
        flags(dataset_name="acme/odd", hf_endpoint=hub.address),
    ):
        text = refused(argv, "acme/odd", f"HTTP {status}", same, "--hf_endpoint https://hf-mirror.com")
        assert ("hf auth login" in text) == (status == 403)
        assert "Check the network" not in text


def test_a_full_cache_is_a_full_disk(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch
) -> None:
    import datasets

    def full(*_args: object, **_kwargs: object) -> None:
        raise datasets.exceptions.DatasetGenerationError("no") from OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(datasets, "load_dataset", full)
    text = refused(flags(dataset_name="acme/law", hf_endpoint=hub.address), "acme/law", "No space left", "HF_HOME")
    assert "network" not in text
