"""Suggestions where no plan fits: flags to paste, a smaller model, a larger machine.

The memory formula checks every suggestion except two: the general hint at smaller models, and --token_budget.
"""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import numpy as np

from lorafit.errors import DoesNotFit
from lorafit.hardware.catalogue.find import machine_named
from lorafit.hardware.catalogue.models import SHAPES, known_spec
from lorafit.messages import _, listed
from lorafit.models.spec import ModelSpec, Packed
from lorafit.planner import device_precision
from lorafit.planner.coverage import experts_text
from lorafit.planner.fast_path import path_of
from lorafit.planner.memory import terms
from lorafit.planner.memory_budget import MARGIN, available_bytes, per_process
from lorafit.planner.reasons import term_names
from lorafit.planner.search import Candidate, PlanRequest, anything_fits, budgets, smallest_peak
from lorafit.units import bytes_text, count_text

WORTH_A_TRY = 1.3  # times the available memory: the formula is not off by more
SHORTER = (1024, 512, 384, 256, 128)
LARGER_MACHINES = ("colab-t4", "M2 Pro 32GB", "RTX 3090", "M3 Max 64GB", "A100 80GB", "H100")  # the cheapest first


def does_not_fit(question: PlanRequest, nearest: Candidate, in_4bit: Candidate | None = None) -> DoesNotFit:
    """Return the error with the predicted memory by term and the suggestions.

    `nearest`: the candidate with the lowest peak. `in_4bit`: the same with 4-bit base weights, where those do not fit.
    """
    names, layout = term_names(), nearest.layout
    parts = [f"{names[name]} {bytes_text(size)}" for name, size in terms(question.spec, layout).items() if size]
    total = []
    if in_4bit is not None:
        total = [_("Total with 4-bit base weights: {need}").format(need=bytes_text(in_4bit.peak_bytes))]
    if question.spec.expert_weights and (layout.quantization != "none" or in_4bit) and question.spec.packed is None:
        total.append(experts_text(question.spec))
    available = available_bytes(question.machine, layout.device)
    text = _("Not enough memory: training needs {need}, the limit is {limit} ({share:.0%} of {available}).")
    if layout.device == "cuda":
        text = _("Not enough GPU memory: training needs {need}, the limit is {limit} ({share:.0%} of {available}).")
    return DoesNotFit(
        text.format(
            need=bytes_text(nearest.peak_bytes),
            limit=bytes_text(int(MARGIN * available)),
            share=MARGIN,
            available=bytes_text(available),
        ),
        where=_("{device}, {precision}, longest sample: {longest} tokens").format(
            device=layout.device, precision=layout.precision, longest=count_text(layout.longest)
        ),
        found="\n".join([listed(parts), *total]),
        fix="\n".join(remedies(question, nearest)),
    )


def remedies(question: PlanRequest, nearest: Candidate) -> Iterator[str]:
    """Yield the suggestions, the smallest change first.

    Fewer processes, 4-bit base weights, shorter samples or both, a smaller model, a larger machine. Last, if the peak is
    below WORTH_A_TRY times the available memory, a run with a set token budget.
    """
    packs = question.base.quantization == "none" and question.spec.packed is None
    yield from _fewer_processes(question)
    yield from _flags(question, packs)
    yield from _packed_for_mlx(question)
    smaller = _smaller_model(question)
    if smaller:
        yield _("--model_name {name}: the largest similar model that fits").format(name=smaller)
    else:
        yield _("--model_name NAME: a smaller model (`demo` is the smallest)")
    machine = _larger_machine(question)
    if machine:
        text = _('another machine, for example {name}: `lorafit plan --machine "{name}"` with your model and data')
        yield text.format(name=machine)
    if nearest.peak_bytes < WORTH_A_TRY * available_bytes(question.machine, question.base.device):
        yield _("--token_budget {budget}: start anyway; it may run out of memory").format(budget=budgets(question)[-1])


def _fewer_processes(question: PlanRequest) -> Iterator[str]:
    """Yield the largest smaller number of processes that fits on a CPU, where processes share the memory."""
    machine, count = question.machine, question.machine.shared_by
    whole = replace(machine, available_bytes=machine.available_bytes * count)
    for fewer in range(count - 1, 0, -1):
        base = replace(question.base, processes=fewer)
        alone = question.base.device == "cpu" and question.base.shards == 1
        if alone and fits(replace(question, machine=per_process(whole, fewer), base=base)):
            yield _("--processes {count}: more memory for each process").format(count=fewer)
            return


