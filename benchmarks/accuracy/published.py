"""Measurements that others published, and the planner's predictions for the same runs, as ratios for the docs."""

from dataclasses import dataclass
from typing import Any

from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.models import known_spec
from lorafit.planner.memory import Layout, terms
from lorafit.planner.speed import MicroBatchShape, step_seconds
from lorafit.planner.throughput import rates
from lorafit.units import GIB

LLAMA, QWEN = "meta-llama/Llama-3.2-3B-Instruct", "Qwen/Qwen3-8B"
A100: dict[str, Any] = {
    "device": "cuda",
    "optimizer": "paged_adamw_8bit",
    "recompute": 28,
    "tokens": 8192,
    "longest": 4096,
}
MAC: dict[str, Any] = {"device": "mps", "engine": "mlx", "quantization": "4bit", "tokens": 2048, "longest": 2048}
LONG: dict[str, Any] = {**MAC, "tokens": 8192, "longest": 8192}


@dataclass(frozen=True)
class Published:
    """A published run: its tokens per second or peak GiB, and how the model was trained, as far as that is known."""

    what: str
    machine: str
    model: str
    layout: dict[str, Any]
    tokens_per_second: float | None = None
    peak_gib: float | None = None


PUBLISHED = [
    Published("torchtune LoRA, 2 x 4096 packed, recompute, 8-bit Adam", "A100 80GB", LLAMA, A100, 8210, 8.5),
    Published("torchtune QLoRA, the same", "A100 80GB", LLAMA, {**A100, "quantization": "4bit"}, 8035, 4.6),
    Published("MLX 4-bit, packed", "M1 Max 32GB", LLAMA, MAC, 226),
    Published("MLX 4-bit, packed", "M1 Max 32GB", QWEN, MAC, 99),
    Published("MLX 0.32.0, stock attention, 8192 tokens; model not named, if it was this one", "M1 Max 32GB", LLAMA,
              {**LONG, "recompute": 28}, None, 25.68),
    Published("the same, if it was this one", "M1 Max 32GB", QWEN, {**LONG, "recompute": 36}, None, 25.68),
]  # fmt: skip


def table() -> str:
    """Return the Markdown table. Memory excludes the libraries, which a device's allocator does not count."""
    head = "| run | machine | model | published | predicted | ratio |\n|---|---|---|---|---|---|\n"
    return head + "\n".join(line for one in PUBLISHED for line in _lines(one))


def _lines(one: Published) -> list[str]:
    speed, peak = predicted(one)
    start = f"| {one.what} | {one.machine} | {one.model.rpartition('/')[2]} "
    lines = []
    if one.tokens_per_second:
        lines.append(
            f"{start}| {one.tokens_per_second:,.0f} tokens/s | {speed:,.0f} | {speed / one.tokens_per_second:.2f} |"
        )
    if one.peak_gib:
        lines.append(f"{start}| {one.peak_gib} GiB | {peak:.1f} | {peak / one.peak_gib:.2f} |")
    return lines


def predicted(one: Published) -> tuple[float, float]:
    """Return the predicted tokens per second and peak GiB."""
    plain: dict[str, Any] = {
        "precision": "bf16", "quantization": "none", "optimizer": "adamw", "lora_r": 16, "lora_targets": "all-linear",
        "recompute": 0, "loss_chunk": 128, "target_share": 1.0,
    }  # fmt: skip
    layout, spec, machine = Layout(**{**plain, **one.layout}), known_spec(one.model), machine_named(one.machine)
    assert spec is not None
    share = MicroBatchShape(layout.tokens, layout.targets, layout.tokens * layout.longest)
    sizes = terms(spec, layout)
    peak = sum(size for name, size in sizes.items() if name != "framework")
    return layout.tokens / step_seconds(spec, layout, rates(machine, layout), [share]), peak / GIB
