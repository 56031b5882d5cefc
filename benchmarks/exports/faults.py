"""Faults that an exporter could have: each replaces one function of lorafit's by a faulty one."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np

from exports.trials import Plant, Trial
from lorafit.exporters import adapted, merge
from lorafit.exporters.gguf import layout, lora, rope, write
from lorafit.exporters.merge import Delta

Change = Callable[[Any], Any]
F16, Q8, Q4 = {"quantize": "f16"}, {"quantize": "q8_0"}, {"quantize": "q4_k_m"}
ALONE = {"adapter_only": True}
OTHER_TEMPLATE = "{% for m in messages %}{{ '[INST] ' + m.content + ' [/INST]' }}{% endfor %}"


def result(change: Change) -> Change:
    """Return what makes of a function one that returns `change` of its result."""
    return lambda original: lambda *given, **named: change(original(*given, **named))


def arguments(change: Callable[..., tuple[Any, ...]]) -> Change:
    """Return what makes of a function one that gets `change` of its arguments."""
    return lambda original: lambda *given, **named: original(*change(*given), **named)


def each(change: Callable[[Delta], Delta]) -> Change:
    """Return a change of all deltas by name."""
    return lambda deltas: {name: change(delta) for name, delta in deltas.items()}


def scaled(factor: float) -> Change:
    """Return a change of all deltas: `factor` times their scale."""
    return each(lambda delta: delta._replace(scale=factor * delta.scale))


def without(part: str) -> Change:
    """Return a change of a dict: no entry with `part` in its name."""
    return lambda found: {name: value for name, value in found.items() if part not in name}


def swapped(first: str, second: str) -> Change:
    """Return a change of a dict: entries whose names differ in these parts change places, where both are."""

    def other(name: str) -> str:
        return name.replace(first, second) if first in name else name.replace(second, first)

    return lambda found: {name: found.get(other(name), value) for name, value in found.items()}


def deltas(change: Change) -> Plant:
    """Return a fault in the deltas of all tensors."""
    return Plant(adapted, "deltas", result(change))


def adapter_read(owner: Any, config: Change = lambda found: found, tensors: Change = lambda found: found) -> Plant:
    """Return a fault in how the module `owner` reads an adapter."""
    return Plant(owner, "read_adapter", result(lambda found: (config(found[0]), tensors(found[1]))))


def plain(config: Any) -> Any:
    """Return the settings without rsLoRA: the scale is alpha / rank."""
    return replace(config, use_rslora=False)


def one_scale(original: Any) -> Any:
    """Return a faulty deltas(): all have the scale of the adapter's own rank."""

    def faulty(source: Any, names: Any) -> dict[str, Delta]:
        scale = source.config.alpha / source.config.r
        return {name: delta._replace(scale=scale) for name, delta in original(source, names).items()}

    return faulty


def transposed(delta: Delta) -> Delta:
    """Return B read in the order of its transpose."""
    return delta._replace(b=delta.b.reshape(delta.b.shape[::-1]).T)


def shuffled(delta: Delta) -> Delta:
    """Return B with its rows in another order."""
    return delta._replace(b=np.roll(delta.b, 1, 0))


def of_all(name: str, *sources_and_targets: tuple[str, str, dict[str, Any]], plant: Plant) -> list[Trial]:
    """Return a trial of a fault in each of some exports."""
    return [
        Trial(f"{name} ({' '.join([to, *map(str, flags.values())])}, {source})", source, to, flags, plant)
        for source, to, flags in sources_and_targets
    ]


def another_run(tensors: Any) -> Any:
    """Return the adapter's tensors with those of other random directions, as large."""
    random = np.random.default_rng(5)
    return {
        n: random.standard_normal(v.shape).astype(np.float32) * v.std() if ".lora_B." in n else v
        for n, v in tensors.items()
    }


ADAPTER: list[Trial] = [
    *of_all("the base is exported", ("llama", "merged", {}), plant=Plant(merge.Block, "merged", lambda _own: lambda self: self.weight)),
    *of_all("the base is exported", ("qwen2", "gguf", F16), ("llama", "gguf", Q4), ("llama", "lmstudio", Q8),
            plant=Plant(merge.MergedTensor, "parts", result(lambda found: (found[0], None)))),
    *of_all("no delta is found", ("qwen2", "merged", {}), ("qwen2", "gguf", Q4), plant=deltas(lambda _found: {})),
    *of_all("twice alpha", ("llama", "merged", {}), ("llama", "gguf", Q8), ("llama", "gguf", Q4), plant=deltas(scaled(2))),
    *of_all("half of alpha", ("llama", "merged", {"dtype": "bf16"}), ("llama", "gguf", Q8), ("llama", "gguf", Q4),
            ("qwen3", "gguf", {"quantize": "q4_0"}), plant=deltas(scaled(0.5))),
    *of_all("rsLoRA's scale is ignored", ("llama, rslora", "merged", {}), ("llama, rslora", "gguf", Q8),
            plant=Plant(adapted, "read_adapter", adapter_read(adapted, plain).make)),
    *of_all("rsLoRA's scale is ignored", ("llama, rslora", "gguf", ALONE), plant=adapter_read(lora, plain)),
    *of_all("one scale for all ranks", ("llama, ranks", "merged", {}), ("llama, ranks", "gguf", Q8),
            plant=Plant(adapted, "deltas", one_scale)),
    *of_all("one scale for all ranks", ("llama, ranks", "gguf", ALONE),
            plant=adapter_read(lora, lambda config: replace(config, alpha_pattern={"o_proj": 4.0}))),
    *of_all("a tensor without its delta", ("llama", "merged", {}), ("llama", "gguf", Q8), ("llama", "gguf", Q4),
            plant=deltas(without("layers.2.mlp.up_proj"))),
    *of_all("a layer without its deltas", ("qwen2", "merged", {}), ("llama", "gguf", Q8), plant=deltas(without("layers.1."))),
    *of_all("a layer is missing in the adapter alone", ("llama", "gguf", ALONE),
            plant=adapter_read(lora, tensors=without("layers.1."))),
    *of_all("two layers are swapped", ("llama", "merged", {}), ("llama", "gguf", F16), plant=deltas(swapped("layers.1.", "layers.2."))),
    *of_all("B is transposed", ("qwen2", "merged", {}), ("llama", "gguf", Q4), plant=deltas(each(transposed))),
    *of_all("rows of B in another order", ("llama", "merged", {}), ("qwen3", "gguf", Q4), plant=deltas(each(shuffled))),
    *of_all("the adapter of another run", ("llama", "merged", {}), ("llama", "gguf", Q8), ("llama", "gguf", Q4),
            plant=adapter_read(adapted, tensors=another_run)),
]  # fmt: skip


