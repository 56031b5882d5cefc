"""Measurements that others published, and the planner's predictions for the same runs, as ratios for the docs."""

from dataclasses import dataclass
from typing import Any

from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.models import Shape, known_spec, spec_of
from lorafit.planner.memory import Layout, terms
from lorafit.planner.speed import MicroBatchShape, step_seconds
from lorafit.planner.throughput import rates
from lorafit.units import GIB

TORCHTUNE = "https://github.com/pytorch/torchtune"
KATHERYNE = "https://github.com/vtuber-plan/katheryne"
QWEN_1 = "https://github.com/QwenLM/Qwen"
FACTORY = "https://github.com/hiyouga/LLaMA-Factory/wiki/Performance-comparison"
LLAMA, LLAMA_8B, LLAMA_2 = "Llama-3.2-3B-Instruct", "Llama-3.1-8B-Instruct", "Llama-2-7b-chat-hf"
QWEN = "Qwen3-8B"
# Models that the catalogue of lorafit does not have, from their config.json.
OTHERS = {
    "Qwen-7B": Shape("qwen", 32, 4096, 11008, 32, 32, 128, 151936, False, bias=True),
    "Qwen-14B": Shape("qwen", 40, 5120, 13696, 40, 40, 128, 152064, False, bias=True),
}
GOOD = (0.75, 1.25)  # a ratio outside needs a reason

Settings = dict[str, Any]
MAC: Settings = {"device": "mps", "engine": "mlx", "quantization": "4bit", "tokens": 2048, "longest": 2048}
LONG: Settings = {**MAC, "tokens": 8192, "longest": 8192}


def cuda(samples: int, longest: int, rank: int, recompute: int, **changes: Any) -> Settings:
    """Return the layout of micro-batches of `samples` samples with `longest` tokens each, on CUDA."""
    plain = {"device": "cuda", "tokens": samples * longest, "longest": longest, "lora_r": rank, "recompute": recompute}
    return {**plain, **changes}


@dataclass(frozen=True)
class Published:
    """A published run: its tokens per second or peak GiB, and how the model was trained, as far as that is known.

    `why`: the reason of a ratio that is not within GOOD.
    """

    what: str
    machine: str
    model: str
    layout: Settings
    tokens_per_second: float | None = None
    peak_gib: float | None = None
    source: str = ""
    why: str = ""


PADDED = "1,024 is the highest length; the real lengths were not published"
COMPILED = "torchtune compiles: 27% faster by its own table; the 4090 also runs above its stated clock"
TOO_FAST = "97% of the stated rate would be needed: not this card, or not these settings"
MEMORY = "torchtune compiles its layers, which then need less temporary memory"
A3B = cuda(2, 4096, 16, 28, optimizer="paged_adamw_8bit")
BOTH = "q_proj,v_proj"
KATHERYNE_SECONDS = {
    "L40S": 38, "RTX 6000 Ada": 38, "A800 PCIe 80GB": 41, "A100 PCIe 40GB": 44, "RTX 4090": 62, "RTX A6000": 73, "A40": 76,
    "RTX 3090": 96,
}  # fmt: skip
QWEN_SECONDS = {
    "Qwen-7B": {512: 1.5, 1024: 2.8, 2048: 5.2, 4096: 10.1, 8192: 21.3},
    "Qwen-14B": {512: 2.4, 1024: 4.4, 2048: 8.4, 4096: 17.0, 8192: 36.0},
}
FACTORY_SPEEDS = {1024: 2295, 2048: 2741, 4096: 2926, 8192: 3128}