def _packed_for_mlx(question: PlanRequest) -> Iterator[str]:
    """Yield the hint at a 4-bit version that mlx_lm made, with its memory: its experts are quantized too."""
    spec, bits = question.spec, 4.5  # with a scale and a bias of 16 bits for 64 weights
    if question.base.engine != "mlx" or not spec.expert_weights or spec.packed is not None:
        return
    packed = replace(spec, packed=Packed(4, int(spec.parameters * bits / 8), spec.vocab * spec.hidden // 64))
    if anything_fits(instead := replace(question, spec=packed)):
        text = _("a version of this model that mlx_lm quantized to 4 bits, experts too: {need} in total")
        yield text.format(need=bytes_text(smallest_peak(instead)))


def _flags(question: PlanRequest, packs: bool) -> Iterator[str]:
    quantized = packs and fits(question, quantization="4bit")
    if quantized:
        yield _("--quantization 4bit: {need} in total").format(
            need=bytes_text(smallest_peak(_changed(question, quantization="4bit")))
        )
    shorter = [n for n in SHORTER if n < question.data.longest]
    alone = next((n for n in shorter if fits(question, longest=n)), None)
    if alone:
        yield _("--max_length {length}: truncate longer samples").format(length=alone)
    if alone or quantized:
        return
    both = next((n for n in shorter if packs and fits(question, longest=n, quantization="4bit")), None)
    if both:
        yield _("--quantization 4bit --max_length {length}: quantize and truncate longer samples").format(length=both)


def fits(question: PlanRequest, longest: int | None = None, **changes: Any) -> bool:
    """Return whether anything fits with `changes` to the layout and samples truncated to `longest` tokens."""
    return anything_fits(_changed(question, longest, **changes))


def _changed(question: PlanRequest, longest: int | None = None, **changes: Any) -> PlanRequest:
    base = replace(question.base, **changes)
    data = question.data
    if longest is not None:
        cut = np.minimum(data.train_lengths, longest)
        data, base = replace(data, train_lengths=cut), replace(base, longest=longest)
    base = replace(base, path=path_of(question.spec, base.longest, base.quantization, base.device))
    return replace(question, base=base, data=data)


def _smaller_model(question: PlanRequest) -> str | None:
    """Return the largest smaller model of the catalogue that fits, or None.

    Only models of the same model_type are tried, if the catalogue has a smaller one.
    """
    size = question.spec.parameters
    known = [(name, known_spec(name)) for name in SHAPES]
    smaller = [(name, spec) for name, spec in known if spec is not None and spec.parameters < size]
    alike = [pair for pair in smaller if pair[1].model_type == question.spec.model_type] or smaller
    for name, spec in sorted(alike, key=lambda pair: -pair[1].parameters):
        if _fits_model(question, spec):
            return name
    return None


def _fits_model(question: PlanRequest, spec: ModelSpec) -> bool:
    """Return whether `spec` fits, with 4-bit base weights if the planner would choose these by itself."""
    instead, base = replace(question, spec=spec), question.base
    by_itself = question.config.quantization == "auto" and base.quantization == "none"
    return fits(instead) or (by_itself and fits(instead, quantization="4bit"))


def _larger_machine(question: PlanRequest) -> str | None:
    for name in LARGER_MACHINES:
        machine = machine_named(name)
        device = machine.gpus[0].kind
        engine = device_precision.choose_engine(question.config, machine, device).value
        auto = question.config.model_copy(
            update={"precision": "auto", "device": "auto", "recompute": None, "processes": None}
        )
        quantization = device_precision.choose_quantization(auto, device, engine).value
        precisions = device_precision.precisions(auto, machine, device, engine)
        alone = replace(question.base, processes=1, shards=1)
        base = replace(alone, device=device, engine=engine, quantization=quantization, precision=precisions[0])
        there = replace(
            question,
            config=auto,
            machine=machine,
            base=base,
            precisions=precisions,
            memory_factor=1.0,
            max_token_budget=None,
        )
        if question.spec.packed is not None and engine != "mlx":
            continue
        if machine.gpus[0].memory_bytes > available_bytes(question.machine, question.base.device) and fits(there):
            return name
    return None
