"""What fits? The largest micro-batch that memory holds, recomputing only where it must; words where nothing does."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

from lorafit.config import TrainConfig, resolve_effective_batch
from lorafit.errors import DoesNotFit
from lorafit.hardware import Machine
from lorafit.messages import _
from lorafit.modelspec import ModelSpec
from lorafit.plan.memory import Layout, terms
from lorafit.units import MIB, bytes_text

# Few rungs, so that two runs on one machine split their steps alike though free memory differs a little.
LADDER = (256, 512, 1024, 2048, 4096)
USEFUL_TOKENS = {"cpu": 1024, "mps": 2048, "cuda": 4096}  # a larger micro-batch is not faster
MARGIN = 0.9  # of the available memory; the rest is for what the formula does not know
LOGITS_BYTES = 128 * MIB  # of one chunk of the loss


@dataclass(frozen=True)
class Fit:
    """One way to train, and whether memory holds it."""

    layout: Layout
    token_budget: int
    peak_bytes: int
    fits: bool


def available_bytes(machine: Machine, device: str) -> int:
    """Memory that `device` can still give; for MPS two thirds of the RAM, a guess, until the engine has measured it."""
    gpu = machine.gpu(device)
    if gpu is None:
        return machine.available_bytes
    if gpu.available_bytes is not None:
        return gpu.available_bytes
    return gpu.memory_bytes * 2 // 3 if device == "mps" else gpu.memory_bytes


def loss_chunk(vocab: int) -> int:
    """Target tokens whose logits are made at once."""
    return min(max(LOGITS_BYTES // (vocab * 4), 32), 512)


def best_fit(config: TrainConfig, spec: ModelSpec, base: Layout, available: int) -> Fit:
    """`base` with the first token budget and recomputed layers that fit, else with those that need the least."""
    attempt: Fit | None = None
    for budget, recompute in _candidates(config, spec.layers, base):
        layout = replace(base, tokens=_largest_micro_batch(config, budget, base.longest), recompute=recompute)
        peak = sum(terms(spec, layout).values())
        attempt = Fit(layout, budget, peak, peak <= MARGIN * available)
        if attempt.fits:
            break
    assert attempt is not None
    return attempt


def does_not_fit(config: TrainConfig, spec: ModelSpec, attempt: Fit, available: int) -> DoesNotFit:
    """The error that names what was predicted, term by term, and the flags that would fit."""
    names = {
        "framework": _("libraries"),
        "weights": _("base weights"),
        "adapter": _("adapter and optimizer"),
        "activations": _("activations"),
        "unpacking": _("unpacking of quantised weights"),
        "loss": _("logits"),
        "allocator": _("allocator"),
    }
    parts = [f"{names[name]} {bytes_text(size)}" for name, size in terms(spec, attempt.layout).items() if size]
    return DoesNotFit(
        _("This does not fit: training needs {need}, and {share:.0%} of {available} may be used.").format(
            need=bytes_text(attempt.peak_bytes), share=MARGIN, available=bytes_text(available)
        ),
        where=_("{device}, {precision}, longest sample {longest}").format(**vars(attempt.layout)),
        found=", ".join(parts),
        fix="\n".join(_remedies(config, spec, attempt, available)),
    )


def _candidates(config: TrainConfig, layers: int, base: Layout) -> Iterator[tuple[int, int]]:
    """(token budget, recomputed layers), the fastest first: smaller budgets cost less time than recomputing."""
    budgets = [config.token_budget] if config.token_budget else _budgets(base.device, base.longest)
    recomputes = range(layers + 1) if config.recompute is None else [min(config.recompute, layers)]
    for budget in budgets:
        yield budget, recomputes[0]
    for recompute in recomputes[1:]:
        yield budgets[-1], recompute


def _budgets(device: str, longest: int) -> list[int]:
    """Rungs from the largest useful one down to the longest sample: it is never split, so less would save nothing."""
    useful = [rung for rung in reversed(LADDER) if longest <= rung <= USEFUL_TOKENS[device]]
    return useful or [next((rung for rung in LADDER if rung >= longest), longest)]


def _largest_micro_batch(config: TrainConfig, budget: int, longest: int) -> int:
    """Tokens that a micro-batch can really come to."""
    samples = min(config.batch_size or budget, resolve_effective_batch(config))
    return max(longest, min(budget, samples * longest))


def _remedies(config: TrainConfig, spec: ModelSpec, attempt: Fit, available: int) -> Iterator[str]:
    """Flags to paste; only such as the same formula finds to fit."""

    def fits(**changes: str | int) -> bool:
        return best_fit(config, spec, replace(attempt.layout, **changes), available).fits  # type: ignore[arg-type]

    if attempt.layout.quantization == "none" and fits(quantization="4bit"):
        yield _("--quantization 4bit: base weights in an eighth of float32's memory")
    shorter = next((n for n in (1024, 512, 384, 256, 128) if n < attempt.layout.longest and fits(longest=n)), None)
    if shorter:
        yield _("--max_length {length}: shorter samples").format(length=shorter)
    yield _("--model_name NAME: a smaller model (`demo` is the smallest)")
    yield _("--token_budget {budget}: to try all the same").format(budget=attempt.token_budget)
