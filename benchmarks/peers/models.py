"""The base model and the adapter from transformers and peft: the same precision (fp32), rank and layers for all."""

from typing import Any

from peers.protocol import Task

LINEARS = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]


def base_model(task: Task) -> Any:
    """Return the base model of `task` in fp32."""
    import torch
    from transformers import AutoModelForCausalLM

    return AutoModelForCausalLM.from_pretrained(task.model, dtype=torch.float32, device_map={"": task.device})


def lora_config(task: Task) -> Any:
    """Return peft's LoraConfig of `task`."""
    from peft import LoraConfig

    return LoraConfig(
        r=task.lora_r, lora_alpha=task.lora_alpha, lora_dropout=0.0, target_modules=LINEARS, task_type="CAUSAL_LM"
    )
