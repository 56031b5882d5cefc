"""Every remedy that an error prints works: the error is caused, its fix is followed, and the command then succeeds."""

import json
import shlex
import shutil
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import datasets
import pytest
from _pytest.mark import ParameterSet
from huggingface_hub import constants
from support import tiny
from support.remedies import carried_out, deeds, printed_from, texts_with_a_remedy
from support.remedies_not_followed import NOT_FOLLOWED
from support.stopped_runs import as_it_died

from lorafit.cli.app import main
from lorafit.models.hub import use_endpoint
from lorafit.run_folders.directory import RunDir

NOWHERE = "http://127.0.0.1:9"  # the port "discard", closed on any machine
MODEL = "--model_name model --dataset_name law.jsonl --max_length 96 --effective_batch 4 --lora_r 4 --lora_alpha 8"
TRAIN = f"train --no_supervisor {MODEL} --output_dir new"
DRY = f"{TRAIN} --max_steps 2 --dry_run"
ASK = "--prompt hi --max_new_tokens 2"
DEMO = "train --demo --no_supervisor --output_dir new --dry_run"
AS_IT_IS = ""
SKIP = None  # the deed is for another case of the same error, or needs the internet


@dataclass(frozen=True)
class Remedy:
    """A command that fails, the texts in its fix, and for each deed in the fix what the user types.

    AS_IT_IS is the deed as printed. Other values are flags with values, or a whole command. `before` is run first.
    `environ` is set for the command that fails, and then unset.
    """

    argv: str
    texts: tuple[str, ...]
    typed: dict[str, str | None]
    before: str | None = None
    environ: dict[str, str] = field(default_factory=dict)


def remedy(argv: str, text: str, typed: dict[str, str | None] | None = None, *more: str, **rest: Any) -> ParameterSet:
    """Return a Remedy as a parameter of the test below. Without `typed`, every deed is typed as it is."""
    typed = dict.fromkeys(deeds(text), AS_IT_IS) if typed is None else typed
    return pytest.param(Remedy(argv, (text, *more), typed, **rest), id=argv.replace(DRY, "train").replace(MODEL, "..."))


