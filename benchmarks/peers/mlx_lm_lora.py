"""mlx_lm's own trainer (`mlx_lm.lora`), with every fix that it accepts as an argument (mlx_models.py).

Its step is compiled once per shape. Options: compile (False: compilation is off for all of MLX).
"""

import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from peers.mlx_models import MICRO, lora_model, loss, micro_batches  # before MLX, because it loads OpenBLAS
from peers.protocol import Referee, Task


def main() -> None:
    """Train under the control of the race."""
    import mlx.core as mx
    from mlx import optimizers
    from mlx_lm.tuner.callbacks import TrainingCallback
    from mlx_lm.tuner.trainer import TrainingArgs, train

    task = Task.read()
    referee = Referee(task)
    model = lora_model(task)
    if not task.options.get("compile", True):
        mx.disable_compile()
    micros = -(-len(task.steps[0]) // MICRO)

    class Barrier(TrainingCallback):  # type: ignore[misc]
        """Callback that reports the cost of each step; `batches` waits for the next one."""

        def on_train_loss_report(self, train_info: dict[str, Any]) -> None:
            referee.stop()
            referee.report(float(train_info["train_loss"]))

    def batches(**_options: Any) -> Iterator[tuple[Any, ...]]:
        for rows in task.rows():
            ready = micro_batches(rows)
            referee.begin()
            yield from ready

    with tempfile.TemporaryDirectory() as folder:
        args = TrainingArgs(
            batch_size=MICRO, iters=micros * len(task.steps), steps_per_report=micros, steps_per_save=10**9,
            max_seq_length=task.max_length, grad_accumulation_steps=micros, grad_checkpoint=False,
            adapter_file=str(Path(folder) / "adapters.safetensors"),
        )  # fmt: skip
        optimizer = optimizers.AdamW(learning_rate=task.learning_rate, weight_decay=0.0, bias_correction=True)
        train(model, optimizer, [], args=args, loss=loss, iterate_batches=batches, training_callback=Barrier())


if __name__ == "__main__":
    main()
