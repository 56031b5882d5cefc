"""Remedies that tests/test_remedies.py follows: data, adapters and settings of other programs, and orders to runs."""

import importlib.util

import pytest
from _pytest.mark import ParameterSet

from support import remedy_files
from support.remedy_case import AS_IT_IS, ASK, DRY, PLAN, SKIP, TRAIN, command, remedy

LEAVE_OUT = "Leave out {name}: {why}."
REMOVE = "Remove {name}, which has no counterpart: {why}."
DATA = "data --model_name model"
NO_MLX = pytest.mark.skipif(importlib.util.find_spec("mlx_lm") is None, reason="needs mlx-lm")


def other(flag: str, text: str, why: str, typed: dict[str, str]) -> ParameterSet:
    """Return the remedy for a `flag` of another tool; `typed` are the flags of `plan` in the reason `why`."""
    commands = {deed: f"lorafit {PLAN} {flags}" for deed, flags in typed.items()}
    return remedy(f"{PLAN} {flag}", text, {f"remove {flag.partition(' ')[0]}": AS_IT_IS, **commands}, why)


FOREIGN = [
    # flags of other tools
    other("--bf16", LEAVE_OUT, "chosen by the plan; `--precision` sets it", {"--precision": "--precision fp32"}),
    other("--gradient_checkpointing", LEAVE_OUT, "chosen by the plan; `--recompute` sets it",
          {"--recompute": "--recompute 1"}),
    other("--deepspeed ds.json", LEAVE_OUT, "chosen by the plan; several GPUs: `--processes`, `--shard`",
          {"--processes": "--processes 2", "--shard": "--processes 2 --shard on"}),
    other("--template llama3", LEAVE_OUT, "the model's own chat template is used; `--chat_template` sets another",
          {"--chat_template": "--chat_template model/chat_template.jinja"}),
    other("--save_strategy epoch", LEAVE_OUT, "about every ten minutes; `--save_steps` sets it",
          {"--save_steps": "--save_steps 1"}),
    other("--eval_strategy epoch", LEAVE_OUT, "at most a twentieth of the time; `--eval_steps` sets it",
          {"--eval_steps": "--eval_steps 1"}),
    other("--hf_dataset acme/law", REMOVE, "`--dataset_name` names the dataset, and `--field_map` its keys",
          {"--dataset_name": "--dataset_name titles.jsonl --field_map title=instruction,solution=output",
           "--field_map": "--dataset_name titles.jsonl --field_map title=instruction,solution=output"}),
    other("--resume_adapter_file mlx/0000100_adapters.safetensors", REMOVE,
          "`--init_adapter` takes the folder of adapters.safetensors and adapter_config.json",
          {"--init_adapter": "--init_adapter mlx"}),
    remedy(f"{PLAN} --resume_adapter_file mlx/adapters.safetensors", "{name} is a name of {tool}. Here: `{ours}`",
           {"--init_adapter mlx instead of --resume_adapter_file": AS_IT_IS}),
    remedy(f"{PLAN} --lr 1e-4", "Instead of {name}: `{ours}`", {"--learning_rate 1e-4 instead of --lr": AS_IT_IS}),
    remedy(f"{PLAN} --learning_rte 1e-4", "Did you mean `{name}`?",
           {"--learning_rate": f"lorafit {PLAN} --learning_rate 1e-4"}),
    remedy(f"chat adapter --model model {ASK}", "Instead of {name}: `{ours}`",
           {"--base_model model instead of --model": AS_IT_IS}),
    # data
    remedy("data", "Give data files, a dataset ID like `owner/name`, or `demo`: {command}",
           {"lorafit data FILE": f"lorafit {DATA} law.jsonl"}),
    remedy(f"{DATA} acme/law", "your own file, `--dataset_name FILE.jsonl`",
           {"--hf_endpoint https://hf-mirror.com": SKIP, "--dataset_name FILE.jsonl": f"lorafit {DATA} --dataset_name law.jsonl",
            "lorafit train --demo": SKIP}),
    remedy(f"{DRY} --dataset_name outside/law",
           "Give a path inside the folder, or name the file itself: --dataset_name FILE.",
           {"--dataset_name FILE": "--dataset_name law.jsonl"}),
    remedy(f"{DRY} --dataset_name counted/law", "Remove num_samples, and set --dataset_split, such as train[:1000].",
           {"--dataset_split": "--dataset_split train[:15]"}, by_hand=remedy_files.remove_num_samples),
    remedy(f"{DRY} --dataset_name latin.jsonl", "With --encoding utf-8, only the rows with such bytes are rejected.",
           {"--encoding cp1252": AS_IT_IS, "--encoding cp1250": AS_IT_IS, "--encoding utf-8": AS_IT_IS}),
    remedy(f"{DRY} --dataset_name two_pairs.jsonl",
           "question and answer are not clear, keys found: {found}; choose one of: {ways}",
           {"--field_map query=question,reply=answer": AS_IT_IS, "--field_map query=question,solution=answer": AS_IT_IS,
            "--field_map problem=question,reply=answer": AS_IT_IS, "--max_length": SKIP}, in_details=True),
    remedy(f"{DRY} --dataset_name preferences.jsonl",
           "`chosen` and `rejected`: a pair for preference tuning; to learn the chosen answers only: {way}",
           {"--field_map chosen=completion": AS_IT_IS, "--max_length": SKIP}, in_details=True),
    # machines
    remedy('plan --machine "24GB 165TFLOPS"',
           "Write memory, matmul rate and bandwidth of one GPU, for example {example}. After them can stand: {more}. "
           "The rate is that of dense 16-bit matmuls with float32 accumulation.",
           {'--machine "24GB 165TFLOPS 1008GB/s"': AS_IT_IS}),
    # adapters
    remedy(f"{DRY} --init_adapter dora",
           "Merge it into its base model with `peft` (merge_and_unload), and give the merged folder, with the tokenizer, "
           "as --model_name (chat: --base_model) instead of the adapter.",
           {"--model_name": f"lorafit {DRY} --model_name merged", "--base_model": f"lorafit chat --base_model merged {ASK}"},
           before=remedy_files.save_dora, by_hand=remedy_files.merge_by_peft),
    remedy(f"{DRY} --init_adapter mlx_dora",
           "Merge it into its base model with `mlx_lm.fuse`, and give the merged folder as --model_name "
           "(chat: --base_model) instead of the adapter.",
           {"--model_name": f"lorafit {DRY} --model_name merged", "--base_model": f"lorafit chat --base_model merged {ASK}"},
           before=remedy_files.save_mlx_dora, by_hand=remedy_files.merge_by_mlx, marks=NO_MLX),
    remedy(f"chat first adapter {ASK}", "Compare several adapters: {command}",
           {"lorafit compare RUN RUN": "lorafit compare first adapter --num_samples 1 --max_new_tokens 2"}),
    # orders to runs, and runs that move
    remedy("runs stop first", "The run has finished. Try the result: {command}",
           {"lorafit chat output/first": f"lorafit chat output/first {ASK}"}),
    remedy("runs pause stopped", "Resume the run: {command}",
           {"lorafit resume output/stopped": "lorafit resume output/stopped --no_supervisor"}),
    remedy(f"{TRAIN} --max_steps 40", "Start a new run from it: {flags}", {"--init_adapter new/*-rescued": AS_IT_IS},
           before=remedy_files.delete_the_run_when_it_trains),
    remedy("fetch", "Name the result to fetch, e.g. {command}", {"lorafit fetch result.zip": AS_IT_IS},
           by_hand=command("bundle first -o result.zip")),
    remedy("train run.zip --no_supervisor", "Make a bundle: {command}",
           {"lorafit bundle RUN -o run.zip": "lorafit bundle stopped -o run.zip"}),
    remedy("train run.zip --no_supervisor --output_dir new", "Make the bundle again on its original machine: {command}",
           {"lorafit bundle RUN -o run.zip": "lorafit bundle stopped -o run.zip"}, before=remedy_files.damage_the_bundle),
    remedy("train run.zip --no_supervisor --output_dir new", "Try the fine-tuned model: {command}",
           {"lorafit chat --lora_weights new/first --interactive": f"lorafit chat --lora_weights new/first {ASK}"},
           before=command("bundle first -o run.zip")),
]  # fmt: skip