REMOVE_DEVICE = "Remove --device, or use --device cpu."
REMEDIES = [
    # `lorafit plan`
    remedy('plan --model_name Qwen/Qwen3-32B --machine "RTX 3090"', "--model_name {name}: the largest similar model that fits",
           {"--model_name Qwen/Qwen3-14B": AS_IT_IS, 'lorafit plan --machine "A100 80GB"': "--machine 'A100 80GB'",
            "--token_budget 512": AS_IT_IS},
           'another machine, for example {name}: `lorafit plan --machine "{name}"` with your model and data',
           "--token_budget {budget}: start anyway; it may run out of memory"),
    remedy('plan --model_name Qwen/Qwen3-4B --machine "M1 Pro 16GB" --quantization none --max_length 4096',
           "--quantization 4bit: {need} in total",
           {"--quantization 4bit": AS_IT_IS, "--max_length 512": AS_IT_IS, "--model_name Qwen/Qwen3-1.7B": AS_IT_IS,
            'lorafit plan --machine "colab-t4"': "--machine colab-t4", "--token_budget 1024": AS_IT_IS},
           "--max_length {length}: truncate longer samples"),
    remedy('plan --model_name Qwen/Qwen3-32B --machine "M3 Pro 36GB" --max_length 4096',
           "--quantization 4bit --max_length {length}: quantize and truncate longer samples",
           {"--quantization 4bit --max_length 512": AS_IT_IS, "--model_name Qwen/Qwen3-14B": AS_IT_IS,
            'lorafit plan --machine "A100 80GB"': "--machine 'A100 80GB'"}),
    remedy('plan --model_name Qwen/Qwen3-1.7B --machine "M1 8GB" --device cpu --processes 4',
           "--processes {count}: more memory for each process",
           {"--processes 1": AS_IT_IS, "--model_name NAME": f"lorafit plan {MODEL} --machine 'M1 8GB' --device cpu --processes 4",
            'lorafit plan --machine "colab-t4"': "lorafit plan --model_name Qwen/Qwen3-1.7B --machine colab-t4"},
           "--model_name NAME: a smaller model (`demo` is the smallest)"),
    remedy('plan --device cuda --machine "M1 8GB"', REMOVE_DEVICE),
    remedy('plan --device mps --machine "RTX 3090"', REMOVE_DEVICE),
    remedy('plan --engine mlx --machine "RTX 3090"', "Remove --engine, or use --device cpu."),
    remedy(f"plan {MODEL} --processes 2 --machine 'M1 8GB'", "Remove --processes, or use --device cpu --engine torch."),
    remedy(f"{DRY} --engine mlx --processes 2", "Remove --processes, or use --engine torch.",
           {"remove --processes": AS_IT_IS, "--engine torch": f"lorafit plan {MODEL} --engine torch --processes 2 --machine kaggle-t4x2"}),
    remedy("plan --processes 4 --machine kaggle-t4x2", "Set --processes to at most {count}, or use --device cpu.",
           {"--processes": "--processes 2", "--device cpu": AS_IT_IS}),
    remedy("plan --shard on --machine kaggle-t4x2", "Add --processes N, start with torchrun, or remove --shard.",
           {"--processes N": "--processes 2", "remove --shard": AS_IT_IS}),
    remedy(f"plan {MODEL} --device cpu --precision fp16", "Use --precision fp32."),
    remedy('plan --engine mlx --precision fp16 --machine "M1 8GB"', "Use --precision bf16 or fp32."),
    remedy('plan --engine torch --quantization 8bit --machine "M2 24GB"',
           "Use --quantization none, or try --quantization 4bit."),
    remedy('plan --optimizer paged_adamw_8bit --machine "M2 24GB"',
           "Use --optimizer adamw; for an adapter it takes little memory."),
    remedy("plan --machine nosuch", "Choose a machine from `lorafit machines`."),
    remedy("plan --machine M1Maxx", "Choose a machine from `lorafit machines`; similar names: {names}."),
    remedy("plan --model_name Qwen/Qwen3-0.6B --dataset_name law.jsonl",
           "Download the model first with `lorafit train --dry_run`, or plan with `--model_name demo`.",
           {"lorafit train --dry_run": SKIP, "--model_name demo": AS_IT_IS}),
    # flags and settings
    remedy("train --zzz", "Run `{command} --help` for the list of flags.", {"lorafit train --help": AS_IT_IS}),
    remedy("train stray", "See `{command} --help`: flags start with `--`, and switches take no value.",
           {"lorafit train --help": AS_IT_IS}),
    remedy("train --config wrong.yaml", "Run `lorafit train --help` for the list of settings."),
    remedy(f"{DRY} --config nothing.yaml", "Check the path given to --config.", {"--config": "--config my.yaml"}),
    remedy(f"{DRY} --output_dir law.jsonl/x", "Choose a writable folder with --output_dir.",
           {"--output_dir": "--output_dir new"}),
    # the data
    remedy(f"{DRY} --max_length 8", "Fix or delete these rows (if they are too long, raise --max_length). Full list: {path}",
           {"--max_length": "--max_length 96"}),
    remedy(f"{DRY} --dataset_name tenth.jsonl", "Or accept more bad rows: --max_rejects {share} (now {most:g})",
           {"--max_length": SKIP, "--max_rejects 0.11": AS_IT_IS}),
    remedy(f"{DRY} --dataset_name parts --dataset_split test", "Set --dataset_split to one of these: {known}.",
           {"--dataset_split": "--dataset_split train"}),
    remedy(f"{DRY} --valid_dataset law.jsonl",
           "Use other data for --valid_dataset, or remove the flag: the validation set is then split off from the training data.",
           {"--valid_dataset": "--valid_dataset parts"}),
    remedy(f"{DRY} --dataset_name twins.jsonl", "Use a larger --max_length, or --val_size 0.",
           {"--max_length": "--max_length 512", "--val_size 0": AS_IT_IS}),
    # the model and the adapter to start from
    remedy(f"{DRY} --model_name ./nothing",
           "Give `--model_name` a folder with config.json and *.safetensors, a model ID such as Qwen/Qwen3-0.6B, or `demo`.",
           {"--model_name": "--model_name model"}),
    remedy(f"{DRY} --model_name adapter",
           "Give this adapter to `--init_adapter`, or chat with it by `lorafit chat`: it is not a base model.",
           {"--init_adapter": f"lorafit {DRY} --init_adapter adapter", "lorafit chat": f"lorafit chat adapter {ASK}"}),
    remedy(f"{DRY} --model_name acme/tiny", "a folder: `--model_name FOLDER`",
           {"--hf_endpoint https://hf-mirror.com": SKIP, "--hub modelscope --model_name acme/tiny": SKIP,
            "--model_name FOLDER": "--model_name model", "lorafit train --demo": f"lorafit {DEMO}"},
           "the demo, which needs no hub: `lorafit train --demo`"),
    remedy(f"{DRY} --dataset_name acme/law", "your own file: `--dataset_name FILE.jsonl`",
           {"--hf_endpoint https://hf-mirror.com": SKIP, "--dataset_name FILE.jsonl": "--dataset_name law.jsonl",
            "lorafit train --demo": SKIP}),
    remedy(f"{DRY} --model_name wide --init_adapter adapter",
           "Use that base model (training: --model_name; chat: --base_model, or omit it), or another adapter.",
           {"--model_name": "--model_name model", "--base_model": SKIP}),
    remedy(f"chat adapter --base_model wide {ASK}",
           "Use that base model (training: --model_name; chat: --base_model, or omit it), or another adapter.",
           {"--model_name": SKIP, "--base_model": "--base_model model"}),
    remedy(f"{DRY} --init_adapter adapter --lora_r 8", "Use the adapter's own settings: {flags}",
           {"--lora_r 4 --lora_alpha 8": AS_IT_IS}),
    remedy(f"{DRY} --init_adapter adapter --lora_targets q_proj", "Use the adapter's own settings: {flags}",
           {"--lora_targets down_proj,gate_proj,k_proj,o_proj,q_proj,up_proj,v_proj": AS_IT_IS}),
    # answers
    remedy(f"chat {ASK}",
           "Name a run, e.g. `lorafit chat latest` (`lorafit runs` lists them), or a base model with --base_model.",
           {"lorafit chat latest": f"lorafit chat latest {ASK}", "lorafit runs": AS_IT_IS, "--base_model": "--base_model model"}),
    remedy("chat nothing",
           "Name a run (`lorafit runs` lists them), or a folder with adapter_config.json, such as a checkpoint."),
    remedy(f"chat nameless {ASK}", "Name the base model with --base_model.", {"--base_model": "--base_model model"}),
    remedy(f"chat adapter {ASK} --output a.jsonl", "Add --test_file FILE, or remove --output.",
           {"--test_file FILE": "lorafit chat adapter --test_file asked.txt --output a.jsonl --max_new_tokens 2",
            "remove --output": AS_IT_IS}),
    remedy("chat adapter --test_file asked.txt --max_new_tokens 2 --output output", "Give a file name with --output.",
           {"--output": "--output a.jsonl"}),
    remedy("chat adapter --test_file asked.txt --max_new_tokens 2 --output law.jsonl/x",
           "Use --output to name a file in a folder you can write to.", {"--output": "--output a.jsonl"}),
    remedy("compare", "Name one or more, e.g. `lorafit compare latest` (`lorafit runs` lists them).",
           {"lorafit compare latest": "lorafit compare latest --num_samples 1 --max_new_tokens 2", "lorafit runs": AS_IT_IS}),
    remedy("compare adapter --max_new_tokens 2", "Give questions with --prompt TEXT or --test_file FILE.",
           {"--prompt TEXT": AS_IT_IS, "--test_file FILE": "--test_file asked.txt"}),
    # runs
    remedy("runs show nothing", "Run `lorafit runs` to list all runs."),
    remedy("runs diff first", "Run `{command}`; `lorafit runs` lists all runs.",
           {"lorafit runs diff RUN RUN": "lorafit runs diff first latest", "lorafit runs": AS_IT_IS}),
    remedy("runs remove first", "Add --yes to remove it without a question."),
    remedy("resume --output_dir none", "Start a run with `lorafit train`.", {"lorafit train": f"lorafit {DRY}"}),
    remedy("resume first --no_supervisor",
           "To train it further, start a new run (--init_adapter {adapter}). Try the fine-tuned model: {command}",
           {"--init_adapter output/first/final_model": f"lorafit {DRY} --init_adapter output/first/final_model",
            "lorafit chat output/first": f"lorafit chat output/first {ASK}"}),
    remedy("resume stopped --no_supervisor --lora_r 8",
           "Restore the previous value, or start a new run (with --init_adapter to start from this run's weights).",
           {"--init_adapter": f"lorafit {DRY} --init_adapter output/stopped"}),
    remedy("resume stopped --no_supervisor --model_name wide",
           "Restore the files, or start a new run from this run's weights: --init_adapter {run}",
           {"--init_adapter output/stopped": f"lorafit {DRY} --init_adapter output/stopped"}),
    remedy(f"{TRAIN} --max_steps 4 --learning_rate 1e30 --lr_scheduler constant",
           "Start a new run with a lower --learning_rate, or check the data of this step.",
           {"--learning_rate": "--learning_rate 1e-4"}),
    remedy(DRY, "Unset RANK (several processes: add `--processes N`), or start with `torchrun --nproc_per_node N train.py ...`.",
           {"--processes N": f"lorafit plan {MODEL} --processes 2"}, environ={"RANK": "0"}),
    # other machines
    remedy("bundle", "Run `{command}`, or give the flags of `lorafit train` without a run.",
           {"lorafit bundle RUN": "lorafit bundle first", "lorafit train": f"lorafit bundle {MODEL}"}),
    remedy("train run.zip --no_supervisor --dry_run",
           "Name the same model on this machine with --model_name: a folder or a model ID.",
           {"--model_name": "--model_name model"}, before=f"bundle {MODEL}"),
    remedy("cloud colab first --base_model Qwen/Qwen3-0.6B", "To train the adapter further, start a new run with --init_adapter.",
           {"--init_adapter": f"lorafit {DRY} --init_adapter output/first/final_model"}),
    remedy(f"cloud colab {MODEL}",
           "Name the base model on the platform with --base_model: a model ID, such as Qwen/Qwen3-0.6B, or a folder.",
           {"--base_model": "--base_model Qwen/Qwen3-0.6B"}),
]  # fmt: skip


