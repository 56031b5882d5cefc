"""Translation of a settings file of LLaMA-Factory, Axolotl or mlx-lm: recognized by its keys, every key accounted for."""

from collections import ChainMap
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from lorafit.cli.foreign import tables
from lorafit.cli.foreign.flag_text import flags_text, shortened, shown
from lorafit.cli.foreign.mlx import MLX_LM, MLX_LM_DEFAULTS
from lorafit.cli.foreign.rules import SAME, Rule
from lorafit.config import TrainConfig
from lorafit.errors import ConfigError
from lorafit.messages import _, aside, labelled, listed, translate

LONGEST_FLAGS = 300  # characters that are shown of the settings that one key becomes


@dataclass(frozen=True)
class Tool:
    """A tool: `name`, the `rules` of its keys, its `defaults`, and the keys of which a file has all of a `mark`."""

    name: str
    rules: Mapping[str, Rule]
    defaults: Mapping[str, Any]
    marks: tuple[frozenset[str], ...]


TOOLS = (
    Tool(
        "LLaMA-Factory",
        tables.LLAMA_FACTORY,
        tables.LLAMA_FACTORY_DEFAULTS,
        tuple(frozenset({"model_name_or_path", key}) for key in ("stage", "finetuning_type", "template", "cutoff_len")),
    ),
    Tool(
        "Axolotl",
        tables.AXOLOTL,
        tables.AXOLOTL_DEFAULTS,
        tuple(
            frozenset({"base_model", key}) for key in ("datasets", "adapter", "sequence_len", "micro_batch_size", "rl")
        ),
    ),
    Tool(
        "mlx-lm",
        MLX_LM,
        MLX_LM_DEFAULTS,
        tuple(
            frozenset({"model", key})
            for key in ("data", "train", "iters", "lora_parameters", "num_layers", "hf_dataset")
        ),
    ),
)


@dataclass(frozen=True)
class Translated:
    """Settings from another tool's file, and a row for each key: its name, its value there, and what it is here."""

    tool: str
    settings: dict[str, Any]
    rows: list[tuple[str, str, str]]


def recognize(keys: Mapping[str, Any]) -> Tool | None:
    """Return the tool whose file has these `keys`; None for a file of lorafit, also one with a wrong key."""
    if not set(keys) - set(TrainConfig.model_fields):
        return None
    return next((tool for tool in TOOLS if any(mark <= set(keys) for mark in tool.marks)), None)


def translate_file(tool: Tool, keys: Mapping[str, Any], path: Path) -> Translated:
    """Return the settings of the file `path` of `tool`.

    The defaults of the tool fill what the file leaves out. Raise ConfigError with all keys that are unknown, or that
    ask for a result that lorafit cannot give.
    """
    given = {key: value for key, value in keys.items() if value is not None and value != ""}
    defaults = {key: value for key, value in tool.defaults.items() if key not in given and not _replaced(key, given)}
    whole = ChainMap(given, defaults)
    settings: dict[str, Any] = {}
    rows: list[tuple[str, str, str]] = []
    by_default: list[tuple[str, str, str]] = []
    faults: list[str] = []
    for key, value in (defaults | given).items():
        if key not in tool.rules:
            faults.append(labelled(key, _("unknown")))
            continue
        outcome = tool.rules[key](value, whole)
        if outcome.refused and (key in given or value is None):
            why = translate(outcome.note)
            why = labelled(why, listed(outcome.names)) if outcome.names else why
            faults.append(labelled(f"{key}: {shown(key, value)}", why))
            continue
        settings |= outcome.settings
        here = _meaning(outcome.settings, outcome.note)
        if key in given:
            rows.append((key, shown(key, value), here))
        elif outcome.refused or any(
            TrainConfig.model_fields[name].default != one for name, one in outcome.settings.items()
        ):
            by_default.append((key, aside(shown(key, value), _("default there")), here))
    if faults:
        raise _refused(tool, faults, path)
    if unset := sorted(set(keys) - set(given)):
        rows.append((listed(unset), "", _("not set")))
    return Translated(tool.name, settings, [*rows, *by_default])


def _replaced(key: str, given: Mapping[str, Any]) -> bool:
    """Return whether a key in `given` takes the place of the default of `key`."""
    others = {"warmup_ratio": "warmup_steps", "lora_target_linear": "lora_target_modules"}
    return others.get(key) in given


def _meaning(settings: Mapping[str, Any], note: str) -> str:
    flags = shortened(flags_text(settings), LONGEST_FLAGS)
    said = translate(note) if note else ""
    return aside(flags, said) if flags and said else flags or said or translate(SAME)


def _refused(tool: Tool, faults: list[str], path: Path) -> ConfigError:
    return ConfigError(
        _("Keys of this {tool} file have no counterpart: {count}.").format(tool=tool.name, count=len(faults)),
        where=path,
        found="\n".join(faults),
        fix=_("Change or remove these keys."),
    )
