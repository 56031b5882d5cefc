"""Common parts of the contestants on mlx_lm's own model: the model with LoRA layers, and padded micro-batches.

General faults of mlx_lm are fixed as far as options allow: rotary settings where mlx_lm looks for them, float32,
OpenBLAS, bias-corrected AdamW, rows sorted by length, and a loss that counts target tokens only.
"""

from pathlib import Path
from typing import Any

from lorafit.engines.base import Setup
from lorafit.engines.mlx.load import load_base  # loads OpenBLAS before MLX
from peers.protocol import Row, Task

KEYS = ["self_attn.q_proj", "self_attn.k_proj", "self_attn.v_proj", "self_attn.o_proj",
        "mlp.gate_proj", "mlp.up_proj", "mlp.down_proj"]  # fmt: skip
MICRO = 4  # samples per micro-batch; the fastest of 1, 2, 4, 8 and 16 on a CPU


def lora_model(task: Task) -> Any:
    """Return mlx_lm's model, of which only the LoRA layers are trained."""
    import mlx.core as mx
    from mlx_lm.tuner.utils import linear_to_lora_layers

    mx.set_default_device(mx.cpu if task.device == "cpu" else mx.gpu)
    model = load_base(Setup(Path(task.model), task.model, task.device, "fp32")).model
    scale = task.lora_alpha / task.lora_r
    linear_to_lora_layers(model, -1, {"rank": task.lora_r, "dropout": 0.0, "scale": scale, "keys": KEYS})
    mx.eval(model.parameters())
    return model


def micro_batches(rows: list[Row]) -> list[tuple[Any, Any, Any]]:
    """Return padded micro-batches of rows of similar length, each as (ids [B,T], mask [B,T-1], share).

    The mask is 1 where the next token is a target. The share is the step's micro-batches over its targets.
    """
    import mlx.core as mx
    import numpy as np

    ordered = sorted(rows, key=lambda row: len(row[0]))
    parts = [ordered[i : i + MICRO] for i in range(0, len(ordered), MICRO)]
    share = mx.array(len(parts) / sum(sum(targets) for _ids, targets in rows))
    batches = []
    for part in parts:
        length = max(len(ids) for ids, _targets in part)
        ids, mask = np.zeros((len(part), length), np.int32), np.zeros((len(part), length), np.float32)
        for line, (row, targets) in enumerate(part):
            ids[line, : len(row)], mask[line, : len(row)] = row, targets
        batches.append((mx.array(ids), mx.array(mask[:, 1:]), share))
    return batches


def loss(model: Any, ids: Any, mask: Any, share: Any) -> tuple[Any, Any]:
    """Return the scaled loss and the number of targets.

    The scale makes the mean over a step's micro-batches the mean over its targets.
    """
    import mlx.core as mx
    from mlx import nn

    losses = nn.losses.cross_entropy(model(ids[:, :-1]).astype(mx.float32), ids[:, 1:]) * mask
    return losses.sum() * share, mask.sum()
