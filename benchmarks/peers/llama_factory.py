"""LLaMA-Factory, through its own entry point `run_exp`.

Options: batch_size, sorted, recompute, packed (neat_packing: samples do not attend to each other).
"""

import os
import tempfile
from pathlib import Path
from typing import Any

from peers.protocol import Referee, Row, Task, labels_of
from peers.trainers import Barrier, arguments, as_dicts, packs, shares


def packed_row(pack: list[Row]) -> dict[str, Any]:
    """Return the row that LLaMA-Factory's packing makes of `pack`, without padding up to cutoff_len.

    The attention mask holds the number of each token's sample, from 1.
    """
    return {
        "input_ids": [token for ids, _targets in pack for token in ids],
        "labels": [label for row in pack for label in labels_of(row)],
        "attention_mask": [number for number, (ids, _targets) in enumerate(pack, 1) for _ in ids],
    }


def plain_row(row: dict[str, Any]) -> dict[str, Any]:
    """Return `row` with an attention mask of ones."""
    return {**row, "attention_mask": [1] * len(row["input_ids"])}


def settings(task: Task, folder: Path, data: Path, batch_size: int) -> dict[str, Any]:
    """Return LLaMA-Factory's arguments for `task`."""
    options = arguments(task, batch_size, str(folder / "out"))
    del options["disable_tqdm"]
    return {
        **options,
        "model_name_or_path": task.model,
        "stage": "sft",
        "do_train": True,
        "finetuning_type": "lora",
        "lora_rank": task.lora_r,
        "lora_alpha": int(task.lora_alpha),
        "lora_dropout": 0.0,
        "lora_target": "all",
        "template": "default",
        "dataset": "rows",
        "tokenized_path": str(data),
        "cutoff_len": max(task.max_length, 4096),
        "neat_packing": task.options.get("packed", False),
        "packing": task.options.get("packed", False),
        "disable_gradient_checkpointing": not task.options["recompute"],
        "disable_shuffling": True,
        "flash_attn": "sdpa",
    }


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    os.environ["DISABLE_VERSION_CHECK"] = "1"
    import torch
    from datasets import Dataset, DatasetDict
    from llamafactory.train.tuner import run_exp

    torch.set_num_threads(task.threads)
    if task.options.get("packed"):
        size, rows = 1, [packed_row(pack) for pack in packs(task)]
        accumulation = len(rows) // len(task.steps)
    else:
        size = min(task.options.get("batch_size", 2), len(task.steps[0]))
        rows, accumulation = [plain_row(row) for row in as_dicts(shares(task, size))], len(task.steps[0]) // size
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch)
        DatasetDict({"train": Dataset.from_list(rows)}).save_to_disk(folder / "data")
        args = {**settings(task, folder, folder / "data", size), "gradient_accumulation_steps": accumulation}
        run_exp(args, callbacks=[Barrier(referee)])


if __name__ == "__main__":
    main()
