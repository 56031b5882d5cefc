"""A model that cannot be trained is refused by its config.json, with one line to paste, before a weight is fetched."""

import json
import sys
from pathlib import Path
from typing import Any

import pytest
from support.fake_hub import FakeHub
from support.skeletons import FAMILIES, family_config

from lorafit.errors import ModelError
from lorafit.models import trainable, transformers_types
from lorafit.models.hub import find_model
from lorafit.models.remote_spec import remote_spec
from lorafit.models.spec import read_config
from lorafit.models.trainable import check_trainable

OWN_CODE = {"model_type": "wonder", "auto_map": {"AutoModelForCausalLM": "modeling_wonder.Wonder"}}


@pytest.mark.parametrize(
    ("config", "words", "line"),
    [
        ({"model_type": "wonder"}, "does not know this model type", "`pip install -U transformers`"),
        (OWN_CODE, "modeling_wonder.py", "`--trust_remote_code`"),
        ({"model_type": "bert"}, "only decoder language models can", "--model_name"),
        ({"model_type": "t5"}, "only decoder language models can", "--model_name"),
        ({"model_type": "bart"}, "only decoder language models can", "--model_name"),
        ({"model_type": "whisper"}, "only decoder language models can", "--model_name"),
        ({"model_type": "vit"}, "only decoder language models can", "--model_name"),
        ({"model_type": "wav2vec2"}, "only decoder language models can", "--model_name"),
        ({"model_type": "gpt2"}, "no linear layers", "--model_name"),
        ({"model_type": "fast_vlm", "vision_config": {"model_type": "timm_wrapper"}}, "timm", "`pip install timm`"),
    ],
    ids=lambda value: value["model_type"] if isinstance(value, dict) else "",
)
def test_each_cause_has_its_words_and_one_line(config: dict[str, Any], words: str, line: str) -> None:
    with pytest.raises(ModelError, match=words) as caught:
        check_trainable(config, "folder")
    fix = str(caught.value.fix)
    assert line in fix
    assert "\n" not in fix


def test_own_code_is_accepted_where_the_user_trusts_it() -> None:
    check_trainable(OWN_CODE, "folder", trust_remote_code=True)


@pytest.mark.parametrize("name", FAMILIES)
def test_every_family_of_decoders_passes(name: str) -> None:
    check_trainable(json.loads(json.dumps(family_config(name).to_dict(), default=str)), "folder")


def test_types_and_defaults_are_those_of_transformers() -> None:
    from transformers.models.auto import modeling_auto
    from transformers.models.auto.configuration_auto import CONFIG_MAPPING, CONFIG_MAPPING_NAMES

    types = transformers_types.config_classes()
    assert types.items() <= dict(CONFIG_MAPPING_NAMES).items()
    assert len(types) > 0.95 * len(CONFIG_MAPPING_NAMES)
    for task in trainable.TASKS:
        wanted = dict(getattr(modeling_auto, f"MODEL_FOR_{task}_MAPPING_NAMES"))
        inherited = transformers_types.classes_for("IMAGE_TEXT_TO_TEXT") if task == "MULTIMODAL_LM" else {}
        found = {**inherited, **transformers_types.classes_for(task)}
        assert found == {kind: str(name) for kind, name in wanted.items()}
    for kind in ("gemma3_text", "qwen3_5_moe_text", "gpt_oss", "deepseek_v3"):
        found, config = transformers_types.config_defaults(kind), CONFIG_MAPPING[kind]()
        for key in ("num_hidden_layers", "hidden_size", "num_attention_heads", "vocab_size"):
            assert found[key] == getattr(config, key), (kind, key)


def test_types_are_read_without_importing_transformers() -> None:
    import subprocess

    code = (
        "import sys; from lorafit.models.trainable import check_trainable; check_trainable({'model_type': 'bamba'}, '.');"
        "sys.exit('transformers' in sys.modules or 'torch' in sys.modules)"
    )
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0


def test_nothing_is_looked_up_where_transformers_cannot_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trainable, "config_classes", dict)
    check_trainable({"model_type": "wonder"}, "folder")


@pytest.fixture
def hub(tmp_path: Path) -> FakeHub:
    """A hub with a model that cannot be trained."""
    folder = tmp_path / "speech"
    folder.mkdir()
    (folder / "config.json").write_text('{"model_type": "whisper"}')
    (folder / "model.safetensors").write_bytes(b"0" * 64)
    return FakeHub(models={"owner/speech": folder})


def test_plan_and_train_refuse_before_they_ask_for_weights(
    hub: FakeHub, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(tmp_path / "cache"))

    def accept(folder: Path) -> None:
        check_trainable(read_config(folder), "owner/speech")

    with hub.serve():
        with pytest.raises(ModelError, match="only decoder language models can"):
            remote_spec("owner/speech", endpoint=hub.address)
        with pytest.raises(ModelError, match="only decoder language models can"):
            find_model("owner/speech", endpoint=hub.address, accept=accept)
    assert any("config.json" in path for path in hub.asked)
    assert not any("model.safetensors" in path for path in hub.asked)
