"""The folder in which tests/test_remedies.py follows remedies, and what a user does there by hand."""

import json
import shlex
import shutil
import sys
import threading
import zipfile
from pathlib import Path
from typing import Any
from unittest import mock

import numpy as np
import peft
import transformers
from safetensors.numpy import load_file, save_file

from lorafit.cli.app import main
from lorafit.run_folders.adapter import parse_lora_name
from lorafit.run_folders.directory import RunDir
from support import tiny
from support.commands import wait_for_step
from support.remedy_case import MODEL
from support.stopped_runs import as_it_died
from support.thinking_templates import QWEN3, R1

ROWS = [{"instruction": f"What does article {i} say?", "output": f"Article {i} says so."} for i in range(20)]
LONG = [{"instruction": f"{'a ' * 100} {i} {'a ' * 100}", "output": "Yes."} for i in range(20)]


def write_files(demo_folder: Path) -> None:
    """Write a tiny model, data, settings, adapters, a finished run `first` and a stopped one into the working folder."""
    tiny.save_chat_model(Path("model"), demo_folder)
    shutil.copytree("model", "wide")
    tiny.save_model("llama", Path("wide"), vocab_size=49_152, hidden_size=64)
    _write_data()
    for name, kind in (("encoder", "bert"), ("old", "gpt2")):
        Path(name).mkdir()
        Path(name, "config.json").write_text(json.dumps({"model_type": kind}), "utf-8")
    Path("my.yaml").write_text("lora_r: 4\n", "utf-8")
    Path("wrong.yaml").write_text("zzz: 1\n", "utf-8")
    Path("asked.txt").write_text("hi\n", "utf-8")
    assert main(shlex.split(f"train --no_supervisor {MODEL} --max_steps 2 --save_steps 1")) == 0
    (run,) = Path("output").iterdir()
    run.rename("output/first")
    as_it_died(RunDir(Path("output/first")), Path("died"), 1).path.rename("output/stopped")
    _write_adapters()


def _write_data() -> None:
    renamed = [{"title": row["instruction"], "solution": row["output"]} for row in ROWS]
    two_pairs = [{"query": row["instruction"], "reply": row["output"], "problem": "?", "solution": "-"} for row in ROWS]
    preferences = [{"prompt": row["instruction"], "chosen": row["output"], "rejected": "No."} for row in ROWS]
    files = {
        "law.jsonl": ROWS,
        "tenth.jsonl": [*ROWS[:18], {}, {}],
        "twins.jsonl": LONG,
        "titles.jsonl": renamed,
        "two_pairs.jsonl": two_pairs,
        "preferences.jsonl": preferences,
        "parts/train.jsonl": ROWS[:9],
        "thoughts.jsonl": [{**row, "reasoning_content": "I know it."} for row in ROWS],
        "some_thoughts.jsonl": [*({**row, "reasoning_content": "I know it."} for row in ROWS[:10]), *ROWS[10:]],
        "counted/law.jsonl": ROWS,
    }
    for name, rows in files.items():
        Path(name).parent.mkdir(exist_ok=True)
        Path(name).write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    Path("thoughts.jinja").write_text(QWEN3, "utf-8")
    Path("opens.jinja").write_text(R1, "utf-8")
    latin = '{"instruction": "Où est le café ?", "output": "À côté."}\n'.encode("latin-1")
    Path("latin.jsonl").write_bytes(Path("law.jsonl").read_bytes() + latin)
    _list_data("outside", {"file_name": "../law.jsonl"})
    _list_data("counted", {"file_name": "law.jsonl", "num_samples": "ten"})


def _list_data(folder: str, entry: dict[str, Any]) -> None:
    Path(folder).mkdir(exist_ok=True)
    Path(folder, "dataset_info.json").write_text(json.dumps({"law": entry}), "utf-8")


def _write_adapters() -> None:
    shutil.copytree("output/first/final_model", "adapter")
    shutil.copytree("adapter", "nameless")
    facts = json.loads(Path("adapter/adapter_config.json").read_text("utf-8"))
    Path("nameless/adapter_config.json").write_text(json.dumps(facts | {"base_model_name_or_path": None}), "utf-8")
    # The same adapter as mlx-lm saves it.
    tensors = {}
    for name, tensor in load_file("adapter/adapter_model.safetensors").items():
        module, which = parse_lora_name(name) or ("", "")
        tensors[f"{module}.lora_{which.lower()}"] = np.ascontiguousarray(tensor.T)
    _save_for_mlx("mlx", "lora", tensors)


def _save_for_mlx(folder: str, kind: str, tensors: dict[str, Any]) -> None:
    Path(folder).mkdir()
    save_file(tensors, Path(folder, "adapters.safetensors"))
    lora = {"rank": 4, "scale": 2.0, "dropout": 0.0}
    facts = {"fine_tune_type": kind, "num_layers": 3, "lora_parameters": lora, "model": "model"}
    Path(folder, "adapter_config.json").write_text(json.dumps(facts), "utf-8")


def remove_num_samples() -> None:
    """Remove num_samples from dataset_info.json."""
    _list_data("counted", {"file_name": "law.jsonl"})


def save_dora() -> None:
    """Save an adapter with DoRA by peft."""
    base = transformers.AutoModelForCausalLM.from_pretrained("model")
    dora = peft.LoraConfig(
        r=4, target_modules=["q_proj"], use_dora=True, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    peft.get_peft_model(base, dora).save_pretrained("dora")


def merge_by_peft() -> None:
    """Merge the adapter of save_dora() into its base model, and save it with the tokenizer."""
    base = transformers.AutoModelForCausalLM.from_pretrained("model")
    peft.PeftModel.from_pretrained(base, "dora").merge_and_unload().save_pretrained("merged")
    transformers.AutoTokenizer.from_pretrained("model").save_pretrained("merged")


def save_mlx_dora() -> None:
    """Save an adapter with DoRA by mlx-lm."""
    from mlx.utils import tree_flatten
    from mlx_lm.tuner.utils import linear_to_lora_layers
    from mlx_lm.utils import load_model

    model = load_model(Path("model"))[0]
    model.freeze()
    linear_to_lora_layers(model, 3, {"rank": 4, "scale": 2.0, "dropout": 0.0}, use_dora=True)
    _save_for_mlx("mlx_dora", "dora", {name: np.array(one) for name, one in tree_flatten(model.trainable_parameters())})


def merge_by_mlx() -> None:
    """Merge the adapter of save_mlx_dora() into its base model, as `mlx_lm.fuse` does."""
    from mlx_lm import fuse

    typed = "mlx_lm.fuse --model model --adapter-path mlx_dora --save-path merged"
    with mock.patch.object(sys, "argv", shlex.split(typed)):
        fuse.main()


def delete_the_run_when_it_trains() -> None:
    """Start to wait for a run in the folder `new`; delete it when it has a step."""
    threading.Thread(target=_delete_the_run, daemon=True).start()


def _delete_the_run() -> None:
    wait_for_step(Path("new"), 1)
    (run,) = Path("new").iterdir()
    while run.exists():  # the training may write to it meanwhile
        shutil.rmtree(run, ignore_errors=True)


def damage_the_bundle() -> None:
    """Make a bundle, and change a file in it."""
    assert main(shlex.split("bundle stopped -o run.zip")) == 0
    with zipfile.ZipFile("run.zip") as archive:
        members = {name: archive.read(name) for name in archive.namelist()}
    changed = next(name for name in members if name.endswith("config.yaml"))
    with zipfile.ZipFile("run.zip", "w") as archive:
        for name, content in members.items():
            archive.writestr(name, content + b"#" if name == changed else content)
