"""The export of an adapter itself: peft loads it, and it is the adapter of the training."""

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from peft import AutoPeftModelForCausalLM

from lorafit import api
from lorafit.errors import LorafitError
from lorafit.exporters.export import Exported
from lorafit.run_folders.adapter import WEIGHTS

Folders = Callable[[str], tuple[Path, Path]]
Export = Callable[..., Exported]


def test_peft_loads_the_exported_adapter(base_and_adapter: Folders, run_export: Export) -> None:
    _base, adapter = base_and_adapter("llama")
    exported = run_export(adapter, to="peft")
    assert (exported.folder / WEIGHTS).read_bytes() == (adapter / WEIGHTS).read_bytes()
    assert "loads this adapter" in exported.certificate.notes[0]
    with torch.no_grad():
        assert (
            AutoPeftModelForCausalLM.from_pretrained(exported.folder)(torch.tensor([[3, 4, 5]])).logits.isfinite().all()
        )
    assert api.verify_export(exported.folder).files >= 3


def test_a_type_of_weights_does_not_apply(base_and_adapter: Folders, run_export: Export) -> None:
    with pytest.raises(LorafitError, match="--dtype"):
        run_export(base_and_adapter("llama")[1], to="peft", dtype="bf16")
