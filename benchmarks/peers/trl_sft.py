"""TRL's SFTTrainer.

Options: batch_size, sorted, recompute, packed (TRL's padding-free mode, with attention in one dense mask).
"""

import tempfile

import torch
from datasets import Dataset
from transformers import AutoTokenizer
from trl import SFTConfig, SFTTrainer

from peers.models import base_model, lora_config
from peers.protocol import Referee, Task
from peers.trainers import Barrier, arguments, as_dicts, packs, shares


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    torch.set_num_threads(task.threads)
    packed = task.options.get("packed", False)
    size = min(task.options.get("batch_size", 8), len(task.steps[0]))
    batches = packs(task) if packed else shares(task, size)
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(
            **arguments(task, len(batches[0]), folder),
            train_sampling_strategy="sequential",
            gradient_checkpointing=task.options["recompute"],
            padding_free=packed,
            max_length=None if packed else task.max_length,
        )
        trainer = SFTTrainer(
            model=base_model(task),
            args=args,
            train_dataset=Dataset.from_list(as_dicts(batches)),
            processing_class=AutoTokenizer.from_pretrained(task.model),
            peft_config=lora_config(task),
            callbacks=[Barrier(referee)],
        )
        trainer.train()


if __name__ == "__main__":
    main()
