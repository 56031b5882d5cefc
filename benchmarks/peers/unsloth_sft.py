"""Unsloth on CUDA: its own model and adapter under TRL's SFTTrainer. Options: batch_size.

This file was written without a GPU to run it on.
"""

import tempfile

from datasets import Dataset

from peers.models import LINEARS
from peers.protocol import Referee, Task
from peers.trainers import Barrier, arguments, as_dicts, shares


def main() -> None:
    """Train under the control of the race."""
    task = Task.read()
    referee = Referee(task)
    import torch
    from trl import SFTConfig, SFTTrainer
    from unsloth import FastLanguageModel  # Unsloth patches trl and transformers and should be imported first

    model, tokenizer = FastLanguageModel.from_pretrained(
        task.model, max_seq_length=task.max_length, dtype=torch.float32, load_in_4bit=False
    )
    model = FastLanguageModel.get_peft_model(
        model, r=task.lora_r, lora_alpha=task.lora_alpha, lora_dropout=0.0, target_modules=LINEARS
    )
    size = min(task.options["batch_size"], len(task.steps[0]))
    with tempfile.TemporaryDirectory() as folder:
        args = SFTConfig(**arguments(task, size, folder), max_length=task.max_length)
        data = Dataset.from_list(as_dicts(shares(task, size)))
        SFTTrainer(
            model=model, args=args, train_dataset=data, processing_class=tokenizer, callbacks=[Barrier(referee)]
        ).train()


if __name__ == "__main__":
    main()
