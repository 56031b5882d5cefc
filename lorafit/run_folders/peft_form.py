"""The forms in which adapter_config.json names the trained modules, so that PEFT adapts exactly these.

PEFT selects a module by its full name, by the end of its name after a dot, or by a regular expression. Which modules
that are depends on all modules of a model: a vision tower, or a layer that is no linear layer, may have the same names.
"""

import json
import re
from collections.abc import Collection, Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.atomic import atomic_file

CONFIG = "adapter_config.json"
Form = dict[str, Any]  # settings of adapter_config.json
# Types whose experts transformers loads as it does those of Qwen2-MoE. PEFT 0.21 turns EXPERT_NAMES into the names of
# fused experts in these types, wherever a module has such a name (peft issue 3711). Names of parameters stay.
LIKE_QWEN2_MOE = frozenset(
    [
        "Dots3NoteTextModel",
        "UnlimitedOcrTextModel",
        "afmoe",
        "beam",
        "cohere2_moe",
        "deepseek_v2",
        "deepseek_v3",
        "deepseek_v32",
        "dots1",
        "ernie4_5_moe",
        "exaone_moe",
        "flex_olmo",
        "glm4_moe",
        "glm4_moe_lite",
        "glm4v_moe",
        "glm_moe_dsa",
        "hunyuan_v1_moe",
        "longcat_flash",
        "mellum",
        "olmoe",
        "qwen3_moe",
        "qwen3_next",
        "qwen3_omni_moe",
        "qwen3_omni_moe_text",
        "qwen3_omni_moe_thinker",
        "sarvam_mla",
        "solar_open",
    ]
)
EXPERT_NAMES = frozenset(("gate", "gate_proj", "up_proj", "down_proj"))


@dataclass(frozen=True)
class BaseFacts:
    """What PEFT sees of a base model: its type, the names of all its modules, and the settings that find its class."""

    model_type: str
    modules: Collection[str]
    loader: Form


def form_of(trained: list[str], base: BaseFacts, settings: Form) -> Form:
    """Return changes of an adapter's `settings` with which PEFT adapts exactly the modules `trained`."""
    renamed = {_last(name) for name in trained} & EXPERT_NAMES
    if renamed and base.model_type in LIKE_QWEN2_MOE:
        return base.loader | by_parameters(settings, trained, renamed, base.modules)
    return base.loader | {"target_modules": target_modules(trained, base.modules)}


def target_names(trained: Iterable[str], every_module: Iterable[str]) -> list[str]:
    """Return the target_modules with which PEFT selects exactly `trained` from the modules `every_module` of a model.

    The names are short if short names select exactly these, else full. PEFT matches a full name or its end after a dot.
    """
    trained = sorted(set(trained))
    short = sorted({_last(name) for name in trained})
    selected = {name for name in every_module if _last(name) in short}
    return short if selected == set(trained) else trained


def target_modules(trained: Iterable[str], every_module: Collection[str]) -> list[str] | str:
    """Return target_names(), or a regular expression if a full name is also the end of another module's name."""
    names = target_names(trained, every_module)
    ends = tuple(f".{name}" for name in names)
    if set(names) == set(trained) and any(module.endswith(ends) for module in every_module if module not in names):
        return _expression(names)
    return names


def by_parameters(settings: Form, trained: list[str], kinds: Collection[str], every_module: Collection[str]) -> Form:
    """Return changes of `settings` that name the `trained` modules of the `kinds`, last parts of names, by their weights.

    PEFT has no dropout for weights, and does not adapt quantized ones.
    """
    by_weight = [name for name in trained if _last(name) in kinds]
    others = [name for name in trained if _last(name) not in kinds]
    patterns = {name: settings[name] for name in ("rank_pattern", "alpha_pattern") if settings.get(name)}
    extended = {
        name: {**pattern, **{rf"({key})\.weight": value for key, value in pattern.items()}}
        for name, pattern in patterns.items()
    }
    return {
        "target_modules": target_modules(others, every_module) if others else [],
        "target_parameters": [f"{name}.weight" for name in target_names(by_weight, every_module)],
        "lora_dropout": 0.0,
        **extended,
    }


def other_forms(
    settings: Form, trained: list[str], dropped: list[str], every_module: Collection[str]
) -> Iterator[Form]:
    """Yield changes of `settings` that also select `trained`, in the order of preference.

    `dropped` are the modules that PEFT does not fill with `settings`.
    """
    yield {"target_modules": target_modules(trained, every_module), "target_parameters": None}
    yield by_parameters(settings, trained, {_last(name) for name in dropped}, every_module)
    yield {"target_modules": sorted(trained), "target_parameters": None}
    yield {"target_modules": _expression(trained), "target_parameters": None}


def parameters_of_modules(settings: Form) -> bool:
    """Return whether all target_parameters in `settings` are weights of modules, as other_forms() names them."""
    names = settings.get("target_parameters") or []
    return isinstance(names, list) and all(isinstance(name, str) and name.endswith(".weight") for name in names)


def change_settings(folder: Path, changes: Form) -> None:
    """Change settings in the adapter_config.json of `folder`. Raises OSError and ValueError."""
    settings = json.loads((folder / CONFIG).read_text("utf-8")) | changes
    with atomic_file(folder / CONFIG) as path:
        path.write_text(json.dumps(settings, ensure_ascii=False, indent=2) + "\n", "utf-8")


def _expression(names: Iterable[str]) -> str:
    """Return a regular expression that matches exactly `names`; layers that have the same modules share a part."""
    groups: dict[str, set[str]] = {}
    for name in sorted(names):
        layer = re.search(r"\.(\d+)\.", name)
        key = f"{name[: layer.start()]}.#.{name[layer.end() :]}" if layer else name
        groups.setdefault(key, set()).add(layer[1] if layer else "")
    shared: dict[frozenset[str], list[str]] = {}
    for key, layers in groups.items():
        shared.setdefault(frozenset(layers), []).append(re.escape(key))
    parts = []
    for numbered, keys in shared.items():
        numbers = "|".join(sorted(numbered, key=lambda number: (len(number), number)))
        parts += [key.replace(r"\#", f"({numbers})") for key in keys]
    return "|".join(parts)


def _last(module: str) -> str:
    return module.rpartition(".")[2]