PUBLISHED = [
    Published("torchtune LoRA, 2 x 4096 packed, recompute, 8-bit Adam", "A100 80GB", LLAMA, A3B, 8210, 8.5, TORCHTUNE),
    Published("torchtune QLoRA, the same", "A100 80GB", LLAMA, {**A3B, "quantization": "4bit"}, 8035, None, TORCHTUNE),
    Published("torchtune QLoRA, the same", "A100 80GB", LLAMA, {**A3B, "quantization": "4bit"}, None, 4.6, TORCHTUNE, MEMORY),
    Published("torchtune LoRA, 2 x 2048 packed, recompute", "RTX 4090", LLAMA_8B, cuda(2, 2048, 8, 32), 3083, None, TORCHTUNE,
              COMPILED),
    Published("torchtune LoRA, 2 x 2048 packed, recompute", "RTX 4090", LLAMA_8B, cuda(2, 2048, 8, 32), None, 16.2, TORCHTUNE),
    Published("torchtune QLoRA, 2 x 2048 packed, recompute", "RTX 4090", LLAMA_8B,
              cuda(2, 2048, 8, 32, quantization="4bit"), 2413, 7.4, TORCHTUNE, COMPILED),
    Published("torchtune LoRA, 2 x 2048 packed, no recompute", "RTX A6000", LLAMA_8B, cuda(2, 2048, 8, 0), 4699, None,
              TORCHTUNE, TOO_FAST),
    *(
        Published("katheryne LoRA on q and v, 2 x 512, recompute", machine, LLAMA_2,
                  cuda(2, 512, 16, 32, lora_targets=BOTH), 100 * 2 * 512 / seconds, None, KATHERYNE)
        for machine, seconds in KATHERYNE_SECONDS.items()
    ),
    *(
        Published(f"Qwen's script, LoRA, 1 x {length}, recompute", "A100 80GB", model,
                  cuda(1, length, 64, 32 if model == "Qwen-7B" else 40), 8 * length / seconds, None, QWEN_1)
        for model, times in QWEN_SECONDS.items()
        for length, seconds in times.items()
    ),
    *(
        Published(f"LLaMA-Factory QLoRA, 1 x {length}, recompute", "A100 40GB", LLAMA_2,
                  cuda(1, length, 8, 32, quantization="4bit"), speed, None, FACTORY)
        for length, speed in FACTORY_SPEEDS.items()
    ),
    Published("LLaMA-Factory LoRA, 4 x 1024, recompute", "A100 40GB", LLAMA_2, cuda(4, 1024, 8, 32), 2954, None, FACTORY, PADDED),
    Published("MLX 4-bit, packed", "M1 Max 32GB", LLAMA, MAC, 226),
    Published("MLX 4-bit, packed", "M1 Max 32GB", QWEN, MAC, 99),
    Published("MLX 0.32.0, stock attention, 8192 tokens; model not named, if it was this one", "M1 Max 32GB", LLAMA,
              {**LONG, "recompute": 28}, None, 25.68, "", "it was probably the other model"),
    Published("the same, if it was this one", "M1 Max 32GB", QWEN, {**LONG, "recompute": 36}, None, 25.68),
]  # fmt: skip


def table() -> str:
    """Return the Markdown table. Memory excludes the libraries, which a device's allocator does not count."""
    head = (
        "| run | machine | model | published | predicted | ratio | if not within 25% |\n|---|---|---|---|---|---|---|\n"
    )
    return head + "\n".join(line for one in PUBLISHED for line in _lines(one))


def ratios(one: Published) -> list[float]:
    """Return predicted over published: of tokens per second and of peak memory, as far as published."""
    pairs = zip(predicted(one), (one.tokens_per_second, one.peak_gib), strict=True)
    return [ours / theirs for ours, theirs in pairs if theirs]


def _lines(one: Published) -> list[str]:
    speed, peak = predicted(one)
    what = f"[{one.what}]({one.source})" if one.source else one.what
    start, lines = f"| {what} | {one.machine} | {one.model} ", []
    if one.tokens_per_second:
        theirs = one.tokens_per_second
        lines.append(
            f"{start}| {theirs:,.0f} tokens/s | {speed:,.0f} | {speed / theirs:.2f} | {_why(one, speed / theirs)} |"
        )
    if one.peak_gib:
        ratio = peak / one.peak_gib
        lines.append(f"{start}| {one.peak_gib} GiB | {peak:.1f} | {ratio:.2f} | {_why(one, ratio)} |")
    return lines


def _why(one: Published, ratio: float) -> str:
    return "" if GOOD[0] <= ratio <= GOOD[1] else one.why


def predicted(one: Published) -> tuple[float, float]:
    """Return the predicted tokens per second and peak GiB."""
    plain: dict[str, Any] = {
        "precision": "bf16", "quantization": "none", "optimizer": "adamw", "lora_r": 16, "lora_targets": "all-linear",
        "recompute": 0, "loss_chunk": 128, "target_share": 1.0,
    }  # fmt: skip
    layout, machine = Layout(**{**plain, **one.layout}), machine_named(one.machine)
    spec = spec_of(OTHERS[one.model]) if one.model in OTHERS else known_spec(one.model)
    assert spec is not None
    share = MicroBatchShape(layout.tokens, layout.targets, layout.tokens * layout.longest)
    sizes = terms(spec, layout)
    peak = sum(size for name, size in sizes.items() if name != "framework")
    return layout.tokens / step_seconds(spec, layout, rates(machine, layout), [share]), peak / GIB
