"""The keys of mlx-lm's `lora.py`. Its iterations are micro-batches, and it neither clips nor masks by default."""

import math
from pathlib import PurePath
from typing import Any

from lorafit.cli.foreign import rules
from lorafit.cli.foreign.rules import Keys, Outcome, Rule, number, refused_unless, said, same, whole
from lorafit.messages import noted
from lorafit.paths import user_path
from lorafit.run_folders.foreign_adapter import MLX_WEIGHTS

LAYERS = noted("all layers get an adapter (num_layers: -1)")
ALL_TOKENS = noted("only answers count toward the loss (mask_prompt: true)")
LAST = noted("mlx-lm masks all but the last message of a row")
LORA_PARTS = {"rank", "scale", "alpha", "dropout", "keys"}
SCHEDULE = noted("only cosine_decay and linear_schedule that end at 0 with the last step are supported")
ADAPTER_FOLDER = noted("`--init_adapter` takes the folder of adapters.safetensors and adapter_config.json")
VALIDATION = noted("the file valid in the data folder is the validation set; without it there is none")


def _steps(keys: Keys) -> float:
    """Return the optimizer steps: iterations divided by gradient accumulation."""
    return number(keys.get("iters") or 1000) / number(keys.get("grad_accumulation_steps") or 1)


def iters(value: Any, keys: Keys) -> Outcome:
    """Convert iterations to steps; a run is as long as they are, however many epochs that makes."""
    steps = _steps(keys)
    return Outcome({"max_steps": math.ceil(steps) if math.isfinite(steps) else str(value)})


def num_layers(value: Any, keys: Keys) -> Outcome:
    """Refuse adapters on the last layers only."""
    return Outcome({}, rules.SAME) if number(value) < 0 else Outcome({}, LAYERS, refused=True)


def data(value: Any, keys: Keys) -> Outcome:
    """Convert the data folder, or a dataset ID. Its file valid.jsonl is the validation set."""
    folder = user_path(str(value))
    valid = {"valid_dataset": str(value), "valid_split": "validation"} if any(folder.glob("valid*.jsonl")) else {}
    return Outcome({"dataset_name": str(value), **valid, "val_size": 0.0}, VALIDATION)


def lora_parameters(value: Any, keys: Keys) -> Outcome:
    """Convert rank, scale (which is alpha / rank), dropout and the list of layers."""
    others = sorted(map(str, set(value) - LORA_PARTS)) if isinstance(value, dict) else []
    if others or not isinstance(value, dict) or not isinstance(value.get("keys") or [], list):
        return Outcome({}, rules.UNSUPPORTED, refused=True, names=tuple(others))
    rank = number(value.get("rank", 8))
    scale = number(value.get("scale", 20.0))
    chosen = {"lora_targets": ",".join(map(str, value["keys"]))} if value.get("keys") else {}
    return Outcome(
        {"lora_r": whole(rank), "lora_alpha": whole(scale * rank), "lora_dropout": value.get("dropout", 0.0), **chosen}
    )


def optimizer(value: Any, keys: Keys) -> Outcome:
    """Convert adam (AdamW without weight decay) or adamw, whose weight decay is 0.01 there."""
    every = keys.get("optimizer_config")
    given = every.get(str(value)) if isinstance(every, dict) else None
    given = given if isinstance(given, dict) else {}
    names = {"weight_decay": "weight_decay", "eps": "adam_epsilon"}
    if value not in ("adam", "adamw") or set(given) - {*names, "betas", "bias_correction"}:
        return Outcome({}, rules.OPTIMIZERS, refused=True)
    made: dict[str, Any] = {"optimizer": "adamw", "weight_decay": 0.01 if value == "adamw" else 0.0}
    made |= {names[name]: given[name] for name in names if name in given}
    made |= dict(zip(("adam_beta1", "adam_beta2"), given.get("betas", ()), strict=False))
    return Outcome(made, noted("with bias correction"))


