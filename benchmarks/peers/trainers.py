"""Common parts of the contestants built on transformers' Trainer: rows in a fixed order, and a barrier at each step.

The trainers' own loops run: batches, gradient accumulation, clipping, AdamW. A callback holds each step until the race
starts it.
"""

from typing import Any

from transformers import TrainerCallback

from peers.protocol import Referee, Row, Task, labels_of

PACK_TOKENS = 1024  # larger packed rows were slower here, because the mask is dense


class Barrier(TrainerCallback):  # type: ignore[misc]
    """Callback that holds each optimizer step until the race starts it, and reports what the step cost."""

    def __init__(self, referee: Referee) -> None:
        self.referee = referee

    def on_step_begin(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
        """Wait for the race to start the step."""
        self.referee.begin()

    def on_step_end(self, args: Any, state: Any, control: Any, **_rest: Any) -> None:
        """Stop the clock and prevent a save."""
        self.referee.stop()
        control.should_save = False

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **_rest: Any) -> None:
        """Report the cost of the step together with its loss."""
        if logs and "loss" in logs:
            self.referee.report(float(logs["loss"]))


def shares(task: Task, size: int) -> list[list[Row]]:
    """Return the rows of all steps in order, as micro-batches of `size` rows.

    With the option `sorted`, rows of similar length come together.
    """
    batches = []
    for rows in task.rows():
        ordered = sorted(rows, key=lambda row: -len(row[0])) if task.options.get("sorted") else rows
        batches += [ordered[i : i + size] for i in range(0, len(ordered), size)]
    return batches


def packs(task: Task) -> list[list[Row]]:
    """Return the rows of each step as packs of about PACK_TOKENS tokens.

    All steps have equally many packs, all packs equally many rows, and token counts are as even as possible.
    """
    steps = task.rows()
    most = max(sum(len(ids) for ids, _targets in rows) for rows in steps)
    per_step = next(n for n in range(1, len(steps[0]) + 1) if len(steps[0]) % n == 0 and most / n <= PACK_TOKENS * 1.1)
    return [pack for rows in steps for pack in _even(rows, per_step)]


def _even(rows: list[Row], bins: int) -> list[list[Row]]:
    filled: list[list[Row]] = [[] for _ in range(bins)]
    for row in sorted(rows, key=lambda row: -len(row[0])):
        open_bins = [one for one in filled if len(one) < len(rows) // bins]
        min(open_bins, key=lambda one: sum(len(ids) for ids, _targets in one)).append(row)
    return filled


def as_dicts(batches: list[list[Row]]) -> list[dict[str, Any]]:
    """Return all rows as dictionaries of `input_ids` and `labels`."""
    return [{"input_ids": row[0], "labels": labels_of(row)} for batch in batches for row in batch]


def arguments(task: Task, batch_size: int, output_dir: str) -> dict[str, Any]:
    """Return the TrainingArguments that all share: what is trained, in fp32, with fused AdamW, without saves."""
    return {
        "output_dir": output_dir,
        "per_device_train_batch_size": batch_size,
        "gradient_accumulation_steps": len(task.steps[0]) // batch_size,
        "max_steps": len(task.steps),
        "learning_rate": task.learning_rate,
        "lr_scheduler_type": "constant",
        "optim": "adamw_torch_fused",
        "logging_steps": 1,
        "logging_strategy": "steps",
        "save_strategy": "no",
        "report_to": "none",
        "bf16": False,
        "use_cpu": task.device == "cpu",
        "disable_tqdm": True,
        "dataloader_num_workers": 0,
    }