@pytest.fixture(scope="module")
def template(tmp_path_factory: pytest.TempPathFactory, demo_folder: Path) -> Path:
    """A folder with a tiny model, data, settings, an adapter, a finished run `first` and a stopped one."""
    folder = tmp_path_factory.mktemp("remedies")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        tiny.save_chat_model(folder / "model", demo_folder)
        shutil.copytree("model", "wide")
        tiny.save_model("llama", folder / "wide", vocab_size=49_152, hidden_size=64)
        rows = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
        long = [{"instruction": f"{'a ' * 100} {i} {'a ' * 100}", "output": "Yes."} for i in range(20)]
        Path("parts").mkdir()
        files = {
            "law.jsonl": rows,
            "tenth.jsonl": [*rows[:18], {}, {}],
            "twins.jsonl": long,
            "parts/train.jsonl": rows[:9],
        }
        for name, content in files.items():
            Path(name).write_text("".join(json.dumps(row) + "\n" for row in content), "utf-8")
        Path("my.yaml").write_text("lora_r: 4\n", "utf-8")
        Path("wrong.yaml").write_text("zzz: 1\n", "utf-8")
        Path("asked.txt").write_text("hi\n", "utf-8")
        assert main(shlex.split(f"train --no_supervisor {MODEL} --max_steps 2 --save_steps 1")) == 0
        (run,) = Path("output").iterdir()
        run.rename("output/first")
        shutil.copytree("output/first/final_model", "adapter")
        shutil.copytree("adapter", "nameless")
        facts = json.loads(Path("adapter/adapter_config.json").read_text("utf-8"))
        Path("nameless/adapter_config.json").write_text(json.dumps(facts | {"base_model_name_or_path": None}), "utf-8")
        as_it_died(RunDir(Path("output/first")), Path("died"), 1).path.rename("output/stopped")
    return folder