def schedule(value: Any, keys: Keys) -> Outcome:
    """Convert a schedule that falls to 0 with the last step, and its warm-up. Without one the rate is constant."""
    if not value:
        return Outcome({"lr_scheduler": "constant", "warmup_ratio": 0.0})
    if not isinstance(value, dict):
        return Outcome({}, SCHEDULE, refused=True)
    numbers = [number(one) for one in value.get("arguments") or ()]
    warmup, total, name = number(value.get("warmup") or 0), _steps(keys), value.get("name")
    if name == "cosine_decay" and len(numbers) in (2, 3):
        peak, steps, end = [*numbers, 0.0][:3]
    elif name == "linear_schedule" and len(numbers) == 3:
        peak, end, steps = numbers
    else:
        return Outcome({}, SCHEDULE, refused=True)
    if end != 0 or steps not in (total, total - warmup):
        return Outcome({}, SCHEDULE, refused=True)
    ours = "cosine" if name == "cosine_decay" else "linear"
    return Outcome({"learning_rate": peak, "lr_scheduler": ours, "warmup_ratio": warmup / total})


def resume_adapter_file(value: Any, keys: Keys) -> Outcome:
    """Convert the file of the last weights to its folder. The files of earlier steps have no settings of their own."""
    path = PurePath(str(value))
    if path.name != MLX_WEIGHTS:
        return Outcome({}, ADAPTER_FOLDER, refused=True)
    return Outcome({"init_adapter": str(path.parent)})


def _mask_prompt(value: Any, keys: Keys) -> Outcome:
    """Keep mlx-lm's mask: it covers everything before the last message of a row."""
    return Outcome({"train_on": "last"}, LAST) if rules.on(value) else Outcome({}, ALL_TOKENS, refused=True)


_BATCH = rules.effective_batch("batch_size", "grad_accumulation_steps")
MLX_LM: dict[str, Rule] = {
    "model": same("model_name"),
    "data": data,
    "iters": iters,
    "batch_size": _BATCH,
    "grad_accumulation_steps": _BATCH,
    "learning_rate": same("learning_rate"),
    "max_seq_length": same("max_length"),
    "seed": same("seed"),
    "trust_remote_code": same("trust_remote_code"),
    "max_grad_norm": same("max_grad_norm"),  # not a key of mlx-lm, which never clips
    "num_layers": num_layers,
    "lora_layers": num_layers,
    "mask_prompt": _mask_prompt,
    "lora_parameters": lora_parameters,
    "optimizer": optimizer,
    "optimizer_config": said(noted("part of optimizer")),
    "lr_schedule": schedule,
    "fine_tune_type": refused_unless(rules.LORA_ONLY, "lora"),
    "use_dora": refused_unless(rules.DORA),
    "hf_dataset": refused_unless(noted("`--dataset_name` names the dataset, and `--field_map` its keys")),
    "resume_adapter_file": resume_adapter_file,
    "adapter_path": same("output_dir"),
    "save_every": rules.steps_or("save_steps", rules.CHECKPOINTS),
    "steps_per_eval": rules.steps_or("eval_steps", rules.EVALUATIONS),
    "steps_per_report": said(rules.LOGS),
    "grad_checkpoint": said(rules.CHECKPOINTING),
    "clear_cache_threshold": said(rules.PLANNED),
    "val_batches": said(noted("the whole validation set is evaluated")),
    **dict.fromkeys(("train", "test", "test_batches", "config", "prompt"), said(rules.NOT_TRAINING)),
    **dict.fromkeys(("wandb", "report_to", "project_name"), said(rules.TRACKERS)),
}
MLX_LM_DEFAULTS: dict[str, Any] = {
    "seed": 0, "batch_size": 4, "iters": 1000, "learning_rate": 1e-5, "max_seq_length": 2048, "optimizer": "adam",
    "lr_schedule": None, "lora_parameters": {"rank": 8, "scale": 20.0, "dropout": 0.0}, "save_every": 100,
    "num_layers": 16, "mask_prompt": False, "max_grad_norm": 0.0,
}  # fmt: skip
