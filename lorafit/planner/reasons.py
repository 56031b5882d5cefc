"""Texts for the user: the reason of each choice of a plan, and of each rejected candidate."""

from collections.abc import Iterator

from lorafit.config import TrainConfig
from lorafit.messages import _, joined, listed
from lorafit.planner.estimate import Estimate, Schedule
from lorafit.planner.fast_path import FAST, why_generic
from lorafit.planner.memory import terms
from lorafit.planner.memory_budget import MARGIN, available_bytes
from lorafit.planner.memory_budget import source_text as room_source
from lorafit.planner.plan import Choice
from lorafit.planner.search import Candidate, PlanRequest
from lorafit.units import bytes_text, count_text, range_text, seconds_text

SHOWN_TERMS = 3
MOST_OTHERS = 4


def term_names() -> dict[str, str]:
    """Return the names of the memory terms for the user, by the keys of memory.terms()."""
    return {
        "framework": _("runtime libraries"),
        "weights": _("base weights"),
        "adapter": _("adapter and optimizer"),
        "activations": _("activations"),
        "work": _("temporaries of one layer"),
        "unpacking": _("buffer for unpacked weights"),
        "batch": _("micro-batch"),
        "allocator": _("allocator overhead"),
    }


def computation_choices(question: PlanRequest, chosen: Candidate, expected: Estimate) -> list[Choice]:
    """Return the choices of memory, code path, token budget, recompute and time."""
    path = [_path(question)] if question.base.engine == "torch" else []
    return [_memory(question, chosen), *path, *_split(question, chosen), _time(expected)]


def _memory(question: PlanRequest, chosen: Candidate) -> Choice:
    device = chosen.layout.device
    facts = {
        "peak": bytes_text(chosen.peak_bytes),
        "available": bytes_text(available_bytes(question.machine, device)),
        "terms": listed(largest_terms(question, chosen)),
    }
    if not chosen.fits:
        text = _(
            "⚠️  Memory: about {peak} needed, more than the usable part of {available}; "
            "continuing because --token_budget is set"
        )
    elif source := room_source(question.machine, device):
        text, facts["source"] = _("✓ Memory: about {peak} of {available} ({source}); largest parts: {terms}"), source
    elif device == "cuda":
        text = _("✓ GPU memory: about {peak} of {available}; largest parts: {terms}")
    else:
        text = _("✓ Memory: about {peak} of {available}; largest parts: {terms}")
    return Choice("memory", facts["peak"], text.format(**facts))


def largest_terms(question: PlanRequest, chosen: Candidate) -> list[str]:
    """Return the SHOWN_TERMS largest memory terms as texts like "base weights 2.3 GiB", the largest first."""
    sizes, names = terms(question.spec, chosen.layout), term_names()
    largest = sorted(sizes, key=lambda name: -sizes[name])[:SHOWN_TERMS]
    return [joined(" ", [names[name], bytes_text(sizes[name])]) for name in largest]


def _path(question: PlanRequest) -> Choice:
    base = question.base
    reason = why_generic(question.spec, base.longest, base.quantization, base.device)
    if base.path == FAST:
        return Choice("path", base.path, _("lorafit's padding-free decoder, which supports this architecture"))
    return Choice("path", base.path, reason or "")


def _split(question: PlanRequest, chosen: Candidate) -> Iterator[Choice]:
    budget, recompute, config = chosen.token_budget, chosen.layout.recompute, question.config
    longest = _("longest sample: {longest} tokens").format(longest=count_text(chosen.layout.longest))
    asked = _("as requested; {longest}") if config.token_budget else _("fastest value that fits; {longest}")
    if question.is_capped:
        asked = _("larger micro-batches ran out of memory here before; {longest}")
    yield Choice("token_budget", str(budget), asked.format(longest=longest))
    if recompute:
        text = _("gradient checkpointing on {layers} of {all} layers, as requested")
        if config.recompute is None:
            text = _("gradient checkpointing on {layers} of {all} layers, so that micro-batches of this size fit")
        yield Choice("recompute", str(recompute), text.format(layers=recompute, all=question.spec.layers))


def _time(expected: Estimate) -> Choice:
    text = _("{range}, {rate:,.0f} tokens/s, {source}")
    spread = text.format(
        range=range_text(expected.low, expected.high),
        rate=expected.tokens_per_second,
        source=source_text(expected.source),
    )
    return Choice("time", seconds_text(expected.total), spread)