def without_reordering(found: tuple[int, float]) -> tuple[int, float]:
    """Return what transform_of() gives for a type whose rows keep their order."""
    return 0, found[1]


def ones(part: str) -> Change:
    """Return what makes of _write_tensor() one that writes ones for tensors with `part` in their names."""

    def make(original: Any) -> Any:
        def faulty(file: Any, weight: Any, delta: Any, tensor: Any, *given: Any) -> Any:
            return original(file, np.ones_like(weight) if part in tensor.name else weight, delta, tensor, *given)

        return faulty

    return make


def settings(**changes: Any) -> Plant:
    """Return a fault: the metadata of the file is written from other settings."""

    def change(writer: Any, plan: Any) -> tuple[Any, ...]:
        return writer, replace(plan, settings={**plan.settings, **changes})

    return Plant(write, "_add_settings", arguments(change))


def rope_settings(**changes: Any) -> Plant:
    """Return a fault: rotary positions are written from other settings."""
    return Plant(rope, "rope_of", result(lambda found: {**found, **changes}))


def permuted_too(original: Any) -> Any:
    """Return a faulty transform_of(): rows of query and key are reordered in every type."""

    def faulty(architecture: Any, settings: Any, name: str) -> Any:
        return original(replace(architecture, reorders=True), settings, name)

    return faulty


def no_biases(plan: list[Any]) -> list[Any]:
    """Return the tensors of a file without biases."""
    return [tensor for tensor in plan if not tensor.name.endswith(".bias")]


def crossed(names: dict[str, str]) -> dict[str, str]:
    """Return names by which gate and up of an MLP change places."""
    turned = {"ffn_gate": "ffn_up", "ffn_up": "ffn_gate"}
    return {theirs: ".".join(turned.get(part, part) for part in ours.split(".")) for theirs, ours in names.items()}


LAYOUT: list[Trial] = [
    *of_all("query and key keep their order", ("llama", "gguf", F16), ("mistral", "gguf", Q4),
            plant=Plant(layout, "transform_of", result(without_reordering))),
    *of_all("query and key are reordered in vain", ("qwen2", "gguf", F16), ("qwen3", "gguf", Q8),
            plant=Plant(layout, "transform_of", permuted_too)),
    *of_all("B of query and key keeps its order", ("llama", "gguf", ALONE),
            plant=Plant(lora, "transform_of", result(without_reordering))),
    *of_all("the shift of norms is forgotten", ("gemma2", "gguf", F16),
            plant=Plant(layout, "transform_of", result(lambda found: (found[0], 0.0)))),
    *of_all("norms of query and key are lost", ("qwen3", "gguf", F16), ("qwen3", "gguf", Q8),
            plant=Plant(write, "_write_tensor", ones("_q_norm"))),
    *of_all("biases are lost", ("qwen2", "gguf", F16), ("qwen2", "gguf", Q4), plant=Plant(write, "plan_tensors", result(no_biases))),
    *of_all("half as many heads", ("llama", "gguf", F16), plant=settings(num_attention_heads=2, num_key_value_heads=1)),
    *of_all("the width of a head is wrong", ("qwen3", "gguf", F16), plant=Plant(write, "head_dim_of", result(lambda found: found // 2))),
    *of_all("epsilon of the norms is wrong", ("llama", "gguf", F16), plant=settings(rms_norm_eps=0.05)),
    *of_all("rope_theta is lost", ("llama", "gguf", F16), ("qwen3", "gguf", Q8), plant=rope_settings(rope_theta=1e4)),
    *of_all("the scaling of positions is lost", ("llama 3", "gguf", F16), ("llama 3", "gguf", Q4),
            plant=Plant(write, "rope_factors", lambda _own: lambda *_given: {})),
    *of_all("the window is lost", ("gemma3_text", "gguf", F16), ("gemma2", "gguf", Q4), plant=settings(sliding_window=4096)),
    *of_all("the soft cap of attention is lost", ("gemma2", "gguf", F16), plant=settings(attn_logit_softcapping=None)),
    *of_all("gate and up are swapped", ("llama", "gguf", F16), ("qwen3", "gguf", Q4), plant=Plant(layout, "_names", result(crossed))),
    *of_all("a second head beside a tied embedding", ("qwen2", "gguf", Q8), plant=Plant(layout, "is_tied", lambda _own: lambda *_given: False)),
    *of_all("the head of an untied model is lost", ("llama", "gguf", Q8), plant=Plant(layout, "is_tied", lambda _own: lambda *_given: True)),
]  # fmt: skip