@pytest.fixture
def reader(template: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The template's copy as working folder; no hub is reachable, and the hub's cache is empty."""
    shutil.copytree(template, tmp_path / "here")
    monkeypatch.chdir(tmp_path / "here")
    monkeypatch.setenv("HF_ENDPOINT", constants.ENDPOINT)  # restored at the end
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", tmp_path / "datasets")
    use_endpoint(NOWHERE)


def test_every_text_with_a_remedy_is_followed_or_has_a_reason_not_to_be() -> None:
    followed = {text for case in REMEDIES for text in case.values[0].texts}
    listed = {text for texts in NOT_FOLLOWED.values() for text in texts}
    found = texts_with_a_remedy()
    assert found - followed - listed == set(), "follow these in REMEDIES, or list them with a reason"
    assert listed - found == set(), "no code has these any more"
    assert followed & listed == set()


@pytest.mark.parametrize("case", REMEDIES)
def test_the_fix_of_an_error_works(
    case: Remedy, reader: None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    argv = shlex.split(case.argv)
    if case.before is not None:
        assert main(shlex.split(case.before)) == 0
    capsys.readouterr()
    with monkeypatch.context() as patch:
        for name, value in case.environ.items():
            patch.setenv(name, value)
        assert main(argv) == 2
    error = capsys.readouterr().err
    fix = error.partition("\nfix: ")[2]
    assert [text for text in case.texts if not printed_from(text, fix)] == [], error
    assert list(dict.fromkeys(deeds(fix))) == list(case.typed), fix
    for deed, typed in case.typed.items():
        if typed is not SKIP:
            command = carried_out(typed or deed, argv)
            assert main(command) == 0, f"{deed}: {shlex.join(command)}\n{capsys.readouterr().err}"
