"""mlx_lm's model in a minimal loop without the faults of mlx_lm's trainer, as a careful user would write it."""

from peers.mlx_models import lora_model, loss, micro_batches
from peers.protocol import Referee, Task


def main() -> None:
    """Train under the control of the race."""
    import mlx.core as mx  # after peers.mlx_models, which loads OpenBLAS
    from mlx import nn, optimizers
    from mlx.utils import tree_map

    task = Task.read()
    referee = Referee(task)
    model = lora_model(task)
    model.train()
    optimizer = optimizers.AdamW(learning_rate=task.learning_rate, weight_decay=0.0, bias_correction=True)
    differentiate = nn.value_and_grad(model, lambda m, *batch: loss(m, *batch)[0])
    for rows in task.rows():
        batches = micro_batches(rows)
        referee.begin()
        total, sums = 0.0, None
        for batch in batches:
            value, grads = differentiate(model, *batch)
            sums = grads if sums is None else tree_map(mx.add, sums, grads)
            del grads
            mx.eval(value, sums)
            total += value.item() / len(batches)
        count = len(batches)
        means = tree_map(lambda grad, count=count: grad / count, sums)
        clipped, _norm = optimizers.clip_grad_norm(means, 1.0)
        optimizer.update(model, clipped)
        mx.eval(model.parameters(), optimizer.state)
        referee.stop()
        referee.report(total)


if __name__ == "__main__":
    main()
