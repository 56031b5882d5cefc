"""The script that most users write first: transformers' Trainer with a peft model, every row padded to max_length."""

import tempfile

import torch
from datasets import Dataset
from transformers import Trainer, TrainingArguments

from peers.models import base_model, lora_config
from peers.protocol import IGNORED, Referee, Task
from peers.trainers import Barrier, arguments, as_dicts, shares


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    from peft import get_peft_model

    torch.set_num_threads(task.threads)
    model = get_peft_model(base_model(task), lora_config(task))
    size = min(2, len(task.steps[0]))

    def padded(row: dict[str, list[int]]) -> dict[str, list[int]]:
        length, rest = len(row["input_ids"]), task.max_length - len(row["input_ids"])
        return {
            "input_ids": row["input_ids"] + [0] * rest,
            "labels": row["labels"] + [IGNORED] * rest,
            "attention_mask": [1] * length + [0] * rest,
        }

    data = Dataset.from_list([padded(row) for row in as_dicts(shares(task, size))])
    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArguments(**arguments(task, size, folder), train_sampling_strategy="sequential")
        Trainer(model=model, args=args, train_dataset=data, callbacks=[Barrier(referee)]).train()


if __name__ == "__main__":
    main()
