"""The peers: peft with transformers' Trainer, padded or without padding, and TRL's SFTTrainer, each at its best settings."""

import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from card.settings import Line
from card.work import ALPHA, LEARNING_RATE, RANK, Rows
from lorafit.data.micro_batch import Sample
from peers.models import LINEARS
from peers.protocol import IGNORED, synchronise

DTYPES = {"bf16": torch.bfloat16, "fp32": torch.float32}


@dataclass(frozen=True)
class Run:
    """What a peer trains: a model folder, rows, a precision, a device, and a number of steps.

    `recompute`: gradient checkpointing in all layers, where the activations would not fit otherwise.
    """

    folder: Path
    rows: Rows
    precision: str
    device: str
    steps: int
    recompute: bool = False


def contestants(rows: Rows) -> Iterator[tuple[str, Line]]:
    """Yield names and options. `needs` names the packages without which a peer is left out."""
    whole = rows.effective_batch
    yield "Trainer, whole step padded", {"size": whole, "needs": ["peft", "accelerate"]}
    if whole > 4:
        yield "Trainer, 4 sorted samples", {"size": 4, "sorted": True, "needs": ["peft", "accelerate"]}
    flat = {"size": whole, "flat": True, "attention": "flash_attention_2"}
    yield "Trainer, padding-free", {**flat, "needs": ["peft", "accelerate", "flash_attn"]}
    yield "Trainer, padding-free, sdpa", {"size": whole, "flat": True, "needs": ["peft", "accelerate"]}
    trl = {"size": whole, "trl": True}
    yield "TRL, whole step padded", {**trl, "needs": ["peft", "accelerate", "trl", "datasets"]}
    yield "TRL, padding-free", {**trl, "flat": True, "attention": "flash_attention_2",
                                "needs": ["peft", "accelerate", "trl", "datasets", "flash_attn"]}  # fmt: skip
    yield "Trainer, QLoRA", {"size": whole, "quantized": True, "needs": ["peft", "accelerate", "bitsandbytes"]}


def train(run: Run, options: Line) -> tuple[list[float], float]:
    """Train `run.steps` steps. Return the seconds of each and the mean of their losses.

    The time of a step is that from its first micro-batch to the end of its update.
    """
    from transformers import Trainer, TrainerCallback, TrainingArguments

    class Clock(TrainerCallback):  # type: ignore[misc]
        """Notes the seconds of each optimizer step."""

        def __init__(self) -> None:
            self.began = 0.0
            self.seconds: list[float] = []

        def on_step_begin(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
            synchronise(run.device)
            self.began = time.perf_counter()

        def on_step_end(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
            synchronise(run.device)
            self.seconds.append(time.perf_counter() - self.began)

    clock = Clock()
    with tempfile.TemporaryDirectory() as folder:
        common = {"model": _model(run, options), "callbacks": [clock]}
        data = _data(run, options)
        if options.get("trl"):
            result = _trl(run, options, common, data, folder)
        else:
            args = TrainingArguments(**_arguments(run, options, folder), train_sampling_strategy="sequential")
            collate = flattened if options.get("flat") else padded
            result = Trainer(args=args, train_dataset=data, data_collator=collate, **common).train()
    return clock.seconds, float(result.training_loss)


def _trl(run: Run, options: Line, common: dict[str, Any], data: list[Line], folder: str) -> Any:
    from datasets import Dataset
    from trl import SFTConfig, SFTTrainer

    args = SFTConfig(
        **_arguments(run, options, folder), train_sampling_strategy="sequential",
        padding_free=bool(options.get("flat")), max_length=None, dataset_kwargs={"skip_prepare_dataset": True},
    )  # fmt: skip
    whole = Dataset.from_list(data)
    return SFTTrainer(args=args, train_dataset=whole, processing_class=_tokenizer(), **common).train()


def _tokenizer() -> Any:
    """Return a tokenizer with a padding token alone: TRL asks for one, and the rows are tokens already."""
    from tokenizers import Tokenizer, models
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordLevel({"<pad>": 0}, unk_token="<pad>"))
    return PreTrainedTokenizerFast(tokenizer_object=inner, pad_token="<pad>", eos_token="<pad>")


def _model(run: Run, options: Line) -> Any:
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM, BitsAndBytesConfig

    dtype, more = DTYPES[run.precision], {}
    if options.get("quantized"):
        more["quantization_config"] = BitsAndBytesConfig(
            load_in_4bit=True, bnb_4bit_quant_type="nf4", bnb_4bit_use_double_quant=True, bnb_4bit_compute_dtype=dtype
        )
    base = AutoModelForCausalLM.from_pretrained(
        run.folder, dtype=dtype, device_map={"": run.device}, attn_implementation=options.get("attention", "sdpa"),
        **more,
    )  # fmt: skip
    if run.recompute:
        base.enable_input_require_grads()
    config = LoraConfig(r=RANK, lora_alpha=ALPHA, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM")
    return get_peft_model(base, config)


def _data(run: Run, options: Line) -> list[Line]:
    """Return the samples of all steps in the order in which the trainer takes them."""
    rows = []
    for step in range(run.steps):
        samples = run.rows.step(step)
        rows += sorted(samples, key=lambda sample: -len(sample)) if options.get("sorted") else samples
    return [_row(sample) for sample in rows]


def _row(sample: Sample) -> Line:
    labels = [token if kept else IGNORED for token, kept in zip(sample.input_ids, sample.target_mask, strict=True)]
    return {"input_ids": sample.input_ids.tolist(), "labels": [int(label) for label in labels]}


def padded(batch: Sequence[Line]) -> dict[str, torch.Tensor]:
    """Return a batch padded to its longest row."""
    longest = max(len(row["input_ids"]) for row in batch)

    def filled(name: str, value: int) -> torch.Tensor:
        return torch.tensor([row[name] + [value] * (longest - len(row[name])) for row in batch])

    mask = [[1] * len(row["input_ids"]) + [0] * (longest - len(row["input_ids"])) for row in batch]
    return {
        "input_ids": filled("input_ids", 0),
        "labels": filled("labels", IGNORED),
        "attention_mask": torch.tensor(mask),
    }


def flattened(batch: Sequence[Line]) -> dict[str, torch.Tensor]:
    """Return a batch end to end, with positions that start anew at each row."""
    ids = [token for row in batch for token in row["input_ids"]]
    labels = [label for row in batch for label in (IGNORED, *row["labels"][1:])]
    positions = [position for row in batch for position in range(len(row["input_ids"]))]
    return {name: torch.tensor([values]) for name, values in
            (("input_ids", ids), ("labels", labels), ("position_ids", positions))}  # fmt: skip


def _arguments(run: Run, options: Line, folder: str) -> dict[str, Any]:
    return {
        "output_dir": folder, "per_device_train_batch_size": options["size"],
        "gradient_accumulation_steps": run.rows.effective_batch // options["size"], "max_steps": run.steps,
        "learning_rate": LEARNING_RATE, "lr_scheduler_type": "constant",
        "optim": "paged_adamw_8bit" if options.get("quantized") else "adamw_torch_fused",
        "gradient_checkpointing": run.recompute,
        "logging_strategy": "no", "save_strategy": "no", "report_to": "none", "bf16": run.precision == "bf16",
        "use_cpu": run.device == "cpu", "disable_tqdm": True, "dataloader_num_workers": 0,
        "remove_unused_columns": False,
    }  # fmt: skip
