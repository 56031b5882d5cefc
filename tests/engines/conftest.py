"""Fixtures for the tests of the engines."""

from typing import Any

import pytest
import torch
from transformers import AttentionInterface

from lorafit.engines.torch.attention import segment_attention


@pytest.fixture(scope="session")
def leaking_attention() -> str:
    """The registered name of an attention that treats all samples of a micro-batch as one sample."""

    def attend(
        module: torch.nn.Module,
        query: torch.Tensor,
        key: torch.Tensor,
        value: torch.Tensor,
        attention_mask: torch.Tensor | None,
        **options: Any,
    ) -> tuple[torch.Tensor, None]:
        options["cu_seq_lens_q"] = options["cu_seq_lens_q"][[0, -1]]
        result: tuple[torch.Tensor, None] = segment_attention(module, query, key, value, attention_mask, **options)
        return result

    AttentionInterface.register("lorafit_test_leaking", attend)
    return "lorafit_test_leaking"
