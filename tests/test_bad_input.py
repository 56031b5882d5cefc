"""Is bad input met with words that name the value and the remedy, exit code 2, no traceback, and nothing half written?

Through the real command line in one process, each in English and in Chinese, with a tiny model; real small disks where
they can be mounted.
"""

import json
import re
import shutil
import subprocess
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import tiny
from fakehub import FakeHub

from lorafit import hardware
from lorafit.checkpoint import latest_good
from lorafit.cli import main
from lorafit.engines.torch.engine import TorchEngine
from lorafit.events import Failed, StepDone, Warned, read_events
from lorafit.rundir import RunDir

Refused = Callable[..., str]
Words = list[str]

NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
LLAMA = "meta-llama/Llama-3.2-3B-Instruct"


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    return tiny.save_chat_model(tmp_path_factory.mktemp("tiny"), demo_folder)


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "law.jsonl"
    rows = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path


@pytest.fixture
def flags(model: Path, data: Path, tmp_path: Path) -> Callable[..., Words]:
    """The command line of a training of two steps, with changes."""

    def make(*more: object, **changes: object) -> Words:
        settings = {"model_name": model, "dataset_name": data, "max_length": 96, "max_steps": 2, "effective_batch": 4,
                    "lora_r": 4, "lora_alpha": 8, "output_dir": tmp_path / "output"}  # fmt: skip
        words = [word for name, value in (settings | changes).items() for word in (f"--{name}", str(value))]
        return ["train", "--no_supervisor", *words, *map(str, more)]

    return make


@pytest.fixture
def refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Refused:
    """Run a command line in both languages: exit code 2, every given text in the error, no traceback, nothing written."""

    def check(argv: Words, *named: object) -> str:
        texts = []
        for language in ("zh", "en"):
            code = main([*argv, "--lang", language])
            seen = capsys.readouterr()
            texts.append(seen.out + seen.err)
            assert code == 2, texts[-1]
            assert "Traceback" not in texts[-1]
            assert [word for word in map(str, named) if word not in seen.err] == [], seen.err
            assert not [path for path in (tmp_path / "output").glob("*")]
        return texts[-1]

    return check


def without(model: Path, folder: Path, *names: str) -> Path:
    """A copy of `model` in `folder` that lacks the files `names`."""
    shutil.copytree(model, folder)
    for name in names:
        (folder / name).unlink()
    return folder


def change_config(folder: Path, **changes: object) -> None:
    facts = json.loads((folder / "config.json").read_text("utf-8"))
    (folder / "config.json").write_text(json.dumps(facts | changes), "utf-8")


def the_run(output: Path) -> RunDir:
    (path,) = output.iterdir()
    return RunDir(path)


def adapter_bytes(output: Path) -> bytes:
    return (the_run(output).final_model / "adapter_model.safetensors").read_bytes()


# data


@pytest.mark.parametrize(
    ("name", "content", "named"),
    [
        ("empty.jsonl", b"", ["empty.jsonl", "0 bytes"]),
        ("blank.jsonl", b"\n\n", ["blank.jsonl", "--dataset_split"]),
        ("none.json", b"[]", ["none.json", "--dataset_split"]),
        ("broken.json", b'[{"instruction": "a"', ["broken.json:1"]),
        ("broken.jsonl", b'{"instruction": \n', ["broken.jsonl:1"]),
        ("table.xlsx", b"PK", [".xlsx", ".jsonl"]),
        ("noend", b"a", ["noend", ".jsonl"]),
        ("row.jsonl", b'{"wonder": "only this"}\n', ["row.jsonl:1", "wonder", "instruction", "output"]),
    ],
)
def test_a_data_file_that_gives_no_row_is_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path, name: str, content: bytes, named: list[str]
) -> None:
    (tmp_path / name).write_bytes(content)
    refused(flags(dataset_name=tmp_path / name), *named)
    assert (tmp_path / name).read_bytes() == content


def test_a_missing_data_file_is_named_with_its_neighbour_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, data: Path
) -> None:
    text = refused(flags(dataset_name=data.with_name("laws.jsonl")), "laws.jsonl", data)
    assert "Looking for the model" not in text


def test_rows_without_an_answer_are_counted_and_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    path = tmp_path / "questions.jsonl"
    path.write_text("".join(json.dumps({"question": f"q{i}", "answer": ""}) + "\n" for i in range(9)))
    refused(flags(dataset_name=path), f"{path}:1", "`answer`", "9")


