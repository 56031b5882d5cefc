"""Layers compiled by torch.compile give the same losses as layers that are not compiled."""

import shutil
from pathlib import Path

import pytest
from support import tiny

from lorafit.data.batching import build_step_batch

pytestmark = pytest.mark.slow  # inductor calls a C++ compiler


@pytest.mark.skipif(shutil.which("g++") is None, reason="no C++ compiler")
def test_compiled_layers_give_the_same_losses(tmp_path: Path) -> None:
    folder = tiny.save_model("gemma2", tmp_path / "model")  # its soft caps need the generic path
    samples = tiny.make_samples(3)
    losses = {}
    for compiled in ("off", "on"):
        engine = tiny.open_engine(folder, tiny.make_plan(compile=compiled))
        assert engine.packed is None
        data = build_step_batch(samples, range(3), 64, 8)
        losses[compiled] = [engine.step(n, data.micro_batches, data.num_targets, 1e-2).loss_sum for n in (1, 2, 3)]
    assert losses["on"] == pytest.approx(losses["off"], rel=1e-5)
    assert losses["on"][2] < losses["on"][0]
