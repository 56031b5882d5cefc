"""The part of a model's weights that an adapter covers, for the user: linear layers with an adapter, and the rest."""

from dataclasses import replace

from lorafit.messages import _, clauses
from lorafit.models.spec import ModelSpec
from lorafit.planner.memory import adapter_parameters, targeted
from lorafit.planner.plan import Choice
from lorafit.units import count_text


def with_experts(quantization: Choice, spec: ModelSpec) -> Choice:
    """Return the choice `quantization`, which says so if experts stay unquantized: only linear layers are packed.

    Files that are quantized already hold their experts so too.
    """
    if quantization.value == "none" or not spec.expert_weights or spec.packed is not None:
        return quantization
    return replace(quantization, reason=clauses([quantization.reason, experts_text(spec)]))


def experts_text(spec: ModelSpec) -> str:
    """Return the text that experts stay unquantized, with their share of the weights."""
    text = _("the experts, {share:.1%} of the weights, stay unquantized: only linear layers can be quantized")
    return text.format(share=spec.expert_weights / spec.parameters)


def adapter_choices(spec: ModelSpec, lora_r: int, lora_targets: str) -> list[Choice]:
    """Return a line on what the adapter covers, the same for every engine.

    The list is empty if the files name no linear layers, as some quantized ones do.
    """
    chosen = targeted(spec, lora_targets)
    if not chosen or not spec.parameters:
        return []
    text = _("on {chosen} of {all} linear layers, which hold {share:.1%} of the weights")
    if spec.expert_weights:
        text = _(
            "on {chosen} of {all} linear layers, which hold {share:.1%} of the weights; the experts ({experts:.1%} of the "
            "weights) get no adapter"
        )
    reason = text.format(
        chosen=count_text(len(chosen)),
        all=count_text(len(spec.linears)),
        share=sum(linear.in_features * linear.out_features for linear in chosen if not linear.again) / spec.parameters,
        experts=spec.expert_weights / spec.parameters,
    )
    count = count_text(adapter_parameters(spec, lora_r, lora_targets))
    return [Choice("adapter", _("{count} parameters").format(count=count), reason)]