def test_a_max_length_that_leaves_no_answer_names_the_flag(flags: Callable[..., Words], refused: Refused) -> None:
    refused(flags(max_length=8), "--max_length", "8", "20")


@pytest.mark.parametrize("split", ["train[:abc]", "train[:200%]", "test", "train[100:200]"])
def test_a_slice_that_cannot_be_had_is_named(flags: Callable[..., Words], refused: Refused, split: str) -> None:
    refused(flags(dataset_split=split), split, "train")


def test_one_row_is_trained_on_and_it_is_said_that_none_is_held_out(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", max_samples=1, lang="en")) == 0
    assert "nothing is held out" in capsys.readouterr().out


def test_a_val_size_above_the_rows_takes_half_of_them_and_says_so(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", val_size=100, lang="en")) == 0
    assert "Half of the rows, 10, are held out" in capsys.readouterr().out


# the model's folder


def test_a_missing_model_folder_is_named(flags: Callable[..., Words], refused: Refused, tmp_path: Path) -> None:
    refused(flags(model_name=tmp_path / "nomodel"), tmp_path / "nomodel", "--model_name", "demo")


@pytest.mark.parametrize(
    ("names", "named"),
    [
        (["model.safetensors"], ["*.safetensors"]),
        (["tokenizer.json", "tokenizer_config.json"], ["tokenizer.json"]),
        (["config.json"], ["config.json"]),
    ],
)
def test_a_model_folder_that_lacks_something_is_named_with_it(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, names: list[str], named: list[str]
) -> None:
    refused(flags(model_name=without(model, tmp_path / "bare", *names)), tmp_path / "bare", *named)


def test_weights_that_are_cut_short_are_named(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    file = without(model, tmp_path / "cut") / "model.safetensors"
    file.write_bytes(file.read_bytes()[:-1000])
    refused(flags(model_name=tmp_path / "cut"), file, file.stat().st_size, "git lfs pull")


def test_pickled_weights_are_not_loaded_and_a_conversion_is_offered(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    folder = without(model, tmp_path / "old", "model.safetensors")
    (folder / "pytorch_model.bin").write_bytes(b"pickle")
    refused(flags(model_name=folder), folder, "pytorch_model.bin", "save_pretrained")


def test_a_tokenizer_that_cannot_be_read_is_named(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path
) -> None:
    folder = without(model, tmp_path / "odd")
    (folder / "tokenizer.json").write_text("{")
    refused(flags(model_name=folder), folder, "tokenizer.json")


@pytest.mark.parametrize("changes", [{"num_hidden_layers": 5}, {"hidden_size": 64}, {"model_type": "wonder"}])
def test_weights_that_do_not_fit_their_config_are_never_filled_with_random_numbers(
    flags: Callable[..., Words], refused: Refused, model: Path, tmp_path: Path, changes: dict[str, Any]
) -> None:
    change_config(without(model, tmp_path / "other"), **changes)
    refused(flags(model_name=tmp_path / "other"), tmp_path / "other")


def test_a_model_without_a_chat_template_trains_and_says_which_it_was_given(
    flags: Callable[..., Words], model: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = without(model, tmp_path / "base", *(path.name for path in model.glob("*.jinja")))
    assert main(flags(model_name=folder, lang="en")) == 0
    assert "no chat template" in capsys.readouterr().out
    run = the_run(tmp_path / "output")
    assert any("ChatML" in event.text for event in read_events(run.events) if isinstance(event, Warned))
    assert (run.final_model / "chat_template.jinja").is_file()


def test_targets_that_match_no_layer_are_named_with_those_there_are(
    flags: Callable[..., Words], refused: Refused
) -> None:
    text = refused(flags(lora_targets="q_proj,wonder"), "q_proj,wonder", "k_proj", "all-linear")
    assert "Reading" not in text


# hubs


@pytest.fixture
def hub(model: Path, data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[FakeHub]:
    """A hub with a gated model, its copy without a gate and a data set; empty caches; the endpoint put back at the end."""
    import datasets
    from huggingface_hub import constants

    monkeypatch.setenv("HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(constants, "ENDPOINT", constants.ENDPOINT)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", constants.HUGGINGFACE_CO_URL_TEMPLATE)
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_ENDPOINT", NOWHERE)
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    models = {LLAMA: model, "unsloth/Llama-3.2-3B-Instruct": model}
    with FakeHub(models=models, datasets={"acme/law": data.parent}, gated={LLAMA}).serve() as fake:
        yield fake


def test_a_hub_out_of_reach_names_the_mirror_and_demo_for_a_model(
    hub: FakeHub, flags: Callable[..., Words], refused: Refused
) -> None:
    argv = flags(model_name="acme/tiny", hf_endpoint=NOWHERE)
    refused(argv, "acme/tiny", NOWHERE, "--hf_endpoint https://hf-mirror.com", "--hub modelscope", "--demo")


def test_a_hub_out_of_reach_names_the_mirror_and_demo_for_a_data_set(
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


# adapters


@pytest.fixture(scope="module")
def adapter(model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An adapter of rank 4 and alpha 8 for `model`, with its tokenizer."""
    folder = tmp_path_factory.mktemp("adapter")
    engine = tiny.open_engine(model, tiny.make_plan(lora_targets="q_proj,v_proj"))
    engine.save_adapter(folder)
    return folder


@pytest.fixture(scope="module", params=[{"hidden_size": 64}, {"num_hidden_layers": 2}], ids=["wider", "shallower"])
def other(request: pytest.FixtureRequest, model: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Another base than the adapter's."""
    folder = without(model, tmp_path_factory.mktemp("other") / "base")
    return tiny.save_model("llama", folder, vocab_size=49_152, **request.param)


def test_an_adapter_of_another_base_is_refused_before_the_base_is_loaded(
    refused: Refused, adapter: Path, other: Path, model: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(TorchEngine, "open", lambda _setup: pytest.fail("loaded"))
    argv = ["chat", "--lora_weights", str(adapter), "--base_model", str(other), "--prompt", "hi"]
    refused(argv, adapter, model, "--base_model")


def test_an_adapter_of_another_base_is_no_start(
    flags: Callable[..., Words], refused: Refused, adapter: Path, other: Path, model: Path
) -> None:
    argv = flags(init_adapter=adapter, model_name=other, lora_targets="q_proj,v_proj")
    text = refused(argv, adapter, model, "--model_name")
    assert "Reading" not in text


@pytest.mark.parametrize("changes", [{"lora_r": 8}, {"lora_alpha": 64}])
def test_a_start_of_another_rank_or_scale_gives_the_flags_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path, changes: dict[str, Any]
) -> None:
    refused(flags(init_adapter=adapter, **changes), adapter, "--lora_r 4 --lora_alpha 8")


def test_a_start_on_other_layers_gives_the_flag_to_paste(
    flags: Callable[..., Words], refused: Refused, adapter: Path
) -> None:
    refused(flags(init_adapter=adapter), adapter, "--lora_targets q_proj,v_proj")


def test_a_start_that_does_not_exist_is_told_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path
) -> None:
    text = refused(flags(init_adapter=tmp_path / "nothing"), tmp_path / "nothing", "adapter_config.json")
    assert "Looking for the model" not in text


def test_a_run_to_talk_to_that_does_not_exist_is_named(refused: Refused, tmp_path: Path) -> None:
    refused(["chat", "--lora_weights", str(tmp_path / "nothing")], tmp_path / "nothing", "final_model")


# flags, YAML, plans


@pytest.mark.parametrize(
    ("words", "named"),
    [
        (["--lora_rank", "8"], ["--lora_rank", "`--lora_r`"]),
        (["--learning-rte", "1"], ["--learning-rte", "`--learning_rate`"]),
        (["--zzz"], ["--zzz", "lorafit train --help"]),
        (["stray"], ["stray", "lorafit train --help"]),
        (["--demo", "yes"], ["yes"]),
        (["--lora_r"], ["--lora_r"]),
        (["--lora_r", "many"], ["lora_r", "'many'", "32"]),
        (["--lora_r", "0"], ["lora_r", "'0'", ">= 1"]),
        (["--learning_rate", "nan"], ["learning_rate", "'nan'", "> 0"]),
        (["--learning_rate=inf"], ["learning_rate", "'inf'"]),
        (["--device", "tpu"], ["'tpu'", "auto, cuda, mps, cpu"]),
    ],
)
def test_a_wrong_flag_or_value_is_named_with_what_would_do(refused: Refused, words: Words, named: list[str]) -> None:
    refused(["train", *words], *named)


def test_a_wrong_flag_of_chat_is_named_with_the_near_one(refused: Refused) -> None:
    refused(["chat", "--promt", "hi"], "--promt", "`--prompt`")
    refused(["chat", "--temperature", "-1"], "temperature", "'-1'", ">= 0")


@pytest.mark.parametrize(
    ("text", "named"),
    [
        ("lora_rank: 8\n", ["lora_rank", "`lora_r`"]),
        ("lora_r: many\n", ["lora_r", "'many'", "32"]),
        ("model_name: 5\n", ["model_name", "5"]),
        ("lora_r:\n", ["lora_r", "None"]),
        ("a: [1, 2\nb", ["line 2", "lora_r: 16"]),
        ("- a\n- b\n", ["list", "lora_r: 16"]),
    ],
)
def test_a_wrong_settings_file_is_named_with_what_would_do(
    refused: Refused, tmp_path: Path, text: str, named: list[str]
) -> None:
    path = tmp_path / "settings.yaml"
    path.write_text(text, "utf-8")
    refused(["train", "--config", str(path)], path, *named)
    assert path.read_text("utf-8") == text


def test_a_missing_settings_file_is_named(refused: Refused, tmp_path: Path) -> None:
    refused(["train", "--config", str(tmp_path / "none.yaml")], tmp_path / "none.yaml", "--config")


def test_three_batch_settings_that_disagree_are_named_before_anything_is_read(
    flags: Callable[..., Words], refused: Refused
) -> None:
    argv = flags(batch_size=2, gradient_accumulation_steps=3, effective_batch=4)
    text = refused(argv, "batch_size", "gradient_accumulation_steps", "2 x 3 = 6", "effective_batch = 4")
    assert "Looking for the model" not in text


@pytest.mark.parametrize("content", [None, "[", "{}", "[1]", '{"engine": "torch"}'])
def test_a_file_that_is_no_plan_is_named(
    flags: Callable[..., Words], refused: Refused, tmp_path: Path, content: str | None
) -> None:
    path = tmp_path / "plan.json"
    if content is not None:
        path.write_text(content)
    refused(flags(plan=path), path, "--plan output/RUN/plan.json")


# the machine


@pytest.mark.parametrize(("device", "kind"), [("cuda", "CUDA"), ("mps", "MPS")])
def test_a_device_that_is_not_here_is_named(
    flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch, device: str, kind: str
) -> None:
    machine = replace(hardware.detect(), gpus=(), torch_cuda=None)
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    refused(flags(device=device), kind, machine.chip, "--device cpu")


@pytest.mark.parametrize("precision", ["bf16", "fp16"])
def test_numbers_that_the_processor_would_only_imitate_are_refused(
    flags: Callable[..., Words], refused: Refused, monkeypatch: pytest.MonkeyPatch, precision: str
) -> None:
    machine = replace(hardware.detect(), gpus=(), torch_cuda=None, cpu_bf16=False)
    monkeypatch.setattr(hardware, "detect", lambda: machine)
    refused(flags(precision=precision), precision, machine.chip, "--precision fp32")


def test_a_training_says_on_which_device_the_model_stands(
    flags: Callable[..., Words], capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags("--dry_run", lang="en")) == 0
    assert "✓ Model loaded on cpu\n" in capsys.readouterr().out


# runs


def test_nothing_to_resume_says_how_to_start(refused: Refused, tmp_path: Path) -> None:
    refused(["resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")
    refused(["train", "--resume", "--output_dir", str(tmp_path / "output")], tmp_path / "output", "lorafit train")


def test_a_folder_that_is_no_run_is_not_resumed(refused: Refused, model: Path, tmp_path: Path) -> None:
    refused(["resume", str(model), "--output_dir", str(tmp_path / "output")], model, "config.yaml", "lorafit runs")


# memory and numbers


@pytest.fixture
def memory_runs_out(monkeypatch: pytest.MonkeyPatch) -> Callable[[int], None]:
    """From the given step on every computation answers as CUDA does when its memory is full."""
    real = TorchEngine._accumulate

    def install(first: int) -> None:
        def accumulate(self: TorchEngine, step: int, micro_batches: Any, total_targets: int) -> float:
            if step >= first:
                raise RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB")
            return real(self, step, micro_batches, total_targets)

        monkeypatch.setattr(TorchEngine, "_accumulate", accumulate)

    return install


def test_memory_that_is_too_small_for_one_sample_ends_with_words_and_leaves_no_run(
    flags: Callable[..., Words], refused: Refused, memory_runs_out: Callable[[int], None]
) -> None:
    memory_runs_out(1)
    refused(flags(), "2.00 GiB", "--recompute", "--max_length", "--quantization 4bit")


def test_memory_that_runs_out_later_keeps_the_checkpoint_and_names_the_command_to_go_on(
    flags: Callable[..., Words],
    memory_runs_out: Callable[[int], None],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    memory_runs_out(2)
    assert main(flags(save_steps=1, lang="en")) == 2
    seen = capsys.readouterr()
    run = the_run(tmp_path / "output")
    assert "--recompute" in seen.err
    assert f"resume {run.path}" in seen.out
    assert [checkpoint.name for checkpoint in run.checkpoints.iterdir()] == ["step-000001"]
    assert isinstance(read_events(run.events)[-1], Failed)


def test_a_gradient_that_is_no_number_ends_with_words(
    flags: Callable[..., Words], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags(learning_rate=1e30, lr_scheduler="constant", val_size=0, max_steps=4, lang="en")) == 2
    text = capsys.readouterr().err
    assert "Traceback" not in text
    assert re.search(r"The gradient of step [234] is not a number", text)
    assert "--learning_rate" in text
    assert isinstance(read_events(the_run(tmp_path / "output").events)[-1], Failed)


# disks


@pytest.fixture
def disk(tmp_path: Path) -> Iterator[Callable[[str], Path]]:
    """Mounts a small disk with the given options, and again with others; skips where that is not allowed."""
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted: list[str] = []

    def mount(options: str) -> Path:
        remount = "remount," if mounted else ""
        command = ["mount", "-t", "tmpfs", "-o", remount + options, "tmpfs", str(folder)]
        try:
            subprocess.run(command, check=True, capture_output=True)
        except (OSError, subprocess.CalledProcessError) as error:
            pytest.skip(f"no disk can be mounted here: {error}")
        mounted.append(options)
        return folder

    yield mount
    if mounted:
        subprocess.run(["umount", str(folder)], check=False)


def test_a_disk_without_the_room_is_told_before_the_data_are_read(
    flags: Callable[..., Words], refused: Refused, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=64k")
    text = refused(flags(output_dir=folder / "output"), folder, "64 KiB", "--output_dir")
    assert "Reading" not in text
    assert list(folder.iterdir()) == []


def test_a_read_only_disk_is_told_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, disk: Callable[[str], Path]
) -> None:
    folder = disk("size=1m,ro")
    text = refused(flags(output_dir=folder / "output"), folder, "Read-only", "--output_dir")
    assert "Looking for the model" not in text


def test_a_disk_that_fills_up_ends_in_words_and_with_room_the_run_goes_on_to_the_same_bytes(
    flags: Callable[..., Words], disk: Callable[[str], Path], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = disk("size=12m") / "output"
    steps = {"max_steps": 5, "save_steps": 1, "keep_checkpoints": 4}
    assert main(flags(**steps, output_dir=output, lang="en")) == 2
    seen = capsys.readouterr()
    run = the_run(output)
    assert "Traceback" not in seen.err
    assert "The disk is full." in seen.err
    assert f"resume {run.path}" in seen.out
    good, bad = latest_good(run)
    assert good is not None
    assert bad == []
    assert not list(run.path.rglob(".*"))
    disk("size=64m")
    assert main(["resume", str(run.path), "--no_supervisor"]) == 0
    assert main(flags(**steps, output_dir=tmp_path / "undisturbed")) == 0
    assert adapter_bytes(output) == adapter_bytes(tmp_path / "undisturbed")
    both = [read_events(the_run(folder).events) for folder in (output, tmp_path / "undisturbed")]
    losses, wanted = ([(e.step, e.loss) for e in events if isinstance(e, StepDone)] for events in both)
    assert losses == wanted


def test_an_output_folder_that_cannot_be_is_told_before_the_model_is_looked_for(
    flags: Callable[..., Words], refused: Refused, data: Path
) -> None:
    before = data.read_bytes()
    text = refused(flags(output_dir=data / "runs"), data / "runs", "--output_dir")
    assert "Looking for the model" not in text
    assert data.read_bytes() == before


def test_answers_that_could_not_be_written_are_told_before_the_model_is_looked_for(
    refused: Refused, adapter: Path, data: Path, tmp_path: Path
) -> None:
    argv = ["chat", "--lora_weights", str(adapter), "--base_model", str(tmp_path / "none"), "--test_file", str(data)]
    refused([*argv, "--output", str(tmp_path)], tmp_path, "--output")
    refused([*argv, "--output", str(data / "answers.jsonl")], data, "--output")
