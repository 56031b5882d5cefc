"""Files given to --config that are damaged, ambiguous or made to exhaust memory: each is named, and none is run."""

import itertools
from pathlib import Path

import pytest
from support.refusals import Refused

from lorafit.cli.config_file import read_config_file
from lorafit.config import LARGEST_FILE, read_yaml

LETTERS = "abcdefghi"
GROWING = "a: &a [x, x, x, x, x, x, x, x, x, x]\n" + "".join(
    f"{name}: &{name} [{', '.join([f'*{before}'] * 10)}]\n" for before, name in itertools.pairwise(LETTERS)
)
OTHER_TOOL = "model_name_or_path: demo\nstage: sft\ndataset: demo\n"


@pytest.mark.parametrize(
    ("content", "named"),
    [
        ("lora_r: 8\nseed: 1\nlora_r: 16\n", ["`lora_r`", "1", "3"]),
        ("lora_r: 8\nlora-r: 16\n", ["`lora_r`"]),
        ("{lora_r: 8, lora_r: 16}", ["`lora_r`"]),
        (OTHER_TOOL + "lora_rank: 8\nlora_rank: 64\n", ["`lora_rank`", "4"]),
        (GROWING + "model_name: *i\n", ["*name"]),
        (OTHER_TOOL + GROWING.replace("a:", "deepspeed:", 1), ["*name"]),
        (OTHER_TOOL + "lora_target: &a [*a]\n", ["*name"]),
        ("lora_r: " + "9" * 5000, ["YAML"]),
        ("lora_r: 0x" + "f" * 5000, ["YAML"]),
        ("dataset_split: 2026-02-31\n", ["YAML", "day"]),
        ("model_name: " + "[" * 5000 + "]" * 5000, ["YAML"]),
        ("# " + "x" * LARGEST_FILE, ["1 MiB"]),
        ("system_prompt: 你是律師，請回答問題\n".encode("big5"), ["UTF-8"]),
        ("learning_rate: true\n", ["learning_rate", "True"]),
        ("lora_r: yes\n", ["lora_r", "True"]),
        ("model_name: !!python/object/apply:os.system [touch ran]\n", ["YAML", "python/object"]),
    ],
)
def test_a_settings_file_that_cannot_be_meant_is_named(
    refused: Refused, tmp_path: Path, content: str | bytes, named: list[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    refused(["plan", "--config", str(path)], path, *named)


def test_aliases_that_do_not_grow_are_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("a: &a [1, 2]\nb: [*a, *a]\nc: {<<: &m {k: 1}, k: 2}\n")
    assert read_yaml(path) == {"a": [1, 2], "b": [[1, 2], [1, 2]], "c": {"k": 2}}


def test_a_file_in_utf_16_is_read(tmp_path: Path) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text("system_prompt: 你是律师\n", "utf-16")
    assert read_config_file(path) == {"system_prompt": "你是律师"}