def source_text(source: str) -> str:
    """Return the text for the source of a time estimate. Raise KeyError for an unknown source."""
    words = {
        "measured": _("measured just now"),
        "calibrated": _("from earlier runs on this machine"),
        "catalogue": _("computed from the chip's speed"),
        "guess": _("a rough estimate: this chip is not in the catalog"),
    }
    return words[source]


def steps(config: TrainConfig, effective_batch: int, schedule: Schedule, rows: int) -> Choice:
    """Return the choice of the number of steps."""
    text = _("rows: {rows}, per step: {batch}, num_epochs: {epochs:g}")
    if config.max_steps:
        text = _("as requested; rows: {rows}, per step: {batch}")
    reason = text.format(rows=count_text(rows), epochs=config.num_epochs, batch=effective_batch)
    return Choice("steps", str(schedule.steps), reason)


def evaluations(config: TrainConfig, schedule: Schedule, most: float) -> Choice:
    """Return the choice of the steps between evaluations; `most` is the highest share of the time for evaluations."""
    share = _("as requested") if config.eval_steps else _("evaluation takes at most {share:.0%} of the time")
    return Choice("eval_steps", str(schedule.eval_steps), share.format(share=most))


def rejected_choices(question: PlanRequest, chosen: Candidate, considered: list[Candidate]) -> list[Choice]:
    """Return rejected candidates with reasons, at most MOST_OTHERS.

    The two fastest that do not fit come first, then those that fit, the fastest first.
    """
    rest = [candidate for candidate in considered if _flags(candidate) != _flags(chosen)]
    faster = sorted((c for c in rest if not c.fits), key=lambda c: c.seconds)
    slower = sorted((c for c in rest if c.fits), key=lambda c: c.seconds)
    found: dict[str, Choice] = {}
    for candidate in faster[:2] + slower:
        key = f"{candidate.layout.precision} {candidate.token_budget} {candidate.fits}"
        found.setdefault(key, _other(question, chosen, candidate))
    return list(found.values())[:MOST_OTHERS]


def quantization_proposal(question: PlanRequest, chosen: Candidate, packed: Candidate) -> Choice:
    """Return the proposal of 4-bit base weights with its speed and memory.

    4-bit weights change the trained adapter, so the planner does not choose them while the unquantized base fits.
    """
    text = _("{ratio:.0%} of the chosen plan's speed, peak {peak}; quantized base")
    reason = text.format(ratio=chosen.seconds / packed.seconds, peak=bytes_text(packed.peak_bytes))
    return Choice("quantization", f"--quantization {packed.layout.quantization} {_flags(packed)}", reason)


def more_gpus(chosen: Candidate, several: Candidate) -> Choice:
    """Return the proposal of one process per GPU, with its speed relative to one process on the first GPU."""
    text = _("{ratio:.0%} of the chosen plan's speed: one process on each of the machine's GPUs, same training result")
    return Choice(
        "processes", f"--processes {several.layout.processes}", text.format(ratio=chosen.seconds / several.seconds)
    )


def _flags(candidate: Candidate) -> str:
    layout = candidate.layout
    return f"--precision {layout.precision} --token_budget {candidate.token_budget} --recompute {layout.recompute}"


def _other(question: PlanRequest, chosen: Candidate, other: Candidate) -> Choice:
    layout, usable = other.layout, int(MARGIN * available_bytes(question.machine, other.layout.device))
    ratio = other.seconds / chosen.seconds
    if not other.fits:
        reason = _("needs {need}, limit {usable}").format(need=bytes_text(other.peak_bytes), usable=bytes_text(usable))
    elif layout.precision != chosen.layout.precision:
        reason = _("{precision} is preferred if it fits").format(precision=chosen.layout.precision)
    elif ratio > 1.005:
        reason = _("{ratio:.0%} of the chosen plan's speed, peak {peak}").format(
            ratio=1 / ratio, peak=bytes_text(other.peak_bytes)
        )
    else:
        reason = _("no faster, but takes more memory: {peak}").format(peak=bytes_text(other.peak_bytes))
    return Choice("plan", _flags(other), reason)
