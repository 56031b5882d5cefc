"""AdamW with bias correction, which MLX's own AdamW omits by default, and moments in fp32."""

from pathlib import Path

import mlx.core as mx
import numpy as np

from lorafit.engines.mlx.lora import Params
from lorafit.engines.moments import MOMENTS, read_moments, write_moments
from lorafit.planner.plan import Plan


class MLXOptimizer:
    """AdamW (Loshchilov and Hutter, arXiv 1711.05101): two moments per parameter, and the number of updates."""

    def __init__(self, params: Params, plan: Plan) -> None:
        self.plan, self.updates = plan, 0
        self.moments: dict[str, Params] = {key: {n: mx.zeros_like(p) for n, p in params.items()} for key in MOMENTS}

    def compute_update(self, params: Params, grads: Params, lr: float) -> tuple[Params, dict[str, Params]]:
        """Return parameters and moments after one update by `grads`; the state changes only in commit()."""
        plan, count = self.plan, self.updates + 1
        beta1, beta2 = plan.adam_beta1, plan.adam_beta2
        step, root = lr / (1 - beta1**count), (1 - beta2**count) ** 0.5
        means, squares, moved = {}, {}, {}
        for name, gradient in grads.items():
            means[name] = beta1 * self.moments[MOMENTS[0]][name] + (1 - beta1) * gradient
            squares[name] = beta2 * self.moments[MOMENTS[1]][name] + (1 - beta2) * gradient * gradient
            size = mx.sqrt(squares[name]) / root + plan.adam_epsilon
            moved[name] = params[name] * (1 - lr * plan.weight_decay) - step * means[name] / size
        return moved, dict(zip(MOMENTS, (means, squares), strict=True))

    def commit(self, moments: dict[str, Params]) -> None:
        """Store `moments` and count one update."""
        self.moments, self.updates = moments, self.updates + 1

    def save(self, folder: Path) -> None:
        """Write the moments in the format that every engine reads."""
        arrays = {key: {name: np.array(moment) for name, moment in self.moments[key].items()} for key in MOMENTS}
        write_moments(folder, arrays, self.updates, "adamw")

    def load(self, folder: Path) -> None:
        """Restore the moments and the number of updates. Raise AdapterError if names or shapes differ."""
        shapes = {name: tuple(moment.shape) for name, moment in self.moments[MOMENTS[0]].items()}
        arrays, self.updates, _all = read_moments(folder, shapes)
        self.moments = {key: {name: mx.array(a) for name, a in arrays[key].items()} for key in MOMENTS}
