"""A hub that does not answer or refuses access is reported, with a mirror or a copy that works."""

import re
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from support.fake_hub import FakeHub
from support.refusals import Refused, Words

from lorafit.cli.app import main
from lorafit.models.hub import use_endpoint

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
