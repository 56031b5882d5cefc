"""The adapter of --init_adapter: its rank, alpha and layers become those of the run, where the user gave none."""

import math
from dataclasses import replace
from pathlib import Path
from typing import Any

from lorafit.config import DEMO_PRESET, TrainConfig
from lorafit.errors import AdapterError
from lorafit.messages import _, listed
from lorafit.models.lora_targets import matching_names, place_in_layers
from lorafit.models.spec import ModelSpec
from lorafit.models.text_tensors import LAYER
from lorafit.planner.plan import Choice, Plan
from lorafit.run_folders.adapter import AdapterConfig, read_adapter_config, read_plain_config
from lorafit.run_folders.adapter_fit import check_shapes, left_out_error
from lorafit.run_folders.find_adapter import find_adapter
from lorafit.run_folders.peft_form import target_names

SAME = 1e-6  # relative difference up to which two values of alpha are the same: a printed alpha has nine digits


def init_adapter(config: TrainConfig) -> Path | None:
    """Return the folder of the adapter that --init_adapter names, or None. Raises AdapterError."""
    return None if config.init_adapter is None else find_adapter(config.init_adapter, Path(config.output_dir))


def with_rank(config: TrainConfig, folder: Path) -> TrainConfig:
    """Return `config` with lora_r and lora_alpha of the adapter in `folder`, unless the user gave them.

    Raises AdapterError if the user gave other values: the shapes would not match, or the weights would act differently.
    """
    adapter = read_plain_config(folder)
    if _given(config, "lora_r") and config.lora_r != adapter.r:
        raise _other_rank(config, adapter, folder)
    if _given(config, "lora_alpha") and not math.isclose(config.lora_alpha, adapter.alpha, rel_tol=SAME):
        raise _other_rank(config, adapter, folder)
    return config.model_copy(update={"lora_r": adapter.r, "lora_alpha": adapter.alpha})


def with_targets(config: TrainConfig, folder: Path, spec: ModelSpec | None = None) -> TrainConfig:
    """Return `config` with lora_targets of the adapter in `folder`, unless the user gave them.

    `spec` is that of the base model; without it, targets that the user gave are not checked. Raises AdapterError if the
    adapter does not fit the base model, has layers that training leaves out, or others than the user's targets select.
    """
    if spec is None:
        own = ",".join(read_adapter_config(folder).target_modules)
        return config if _given(config, "lora_targets") else config.model_copy(update={"lora_targets": own})
    check_shapes(folder, spec)
    trained = _as_in_files(read_plain_config(folder).target_modules, spec)
    known = {linear.name for linear in spec.linears}
    if known & {*trained} and (others := [name for name in trained if name not in known]):
        raise left_out_error(folder, others)
    every = _every_linear(spec, trained)
    selected = matching_names(every, config.lora_targets)
    if {*selected} == {*trained}:
        return config
    own = ",".join(target_names(trained, every))
    if not _given(config, "lora_targets"):
        return config.model_copy(update={"lora_targets": own})
    raise AdapterError(
        _("This adapter covers different layers than this run trains."),
        where=folder,
        found=listed(sorted({*selected} ^ {*trained})[:2]),
        fix=_own_settings(["--lora_targets"], f"--lora_targets {own}"),
    )


def with_patterns(plan: Plan, folder: Path, *, new: bool) -> Plan:
    """Return `plan` with the ranks and alphas of the adapter in `folder`.

    A `new` run gets a reason too; a run that is resumed has the adapter of its checkpoint.
    """
    adapter = read_plain_config(folder)
    plan = replace(plan, rank_pattern=adapter.rank_pattern, alpha_pattern=adapter.alpha_pattern)
    return replace(plan, choices=[*plan.choices, _choice(adapter, folder)]) if new else plan


def _choice(adapter: AdapterConfig, folder: Path) -> Choice:
    modules = adapter.target_modules
    ranks, alphas = sorted(map(adapter.rank_of, modules)), sorted(map(adapter.alpha_of, modules))
    text = _("training starts from this adapter and keeps its rank ({r}), alpha ({alpha}) and linear layers ({layers})")
    reason = text.format(r=_range(ranks[0], ranks[-1]), alpha=_range(alphas[0], alphas[-1]), layers=len(modules))
    return Choice("init_adapter", folder.name, reason)


def _range(low: float, high: float) -> str:
    return f"{low:g}" if low == high else _("{low} to {high}").format(low=f"{low:g}", high=f"{high:g}")


def _given(config: TrainConfig, name: str) -> bool:
    """Return whether the user gave the setting `name`: it is neither a default nor a value of the demo."""
    preset = config.demo and DEMO_PRESET.get(name) == getattr(config, name)
    return name in config.model_fields_set and not preset


def _as_in_files(modules: list[str], spec: ModelSpec) -> list[str]:
    """Return the names of `modules` in the files of the base model, where these name the same layers otherwise."""
    known = {place_in_layers(linear.name): linear.name for linear in spec.linears}
    return [known.get(place_in_layers(module), module) for module in modules]


def _every_linear(spec: ModelSpec, modules: list[str]) -> list[str]:
    """Return the names of the model's linear layers; all layers of the kinds `modules` if the files name others."""
    known = [linear.name for linear in spec.linears]
    if set(modules) <= set(known):
        return known
    found = {_in_layer(module, layer) for module in modules for layer in range(spec.layers)}
    return sorted({*modules, *found})


def _in_layer(module: str, layer: int) -> str:
    return LAYER.sub(lambda part: f"{part[1]}{part[2]}.{layer}.", module, count=1)


def _other_rank(config: TrainConfig, adapter: AdapterConfig, folder: Path) -> AdapterError:
    facts: dict[str, Any] = {"r": adapter.r, "alpha": adapter.alpha}
    facts |= {"run_r": config.lora_r, "run_alpha": config.lora_alpha}
    text = _("adapter: lora_r {r}, lora_alpha {alpha:.9g}; this run: lora_r {run_r}, lora_alpha {run_alpha:.9g}")
    return AdapterError(
        _("The adapter to start from has a different rank or scale than this run."),
        where=folder,
        found=text.format(**facts),
        fix=_own_settings(["--lora_r", "--lora_alpha"], "--lora_r {r} --lora_alpha {alpha:.9g}".format(**facts)),
    )


def _own_settings(flags: list[str], own: str) -> str:
    text = _("Remove {flags}: training then uses the adapter's own settings. Or give these: {own}")
    return text.format(flags=listed(flags), own=own)
