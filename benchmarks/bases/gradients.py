"""Gradient error of one base, measured in a process of its own: python -m bases.gradients FLAGS.json

The reference is that of the conformance suite (tests/support/float64_reference.py): transformers and peft in float64, one sample at a time.
Its base model has the engine's quantized weights in dequantized form. The process prints one line of JSON: `loss_rel`
is the relative error of the loss, `grad_rel` the largest error of a gradient tensor, relative by norm.
"""

import json
import sys
import tempfile
from dataclasses import replace
from pathlib import Path

from support import dequantized, engine_variants, float64_reference

from bases.learn import task_of

MOST_SAMPLES = 4


def main() -> None:
    """Print the errors of loss and gradients as one line of JSON."""
    flags = json.loads(Path(sys.argv[1]).read_text("utf-8"))
    task = task_of(flags)
    samples = [task.data.valid[i] for i in range(min(MOST_SAMPLES, len(task.data.valid)))]
    plan = replace(task.plan, train_samples=len(samples), effective_batch=len(samples))
    way = next(way for way in engine_variants.WAYS if way.engine == plan.engine and way.device == plan.device)
    adapter = Path(flags["adapter"])
    with tempfile.TemporaryDirectory() as scratch:
        folder = dequantized.plain_model(way.open(task.folder, plan), task.folder, Path(scratch) / "plain")
        loss, gradients = engine_variants.loss_and_gradients(
            way, task.folder, plan, adapter, Path(scratch) / "own", samples
        )
        wanted = float64_reference.reference(folder, adapter, plan, samples)
    print(
        json.dumps(
            {"loss_rel": abs(loss / wanted.loss - 1), "grad_rel": engine_variants.worst(gradients, wanted.gradients)}
        )
    )


if __name__ == "__main__":
    main()
